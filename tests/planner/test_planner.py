"""The primitives take what makes sense and refuse the rest at the script's own line."""

import pytest

from superscaler.errors import PlanError
from superscaler.ir.mesh import Mesh
from superscaler.planner import schedules
from superscaler.planner.cluster import Cluster
from superscaler.planner.planner import Planner
from superscaler.planner.schedules import Task, parse_schedule
from tests.planner.samples import gpt_graph, mlp_graph, script_plan


@pytest.fixture
def p():
    return Planner(gpt_graph(), Cluster.local(4))


def test_a_mesh_is_row_major(p):
    mesh = p.mesh([3, 2, 1, 0], dp=2, tp=2)
    assert mesh.group("tp", 3) == (3, 2)
    assert mesh.group("dp", 3) == (3, 1)
    assert p.mesh([1, 2]).axes == (("x", 2),)


@pytest.mark.parametrize(
    ("devices", "axes", "fault"),
    [
        (range(4), {"dp": 3}, "dp=3 is 3 devices, not the 4 given"),
        ((), {}, "0 devices"),
        ((0, 0), {"dp": 2}, "named twice"),
        ((0, 4), {"dp": 2}, r"devices \[4\] are not in the cluster"),
        ((-1,), {"dp": 1}, r"devices \[-1\] are not in the cluster"),
        (range(2), {"mb": 2}, "'mb' names the micro-batches"),
    ],
)
def test_what_is_no_mesh_is_refused(p, devices, axes, fault):
    with pytest.raises(PlanError, match=fault) as error:
        p.mesh(devices, **axes)
    assert "test_planner.py:" in error.value.where
    assert error.value.remedy


def test_a_mesh_made_by_hand_is_checked_as_well(p):
    with pytest.raises(PlanError, match=r"devices \[7\] are not in the cluster"):
        p.assign(p.everything(), Mesh((7,), (("x", 1),)))


def test_the_last_place_said_counts(p):
    p.assign(p.everything(), [0])
    p.assign(p.select("h.1"), [1])
    assert p.places["h.1.mlp.up/linear"].devices == (1,)
    assert p.places["h.0.mlp.up/linear"].devices == (0,)
    assert len(p.notes["h.1.mlp.up/linear"]) == 1


@pytest.mark.parametrize(
    ("trans", "fault"),
    [
        (lambda p: p.trans(p.select("h.0.mlp.up", "F"), "x", letter="q"), "has no letter 'q' to cut"),
        (lambda p: p.trans(p.select("h.0.mlp.up", "F"), "x"), "not said along what"),
        (lambda p: p.trans(p.select("h.0.ln_1", "F"), "x", letter="d0"), "cannot be cut along 'd0': it"),
        (lambda p: p.trans(p.axis("heads"), "x", letter="n"), "axes and letter="),
        (lambda p: p.trans(p.select("h.0", "F"), "x", within=p.select("h.0")), "operators and within="),
        (lambda p: p.trans(p.axis("heads"), "x", pieces=(3, 2)), r"pieces \[3, 2\] do not make up"),
        (lambda p: p.trans(p.axis("heads"), "x", pieces=(4, 0)), r"pieces \[4, 0\] do not make up"),
        (lambda p: p.trans(p.axis("heads"), p.mesh(range(4), a=2, b=2)), "2 axes: over which"),
        (lambda p: p.order(schedules.gpipe(1), p.everything()), "order takes"),
        (lambda p: p.order(Task(0, "F", 0), p.everything()), "order takes"),
        (lambda p: (p.order(schedules.gpipe(1)), p.order(schedules.gpipe(2))), "schedule was chosen"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_at_its_line(p, trans, fault):
    with pytest.raises(PlanError, match=fault) as error:
        trans(p)
    assert "test_planner.py:" in error.value.where
    assert error.value.remedy


def test_a_grid_is_a_schedule():
    def script(p):
        p.assign(p.everything(), [0])
        p.order(parse_schedule("stage 0: F1 F0 B0 B1"))

    assert str(script_plan(mlp_graph(), 1, script).schedule) == "stage 0: F1 F0 B0 B1"


def test_a_grid_for_other_stages_is_refused():
    def script(p):
        p.assign(p.everything(), [0])
        p.order(parse_schedule("F0 B0\nF0 B0"))

    with pytest.raises(PlanError, match="2 rows for 1 groups of devices") as error:
        script_plan(mlp_graph(), 1, script)
    assert "test_planner.py:" in error.value.where


def test_devices_and_a_mesh_of_one_axis_name_that_axis(p):
    p.trans(p.axis("heads"), [0, 1])
    p.trans(p.axis("batch"), p.mesh([0, 1], dp=2))
    assert [cut.over for cut in p.cuts][-1] == "dp"
    assert {cut.over for cut in p.cuts[:-1]} == {"x"}
