"""Samples of a file of tokens are its slices, and targets the slices one token later."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import BuildError
from superscaler.runtime.data import TokenFormat, open_data
from superscaler.runtime.data.piece import Piece
from tests.runtime.data.layouts import BATCH, INPUTS, LENGTH, PLANS, check_step, make_build, rank_batches

STREAM = np.random.default_rng(0).integers(0, 2**16, 20 * LENGTH + 1)


def write(folder, kind):
    path = folder / f"tokens.{kind.partition(' ')[0]}"
    if path.suffix == ".npy":
        np.save(path, STREAM.astype(kind.partition(" ")[2]))
    else:
        STREAM.astype(f"<{kind.partition(' ')[2]}").tofile(path)
    return path


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["bin u2", "bin u4", "npy u2", "npy >i4", "npy i8"])
def test_samples_are_slices_of_the_file(tmp_path, plan, kind):
    build, path = make_build(tmp_path, plan), write(tmp_path, kind)
    form = TokenFormat(dtype="uint32" if kind == "bin u4" else "uint16")
    ranks = rank_batches(lambda: open_data(path, build.inputs, form), build)
    for step in (0, 2, 4):
        starts = [(step * BATCH + i) % 20 * LENGTH for i in range(BATCH)]
        tokens, targets = (
            torch.from_numpy(np.stack([STREAM[start + shift :][:LENGTH] for start in starts])).long()
            for shift in (0, 1)
        )
        check_step(ranks, build, step, {"tokens": tokens, "targets": targets})


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(2, 60), sample=st.integers(1, 7), shift=st.sampled_from([0, 1]), with_targets=st.booleans()
)  # fmt: skip
def test_no_whole_sample_is_left_out(tmp_path_factory, length, sample, shift, with_targets):
    path = tmp_path_factory.mktemp("tokens") / "x.npy"
    np.save(path, np.arange(length))
    names = ["a", "b"] if with_targets else ["a"]
    inputs = dict.fromkeys(names, (torch.int64, (4, 9)))
    form = TokenFormat(tokens="a", targets="b", shift=shift, length=sample)
    whole = sum(1 for start in range(0, length, sample) if start + sample + shift * with_targets <= length)
    if not whole:
        with pytest.raises(BuildError, match="one sample takes"):
            open_data(path, inputs, form)
        return
    source = open_data(path, inputs, form)
    assert source.samples == whole
    last = source.read([Piece(names[-1], torch.int64, (4, sample), ([(whole - 1, whole)], [(0, sample)]))])
    start = (whole - 1) * sample + shift * with_targets
    assert last[0].tolist() == [list(range(start, start + sample))]


def test_a_model_that_shifts_its_targets_is_given_the_tokens(tmp_path):
    path = write(tmp_path, "bin u2")
    source = open_data(path, INPUTS, TokenFormat(shift=0))
    tokens, targets = source.read([Piece(name, torch.int64, (8, 6), ([(3, 5)], [(0, 6)])) for name in INPUTS])
    assert torch.equal(tokens, targets)


@pytest.mark.parametrize(
    ("name", "content", "form", "message"),
    [
        ("x.bin", b"\0" * 13, TokenFormat(), r"13 bytes, which is no number of tokens of 2 bytes"),
        ("x.bin", b"", TokenFormat(), r"0 bytes"),
        ("x.bin", b"\0" * 12, TokenFormat(), r"has 6 tokens; one sample takes 7"),
        ("x.bin", b"\0" * 120, TokenFormat(targets="labels"), r"(?s)no input 'targets'.*--targets NAME"),
        ("x.bin", b"\0" * 120, TokenFormat(length=5), r"uint16 \['samples', 5\].*int64 \['samples', 6\]"),
        ("x.npy", b"nothing", TokenFormat(), r"cannot be read as \.npy"),
        ("x.npy", np.zeros((3, 6), np.int64), TokenFormat(), r"int64 \[3, 6\], not one row of whole numbers"),
        ("x.npy", np.zeros(60), TokenFormat(), r"float64 \[60\], not one row"),
        ("x.npy", np.zeros(60, np.uint64), TokenFormat(), r"input 'tokens' in .* is torch\.uint64"),
        ("y.npy", None, TokenFormat(), r"no file .*y\.npy"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path, name, content, form, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    with pytest.raises(BuildError, match=message):
        open_data(tmp_path / name, INPUTS, form).check(INPUTS)


def test_a_sample_has_a_token():
    with pytest.raises(BuildError, match="a sample of 0 tokens"):
        TokenFormat(length=0)
