"""Sizes that vary compute as the numbers they stand for, and are equal exactly where they always are."""

import copy
import pickle

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import SizeError
from superscaler.ir.size import (
    Requirement,
    Size,
    as_python,
    at_sizes,
    bind_sizes,
    evaluate,
    exact_quotient,
    largest,
    smallest,
    symbol,
)

HINTS = {"batch": 8, "seq": 12, "heads": 6}
BATCH, SEQ, HEADS = (symbol(name, hint) for name, hint in HINTS.items())
numbers = st.fixed_dictionaries({name: st.integers(1, 60) for name in HINTS})


def operations(operands):
    pairs = st.tuples(operands, operands)
    return st.one_of(
        pairs.map(lambda p: ("+", *p)), pairs.map(lambda p: ("-", *p)), pairs.map(lambda p: ("*", *p)),
        pairs.map(lambda p: ("min", *p)), pairs.map(lambda p: ("max", *p)),
        st.tuples(operands, st.integers(1, 7)).map(lambda p: ("//", *p)),
        st.tuples(operands, st.integers(1, 7)).map(lambda p: ("%", *p)),
    )  # fmt: skip


leaves = st.one_of(st.sampled_from(list(HINTS)), st.integers(-9, 9))
formulas = st.recursive(leaves, operations, max_leaves=8)


def compute(formula, values):
    """A formula on numbers, on Sizes, or on sympy's symbols."""
    if isinstance(formula, str):
        return values[formula]
    if isinstance(formula, int):
        return formula
    sign, first, second = formula[0], compute(formula[1], values), compute(formula[2], values)
    match sign:
        case "+":
            return first + second
        case "-":
            return first - second
        case "*":
            return first * second
        case "//":
            return first // second
        case "%":
            return first % second
        case "min":
            return smallest(first, second)
        case _:
            return largest(first, second)


SYMBOLS = {"batch": BATCH, "seq": SEQ, "heads": HEADS}


@settings(deadline=None)
@given(formulas, numbers)
def test_a_size_is_its_formula_at_every_value(formula, values):
    size = compute(formula, SYMBOLS)
    assert int(size) == compute(formula, HINTS)
    assert at_sizes(size, values) == compute(formula, values)


@settings(deadline=None)
@given(formulas)
def test_text_is_read_back(formula):
    size = compute(formula, SYMBOLS)
    assert evaluate(f"({size}, 4)", SYMBOLS) == (size, 4)
    again = evaluate(str(size), SYMBOLS)
    assert again == size
    assert type(again) is type(size)
    assert int(again) == int(size)


@settings(deadline=None)
@given(formulas, numbers)
def test_python_source_computes_the_size_under_other_names(formula, values):
    source = as_python(compute(formula, SYMBOLS), lambda name: f"{name}_size")
    names = {f"{name}_size": value for name, value in values.items()}
    assert eval(source, {"min": min, "max": max}, names) == compute(formula, values)


polynomials = st.recursive(
    leaves,
    lambda o: st.tuples(st.sampled_from("+-*"), o, o),
    max_leaves=8,
)


@settings(deadline=None)
@given(polynomials, polynomials)
def test_polynomials_are_equal_exactly_where_sympy_says_so(first, second):
    names = {name: sympy.Symbol(name) for name in HINTS}
    is_same = sympy.expand(compute(first, names) - compute(second, names)) == 0
    a, b = compute(first, SYMBOLS), compute(second, SYMBOLS)
    assert (a == b) is is_same
    assert (a != b) is not is_same
    if is_same:
        assert hash(a) == hash(b)
        assert str(a) == str(b)


@settings(deadline=None)
@given(polynomials, polynomials)
def test_a_product_is_divided_by_a_factor_exactly(first, second):
    a, b = compute(first, SYMBOLS), compute(second, SYMBOLS)
    if b != 0 and int(b) != 0:
        assert (a * b) // b == a
        assert (a * b) % b == 0


@settings(deadline=None)
@given(st.sampled_from([BATCH, SEQ * HEADS, 2 * BATCH + 6]), st.integers(1, 12))
def test_pieces_add_up_to_the_whole(size, count):
    pieces = [exact_quotient(size, count)] * count
    assert sum(pieces) == size
    assert pieces[0] * count == size


def test_a_size_is_no_number_it_happens_to_be():
    assert symbol("batch", 8) == BATCH
    assert BATCH != 8
    assert BATCH != 8
    assert len({BATCH, 8, SEQ, symbol("batch", 8)}) == 3
    assert BATCH % 4 != 0
    assert not BATCH % 4
    assert BATCH - BATCH == 0
    assert type(BATCH - BATCH) is int
    assert 5 < BATCH < SEQ


def test_floats_take_the_example():
    assert BATCH * 0.5 == 4.0
    assert 0.5 + BATCH == 8.5
    assert BATCH / 2 == 4.0
    assert [0] * symbol("two", 2) == [0, 0]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (2 * BATCH * SEQ + 1, "2 * batch * seq + 1"),
        (SEQ - 1, "seq - 1"),
        (1 - SEQ, "-seq + 1"),
        (exact_quotient(BATCH, 2), "batch / 2"),
        (exact_quotient(BATCH + SEQ, 2), "(batch + seq) / 2"),
        (exact_quotient(3 * BATCH * SEQ, 4), "3 * batch * seq / 4"),
        ((SEQ + 1) // 3, "(seq + 1) // 3"),
        (SEQ // 3 + 1, "(seq // 3) + 1"),
        (2 * (SEQ // 3), "2 * (seq // 3)"),
        (smallest(SEQ, 32) * BATCH, "batch * min(32, seq)"),
        (BATCH * BATCH, "batch * batch"),
    ],
)
def test_sizes_read_well(size, text):
    assert str(size) == f"{size}" == repr(size) == text


def test_sizes_are_copied_whole():
    for twin in (copy.deepcopy(BATCH * SEQ), pickle.loads(pickle.dumps(BATCH * SEQ))):
        assert isinstance(twin, Size)
        assert twin == BATCH * SEQ
        assert int(twin) == 96


def test_at_sizes_reaches_into_everything():
    value = (BATCH, [SEQ, {"x": BATCH * SEQ}], Requirement("batch > 1", "x"), "text")
    assert at_sizes(value, {"batch": 2, "seq": 3}) == (
        2,
        [3, {"x": 6}],
        Requirement("batch > 1", "x"),
        "text",
    )


@pytest.mark.parametrize(
    "text", ["batch +", "other", "f(batch)", "batch.real", "__import__('os')", "[batch]"]
)
def test_only_expressions_of_sizes_are_evaluated(text):
    with pytest.raises(ValueError, match="is no expression of"):
        evaluate(text, {"batch": 2})


DECLARED = {"tokens": (BATCH, SEQ), "mask": (BATCH, 4)}


def test_symbols_take_the_values_of_the_inputs():
    assert bind_sizes(DECLARED, {"tokens": (3, 5), "mask": (3, 4)}, (), "x") == {"batch": 3, "seq": 5}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"tokens": (3, 5), "mask": (2, 4)}, r"batch is 3 in dim 0 of 'tokens' \[3, 5\], but 2 in dim 0 of 'mask'"),
        ({"tokens": (3, 5), "mask": (3, 5)}, r"'mask' of x is \[batch, 4\], not \[3, 5\](.|\n)*make it 4"),
        ({"tokens": (3,), "mask": (3, 4)}, "give it 2 dims"),
        ({"tokens": (3, 0), "mask": (3, 4)}, "seq is 0 in dim 1 of 'tokens'"),
        ({"tokens": (4, 9), "mask": (4, 4)}, r"x needs seq <= 8, but seq is 9 \(dim 1 of 'tokens'(.|\n)*at: gpt.py:4"),
        ({"tokens": (3, 5), "mask": (3, 4)}, r"x needs batch % 2 == 0, but batch is 3(.|\n)*remedy"),
    ],
)  # fmt: skip
def test_inputs_of_other_sizes_are_refused(shapes, message):
    requirements = (Requirement("seq <= 8", "gpt.py:4"), Requirement("batch % 2 == 0", "the plan"))
    with pytest.raises(SizeError, match=message):
        bind_sizes(DECLARED, shapes, requirements, "x")
