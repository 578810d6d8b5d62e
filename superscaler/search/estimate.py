"""Estimates: what a candidate takes by the costs of its layers, before it is planned.

Of p stages and m micro-batches, the slowest stage works m times; the others' work on one micro-batch is the bubble, or
that part of it which the schedule leaves (`BUBBLES`). Then every stage sums its gradients, and updates.
"""

from collections.abc import Sequence

from superscaler.search.bottleneck import least_pace
from superscaler.search.candidate import Candidate
from superscaler.search.costs import Costs

BUBBLES = {
    "gpipe": 1.0, "1f1b": 1.0, "interleaved": 0.5, "zb-h1": 1 / 3, "zb-h2": 0.0, "zb-v": 0.0,
    "3f1b": 1.0, "interlaced": 1.0, "interlaced-ahead": 1.0,
}  # fmt: skip
"""Part of the bubble of 1F1B that a schedule leaves (Narayanan et al., arXiv 2104.04473; Zero Bubble, 2401.10241)."""


def in_flight(candidate: Candidate, row: int) -> float:
    """Micro-batches whose activations a row of devices holds at most, by the published figures."""
    p, m = candidate.pp, candidate.micro_batches
    if p == 1:
        return 1
    if candidate.schedule == "interleaved":
        return min(m, (2 * (p - row) - 1 + p) / 2)
    if candidate.schedule == "interlaced-ahead":
        return min(m, 2 * (p - row) - 1)
    return min(m, p if candidate.parts_backward else p - row)


def rounds(candidate: Candidate, costs: Costs) -> float:
    """How often the slowest row works on a micro-batch, or waits as long.

    Rows that all meet between steps, some of them before a forward and some before a backward, wait for the longer.
    """
    is_locked = candidate.schedule == "interlaced"
    return candidate.micro_batches * (2 * costs.longer_share if is_locked else 1.0)


def step_seconds(candidate: Candidate, tasks: Sequence[float], steps: Sequence[float], costs: Costs) -> float:
    """Seconds of a step by the seconds of its rows.

    Args:
        candidate: Its schedule and numbers.
        tasks: Per row, of a micro-batch: stages that share a row take turns, and count as the slowest of them each.
        steps: Per row, once per step.
        costs: Of its layers.
    """
    slowest = max(tasks)
    bubble = BUBBLES[candidate.schedule] * costs.refill_share * (sum(tasks) - slowest)
    return rounds(candidate, costs) * slowest + bubble + max(steps) + _beside(candidate, costs)


def least_seconds(candidate: Candidate, costs: Costs) -> float:
    """A lower bound on the estimate, whatever layers the stages get."""
    totals = [sum(cost.task for cost in layers) for layers in costs.layers]
    steps = [sum(cost.step for cost in layers) for layers in costs.layers]
    p = candidate.pp
    if p == 1:
        return candidate.micro_batches * totals[0] + steps[0] + _beside(candidate, costs)
    slowest = least_pace(candidate, costs)
    bubble = BUBBLES[candidate.schedule] * costs.refill_share * max(0.0, min(totals) - slowest)
    return rounds(candidate, costs) * slowest + bubble + min(steps) / p + _beside(candidate, costs)


def least_interlaced_seconds(candidate: Candidate, chained: Costs) -> float:
    """A lower bound on the estimate of an interlaced plan by the costs of its layers in a chain of stages.

    All rows share out the same work, at best evenly; the bubble is that of the layers without the vocabulary, which
    the first and the last of a chain have.
    """
    even = 1 / sum(1 / sum(cost.task for cost in chained.layers[kind]) for kind in chained.kinds)
    inner = min(sum(cost.task for cost in layers[1:-1]) for layers in chained.layers)
    bubble = BUBBLES[candidate.schedule] * chained.refill_share
    return (candidate.micro_batches - bubble) * even + bubble * inner


def _beside(candidate: Candidate, costs: Costs) -> float:
    """Messages, and what all rows do together."""
    messages = 2 * (candidate.stages - 1) * costs.hand_on if candidate.pp > 1 else 0.0
    return messages + candidate.micro_batches * costs.together.task + costs.together.step
