"""Completion: every operator gets a place and its cuts from what the script said, with the reason.

Places: an operator the script did not place goes with its forward operator, else with the operators it reads
from, else with those that read from it, else with those of its module; what reads a parameter or its gradient in the
update goes with the first reader of the parameter.
Cuts: a cut axis is cut in every operator it runs through. A linear operator all of whose reads are summands
over the same mesh axes passes the summands on, so that they are summed once, later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from superscaler.errors import PlanError
from superscaler.ir.axes import Axis
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.kinds import linear_reads
from superscaler.ir.layout import is_multiple
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.size import Size
from superscaler.ir.tensor import Role
from superscaler.planner.as_updated import cut_by_update_alone
from superscaler.planner.computed_where_read import computed_where_read
from superscaler.planner.micro_batches import batch_axes, batch_letter, find_phases
from superscaler.planner.placement import PlacedGraph, Placement, letters_of, operand_layout, passes_summands
from superscaler.planner.planner import Cut, Planner
from superscaler.planner.totals import split_totals
from superscaler.planner.weight_gradients import weight_operators


def complete(planner: Planner, micro_batches: int, *, splits_backward: bool = False) -> PlacedGraph:
    """Derive the whole plan's space from a script's decisions.

    Args:
        planner: The script's decisions.
        micro_batches: How many a step has.
        splits_backward: Whether gradients of weights become a phase of their own.

    Raises:
        PlanError: An operator cannot be placed, or would be cut twice over one mesh axis, or into more pieces
            than it has elements; or something the script said has no effect.
    """
    graph, axes = planner.graph, planner.axes
    batch = batch_axes(graph, axes)
    _check_micro_batches(planner, batch, micro_batches)
    reasons = {operator.name: list(planner.notes.get(operator.name, ())) for operator in graph.operators}
    places = _in_dense_chunks(_complete_places(planner, reasons))
    if micro_batches > 1:
        places = {name: replace(mesh, micro_batches=micro_batches) for name, mesh in places.items()}
    phases = find_phases(graph, axes, micro_batches, places)
    if splits_backward:
        phases |= dict.fromkeys(weight_operators(graph, phases, places), Phase.WEIGHT)
    by_operator = _cuts_by_operator(planner)
    effective: set[Cut] = set()
    placements: dict[str, Placement] = {}
    partial: dict[str, tuple[str, ...]] = {}
    for operator in graph.operators:
        cuts = by_operator[operator.name]
        placement, made = _own_cuts(planner, operator, places[operator.name], cuts, reasons[operator.name])
        effective.update(made)
        if micro_batches > 1 and phases[operator.name].is_repeated:
            placement = _cut_in_time(planner, operator, placement, batch)
        among = phases[operator.name].is_repeated
        placement = _pass_summands(graph, operator, placement, places, partial, among, reasons[operator.name])
        placements[operator.name] = placement
        for name, term in zip(operator.writes, axes.rules[operator.name].writes, strict=True):
            layout = operand_layout(axes, operator, name, term, placement, written=True)
            partial[name] = layout.partial if layout.reducer == "sum" else ()
    _check_effective(planner, effective, places)
    _check_sizes(planner, placements)
    placed = PlacedGraph(
        graph,
        axes,
        placements,
        phases,
        {name: tuple(lines) for name, lines in reasons.items()},
        frozenset(planner.kept_as_updated if micro_batches > 1 else graph.gradients.values()),
        frozenset(planner.stored_as_updated),
        frozenset(planner.on_host),
    )
    _check_updated_on_host(planner, placed)
    return split_totals(computed_where_read(placed))


def _check_updated_on_host(planner: Planner, placed: PlacedGraph) -> None:
    """What waits in host memory must be updated as it is stored: else all of it would be on the device to be joined."""
    for name, line in planner.parameters_on_host.items():
        if axes := cut_by_update_alone(placed, name):
            raise PlanError(
                f"{name!r} waits in host memory as a whole, but its update is cut over {', '.join(axes)}: the pieces "
                "of all parameters would be brought together on the device in every step",
                where=line,
                remedy="use zero=3, or p.store_as_updated, which stores pieces; or do not cut the update",
            )


# places


def _complete_places(planner: Planner, reasons: dict[str, list[str]]) -> dict[str, Mesh]:
    graph = planner.graph
    places = dict(planner.places)
    unknown = set(places) - set(graph.by_name)
    assert not unknown, unknown
    only = set(places.values())
    if len(only) == 1 and len(places) < len(graph.operators):
        (mesh,) = only
        for operator in graph.operators:
            if operator.name not in places:
                reasons[operator.name].append(f"placed on {mesh}: the plan uses no other devices")
                places[operator.name] = mesh
        return places
    in_order = (places[operator.name] for operator in graph.operators if operator.name in places)
    number = {mesh: i for i, mesh in enumerate(dict.fromkeys(in_order))}

    def put(operator: Operator, candidates: Iterable[Operator], latest: bool, why: str) -> None:
        placed = [other for other in candidates if other.name in places]
        if operator.name in places or not placed:
            return
        choose = max if latest else min
        other = choose(placed, key=lambda candidate: number[places[candidate.name]])
        places[operator.name] = places[other.name]
        reasons[operator.name].append(f"placed on {places[other.name]}: {why} {other.name!r}")

    parameters = {gradient: parameter for parameter, gradient in graph.gradients.items()}
    forwards: dict[int, Operator] = {}
    for operator in graph.operators:
        if operator.phase is Phase.FORWARD and operator.origin >= 0:
            forwards.setdefault(operator.origin, operator)
    forward = [operator for operator in graph.operators if operator.phase in (Phase.FORWARD, Phase.PREPARE)]
    for operator in forward:
        put(operator, _writers(graph, operator), True, "it reads from")
    for operator in reversed(forward):
        put(operator, _readers(graph, operator), False, "it is read by")
    for operator in forward:
        put(operator, _writers(graph, operator), True, "it reads from")
    for operator in graph.operators:
        if operator.is_again and operator.original in places:
            places[operator.name] = places[operator.original]
            reasons[operator.name] = [f"placed on {places[operator.name]}: it repeats {operator.original!r}"]
        if operator.phase is Phase.BACKWARD and operator.origin in forwards:
            put(operator, [forwards[operator.origin]], True, "it is the backward of")
        if operator.phase is Phase.UPDATE:
            parameter = parameters.get(operator.reads[0], operator.reads[0])
            home = [reader for reader in graph.readers[parameter] if reader.phase is not Phase.UPDATE]
            put(operator, home[:1], True, "its parameter is first read by")
        put(operator, _writers(graph, operator), True, "it reads from")
    for operator in reversed(graph.operators):
        put(operator, _readers(graph, operator), False, "it is read by")
    modules: dict[str, list[Operator]] = {}
    for operator in graph.operators:
        modules.setdefault(operator.module, []).append(operator)
    for operator in graph.operators:
        if operator.module:
            put(operator, modules[operator.module], False, "its module is that of")
        if operator.name not in places:
            raise PlanError(
                f"the operator {operator.name!r} is not placed: nothing beside it is assigned to devices",
                where=operator.source,
                remedy=f"add p.assign(p.select({operator.module or operator.name!r}), devices) to the plan "
                "script, or p.assign(p.everything(), devices) as its first line",
            )
    return places


def _in_dense_chunks(places: dict[str, Mesh]) -> dict[str, Mesh]:
    """Number the chunks of every array of devices from 0, without gaps."""
    chunks: dict[Mesh, set[int]] = {}
    for mesh in places.values():
        chunks.setdefault(mesh.home, set()).add(mesh.chunk)
    dense = {
        replace(home, chunk=chunk): replace(home, chunk=number)
        for home, found in chunks.items()
        for number, chunk in enumerate(sorted(found))
    }
    return {name: dense[mesh] for name, mesh in places.items()}


def _writers(graph: Graph, operator: Operator) -> list[Operator]:
    return [graph.writer[name] for name in operator.reads if name in graph.writer]


def _readers(graph: Graph, operator: Operator) -> list[Operator]:
    return [reader for name in operator.writes for reader in graph.readers[name]]


# cuts


def _cuts_by_operator(planner: Planner) -> dict[str, list[Cut]]:
    """Per operator the cuts that may hold for it, in the script's order."""
    carries: dict[int, list[str]] = {}
    for name, letters in planner.axes.letters.items():
        for index in {axis.index for parts in letters.values() for axis in parts}:
            carries.setdefault(index, []).append(name)
    table: dict[str, list[Cut]] = {operator.name: [] for operator in planner.graph.operators}
    for cut in planner.cuts:
        for name in carries.get(cut.axis.index, ()):
            original = planner.graph.by_name[name].original
            if cut.operators is None or original in cut.operators:
                table[name].append(cut)
    return table


def _own_cuts(
    planner: Planner, operator: Operator, mesh: Mesh, cuts: list[Cut], reasons: list[str]
) -> tuple[Placement, list[Cut]]:
    """What the script's cuts make of one operator, and which of them hold for it."""
    chosen: dict[tuple[str, int], list[str]] = {}
    pieces: dict[int, tuple[int, ...]] = {}
    owner: dict[str, tuple[Cut, str]] = {}
    holding: list[Cut] = []
    for cut in cuts:
        letter = _letter_to_cut(planner, operator, mesh, cut, reasons)
        if letter is None:
            continue
        holding.append(cut)
        if cut.over in owner:
            _check_same(operator, *owner[cut.over], cut, letter)
            continue
        owner[cut.over] = cut, letter
        chosen.setdefault((letter, cut.axis.index), []).append(cut.over)
        if cut.pieces:
            pieces[cut.axis.index] = cut.pieces
        reasons.append(f"cut along {cut.axis} over {cut.over} by {cut.where}")
    keys = tuple((key, tuple(names)) for key, names in chosen.items())
    return Placement(mesh, keys, (), tuple(pieces.items())), holding


def _letter_to_cut(
    planner: Planner, operator: Operator, mesh: Mesh, cut: Cut, reasons: list[str]
) -> str | None:
    """The letter of an operator's rule that a cut means; None, with the reason, where it does not hold."""
    if cut.over not in mesh.names:
        if cut.letter:
            raise PlanError(
                f"{operator.name!r} cannot be cut over {cut.over!r}: its devices are {mesh}",
                where=cut.where,
                remedy=f"cut it over one of {', '.join(mesh.names)}, or place it on a mesh with {cut.over!r}",
            )
        reasons.append(f"not cut along {cut.axis}: its devices, {mesh}, have no mesh axis {cut.over!r}")
        return None
    letters = (cut.letter,) if cut.letter else letters_of(planner.axes, operator, cut.axis)
    if not letters:
        reasons.append(f"not cut along {cut.axis} over {cut.over}: {operator.kind} needs it whole")
        return None
    return letters[0]


def _check_same(operator: Operator, first: Cut, letter: str, second: Cut, other: str) -> None:
    """A second cut over one mesh axis may only repeat the first."""
    if (first.axis, letter, first.pieces) == (second.axis, other, second.pieces):
        return
    if first.axis != second.axis:
        what = f"along {first.axis} ({first.where}) and along {second.axis}"
    elif letter != other:
        what = f"along {first.axis} as {letter!r} ({first.where}) and as {other!r}"
    else:
        what = f"along {first.axis} into different pieces ({first.where})"
    raise PlanError(
        f"{operator.name!r} would be cut twice over {first.over!r}: {what}",
        where=second.where,
        remedy="drop one of the two cuts, or make the second over another mesh axis",
    )


def _check_effective(planner: Planner, effective: set[Cut], places: Mapping[str, Mesh]) -> None:
    """Nothing a script says is ignored: each line's cuts must hold for some operator."""
    fulfilled = {(cut.where, cut.over) for cut in effective}
    known = dict.fromkeys(name for mesh in places.values() for name in mesh.names)
    for cut in planner.cuts:
        if cut.over not in known:
            raise PlanError(
                f"the axis {cut.axis} is to be cut over {cut.over!r}, which is no mesh axis of this plan",
                where=cut.where,
                remedy=f"the mesh axes are {', '.join(known)}; add one by p.mesh(devices, {cut.over}=2)",
            )
        if (cut.where, cut.over) not in fulfilled:
            raise PlanError(
                f"cutting {cut.axis} over {cut.over!r} changes nothing: each operator meant needs the axis "
                f"whole, or does not have it, or is on devices without a mesh axis {cut.over!r}",
                where=cut.where,
                remedy="cut another axis, or within other operators, or drop the line",
            )


def _cut_in_time(
    planner: Planner, operator: Operator, placement: Placement, batch: tuple[Axis, ...]
) -> Placement:
    """Cut the batch into micro-batches, outside every cut over devices."""
    carried = batch_letter(planner.axes, operator, batch)
    if carried is None:
        return placement
    letter, axis = carried
    cuts = dict(placement.cuts)
    key = (letter, axis.index)
    cuts[key] = (TIME, *cuts.get(key, ()))
    return replace(placement, cuts=tuple(cuts.items()))


def _pass_summands(
    graph: Graph,
    operator: Operator,
    placement: Placement,
    places: dict[str, Mesh],
    partial: dict[str, tuple[str, ...]],
    among: bool,
    reasons: list[str],
) -> Placement:
    """The placement with the mesh axes over which summands pass; over time only `among` the micro-batches."""
    reads = [operator.reads[i] for i in linear_reads(operator)]
    reads = [name for name in reads if graph.tensors[name].role is not Role.STEP]
    if not reads or not passes_summands(operator, graph):
        return placement
    if any(name not in graph.writer or places[graph.writer[name].name] != placement.mesh for name in reads):
        return placement
    shared = [axis for axis in partial[reads[0]] if all(axis in partial[name] for name in reads)]
    shared = [axis for axis in shared if axis not in placement.used and (axis != TIME or among)]
    if not shared:
        return placement
    reasons.append(
        f"passes summands over {', '.join(shared)} on: it is linear, so they are summed once, later"
    )
    return replace(placement, values=tuple(shared))


def _check_micro_batches(planner: Planner, batch: tuple[Axis, ...], micro_batches: int) -> None:
    for axis in batch:
        if axis.size % micro_batches:
            raise PlanError(
                f"a batch of {int(axis.size)} samples cannot be cut into {micro_batches} equal micro-batches",
                where=planner.schedule_said_by,
                remedy=f"use a number of micro-batches that divides {int(axis.size)}, or another batch (--batch)",
            )


def _check_sizes(planner: Planner, placements: Mapping[str, Placement]) -> None:
    """Every cut axis has an element for every piece, and as many chosen pieces as devices."""
    for operator in planner.graph.operators:
        placement = placements[operator.name]
        letters = planner.axes.letters[operator.name]
        chosen = dict(placement.pieces)
        for (letter, index), names in placement.cuts:
            axis = next(axis for axis in letters[letter] if axis.index == index)
            count = prod(placement.mesh.size(name) for name in names)
            given = chosen.get(index, ())
            is_even = not isinstance(axis.size, Size) or (not given and is_multiple(axis.size, count))
            if count <= axis.size and len(given) in (0, count) and is_even:
                continue
            over = " x ".join(f"{name} ({placement.mesh.size(name)})" for name in names)
            lines = [cut.where for cut in planner.cuts if cut.axis == axis and cut.over in names]
            where = lines[-1] if lines else planner.schedule_said_by
            if not is_even:
                raise PlanError(
                    f"{operator.name!r} would be cut into {count} uneven pieces along {axis}, over {over}: "
                    f"it varies, and has {int(axis.size)} elements in the example",
                    where=where,
                    remedy=f"trace an example with a multiple of {count} elements, as every run must have then, "
                    "and name no pieces",
                )
            if count > axis.size:
                raise PlanError(
                    f"{operator.name!r} cannot be cut into {count} pieces along {axis}, over {over}: "
                    f"it has {axis.size} elements",
                    where=where,
                    remedy=f"use at most {axis.size} pieces: fewer devices along {', '.join(names)}, "
                    "or another mesh axis for this cut",
                )
            raise PlanError(
                f"{list(given)} are {len(given)} pieces of {axis}, "
                f"which {operator.name!r} cuts into {count}, over {over}",
                where=where,
                remedy=f"give {count} sizes that add up to {axis.size}",
            )
