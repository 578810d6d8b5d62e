"""Graph: one training step of one batch, forward, backward and update, as operators on logical tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from superscaler.errors import PlanError
from superscaler.ir.size import Requirement, at_sizes, bind_sizes
from superscaler.ir.tensor import Role, Tensor

AGAIN = "/again"
"""Suffix of an operator that computes in the backward what the one without it computed in the forward, and of
what it writes: both are cut and placed alike."""

PIECE = "/piece"
"""With a number behind it, part of the name of an operator that computes one of several pieces of what the one without
it computed, and of what it writes."""


class Phase(StrEnum):
    """Which part of a training step an operator belongs to."""

    PREPARE = "P"
    """Once per step, before the first micro-batch: what needs the whole batch of inputs but no parameter."""
    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"
    """Gradients of weights, where a schedule runs them apart from the rest of the backward."""
    UPDATE = "U"

    @property
    def is_repeated(self) -> bool:
        """Whether it runs once per micro-batch."""
        return self in (Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT)


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands in an operator's arguments for the tensor ``reads[index]``."""

    index: int


@dataclass(frozen=True, slots=True)
class Operator:
    """One call of a torch function on logical tensors."""

    name: str
    kind: str
    """A row of `superscaler.ir.kinds`: ``linear``, ``aten.gelu``."""
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    arguments: tuple[Any, ...]
    """Positional arguments, with a `Ref` wherever a tensor goes."""
    keywords: tuple[tuple[str, Any], ...] = ()
    phase: Phase = Phase.FORWARD
    module: str = ""
    """Path of the user's module that made the call, or for which autograd made it."""
    source: str = ""
    """The user's line, ``models/gpt.py:42``."""
    origin: int = -1
    """Number of the user's call; a forward operator and the backward operators it gave rise to share it."""
    rule: str = ""
    """Its own rule, found or declared; empty: that of its kind's row."""
    shape_argument: int | None = None
    """With a rule of its own: position of the argument that is the shape of the (local) result."""

    @property
    def original(self) -> str:
        """The name of the operator this one repeats; its own where it repeats none."""
        return self.name.removesuffix(AGAIN)

    @property
    def is_again(self) -> bool:
        """Whether this operator repeats one of the forward, in the backward."""
        return self.name.endswith(AGAIN)

    @property
    def is_piece(self) -> bool:
        """Whether this operator, or what it takes a piece of, runs piece after piece."""
        return PIECE in self.name

    def keyword(self, name: str, default: Any = None) -> Any:
        """One keyword argument."""
        return dict(self.keywords).get(name, default)


@dataclass(frozen=True)
class Graph:
    """Operators in an order in which they can run."""

    name: str
    tensors: Mapping[str, Tensor]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    """The user's data, by name; their first dim is the batch."""
    outputs: tuple[str, ...]
    """What the step returns; for training, the loss."""
    updates: Mapping[str, str] = field(default_factory=dict)
    """Stored tensor -> the tensor that holds its value after the step."""
    gradients: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> the tensor that holds its gradient."""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Stored tensor -> its value (a ``torch.Tensor``) before the first step, where the model brought one."""
    initialisers: Mapping[str, tuple[tuple[Any, ...], ...]] = field(default_factory=dict)
    """Stored tensor without a value -> how it is filled before the first step (`superscaler.ir.deferred`)."""
    autocast: str = ""
    """The dtype ``torch.autocast`` lowers to in the forward pass, or empty."""
    float8: bool = False
    """Whether linear layers multiply in float8 where they can (`superscaler.ir.float8`)."""
    saved_as: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter or buffer -> its names in a checkpoint, where that is not its own name alone: all names of a
    tied parameter, none of a buffer that is not persistent."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Symbol of a size that varies (`superscaler.ir.size`) -> its value in the example."""
    requirements: tuple[Requirement, ...] = ()
    """What the model asks of sizes that vary."""

    @cached_property
    def by_name(self) -> dict[str, Operator]:
        """Operators by name."""
        return {operator.name: operator for operator in self.operators}

    @cached_property
    def writer(self) -> dict[str, Operator]:
        """Tensor name -> the operator that writes it."""
        return {name: operator for operator in self.operators for name in operator.writes}

    @cached_property
    def readers(self) -> dict[str, tuple[Operator, ...]]:
        """Tensor name -> the operators that read it, in order."""
        table: dict[str, list[Operator]] = {name: [] for name in self.tensors}
        for operator in self.operators:
            for name in dict.fromkeys(operator.reads):
                table[name].append(operator)
        return {name: tuple(readers) for name, readers in table.items()}

    @property
    def is_training(self) -> bool:
        """Whether the graph holds an optimizer update."""
        return bool(self.updates)

    @property
    def is_served(self) -> bool:
        """Whether its attentions keep keys and values from run to run."""
        return any(operator.kind == "paged_attention" for operator in self.operators)

    def operator(self, name: str) -> Operator:
        """The operator called `name`.

        Raises:
            PlanError: There is none.
        """
        if name not in self.by_name:
            raise PlanError(
                f"the graph {self.name!r} has no operator {name!r}",
                remedy="`superscaler show MODEL --graph` lists the operators",
            )
        return self.by_name[name]

    def stored(self) -> tuple[Tensor, ...]:
        """Parameters, buffers and optimizer states."""
        return tuple(tensor for tensor in self.tensors.values() if tensor.role.is_stored)

    def of_role(self, role: Role) -> tuple[Tensor, ...]:
        """Tensors of one role, in order of appearance."""
        return tuple(tensor for tensor in self.tensors.values() if tensor.role is role)

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> "Graph":
        """The graph for inputs of these shapes: numbers in place of the sizes that vary.

        Raises:
            SizeError: The graph is not for such inputs.
        """
        if not self.sizes:
            return self
        declared = {name: self.tensors[name].shape for name in self.inputs}
        sizes = bind_sizes(declared, shapes, self.requirements, f"the graph {self.name!r}")
        return replace(at_sizes(self, sizes), sizes={}, requirements=())

    def with_operators(self, operators: tuple[Operator, ...]) -> "Graph":
        """The same graph with other operators over the same tensors."""
        return replace(self, operators=operators)


def drop_unread(graph: Graph) -> Graph:
    """Remove operators nobody reads, and tensors nobody mentions."""
    wanted = {*graph.outputs, *graph.gradients.values(), *graph.updates.values()}
    kept: list[Operator] = []
    for operator in reversed(graph.operators):
        if wanted.intersection(operator.writes):
            kept.append(operator)
            wanted.update(operator.reads)
    written = {name for operator in kept for name in operator.writes}
    always = (Role.INPUT, Role.PARAMETER, Role.BUFFER, Role.STATE)
    tensors = {
        name: tensor
        for name, tensor in graph.tensors.items()
        if name in wanted or name in written or tensor.role in always
    }
    return replace(graph, operators=tuple(reversed(kept)), tensors=tensors)


def map_refs(value: Any, function: Callable[[Ref], Any]) -> Any:
    """Replace every `Ref` inside nested arguments.

    >>> map_refs((Ref(0), [1, Ref(1)]), lambda ref: "xy"[ref.index])
    ('x', [1, 'y'])
    """
    if isinstance(value, Ref):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_refs(item, function) for item in value)
    if isinstance(value, list):
        return [map_refs(item, function) for item in value]
    return value


def iterate_refs(value: Any) -> Iterator[Ref]:
    """Every `Ref` inside nested arguments, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from iterate_refs(item)
