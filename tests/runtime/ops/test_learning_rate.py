"""Schedules give the learning rates of torch.optim.lr_scheduler."""

import pytest
import torch
from torch.optim import lr_scheduler

import superscaler as ss
from superscaler.errors import TraceError
from superscaler.ir.learning_rates import rate_argument, rate_call
from superscaler.runtime import ops
from superscaler.runtime.ops.learning_rate import learning_rate

PEAK, WARMUP, TOTAL, FLOOR = 3e-4, 5, 20, 3e-5


def warmed_up(then):
    """What torch gives over 25 steps: a linear warmup, then another schedule."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    schedule = lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1), then(optimizer)],
        [WARMUP - 1],
    )
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "then"),
    [
        (ss.Constant(PEAK, WARMUP), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (
            ss.Linear(PEAK, WARMUP, TOTAL, FLOOR),
            lambda o: lr_scheduler.LinearLR(o, 1.0, FLOOR / PEAK, TOTAL - WARMUP),
        ),
        (
            ss.Cosine(PEAK, WARMUP, TOTAL, FLOOR),
            lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL - WARMUP, FLOOR),
        ),
    ],
)
def test_schedules_are_those_of_torch(schedule, then):
    argument = rate_argument(schedule)
    rates = [learning_rate(argument, step) for step in range(1, TOTAL + 1)]
    torch.testing.assert_close(rates, warmed_up(then), rtol=1e-12, atol=0)
    printed = [eval(rate_call(argument), {"ops": ops, "step": step}) for step in range(1, TOTAL + 1)]
    assert printed == rates
    on_device = [learning_rate(argument, torch.tensor(step)) for step in range(1, TOTAL + 1)]
    assert all(rate.dtype == torch.float64 for rate in on_device)
    assert [rate.item() for rate in on_device] == pytest.approx(rates, rel=1e-15)


@pytest.mark.parametrize("schedule", [ss.Linear(PEAK, 0, TOTAL, FLOOR), ss.Cosine(PEAK, 0, TOTAL, FLOOR)])
def test_the_floor_is_kept(schedule):
    assert learning_rate(rate_argument(schedule), 10 * TOTAL) == pytest.approx(FLOOR, rel=1e-12)


def test_a_schedule_that_ends_before_it_begins_is_refused():
    with pytest.raises(TraceError, match="warms up for 9 of 9"):
        ss.Cosine(PEAK, 9, 9)
