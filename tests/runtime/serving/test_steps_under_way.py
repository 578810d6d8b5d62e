"""Several steps under way: they are started before the first is waited for, and nobody's answer is another for it."""

import pytest
import torch

from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from tests.runtime.serving.server.fake_engine import engine_that, make_engine, table


def requests(count, **params):
    return [
        Request(f"r{number}", tuple(range(97, 100 + number % 7)), SamplingParams(**params, seed=number))
        for number in range(count)
    ]


def serve(engine, asked):
    """The tokens of each request's continuations."""
    for request in asked:
        engine.add(request)
    found = {(request.id, index): [] for request in asked for index in range(request.params.n)}
    while not engine.is_idle:
        for output in engine.step():
            found[output.request_id, output.index] += output.tokens
    return found


class Recording:
    """Starts batches; `events` tells what was started, and what was waited for."""

    def __init__(self, fails_at=None):
        self.events, self.batches, self._fails_at = [], [], fails_at

    def start(self, batch):
        number = len(self.batches)
        self.events.append(f"start {number}")
        self.batches.append(batch)

        def logits():
            self.events.append(f"wait {number}")
            if number == self._fails_at:
                raise RuntimeError("the device is gone")
            return torch.stack([table(batch.tokens[row], batch.positions[row]) for row in batch.wanted])

        return logits


def test_steps_are_started_before_the_first_is_waited_for_and_share_the_sequences():
    recording = Recording()
    engine = engine_that(recording.start, steps=3)
    found = serve(engine, requests(6, max_tokens=3, temperature=0.0))
    assert all(len(tokens) == 3 for tokens in found.values())
    assert recording.events[:6] == ["start 0", "start 1", "start 2", "wait 0", "start 3", "wait 1"]
    assert [len(batch.wanted) for batch in recording.batches] == [2] * 9
    assert recording.events[-3:] == ["wait 6", "wait 7", "wait 8"]


def test_a_lone_sequence_has_one_step_under_way():
    recording = Recording()
    serve(engine_that(recording.start, steps=4), requests(1, max_tokens=3))
    assert recording.events == [f"{what} {number}" for number in range(3) for what in ("start", "wait")]


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_drawn_answers_are_those_of_one_step_at_a_time(steps):
    asked = requests(11, max_tokens=9, temperature=0.9, top_p=0.95, n=3, frequency_penalty=0.5)
    assert serve(make_engine(steps=steps), asked) == serve(make_engine(), asked)


def test_who_ends_while_a_step_with_it_is_under_way_gets_nothing_of_it_and_leaves_no_page():
    engine = make_engine(steps=2)
    asked = requests(4, max_tokens=6, temperature=0.0)
    expected = serve(make_engine(), asked)
    for request in asked:
        engine.add(request)
    found = {request.id: list(output_tokens(engine.step(), request.id)) for request in asked[:1]}
    [ended] = engine.end("r1")
    assert (ended.finish_reason, ended.tokens) == ("abort", ())
    while not engine.is_idle:
        for output in engine.step():
            assert output.request_id != "r1"
            found.setdefault(output.request_id, []).extend(output.tokens)
    assert {name: tuple(tokens) for name, tokens in found.items()} == {
        request.id: tuple(expected[request.id, 0]) for request in asked if request.id != "r1"
    }
    assert engine.load.pages_used == 0


def output_tokens(outputs, request_id):
    return [token for output in outputs if output.request_id == request_id for token in output.tokens]


def test_an_engine_whose_sequences_have_all_ended_still_waits_for_its_steps():
    recording = Recording()
    engine = engine_that(recording.start, steps=2)
    for request in requests(4, max_tokens=6):
        engine.add(request)
    engine.step()
    for number in range(4):
        engine.end(f"r{number}")
    assert not engine.is_idle, "a step is under way"
    assert engine.step() == []
    assert engine.is_idle
    assert recording.events[-1] == "wait 1"


def test_a_step_that_fails_ends_all_that_were_under_way_and_the_engine_serves_on():
    recording = Recording(fails_at=2)
    engine = engine_that(recording.start, steps=2)
    asked = requests(4, max_tokens=6, temperature=0.0)
    with pytest.raises(RuntimeError, match="the device is gone"):
        serve(engine, asked)
    assert engine.is_idle
    assert engine.load.pages_used == 0
    assert serve(engine, asked) == serve(make_engine(), asked)
