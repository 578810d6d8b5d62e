"""The server with many clients, some of which leave; with engines that die; and when it is about to end."""

import asyncio
import json
import random

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from superscaler.runtime.serving.link import End
from superscaler.runtime.serving.server.application import ServerLimits
from tests.runtime.serving.server.fake_engine import make_engine
from tests.runtime.serving.server.served import served
from tests.runtime.serving.server.test_application import MODEL, in_loop

CLIENTS, LEAVE = 300, 30


async def scraped(here):
    """The samples of /metrics, by name and labels."""
    text = (await here.openai._client.get(f"{here.url}/metrics")).text
    families = list(text_string_to_metric_families(text))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def raw_stream(here, body):
    """A streaming request over a connection of its own, which the test can cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(here.url.rpartition(":")[2]))
    content = json.dumps({"model": MODEL, "stream": True} | body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    return reader, writer


@in_loop
async def test_three_hundred_clients_of_which_a_tenth_leave_get_theirs_and_leave_nothing():
    chance = random.Random(0)
    leavers = set(chance.sample(range(CLIENTS), LEAVE))
    async with served() as here:

        async def client(number):
            most = 400 if number in leavers else 12
            body = {"prompt": f"client {number}", "seed": number, "max_tokens": most}
            reader, writer = await raw_stream(here, body)
            said = b""
            while b"[DONE]" not in said:
                said += await reader.read(4096)
                if number in leavers and said.count(b"data: ") > 2:
                    writer.close()
                    return None
            writer.close()
            events = [line[6:] for line in said.decode().splitlines() if line.startswith("data: {")]
            return "".join(json.loads(event)["choices"][0]["text"] for event in events)

        texts = await asyncio.gather(*map(client, range(CLIENTS)))
        await here.idle()
        ended = {message.request_id for message in here.engine.messages if isinstance(message, End)}
        assert len(ended) == LEAVE
        samples = await scraped(here)
        assert samples["vllm:num_requests_running", (("model_name", MODEL),)] == 0
    for number in chance.sample(sorted({*range(CLIENTS)} - leavers), 10):
        [found] = undisturbed_text(f"client {number}", number)
        assert texts[number] == found
    assert all(texts[number] is None for number in leavers)


def undisturbed_text(prompt, seed):
    from superscaler.runtime.serving.request import Request
    from superscaler.runtime.serving.sampling_params import SamplingParams

    engine, tokens = make_engine(), []
    engine.add(Request("alone", tuple(prompt.encode()), SamplingParams(seed=seed, max_tokens=12)))
    while not engine.is_idle:
        tokens += [token for output in engine.step() for token in output.tokens]
    return [bytes(tokens).decode()]


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_a_client_that_leaves_before_the_first_token_ends_its_request(stream):
    async with served(engine={"step_seconds": 0.02}) as here:
        _, writer = await raw_stream(here, {"prompt": "a", "max_tokens": 400, "stream": stream})
        while not here.client.in_flight:
            await asyncio.sleep(0.001)
        writer.close()
        await here.idle()
        assert isinstance(here.engine.messages[-1], End)


@in_loop
async def test_a_stream_goes_on_over_the_death_of_its_engine():
    async with served() as here:
        ask = here.openai.completions.create
        whole = (await ask(model=MODEL, prompt="go", seed=1, max_tokens=50)).choices[0].text
        said = ""
        async for chunk in await ask(model=MODEL, prompt="go", seed=1, max_tokens=50, stream=True):
            said += chunk.choices[0].text
            if len(said) == 20 and len(here.engines) == 1:
                here.engine.die()
        assert said == whole
        assert len(here.engines) == 2


@in_loop
async def test_when_no_engine_is_left_streams_end_with_an_error_and_calls_are_turned_away():
    async with served(5, max_restarts=0) as here:
        with pytest.raises(openai.APIError, match="the engine died"):
            async for _ in await here.openai.completions.create(
                model=MODEL, prompt="a", max_tokens=99, stream=True
            ):
                pass
        with pytest.raises(openai.InternalServerError) as caught:
            await here.openai.completions.create(model=MODEL, prompt="a")
        assert (caught.value.status_code, caught.value.code) == (503, "engine_gone")
        assert (await here.openai._client.get(f"{here.url}/health")).status_code == 503


@in_loop
async def test_while_it_drains_what_runs_goes_on_and_what_comes_is_turned_away():
    async with served(engine={"step_seconds": 0.005}) as here:
        stream = await here.openai.completions.create(model=MODEL, prompt="a", max_tokens=50, stream=True)
        said = (await anext(stream)).choices[0].text
        here.server.is_draining = True
        with pytest.raises(openai.InternalServerError) as caught:
            await here.openai.completions.create(model=MODEL, prompt="a")
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) > 0
        async for chunk in stream:
            said += chunk.choices[0].text
        assert len(said) == 50


@in_loop
async def test_more_than_may_wait_are_turned_away():
    async with served(limits=ServerLimits(waiting=2)) as here:
        await here.engine.end()  # nobody gets a token
        ask = here.openai.completions.create
        waiting = [asyncio.create_task(ask(model=MODEL, prompt="a")) for _ in range(2)]
        while here.client.in_flight < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(model=MODEL, prompt="a")
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) > 0
        here.engine.die()
        assert [len((await answer).choices[0].text) for answer in waiting] == [16, 16]
        await here.idle()


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_an_answer_that_takes_too_long_is_given_up(stream):
    async with served(limits=ServerLimits(request_seconds=0.3), engine={"step_seconds": 0.02}) as here:
        ask = here.openai.completions.create(model=MODEL, prompt="a", max_tokens=400, stream=stream)
        with pytest.raises(openai.APIError, match="longer than the server allows"):
            async for _ in await ask:
                pass
        await here.idle()


@in_loop
async def test_one_of_several_prompts_that_cannot_be_served_ends_all():
    async with served() as here:
        with pytest.raises(openai.BadRequestError):
            await here.openai.completions.create(model=MODEL, prompt=["a", "b" * 511], max_tokens=40)
        await here.idle()


@in_loop
async def test_metrics_count_what_was_asked_and_said():
    async with served() as here:
        ask = here.openai.completions.create
        await ask(model=MODEL, prompt="x" * 40, max_tokens=10, n=2)
        await ask(model=MODEL, prompt="x" * 40, max_tokens=10)
        found = {
            name.removeprefix("vllm:"): value
            for (name, labels), value in (await scraped(here)).items()
            if len(labels) == 1
        }
        assert found["prompt_tokens_total"] == 80
        assert found["generation_tokens_total"] == 30
        assert found["prefix_cache_queries_total"] == 80
        assert found["prefix_cache_hits_total"] == 32
        assert found["time_to_first_token_seconds_count"] == 2
        assert found["e2e_request_latency_seconds_count"] == 3
        assert found["request_time_per_output_token_seconds_count"] == 3
        assert found["inter_token_latency_seconds_count"] == 27
        assert found["request_generation_tokens_sum"] == 30
        assert (
            found["num_requests_running"]
            == found["num_requests_waiting"]
            == found["kv_cache_usage_perc"]
            == 0
        )
        ended = {
            dict(labels)["finished_reason"]: value
            for (name, labels), value in (await scraped(here)).items()
            if name == "vllm:request_success_total"
        }
        assert ended == {"length": 3}
