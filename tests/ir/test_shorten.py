"""Shortened graphs against the graphs of models that have fewer layers to begin with."""

from importlib import import_module

import pytest
import torch

from models import gpt
from superscaler.ir.axes import find_axes
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import AdamW
from superscaler.ir.shorten import shorten
from superscaler.ir.trace import trace
from superscaler.planner.layers import layers

SIZES = {"width": 16, "heads": 2, "seq": 8, "vocab": 32}


def traced(model, batch, **options):
    return trace(model, batch, optimizer=AdamW(lr=1e-2, **options))


def shortened(graph):
    return shorten(graph, list(layers(graph, find_axes(graph), len(graph.operators))))


def gpt_of(count):
    torch.manual_seed(count)
    model = gpt.build("tiny", layers=count, **SIZES).double()
    return model, gpt.example_inputs("tiny", batch=4, layers=count, **SIZES)


def test_a_long_gpt_becomes_one_of_three_layers():
    short = shortened(traced(*gpt_of(7), clip_norm=1.0))
    assert short.stands_for == {"h.0": ("h.0",), "h.1": tuple(f"h.{i}" for i in range(1, 6)), "h.6": ("h.6",)}
    kinds = [operator.kind for operator in short.graph.operators]
    assert kinds == [operator.kind for operator in traced(*gpt_of(3), clip_norm=1.0).operators]


def test_what_is_left_computes_what_a_model_of_the_layers_that_are_left_does():
    model, batch = gpt_of(5)
    short = shortened(traced(model, batch, clip_norm=1.0)).graph
    three, _ = gpt_of(3)
    weights = {name.replace("h.4.", "h.2."): value for name, value in model.state_dict().items()}
    three.load_state_dict({name: weights[name] for name in three.state_dict()})
    whole = traced(three, batch, clip_norm=1.0)
    stored = {name: value for graph in (short, whole) for name, value in graph.values.items()}
    results = []
    for graph in (short, whole):
        given = {name: stored[name] for name in graph.values} | batch
        given |= {
            t.name: torch.zeros(t.shape, dtype=torch.float64) for t in graph.stored() if t.name not in given
        }
        results.append(interpret(graph, {**given, "step": 1}))
    new = {name.replace("h.4.", "h.2."): value for name, value in results[0].items()}
    assert new.keys() == results[1].keys()
    for name, value in results[1].items():
        torch.testing.assert_close(new[name], value, rtol=1e-12, atol=1e-14)


def test_layers_that_alternate_are_shortened_in_pairs():
    swin = import_module("models.swin")
    sizes = {"depths": (8, 2)}
    graph = traced(swin.build("tiny", **sizes), swin.example_inputs("tiny", batch=2, **sizes))
    short = shortened(graph)
    assert {len(layers) for name, layers in short.stands_for.items() if name.startswith("stages.0")} == {1, 2}
    assert len(short.stands_for) == 8


@pytest.mark.parametrize(("name", "sizes"), [("mbart", {}), ("alphafold2", {}), ("moe", {"layers": 5})])
def test_every_layer_is_stood_for_once(name, sizes):
    module = import_module(f"models.{name}")
    graph = traced(module.build("tiny", **sizes), module.example_inputs("tiny", batch=2, **sizes))
    names = list(layers(graph, find_axes(graph), len(graph.operators)))
    found = [layer for group in shorten(graph, names).stands_for.values() for layer in group]
    assert sorted(found) == sorted(names)
