"""A simulated engine gives requests their tokens when arithmetic says so."""

import random

import pytest

from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.policies import make_policy
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.simulation import StepCost, simulate

LIMITS = Limits(sequence_tokens=512, step_tokens=256, step_sequences=64)


def request(name, prompt, answer, arrival=0.0, **options):
    tokens = tuple(range(prompt)) if isinstance(prompt, int) else prompt
    return Request(str(name), tokens, SamplingParams(max_tokens=answer), arrival=arrival, **options)


def run(requests, policy="fcfs", limits=LIMITS, pages=200, cost=None):
    cache = KvCache(pages, 16)
    served = simulate(requests, cache, make_policy(policy), limits, cost or StepCost(0.01, 0.001))
    assert cache.free == pages
    cache.check_integrity()
    return {one.request.id: one for one in served}


def test_a_request_alone_takes_a_step_for_its_prompt_and_one_for_every_further_token():
    found = run([request("a", 20, 5, arrival=3.0)])["a"]
    assert found.time_to_first_token == pytest.approx(0.01 + 20 * 0.001)
    assert found.time_per_token == pytest.approx(0.01 + 0.001)
    assert found.finished == pytest.approx(3.0 + 0.03 + 4 * 0.011)


def test_a_prompt_is_computed_in_chunks_and_keys_cost_what_they_cost():
    limits = Limits(sequence_tokens=512, step_tokens=256, step_sequences=64, chunk_tokens=8)
    found = run([request("a", 20, 1)], limits=limits, cost=StepCost(1.0, 0.1, 0.01))["a"]
    assert found.finished == pytest.approx(3 * 1.0 + 20 * 0.1 + (8 + 16 + 20) * 0.01)


def test_requests_that_decode_together_share_steps():
    found = run([request(name, tuple(range(100 * name, 100 * name + 4)), 50) for name in range(10)])
    assert len({one.finished for one in found.values()}) == 1
    assert found["0"].finished == pytest.approx(0.01 + 40 * 0.001 + 49 * (0.01 + 10 * 0.001))


def test_a_prompt_that_was_computed_before_is_not_computed_again():
    later = run([request("a", 64, 1), request("b", 64, 1, arrival=9.0)])["b"]
    assert later.cached == 48  # the last page holds the token whose logits are wanted
    assert later.time_to_first_token == pytest.approx(0.01 + 16 * 0.001)


def test_the_shortest_first_waits_less_on_average_than_who_came_first():
    chance = random.Random(0)
    requests = [
        request(
            name, tuple(chance.randrange(999) for _ in range(8)), chance.choice((2, 200)), arrival=name * 1e-4
        )
        for name in range(60)
    ]
    limits = Limits(sequence_tokens=512, step_tokens=64, step_sequences=4)

    def average(policy):
        found = run(requests, policy, limits)
        return sum(one.finished - one.request.arrival for one in found.values()) / len(found)

    assert average("shortest") < 0.7 * average("fcfs")


def test_priorities_go_first_and_memory_that_lacks_preempts():
    requests = [
        request(name, tuple(range(9 * name, 9 * name + 8)), 100, priority=-name) for name in range(12)
    ]
    found = run(requests, "priority", pages=20)
    order = sorted(found, key=lambda name: found[name].finished)
    assert order == [str(name) for name in reversed(range(12))]
    assert sum(one.preemptions for one in run(requests, pages=20).values()) > 0
