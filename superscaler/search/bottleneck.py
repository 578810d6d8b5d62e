"""The bottleneck of a pipeline: how fast its slowest row can be at best, if memory did not matter.

Runs of layers that take no longer than a limit are found greedily, each as long as can be; the least limit under which
they reach the last layer is found by bisection (chains-on-chains partitioning).
"""

from bisect import bisect_right
from itertools import accumulate

from superscaler.search.candidate import Candidate
from superscaler.search.costs import Costs

TOLERANCE = 1e-3
"""The least limit is found to this part of it, from below."""


def least_pace(candidate: Candidate, costs: Costs) -> float:
    """Seconds that the slowest row takes for a micro-batch, at least, whatever layers the stages get.

    Stages that share a row take turns, and count as the slowest of them each. Where rows are of several kinds, stages
    of slow ones may be empty here, which the plan will not have.
    """
    hosts = {stage: kind for row, kind in zip(candidate.rows, costs.kinds, strict=True) for stage in row}
    reached = [[0.0, *accumulate(cost.task for cost in layers)] for layers in costs.layers]
    sums = [reached[hosts[stage]] for stage in range(candidate.stages)]
    count = len(costs.layers[0])

    def suffices(limit: float) -> bool:
        end = 0
        for own in sums:
            end = bisect_right(own, own[end] + limit) - 1
        return end == count

    low = 1 / sum(1 / own[-1] for own in sums)
    longest = max(cost.task for layers in costs.layers for cost in layers)
    high = max(own[-1] for own in sums) if len(reached) > 1 else low + longest
    while high - low > TOLERANCE * low:
        middle = (low + high) / 2
        if suffices(middle):
            high = middle
        else:
            low = middle
    return len(candidate.rows[0]) * low
