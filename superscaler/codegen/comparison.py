"""Comparison: programs on the virtual cluster against plain eager PyTorch with autograd and torch.optim."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from superscaler.codegen.eager import Eager
from superscaler.codegen.pieces import relative_difference
from superscaler.codegen.program import Program
from superscaler.codegen.virtual import run_step
from superscaler.errors import PlanError
from superscaler.ir.graph import Graph
from superscaler.ir.interpret import interpret
from superscaler.ir.size import at_sizes, bind_sizes
from superscaler.ir.tensor import Role
from superscaler.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Comparison:
    """Largest differences between a plan and one device, each relative to the tensor's largest element.

    A gradient that is small beside the others of the model is compared with a thousandth of the largest: that of a
    bias in front of a softmax or a normalisation is zero but for rounding. So are parameters and optimizer states.
    """

    loss: float
    """The loss, and the norm of the gradients where it is an output; for inference the outputs."""
    gradients: float
    parameters: float
    """Parameters, buffers and optimizer states after every step."""
    replicas: float
    """Between devices that should hold the same."""
    worst: str
    """The tensor that differs most."""
    steps: int
    reference: str
    """What the plan was compared with."""

    @property
    def largest(self) -> float:
        """The largest of all differences."""
        return max(self.loss, self.gradients, self.parameters, self.replicas)

    def __str__(self) -> str:
        """Print one line per kind of value."""
        rows = ("loss", "gradients", "parameters", "replicas")
        lines = [f"  {row:<10} {getattr(self, row):.2e}" for row in rows]
        return "\n".join(
            [
                f"largest relative difference from {self.reference} over {self.steps} steps:",
                *lines,
                f"  most: {self.worst}",
            ]
        )


def compare_programs_with_eager(
    plan: Plan,
    programs: Sequence[Program],
    model: torch.nn.Module,
    args: Sequence[Any] | Mapping[str, Any],
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    steps: int = 2,
) -> Comparison:
    """Train `steps` steps on the virtual cluster and in eager PyTorch, from the same weights on one batch.

    A model with dropout is compared with its graph on one device instead: torch draws other masks.

    Args:
        plan: The plan.
        programs: Its programs.
        model: The module it was traced from; not changed.
        args: Inputs, as `superscaler.ir.trace.trace` takes them.
        kwargs: Further inputs by name.
        loss: Maps the model's output to a scalar, as given to ``trace``.
        steps: How many.

    Raises:
        VerificationError: The programs hang or fail.
        SizeError: The inputs are of sizes the plan is not for.
    """
    call = _bind(model, args, kwargs or {})
    batch = name_inputs(plan.graph, call)
    graph, programs = _at_sizes(plan, programs, batch)
    state = initial_state(graph, model)
    has_dropout = any(
        operator.kind == "dropout" and operator.keyword("p", 0.0) for operator in graph.operators
    )
    reference = _Interpreted(graph, state) if has_dropout else Eager(graph, model, loss)
    kinds: dict[str, list[tuple[float, str]]] = {"loss": [], "gradients": [], "parameters": []}
    replicas = 0.0
    for step in range(1, steps + 1):
        result = run_step(programs, state, batch, step, set(graph.gradients.values()))
        truth = reference.step(call, batch, step)
        state = result.state
        replicas = max(replicas, result.difference)
        ours = {
            "loss": result.outputs,
            "gradients": {name: result.watched[tensor] for name, tensor in graph.gradients.items()},
            "parameters": result.state,
        }
        for kind, values in ours.items():
            floors = _floors(graph, kind, truth[kind])
            for name, value in truth[kind].items():
                difference = relative_difference(values[name], value, floors.get(name, 0.0))
                kinds[kind].append((difference, f"{name} in step {step}"))
    most = {kind: max(found, default=(0.0, "nothing")) for kind, found in kinds.items()}
    return Comparison(
        most["loss"][0],
        most["gradients"][0],
        most["parameters"][0],
        replicas,
        max(most.values())[1],
        steps,
        "the graph on one device" if has_dropout else "eager PyTorch",
    )


_SMALL = 1e-3
"""What part of the largest tensor of its group a tensor's difference is told in at least."""


def _floors(graph: Graph, kind: str, truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Tensor -> the least scale of its difference; gradients are a group, parameters, and each kind of state."""
    groups: dict[str, list[str]] = {}
    for name in truth:
        role = graph.tensors[name].role
        if kind != "loss" and role is not Role.BUFFER:
            groups.setdefault(name.partition("/")[2] if role is Role.STATE else "", []).append(name)
    floors: dict[str, float] = {}
    for names in groups.values():
        largest = max((truth[name].abs().max().item() for name in names if truth[name].numel()), default=0.0)
        floors.update(dict.fromkeys(names, _SMALL * largest))
    return floors


def _at_sizes(
    plan: Plan, programs: Sequence[Program], batch: Mapping[str, Tensor]
) -> tuple[Graph, Sequence[Program]]:
    """Graph and programs for the sizes of a batch, where the plan is for several."""
    graph = plan.graph
    if not graph.sizes:
        return graph, programs
    declared = {name: graph.tensors[name].shape for name in graph.inputs}
    shapes = {name: value.shape for name, value in batch.items()}
    sizes = bind_sizes(declared, shapes, plan.requirements, f"the plan {plan.name!r} for {graph.name}")
    return graph.bind(shapes), at_sizes(tuple(programs), sizes)


def name_inputs(graph: Graph, call: inspect.BoundArguments) -> dict[str, Tensor]:
    """The graph's inputs by name, from a bound call of the model's forward."""
    leaves = [leaf for leaf in pytree.tree_leaves(dict(call.arguments)) if isinstance(leaf, Tensor)]
    if len(leaves) != len(graph.inputs):
        raise PlanError(
            f"the graph {graph.name!r} has the inputs {', '.join(graph.inputs)}; "
            f"{len(leaves)} tensors were given",
            remedy="pass the inputs the graph was traced with",
        )
    return dict(zip(graph.inputs, leaves, strict=True))


def initial_state(graph: Graph, model: torch.nn.Module | None = None) -> dict[str, Tensor]:
    """Stored tensors before the first step: the model's parameters and buffers; optimizer states are 0."""
    given: dict[str, Any] = dict(graph.values)
    if model is not None:
        given.update(copy.deepcopy({**dict(model.named_parameters()), **dict(model.named_buffers())}))
    return {
        tensor.name: given[tensor.name].detach()
        if tensor.name in given
        else torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype))
        for tensor in graph.stored()
    }


def _bind(model: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    signature = inspect.signature(model.forward)
    if isinstance(args, Tensor):
        args = (args,)
    if isinstance(args, Mapping):
        return signature.bind(**args, **kwargs)
    return signature.bind(*args, **kwargs)


class _Interpreted:
    """The graph on one device."""

    def __init__(self, graph: Graph, state: Mapping[str, Tensor]) -> None:
        self.graph, self.state = graph, dict(state)

    def step(
        self, call: inspect.BoundArguments, batch: Mapping[str, Tensor], step: int
    ) -> dict[str, dict[str, Tensor]]:
        results = interpret(self.graph, {**self.state, **batch, "step": step})
        self.state.update({name: results[fresh] for name, fresh in self.graph.updates.items()})
        return {
            "loss": {name: results[name] for name in self.graph.outputs},
            "gradients": {name: results[tensor] for name, tensor in self.graph.gradients.items()},
            "parameters": dict(self.state),
        }
