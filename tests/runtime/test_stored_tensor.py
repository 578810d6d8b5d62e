"""The pieces of a stored tensor are the indices its layout says, found by brute force."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.mesh import Mesh
from superscaler.runtime.stored_tensor import dim_runs, read_stored_tensor

MESH = Mesh((0, 1, 2, 3), (("dp", 2), ("tp", 2)), micro_batches=3)


@st.composite
def boxes(draw):
    sizes = draw(st.lists(st.integers(1, 4), max_size=4))
    intervals = []
    for size in sizes:
        start = draw(st.integers(0, size - 1))
        intervals.append((start, draw(st.integers(start + 1, size))))
    return sizes, intervals


@given(boxes())
def test_runs_are_the_indices_of_the_box(box):
    sizes, intervals = box
    numbers = torch.arange(torch.Size(sizes).numel()).view(sizes)
    expected = numbers[tuple(slice(a, b) for a, b in intervals)].reshape(-1).tolist()
    assert [i for start, stop in dim_runs(sizes, intervals) for i in range(start, stop)] == expected


def test_pieces_follow_the_layout():
    entry = {
        "role": "parameter", "dtype": "float32", "shape": [24, 5, 1], "fine": [[3, 4, 2], [5], []],
        "cuts": [[], ["tp"], [], ["dp"]], "pieces": [None, None, None, [1, 4]],
    }  # fmt: skip
    tensor = read_stored_tensor("qkv", entry, MESH)
    assert tensor.local_shape(1) == (12, 1, 1)
    assert tensor.local_shape(2) == (12, 4, 1)
    assert tensor.runs(3) == [[(4, 8), (12, 16), (20, 24)], [(1, 5)], [(0, 1)]]


def test_one_of_several_copies_is_written():
    entry = {
        "role": "parameter",
        "dtype": "float32",
        "shape": [4],
        "fine": [[4]],
        "cuts": [["tp"]],
        "pieces": [None],
    }
    tensor = read_stored_tensor("b", entry, MESH)
    assert [tensor.is_first_copy(rank) for rank in range(4)] == [True, True, False, False]


def test_micro_batches_cut_in_time():
    entry = {
        "role": "input",
        "dtype": "int64",
        "shape": [12],
        "fine": [[12]],
        "cuts": [["mb", "dp"]],
        "pieces": [None],
    }
    tensor = read_stored_tensor("x", entry, MESH)
    assert [tensor.runs(2, k) for k in range(3)] == [[[(2, 4)]], [[(6, 8)]], [[(10, 12)]]]
