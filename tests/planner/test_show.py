"""The page a plan prints as, against numbers counted by hand."""

import re

import pytest

from superscaler.planner.show import compress_names, format_bytes, format_count, format_plan
from tests.planner.samples import gpt_graph, mlp_graph, plan_of


def test_a_pipeline_says_who_computes_what():
    text = format_plan(plan_of(gpt_graph(layers=4), "pp=2,dp=2,micro_batches=2"))
    assert "on 4 devices of local" in text
    assert "batch: tokens [8, 64], targets [8, 64], in 2 micro-batch(es)" in text
    stages = text.split("\n\n")[1:3]
    assert "devices dp2 on 0,1" in stages[0]
    assert "computes   wte, wpe, h.0-1\n" in stages[0]
    assert "devices dp2 on 2,3" in stages[1]
    assert "computes   h.2-3, ln_f\n" in stages[1]
    assert "dp         cuts batch" in stages[0]
    assert "stage 0: F0 F1 B0 B1" in text
    assert "stage 1: F0 B0 F1 B1" in text


def test_parameters_per_device_are_counted():
    # layer: two norms of 2*64, q, v, proj of 64*65, k of 64*64, perceptron of 256*65 + 64*257
    layer = 2 * 128 + 3 * 64 * 65 + 64 * 64 + 256 * 65 + 64 * 257
    whole = 256 * 64 + 64 * 64 + 2 * layer + 128
    text = format_plan(plan_of(gpt_graph(), "none"))
    assert f"{format_count(whole)} parameters on 1 devices" in text
    assert f"holds      {format_count(whole)} parameters per device" in text


def test_communication_is_counted_per_step_by_the_ring():
    text = format_plan(plan_of(mlp_graph(), "tp=2,micro_batches=4"))
    # one all-reduce of [8/4, 6] float32 per micro-batch: a ring of two sends 2 * 1/2 of it
    row = next(line for line in text.splitlines() if re.match(r"  forward +all_reduce", line))
    assert row.split() == ["forward", "all_reduce", "over", "tp", "(stage", "0)", "4", "x", "192", "B"]


def test_nothing_moves_on_one_device():
    assert "communication per step: none" in format_plan(plan_of(mlp_graph(), "none"))


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["wte", "h.0.attn", "h.0", "h.1", "h.2", "ln_f"], ["wte", "h.0-2", "ln_f"]),
        (["h.0", "h.2"], ["h.0,2"]),
        (["h.3"], ["h.3"]),
        (["0", "1"], ["0", "1"]),
        ([], []),
    ],
)
def test_names_are_folded(names, short):
    assert compress_names(names) == short


def test_numbers_are_short():
    assert [format_count(n) for n in (0, 999, 1000, 1234567, 175e9, 2e15)] == [
        "0",
        "999",
        "1K",
        "1.235M",
        "175B",
        "2000T",
    ]
    assert [format_bytes(n) for n in (0, 1023, 1024, 3 << 20)] == ["0 B", "1023 B", "1.0 KiB", "3.0 MiB"]
