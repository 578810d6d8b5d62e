"""Every word of plan strings computes what eager PyTorch does; the table of recipes is what is tested."""

from dataclasses import fields
from functools import cache
from importlib import import_module
from inspect import signature

import pytest
import torch

import superscaler as ss
from superscaler.planner.recipes import RECIPES, PlanOptions, explain_words, parse_plan, words
from superscaler.planner.recipes.table import LISTS, NUMBERS, SHORT
from superscaler.planner.schedules import NAMED

GPT = {"layers": 4, "width": 16, "heads": 4, "seq": 8, "vocab": 32}
SIZES = {"gpt": GPT, "mbart": {}, "moe": {}, "alphafold2": {"blocks": 2, "recycles": 1}}
SAYING = {
    "pp=N": ("gpt", "pp=4"),
    "schedule=interlaced": ("mbart", "pp=2,schedule=interlaced,micro_batches=2"),
    "schedule=interlaced-ahead": ("mbart", "pp=2,schedule=interlaced-ahead,micro_batches=4"),
    "schedule=3f1b": ("alphafold2", "pp=2,schedule=3f1b,micro_batches=2"),
    "dp=N": ("gpt", "dp=3"),
    "ep=N": ("moe", "ep=2"),
    "cp=N": ("gpt", "cp=2"),
    "tp=N": ("gpt", "tp=2"),
    "sp": ("gpt", "tp=2,sp"),
    "zero=1": ("gpt", "dp=2,zero=1"),
    "zero=2": ("gpt", "dp=2,zero=2,micro_batches=2"),
    "zero=3": ("gpt", "dp=2,zero=3,micro_batches=2"),
    "co_shard=N": ("gpt", "co_shard=2,tp=2"),
    "recompute=selective": ("gpt", "recompute=selective,micro_batches=2"),
    "recompute=layers": ("gpt", "recompute,tp=2"),
    "recompute=full": ("gpt", "recompute=full,pp=2,micro_batches=2"),
    "offload=optimizer": ("gpt", "offload=optimizer,dp=2,zero=1"),
    "offload=activations": ("gpt", "offload=activations,pp=2,micro_batches=2"),
    "offload=optimizer+activations": ("gpt", "offload=optimizer+activations,tp=2,sp"),
    "offload=parameters": ("gpt", "offload=parameters,pp=2,micro_batches=2"),
    "offload=optimizer+parameters": ("gpt", "offload=optimizer+parameters,dp=2,zero=3"),
    "offload=optimizer+activations+parameters": ("gpt", "offload=optimizer+activations+parameters,tp=2"),
    "micro_batches=N": ("gpt", "micro_batches=4"),
    "layers=N+N": ("gpt", "pp=2,layers=1+3,micro_batches=4"),
    "virtual=N": ("gpt", "pp=2,schedule=interleaved,virtual=2,micro_batches=4"),
}
"""Word -> a model and a plan string that says it; schedules not named here are those of a pipeline of any model."""
FIXED_PRECISION = {"alphafold2": 1e-5}
"""Models that compute in single precision whatever their parameters are in."""


def all_words():
    lists = (f"{key}=N+N" for key in LISTS)
    return [*(row.word for row in RECIPES), *(f"{key}=N" for key in NUMBERS), *lists]


def saying(word):
    schedule = word.removeprefix("schedule=")
    if word not in SAYING and schedule in NAMED:
        return "gpt", f"pp=2,{word},micro_batches=4"
    return SAYING[word]


@cache
def traced(name):
    torch.manual_seed(0)
    module = import_module(f"models.{name}")
    model = module.build("tiny", **SIZES[name]).double()
    inputs = {
        key: value.double() if value.is_floating_point() else value
        for key, value in module.example_inputs(
            "tiny", batch=8 if name == "gpt" else 4, **SIZES[name]
        ).items()
    }
    return model, inputs, ss.trace(model, inputs, optimizer=ss.AdamW(eps=1e-5))


@pytest.mark.parametrize("word", all_words())
def test_a_plan_that_says_it_computes_what_the_model_does(word):
    name, text = saying(word)
    assert word.removesuffix("N+N").removesuffix("N") in text or any(
        f"{key}={SHORT[key]}" == word and key in text for key in SHORT
    )
    model, inputs, graph = traced(name)
    plan = ss.plan(graph, ss.Cluster.local(parse_plan(text).num_devices), text).verify()
    assert plan.compare_with_eager(model, inputs).largest < FIXED_PRECISION.get(name, 1e-11)


@pytest.mark.parametrize("row", RECIPES, ids=lambda row: row.word)
def test_its_docstring_says_what_it_does_and_whose_idea_it_is(row):
    assert row.about
    assert "arXiv" in row.source or row.source in ("by OR-Tools CP-SAT",) or "SuperScaler" in row.source
    assert any(line.startswith(f"  {row.word} ") for line in explain_words().splitlines())


def test_plan_options_have_a_field_per_word():
    assert {field.name for field in fields(PlanOptions)} == {word.partition("=")[0] for word in all_words()}
    assert {word.partition("=")[0] for word in words()} == {field.name for field in fields(PlanOptions)}


@pytest.mark.parametrize("row", [row for row in RECIPES if row.apply], ids=lambda row: row.word)
def test_it_is_called_from_a_plan_script_by_its_name(row):
    assert getattr(ss.recipes, row.script.__name__) is row.script
    assert next(iter(signature(row.script).parameters)) == "p"
