"""Models too large for one machine can be built without memory: how they are filled is recorded."""

from importlib import import_module

import pytest
import torch

from superscaler.ir.deferred import deferred_init, initialisers


@pytest.mark.parametrize("name", ["mlp", "gpt", "llama", "mbart", "swin", "alphafold2", "moe"])
def test_every_parameter_is_filled_as_in_a_model_with_memory(name):
    module = import_module(f"models.{name}")
    with deferred_init():
        deferred = module.build("tiny")
    steps = initialisers(deferred)
    torch.manual_seed(0)
    real = dict(module.build("tiny").named_parameters())
    assert steps.keys() == real.keys()
    for key, parameter in real.items():
        (filling, *numbers), *more = steps[key]
        if filling == "fill_" and not more:
            assert torch.equal(parameter, torch.full_like(parameter, numbers[0])), key
        elif filling == "normal_":
            mean, std = numbers
            assert abs(parameter.mean() - mean) < 6 * std / parameter.numel() ** 0.5, key
            assert parameter.abs().max() > 0, key
        else:
            assert parameter.std() > 0, key
