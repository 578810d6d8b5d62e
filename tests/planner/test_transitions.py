from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from superscaler.errors import PlanError
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.cluster import Cluster
from superscaler.planner.step_cost import step_seconds
from superscaler.planner.steps import Step, StepKind, exchange_fits, plain
from superscaler.planner.transitions import comparable, find_path, path_seconds
from tests.planner.layout_simulation import collect, distribute, run

CLUSTER = Cluster.preset("dgx-a100", 8)
NAMES = ("dp", "tp", "sp")
PAIR = Mesh((0, 1), (("tp", 2),))
GRID = Mesh((0, 1, 2, 3), (("dp", 2), ("tp", 2)))


def chain(source, target):
    return [str(step) for step in find_path(source, target, 4, CLUSTER)]


def over(mesh, *cuts, **given):
    return Layout(mesh, (8, 12), cuts, **given)


def check(source, target, seed=0):
    """The chain is legal and joined up, and turns the source's pieces into the target's."""
    steps = find_path(source, target, 4, CLUSTER)
    source, target = comparable(source, target)
    rng = np.random.default_rng(seed)
    whole = rng.integers(-9, 9, size=source.sizes).astype(float)
    held, layout = distribute(whole, source, rng), source
    for step in steps:
        assert step.before == layout
        assert step.is_legal, str(step)
        held, layout = run(step, held), step.after
    assert layout == target
    np.testing.assert_array_equal(collect(held, target), whole)
    return steps


@st.composite
def meshes(draw, first=0, micro_batches=1):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axes = tuple(zip(NAMES, sizes, strict=False))
    devices = list(range(first, first + prod(sizes)))
    if draw(st.booleans()):
        devices = draw(st.permutations(devices))
    return Mesh(tuple(devices), axes, micro_batches)


@st.composite
def layouts(draw, mesh, sizes, time=-2, partial=True):
    """A random layout; `time`: the dim that micro-batches cut, -1 for summands, -2 for neither."""
    cuts = [[TIME] if dim == time else [] for dim in range(len(sizes))]
    summands = [TIME] if time == -1 else []
    for axis in draw(st.permutations(mesh.names)):
        place = draw(st.integers(-2 if partial else -1, len(sizes) - 1))
        if place >= 0:
            cuts[place].append(axis)
        elif place == -2:
            summands.append(axis)
    pieces: list = [None] * len(sizes)
    for dim, cut in enumerate(cuts):
        if len(cut) == 1 and cut != [TIME] and draw(st.booleans()):
            count = mesh.size(cut[0])
            rest = sizes[dim] - count
            bounds = sorted(draw(st.lists(st.integers(0, rest), min_size=count - 1, max_size=count - 1)))
            bounds = [0, *bounds, rest]
            pieces[dim] = tuple(1 + b - a for a, b in pairwise(bounds))
    return Layout(mesh, sizes, tuple(map(tuple, cuts)), tuple(sorted(summands)), "sum", tuple(pieces))


SHAPES = st.lists(st.sampled_from([3, 4, 6, 10, 12, 24]), min_size=1, max_size=3).map(tuple)


def test_uneven_pieces_of_summands_become_more_summands():
    source = Layout(GRID, (3,), (("dp",),), ("tp",))
    target = Layout(GRID, (3,), ((),), ("dp", "tp"))
    check(source, target)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_chain_on_one_mesh_gives_exactly_the_pieces_of_the_target(data):
    mesh, sizes = data.draw(meshes()), data.draw(SHAPES)
    source, target = data.draw(layouts(mesh, sizes)), data.draw(layouts(mesh, sizes))
    check(source, target)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_chain_between_two_meshes_gives_exactly_the_pieces_of_the_target(data):
    sizes, first = data.draw(SHAPES), data.draw(st.sampled_from([0, 2, 40]))
    here = data.draw(meshes())
    there = data.draw(meshes(first))
    if data.draw(st.booleans()):
        there = Mesh(tuple(100 + device for device in here.devices), here.axes)
    check(data.draw(layouts(here, sizes)), data.draw(layouts(there, sizes)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_micro_batches_keep_their_elements_along_a_chain(data):
    count = data.draw(st.sampled_from([2, 3]))
    sizes = (data.draw(st.sampled_from([12, 24, 18])), 6)
    here = data.draw(meshes(0, count))
    there = here if data.draw(st.booleans()) else data.draw(meshes(40, count))
    given_time, wanted_time = data.draw(
        st.sampled_from([(0, 0), (-1, -1), (-1, -2), (-2, 0), (-1, 0), (-2, -2)])
    )
    source = data.draw(layouts(here, sizes, given_time))
    target = data.draw(layouts(there, sizes, wanted_time))
    check(source, target)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_chain_is_never_slower_than_the_direct_exchange(data):
    sizes = data.draw(SHAPES)
    here = data.draw(meshes())
    there = here if data.draw(st.booleans()) else data.draw(meshes(data.draw(st.sampled_from([0, 40]))))
    source, target = comparable(data.draw(layouts(here, sizes)), data.draw(layouts(there, sizes)))
    assume(source != target and exchange_fits(source, target))
    direct = step_seconds(Step(StepKind.EXCHANGE, source, target), 4, CLUSTER)
    assert path_seconds(find_path(source, target, 4, CLUSTER), 4, CLUSTER) <= direct


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_maxima_are_combined_by_all_reduces(data):
    mesh, sizes = data.draw(meshes()), data.draw(SHAPES)
    target = data.draw(layouts(mesh, sizes, partial=False))
    source = Layout(mesh, sizes, ((),) * len(sizes), mesh.names, "max")
    kinds = {step.kind for step in check(source, target)}
    assert StepKind.REDUCE_SCATTER not in kinds


def test_the_textbook_cases_are_one_step_each():
    partial, whole = over(PAIR, (), (), partial=("tp",)), over(PAIR, (), ())
    rows, columns = over(PAIR, ("tp",), ()), over(PAIR, (), ("tp",))
    assert chain(partial, whole) == ["all_reduce over tp"]
    assert chain(partial, columns) == ["reduce_scatter dim 1 over tp"]
    assert chain(columns, whole) == ["all_gather dim 1 over tp"]
    assert chain(rows, columns) == ["all_to_all dim 0 -> dim 1 over tp"]
    assert chain(whole, rows) == ["slice dim 0 over tp"]
    assert chain(whole, partial) == ["mask over tp"]
    assert chain(rows, rows) == []


def test_an_axis_that_already_lies_right_is_left_alone():
    source = over(GRID, ("dp",), (), partial=("tp",))
    assert chain(source, over(GRID, ("dp",), ())) == ["all_reduce over tp"]
    assert chain(source, over(GRID, ("dp", "tp"), ())) == ["reduce_scatter dim 0 over tp"]


def test_equal_layouts_on_other_devices_are_sent():
    there = Mesh((4, 5, 6, 7), GRID.axes)
    source, target = over(GRID, ("dp",), ("tp",)), over(there, ("dp",), ("tp",))
    assert chain(source, target) == ["send dp2 x tp2 on 0-3 -> dp2 x tp2 on 4-7"]


def test_large_copies_to_another_node_are_sliced_sent_and_gathered():
    here, there = Mesh((0, 1), (("tp", 2),)), Mesh((8, 9), (("tp", 2),))
    source, target = (Layout(mesh, (4096, 4096), ((), ())) for mesh in (here, there))
    assert chain(source, target) == [
        "slice dim 0 over tp",
        "send tp2 on 0,1 -> tp2 on 8,9",
        "all_gather dim 0 over tp",
    ]


def test_a_small_copy_is_sent_whole():
    here, there = Mesh((0, 1), (("tp", 2),)), Mesh((8, 9), (("tp", 2),))
    source, target = (Layout(mesh, (8,), ((),)) for mesh in (here, there))
    assert chain(source, target) == ["send tp2 on 0,1 -> tp2 on 8,9"]


def test_a_reader_with_other_axes_over_the_same_devices_gets_the_sum_by_all_reduce_first():
    here, there = Mesh((0, 1, 2, 3), (("dp", 4),)), GRID
    source, target = Layout(here, (1024, 1024), ((), ()), ("dp",)), Layout(there, (1024, 1024), ((), ()))
    steps = check(source, target)
    assert [step.kind for step in steps] == [StepKind.ALL_REDUCE, StepKind.EXCHANGE]


def test_gradients_are_accumulated_before_they_are_reduced():
    mesh = Mesh((0, 1), (("dp", 2),), micro_batches=4)
    source = over(mesh, (), (), partial=("dp", TIME))
    assert chain(source, over(mesh, (), ())) == ["accumulate over mb", "all_reduce over dp"]
    assert chain(source, over(mesh, ("dp",), ())) == ["accumulate over mb", "reduce_scatter dim 0 over dp"]


def test_a_whole_input_is_sliced_into_micro_batches():
    mesh = Mesh((0, 1), (("dp", 2),), micro_batches=2)
    steps = chain(over(mesh, (), ()), over(mesh, (TIME, "dp"), ()))
    assert steps == ["slice dim 0 over mb", "slice dim 0 over dp"]


def test_uneven_pieces_are_sliced_as_the_reader_wants_them():
    target = over(PAIR, ("tp",), (), pieces=((3, 5), None))
    assert [step.kind for step in check(over(PAIR, (), ()), target)] == [StepKind.SLICE]
    source = over(PAIR, ("tp",), (), pieces=((5, 3), None))
    assert [step.kind for step in check(source, target)] == [StepKind.EXCHANGE]


def test_axes_of_size_one_and_pieces_spelled_out_change_nothing():
    mesh = Mesh((0, 1), (("dp", 1), ("tp", 2)))
    source = over(mesh, ("dp", "tp"), (), pieces=((4, 4), None))
    assert find_path(source, over(mesh, ("tp",), (), partial=("dp",)), 4, CLUSTER) == ()
    assert plain(source) == over(mesh, ("tp",), ())


def test_a_layout_that_does_not_use_time_takes_the_micro_batches_of_the_other():
    once, often = Mesh((0, 1), (("dp", 2),)), Mesh((0, 1), (("dp", 2),), micro_batches=2)
    assert chain(over(once, (), ()), over(often, (TIME,), ())) == ["slice dim 0 over mb"]
    assert chain(over(often, (), (), partial=(TIME,)), over(once, (), ())) == ["accumulate over mb"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (((TIME,), ()), ((), ()), "cut into micro-batches here but read whole there"),
        (((TIME,), ()), ((), (TIME,)), "cut into micro-batches here, and otherwise there"),
    ],
)
def test_values_cut_in_time_are_not_read_across_micro_batches(source, target, message):
    mesh = Mesh((0,), (), micro_batches=2)
    with pytest.raises(PlanError, match=message):
        find_path(over(mesh, *source), over(mesh, *target), 4, CLUSTER)


def test_a_disagreement_about_the_number_of_micro_batches_is_named():
    two, four = Mesh((0,), (), 2), Mesh((0,), (), 4)
    with pytest.raises(PlanError, match="written in 2 micro-batches but read in 4"):
        find_path(over(two, (TIME,), ()), over(four, (TIME,), ()), 4, CLUSTER)


def test_a_reader_of_partial_maxima_is_refused():
    with pytest.raises(PlanError, match=r"wants summands \(max\)"):
        find_path(over(PAIR, (), ()), over(PAIR, (), (), partial=("tp",), reducer="max"), 4, CLUSTER)
