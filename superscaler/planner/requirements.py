"""What a plan asks of sizes that vary: every piece of a dim that it cuts has the same size."""

from collections.abc import Iterable, Iterator

from superscaler.ir.layout import Layout
from superscaler.ir.size import Requirement, Size, in_brackets
from superscaler.planner.materialize import MaterializedGraph, Transfer


def plan_requirements(materialized: MaterializedGraph) -> tuple[Requirement, ...]:
    """What the model and the plan ask of the sizes of a run, each condition once."""
    found = {one.condition: one for one in materialized.graph.requirements}
    if not materialized.graph.sizes:
        return tuple(found.values())
    cuts: dict[tuple[Size, int], str] = {}
    for size, count, axes in _cuts(_layouts(materialized)):
        cuts.setdefault((size, count), axes)
    for (size, count), axes in cuts.items():
        if not any(other == size and more > count and more % count == 0 for other, more in cuts):
            condition = f"{in_brackets(size)} % {count} == 0"
            found[condition] = Requirement(condition, f"the plan, which cuts it over {axes}")
    return tuple(found.values())


def _layouts(materialized: MaterializedGraph) -> Iterator[Layout]:
    for value in materialized.values.values():
        yield value.layout
    for events in materialized.events.values():
        for event in events:
            if isinstance(event, Transfer):
                yield from (event.step.before, event.step.after)


def _cuts(layouts: Iterable[Layout]) -> Iterator[tuple[Size, int, str]]:
    """Every cut of a size that varies: the size, the number of pieces, and the mesh axes."""
    for layout in layouts:
        for dim, size in enumerate(layout.sizes):
            if isinstance(size, Size) and layout.num_pieces(dim) > 1:
                axes = " x ".join(f"{name} ({layout.mesh.size(name)})" for name in layout.cuts[dim])
                yield size, layout.num_pieces(dim), axes
