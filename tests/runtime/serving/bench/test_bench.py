"""The benchmark measures what the server did, and makes requests of the shapes that it promises."""

import dataclasses
import json
import math

import numpy as np
import pytest

from superscaler.errors import ServingError
from superscaler.runtime.serving.bench.client import BenchClient, Measured
from superscaler.runtime.serving.bench.prompts import (
    DATASETS,
    Ask,
    Shape,
    conversations,
    random_prompts,
    read_prompts,
    read_trace,
    repeated_prefixes,
)
from superscaler.runtime.serving.bench.report import counters, make_report, parse_goodput, print_report
from superscaler.runtime.serving.bench.run import Traffic, departures, look_up, run_benchmark
from tests.command_line_page import documented_keys
from tests.runtime.serving.server.served import served
from tests.runtime.serving.server.test_application import MODEL, in_loop

KINDS, METRICS = ("mean", "median", "std", "p99"), ("ttft", "tpot", "itl", "e2el")
SHAPE = Shape(60, vocab=200, input_tokens=20, output_tokens=5, spread=0.5, prefixes=4, prefix_tokens=30)


@in_loop
async def test_a_run_over_a_server_counts_what_it_answered():
    async with served() as here:
        client = BenchClient(here.url)
        found = await look_up(client)
        assert (found.model, found.vocab) == (MODEL, 260)
        asks = list(random_prompts(SHAPE))
        report = await run_benchmark(client, MODEL, asks, Traffic(max_concurrency=7), {"ttft": 1e9})
        assert report["completed"] == 60
        assert report["errors"] == [""] * 60
        assert report["input_lens"] == [len(ask.prompt) for ask in asks]
        assert report["output_lens"] == [ask.output_tokens for ask in asks]
        assert [len(gaps) for gaps in report["itls"]] == [ask.output_tokens - 1 for ask in asks]
        assert report["request_goodput"] == report["request_throughput"]
        assert "P99 TTFT (ms):" in print_report(report)
        assert [name for name in report if not name.endswith("_ms")] == documented_keys("bench serve")
        assert {f"{kind}_{name}_ms" for kind in KINDS for name in METRICS} < report.keys()
        json.dumps(report, allow_nan=False)
        assert (
            sum(len(message.request.prompt) for message in here.engine.messages)
            == report["total_input_tokens"]
        )


@in_loop
async def test_never_more_at_once_than_allowed():
    async with served() as here:
        most, add = 0, here.client.answer

        def watched(request):
            nonlocal most
            most = max(most, here.client.in_flight + 1)
            return add(request)

        here.client.answer = watched
        await run_benchmark(
            BenchClient(here.url), MODEL, list(random_prompts(SHAPE)), Traffic(max_concurrency=3), {}
        )
        assert most == 3


@in_loop
async def test_what_the_server_refuses_is_a_failure_with_its_words():
    async with served() as here:
        asks = [Ask((1,), 3), Ask((1,), 9999)]
        report = await run_benchmark(BenchClient(here.url), MODEL, asks, Traffic(), {})
        assert (report["completed"], report["failed"]) == (1, 1)
        assert "at most 512 tokens" in report["errors"][1]
    with pytest.raises(ServingError, match="no answer"):
        await look_up(BenchClient(here.url))


def test_times_between_requests_have_the_mean_and_the_burstiness_asked_for():
    for burstiness in (0.25, 1.0, 4.0):
        traffic = Traffic(request_rate=20.0, burstiness=burstiness)
        gaps = np.diff(list(departures([Ask((1,), 1)] * 20_000, traffic)))
        assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    assert set(departures([Ask((1,), 1)] * 5, Traffic())) == {0.0}
    assert list(departures([Ask((1,), 1, 3.5), Ask((1,), 1, 1.0)], Traffic())) == [3.5, 1.0]


@pytest.mark.parametrize("name", DATASETS)
def test_the_same_seed_gives_the_same_requests_and_another_others(name):
    make = DATASETS[name]
    first = list(make(SHAPE))
    assert first == list(make(SHAPE)) != list(make(dataclasses.replace(SHAPE, seed=1)))
    assert len(first) == 60
    assert all(0 <= token < 200 for ask in first for token in ask.prompt)
    assert all(ask.prompt and ask.output_tokens >= 1 for ask in first)


def test_lengths_lie_where_they_are_said_to():
    asks = list(random_prompts(dataclasses.replace(SHAPE, requests=2000)))
    assert {len(ask.prompt) for ask in asks} == set(range(10, 31))
    asks = list(repeated_prefixes(SHAPE))
    assert len({ask.prompt[:30] for ask in asks}) == 4


def test_turns_of_a_conversation_begin_with_those_before():
    prompts = [ask.prompt for ask in conversations(SHAPE)]
    later = [
        any(len(before) < len(prompt) and prompt[: len(before)] == before for before in prompts[:place])
        for place, prompt in enumerate(prompts)
    ]
    assert 20 < sum(later) < 60


def test_traces_and_prompts_are_read_from_lines(tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 1500, "output_length": 3, "hash_ids": [7, 8, 9]},
        {"timestamp": 2500, "input_length": 1100, "output_length": 4, "hash_ids": [7, 8, 1]},
        {"timestamp": 3000, "input_length": 5, "output_length": 6},
    ]
    trace.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = read_trace(trace, SHAPE, speed=2.0)
    assert [ask.at for ask in (first, second, third)] == [0.0, 1.25, 1.5]
    assert [len(ask.prompt) for ask in (first, second, third)] == [1500, 1100, 5]
    assert first.prompt[:1024] == second.prompt[:1024]
    assert first.prompt[1024:1100] != second.prompt[1024:]
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "a"}\n{"prompt": "b", "output_tokens": 9}\n')
    assert list(read_prompts(texts, SHAPE)) == [Ask("a", 5), Ask("b", 9)]
    texts.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ServingError, match=r"texts.jsonl:2"):
        list(read_prompts(texts, SHAPE))


def test_the_report_says_what_can_be_computed_by_hand():
    measured = [
        Measured(0.0, [0.1, 0.2, 0.4], 0.4, input_tokens=5, output_tokens=3),
        Measured(0.3, [0.5], 0.5, input_tokens=2, output_tokens=1),
        Measured(0.0, [], 0.1, error="refused"),
    ]
    report = make_report(measured, 2.0, {"ttft": 150.0, "tpot": 160.0}, [50.0])
    assert report["mean_ttft_ms"] == pytest.approx(150.0)
    assert report["median_tpot_ms"] == report["p50_tpot_ms"] == pytest.approx(150.0)
    assert report["mean_itl_ms"] == pytest.approx(150.0)
    assert report["mean_e2el_ms"] == pytest.approx(300.0)
    assert (report["completed"], report["failed"]) == (2, 1)
    assert report["request_goodput"] == 0.5
    assert report["output_throughput"] == 2.0
    assert report["max_output_tokens_per_s"] == 4.0
    assert report["max_concurrent_requests"] == 2
    assert math.isfinite(report["std_ttft_ms"])


def test_speculation_is_read_from_the_servers_counters():
    text = "\n".join(
        f'vllm:spec_decode_num_{what}_total{{model_name="a b"}} {value}'
        for what, value in (("drafts", 10.0), ("draft_tokens", 40.0), ("accepted_tokens", 20.0))
    )
    report = make_report([], 1.0, {}, [], counters(text))
    assert report["spec_decode_acceptance_rate"] == 50.0
    assert report["spec_decode_acceptance_length"] == 3.0


@pytest.mark.parametrize("wrong", ["ttft", "itl:5", "ttft:fast", "ttft:-1"])
def test_goodput_that_says_nothing_is_refused(wrong):
    assert parse_goodput(["ttft:200", "tpot:50.5"]) == {"ttft": 200.0, "tpot": 50.5}
    with pytest.raises(ServingError):
        parse_goodput([wrong])
