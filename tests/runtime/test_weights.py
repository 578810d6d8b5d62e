"""Each rank reads its pieces exactly, under any name a checkpoint has; what does not fit is refused, all of it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.weights import load_weights
from tests.runtime.tiny_build import write_build

CPU = torch.device("cpu")


@pytest.fixture
def build(tmp_path):
    return read_build(write_build(tmp_path / "build"))


def whole_weights():
    return {"w": torch.randn(4, 6, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}


def named(build, **saved_as):
    """The build with other names for its tensors in checkpoints."""
    (program,) = build.programs
    tensors = {
        name: replace(tensor, saved_as=saved_as.get(name, tensor.saved_as))
        for name, tensor in program.tensors.items()
    }
    return replace(build, programs=(replace(program, tensors=tensors),))


def test_ranks_read_their_pieces(tmp_path, build):
    weights = whole_weights()
    save_file(weights, tmp_path / "in.safetensors")
    for rank in range(2):
        loaded = load_weights(tmp_path / "in.safetensors", build, rank, CPU)
        assert torch.equal(loaded.weights["w"], weights["w"][2 * rank : 2 * rank + 2])
        assert torch.equal(loaded.weights["b"], weights["b"])
        assert loaded.step == 0
        assert (loaded.states["w/momentum"] == 0).all()
        assert not loaded.notes


def test_initial_values_do_not_depend_on_the_plan(tmp_path, build):
    alone = load_weights(None, read_build(write_build(tmp_path / "alone", 1)), 0, CPU, 7)
    pieces = [load_weights(None, build, rank, CPU, 7).weights["w"] for rank in range(2)]
    assert torch.equal(torch.cat(pieces), alone.weights["w"])


def test_a_tensor_without_initial_values_is_named(build):
    with pytest.raises(BuildError, match=r"for b\n(.|\n)*--weights"):
        load_weights(None, replace(build, initialisers={"w": [["normal_"]]}), 0, CPU)


@pytest.mark.parametrize("names", [("w",), ("head",), ("w", "head")])
def test_a_tied_tensor_is_read_by_any_of_its_names(tmp_path, build, names):
    weights = whole_weights()
    save_file(
        {"b": weights["b"], **{name: weights["w"].clone() for name in names}}, tmp_path / "x.safetensors"
    )
    loaded = load_weights(tmp_path / "x.safetensors", named(build, w=("w", "head")), 1, CPU)
    assert torch.equal(loaded.weights["w"], weights["w"][2:])


def test_names_of_one_tensor_with_different_values_are_refused(tmp_path, build):
    weights = whole_weights()
    save_file({**weights, "head": weights["w"] + 1}, tmp_path / "x.safetensors")
    with pytest.raises(BuildError, match="different values as w and head"):
        load_weights(tmp_path / "x.safetensors", named(build, w=("w", "head")), 0, CPU)


def test_what_no_checkpoint_holds_comes_from_the_build(tmp_path, build):
    weights = whole_weights()
    save_file({"w": weights["w"]}, tmp_path / "x.safetensors")
    build = named(build, b=())
    with_initialiser = load_weights(tmp_path / "x.safetensors", build, 0, CPU)
    assert torch.equal(with_initialiser.weights["b"], torch.zeros(4, dtype=torch.float64))
    save_file({"b": weights["b"]}, build.folder / "weights.safetensors")
    loaded = load_weights(tmp_path / "x.safetensors", build, 0, CPU)
    assert torch.equal(loaded.weights["b"], weights["b"])
    assert torch.equal(loaded.weights["w"], weights["w"][:2])


def test_a_lost_buffer_is_named_with_the_remedy(tmp_path, build):
    save_file({"w": whole_weights()["w"]}, tmp_path / "x.safetensors")
    with pytest.raises(BuildError, match=r"(?s)no values for b, .*deferred_init"):
        load_weights(tmp_path / "x.safetensors", replace(named(build, b=()), initialisers={}), 0, CPU)


def test_another_floating_dtype_is_converted_with_a_note(tmp_path, build):
    weights = whole_weights()
    halves = {"w": weights["w"].bfloat16(), "b": weights["b"]}
    save_file(halves, tmp_path / "x.safetensors")
    loaded = load_weights(tmp_path / "x.safetensors", build, 0, CPU)
    assert torch.equal(loaded.weights["w"], halves["w"][:2].double())
    assert loaded.notes == (
        f"1 tensor(s) of {tmp_path / 'x.safetensors'} are converted from bfloat16 to float64",
    )


def test_whole_numbers_are_not_converted_to_floats(tmp_path, build):
    save_file({**whole_weights(), "b": torch.ones(4, dtype=torch.int64)}, tmp_path / "x.safetensors")
    with pytest.raises(BuildError, match=r"b is torch\.int64 \[4\], not torch\.float64"):
        load_weights(tmp_path / "x.safetensors", build, 0, CPU)


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


def test_all_names_of_a_missing_tensor_are_given(tmp_path, build):
    save_file({"b": whole_weights()["b"]}, tmp_path / "x.safetensors")
    with pytest.raises(BuildError, match="missing: w or head"):
        load_weights(tmp_path / "x.safetensors", named(build, w=("w", "head")), 0, CPU)
