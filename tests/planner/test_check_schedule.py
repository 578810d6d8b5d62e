"""A schedule with which rows would wait for ever is refused when the plan is made, and the grid is shown."""

import re

import pytest

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.planner.schedule import Task, parse_schedule
from superscaler.planner.schedules import gpipe, interleaved, one_f_one_b
from tests.planner.samples import gpt_graph, script_plan


def two_stages(p):
    for number, layers in enumerate(p.split("h.*", 2)):
        p.assign(layers, p.mesh([number]))


def circle(p):
    """Attention on one device, perceptrons on the other, so that either feeds the other in the forward pass."""
    p.assign(p.select("h.*.attn"), p.mesh([0]))
    p.assign(p.select("h.*.mlp"), p.mesh([1]))


def test_a_schedule_that_waits_is_refused_with_the_grid_and_the_scripts_line():
    def script(p):
        two_stages(p)
        p.order(parse_schedule("F0 B0 F1 B1\nF0 F1 B0 B1"))

    pattern = (
        r"(?s)'custom' cannot be run: deadlock.*stage 0: +F0.*<-- B0 waits.*at: .*test_check_schedule.py:"
    )
    with pytest.raises(PlanError, match=pattern):
        script_plan(gpt_graph(), 2, script)


def test_single_orders_that_wait_are_refused_with_their_line():
    def script(p):
        two_stages(p)
        p.order(gpipe(2))
        p.order(Task(0, Phase.FORWARD, 1), Task(0, Phase.FORWARD, 0))

    with pytest.raises(PlanError, match=r"(?s)'gpipe reordered' cannot be run: .*<-- ") as caught:
        script_plan(gpt_graph(), 2, script)
    assert len(re.findall(r"test_check_schedule.py:\d+", caught.value.where)) == 2


@pytest.mark.parametrize(
    ("rows", "fault"),
    [("F0 B0 F1 B1\nF0 B0 F1", "leaves out B1"), ("F0 B0 B1 F1\nF0 B0 F1 B1", "B1 before its forward")],
)
def test_a_grid_of_other_tasks_is_refused(rows, fault):
    def script(p):
        two_stages(p)
        p.order(parse_schedule(rows))

    with pytest.raises(PlanError, match=f"<-- .*{fault}"):
        script_plan(gpt_graph(), 2, script)


def test_stages_that_feed_each_other_run_under_gpipe_but_not_under_1f1b():
    def schedule(maker):
        def script(p):
            circle(p)
            p.order(maker)

        return script

    script_plan(gpt_graph(), 2, schedule(gpipe(2)))
    with pytest.raises(PlanError, match=r"(?s)stages feed each other.*feeds stage 1.*reads.*gpipe"):
        script_plan(gpt_graph(), 2, schedule(one_f_one_b(4)))


def test_stages_on_one_device_that_feed_each_other_are_told_to_be_chunks():
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1]))
        p.assign(p.select("h.0.mlp"), p.mesh([0]))

    with pytest.raises(PlanError, match=r"(?s)stage 0 \(x2 on 0,1\) feeds stage 1 .*reads.*chunk=1"):
        script_plan(gpt_graph(), 2, script)

    def in_chunks(p):
        script(p)
        p.assign(p.select("h.0.mlp"), p.mesh([0]))
        p.assign(p.select("h.1"), p.mesh([0, 1]), chunk=1)

    with pytest.raises(PlanError, match="feed each other"):  # the residual around h.0.mlp is on both devices
        script_plan(gpt_graph(), 2, in_chunks)


def test_a_schedule_for_other_stages_is_refused_with_the_scripts_line():
    def script(p):
        two_stages(p)
        p.order(interleaved(2))

    with pytest.raises(PlanError, match=r"(?s)'interleaved' does not suit.*at: .*test_check_schedule.py:\d+"):
        script_plan(gpt_graph(), 2, script)
