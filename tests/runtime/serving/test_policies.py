"""Who goes first under each policy, and what a policy is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.errors import ServingError
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.policies import POLICIES, Policy, make_policy
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.scheduler import Scheduler
from superscaler.runtime.serving.step import Sampled
from tests.runtime.serving.toy_model import ToyModel, run_all, run_step

KEYS = {
    "fcfs": lambda request: request.arrival,
    "priority": lambda request: (request.priority, request.arrival),
    "shortest": lambda request: (len(request.prompt) + request.params.max_tokens, request.arrival),
}
REQUESTS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.floats(0, 100)),
    min_size=1,
    max_size=6,
)


def serving(policy, clock=lambda: 0.0, **limits):
    cache = KvCache(64, 4)
    return Scheduler(cache, policy, Limits(sequence_tokens=100, **limits), clock), ToyModel(4)


@pytest.mark.parametrize("name", POLICIES)
@given(sizes=REQUESTS)
def test_one_at_a_time_requests_are_served_in_the_order_of_their_key(name, sizes):
    assert KEYS.keys() == POLICIES.keys()
    requests = [
        Request(
            str(number), (7,) * prompt, SamplingParams(max_tokens=most), priority=priority, arrival=arrival
        )
        for number, (prompt, most, priority, arrival) in enumerate(sizes)
    ]
    scheduler, model = serving(make_policy(name), step_sequences=1)
    for request in requests:
        scheduler.add(request)
    served = dict.fromkeys(part.sequence.request for step in run_all(scheduler, model) for part in step.parts)
    assert list(served) == sorted(requests, key=KEYS[name])


@pytest.mark.parametrize(("name", "preempts"), [("fcfs", False), ("priority", True), ("shortest", True)])
def test_a_better_rank_takes_the_place_of_a_worse_where_the_policy_says_so(name, preempts):
    scheduler, model = serving(make_policy(name), step_sequences=1)
    scheduler.add(Request("old", (1, 2, 3), SamplingParams(max_tokens=9), priority=5, arrival=1.0))
    run_step(scheduler, model)
    scheduler.add(Request("new", (1,), SamplingParams(max_tokens=1), priority=1, arrival=0.0))
    step = run_step(scheduler, model)
    assert step.parts[0].sequence.request.id == ("new" if preempts else "old")


class Bookkeeper(Policy):
    """Whose workflow has had the fewest tokens goes first."""

    def __init__(self):
        self.tokens, self.seconds, self.told = {}, {}, []

    def rank(self, sequence, now):
        return (self.tokens.get(sequence.request.workflow, 0),)

    def arrived(self, request, now):
        self.told.append(("arrived", request.id, now))

    def served(self, sequence, tokens, seconds, now):
        workflow = sequence.request.workflow
        self.tokens[workflow] = self.tokens.get(workflow, 0) + tokens
        self.seconds[workflow] = self.seconds.get(workflow, 0) + seconds

    def ended(self, request, now):
        self.told.append(("ended", request.id, now))


def test_a_policy_can_keep_account_of_what_workflows_were_served():
    policy, time = Bookkeeper(), [0.0]
    scheduler, model = serving(policy, clock=lambda: time[0], step_sequences=2)

    def call(name, workflow, prompt, **params):
        scheduler.add(Request(name, (3,) * prompt, SamplingParams(max_tokens=2, **params), workflow=workflow))

    call("a1", "a", 8, n=2)
    step = scheduler.schedule()
    time[0] = 0.5
    scheduler.update(step, [Sampled((1,)) for _ in step.samples])
    assert (policy.tokens, policy.seconds) == ({"a": 8}, {"a": 0.5})
    scheduler.cancel("a1")
    call("a2", "a", 3)
    call("b1", "b", 3)
    call("b2", "b", 3)
    step = run_step(scheduler, model)
    assert [part.sequence.request.id for part in step.parts] == ["b1", "b2"], "workflow b had nothing yet"
    run_all(scheduler, model)
    assert policy.told[:2] == [("arrived", "a1", 0.0), ("ended", "a1", 0.5)]
    assert sorted(event[:2] for event in policy.told if event[0] == "ended") == [
        ("ended", name) for name in ("a1", "a2", "b1", "b2")
    ]


def test_a_policy_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ServingError, match="choose one of fcfs, priority, shortest"):
        make_policy("fair")
