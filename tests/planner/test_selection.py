"""Selections name what a reader of the model would expect."""

import pytest

from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.planner.selection import select, split
from tests.planner.samples import gpt_graph


@pytest.fixture(scope="module")
def graph():
    return gpt_graph(layers=5)


@pytest.fixture(scope="module")
def axes(graph):
    return find_axes(graph)


def test_a_module_takes_what_lies_below_it_in_all_phases(graph, axes):
    chosen = select(graph, axes, "h.1")
    assert {operator.module.split(".")[1] for operator in chosen} == {"1"}
    assert len(chosen) == sum(operator.module.startswith(("h.1.", "h.1")) for operator in graph.operators)
    assert {operator.phase for operator in chosen} == {"F", "B", "U"}


def test_a_glob_takes_the_same_module_of_every_layer(graph, axes):
    chosen = select(graph, axes, "h.*.mlp.up", "F")
    assert [operator.name for operator in chosen] == [f"h.{i}.mlp.up/linear" for i in range(5)]
    assert [operator.name for operator in select(graph, axes, "h.*.mlp.up").only("F")] == [
        operator.name for operator in chosen
    ]


def test_an_operator_is_taken_by_its_own_name(graph, axes):
    assert [operator.name for operator in select(graph, axes, "h.0.attn.q.weight/adamw")] == [
        "h.0.attn.q.weight/adamw"
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_are_runs_of_layers_as_even_as_can_be(graph, axes, count):
    parts = split(graph, axes, "h.*", count)
    layers = [sorted({int(operator.module.split(".")[1]) for operator in part}) for part in parts]
    assert [layer for part in layers for layer in part] == list(range(5))
    assert max(map(len, layers)) - min(map(len, layers)) <= 1
    operators = [operator.name for part in parts for operator in part]
    assert len(operators) == len(set(operators))


def test_parts_of_a_sequential_leave_out_what_has_no_module(graph, axes):
    parts = split(graph, axes, "*", 2)
    assert not any(operator.module == "" for part in parts for operator in part)


@pytest.mark.parametrize("count", [0, 6])
def test_parts_there_are_not_are_refused(graph, axes, count):
    with pytest.raises(PlanError, match=f"cannot make {count} parts") as error:
        split(graph, axes, "h.*", count)
    assert "1 to 5" in error.value.remedy


def test_axes_are_found_by_name_by_letter_and_by_the_last_part_of_a_name(graph, axes):
    everything = select(graph, axes, "*")
    assert [axis.size for axis in everything.axis("heads")] == [4] * 5
    assert [axis.size for axis in everything.axis("batch")] == [8]
    up = select(graph, axes, "h.0.mlp.up")
    by_full_name = up.axis("h.0.mlp.up.out").axes
    assert [axis.size for axis in by_full_name] == [256]
    assert up.only("F").axis("n").axes == by_full_name, "n: the columns of a linear"
    assert up.axis("out").axes == by_full_name


def test_what_is_not_there_is_refused_with_what_there_is(graph, axes):
    with pytest.raises(PlanError) as error:
        select(graph, axes, "layers.*")
    assert "h.*.attn.q" in error.value.remedy
    with pytest.raises(PlanError) as error:
        select(graph, axes, "h.0.attn", "U2")
    assert "phases F, B" in error.value.remedy
    with pytest.raises(PlanError) as error:
        select(graph, axes, "h.0.mlp").axis("head")
    assert "h.0.mlp.up.out" in error.value.remedy
    assert "test_selection.py:" in error.value.where
    with pytest.raises(PlanError, match="no operator of phase 'P'"):
        select(graph, axes, "h.0").only("P")
