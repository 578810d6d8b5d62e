"""models/mlp.py is three linear layers."""

import pytest
import torch

from models import mlp


def test_outputs_and_loss_are_those_computed_by_hand():
    torch.manual_seed(0)
    model = mlp.build("tiny").double()
    x, y = torch.randn(2, 5, 8, dtype=torch.float64)
    up, middle, down = ((layer.weight, layer.bias) for layer in (model.up, model.middle, model.down))
    hidden = (x @ up[0].T + up[1]).clamp(min=0)
    hidden = (hidden @ middle[0].T + middle[1]).clamp(min=0)
    expected = hidden @ down[0].T + down[1]
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x, y), (expected - y).pow(2).sum() / 40)


def test_overrides_replace_entries_of_the_row():
    inputs = mlp.example_inputs("tiny", batch=3, width=4)
    assert mlp.build("tiny", width=4)(inputs["x"]).shape == (3, 4)


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*small"):
        mlp.build("huge")
