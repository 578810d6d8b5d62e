"""Ordinary models become one graph that computes the same; what cannot is refused with a remedy."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import gpt
from superscaler.errors import TraceError
from superscaler.ir.deferred import deferred_init, initialisers
from superscaler.ir.graph import Phase
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace

F64 = torch.float64


def assert_computes_as_eager(model, args=(), kwargs=None, loss=None):
    """Loss and every gradient of the traced graph are those of autograd; returns the graph."""
    model, kwargs = model.double(), kwargs or {}
    graph = trace(model, args, kwargs, loss=loss, optimizer=SGD())
    positional, named = ((), {**args, **kwargs}) if isinstance(args, dict) else (args, kwargs)
    leaves = [
        leaf
        for leaf in torch.utils._pytree.tree_leaves((positional, named))
        if isinstance(leaf, torch.Tensor)
    ]
    fed = {name: leaf.clone() for name, leaf in zip(graph.inputs, leaves, strict=True)}
    results = interpret(graph, {**fed, "step": 1})
    output = model(*positional, **named)
    output = loss(output) if loss else output
    output.backward()
    torch.testing.assert_close(results[graph.outputs[0]], output.detach(), rtol=1e-12, atol=1e-12)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = results[graph.gradients[name]]
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12, msg=name)
    assert set(graph.gradients) == {name for name, p in model.named_parameters() if p.grad is not None}
    return graph


def line_of(function, offset):
    """``file:line`` of the line `offset` below the ``def`` of a function of this file."""
    return f"test_trace.py:{function.__code__.co_firstlineno + offset}"


class Model(nn.Module):
    """A model whose forward is the function it is made with; one linear layer 4 -> 4 to use."""

    def __init__(self, forward):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.run = forward

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x, scale=2.0, *, shift=None):
        y = x * self.scale * scale
        return (y if shift is None else y + shift).square().mean()


def x(*shape):
    return torch.randn(*shape or (3, 4), dtype=F64)


# What goes in


def test_inputs_go_by_the_names_of_forward():
    graph = assert_computes_as_eager(Scale(), (x(),), {"shift": x()})
    assert graph.inputs == ("x", "shift")
    graph = assert_computes_as_eager(Scale(), {"x": x(), "shift": x()})
    assert graph.inputs == ("x", "shift")


def test_an_input_with_the_name_of_a_parameter_gets_another():
    graph = assert_computes_as_eager(Scale(), (x(), x()))
    assert graph.inputs == ("x", "scale_input")


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, batch, *more, **named):
        y = self.fc(batch["a"]) + batch["b"][0] + more[0] * named["gain"]
        return y.square().sum()


def test_nested_and_variadic_inputs_are_fed():
    graph = assert_computes_as_eager(Nested(), ({"a": x(), "b": [x(), 3]}, x()), {"gain": x()})
    assert graph.inputs == ("batch_a", "batch_b_0", "more_0", "gain")


def test_one_tensor_needs_no_tuple():
    assert trace(nn.Linear(4, 2), torch.randn(3, 4)).inputs == ("input",)


def test_inputs_that_do_not_fit_are_refused_with_the_signature():
    with pytest.raises(TraceError, match=r"(?s)do not fit Scale.forward: missing.*'x'.*remedy: .*\(x, scale"):
        trace(Scale(), ())
    with pytest.raises(TraceError, match=r"unexpected keyword argument 'y'"):
        trace(Scale(), (x(),), {"y": x()})


def test_a_model_without_memory_traces_to_the_same_graph():
    real = trace(gpt.build("tiny", layers=1), gpt.example_inputs("tiny", batch=2), optimizer=AdamW())
    with deferred_init():
        model = gpt.build("tiny", layers=1)
    steps = initialisers(model)
    empty = trace(model, gpt.example_inputs("tiny", batch=2), optimizer=AdamW(), initialisers=steps)
    assert not empty.values
    assert empty.initialisers == steps
    assert (empty.operators, empty.tensors) == (real.operators, real.tensors)


# What comes out


def test_tied_weights_are_one_parameter_with_one_gradient():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens)).square().sum()

    graph = assert_computes_as_eager(Tied(), (torch.randint(7, (3, 5)),))
    assert [tensor.name for tensor in graph.of_role(Role.PARAMETER)] == ["embed.weight"]
    assert len([operator for operator in graph.operators if operator.phase is Phase.UPDATE]) == 1
    assert graph.saved_as == {"embed.weight": ("embed.weight", "head.weight")}


def test_buffers_that_are_not_persistent_have_no_name_in_checkpoints():
    class Tables(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.arange(3.0))
            self.register_buffer("made", 2 ** torch.arange(3.0), persistent=False)
            self.given = torch.ones(3)

        def forward(self, x):
            return (x * self.kept + self.made * self.given).sum()

    inputs = (torch.randn(4, 3),)
    with deferred_init():
        model = Tables()
    with torch.device("cpu"):
        model.given = torch.ones(3)
    real, deferred = trace(Tables(), inputs), trace(model, inputs)
    assert real.saved_as == deferred.saved_as == {"made": (), "constant0": ()}
    assert torch.equal(deferred.values["made"], torch.tensor([1.0, 2.0, 4.0]))
    assert torch.equal(deferred.values["made"], real.values["made"])


def test_frozen_parameters_are_read_and_not_updated():
    model = Model(lambda self, x: self.fc(x).square().sum())
    model.fc.weight.requires_grad_(False)
    graph = assert_computes_as_eager(model, (x(),))
    assert set(graph.gradients) == {"fc.bias"}
    assert set(graph.updates) == {"fc.bias"}


def test_a_parameter_without_a_gradient_is_left_alone():
    model = Model(lambda self, x: self.fc(x).square().sum())
    model.unused = nn.Parameter(torch.ones(3))
    graph = assert_computes_as_eager(model, (x(),))
    assert "unused" in graph.tensors
    assert "unused" not in graph.updates


def test_without_an_optimizer_the_outputs_are_all_there_is():
    model = Model(lambda self, x: {"y": self.fc(x), "twice": (2 * x, None)}).double()
    given = x()
    graph = trace(model, (given,))
    results = interpret(graph, {graph.inputs[0]: given})
    expected = model(given)
    torch.testing.assert_close(results[graph.outputs[0]], expected["y"].detach())
    torch.testing.assert_close(results[graph.outputs[1]], expected["twice"][0])
    assert not graph.is_training
    assert {operator.phase for operator in graph.operators} == {Phase.FORWARD}


def test_a_loss_function_maps_the_output_to_the_loss():
    target = x()
    assert_computes_as_eager(
        Model(lambda self, x: (x, self.fc(x))), (x(),), loss=lambda output: F.mse_loss(output[1], target)
    )


def test_tracing_leaves_the_model_as_it_was():
    model = gpt.build("tiny", layers=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, gpt.example_inputs("tiny", batch=2), optimizer=AdamW())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# In place


def add_in_place(self, x):
    y = self.fc(x)
    y += 1
    y.mul_(x)
    return y.square().sum()


def relu_in_place(self, x):
    return torch.relu_(self.fc(F.relu(self.fc(x), inplace=True))).square().sum()


def write_into_a_slice(self, x):
    y = self.fc(x) * 2
    y[:, 0] = 2.0
    y[:, 1:3] *= x[:, 1:3]
    return (y * y[0]).sum()


def fill_a_buffer(self, x):
    out = x.new_zeros(3, 8)
    out[:, :4] = self.fc(x)
    out[:, 4:].copy_(self.fc(x).sin())
    return (out * out).mean()


@pytest.mark.parametrize("forward", [add_in_place, relu_in_place, write_into_a_slice, fill_a_buffer])
def test_in_place_operators_become_functional(forward):
    graph = assert_computes_as_eager(Model(forward), (x(),))
    assert not any(operator.kind.removesuffix(".Tensor").endswith("_") for operator in graph.operators)
    assert {operator.phase for operator in graph.operators} == {Phase.FORWARD, Phase.BACKWARD, Phase.UPDATE}
    lines = {operator.source for operator in graph.operators if operator.source}
    assert any(forward.__code__.co_firstlineno < int(line.rpartition(":")[2]) for line in lines)


def test_writing_into_an_input_changes_what_the_model_sees():
    def forward(self, x):
        x += 1
        return self.fc(x).square().sum()

    model, given = Model(forward).double(), x()
    graph = trace(model, (given.clone(),), optimizer=SGD())
    results = interpret(graph, {graph.inputs[0]: given, "step": 1})
    torch.testing.assert_close(
        results[graph.outputs[0]], model(given.clone()).detach(), rtol=1e-12, atol=1e-12
    )


def count_calls(self, x):
    self.seen += 1
    return self.fc(x).square().sum() * self.seen


def test_a_buffer_the_model_overwrites_is_updated_with_the_parameters():
    model = Model(count_calls).double()
    model.register_buffer("seen", torch.zeros((), dtype=torch.float64))
    graph = trace(model, (x(),), optimizer=SGD())
    assert "seen" in graph.updates
    results = interpret(graph, {graph.inputs[0]: x(), "seen": torch.tensor(2.0).double(), "step": 1})
    assert results[graph.updates["seen"]] == 3


def test_overwriting_a_buffer_in_inference_is_refused_with_the_line():
    model = Model(count_calls)
    model.register_buffer("seen", torch.zeros(()))
    with pytest.raises(TraceError, match="overwrites its own buffer 'seen'") as caught:
        trace(model, (torch.randn(3, 4),))
    assert caught.value.where.endswith(line_of(count_calls, 1))


def test_overwriting_a_parameter_is_refused_with_the_line():
    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.mul_(0.5)
        return self.fc(x).square().sum()

    with pytest.raises(TraceError, match=r"overwrites its own parameter 'fc\.weight'") as caught:
        trace(Model(forward), (torch.randn(3, 4),), optimizer=SGD())
    assert caught.value.where.endswith(line_of(forward, 2))


# Where each operator comes from


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        h = self.fc(x)
        return torch.tanh(h)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.square().sum()


@pytest.fixture(scope="module")
def stack():
    return trace(Stack(), (torch.randn(3, 4),), optimizer=SGD())


def test_operators_know_module_line_and_phase(stack):
    tanh = stack.operator("blocks.1/tanh")
    assert (tanh.module, tanh.phase) == ("blocks.1", Phase.FORWARD)
    assert tanh.source.endswith(line_of(Block.forward, 2))
    linear = stack.operator("blocks.0.fc/linear")
    assert linear.module == "blocks.0.fc"
    assert linear.source.endswith(line_of(Block.forward, 1))


def test_backward_operators_belong_to_the_call_they_come_from(stack):
    forward = stack.operator("blocks.1.fc/linear")
    backward = [o for o in stack.operators if o.phase is Phase.BACKWARD and o.origin == forward.origin]
    assert {o.kind for o in backward} == {
        "linear_input_gradient",
        "linear_weight_gradient",
        "linear_bias_gradient",
    }
    for operator in backward:
        assert (operator.module, operator.source) == (forward.module, forward.source)
    (tanh_backward,) = [
        o for o in stack.operators if o.kind == "aten.tanh_backward" and o.module == "blocks.0"
    ]
    assert tanh_backward.origin == stack.operator("blocks.0/tanh").origin


def test_every_backward_operator_but_the_seed_has_a_forward_operator(stack):
    forward = {o.origin for o in stack.operators if o.phase is Phase.FORWARD}
    seeds = [o for o in stack.operators if o.phase is Phase.BACKWARD and o.origin not in forward]
    assert {o.kind for o in seeds} <= {"full"}


def test_phases_come_in_order(stack):
    phases = [operator.phase for operator in stack.operators]
    assert phases == sorted(phases, key=list(Phase).index)


# What is refused


def branch(self, x):
    y = self.fc(x)
    if y.sum() > 0:
        y = -y
    return y.sum()


def read_a_number(self, x):
    y = self.fc(x)
    return y.sum() * float(y.max().item())


@pytest.mark.parametrize("forward", [branch, read_a_number])
def test_control_flow_on_values_is_refused_with_line_and_remedy(forward):
    with pytest.raises(TraceError, match=r"(?s)decides by the value.*remedy: .*torch\.where") as caught:
        trace(Model(forward), (torch.randn(3, 4),), optimizer=SGD())
    assert caught.value.where.endswith(line_of(forward, 2))


@pytest.fixture
def library():
    library = torch.library.Library("tracetest", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    yield library
    library._destroy()


def call_twice(self, x):
    y = self.fc(x)
    return torch.ops.tracetest.twice(y).sum()


def test_an_operator_without_a_rule_gets_the_one_experiments_find(library):
    torch.library.register_fake("tracetest::twice", torch.empty_like, lib=library)
    graph = trace(Model(call_twice), (torch.randn(3, 4),))
    assert [operator.rule for operator in graph.operators if operator.kind == "tracetest.twice"] == [
        "a b -> a b"
    ]


def not_a_scalar(self, x):
    return self.fc(x)


def independent_of_parameters(self, x):
    return x.sum()


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (not_a_scalar, r"is \[3, 4\]"),
        (independent_of_parameters, r"is \[\]"),
        (lambda self, x: "text", "is str"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(forward, what):
    with pytest.raises(
        TraceError, match=rf"(?s)the loss of Model {what}, not one number.*remedy: pass loss="
    ):
        trace(Model(forward), (torch.randn(3, 4),), optimizer=SGD())


# Dtypes and widths of what the graph says


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_graph_tells_the_dtypes_that_running_it_gives(dtype):
    graph = trace(
        gpt.build("tiny", layers=1).to(dtype), gpt.example_inputs("tiny", batch=2), optimizer=AdamW()
    )
    states = {s.name: torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in graph.of_role(Role.STATE)}
    values = interpret(graph, {**gpt.example_inputs("tiny", batch=2), **states, "step": 1}, keep="all")
    for name, value in values.items():
        tensor = graph.tensors[name]
        assert (tuple(value.shape), f"torch.{tensor.dtype}") == (tensor.shape, str(value.dtype)), name


def test_joining_with_a_tensor_without_elements_is_no_operator():
    def forward(self, x):
        return torch.cat([torch.empty(0), self.fc(x)], -1).square().sum()

    graph = assert_computes_as_eager(Model(forward), (x(),))
    assert not any(operator.kind == "aten.cat" for operator in graph.operators)
