"""Micro-batches: the batch axis cut in time, and what that means for operators that need the whole batch.

A forward or backward operator runs once per micro-batch. An operator that reads what is summed over the batch
(the loss, a weight gradient) waits for all of them and runs in the update. If such a sum is needed again
within the micro-batches (the number of tokens that count, by which every gradient is divided), it is computed
beforehand from the whole batch of inputs: those operators are copied into the phase P.
"""

from collections.abc import Mapping
from dataclasses import replace

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.kinds import linear_reads
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import Role
from superscaler.planner.placement import letters_of, passes_summands

WHOLE = "/whole"
"""Suffix of operators and tensors copied into the phase P."""


def batch_axes(graph: Graph, axes: Axes) -> tuple[Axis, ...]:
    """The axes of the first dim of every input."""
    found = [axes.dims[name][0][0] for name in graph.inputs if axes.dims[name] and axes.dims[name][0]]
    return tuple(dict.fromkeys(found))


def batch_letter(axes: Axes, operator: Operator, batch: tuple[Axis, ...]) -> tuple[str, Axis] | None:
    """Where an operator carries the batch, if it can be cut there."""
    for axis in batch:
        for letter in letters_of(axes, operator, axis):
            return letter, axis
    return None


def find_phases(
    graph: Graph,
    axes: Axes,
    micro_batches: int,
    places: Mapping[str, Mesh] | None = None,
    demands: list[tuple[Operator, str]] | None = None,
) -> dict[str, Phase]:
    """The phase each operator runs in.

    Summands pass through a linear operator only where it runs on the devices of all that write them
    (`places`).

    With `demands`, an operator that carries the batch stays among the micro-batches even if it reads what is
    known only after them; each such (operator, tensor) is added to the list.
    """
    if micro_batches == 1:
        return {operator.name: operator.phase for operator in graph.operators}
    batch = batch_axes(graph, axes)
    summed: set[str] = set()  # tensors that hold one micro-batch's summand
    late: set[str] = set()  # tensors that exist after the last micro-batch
    phases: dict[str, Phase] = {}
    for operator in graph.operators:
        phase = operator.phase
        if phase in (Phase.FORWARD, Phase.BACKWARD):
            phase = _phase_among_micro_batches(operator, graph, axes, batch, summed, late, places, demands)
        if phase is Phase.UPDATE:
            late.update(operator.writes)
        phases[operator.name] = phase
    return phases


def _phase_among_micro_batches(
    operator: Operator,
    graph: Graph,
    axes: Axes,
    batch: tuple[Axis, ...],
    summed: set[str],
    late: set[str],
    places: Mapping[str, Mesh] | None,
    demands: list[tuple[Operator, str]] | None,
) -> Phase:
    reads = [name for name in operator.reads if graph.tensors[name].role is not Role.STEP]
    carried = batch_letter(axes, operator, batch)
    parts = [name for name in reads if name in summed]
    linear = {operator.reads[i] for i in linear_reads(operator)}
    passes = linear.intersection(reads) == set(parts) and passes_summands(operator, graph)
    if passes and places is not None:
        passes = all(places[graph.writer[name].name] == places[operator.name] for name in parts)
    waits = [name for name in reads if name in late or (name in summed and not passes)]
    if waits and not (carried and demands is not None):
        return Phase.UPDATE
    if demands is not None:
        demands += [(operator, name) for name in waits]
    if parts and not waits:
        summed.update(operator.writes)
    if carried:
        rule = axes.rules[operator.name]
        summed.update(
            name
            for name, term in zip(operator.writes, rule.writes, strict=True)
            if carried[0] not in term.letters
        )
    return operator.phase


def compute_sums_beforehand(graph: Graph, axes: Axes) -> Graph:
    """Copy into the phase P whatever sums over the batch a micro-batch needs before all have run.

    Raises:
        PlanError: Such a sum depends on a parameter, so that it cannot be known beforehand.
    """
    demands: list[tuple[Operator, str]] = []
    phases = find_phases(graph, axes, 2, demands=demands)
    early: dict[str, Operator] = {}
    for operator, name in demands:
        _collect_sources(graph, name, operator, early)
    if not early:
        return graph
    ordered = [operator for operator in graph.operators if operator.name in early]
    return _with_copies(graph, ordered, phases)


def _collect_sources(graph: Graph, tensor: str, reader: Operator, early: dict[str, Operator]) -> None:
    """Everything `tensor` is computed from, back to the inputs and to what is known beforehand anyway."""
    pending = [tensor]
    while pending:
        name = pending.pop()
        if graph.tensors[name].role in (Role.PARAMETER, Role.STATE):
            raise PlanError(
                f"the batch cannot be cut into micro-batches: {reader.name!r} needs {tensor!r} of the whole "
                f"batch, which depends on the parameter {name!r}",
                where=reader.source,
                remedy="use micro_batches=1, or a layer that treats each sample alone",
            )
        writer = graph.writer.get(name)
        if writer is not None and writer.phase is not Phase.PREPARE and writer.name not in early:
            early[writer.name] = writer
            pending += writer.reads


def _with_copies(graph: Graph, ordered: list[Operator], phases: Mapping[str, Phase]) -> Graph:
    tensors = dict(graph.tensors)
    copied = {name: name + WHOLE for operator in ordered for name in operator.writes}
    copies = []
    for operator in ordered:
        for name in operator.writes:
            tensors[copied[name]] = replace(tensors[name], name=copied[name])
        copies.append(
            replace(
                operator,
                name=operator.name + WHOLE,
                reads=tuple(copied.get(name, name) for name in operator.reads),
                writes=tuple(copied[name] for name in operator.writes),
                phase=Phase.PREPARE,
            )
        )
    # what waited for one of these sums, or is computed from them alone, now reads the copy
    waiting = {name for name in copied if phases[graph.writer[name].name] is Phase.UPDATE}
    waiting |= {
        name for name in copied if any(phases[reader.name] is Phase.UPDATE for reader in graph.readers[name])
    }
    operators = [
        replace(operator, reads=tuple(copied[name] if name in waiting else name for name in operator.reads))
        for operator in graph.operators
    ]
    prepared = [operator for operator in operators if operator.phase is Phase.PREPARE]
    others = [operator for operator in operators if operator.phase is not Phase.PREPARE]
    return replace(graph, tensors=tensors, operators=(*prepared, *copies, *others))
