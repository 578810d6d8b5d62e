"""What is in flight when an engine dies goes on in the next as if nothing had happened, or ends with an error."""

import asyncio

import pytest

from superscaler.errors import RequestError, ServingError
from superscaler.runtime.serving.link import End
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.engine_client import EngineClient, EngineGone
from tests.runtime.serving.server.fake_engine import LONGEST, READY, FakeEngine, make_engine, table

PROMPT = tuple(b"begin")
SAMPLINGS = {
    "drawn": {},
    "greedy": {"temperature": 0.0},
    "two that are numbered": {"n": 2},
    "penalties that count what was generated": {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    "penalties that count the prompt, too": {"repetition_penalty": 1.5},
    "as many as there is room for": {"max_tokens": None},
    "not before": {"min_tokens": 25, "stop_token_ids": frozenset(range(97, 110))},
    "likeliest": {"logprobs": 2},
}


def make_params(**fields):
    return SamplingParams(**{"max_tokens": 30, "seed": 7} | fields)


def undisturbed(params):
    """What an engine that lives gives: tokens and logarithms of each sequence, and why it ended."""
    engine, found = make_engine(), {}
    engine.add(Request("alone", PROMPT, params))
    while not engine.is_idle:
        collect(found, engine.step())
    return found


def collect(found, outputs):
    for output in outputs:
        tokens, logprobs, _ = found.get(output.index, ((), (), None))
        found[output.index] = (tokens + output.tokens, logprobs + output.logprobs, output.finish_reason)


async def start(*deaths, max_restarts=3, **how):
    """A client whose first engines die after so many tokens; -1: before they are ready."""
    engines, to_die = [], list(deaths)

    async def launch(hear):
        dies_after = to_die.pop(0) if to_die else None
        if dies_after == -1:
            raise ServingError("cannot start")
        engines.append(FakeEngine(hear, dies_after=dies_after, **how))
        return engines[-1], READY

    client = EngineClient(launch, max_restarts)
    await client.start()
    return client, engines


async def ask(client, params, name="one"):
    found = {}
    with client.answer(Request(name, PROMPT, params)) as answer:
        async for output in answer:
            collect(found, [output])
    return found


@pytest.mark.parametrize("deaths", [(1,), (7,), (7, 9), (29,), (5, -1), (5, -1, -1)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_goes_on_exactly_where_it_was(sampling, deaths):
    async def scenario():
        params = make_params(**SAMPLINGS[sampling])
        client, engines = await start(*deaths)
        expected = undisturbed(params)
        assert await ask(client, params) == expected
        had_died = sum(len(tokens) for tokens, _, _ in expected.values()) > deaths[0]
        assert len(engines) == 1 + (had_died and len([tokens for tokens in deaths if tokens > 0]))
        await client.stop()

    asyncio.run(scenario())


def test_without_a_seed_one_is_drawn_that_outlives_the_engine():
    async def scenario():
        client, engines = await start(10)
        found = await ask(client, make_params(seed=None))
        seeds = {engine.messages[0].request.params.seed for engine in engines}
        assert len(engines) == 2
        assert found == undisturbed(make_params(seed=seeds.pop()))
        assert not seeds
        await client.stop()

    asyncio.run(scenario())


def test_many_requests_go_on_together():
    async def scenario():
        client, engines = await start(100, 300)
        params = [make_params(seed=seed, n=1 + seed % 3) for seed in range(20)]
        found = await asyncio.gather(*(ask(client, each, str(n)) for n, each in enumerate(params)))
        assert found == [undisturbed(each) for each in params]
        assert len(engines) == 3
        assert engines[-1].engine.is_idle
        await client.stop()

    asyncio.run(scenario())


def test_a_request_with_which_the_engine_dies_again_and_again_is_not_tried_for_ever():
    async def scenario():
        client, _ = await start(5, 5, 5, max_restarts=9)
        with pytest.raises(EngineGone, match="again and again"):
            await ask(client, make_params())
        while not client.is_ready:
            await asyncio.sleep(0.001)
        assert await ask(client, make_params(), "two") == undisturbed(make_params())
        await client.stop()

    asyncio.run(scenario())


def test_without_restarts_left_all_are_answered_with_an_error_at_once():
    async def scenario():
        client, _ = await start(20, -1, max_restarts=1)
        both = await asyncio.gather(
            *(ask(client, make_params(), name) for name in "ab"), return_exceptions=True
        )
        assert [type(error) for error in both] == [EngineGone, EngineGone]
        assert client.died.is_set()
        with pytest.raises(EngineGone):
            await ask(client, make_params())
        assert client.in_flight == 0
        await client.stop()

    asyncio.run(scenario())


def test_requests_that_come_while_the_engine_is_started_anew_are_served_then():
    async def scenario():
        client, engines = await start()
        engines[0].die()
        assert not client.is_ready
        assert await ask(client, make_params()) == undisturbed(make_params())
        await client.stop()

    asyncio.run(scenario())


def test_whoever_leaves_ends_the_request_in_the_engine():
    async def scenario():
        client, [engine] = await start(step_seconds=0.001)
        with client.answer(Request("left", PROMPT, make_params(n=2, max_tokens=None))) as answer:
            async for _ in answer:
                break
        assert engine.messages[-1] == End("left")
        while not engine.engine.is_idle:
            await asyncio.sleep(0.001)
        engine.engine.scheduler.check_integrity()
        await client.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("deaths", [(), (8,)])
def test_a_sequence_that_is_stopped_ends_and_its_siblings_go_on(deaths):
    async def scenario():
        params, found = make_params(n=3), {}
        client, engines = await start(*deaths)
        with client.answer(Request("some", PROMPT, params)) as answer:
            async for output in answer:
                collect(found, [output])
                if output.index == 1 and len(found[1][0]) == 2:
                    answer.stop_sequence(1)
        expected = undisturbed(params)
        assert (found[0], found[2]) == (expected[0], expected[2])
        assert found[1][0][:2] == expected[1][0][:2]
        assert End("some", 1, "stop") in engines[-1].messages
        assert engines[-1].engine.is_idle
        await client.stop()

    asyncio.run(scenario())


def test_a_request_that_can_never_be_served_is_refused():
    async def scenario():
        client, _ = await start()
        with pytest.raises(RequestError, match=f"at most {LONGEST}"):
            await ask(client, make_params(max_tokens=LONGEST))
        await client.stop()

    asyncio.run(scenario())


def test_an_engine_that_gives_other_tokens_is_found_out():
    async def scenario():
        rules = [table, lambda token, position: table(token, position + 1)]

        async def launch(hear):
            return FakeEngine(hear, rule=rules.pop(0), dies_after=9 if rules else None), READY

        client = EngineClient(launch)
        await client.start()
        with pytest.raises(ServingError, match="does not give the same tokens"):
            await ask(client, make_params(n=2))
        assert client.in_flight == 0
        await client.stop()

    asyncio.run(scenario())
