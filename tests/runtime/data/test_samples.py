"""Samples become tensors of the model's types where nothing is lost, and are refused by number where not."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from superscaler.errors import BuildError
from superscaler.runtime.data import Batches
from superscaler.runtime.data.conversion import as_tensor, is_lossless
from tests.runtime.data.layouts import CPU, LENGTH, check_step, make_build, numbered

WHOLE = [getattr(torch, name) for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")]
TOKENS = list(range(LENGTH))


@pytest.mark.parametrize(("source", "target"), list(itertools.product(WHOLE, WHOLE)))
def test_a_conversion_is_lossless_if_the_extremes_survive(source, target):
    bounds = torch.iinfo(source)
    wanted = torch.iinfo(target)
    survive = all(wanted.min <= value <= wanted.max for value in (bounds.min, bounds.max))
    assert is_lossless(source, target) == survive


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.sampled_from(WHOLE))
def test_numbers_keep_their_values_or_another_type(values, dtype):
    x = as_tensor(values, dtype)
    bounds = torch.iinfo(dtype)
    fits = all(bounds.min <= value <= bounds.max for value in values)
    if values:
        assert (x.dtype == dtype) == fits or dtype == torch.int64
        assert x.tolist() == values


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (np.arange(3, dtype=np.uint16), torch.int64, torch.tensor([0, 1, 2])),
        (np.arange(3, dtype=">i4"), torch.int64, torch.tensor([0, 1, 2])),
        (np.broadcast_to(np.int64(4), 2), torch.int64, torch.tensor([4, 4])),
        (torch.tensor([1, 2], dtype=torch.int32), torch.int64, torch.tensor([1, 2])),
        (torch.ones(2, requires_grad=True), torch.float32, torch.ones(2)),
        (5, torch.int64, torch.tensor(5)),
        (0.1, torch.float32, torch.tensor(0.1)),
        ([[1, 2], [3, 4]], torch.float32, torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        (np.float32(0.5), torch.float32, torch.tensor(0.5)),
        ([True, False], torch.bool, torch.tensor([True, False])),
    ],
)
def test_values_of_many_kinds_become_tensors(value, dtype, expected):
    x = as_tensor(value, dtype)
    assert x.dtype == dtype
    assert torch.equal(x, expected)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.zeros(2, dtype=np.float64), torch.float32),
        (torch.zeros(2, dtype=torch.int64), torch.int32),
        (torch.zeros(2, dtype=torch.int64), torch.float32),
        (0.5, torch.int64),
        ([2**24 + 1], torch.float32),
    ],
)
def test_nothing_is_rounded_or_cut(value, dtype):
    assert as_tensor(value, dtype).dtype != dtype


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"tokens": TOKENS}, r"sample 3 of list has no input 'targets'; it has tokens"),
        ((TOKENS,), r"sample 3 of list has 1 values; the inputs are tokens, targets"),
        (TOKENS, r"sample 3 of list has 6 values"),
        ("some text", r"sample 3 of list is a str, neither a mapping nor a sequence"),
        ((TOKENS, TOKENS[1:]), r"sample 3 of list: input 'targets' is torch\.int64 \[5\], .* torch\.int64 \[6\]"),
        ((TOKENS, [0.5] * 6), r"sample 3 of list: input 'targets' is torch\.float64 \[6\]"),
        ((TOKENS, ["a"] * 6), r"sample 3 of list: input 'targets' is no tensor: TypeError"),
        ((TOKENS, [[1], [1, 2]]), r"sample 3 of list: input 'targets' is no tensor: ValueError"),
    ],
)  # fmt: skip
def test_a_sample_that_does_not_fit_is_named(tmp_path, bad, message):
    samples = [(TOKENS, TOKENS)] * 20
    samples[3] = bad
    batches = Batches(samples, make_build(tmp_path, "one"), 0, CPU)
    with pytest.raises(BuildError, match=message):
        batches.micro_batches(0)
    batches.micro_batches(1)


def test_samples_may_hold_more_than_the_inputs(tmp_path):
    build, whole = make_build(tmp_path, "one"), numbered(8)
    samples = [{"text": "more", **{name: x[i] for name, x in whole.items()}} for i in range(8)]
    check_step([Batches(samples, build, 0, CPU)], build, 0, whole)


def test_a_loader_must_give_samples_one_by_one(tmp_path):
    build, whole = make_build(tmp_path, "one"), numbered(16)
    dataset = TensorDataset(*whole.values())
    with pytest.raises(BuildError, match=r"(?s)sample 0 of DataLoader.*\[4, 6\].*batch_size=None"):
        Batches(DataLoader(dataset, batch_size=4), build, 0, CPU).micro_batches(0)
    one_by_one = Batches(DataLoader(dataset, batch_size=None), build, 0, CPU)
    check_step([one_by_one], build, 1, {name: x[8:] for name, x in whole.items()})


class Broken:
    """A dataset of which some samples cannot be read."""

    bad: ClassVar = {13}

    def __len__(self):
        return 20

    def __getitem__(self, number):
        if number in self.bad:
            raise OSError("the disk is gone")
        return TOKENS, TOKENS


class BrokenTogether(Broken):
    def __getitems__(self, numbers):
        return [self[number] for number in numbers]


class NeverTogether(Broken):
    bad: ClassVar = set()

    def __getitems__(self, numbers):
        if max(numbers) > 8:
            raise OSError("the disk is gone")
        return [self[number] for number in numbers]


def broken_stream():
    for number in range(20):
        yield Broken()[number]


@pytest.mark.parametrize("reads_ahead", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Broken(), r"sample 13 of Broken cannot be read: OSError: the disk is gone"),
        (BrokenTogether(), r"sample 13 of BrokenTogether cannot be read: OSError"),
        (NeverTogether(), r"samples 8 to 15 of NeverTogether cannot be read together: OSError"),
        (broken_stream, r"sample 13 of \S*broken_stream cannot be read: OSError"),
    ],
)
def test_what_the_reader_raises_comes_in_its_step_with_number_and_line(tmp_path, data, message, reads_ahead):
    batches = Batches(data, make_build(tmp_path, "one"), 0, CPU, reads_ahead=reads_ahead)
    batches.micro_batches(0)
    with pytest.raises(BuildError, match=message) as caught:
        batches.micro_batches(1)
    assert "test_samples.py" in caught.value.where
    assert 'raise OSError("the disk is gone")' in caught.value.where
