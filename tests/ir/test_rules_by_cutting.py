"""Every row of the operator table tells the truth: an operator cut along any letter gives what it gives whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import TraceError
from superscaler.ir.cut_experiment import CutExperiment as Call
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.kinds import KINDS, declare_rule, is_linear, rule_of
from superscaler.ir.rules import RuleMismatch, bind
from superscaler.ir.shape_rules import regroup
from superscaler.ir.tensor import Role, Tensor

F64 = torch.float64


def real(*shape):
    return torch.randn(shape, dtype=F64)


def positive(*shape):
    return torch.rand(shape, dtype=F64) + 0.5


def index(size, *shape):
    return torch.randint(size, shape)


def flags(*shape):
    return torch.rand(shape) < 0.5


def layer_norm_saved(x, dims):
    _, mean, rstd = torch.native_layer_norm(x, dims, None, None, 1e-5)
    return mean, rstd


def attention_saved(q, k, v, mask, causal):
    call = Call("attention", q, k, v, mask, causal=causal, scale=0.5)
    return call.results


def attention_backward(mask, causal):
    q, k, v = real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4)
    out, lse = attention_saved(q, k, v, mask, causal)
    return Call("attention_backward", real(2, 3, 5, 4), q, k, v, out, lse, mask, causal=causal, scale=0.5)


def softmax_backward(kind, forward, *shape):
    y = forward(real(*shape), 1)
    return Call(kind, real(*shape), y, 1, "torch.float64")


def cross_entropy_backward():
    logits, target = real(5, 6), torch.tensor([0, 5, -100, 3, 2])
    return Call("cross_entropy_backward", real(5), real(5), logits, target, logits.logsumexp(1))


def layer_norm_backward(mask, weight=True):
    x = real(3, 4, 6)
    mean, rstd = layer_norm_saved(x, [6])
    affine = (real(6), real(6)) if weight else (None, None)
    return Call("aten.native_layer_norm_backward", real(3, 4, 6), x, [6], mean, rstd, *affine, mask)


def batch_norm_call(kind, weight):
    x, mean, rstd = real(6, 4, 5), real(4), positive(4)
    affine = real(4) if weight else None
    if kind == "batch_norm":
        return Call(kind, x, mean, rstd, affine, affine)
    return Call(kind, real(6, 4, 5), x, mean, rstd, affine, real(4), real(4), count=30.0)


CASES = {
    "channel_sums": [lambda: Call("channel_sums", real(6, 4, 5)), lambda: Call("channel_sums", real(6, 4))],
    "channel_squares": [lambda: Call("channel_squares", real(6, 4, 5, 3), real(4))],
    "batch_norm": [lambda: batch_norm_call("batch_norm", True), lambda: batch_norm_call("batch_norm", False)],
    "batch_norm_sums": [lambda: Call("batch_norm_sums", real(6, 4, 5), real(6, 4, 5), real(4), positive(4))],
    "batch_norm_input_gradient": [
        lambda: batch_norm_call("batch_norm_input_gradient", True),
        lambda: batch_norm_call("batch_norm_input_gradient", False),
    ],
    "linear": [
        lambda: Call("linear", real(3, 4, 6), real(5, 6), real(5)),
        lambda: Call("linear", real(4, 6), real(5, 6), None),
    ],
    "linear_input_gradient": [lambda: Call("linear_input_gradient", real(3, 4, 5), real(5, 6))],
    "linear_weight_gradient": [lambda: Call("linear_weight_gradient", real(3, 4, 5), real(3, 4, 6))],
    "linear_bias_gradient": [lambda: Call("linear_bias_gradient", real(3, 4, 5))],
    "attention": [
        lambda: Call("attention", real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), None, causal=True, scale=0.5),
        lambda: Call("attention", real(2, 3, 5, 4), real(2, 3, 7, 4), real(2, 3, 7, 6), None, causal=False, scale=1.0),
        lambda: Call("attention", real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 1, 5, 5), causal=False, scale=0.5),
        lambda: Call("attention", real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), real(5, 5), causal=False, scale=0.5),
    ],
    "attention_backward": [
        lambda: attention_backward(None, True),
        lambda: attention_backward(real(1, 3, 5, 5), False),
    ],
    "cross_entropy": [lambda: Call("cross_entropy", real(5, 6), torch.tensor([0, 5, -100, 3, 2]))],
    "cross_entropy_backward": [cross_entropy_backward],
    "embedding": [lambda: Call("embedding", real(7, 4), index(7, 3, 5))],
    "embedding_backward": [lambda: Call("embedding_backward", real(3, 5, 4), index(7, 3, 5), num_rows=7)],
    "aten.embedding_dense_backward": [
        lambda: Call("aten.embedding_dense_backward", real(3, 5, 4), index(7, 3, 5), 7, 2, False)
    ],
    "dropout": [lambda: Call("dropout", real(3, 4, 5), torch.tensor(3), p=0.4, key=7)],
    "dropout_backward": [lambda: Call("dropout_backward", real(3, 4, 5), torch.tensor(3), p=0.4, key=7)],
    "adamw": [
        lambda: Call("adamw", real(5, 4), real(5, 4), real(5, 4), positive(5, 4), torch.tensor(3),
                     lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
    ],
    "sgd": [
        lambda: Call("sgd", real(5, 4), real(5, 4), torch.tensor(3), lr=0.1, momentum=0.0, weight_decay=0.1),
        lambda: Call("sgd", real(5, 4), real(5, 4), real(5, 4), torch.tensor(3), lr=0.1, momentum=0.9, weight_decay=0.0),
    ],
    "aten.mm": [lambda: Call("aten.mm", real(3, 4), real(4, 5))],
    "aten.bmm": [lambda: Call("aten.bmm", real(2, 3, 4), real(2, 4, 5))],
    "aten.addmm": [lambda: Call("aten.addmm", real(5), real(3, 4), real(4, 5))],
    "aten.native_layer_norm": [
        lambda: Call("aten.native_layer_norm", real(3, 4, 6), [6], real(6), real(6), 1e-5),
        lambda: Call("aten.native_layer_norm", real(3, 1, 4, 6), [4, 6], real(4, 6), None, 1e-5),
        lambda: Call("aten.native_layer_norm", real(3, 6), [6], None, None, 1e-5),
    ],
    "aten.native_layer_norm_backward": [
        lambda: layer_norm_backward([True, True, True]),
        lambda: layer_norm_backward([True, False, False], weight=False),
        lambda: layer_norm_backward([False, True, True]),
    ],
    "aten._softmax": [lambda: Call("aten._softmax", real(3, 4, 5), -1, False), lambda: Call("aten._softmax", real(3, 4, 5), 1, False)],
    "aten._softmax_backward_data": [lambda: softmax_backward("aten._softmax_backward_data", torch.softmax, 3, 4, 5)],
    "aten._log_softmax": [lambda: Call("aten._log_softmax", real(3, 4), 1, False)],
    "aten._log_softmax_backward_data": [
        lambda: softmax_backward("aten._log_softmax_backward_data", torch.log_softmax, 3, 4, 1)
    ],
    "aten.sum": [lambda: Call("aten.sum", real(3, 4)), lambda: Call("aten.sum", flags(3, 4))],
    "aten.sum.dim_IntList": [
        lambda: Call("aten.sum.dim_IntList", real(3, 4, 5), [0, -1], False),
        lambda: Call("aten.sum.dim_IntList", real(3, 4, 5), [1], True),
        lambda: Call("aten.sum.dim_IntList", real(3, 1, 5), [1, 2]),
        lambda: Call("aten.sum.dim_IntList", real(3, 4), [], False),
    ],
    "reshape": [
        lambda: Call("reshape", real(3, 4, 6), [12, 6]),
        lambda: Call("reshape", real(12, 6), [3, 4, 2, 3]),
        lambda: Call("reshape", real(3, 4, 1, 6), [1, 12, 2, 3]),
        lambda: Call("reshape", real(4, 6), [2, 12]),
        lambda: Call("reshape", real(4, 6), [3, 8]),
        lambda: Call("reshape", real(1, 1), []),
    ],
    "aten.t": [lambda: Call("aten.t", real(3, 4))],
    "aten.transpose.int": [lambda: Call("aten.transpose.int", real(3, 4, 5), 1, -1)],
    "aten.permute": [lambda: Call("aten.permute", real(3, 4, 1, 5), [2, 0, -1, 1])],
    "aten.expand": [
        lambda: Call("aten.expand", real(3, 1, 5), [2, 3, 4, 5]),
        lambda: Call("aten.expand", real(3, 1), [-1, 4]),
        lambda: Call("aten.expand", real(), [3]),
    ],
    "aten.slice.Tensor": [
        lambda: Call("aten.slice.Tensor", real(3, 6, 4), 1, 2, 5),
        lambda: Call("aten.slice.Tensor", real(3, 6), 0, 0, 9223372036854775807),
        lambda: Call("aten.slice.Tensor", real(3, 6), -1, 0, 6, 2),
        lambda: Call("aten.slice.Tensor", real(3, 6), 1, 2, 3),
    ],
    "aten.select.int": [lambda: Call("aten.select.int", real(3, 6, 4), 1, 2), lambda: Call("aten.select.int", real(3, 4), -1, -2)],
    "aten.slice_backward": [lambda: Call("aten.slice_backward", real(3, 2, 4), [3, 6, 4], 1, 2, 4, 1)],
    "aten.select_backward": [lambda: Call("aten.select_backward", real(3, 4), [3, 6, 4], 1, 2)],
    "aten.slice_scatter": [lambda: Call("aten.slice_scatter", real(3, 6), real(3, 2), 1, 1, 3)],
    "aten.select_scatter": [lambda: Call("aten.select_scatter", real(3, 6), real(3), 1, 1)],
    "aten.split.Tensor": [lambda: Call("aten.split.Tensor", real(3, 7), 3, 1), lambda: Call("aten.split.Tensor", real(4, 3), 2)],
    "aten.split_with_sizes": [lambda: Call("aten.split_with_sizes", real(3, 7), [2, 1, 4], -1)],
    "aten.unbind.int": [lambda: Call("aten.unbind.int", real(4, 3, 5), 1), lambda: Call("aten.unbind.int", real(2, 5))],
    "aten.stack": [lambda: Call("aten.stack", [real(3, 5), real(3, 5)], 1), lambda: Call("aten.stack", [real(3), real(3)])],
    "aten.cat": [lambda: Call("aten.cat", [real(3, 2, 4), real(3, 1, 4)], 1), lambda: Call("aten.cat", [real(3), real(2)])],
    "aten.arange": [lambda: Call("aten.arange", 5)],
    "aten.arange.start": [lambda: Call("aten.arange.start", 2, 7)],
    "aten.arange.start_step": [lambda: Call("aten.arange.start_step", 1, 9, 2)],
    "full": [lambda: Call("full", [3, 1, 4], 2.5, dtype="torch.float64")],
    "aten.tril": [lambda: Call("aten.tril", real(3, 4, 5), 1)],
    "aten.triu": [lambda: Call("aten.triu", real(3, 4, 5))],
}  # fmt: skip


def one(kind, make=real, *arguments, **keywords):
    return [lambda: Call(kind, make(3, 1, 4), *arguments, **keywords)]


def two(kind, make=real):
    """Two tensors of one shape, of broadcasting shapes and of fewer dims; the same tensor twice."""
    return [
        lambda: Call(kind, make(3, 4), make(3, 4)),
        lambda: Call(kind, make(3, 1, 4), make(5, 1)),
        lambda: Call(kind, make(4), make(3, 4)),
        lambda: Call(kind, make(3, 4), make()),
        lambda: Call(kind, *[make(3, 4)] * 2),
    ]


def whole_numbers(*shape):
    return index(3, *shape)


for name in ("neg", "abs", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "gelu", "silu", "erf"):
    CASES[f"aten.{name}"] = one(f"aten.{name}")
for name in ("log", "sqrt", "rsqrt", "reciprocal"):
    CASES[f"aten.{name}"] = one(f"aten.{name}", positive)
for name in ("add", "sub", "mul", "div"):
    CASES[f"aten.{name}.Tensor"] = two(f"aten.{name}.Tensor") + one(f"aten.{name}.Tensor", real, 3)
    CASES[f"aten.{name}.Scalar"] = one(f"aten.{name}.Scalar", real, 3)
CASES["aten.add.Tensor"].append(lambda: Call("aten.add.Tensor", real(3, 4), real(4), alpha=2.0))
CASES["aten.rsub.Scalar"] = one("aten.rsub.Scalar", real, 3)
CASES["aten.pow.Tensor_Scalar"] = one("aten.pow.Tensor_Scalar", positive, 3)
CASES["aten.pow.Tensor_Tensor"] = two("aten.pow.Tensor_Tensor", positive)
CASES["aten.clamp"] = one("aten.clamp", real, -0.5, 0.5)
for name in ("maximum", "minimum"):
    CASES[f"aten.{name}"] = two(f"aten.{name}")
for name in ("gelu_backward", "silu_backward", "tanh_backward", "sigmoid_backward"):
    CASES[f"aten.{name}"] = two(f"aten.{name}")[:1]
CASES["aten.threshold_backward"] = [lambda: Call("aten.threshold_backward", real(3, 4), real(3, 4), 0)]
CASES["aten.where.self"] = [
    lambda: Call("aten.where.self", flags(3, 1, 4), real(5, 1), real()),
    lambda: Call("aten.where.self", flags(3, 4), real(3, 4), real(3, 4)),
]
CASES["aten.masked_fill.Scalar"] = [lambda: Call("aten.masked_fill.Scalar", real(2, 3, 4), flags(3, 1), 7.0)]
CASES["aten.masked_fill.Tensor"] = [
    lambda: Call("aten.masked_fill.Tensor", real(2, 3, 4), flags(3, 4), real())
]
for name in ("logical_not", "bitwise_not"):
    CASES[f"aten.{name}"] = one(f"aten.{name}", flags)
for name in ("logical_and", "bitwise_and.Tensor", "bitwise_or.Tensor"):
    CASES[f"aten.{name}"] = two(f"aten.{name}", flags)
for name in ("eq", "ne", "lt", "le", "gt", "ge"):
    CASES[f"aten.{name}.Scalar"] = one(f"aten.{name}.Scalar", whole_numbers, 1)
    CASES[f"aten.{name}.Tensor"] = two(f"aten.{name}.Tensor", whole_numbers)
CASES["aten._to_copy"] = one("aten._to_copy", real, dtype="torch.float32")
CASES["aten.fill.Tensor"] = [lambda: Call("aten.fill.Tensor", real(3, 4), real())]
CASES["aten.fill.Scalar"] = one("aten.fill.Scalar", real, 2.0)


def ways_to_cut(size):
    """Even and uneven, in two and three pieces."""
    ways = [(size // 2, size - size // 2), (1, size - 1), (size - 1, 1)]
    if size > 2:
        ways += [(1, 1, size - 2), (1, size - 2, 1)]
    return sorted(set(ways))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


BUILT_IN = tuple(KINDS)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_pieces_make_the_whole(kind):
    assert kind in CASES, f"{kind} has a row in KINDS and no sample call in this file: add one"
    torch.manual_seed(0)
    for make in CASES[kind]:
        call = make()
        for letter in call.cuttable():
            for pieces in ways_to_cut(call.sizes[letter]):
                for actual, expected in zip(call.in_pieces(letter, pieces), call.results, strict=True):
                    close(actual, expected)


@pytest.mark.parametrize("kind", [kind for kind in BUILT_IN if KINDS[kind].linear])
def test_linear_kinds_map_summands_to_summands(kind):
    torch.manual_seed(0)
    calls = [make() for make in CASES[kind]]
    linear = [call for call in calls if is_linear(call.operator) and call.values[0].is_floating_point()]
    assert linear
    for call in linear:
        shares = [torch.randn_like(value) for value in call.values]
        rests = [value - share for value, share in zip(call.values, shares, strict=True)]
        parts = [call.run(reads) for reads in (shares, rests)]
        for first, second, whole in zip(*parts, call.results, strict=True):
            close(first + second, whole)


@pytest.mark.parametrize("kind", ["aten.add.Tensor", "aten.sub.Tensor"])
def test_adding_a_number_is_not_linear(kind):
    assert not is_linear(Call(kind, real(3), 1).operator)
    assert is_linear(Call(kind, real(3), real(3)).operator)


def test_every_kind_that_can_be_cut_somewhere_is_cut_here():
    """Guards the proof itself: a sample so small, or a rule so strict, that nothing is cut proves nothing."""
    whole = {"aten.arange", "aten.arange.start", "aten.arange.start_step"}
    assert {kind for kind in BUILT_IN if not any(make().cuttable() for make in CASES[kind])} == whole


def test_letters_inside_a_merged_dim_are_cut():
    call = Call("reshape", real(3, 4, 6), [12, 6])
    merged = call.rule.writes[0].dims[0]
    assert len(merged) == 2
    assert set(merged) <= set(call.cuttable())


def test_a_wrong_rule_is_found_out():
    declare_rule("aten.cumsum", "a b -> a b", "torch.cumsum")
    try:
        call = Call("aten.cumsum", real(3, 4), 1)
        close(call.in_pieces("a", (1, 2))[0], call.results[0])
        with pytest.raises(AssertionError):
            close(call.in_pieces("b", (2, 2))[0], call.results[0])
    finally:
        del KINDS["aten.cumsum"]


def test_a_declared_rule_is_used():
    declare_rule("aten.dot", "n, n -> .", "torch.dot")
    try:
        call = Call("aten.dot", real(5), real(5))
        assert call.cuttable() == ["n"]
        close(call.in_pieces("n", (2, 3))[0], call.results[0])
    finally:
        del KINDS["aten.dot"]


def test_an_operator_without_a_rule_is_refused_with_the_remedy():
    operator = Operator("f", "mylib.f", ("x",), ("f",), (Ref(0),), source="model.py:3")
    tensors = {name: Tensor(name, (2,), "float32", Role.ACTIVATION) for name in ("x", "f")}
    with pytest.raises(TraceError, match=r"(?s)'f'.*mylib\.f.*model\.py:3.*declare_rule\(\"mylib\.f\""):
        rule_of(operator, Graph("g", tensors, (operator,), ("x",), ("f",)))


@pytest.mark.parametrize(
    ("rule", "reads", "writes", "message"),
    [
        ("a, a -> a", [(2,)], [(2,)], "is for 2 -> 1 tensors, not 1 -> 1"),
        ("a b", [(2, 3)], [], "is for 1 -> 0 tensors, not 1 -> 0"),
        ("a b -> a b", [(2,)], [(2, 3)], "does not fit a tensor of 1 dims"),
        ("*b a *c -> a", [(2, 3)], [(2,)], "does not fit a tensor of 2 dims"),
        ("a b -> b a", [(2, 3)], [(2, 3)], "has 2 elements"),
        ("1 a -> a", [(2, 3)], [(3,)], "has 2 elements"),
        ("(a b) -> a", [(6,)], [(4,)], "has 6 elements"),
        ("(a b) -> .", [(6,)], [()], "has 6 elements"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(rule, reads, writes, message):
    with pytest.raises(RuleMismatch, match=message):
        bind(rule, reads, writes)


def test_letters_of_a_merged_dim_get_their_sizes_from_the_dims_that_split_it():
    rule, sizes = bind("(a b) c -> a b c", [(6, 4)], [(2, 3, 4)])
    assert sizes == {"a": 2, "b": 3, "c": 4}
    assert rule.reads[0].letters == ("a", "b", "c")


def test_marks_are_read():
    rule, _ = bind("+n, m k!, v@ k -> m n:max", [(3,), (4, 5), (6, 5)], [(4, 3)])
    assert [term.additive for term in rule.reads] == [True, False, False]
    assert (rule.fixed, rule.indexed, rule.writes[0].reducer) == ({"k"}, {"v"}, "max")


FACTORS = st.lists(st.sampled_from([1, 2, 2, 3, 5]), max_size=5)


@st.composite
def reshapes(draw):
    """Two shapes with the same number of elements: the same factors, grouped (and shuffled) differently."""
    factors = draw(FACTORS)

    def group(numbers):
        shape, run = [], 1
        for number in numbers:
            run *= number
            if draw(st.booleans()):
                shape, run = [*shape, run], 1
        return tuple([*shape, run] if run > 1 else shape)

    return group(factors), group(draw(st.permutations(factors)) if draw(st.booleans()) else factors)


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_a_letter_of_a_reshape_is_the_same_elements_on_both_sides(shapes):
    """By index arithmetic: coordinates of element number i along a letter agree in source and target."""
    source, target = shapes
    operator = Operator("r", "reshape", ("x",), ("r",), (Ref(0), list(target)))
    rule, sizes = bind(regroup(operator, [source], [target]), [source], [target])
    count = torch.Size(source).numel()
    numbers = torch.arange(count)
    coordinates = []
    for term in (rule.reads[0], rule.writes[0]):
        rest, table = numbers, {}
        for letter in reversed(term.letters):
            table[letter], rest = rest % sizes[letter], rest // sizes[letter]
        coordinates.append(table)
    shared = set(coordinates[0]) & set(coordinates[1])
    assert all(torch.equal(coordinates[0][letter], coordinates[1][letter]) for letter in shared)
    assert (set(coordinates[0]) ^ set(coordinates[1])) <= rule.fixed
    if any(size > 1 for size in source) and source == target:
        assert not rule.fixed


@settings(max_examples=100, deadline=None)
@given(reshapes(), st.randoms(use_true_random=False))
def test_random_reshapes_are_cut_along_every_letter(shapes, random):
    source, target = shapes
    call = Call("reshape", torch.randn(source, dtype=F64), list(target))
    for letter in call.cuttable():
        size = call.sizes[letter]
        first = random.randint(1, size - 1)
        assert torch.equal(call.in_pieces(letter, (first, size - first))[0], call.results[0])
