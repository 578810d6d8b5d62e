"""Whatever happens to a sequence on the way, its tokens are those it gets when it is served alone."""

import random
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from superscaler.errors import RequestError
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.policies import POLICIES, Policy
from superscaler.runtime.serving.request import Request, State
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.scheduler import Scheduler
from tests.runtime.serving.toy_model import ToyModel, continue_alone, random_tree, sample

END = 0


class Moody(Policy):
    """Changes its mind about everybody, and takes their room; in the end it makes up its mind."""

    preempts = True

    def rank(self, sequence, now):
        return (hash((sequence.request.arrival, sequence.index, min(now, 500) // 5)) % 4,)


@dataclass(frozen=True)
class Workload:
    pages: int
    page_size: int
    host_pages: int
    policy: Policy
    limits: Limits
    requests: tuple[Request, ...]
    cancelled: dict[int, int]
    """Step to the number of the request that is cancelled while it runs."""
    most_nodes: int
    """Of a tree of drafts."""
    under_way: int
    """Most steps at once."""
    seed: int


@st.composite
def workloads(draw):
    prefixes = draw(st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=3))
    requests = tuple(
        Request(
            id=f"r{number}",
            prompt=(
                *draw(st.sampled_from(prefixes)),
                *draw(st.lists(st.integers(0, 5), min_size=1, max_size=6)),
            ),
            params=SamplingParams(
                n=draw(st.sampled_from([1, 1, 1, 2, 4])),
                max_tokens=draw(st.integers(1, 20)),
                min_tokens=1,
                ignore_eos=draw(st.booleans()),
            ),
            priority=draw(st.integers(0, 2)),
            arrival=float(draw(st.integers(0, 12))),
            cache_salt=draw(st.sampled_from(["", "", "other"])),
        )
        for number in range(draw(st.integers(1, 7)))
    )
    page_size = draw(st.integers(1, 5))
    most_keys = [len(request.prompt) + request.params.max_tokens - 1 for request in requests]
    fit = draw(st.sampled_from([max(most_keys), max(most_keys), most_keys[0]]))
    step_sequences = draw(st.integers(1, 6))
    limits = Limits(
        sequence_tokens=draw(st.sampled_from([30, 40, 40])),
        step_tokens=draw(st.integers(step_sequences, 24)),
        step_sequences=step_sequences,
        chunk_tokens=draw(st.sampled_from([None, 1, 3, 8])),
        watermark=draw(st.sampled_from([0.0, 0.1, 0.4])),
        preemption=draw(st.sampled_from(["swap", "recompute"])),
    )
    return Workload(
        pages=-(-fit // page_size) + draw(st.integers(0, 6)),
        page_size=page_size,
        host_pages=draw(st.sampled_from([4, 60])),
        policy=draw(st.sampled_from([*POLICIES.values(), Moody]))(),
        limits=limits,
        requests=requests,
        cancelled=draw(st.dictionaries(st.integers(0, 20), st.integers(0, 6), max_size=3)),
        most_nodes=draw(st.sampled_from([0, 2, 7])),
        under_way=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 2**16)),
    )


def serve(workload):
    """Serve all requests; return their sequences, the scheduler's cache and the steps that were run."""
    clock = iter(range(10**9))
    cache = KvCache(workload.pages, workload.page_size, workload.host_pages)
    scheduler = Scheduler(
        cache, workload.policy, workload.limits, lambda: float(next(clock)), [END], workload.under_way
    )
    model, choice = ToyModel(workload.page_size), random.Random(workload.seed)
    pending = sorted(workload.requests, key=lambda request: request.arrival)
    sequences, steps, under_way, number = [], [], deque(), 0
    while pending or scheduler.waiting or scheduler.running or under_way:
        while pending and pending[0].arrival <= number:
            sequences += add(scheduler, pending.pop(0), workload)
        step = schedule(scheduler, workload, choice)
        if number in workload.cancelled:
            scheduler.cancel(f"r{workload.cancelled[number]}")
            scheduler.check_integrity()
        if step is not None:
            steps.append(step)
            taking_part = [part.sequence.id for each, _ in under_way for part in each.parts]
            assert not {part.sequence.id for part in step.parts} & set(taking_part)
            under_way.append((step, model.run(step.batch)))
        if under_way and (step is None or len(under_way) == workload.under_way):
            first, seen = under_way.popleft()
            scheduler.update(first, sample(first, seen))
            scheduler.check_integrity()
        number += 1
        assert number < 3000, "it goes on and on"
    return sequences, cache, steps


def schedule(scheduler, workload, choice):
    """The next step, which keeps the limits."""
    drafts = {
        sequence.id: random_tree(choice, sequence, workload.most_nodes)
        for sequence in scheduler.decoding
        if choice.random() < 0.8
    }
    step = scheduler.schedule(drafts)
    scheduler.check_integrity()
    if step is not None:
        assert len(step.batch.tokens) <= workload.limits.step_tokens
        assert len(step.parts) <= workload.limits.step_sequences
    return step


def add(scheduler, request, workload):
    tokens = len(request.prompt) + request.params.max_tokens
    fits = (
        tokens <= workload.limits.sequence_tokens
        and tokens - 1 <= workload.pages * workload.page_size
        and request.params.n <= workload.limits.step_sequences
    )
    if fits:
        return scheduler.add(request)
    with pytest.raises(RequestError, match=request.id):
        scheduler.add(request)
    return ()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(workloads())
def test_tokens_are_those_of_serving_each_request_alone(workload):
    sequences, cache, steps = serve(workload)
    for sequence in sequences:
        ends = frozenset() if sequence.request.params.ignore_eos else frozenset([END])
        alone = continue_alone(sequence.request, sequence.index, sequence.most_tokens, ends)
        assert sequence.state is State.FINISHED
        if sequence.finish_reason == "abort":
            assert sequence.generated == alone[: len(sequence.generated)]
        else:
            assert sequence.generated == alone
            assert sequence.finish_reason == ("stop" if alone[-1] in ends else "length")
    assert (cache.free, cache.host_free) == (cache.pages, cache.host_pages)
    cache.forget()
    cache.check_integrity()
    for name in ("copies", "moves", "swaps_out", "swaps_in", "visible"):
        if any(getattr(step.batch, name) for step in steps):
            event(f"some step has {name}")
    event(f"{workload.under_way} steps under way")
    if any(sequence.preemptions for sequence in sequences):
        event("some sequence made room")


@settings(max_examples=20, deadline=None)
@given(workloads())
def test_the_same_requests_make_the_same_batches(workload):
    first, second = ([step.batch for step in serve(workload)[2]] for _ in range(2))
    assert first == second
