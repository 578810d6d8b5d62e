"""What is observed is what Prometheus reads."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from superscaler.runtime.serving.output import Load
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.metrics import Metrics
from tests.runtime.serving.server.fake_engine import make_engine


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def samples(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        sample.name.removeprefix("vllm:"): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_times_of_a_request_are_those_of_the_clock():
    clock = Clock()
    metrics = Metrics("m", clock)
    request = metrics.request(prompt_tokens=20)
    for now, tokens in ((100.5, 1), (100.7, 1), (101.3, 3)):
        clock.now = now
        request.observe(0, tokens, cached=16, queued=0.2)
    request.end(0, "stop")
    found = samples(metrics)
    assert found["time_to_first_token_seconds_sum"] == pytest.approx(0.5)
    assert found["request_queue_time_seconds_sum"] == pytest.approx(0.2)
    assert found["request_prefill_time_seconds_sum"] == pytest.approx(0.3)
    assert found["inter_token_latency_seconds_count"] == 4
    assert found["inter_token_latency_seconds_sum"] == pytest.approx(0.8)
    assert found["request_time_per_output_token_seconds_sum"] == pytest.approx(0.2)
    assert found["e2e_request_latency_seconds_sum"] == pytest.approx(1.3)
    assert (found["prefix_cache_queries_total"], found["prefix_cache_hits_total"]) == (20, 16)


def test_counters_grow_on_when_an_engine_that_was_started_anew_counts_from_nothing():
    metrics = Metrics("m")
    for preemptions, accepted in ((2, 10), (5, 30), (0, 0), (1, 4)):
        metrics.observe_load(Load(1, 2, 8, 6, 3, preemptions, accepted, 2 * accepted, accepted))
    found = samples(metrics)
    assert found["num_preemptions_total"] == 6
    assert found["spec_decode_num_accepted_tokens_total"] == 34
    assert found["spec_decode_num_draft_tokens_total"] == 68
    assert found["kv_cache_usage_perc"] == 0.75
    assert (found["num_requests_running"], found["num_requests_waiting"]) == (1, 2)


def test_accepted_tokens_are_told_by_their_level_over_deaths_of_the_engine():
    metrics = Metrics("m")
    for levels in ((4,), (6, 3, 1), (), (2, 1)):  # the third is of a new engine
        metrics.observe_load(Load(0, 0, 8, 0, 0, 0, accepted_tokens=sum(levels), accepted_by_level=levels))
    families = text_string_to_metric_families(metrics.text().decode())
    (family,) = [each for each in families if each.name == "vllm:spec_decode_num_accepted_tokens_per_pos"]
    found = {
        sample.labels["position"]: sample.value for sample in family.samples if sample.name.endswith("_total")
    }
    assert found == {"0": 8, "1": 4, "2": 1}


def test_an_engine_says_how_long_a_request_waited_for_its_first_step():
    engine, clock = make_engine(), Clock()
    engine._clock = clock
    engine.add(Request("a", (1, 2), SamplingParams(max_tokens=3)))
    clock.now += 2.5
    queued = [output.queued for _ in range(3) for output in engine.step()]
    assert queued == [2.5, 2.5, 2.5]
    assert engine._came == engine._queued == {}
    engine.add(Request("b", (1, 2)))
    engine.end("b")
    assert engine._came == {}
