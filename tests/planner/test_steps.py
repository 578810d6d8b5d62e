from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.steps import Step, StepKind, apply
from tests.planner.layout_simulation import collect, distribute, run

GRID = Mesh((0, 1, 2, 3, 4, 5), (("dp", 2), ("tp", 3)), micro_batches=2)
LOCAL_KINDS = [kind for kind in StepKind if kind not in (StepKind.SEND, StepKind.EXCHANGE)]


def over(*cuts, sizes=(12, 24), **given):
    return Layout(GRID, sizes, cuts, **given)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_allowed_step_leaves_the_pieces_it_says(data):
    places = {axis: data.draw(st.integers(-2, 1)) for axis in data.draw(st.permutations(["dp", "tp", TIME]))}
    cuts = [tuple(axis for axis, place in places.items() if place == dim) for dim in range(2)]
    cuts = [tuple(sorted(cut, key=lambda axis: axis != TIME)) for cut in cuts]
    partial = tuple(sorted(axis for axis, place in places.items() if place == -2))
    sizes = data.draw(st.tuples(*[st.sampled_from([6, 7, 12])] * 2))
    before = Layout(GRID, sizes, tuple(cuts), partial)
    kind, axis = data.draw(st.sampled_from(LOCAL_KINDS)), data.draw(st.sampled_from(["dp", "tp", TIME]))
    dim, from_dim = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    after = apply(kind, before, axis, dim, from_dim)
    if after is None:
        return
    rng = np.random.default_rng(0)
    whole = rng.integers(-9, 9, size=sizes).astype(float)
    held = run(Step(kind, before, after, axis, dim, from_dim), distribute(whole, before, rng))
    np.testing.assert_array_equal(collect(held, after), whole)


@pytest.mark.parametrize(
    ("kind", "before", "axis", "dim", "from_dim"),
    [
        pytest.param(StepKind.ALL_REDUCE, over((), ()), "tp", -1, -1, id="nothing to reduce"),
        pytest.param(StepKind.ALL_REDUCE, over((), (), partial=(TIME,)), TIME, -1, -1, id="time is no group"),
        pytest.param(
            StepKind.REDUCE_SCATTER, over((), (), partial=("tp",), reducer="max"), "tp", 0, -1, id="maxima"
        ),
        pytest.param(
            StepKind.REDUCE_SCATTER,
            over((), (), partial=("tp",), sizes=(7, 24)),
            "tp",
            0,
            -1,
            id="uneven sum",
        ),
        pytest.param(StepKind.ALL_GATHER, over(("tp", "dp"), ()), "tp", 0, -1, id="not the last axis"),
        pytest.param(StepKind.ALL_GATHER, over(("dp",), (), sizes=(7, 24)), "dp", 0, -1, id="uneven pieces"),
        pytest.param(StepKind.ALL_TO_ALL, over(("tp",), (), sizes=(12, 7)), "tp", 1, 0, id="uneven result"),
        pytest.param(StepKind.ALL_TO_ALL, over(("tp",), ()), "tp", 0, 0, id="to the same dim"),
        pytest.param(StepKind.SLICE, over(("tp",), ()), "tp", 1, -1, id="already cut"),
        pytest.param(StepKind.SLICE, over(("tp",), (), sizes=(9, 24)), "dp", 0, -1, id="uneven within a cut"),
        pytest.param(StepKind.SLICE, over(("tp",), ()), TIME, 0, -1, id="time within a cut"),
        pytest.param(StepKind.SLICE, over((TIME,), ()), TIME, 1, -1, id="time twice"),
        pytest.param(StepKind.MASK, over(("tp",), ()), "tp", -1, -1, id="not replicated"),
        pytest.param(StepKind.ACCUMULATE, over((TIME,), ()), TIME, -1, -1, id="time cuts, sums nothing"),
        pytest.param(StepKind.SEND, over((), ()), "", -1, -1, id="nowhere to send"),
        pytest.param(StepKind.EXCHANGE, over((), ()), "", -1, -1, id="nowhere to exchange"),
    ],
)
def test_what_a_kind_cannot_do_is_refused(kind, before, axis, dim, from_dim):
    assert apply(kind, before, axis, dim, from_dim) is None


def test_sends_go_to_a_mesh_of_the_same_shape_only():
    before = over(("dp",), ("tp",))
    there = Mesh((6, 7, 8, 9, 10, 11), GRID.axes, 2)
    after = apply(StepKind.SEND, before, target=Layout(there, (12, 24), ((), ())))
    assert after == Layout(there, (12, 24), (("dp",), ("tp",)))
    there = Mesh((6, 7), (("dp", 2),), 2)
    assert apply(StepKind.SEND, before, target=Layout(there, (12, 24), ((), ()))) is None


def test_handing_over_to_another_stage_on_the_same_devices_is_local():
    before = over(("dp",), ("tp",))
    for mesh, is_local in ((replace(GRID, chunk=1), True), (Mesh((5, 4, 3, 2, 1, 0), GRID.axes, 2), False)):
        after = apply(StepKind.SEND, before, target=Layout(mesh, (12, 24), ((), ())))
        assert after is not None
        assert Step(StepKind.SEND, before, after).is_local is is_local


def test_a_step_with_a_wrong_result_is_not_legal():
    assert Step(StepKind.ALL_REDUCE, over((), (), partial=("tp",)), over((), ()), "tp").is_legal
    assert not Step(StepKind.ALL_REDUCE, over((), (), partial=("tp",)), over(("dp",), ()), "tp").is_legal
    assert not Step(StepKind.ALL_GATHER, over(("tp",), ()), over((), ()), "dp", 0).is_legal


def test_steps_print_what_they_do():
    whole, there = over((), ()), Layout(Mesh((6, 7), (("dp", 2),)), (12, 24), ((), ()))
    assert str(Step(StepKind.ALL_REDUCE, whole, whole, "tp")) == "all_reduce over tp"
    assert str(Step(StepKind.ALL_GATHER, whole, whole, "tp", 1)) == "all_gather dim 1 over tp"
    assert str(Step(StepKind.ALL_TO_ALL, whole, whole, "tp", 1, 0)) == "all_to_all dim 0 -> dim 1 over tp"
    assert str(Step(StepKind.SEND, whole, there)) == "send dp2 x tp3 on 0-5 -> dp2 on 6,7"
