"""One trace serves inputs of many sizes, says which, and refuses a model that is for one size alone."""

import pytest
import torch
from torch import nn

from models import gpt
from superscaler.errors import SizeError, TraceError
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import SGD
from superscaler.ir.size import Size
from superscaler.ir.text import format_graph, parse_graph
from superscaler.ir.trace import trace

SIZES = {"layers": 2, "width": 16, "heads": 4, "seq": 16, "vocab": 32}
DYNAMIC = {"x": ("batch", "seq")}


class Apply(nn.Module):
    """A function of `x` [batch, seq, 8] as a module with a weight."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8, dtype=torch.float64))

    def forward(self, x):
        return self.function(x * self.weight)


def example(batch=6, seq=10):
    return torch.randn(batch, seq, 8, dtype=torch.float64)


def check(function, *sizes, conditions=()):
    """Trace once; the graph computes what the function computes for all sizes, asks for this, and has a text."""
    model = Apply(function)
    graph = trace(model, (example(),), dynamic=DYNAMIC)
    assert [one.condition for one in graph.requirements] == list(conditions)
    assert parse_graph(format_graph(graph)) == graph
    for size in sizes:
        x = example(*size)
        (result,) = interpret(graph, {"x": x}).values()
        torch.testing.assert_close(result, model(x).detach())
    return graph


ALL = [(6, 10), (1, 10), (6, 1), (1, 1), (5, 5), (3, 17)]


FOR_ANY_SIZES = [
    lambda x: x @ x.transpose(1, 2),
    lambda x: x.flatten(0, 1) + torch.arange(8),
    lambda x: x.mean(1) + x.sum() / x.shape[1],
    lambda x: x.reshape(x.shape[0], x.shape[1], 2, 4).transpose(1, 2).reshape(x.shape[0], 2, -1),
    lambda x: (x @ x.transpose(1, 2)).masked_fill(torch.ones(x.shape[1], x.shape[1]).tril() == 0, 0.0),
    lambda x: x + torch.zeros(x.shape[0], 1, 8).expand(-1, x.shape[1], -1),
    lambda x: torch.cat([x, x[:, 1:]], 1).flatten(0, 1).unflatten(0, (x.shape[0], -1)),
    lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.unflatten(-1, (2, 4)).transpose(1, 2)] * 3),
    lambda x: x[:, : x.shape[1] // 2 + 1] * x.shape[0],
    lambda x: torch.einsum("bsd,bte->bste", x, x),
]  # fmt: skip


@pytest.mark.parametrize("function", FOR_ANY_SIZES)
def test_any_sizes_will_do(function):
    check(function, *ALL)


def test_a_limit_in_the_model_becomes_a_requirement():
    def limited(x):
        if x.shape[1] > 12:
            raise ValueError("too long")
        return x + 1.0

    graph = check(limited, (3, 12), (1, 1), conditions=["seq <= 12"])
    assert "test_dynamic.py" in graph.requirements[0].reason
    with pytest.raises(
        SizeError, match=r"needs seq <= 12, but seq is 13(.|\n)*at: tests/ir/test_dynamic\.py"
    ):
        interpret(graph, {"x": example(2, 13)})


def test_a_slice_of_a_table_is_as_long_as_the_sequence():
    table = torch.randn(32, 8, dtype=torch.float64)
    check(lambda x: x + table[: x.shape[1]], (3, 32), (1, 1), conditions=["seq <= 32"])


def test_halves_ask_for_an_even_size():
    graph = check(
        lambda x: x.view(2, x.shape[0] // 2, x.shape[1], 8).sum(0),
        (8, 3),
        (2, 1),
        conditions=["batch % 2 == 0"],
    )
    assert str(graph.tensors[graph.outputs[0]].shape[0]) == "batch / 2"


@pytest.mark.parametrize(
    ("function", "conditions"),
    [
        (lambda x: x.sum(2).squeeze(1), ["seq != 1"]),
        (lambda x: x.squeeze(), ["batch != 1", "seq != 1"]),
        (lambda x: x[:, :, :1].squeeze(-1), []),
    ],
)
def test_a_squeeze_asks_for_more_than_one(function, conditions):
    check(function, (3, 4), (2, 2), conditions=conditions)


def test_the_model_may_tell_one_from_many_only_by_asking():
    def squeezing(x):
        return x.sum(1) if x.shape[1] == 1 else x.sum(1) * 2.0

    graph = check(squeezing, (3, 4), conditions=["seq != 1"])
    with pytest.raises(SizeError, match="needs seq != 1"):
        interpret(graph, {"x": example(3, 1)})


FIXED = [
    (lambda x: x if x.shape[0] == 6 else x * 2.0, r"'batch' cannot vary: the model fixes it to 6"),
    (lambda x: x[:, int(x.shape[1]) - 3], r"'seq' cannot vary: the model fixes it to 10"),
    (lambda x: x + torch.zeros(6, 1, 8), r"'batch' cannot vary: the model fixes it to 6"),
    (lambda x: x * x.shape[1] ** -0.5, "no whole size"),
]


@pytest.mark.parametrize(("function", "message"), FIXED)
def test_a_model_for_one_size_is_refused_with_the_line(function, message):
    with pytest.raises(TraceError, match=message) as error:
        trace(Apply(function), (example(),), dynamic=DYNAMIC)
    assert "tests/ir/test_dynamic.py:" in error.value.where
    assert error.value.remedy


def test_two_names_for_what_is_always_equal_are_refused():
    with pytest.raises(TraceError, match=r"the model needs (batch == seq|seq == batch)"):
        trace(Apply(lambda x: x + x.transpose(0, 1)), (example(7, 7),), dynamic=DYNAMIC)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": ("batch",)}, "'y', which is no input"),
        ({"x": {3: "batch"}}, "dim 3 of 'x', which has 3 dims"),
        ({"x": ("two words",)}, "cannot name a size"),
        ({"x": ("batch", "batch")}, "'batch' is 6 and 10 in the example"),
    ],
)
def test_names_that_fit_no_input_are_refused(dynamic, message):
    with pytest.raises(TraceError, match=message):
        trace(Apply(lambda x: x), (example(),), dynamic=dynamic)


def test_an_example_of_one_is_refused():
    with pytest.raises(TraceError, match=r"'batch' is 1 in the example(.|\n)*at least 2"):
        trace(Apply(lambda x: x), (example(1),), dynamic=DYNAMIC)
    with pytest.raises(TraceError, match="dim of seq - 1 elements, which are 1 in the example"):
        trace(Apply(lambda x: x[:, 1:] + 1.0), (example(6, 2),), dynamic=DYNAMIC)


def test_training_is_for_one_size():
    model, inputs = gpt.build("tiny", **SIZES), gpt.example_inputs("tiny", batch=4, **SIZES)
    with pytest.raises(TraceError, match="for inference"):
        trace(model, inputs, optimizer=SGD(), dynamic={"tokens": ("batch",)})


def test_gpt_for_many_sizes_has_the_operators_of_gpt_for_one():
    torch.manual_seed(0)
    model = gpt.build("tiny", **SIZES).double()
    tokens = gpt.example_inputs("tiny", batch=6, **SIZES)["tokens"]
    fixed, many = (
        trace(model, (tokens,)),
        trace(model, (tokens,), dynamic={"tokens": {0: "batch", -1: "seq"}}),
    )
    assert fixed.sizes == {} == many.bind({"tokens": (6, 16)}).sizes
    assert many.bind({"tokens": (6, 16)}) == fixed
    assert [operator.kind for operator in many.operators] == [operator.kind for operator in fixed.operators]
    assert all(isinstance(size, Size) for size in many.tensors["tokens"].shape)
    assert format_graph(many).startswith(
        "size batch = 6\nsize seq = 16\ngraph gpt(tokens: int64[batch, seq])"
    )
    for batch, seq in ((1, 1), (2, 16), (5, 7)):
        tokens = torch.randint(32, (batch, seq))
        torch.testing.assert_close(interpret(many, {"tokens": tokens})["linear"], model(tokens).detach())
