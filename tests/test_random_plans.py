"""Whatever a plan script asks for is refused with a reason, or proved and equal to eager PyTorch."""

import pytest

from benchmarks.fuzz_plans import judge
from benchmarks.random_plans import random_plan

PIECES = [
    (model, first)
    for model, count in (("gpt", 5), ("llama", 2), ("mbart", 2), ("moe", 1))
    for first in range(count)
]


@pytest.mark.parametrize(("model", "piece"), PIECES)
def test_a_random_plan_is_refused_with_a_reason_or_equal_to_eager(model, piece):
    """Ten plans; ``python -m benchmarks.fuzz_plans`` judges many more."""
    for seed in range(10 * piece, 10 * piece + 10):
        plan = random_plan(seed, model)
        outcome = judge(plan)
        assert outcome.verdict in ("refused", "equal"), f"{outcome.reason}\nseed {seed}:\n{plan.text}"
