"""All ranks and micro-batches together see exactly the rows of the step, wrapping around at the end."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.data import Batches
from tests.runtime.tiny_build import write_build

CPU = torch.device("cpu")


@pytest.fixture
def build(tmp_path):
    return read_build(write_build(tmp_path))


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7])
def test_pieces_make_up_the_step(tmp_path, build, step):
    whole = load_file(tmp_path / "data.safetensors")
    ranks = [
        Batches(tmp_path / "data.safetensors", build, rank, CPU).micro_batches(step) for rank in range(2)
    ]
    rows = [(step * 8 + i) % 20 for i in range(8)]
    for name in ("x", "y"):
        pieces = [ranks[rank][k][name] for k in range(2) for rank in range(2)]
        assert [piece.shape[0] for piece in pieces] == [2, 2, 2, 2]
        assert torch.equal(torch.cat(pieces), whole[name][rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, r"no input 'y'; it has x"),
        ({"y": torch.ones(20, 4)}, r"input 'y' .* is torch\.float32 \[20, 4\]"),
        ({"x": torch.ones(20, 5, dtype=torch.float64)}, r"compiled for torch\.float64 \['samples', 6\]"),
        ({"x": torch.ones(7, 6, dtype=torch.float64)}, r"7 samples of 'x'; one batch takes 8"),
        ({"x": torch.ones(19, 6, dtype=torch.float64)}, "different lengths"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path, build, change, message):
    tensors = {**load_file(tmp_path / "data.safetensors"), **change}
    save_file({name: x for name, x in tensors.items() if x is not None}, tmp_path / "other.safetensors")
    with pytest.raises(BuildError, match=message):
        Batches(tmp_path / "other.safetensors", build, 0, CPU)
