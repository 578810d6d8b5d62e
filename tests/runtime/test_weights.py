"""Pieces are read and put together again exactly; weights that do not fit are refused, every fault named."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.weights import load_weights, make_weights, save_weights, zero_states
from tests.runtime.tiny_build import write_build

CPU = torch.device("cpu")


@pytest.fixture
def build(tmp_path):
    return read_build(write_build(tmp_path / "build"))


def whole_weights():
    return {"w": torch.randn(4, 6, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}


def save_from_all(path, build, tensors, **options):
    for rank in (1, 0):  # rank 0 last: it assembles what the others wrote
        save_weights(path, build, rank, tensors[rank], lambda: None, **options)


def test_pieces_come_back_together(tmp_path, build):
    weights = whole_weights()
    save_file(weights, tmp_path / "in.safetensors")
    loaded = [load_weights(tmp_path / "in.safetensors", build, rank, CPU) for rank in range(2)]
    assert torch.equal(loaded[1][0]["w"], weights["w"][2:])
    assert all(steps == 0 and (state["w/momentum"] == 0).all() for _, state, steps in loaded)
    save_from_all(tmp_path / "out.safetensors", build, [p for p, _, _ in loaded], step=5)
    result = load_file(tmp_path / "out.safetensors")
    assert result.keys() == weights.keys()
    assert all(torch.equal(result[name], weights[name]) for name in weights)
    assert not list(tmp_path.glob("*.pieces"))


def test_states_are_saved_and_taken_up_with_their_step(tmp_path, build):
    tensors = []
    for rank in range(2):
        p, state = make_weights(build, rank, CPU, 0), zero_states(build, rank, CPU)
        state["w/momentum"] += rank + 1
        tensors.append({**p, **state})
    save_from_all(tmp_path / "out.safetensors", build, tensors, step=5, with_states=True)
    _, state, steps = load_weights(tmp_path / "out.safetensors", build, 1, CPU)
    assert steps == 5
    assert (state["w/momentum"] == 2).all()


def test_initial_values_do_not_depend_on_the_plan(tmp_path, build):
    alone = make_weights(read_build(write_build(tmp_path / "alone", 1)), 0, CPU, 7)
    pieces = [make_weights(build, rank, CPU, 7)["w"] for rank in range(2)]
    assert torch.equal(torch.cat(pieces), alone["w"])


def test_a_tensor_without_initial_values_is_named(build):
    with pytest.raises(BuildError, match=r"for b\n(.|\n)*--weights"):
        make_weights(replace(build, initialisers={"w": [["normal_"]]}), 0, CPU, 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_fault_is_named_at_once(tmp_path, build, rank):
    save_file({"weight": torch.ones(2), "b": torch.ones(5, dtype=torch.float64)}, tmp_path / "x.safetensors")
    with pytest.raises(BuildError) as caught:
        load_weights(tmp_path / "x.safetensors", build, rank, CPU)
    message = str(caught.value)
    assert "missing: w" in message
    assert "unexpected: weight" in message
    assert "b is torch.float64 [5], not torch.float64 [4]" in message


def test_the_nearest_name_is_suggested(tmp_path, build):
    renamed = {"b": torch.ones(4, dtype=torch.float64), "w.": torch.ones(4, 6, dtype=torch.float64)}
    save_file(renamed, tmp_path / "x.safetensors")
    with pytest.raises(BuildError, match=r"missing: w \(there is w\.\)"):
        load_weights(tmp_path / "x.safetensors", build, 0, CPU)


def test_another_dtype_is_refused(tmp_path, build):
    save_file({name: x.float() for name, x in whole_weights().items()}, tmp_path / "x.safetensors")
    with pytest.raises(BuildError, match=r"w is torch\.float32"):
        load_weights(tmp_path / "x.safetensors", build, 0, CPU)
