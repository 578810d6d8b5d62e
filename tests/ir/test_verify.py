"""Graphs that mean nothing are refused, and the fault is shown."""

from dataclasses import replace

import pytest

from superscaler.errors import TraceError, VerificationError
from superscaler.ir.text import parse_graph
from superscaler.ir.verify import verify_graph

GOOD = """
graph good(x: float32[4, 3]) -> sum
parameter w: float32[5, 3]
F linear: float32[4, 5] = linear(x, w, None)  # fc model.py:7 call 1
F relu: float32[4, 5] = aten.relu(linear)  # - model.py:8 call 2
F sum: float32[] = aten.sum(relu)  # - model.py:9 call 3
"""

FAULTS = {
    "read before written": (
        ("aten.relu(linear)", "aten.relu(sum)"),
        r"(?s)'relu' reads 'sum', which nothing writes before it:.*-> relu = aten\.relu.*at: model\.py:8",
    ),
    "read but unknown": (
        ("aten.sum(relu)", "aten.sum(nothing)"),
        r"'sum' reads 'nothing', which nothing writes before it",
    ),
    "written twice": (
        ("F sum: float32[]", "F [again] relu: float32[4, 5] = aten.relu(linear)\nF sum: float32[]"),
        r"(?s)'again' writes 'relu', which is written already:.*-> relu = aten\.relu\(linear\)",
    ),
    "an activation from nowhere": (
        ("parameter w", "activation w"),
        r"'linear' reads 'w', which nothing writes before it",
    ),
    "one name for two operators": (
        ("F relu: float32[4, 5]", "F [linear] relu: float32[4, 5]"),
        r"(?s)'linear' has the name of an earlier one.*-> relu =",
    ),
    "returns what is not written": (
        ("-> sum", "-> mean"),
        r"nothing writes 'mean', which the graph 'good' returns",
    ),
}


def test_a_good_graph_passes():
    verify_graph(parse_graph(GOOD))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_shown(fault):
    (old, new), message = FAULTS[fault]
    assert old in GOOD
    with pytest.raises(VerificationError, match=message):
        verify_graph(parse_graph(GOOD.replace(old, new)))


SHAPES = {
    "an operator without a rule": (
        ("aten.relu(linear)", "mylib.act(linear)"),
        r"(?s)mylib\.act.*model\.py:8.*ss\.rule",
    ),
    "too few tensors": (
        ("linear(x, w, None)", "linear(x, None, None)"),
        r"(?s)the rule of linear does not fit.*model\.py:7",
    ),
    "sizes that disagree": (
        ("w: float32[5, 3]", "w: float32[5, 2]"),
        r"the rule of linear does not fit the operator 'linear'",
    ),
}


@pytest.mark.parametrize("fault", SHAPES)
def test_an_operator_that_does_not_fit_its_rule_is_named(fault):
    (old, new), message = SHAPES[fault]
    assert old in GOOD
    with pytest.raises(TraceError, match=message):
        verify_graph(parse_graph(GOOD.replace(old, new)))


def test_a_stored_tensor_is_not_overwritten():
    graph = parse_graph(GOOD)
    first, second, third = graph.operators
    with pytest.raises(VerificationError, match="'relu' writes 'w', which is written already"):
        verify_graph(graph.with_operators((first, replace(second, writes=("w",)), third)))


def test_a_tensor_that_is_not_described_is_refused():
    graph = parse_graph(GOOD)
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name != "relu"}
    with pytest.raises(VerificationError, match="'relu' writes 'relu', whose shape the graph does not tell"):
        verify_graph(replace(graph, tensors=tensors))


@pytest.mark.parametrize("table", ["gradients", "updates"])
def test_gradients_and_updates_must_be_written(table):
    with pytest.raises(VerificationError, match="nothing writes 'missing'"):
        verify_graph(replace(parse_graph(GOOD), **{table: {"w": "missing"}}))


def test_at_most_ten_operators_are_shown_around_a_fault():
    chain = "".join(f"F a{i + 1}: float32[4] = aten.relu(a{i})\n" for i in range(40))
    graph = parse_graph(f"graph chain(a0: float32[4]) -> a40\n{chain}F a3: float32[4] = aten.relu(a39)\n")
    with pytest.raises(VerificationError) as caught:
        verify_graph(graph)
    assert sum(" = aten.relu" in line for line in str(caught.value).splitlines()) <= 10
