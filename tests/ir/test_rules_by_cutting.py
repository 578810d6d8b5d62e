"""Every row of the operator table tells the truth: an operator cut along any letter gives what it gives whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import TraceError
from superscaler.ir.cut_experiment import CutExperiment as Call
from superscaler.ir.float8 import WIDE
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.kinds import KINDS, declare_rule, is_linear, rule_of
from superscaler.ir.rules import RuleMismatch, bind
from superscaler.ir.shape_rules import regroup
from superscaler.ir.tensor import Role, Tensor
from tests.ir.rule_cases import CASES


def ways_to_cut(size):
    """Even and uneven, in two, three and four pieces."""
    ways = [(size // 2, size - size // 2), (1, size - 1), (size - 1, 1)]
    if size > 2:
        ways += [(1, 1, size - 2), (1, size - 2, 1)]
    if size > 3:
        ways += [(1, size - 3, 1, 1), (size // 4, size // 2 - size // 4, size - size // 2 - 1, 1)]
    return list(dict.fromkeys(ways))


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


BUILT_IN = tuple(KINDS)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""bfloat16 has three digits, and a sum of pieces is rounded once more per piece."""
WITHOUT_BFLOAT16 = {
    "aten._cdist_forward", "aten._cdist_backward", "aten.avg_pool3d", "aten.avg_pool3d_backward",
    *(f"aten._upsample_{way}2d_aa{suffix}" for way in ("bilinear", "bicubic") for suffix in ("", "_backward")),
}  # fmt: skip
"""Kinds of which torch has no such kernel on a CPU."""
BFLOAT16_ALONE = set(WIDE)
"""Kinds that multiply in float8. Their scales are powers of two, so that a piece of a row holds the numbers of the row
under any of them; the pieces of these cases hold none that is too small for that."""
TYPES = [
    (kind, dtype)
    for dtype in TOLERANCE
    for kind in BUILT_IN
    if kind not in (WITHOUT_BFLOAT16 if dtype == torch.bfloat16 else BFLOAT16_ALONE)
]


@pytest.mark.parametrize(("kind", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_pieces_make_the_whole(kind, dtype, record_property):
    assert kind in CASES, f"{kind} has a row in KINDS and no sample call in tests/ir/rule_cases: add one"
    torch.manual_seed(0)
    is_first = dtype == torch.float64 or kind in BFLOAT16_ALONE
    count, most = 0, None if is_first else 2
    for case in CASES[kind]:
        call = case.call(kind, dtype)
        for letter in call.cuttable():
            for pieces in ways_to_cut(call.sizes[letter])[:most]:
                for actual, expected in zip(call.in_pieces(letter, pieces), call.results, strict=True):
                    close(actual, expected, TOLERANCE[dtype])
                count += 1
    record_property("cut_experiments", [kind, count])


@pytest.mark.parametrize("kind", [kind for kind in BUILT_IN if KINDS[kind].linear])
def test_linear_kinds_map_summands_to_summands(kind):
    torch.manual_seed(0)
    calls = [case.call(kind) for case in CASES[kind]]
    linear = [call for call in calls if is_linear(call.operator) and call.values[0].is_floating_point()]
    assert linear
    for call in linear:
        shares = [torch.randn_like(value) for value in call.values]
        rests = [value - share for value, share in zip(call.values, shares, strict=True)]
        parts = [call.run(reads) for reads in (shares, rests)]
        for first, second, whole in zip(*parts, call.results, strict=True):
            close(first + second, whole)


@pytest.mark.parametrize("kind", [kind for kind in BUILT_IN if KINDS[kind].linear_in])
def test_kinds_that_are_linear_in_some_reads_map_summands_of_those_to_summands(kind):
    torch.manual_seed(0)
    for call in (case.call(kind) for case in CASES[kind]):
        shares = [
            torch.randn_like(value) if i in KINDS[kind].linear_in else value
            for i, value in enumerate(call.values)
        ]
        rests = [
            value - shares[i] if i in KINDS[kind].linear_in else value for i, value in enumerate(call.values)
        ]
        parts = [call.run(reads) for reads in (shares, rests)]
        for first, second, whole in zip(*parts, call.results, strict=True):
            close(first + second, whole)


@pytest.mark.parametrize("kind", ["aten.add.Tensor", "aten.sub.Tensor"])
def test_adding_a_number_is_not_linear(kind):
    assert not is_linear(Call(kind, torch.randn(3, dtype=torch.float64), 1).operator)
    assert is_linear(
        Call(kind, torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)).operator
    )


def test_every_kind_that_can_be_cut_somewhere_is_cut_here():
    """Guards the proof itself: a sample so small, or a rule so strict, that nothing is cut proves nothing."""
    made = {"aten.arange", "aten.arange.start", "aten.arange.start_step", "aten.eye", "aten.eye.m", "aten.linspace",
            "aten.tril_indices", "aten.triu_indices"}  # fmt: skip
    looked_at_as_one_row = {"as_strided", "as_strided_scatter", "aten.masked_scatter", "aten.trace"}
    reduced = {"aten.min", "aten.median", "aten.prod", "aten.any", "aten.all", "aten.norm.Scalar"}
    of_numbers = {"total", "gradient_norm", "clip_coefficient", "loss_scale", "overflows", "unscaled_norm", "unscale",
                  "inverse_scale", "count_updates", "next_loss_scale"}  # fmt: skip
    whole = made | looked_at_as_one_row | reduced | of_numbers
    assert {kind for kind in BUILT_IN if not any(case.call(kind).cuttable() for case in CASES[kind])} == whole


def test_letters_inside_a_merged_dim_are_cut():
    call = Call("reshape", torch.randn(3, 4, 6, dtype=torch.float64), [12, 6])
    merged = call.rule.writes[0].dims[0]
    assert len(merged) == 2
    assert set(merged) <= set(call.cuttable())


def test_a_wrong_rule_is_found_out():
    declare_rule("mylib.cumsum", "a b -> a b", "torch.cumsum")
    try:
        call = Call("mylib.cumsum", torch.randn(3, 4, dtype=torch.float64), 1)
        close(call.in_pieces("a", (1, 2))[0], call.results[0])
        with pytest.raises(AssertionError):
            close(call.in_pieces("b", (2, 2))[0], call.results[0])
    finally:
        del KINDS["mylib.cumsum"]


def test_a_declared_rule_is_used():
    declare_rule("mylib.dot", "n, n -> .", "torch.dot")
    try:
        call = Call("mylib.dot", torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64))
        assert call.cuttable() == ["n"]
        close(call.in_pieces("n", (2, 3))[0], call.results[0])
    finally:
        del KINDS["mylib.dot"]


def test_an_operator_without_a_rule_is_refused_with_the_remedy():
    operator = Operator("f", "mylib.f", ("x",), ("f",), (Ref(0),), source="model.py:3")
    tensors = {name: Tensor(name, (2,), "float32", Role.ACTIVATION) for name in ("x", "f")}
    with pytest.raises(TraceError, match=r"(?s)'f'.*mylib\.f.*model\.py:3.*ss\.rule\(.*mylib\.f"):
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
    call = Call("reshape", torch.randn(source), list(target))
    for letter in call.cuttable():
        size = call.sizes[letter]
        first = random.randint(1, size - 1)
        assert torch.equal(call.in_pieces(letter, (first, size - first))[0], call.results[0])
