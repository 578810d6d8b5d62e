"""Interpreting a traced graph gives what eager PyTorch gives: losses, gradients and updated parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import gpt
from superscaler.errors import PlanError
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def first_values(graph, model):
    """Copies of what the model holds, and optimizer states of zeros."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: value.detach().clone() for name, value in held.items()}
    for state in graph.of_role(Role.STATE):
        values[state.name] = torch.zeros(state.shape, dtype=getattr(torch, state.dtype))
    return values


def assert_trains_as_eager(model, make_inputs, optimizer, eager_optimizer, steps=3):
    """Both sides train for some steps on fresh inputs; every number they produce is compared."""
    graph = trace(model, make_inputs(), optimizer=optimizer)
    values = first_values(graph, model)
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    for step in range(1, steps + 1):
        inputs = make_inputs()
        eager_optimizer.zero_grad()
        loss = model(**inputs)
        loss.backward()
        eager_optimizer.step()
        results = interpret(graph, {**values, **inputs, "step": step})
        values.update({name: results[new] for name, new in graph.updates.items()})
        torch.testing.assert_close(results[graph.outputs[0]], loss.detach(), rtol=tolerance, atol=tolerance)
        for name, parameter in model.named_parameters():
            gradient = results[graph.gradients[name]]
            torch.testing.assert_close(gradient, parameter.grad, rtol=tolerance, atol=tolerance, msg=name)
            torch.testing.assert_close(
                values[name], parameter.detach(), rtol=tolerance, atol=tolerance, msg=name
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gpt_with_adamw_trains_as_eager(dtype):
    torch.manual_seed(0)
    model = gpt.build("tiny", layers=2).to(dtype)
    # For float32, a step size at which Adam does not turn rounding of near-zero gradients into whole steps.
    rate = 1e-3 if dtype == torch.float64 else 1e-6
    options = {"lr": rate, "weight_decay": 0.1}
    eager = torch.optim.AdamW(model.parameters(), **options)
    assert_trains_as_eager(
        model, lambda: gpt.example_inputs("tiny", batch=2), AdamW(**options), eager, steps=2
    )


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x, y):
        return F.mse_loss(self.down(torch.relu(self.up(x))), y)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_mlp_with_sgd_trains_as_eager(momentum, weight_decay):
    torch.manual_seed(0)
    model = MLP().double()
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}

    def inputs():
        return {"x": torch.randn(5, 6, dtype=torch.float64), "y": torch.randn(5, 3, dtype=torch.float64)}

    assert_trains_as_eager(model, inputs, SGD(**options), torch.optim.SGD(model.parameters(), **options))


def test_dropout_draws_by_step_and_its_backward_draws_the_same():
    torch.manual_seed(0)
    graph = trace(
        gpt.build("tiny", layers=1, dropout=0.1).double(),
        gpt.example_inputs("tiny", batch=2),
        optimizer=SGD(),
    )
    inputs = gpt.example_inputs("tiny", batch=2)
    losses = {}
    for step in (1, 2, 1):
        values = interpret(graph, {**inputs, "step": step}, keep="all")
        loss = values[graph.outputs[0]].item()
        assert losses.setdefault(step, loss) == loss
    assert losses[1] != losses[2]
    forward = [operator for operator in graph.operators if operator.kind == "dropout"]
    backward = [operator for operator in graph.operators if operator.kind == "dropout_backward"]
    assert [one.keywords for one in forward] == [one.keywords for one in reversed(backward)]
    held = {**graph.values, **inputs, **values}
    for one, other in zip(forward, reversed(backward), strict=True):
        zeros = held[one.writes[0]] == 0
        assert 0.02 < zeros.double().mean() < 0.2
        assert torch.all(held[other.writes[0]][zeros] == 0)


def test_gradients_with_dropout_are_those_of_finite_differences():
    torch.manual_seed(0)
    model = gpt.build("tiny", layers=1, width=8, heads=2, seq=4, vocab=11, dropout=0.3).double()
    inputs = gpt.example_inputs("tiny", batch=2, width=8, seq=4, vocab=11)
    graph = trace(model, inputs, optimizer=SGD())
    values = {**first_values(graph, model), **inputs, "step": 3}
    results = interpret(graph, values)
    for name in ("wte.weight", "h.0.attn.q.bias", "h.0.mlp.up.weight"):
        direction = torch.randn_like(values[name])
        sides = [
            interpret(graph, {**values, name: values[name] + shift * direction})[graph.outputs[0]]
            for shift in (1e-5, -1e-5)
        ]
        expected = (results[graph.gradients[name]] * direction).sum()
        torch.testing.assert_close((sides[0] - sides[1]) / 2e-5, expected, rtol=1e-6, atol=1e-9)


def test_results_alone_are_kept_unless_all_are_wanted():
    graph = trace(MLP(), {"x": torch.ones(5, 6), "y": torch.ones(5, 3)}, optimizer=SGD())
    values = {"x": torch.ones(5, 6), "y": torch.ones(5, 3), "step": 1}
    few, every = interpret(graph, values), interpret(graph, values, keep="all")
    assert few.keys() == {*graph.outputs, *graph.gradients.values(), *graph.updates.values()}
    assert every.keys() == graph.writer.keys()
    assert all(torch.equal(few[name], every[name]) for name in few)


def test_values_given_are_not_changed():
    model = MLP()
    graph = trace(model, {"x": torch.ones(5, 6), "y": torch.ones(5, 3)}, optimizer=SGD(lr=1.0, momentum=0.9))
    values = {**first_values(graph, model), "x": torch.ones(5, 6), "y": torch.ones(5, 3), "step": 2}
    before = {name: torch.as_tensor(value).clone() for name, value in values.items()}
    interpret(graph, values)
    assert all(torch.equal(torch.as_tensor(values[name]), before[name]) for name in values)


def test_a_missing_value_or_a_wrong_shape_is_named():
    graph = trace(MLP(), {"x": torch.ones(5, 6), "y": torch.ones(5, 3)})
    with pytest.raises(PlanError, match=r"reads y: float32\[5, 3\], which has no value"):
        interpret(graph, {"x": torch.ones(5, 6)})
    with pytest.raises(PlanError, match=r"reads x: float32\[5, 6\], and was given \[4, 6\]"):
        interpret(graph, {"x": torch.ones(4, 6), "y": torch.ones(5, 3)})
