"""As updated: parameters stored, and gradients kept, in the layout in which their update reads them.

Where an update is cut over data-parallel devices, this is what ZeRO-2 and ZeRO-3 add to ZeRO-1.
"""

from collections.abc import Iterable
from dataclasses import replace

from superscaler.ir.graph import Phase
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.steps import plain


def homes_as_updated(placed: PlacedGraph, parameter: str, readers: Iterable[Layout]) -> list[Layout]:
    """Where a parameter is stored: per mesh of its readers in the layout its update reads.

    On a mesh that lacks the axes the update is cut over, it is stored as it is read.
    """
    wanted = _read_by_update(placed, parameter, parameter)
    homes = [
        replace(wanted, mesh=layout.mesh) if _has_axes(layout.mesh, wanted) else layout for layout in readers
    ]
    return list(dict.fromkeys(homes))


def kept_as_updated(placed: PlacedGraph, gradient: str, made: Layout) -> Layout | None:
    """The layout a micro-batch's gradient is brought into at once; None where it stays as it is made.

    Of several micro-batches, only the cuts are those of the update; over axes that cut nothing there, summands stay
    summands, which are brought together once per step.
    """
    (parameter,) = (name for name, other in placed.graph.gradients.items() if other == gradient)
    wanted = _read_by_update(placed, parameter, gradient)
    if wanted.mesh != made.mesh:
        return None
    if TIME not in made.partial:
        return None if wanted == made else wanted
    cut = {axis for axes in wanted.cuts for axis in axes}
    summands = tuple(axis for axis in made.partial if axis not in cut)
    target = plain(replace(wanted, partial=summands, reducer=made.reducer))
    return None if target == made else target


def brought_together(placed: PlacedGraph) -> frozenset[str]:
    """The parameters stored as updated, and what the forward makes of them alone, such as copies in low precision."""
    found = set(placed.stored_as_updated)
    for operator in placed.graph.operators:
        if operator.phase is Phase.FORWARD and operator.reads and found.issuperset(operator.reads):
            found.update(operator.writes)
    return frozenset(found)


def cut_by_update_alone(placed: PlacedGraph, parameter: str) -> tuple[str, ...]:
    """The mesh axes over which the update of a parameter is cut, but not the parameter as it is stored."""
    if parameter not in placed.graph.updates or parameter in placed.stored_as_updated:
        return ()
    wanted = _read_by_update(placed, parameter, parameter)
    stored = {
        axis
        for reader in placed.graph.readers[parameter]
        if reader.phase is not Phase.UPDATE
        for name, layout in zip(reader.reads, placed.reads(reader), strict=True)
        if name == parameter and layout is not None
        for axes in layout.cuts
        for axis in axes
    }
    return tuple(axis for axes in wanted.cuts for axis in axes if axis not in stored)


def _read_by_update(placed: PlacedGraph, parameter: str, tensor: str) -> Layout:
    """The layout in which the update of a parameter reads it, or its gradient."""
    update = placed.graph.writer[placed.graph.updates[parameter]]
    layout = placed.reads(update)[update.reads.index(tensor)]
    assert layout is not None
    return layout


def _has_axes(mesh: Mesh, layout: Layout) -> bool:
    """Whether a mesh has the axes that cut a layout, of the same sizes."""
    return all(
        axis in mesh.names and mesh.size(axis) == layout.mesh.size(axis)
        for axes in layout.cuts
        for axis in axes
    )
