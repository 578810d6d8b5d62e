"""Paged attention equals a loop over tokens and keys, on every path; also the Triton kernels, where they can run."""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.runtime import ops
from tests.runtime.ops.paged_steps import PagedStep, by_definition, random_step

layouts = importlib.import_module("superscaler.runtime.ops.paged_layout")
ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def check(step: PagedStep, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
    """The output, and what the caches hold afterwards."""
    step = step.to(dtype, device)
    expected, keys, values = by_definition(step)
    out = ops.paged_attention(*step.tensors, **step.options)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(step.keys, keys, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(step.values, values, rtol=0, atol=0, equal_nan=True)


SHAPES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=6)
"""New tokens and earlier keys of each sequence."""


@settings(max_examples=150, deadline=None)
@given(
    shapes=SHAPES,
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (4, 1)]),
    widths=st.sampled_from([(8, 8), (8, 4)]),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([0, 1, 7, 30]),
    tree=st.booleans(),
    seed=st.integers(0, 2**16),
    widest=st.sampled_from([None, 2, 3]),
)
def test_equals_a_loop_over_tokens_and_keys(shapes, heads, widths, page_size, window, tree, seed, widest):
    check(random_step(shapes, heads, widths, page_size, window, tree, seed, widest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("window", "tree"), [(0, False), (9, False), (0, True), (9, True)])
def test_every_type_of_element_equals_float64(dtype, window, tree):
    check(
        random_step([(1, 30), (1, 29), (7, 20), (7, 0), (0, 3)], (4, 2), (16, 16), 8, window, tree, 0), dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "tree"), [(0, False), (50, False), (0, True)])
@pytest.mark.parametrize("earlier", [0, 37])
def test_long_chunks_beside_decodes_equal_the_loop(dtype, window, tree, earlier):
    shapes = [(1, 30), (layouts.LONG_CHUNK + 3, earlier), (1, 8), (layouts.LONG_CHUNK, 5)]
    check(random_step(shapes, (4, 2), (8, 8), 4, window, tree, 1), dtype)
    if tree:
        check(random_step([*shapes, (3, 9)], (4, 2), (8, 8), 4, window, tree, 1, widest=4), dtype)


@pytest.mark.parametrize("group_bytes", [1, 1 << 12, 1 << 30])
def test_groups_of_any_size_give_the_same(group_bytes, monkeypatch):
    monkeypatch.setattr(layouts, "GROUP_BYTES", group_bytes)
    check(random_step([(1, length) for length in range(20, 60, 2)], (4, 2), (8, 8), 4, 0, False, 2))


def test_sequences_see_their_shared_pages_and_nothing_of_each_other():
    """A page of a common prompt lies in both tables; what others left in a page, be it NaN, is not looked at."""
    step = random_step([(1, 11), (1, 9), (2, 8)], (2, 1), (8, 8), 4, 0, False, 3)
    step.pages[1, :2] = step.pages[0, :2]
    step.slots[1] = step.pages[1, 2] * 4 + 1
    check(step)


def test_what_lies_in_slots_that_are_not_its_own_does_not_reach_a_sequence():
    """The steps of `random_step` hold NaN wherever no sequence has a key."""
    step = random_step([(1, 11), (1, 9), (2, 8)], (2, 1), (8, 8), 4, 0, False, 3)
    assert step.keys.isnan().any()
    assert ops.paged_attention(*step.tensors, **step.options).isfinite().all()


def test_a_token_that_sees_nothing_gives_zeros():
    step = random_step([(3, 0), (1, 5)], (4, 2), (8, 8), 4, 0, True, 4)
    step.visible[1] = False
    assert (ops.paged_attention(*step.tensors, **step.options)[:, :, 1] == 0).all()
    check(step)


def test_a_step_without_tokens_gives_nothing():
    step = random_step([(0, 4)], (4, 2), (8, 8), 4, 0, False, 5)
    assert ops.paged_attention(*step.tensors, **step.options).shape == (1, 4, 0, 8)


def test_each_sequence_of_a_step_is_in_one_group_of_similar_lengths_or_of_little_padding():
    lengths = [3, 500, 40, 420, 1, 45, 400, 12]
    step = random_step([(1, length) for length in lengths], (1, 1), (1, 1), 4, 0, False, 6)
    options = layouts.Options(page_size=4, window=0, sharing=1, key_bytes=4096, dtype=torch.float32)
    metadata = layouts.Step(step.starts, step.lengths, step.pages, step.positions, step.visible)
    found = []
    for group in layouts.layout(metadata, options):
        tokens = torch.arange(len(lengths))[group.tokens].tolist()
        found.append([lengths[token] + 1 for token in tokens])
    assert sorted(length for group in found for length in group) == sorted(length + 1 for length in lengths)
    assert sorted(map(sorted, found)) == [[2, 4], [13, 41, 46], [401], [421, 501]], (
        "501, 421 and 401 are 5 MiB"
    )


def test_what_follows_from_a_step_is_found_once_for_all_layers(monkeypatch):
    calls = []
    monkeypatch.setattr(layouts, "layout", lambda *given: calls.append(given) or ())
    last, options = layouts.LayoutOfLastStep(), layouts.Options(4, 0, 1, 4, torch.float32)
    step = random_step([(1, 5), (2, 0)], (1, 1), (1, 1), 4, 0, False, 7)
    metadata = layouts.Step(step.starts, step.lengths, step.pages, step.positions, step.visible)
    for _ in range(3):
        last.of(metadata, options)
        last.of(layouts.Step(*(tensor.clone() for tensor in metadata.tensors)), options)
    assert len(calls) == 1
    last.of(metadata, layouts.Options(4, 3, 1, 4, torch.float32))
    assert len(calls) == 2, "a window of its own"
    with torch.inference_mode():
        step.lengths[0] -= 1
        last.of(metadata, options)
    assert len(calls) == 3, "overwritten in place"


def test_pieces_of_the_heads_make_the_whole_and_write_their_pieces_of_the_caches():
    whole = random_step([(3, 5), (1, 7)], (4, 2), (8, 8), 4, 0, False, 8)
    pieces = []
    for number in range(2):
        q, k, v = (x.chunk(2, 1)[number] for x in whole.tensors[:3])
        keys, values = (x.chunk(2, 1)[number].contiguous() for x in (whole.keys, whole.values))
        out = ops.paged_attention(q, k, v, keys, values, *whole.tensors[5:], **whole.options)
        pieces.append((out, keys, values))
    out = ops.paged_attention(*whole.tensors, **whole.options)
    for expected, parts in zip((out, whole.keys, whole.values), zip(*pieces, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts, 1), expected, equal_nan=True)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_interpreted_equal_the_definition():
    command = [sys.executable, "-W", "error", "-m", "tests.runtime.ops.interpreted_kernels"]
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("window", "tree"), [(0, False), (9, False), (0, True), (9, True)])
@pytest.mark.parametrize(("heads", "widths"), [((4, 2), (64, 64)), ((6, 2), (128, 96)), ((8, 1), (80, 80))])
@pytest.mark.parametrize("shapes", [[(1, 900), (1, 30)], [(1, 30), (150, 65), (0, 3), (5, 0)]])
def test_on_a_gpu_equals_the_loop(shapes, heads, widths, window, tree, dtype):
    check(random_step(shapes, heads, widths, 16, window, tree, 0), dtype, "cuda")
