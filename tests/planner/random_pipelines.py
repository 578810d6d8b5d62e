"""Random pipelines: branches, stages that share rows or span several, lanes, costs, latency, memory limits."""

from hypothesis import strategies as st

from superscaler.planner.pipeline import Costs, Pipeline


@st.composite
def pipelines(draw, max_stages=3, max_rows=3, limits=True):
    stages = draw(st.integers(1, max_stages))
    rows = draw(st.integers(1, max_rows))
    lanes = tuple(draw(_lanes(rows)) for _ in range(stages))
    used = sorted({row for lane in lanes for group in lane for row in group})
    lanes = tuple(tuple(tuple(used.index(row) for row in group) for group in lane) for lane in lanes)
    pairs = [(first, then) for then in range(stages) for first in range(then)]
    edges = tuple(pair for pair in pairs if draw(st.booleans()))
    forward_only = frozenset(stage for stage in range(stages) if draw(st.integers(0, 3)) == 0)

    def numbers(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(stages))

    costs = Costs(
        numbers(1, 4),
        numbers(1, 4),
        numbers(0, 3),
        numbers(0, 3),
        numbers(0, 3),
        {edge: draw(st.integers(0, 3)) for edge in edges},
        tuple(draw(st.integers(0, 7)) for _ in used) if limits and draw(st.booleans()) else None,
    )
    return Pipeline(lanes, edges, draw(st.integers(0, 4)) > 0, forward_only, costs)


@st.composite
def _lanes(draw, rows):
    order = draw(st.permutations(range(rows)))
    match draw(st.sampled_from(["one", "one", "wide", "lanes"])) if rows > 1 else "one":
        case "one":
            return ((order[0],),)
        case "wide":
            return (tuple(sorted(order[:2])),)
        case _:
            return ((order[0],), (order[1],))
