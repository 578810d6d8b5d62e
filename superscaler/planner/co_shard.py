"""Co-shard: the operators an axis runs through, in a block, run piece after piece on the same devices.

(SuperScaler, arXiv 2301.08984.) Attention heads or hidden units are cut into pieces; each piece runs from where it
reads weights and activations to where its results are joined, or added up, and only then the next begins. In the
backward a piece runs forward again right before its backward (`superscaler.planner.recompute`), so that of a block
only what enters and leaves it is stored, and of what lies inside one piece exists at a time. Nothing communicates.

An axis of `parts x pieces x rest` elements is cut in its middle: where devices cut it into `parts`, each runs its own
elements in `pieces`, and all else that a plan does to the axis it does to the pieces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import prod
from typing import Any

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis
from superscaler.ir.float8 import LINEAR
from superscaler.ir.graph import PIECE, Graph, Operator, Phase, Ref, map_refs
from superscaler.ir.kinds import is_linear, row_of
from superscaler.ir.size import exact_quotient
from superscaler.ir.tensor import Role, Tensor
from superscaler.planner.placement import letters_of
from superscaler.planner.recompute import recompute

COMBINE = {"sum": "aten.add.Tensor", "max": "aten.maximum", "logsumexp": "aten.logaddexp"}
"""Reducer -> the kind that combines the results of two pieces."""
_OPTIONAL = {*LINEAR, "aten.convolution"}
"""Kinds whose additive operand may be None."""


@dataclass(frozen=True, slots=True)
class CoShard:
    """One decision of a script: in a block an axis runs piece after piece."""

    block: tuple[str, ...]
    """Forward operators."""
    axis: Axis
    pieces: int
    where: str
    """The script's line."""
    parts: int = 1
    """Into how many parts devices or micro-batches cut the axis; each has all the pieces."""


def co_shard(graph: Graph, axes: Axes, decisions: Sequence[CoShard]) -> Graph:
    """Replace the operators of each block that have its axis by their pieces, forward and backward.

    Raises:
        PlanError: Pieces cannot run one after another, or two decisions are about one operator.
    """
    runs = [run for decision in decisions for run in _runs(graph, axes, decision)]
    _check_apart(runs)
    writer = _Writer(graph, axes)
    for item in _in_order(graph, runs):
        writer.add(item)
    pieces = replace(graph, tensors=writer.tensors, operators=tuple(writer.operators))
    return recompute(pieces, writer.blocks)


def runs_in_pieces(axes: Axes, operator: Operator, axis: Axis) -> bool:
    """Whether an operator has the axis, and can run on a piece of it without being told where it starts."""
    letters = letters_of(axes, operator, axis)
    return bool(letters) and axes.rules[operator.name].indexed.isdisjoint(letters)


@dataclass(frozen=True)
class _Run:
    """The operators of one phase that run piece after piece."""

    decision: CoShard
    members: Mapping[str, Operator]
    summands: Mapping[str, str]
    """Tensors without the axis that members write, a summand per piece -> how these combine."""
    adding: frozenset[str]
    """Members that do not have the axis, but add up summands: each piece adds up its own."""
    sums: frozenset[str]
    """Summands that are read whole."""
    joined: tuple[str, ...]
    """Tensors with the axis that others read whole."""


def _runs(graph: Graph, axes: Axes, decision: CoShard) -> Iterator[_Run]:
    axis, block = decision.axis, set(decision.block)
    having = [operator for operator in graph.operators if runs_in_pieces(axes, operator, axis)]
    forward = [operator for operator in having if operator.name in block]
    origins = {operator.origin for operator in forward}
    inside = {operator.name for operator in forward}
    is_elsewhere = any(
        operator.phase is Phase.FORWARD and operator.name not in inside and _has(axes, operator, axis)
        for operator in graph.operators
    )
    backward = [
        operator
        for operator in having
        if operator.phase is Phase.BACKWARD and (operator.origin in origins or not is_elsewhere)
    ]
    members = {operator.name for operator in (*forward, *backward)}
    summands: dict[Phase, dict[str, str]] = {}
    adding: dict[Phase, set[str]] = {}
    for phase, of_phase in ((Phase.FORWARD, forward), (Phase.BACKWARD, backward)):
        summands[phase], adding[phase] = _summands(graph, axes, axis, phase, of_phase)
        members |= adding[phase]
    for phase in summands:
        chosen = {o.name: o for o in graph.operators if o.phase is phase and o.name in members}
        if not chosen:
            continue
        every = {**summands[Phase.FORWARD], **summands[Phase.BACKWARD]}
        apart = {
            name
            for operator in chosen.values()
            for name in operator.writes
            if _leaves(graph, name, adding[phase] if name in every else members)
        }
        joined = tuple(name for o in chosen.values() for name in o.writes if name in apart - every.keys())
        run = _Run(
            decision,
            chosen,
            summands[phase],
            frozenset(adding[phase]),
            frozenset(apart & every.keys()),
            joined,
        )
        _check_order(graph, run)
        yield run


def _has(axes: Axes, operator: Operator, axis: Axis) -> bool:
    return any(axis in parts for parts in axes.letters[operator.name].values())


def _summands(
    graph: Graph, axes: Axes, axis: Axis, phase: Phase, members: Sequence[Operator]
) -> tuple[dict[str, str], set[str]]:
    """What members leave in summands, with how they combine, and the linear operators that add these up."""
    names = {operator.name for operator in members}
    summands: dict[str, str] = {}
    adding: set[str] = set()
    for operator in graph.operators:
        if operator.name in names:
            for name, term in zip(operator.writes, axes.rules[operator.name].writes, strict=True):
                if axis not in axes.fine(name):
                    summands[name] = term.reducer
        elif operator.phase is phase and len(operator.reads) > 1 and is_linear(operator):
            passes = all(summands.get(name) == "sum" for name in operator.reads)
            adding |= {operator.name} if passes else set()
            summands |= dict.fromkeys(operator.writes if passes else (), "sum")
    return summands, adding


def _leaves(graph: Graph, name: str, inside: set[str]) -> bool:
    """Whether anything outside needs a tensor whole."""
    returned = (*graph.outputs, *graph.gradients.values(), *graph.updates.values())
    return name in returned or any(reader.name not in inside for reader in graph.readers[name])


# order


def _check_apart(runs: Sequence[_Run]) -> None:
    owner: dict[str, CoShard] = {}
    for run in runs:
        for name in run.members:
            other = owner.setdefault(name, run.decision)
            if other is not run.decision:
                raise PlanError(
                    f"{name!r} would run in pieces twice: along {other.axis} ({other.where}) and along "
                    f"{run.decision.axis}",
                    where=run.decision.where,
                    remedy="give every operator to one co_shard at most, along one axis",
                )


def _check_order(graph: Graph, run: _Run) -> None:
    """Refuse pieces one of which would need another: no member waits for what all pieces of one make."""
    whole: dict[str, Operator] = {}  # what exists once all pieces have run -> who brings them together
    for operator in graph.operators:
        behind = [whole[name] for name in operator.reads if name in whole]
        if operator.name in run.members:
            if behind and operator.name not in run.adding:
                raise PlanError(
                    f"{run.decision.axis} cannot run piece after piece here: {behind[0].name!r} "
                    f"({behind[0].kind}) needs all pieces, before {operator.name!r} can go on with one",
                    where=run.decision.where,
                    remedy=f"choose a block that ends at {behind[0].name!r}, or co-shard along another axis",
                )
            whole |= {name: operator for name in operator.writes if name in run.summands}
        elif behind or any(name in run.joined for name in operator.reads):
            culprit = next((other for other in behind if other.name not in run.members), operator)
            whole |= dict.fromkeys(operator.writes, culprit)


def _in_order(graph: Graph, runs: Sequence[_Run]) -> Iterator[Operator | _Run]:
    """Operators and whole runs, changed as little as it takes to bring each run together."""
    position = {operator.name: number for number, operator in enumerate(graph.operators)}
    place = dict(position)
    items: dict[int, Operator | _Run] = dict(enumerate(graph.operators))
    for run in runs:
        first = min(position[name] for name in run.members)
        for name in run.members:
            items.pop(position[name], None)
            place[name] = first
        items[first] = run
    waits: dict[int, set[int]] = {number: set() for number in items}
    followers: dict[int, set[int]] = {number: set() for number in items}
    for operator in graph.operators:
        here = place[operator.name]
        before = {place[graph.writer[name].name] for name in operator.reads if name in graph.writer} - {here}
        waits[here] |= before
        for number in before:
            followers[number].add(here)
    ready = [number for number, before in waits.items() if not before]
    heapify(ready)
    while ready:
        number = heappop(ready)
        yield items.pop(number)
        for follower in followers[number]:
            waits[follower].discard(number)
            if not waits[follower]:
                heappush(ready, follower)
    if items:
        run = next(item for item in items.values() if isinstance(item, _Run))
        raise PlanError(
            f"{run.decision.axis} cannot run piece after piece here: the block waits for another one that "
            "does, and which waits for it",
            where=run.decision.where,
            remedy="co-shard smaller blocks, such as the attention and the feed-forward layers apart",
        )


# pieces


@dataclass
class _Writer:
    """Writes the operators of the new graph."""

    graph: Graph
    axes: Axes
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    blocks: list[dict[str, None]] = field(default_factory=list)
    """Per piece the forward operators that run again in its backward."""
    made: dict[tuple[CoShard, str, int], str] = field(default_factory=dict)
    """Decision, tensor and number of a piece -> its name."""

    def __post_init__(self) -> None:
        self.tensors = dict(self.graph.tensors)

    def add(self, item: Operator | _Run) -> None:
        """Append an operator, or all pieces of a run and what brings them together."""
        if isinstance(item, Operator):
            self.operators.append(item)
            return
        for index in range(item.decision.pieces):
            block: list[Operator] = []
            for operator in item.members.values():
                start = len(self.operators)
                self._add_piece(item, operator, index)
                block += self.operators[start:]
                for name in operator.writes:
                    if name in item.sums:
                        self._add_up(item, operator, name, index)
            if block[0].phase is Phase.FORWARD:
                self.blocks.append({operator.name: None for operator in block})
        for name in item.joined:
            self._join(item.decision, name)

    def _add_piece(self, run: _Run, operator: Operator, index: int) -> None:
        decision, rule = run.decision, self.axes.rules[operator.name]
        has_axis = operator.name not in run.adding
        in_summands = operator.writes[0] in run.summands
        reads: list[str | None] = []
        for name, term in zip(operator.reads, rule.reads, strict=True):
            if not has_axis:
                reads.append(_piece(name, index))
            elif decision.axis in self.axes.fine(name):
                reads.append(self._piece_of(decision, operator, name, index))
            elif term.additive and in_summands and index:
                reads.append(self._nothing(operator, name, index))
            else:
                reads.append(name)
        writes = tuple(_piece(name, index) for name in operator.writes)
        for name, own in zip(operator.writes, writes, strict=True):
            self._like(name, own, self._shape(decision, name))
            self.made[decision, name, index] = own
        piece = replace(operator, name=_piece(operator.name, index), writes=writes)
        self.operators.append(_without_missing(self._local(decision, operator, piece, index), reads))

    def _local(self, decision: CoShard, operator: Operator, piece: Operator, index: int) -> Operator:
        """The arguments and keywords of a piece."""
        kind, shape = row_of(operator), list(self.tensors[piece.writes[0]].shape)
        arguments, keywords = list(piece.arguments), dict(piece.keywords)
        if kind.shape_argument is not None:
            arguments[kind.shape_argument] = shape
        if kind.boxed and decision.axis in self.axes.fine(operator.writes[0]):
            dim, outer = self._middle(decision, operator.writes[0])
            inner = exact_quotient(shape[dim], outer)
            keywords["starts"] = [0] * (dim + 1) + [index] + [0] * (len(shape) - dim)
            keywords["local"] = [*shape[:dim], outer, 1, inner, *shape[dim + 1 :]]
            keywords["whole"] = [*shape[:dim], outer, decision.pieces, inner, *shape[dim + 1 :]]
        return replace(piece, arguments=tuple(arguments), keywords=tuple(keywords.items()))

    def _shape(self, decision: CoShard, name: str) -> tuple[int, ...]:
        return tuple(
            exact_quotient(size, decision.pieces) if decision.axis in dim else size
            for dim, size in zip(self.axes.dims[name], self.graph.tensors[name].shape, strict=True)
        )

    def _middle(self, decision: CoShard, name: str) -> tuple[int, int]:
        """The dim of a tensor that is cut, and how many runs of that dim each piece has an equal share of."""
        for dim, parts in enumerate(self.axes.dims[name]):
            if decision.axis in parts:
                before = parts[: parts.index(decision.axis)]
                return dim, prod(axis.size for axis in before) * decision.parts
        raise AssertionError((name, decision.axis))

    def _piece_of(self, decision: CoShard, reader: Operator, name: str, index: int) -> str:
        """One piece of a tensor; made by a member, or else taken from the whole."""
        if (decision, name, index) in self.made:
            return self.made[decision, name, index]
        own = _piece(name, index)
        while own in self.tensors:  # another axis of it is co-sharded elsewhere
            own += "_"
        self.made[decision, name, index] = own
        (dim, outer), shape = self._middle(decision, name), self._shape(decision, name)
        inner = exact_quotient(shape[dim], outer)
        counts = [*([outer] if outer > 1 else []), decision.pieces, inner]
        parted = self._call(
            reader, f"{own}/parted", "reshape", (name,), (*shape[:dim], *counts, *shape[dim + 1 :])
        )
        at, chosen = dim + len(counts) - 2, (*shape[:dim], *counts[:-2], inner, *shape[dim + 1 :])
        if outer == 1:
            return self._call(reader, own, "aten.select.int", (parted,), chosen, at, index)
        picked = self._call(reader, f"{own}/picked", "aten.select.int", (parted,), chosen, at, index)
        return self._call(reader, own, "reshape", (picked,), shape)

    def _nothing(self, reader: Operator, name: str, index: int) -> str | None:
        """What a piece reads in place of an operand that only the first adds; None: it reads none."""
        if reader.kind in _OPTIONAL:
            return None
        tensor = self.tensors[name]
        arguments = (list(tensor.shape), 0.0)
        keywords = (("dtype", f"torch.{tensor.dtype}"),)
        zeros = replace(tensor, name=f"{_piece(reader.name, index)}/zeros", role=Role.ACTIVATION)
        self.tensors[zeros.name] = zeros
        made = _derived(reader, zeros.name, "full", (), arguments)
        self.operators.append(replace(made, keywords=keywords))
        return zeros.name

    def _add_up(self, run: _Run, writer: Operator, name: str, index: int) -> None:
        """Add what a piece leaves to what those before it did."""
        if index == 0:
            return
        before = _piece(name, 0) if index == 1 else f"{name}/sum{index - 1}"
        total = name if index == run.decision.pieces - 1 else f"{name}/sum{index}"
        self.tensors[total] = replace(self.tensors[name], name=total)
        made = _derived(
            writer,
            f"{name}/sum{index}",
            COMBINE[run.summands[name]],
            (before, _piece(name, index)),
            (Ref(0), Ref(1)),
        )
        self.operators.append(replace(made, writes=(total,)))

    def _join(self, decision: CoShard, name: str) -> None:
        """Bring all pieces of a tensor together."""
        writer, tensor = self.graph.writer[name], self.graph.tensors[name]
        (dim, outer), shape = self._middle(decision, name), self._shape(decision, name)
        inner = exact_quotient(shape[dim], outer)
        pieces = [_piece(name, index) for index in range(decision.pieces)]
        parted = (*shape[:dim], *([outer] if outer > 1 else []), inner, *shape[dim + 1 :])
        if outer > 1:
            pieces = [self._call(writer, f"{piece}/parted", "reshape", (piece,), parted) for piece in pieces]
        at = dim + (outer > 1)
        stacked = (*parted[:at], decision.pieces, *parted[at:])
        refs = [Ref(index) for index in range(len(pieces))]
        self._like(name, f"{name}/stacked", stacked)
        self.operators.append(_derived(writer, f"{name}/stacked", "aten.stack", tuple(pieces), (refs, at)))
        made = _derived(
            writer, f"{name}/joined", "reshape", (f"{name}/stacked",), (Ref(0), list(tensor.shape))
        )
        self.operators.append(replace(made, writes=(name,)))

    def _call(
        self,
        beside: Operator,
        name: str,
        kind: str,
        reads: tuple[str, ...],
        shape: tuple[int, ...],
        *rest: Any,
    ) -> str:
        """Append an operator on one tensor, which is called like what it writes; its name."""
        self._like(reads[0], name, shape)
        arguments = (Ref(0), *(rest or (list(shape),)))
        self.operators.append(_derived(beside, name, kind, reads, arguments))
        return name

    def _like(self, source: str, name: str, shape: tuple[int, ...]) -> None:
        self.tensors[name] = replace(self.tensors[source], name=name, shape=shape, role=Role.ACTIVATION)


def _piece(name: str, index: int) -> str:
    return f"{name}{PIECE}{index}"


def _derived(
    beside: Operator, name: str, kind: str, reads: tuple[str, ...], arguments: tuple[Any, ...]
) -> Operator:
    """An operator that belongs to the same call as another."""
    return replace(
        beside, name=name, kind=kind, reads=reads, writes=(name,), arguments=arguments, keywords=(), rule="",
        shape_argument=None,
    )  # fmt: skip


def _without_missing(operator: Operator, reads: Sequence[str | None]) -> Operator:
    """The operator on what it reads: None takes the place of a tensor that is not there."""
    left = [number for number, name in enumerate(reads) if name is not None]
    number = {old: new for new, old in enumerate(left)}
    arguments = map_refs(
        operator.arguments, lambda ref: Ref(number[ref.index]) if ref.index in number else None
    )
    return replace(operator, reads=tuple(name for name in reads if name is not None), arguments=arguments)
