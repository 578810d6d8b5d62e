"""Rules are found by experiment: of operators written here, whose rules are known from how they are written."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superscaler.ir.cut_experiment import CutExperiment
from superscaler.ir.find_rule import find_rule, ways_to_cut, why_false
from superscaler.ir.graph import Operator, Ref
from superscaler.ir.kinds import KINDS, Kind
from superscaler.ir.letters import RuleText
from superscaler.ir.sample_call import CallShape, NotRepeatable, NotRunnable


@pytest.fixture
def library():
    library = torch.library.Library("findtest", "DEF")
    yield library
    library._destroy()


def call_of(library, schema, function, *arguments, dtype=torch.float32):
    """A call of an operator made of `function`; tuples among the arguments are shapes of tensors."""
    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, function, "CompositeExplicitAutograd")
    values = []

    def as_ref(argument):
        if not isinstance(argument, (tuple, torch.Tensor)):
            return argument
        tensor = argument if isinstance(argument, torch.Tensor) else torch.ones(argument, dtype=dtype)
        values.append(tensor)
        return Ref(len(values) - 1)

    refs = tuple(map(as_ref, arguments))
    results = function(*(values[ref.index] if isinstance(ref, Ref) else ref for ref in refs))
    results = results if isinstance(results, tuple) else (results,)
    reads, writes = (
        tuple(f"{side}{i}" for i in range(n)) for side, n in (("r", len(values)), ("w", len(results)))
    )
    operator = Operator("call", f"findtest.{name}", reads, writes, refs)
    return CallShape(
        operator, tuple(tuple(v.shape) for v in values), tuple(v.dtype for v in values),
        tuple(tuple(r.shape) for r in results),
    )  # fmt: skip


def crossing(x, y):
    """Reads `y` whole for every row of `x`."""
    return x + y.sum(0, keepdim=True)


FUNCTIONS = {
    "pointwise": ("f(Tensor x, Tensor w) -> Tensor", lambda x, w: x * w, ((4, 6, 8), (8,)), "a b c, c -> a b c"),
    "contracted": ("f(Tensor x, Tensor w) -> Tensor", lambda x, w: x.T @ w, ((6, 4), (6, 8)), "a b, a c -> b c"),
    "three factors": (
        "f(Tensor x, Tensor w, Tensor v) -> Tensor",
        lambda x, w, v: torch.einsum("bi,ki,ko->bo", x, w, v), ((4, 6), (8, 6), (8, 9)), "a b!, c b!, c d -> a d",
    ),
    "square": ("f(Tensor x, Tensor w) -> Tensor", lambda x, w: x @ w, ((4, 4), (4, 4)), "a b, b c -> a c"),
    "additive": (
        "f(Tensor x, Tensor w, Tensor b) -> Tensor",
        lambda x, w, b: x @ w.T + b, ((6, 4), (8, 4), (8,)), "a b, c b, +c -> a c",
    ),
    "row by row": ("f(Tensor x) -> Tensor", lambda x: x.softmax(-1), ((4, 6),), "a b! -> a c!"),
    "largest": ("f(Tensor x) -> Tensor", lambda x: x.amax(0), ((4, 6),), "a b -> b:max"),
    "log-sum-exp": ("f(Tensor x) -> Tensor", lambda x: x.logsumexp(1), ((4, 6),), "a b -> a:logsumexp"),
    "mean": ("f(Tensor x) -> Tensor", lambda x: x.mean(1), ((4, 6),), "a b! -> a"),
    "transposed": ("f(Tensor x) -> Tensor", lambda x: x.permute(2, 0, 1).clone(), ((4, 6, 4),), "a b c -> c a b"),
    "heads split": (
        "f(Tensor x) -> Tensor",
        lambda x: x.unflatten(-1, (4, -1)).transpose(1, 2).clone(), ((2, 6, 12),), "a b (c! d) -> a e! b d",
    ),
    "two results": (
        "f(Tensor x) -> (Tensor, Tensor)", lambda x: (x * 2, x.sum(0)), ((4, 6),), "a b -> a b, b",
    ),
    "read whole": ("f(Tensor x, Tensor y) -> Tensor", crossing, ((4, 6), (9, 6)), "a b, c! b -> a b"),
    "scan": ("f(Tensor x) -> Tensor", lambda x: x.cumsum(0), ((4, 6),), "a! b -> c! b"),
    "with a size of one": ("f(Tensor x) -> Tensor", lambda x: x.exp(), ((4, 1, 6),), "a 1 b -> a 1 b"),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS)
def test_the_rule_is_found(library, case):
    schema, function, shapes, rule = FUNCTIONS[case]
    found = find_rule(call_of(library, schema, function, *shapes))
    assert letters_of(found.rule.text) >= letters_of(rule)
    if case not in ("three factors", "heads split", "read whole"):  # where more than the obvious can be cut
        assert found.rule.text == rule


def letters_of(text):
    """Which letters may be cut, as the places where they stand."""
    places = {}
    for number, term in enumerate(text.replace("->", ",").split(",")):
        for dim, token in enumerate(term.partition(":")[0].replace("+", "").split()):
            places.setdefault(token.strip("()"), set()).add((number, dim))
    return {
        frozenset(where) for letter, where in places.items() if not letter.endswith("!") and letter != "1"
    }


def test_a_shape_argument_is_found(library):
    call = call_of(
        library, "f(Tensor x, int[] shape) -> Tensor", lambda x, shape: x.expand(shape).clone(), (6,), [4, 6]
    )
    assert find_rule(call).rule == RuleText("a -> b a", 1)


def test_dims_that_split_are_found(library):
    call = call_of(
        library,
        "f(Tensor x, int[] shape) -> Tensor",
        lambda x, shape: x.reshape(shape).exp(),
        (4, 6, 8),
        [24, 8],
    )
    assert find_rule(call).rule == RuleText("a b c -> (a b) c", 1)


def test_a_rule_for_a_large_call_is_found_at_small_sizes(library):
    seen = []

    def scale(x, w):
        seen.append(x.numel())
        return x * w

    call = call_of(library, "f(Tensor x, Tensor w) -> Tensor", scale, (1, 1), (1,))
    large = CallShape(call.operator, ((1 << 16, 1 << 12), (1 << 12,)), call.dtypes, ((1 << 16, 1 << 12),))
    assert find_rule(large).rule.text == "a b, b -> a b"


def test_an_operator_in_single_precision_within_is_found_out(library):
    call = call_of(
        library,
        "f(Tensor x, Tensor w) -> Tensor",
        lambda x, w: (x.float() @ w.float()).to(x),
        (4, 64),
        (64, 6),
    )
    assert find_rule(call).rule.text == "a b, b c -> a c"


def test_a_random_operator_has_no_rule(library):
    call = call_of(library, "f(Tensor x) -> Tensor", lambda x: x + torch.rand_like(x), (4, 6))
    with pytest.raises(NotRepeatable):
        find_rule(call)


def test_the_random_numbers_of_the_user_are_left_alone(library):
    call = call_of(library, "f(Tensor x) -> Tensor", lambda x: x * 2, (4, 6))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    find_rule(call)
    assert torch.equal(torch.rand(2), expected)


def test_an_operator_that_cannot_run_is_told_from_one_without_cuts(library):
    call = call_of(library, "f(Tensor x) -> Tensor", lambda x: x * 2, (4, 6))
    library.define("g(Tensor x) -> Tensor")
    missing = CallShape(Operator("call", "findtest.g", ("r0",), ("w0",), (Ref(0),)), *list(fields(call))[1:])
    with pytest.raises(NotRunnable, match="NotImplementedError"):
        find_rule(missing)


def fields(call):
    return (call.operator, call.reads, call.dtypes, call.writes)


def test_an_operator_that_crashes_on_pieces_is_survived(library):
    """As kernels do that trust the sizes they are given: here, unless there are 6 rows."""

    def trusting(x):
        if x.shape[0] != 6:
            import ctypes

            ctypes.string_at(0)
        return x * 2

    call = call_of(library, "f(Tensor x) -> Tensor", trusting, (6, 4))
    assert find_rule(call).rule.text == "a! b -> c! b"


def test_a_true_rule_stands_and_a_false_one_does_not(library):
    call = call_of(library, "f(Tensor x) -> Tensor", lambda x: x.cumsum(0), (4, 6))
    assert why_false(call, RuleText("a! b -> a b")) == ""
    assert "'a'" in why_false(call, RuleText("a b -> a b"))


OPERANDS = ("ab", "bc", "abc", "ca", "c")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(OPERANDS), min_size=1, max_size=3), st.sets(st.sampled_from("abc")))
def test_einsums_are_found(library, operands, kept):
    """Products and sums of dims, with sizes that coincide: every letter of the einsum is found."""
    sizes = {"a": 4, "b": 4, "c": 6}
    result = "".join(sorted(kept & set("".join(operands))))
    equation = f"{','.join(operands)}->{result}"
    name = f"f{abs(hash(equation))}"
    schema = f"{name}({', '.join(f'Tensor x{i}' for i in range(len(operands)))}) -> Tensor"
    if hasattr(torch.ops.findtest, name):
        return
    shapes = [tuple(sizes[letter] for letter in operand) for operand in operands]
    call = call_of(library, schema, lambda *x: torch.einsum(equation, *x), *shapes)
    found = find_rule(call)
    expected = ", ".join(" ".join(operand) for operand in operands) + f" -> {' '.join(result) or '.'}"
    assert letters_of(found.rule.text) >= letters_of(expected.replace(" .", "")), found.rule.text


def test_what_is_found_holds_for_values_it_was_not_found_with(library):
    call = call_of(library, "f(Tensor x, Tensor w) -> Tensor", lambda x, w: torch.relu(x @ w), (8, 4), (4, 6))
    found = find_rule(call)
    KINDS["findtest.f"] = Kind(found.rule.text)
    try:
        torch.manual_seed(5)
        experiment = CutExperiment("findtest.f", torch.randn(8, 4).double(), torch.randn(4, 6).double())
        assert len(experiment.cuttable()) == 2
        for letter in experiment.cuttable():
            for way in ways_to_cut(experiment.sizes[letter]):
                torch.testing.assert_close(experiment.in_pieces(letter, way)[0], experiment.results[0])
    finally:
        del KINDS["findtest.f"]
