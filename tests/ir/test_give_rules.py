"""Operators of the user's: their rules are found when a model is traced, kept for the next time, or declared."""

import json
import logging

import pytest
import torch
from torch import nn

import superscaler as ss
from superscaler.errors import TraceError
from superscaler.ir import give_rules
from superscaler.ir.kinds import KINDS, rule_of
from superscaler.ir.text import format_graph, parse_graph
from tests.codegen import scaling_operators

RULE = "a b c, c -> a b c"


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return scaling_operators.scale(x, self.weight).square().mean()


def traced():
    return ss.trace(Scaled(), (torch.randn(4, 5, 6),), optimizer=ss.SGD(lr=0.1))


def rules(graph):
    return {o.kind: o.rule for o in graph.operators if o.kind.startswith("scalingtest")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path))
    return tmp_path / "rules.json"


@pytest.fixture
def probed(monkeypatch):
    """The kinds that were probed."""
    kinds = []

    def find_rule(call):
        kinds.append(call.operator.kind)
        return find(call)

    find = give_rules.find_rule
    monkeypatch.setattr(give_rules, "find_rule", find_rule)
    return kinds


@pytest.fixture
def declared():
    yield
    for kind in [kind for kind, row in KINDS.items() if row.declared]:
        del KINDS[kind]


def test_rules_are_found_forward_and_backward(cache, caplog):
    with caplog.at_level(logging.WARNING, "superscaler"):
        graph = traced()
    assert rules(graph) == {"scalingtest.scale": RULE, "scalingtest.weight_gradient": "a b c, a b c -> c"}
    assert f'found a rule for scalingtest.scale: "{RULE}"' in caplog.text
    assert f'@ss.rule("{RULE}")' in caplog.text


def test_a_found_rule_is_part_of_the_graph(cache):
    graph = traced()
    text = format_graph(graph)
    assert f'by "{RULE}"' in text
    assert format_graph(parse_graph(text)) == text
    operator = next(o for o in graph.operators if o.kind == "scalingtest.scale")
    assert rule_of(operator, parse_graph(text))[1] == {"a": 4, "b": 5, "c": 6}


def test_the_second_trace_does_not_probe(cache, probed):
    first = rules(traced())
    assert probed == ["scalingtest.scale", "scalingtest.weight_gradient"]
    assert rules(traced()) == first
    assert len(probed) == 2


def test_the_same_operator_is_probed_once(cache, probed):
    class Twice(Scaled):
        def forward(self, x):
            return scaling_operators.scale(scaling_operators.scale(x, self.weight), self.weight)

    ss.trace(Twice(), (torch.randn(4, 5, 6),))
    assert probed == ["scalingtest.scale"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1, "rules": {"x": {}}}', '{"format": 1, "rules": 3}']
)
def test_a_damaged_cache_is_not_used_and_said_so(cache, content, caplog):
    cache.write_text(content)
    assert rules(traced())["scalingtest.scale"] == RULE
    assert "damaged" in caplog.text
    assert len(json.loads(cache.read_text())["rules"]) == 2


def test_a_cache_that_cannot_be_written_is_done_without(cache, monkeypatch, caplog):
    (cache.parent / "file").write_text("")
    monkeypatch.setenv("SUPERSCALER_CACHE", str(cache.parent / "file"))
    assert rules(traced())["scalingtest.scale"] == RULE
    assert "not kept" in caplog.text


def test_the_cache_lies_where_the_desktop_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.delenv("SUPERSCALER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    traced()
    assert (tmp_path / "superscaler" / "rules.json").is_file()


@pytest.mark.parametrize(
    "operator", [scaling_operators.scale, torch.ops.scalingtest.scale, "scalingtest::scale"]
)
def test_a_declared_rule_is_used(cache, probed, declared, operator):
    assert ss.rule("batch seq d, d -> batch seq d")(operator) is operator
    assert rules(traced())["scalingtest.scale"] == "batch seq d, d -> batch seq d"
    assert "scalingtest.scale" not in probed


def test_a_false_declaration_is_refused(cache, declared):
    ss.rule("b s d, d -> s d")("scalingtest::weight_gradient")
    ss.rule("b s d, b s d -> d:max")("scalingtest::weight_gradient")
    with pytest.raises(
        TraceError, match=r"(?s)d:max\", is false: pieces cut along 'b'.*@ss\.rule\(\"a b c, a b c -> c\""
    ):
        traced()


def test_a_declaration_that_does_not_fit_is_refused(cache, declared):
    ss.rule("b d, d -> b d")("scalingtest::scale")
    with pytest.raises(TraceError, match=r"(?s)is false: .*does not fit a tensor of 3 dims") as caught:
        traced()
    assert "test_give_rules.py:" in caught.value.where


def test_rules_of_the_table_are_not_redeclared():
    with pytest.raises(TraceError, match=r"aten\.mm has a rule already"):
        ss.rule("a b, b c -> a c")(torch.ops.aten.mm.default)


def test_a_declaration_without_an_arrow_is_refused():
    with pytest.raises(TraceError, match="has no arrow"):
        ss.rule("b s d")("scalingtest::scale")


def test_operators_of_torch_without_a_row_are_probed_too(cache):
    class Exponential(nn.Module):
        def forward(self, x):
            return torch.linalg.matrix_exp(x)

    (operator,) = ss.trace(Exponential(), (torch.randn(4, 3, 3),)).operators
    assert (operator.kind, operator.rule) == ("aten.linalg_matrix_exp", "a b! c! -> a d! e!")
