"""Ranks write every element once, and read from any plan's boxes what another plan holds: against slicing by hand."""

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import Role
from superscaler.runtime.checkpoint_pieces import Piece, PiecesToLoad, PiecesToSave, boxes
from superscaler.runtime.stored_tensor import StoredTensor

FINE = ((3, 4), (2, 6))
SHAPE = tuple(map(prod, FINE))
AXES = ("a", "b")


@st.composite
def stored(draw):
    """A tensor of fine dims, cut in some way over a mesh of up to 2 by 3 devices; an axis may cut none."""
    sizes = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    mesh = Mesh(tuple(range(prod(sizes))), tuple(zip(AXES, sizes, strict=True)), 1, 0)
    flat = [size for dim in FINE for size in dim]
    cuts = [()] * len(flat)
    for axis, size in zip(AXES, sizes, strict=True):
        places = [i for i, n in enumerate(flat) if not cuts[i] and n % size == 0]
        place = draw(st.sampled_from([None, *places]))
        if place is not None:
            cuts[place] = (axis,)
    layout = Layout(mesh, tuple(flat), tuple(cuts), pieces=(None,) * len(flat))
    return StoredTensor("w", "w", Role.PARAMETER, torch.float64, SHAPE, FINE, layout)


def local(tensor, rank, whole):
    """What a rank holds, by index lists."""
    rows, columns = ([i for a, b in runs for i in range(a, b)] for runs in tensor.runs(rank))
    return whole[rows][:, columns]


@settings(max_examples=60, deadline=None)
@given(stored(), stored())
def test_what_one_plan_wrote_another_reads(saved, loaded):
    whole = torch.arange(prod(SHAPE), dtype=torch.float64).view(SHAPE)
    planners = [
        PiecesToSave([Piece("w", SHAPE, boxes(saved.runs(rank)), local(saved, rank, whole))])
        for rank in saved.layout.mesh.devices
        if saved.is_first_copy(rank)
    ]
    plans, metadata = planners[0].create_global_plan([planner.create_local_plan() for planner in planners])
    written = {}
    for planner, plan in zip(planners, plans, strict=True):
        for item in plan.items:
            assert item.index not in written
            written[item.index] = planner.resolve_data(item)
    tensor = metadata.state_dict_metadata["w"]
    assert isinstance(tensor, TensorStorageMetadata)
    assert sum(value.numel() for value in written.values()) == prod(SHAPE)
    for rank in loaded.layout.mesh.devices:
        expected = local(loaded, rank, whole)
        piece = Piece("w", SHAPE, boxes(loaded.runs(rank)), torch.full(expected.shape, -1.0).double())
        planner = PiecesToLoad([piece])
        planner.set_up_planner({}, metadata)
        read = 0
        for item in planner.create_local_plan().items:
            ranges = zip(item.storage_offsets, item.lengths, strict=True)
            source = written[item.storage_index][tuple(slice(a, a + n) for a, n in ranges)]
            target = planner.resolve_tensor(item)
            planner.commit_tensor(item, target.copy_(source))
            read += source.numel()
        assert torch.equal(piece.value, expected)
        assert planner.is_complete
        assert read == expected.numel()


def test_pieces_that_do_not_make_up_a_tensor_are_never_a_checkpoint():
    half = Piece("w", (4,), boxes([[(0, 2)]]), torch.zeros(2))
    planner = PiecesToSave([half])
    with pytest.raises(AssertionError, match="w"):
        planner.create_global_plan([planner.create_local_plan()])


def test_boxes_of_a_piece_cover_it():
    runs = [[(0, 2), (5, 6)], [(1, 4)], [(0, 1), (2, 3)]]
    found = boxes(runs)
    assert len(found) == 4
    indices = [
        set(product(*(range(a, a + n) for a, n in zip(b.offsets, b.sizes, strict=True)))) for b in found
    ]
    expected = set(product(*([i for a, b in dim for i in range(a, b)] for dim in runs)))
    assert set().union(*indices) == expected
    assert sum(map(len, indices)) == len(expected)
    assert boxes([]) == (boxes([])[0],)
    assert boxes([[], [(0, 2)]]) == ()
