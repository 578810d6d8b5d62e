"""The server, asked by the official client, answers as the OpenAI API does."""

import asyncio
import functools

import openai
import pytest

from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.application import ServerLimits
from tests.runtime.serving.server.fake_engine import writes
from tests.runtime.serving.server.served import byte_tokenizer, served

MODEL = "table"


def in_loop(test):
    @functools.wraps(test)
    def run(*arguments, **named):
        asyncio.run(test(*arguments, **named))

    return run


async def streamed(answer):
    return [chunk async for chunk in await answer]


def texts_of(chunks):
    """What each choice says, by its number."""
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


@in_loop
async def test_a_stream_says_what_the_whole_answer_says():
    async with served() as here:
        ask = functools.partial(
            here.openai.completions.create, model=MODEL, prompt="begin", seed=3, max_tokens=40
        )
        whole = await ask()
        chunks = await streamed(ask(stream=True, stream_options={"include_usage": True}))
        assert texts_of(chunks) == {0: whole.choices[0].text}
        assert len(whole.choices[0].text) == 40
        assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].choices == []
        for usage in (whole.usage, chunks[-1].usage):
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 40, 45)
        await here.idle()


@in_loop
async def test_prompts_are_texts_or_token_ids_one_or_many():
    async with served() as here:
        ask = functools.partial(here.openai.completions.create, model=MODEL, temperature=0, max_tokens=8)
        one, other = [(await ask(prompt=prompt)).choices[0].text for prompt in ("ab", "xyz")]
        both = await ask(prompt=["ab", "xyz"])
        assert [choice.text for choice in both.choices] == [one, other]
        assert (await ask(prompt=list(b"ab"))).choices[0].text == one
        ids = await ask(prompt=[list(b"xyz"), list(b"ab")])
        assert [choice.text for choice in ids.choices] == [other, one]
        assert texts_of(await streamed(ask(prompt=["ab", "xyz"], stream=True))) == {0: one, 1: other}


@in_loop
async def test_continuations_differ_and_a_seed_repeats_them():
    async with served() as here:
        ask = functools.partial(here.openai.completions.create, model=MODEL, prompt="so", n=3, max_tokens=20)
        first, again, other = [
            [choice.text for choice in (await ask(seed=seed)).choices] for seed in (1, 1, 2)
        ]
        assert first == again != other
        assert len({*first, *other}) == 6
        assert texts_of(await streamed(ask(seed=1, stream=True))) == dict(enumerate(first))


@in_loop
async def test_echo_puts_the_prompt_before_every_continuation():
    async with served() as here:
        ask = functools.partial(here.openai.completions.create, model=MODEL, seed=1, n=2, max_tokens=3)
        plain, echoed = await ask(prompt="ab"), await ask(prompt="ab", echo=True)
        assert [c.text for c in echoed.choices] == ["ab" + c.text for c in plain.choices]


@in_loop
async def test_a_stop_string_across_tokens_ends_text_and_sequence():
    async with served(engine={"rule": writes(b"one two three ", end=False)}) as here:
        ask = functools.partial(
            here.openai.completions.create, model=MODEL, prompt="x", max_tokens=200, stop=["thr", "tw9"]
        )
        whole = await ask()
        assert whole.choices[0].text == "one two "
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].stop_reason == "thr"
        assert whole.usage.completion_tokens == len("one two thr")
        chunks = await streamed(ask(stream=True))
        assert texts_of(chunks) == {0: "one two "}
        kept = await ask(extra_body={"include_stop_str_in_output": True})
        assert kept.choices[0].text == "one two thr"
        await here.idle()


@in_loop
async def test_the_models_end_is_no_part_of_the_text_and_can_be_ignored():
    async with served(engine={"rule": writes("né!".encode())}) as here:
        ask = functools.partial(here.openai.completions.create, model=MODEL, max_tokens=11)
        ended = (await ask(prompt="n")).choices[0]
        assert (ended.text, ended.finish_reason) == ("né!", "stop")
        going = (await ask(prompt="n", extra_body={"ignore_eos": True})).choices[0]
        assert (going.text, going.finish_reason) == (
            "né!né!n",
            "length",
        )  # its end is a token that says nothing
        token = (await ask(prompt="n", extra_body={"stop_token_ids": [ord("!")]})).choices[0]
        assert (token.text, token.finish_reason, token.stop_reason) == ("né", "stop", ord("!"))


@in_loop
async def test_log_probabilities_are_of_the_tokens_that_are_said():
    async with served() as here:
        ask = functools.partial(
            here.openai.completions.create, model=MODEL, prompt="go", max_tokens=6, seed=5
        )
        found = (await ask(logprobs=3)).choices[0]
        assert "".join(found.logprobs.tokens) == found.text
        assert found.logprobs.text_offset == list(range(6))
        for token, chosen, likeliest in zip(
            found.logprobs.tokens, found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True
        ):
            assert likeliest[token] == chosen <= max(likeliest.values()) < 0
            assert len(likeliest) in (3, 4)
        chunks = await streamed(ask(logprobs=3, stream=True))
        assert [c for chunk in chunks for c in chunk.choices[0].logprobs.token_logprobs] == (
            found.logprobs.token_logprobs
        )
        chat = await here.openai.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "go"}],
            logprobs=True,
            top_logprobs=2,
            max_tokens=4,
        )
        content = chat.choices[0].logprobs.content
        assert "".join(each.token for each in content) == chat.choices[0].message.content
        assert [bytes(each.bytes).decode() for each in content] == [each.token for each in content]
        assert {len(each.top_logprobs) for each in content} == {2}


@in_loop
async def test_conversations_go_through_the_template():
    async with served() as here:
        create = here.openai.chat.completions.create
        messages = [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        ]
        ask = functools.partial(
            create, model=MODEL, messages=messages, temperature=0, max_completion_tokens=9
        )
        whole = await ask()
        plain = await here.openai.completions.create(
            model=MODEL, prompt="[system]brief[user]hi[assistant]", temperature=0, max_tokens=9
        )
        assert whole.choices[0].message.content == plain.choices[0].text
        assert whole.usage.total_tokens == plain.usage.total_tokens
        assert (
            plain.usage.prompt_tokens_details.cached_tokens == 16
        )  # of 32, the last of which is always computed
        chunks = await streamed(ask(stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].text


@in_loop
async def test_what_a_call_does_not_say_is_as_the_model_has_it():
    said = {
        "temperature": 0.7,
        "extra_body": {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.3},
        "top_p": 0.9,
    }
    defaults = {"temperature": 0.7, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.3, "top_p": 0.9}
    ask = {"model": MODEL, "prompt": "go", "max_tokens": 60, "seed": 8}
    async with served() as here:
        plain = (await here.openai.completions.create(**ask)).choices[0].text
        expected = (await here.openai.completions.create(**ask, **said)).choices[0].text
    async with served(defaults=SamplingParams(**defaults)) as here:
        assert (await here.openai.completions.create(**ask)).choices[0].text == expected != plain
        usual = {"temperature": 1, "top_p": 1}
        usual["extra_body"] = {"top_k": 0, "min_p": 0, "repetition_penalty": 1}
        assert (await here.openai.completions.create(**ask, **usual)).choices[0].text == plain


@in_loop
async def test_a_chat_gets_the_models_own_number_of_tokens_as_far_as_there_is_room():
    async with served(defaults=SamplingParams(max_tokens=33)) as here:
        chat = functools.partial(
            here.openai.chat.completions.create, model=MODEL, messages=[{"role": "user", "content": "a"}]
        )
        assert (await chat()).usage.completion_tokens == 33
        assert (await chat(max_completion_tokens=40)).usage.completion_tokens == 40
        long = await chat(messages=[{"role": "user", "content": "a" * 470}])
        assert long.usage.total_tokens == 512
        completion = await here.openai.completions.create(model=MODEL, prompt="a")
        assert completion.usage.completion_tokens == 16  # which the OpenAI API prescribes


@in_loop
async def test_tool_calls_are_taken_out_of_the_text():
    said = 'Look. <tool_call>\n{"name": "sky", "arguments": {"city": "Ulm"}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
    prompt = len("[user]?<tool_call>[assistant]")
    text = (b"?" * prompt) + said.encode()
    async with served(engine={"rule": writes(text[1:])}) as here:
        ask = functools.partial(
            here.openai.chat.completions.create,
            model=MODEL,
            messages=[{"role": "user", "content": "?"}],
            tools=tools,
        )
        whole = (await ask()).choices[0]
        assert whole.message.content == "Look."
        [call] = whole.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("sky", '{"city": "Ulm"}')
        assert whole.finish_reason == "tool_calls"
        chunks = await streamed(ask(stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(delta.content or "" for delta in deltas) == "Look."
        [call] = [call for delta in deltas for call in delta.tool_calls or ()]
        assert (call.index, call.function.name, call.function.arguments) == (0, "sky", '{"city": "Ulm"}')
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        none = (await ask(tool_choice="none")).choices[0]
        assert none.message.tool_calls is None


REFUSED = {
    "no prompt": ({"prompt": None}, "prompt"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "a prompt of what is no token": ({"prompt": [1, 5000]}, "prompt"),
    "a negative token": ({"prompt": [-1]}, "prompt"),
    "mixed prompts": ({"prompt": ["a", 1]}, "prompt"),
    "temperature below 0": ({"temperature": -1}, "temperature"),
    "a temperature that is a text": ({"temperature": "hot"}, "temperature"),
    "a truth value for a number": ({"max_tokens": True}, "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "too many tokens": ({"max_tokens": 600}, None),
    "suffix": ({"suffix": "end"}, "suffix"),
    "best_of": ({"best_of": 3}, "best_of"),
    "echo with logprobs": ({"echo": True, "logprobs": 1}, "logprobs"),
    "too many logprobs": ({"logprobs": 21}, "logprobs"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "a stop that is a number": ({"stop": 5}, "stop"),
    "an empty stop": ({"stop": ""}, "stop"),
    "a bias for no token": ({"logit_bias": {"a": 1}}, "logit_bias"),
    "a bias for a token that is not there": ({"logit_bias": {"5000": 1}}, "logit_bias"),
    "a bias out of range": ({"logit_bias": {"1": 101}}, "logit_bias"),
    "a stop token that is not there": ({"stop_token_ids": [5000]}, "stop_token_ids"),
    "more sequences than any engine runs": ({"n": 2000}, "n"),
    "more sequences than run at once": ({"n": 1000}, "n"),
    "several of what would be the same": ({"n": 2, "temperature": 0}, "n"),
    "top_p of nothing": ({"top_p": 0}, "top_p"),
    "top_p above 1": ({"top_p": 1.1}, "top_p"),
    "top_k below -1": ({"top_k": -2}, "top_k"),
    "min_p above 1": ({"min_p": 2}, "min_p"),
    "a penalty out of range": ({"presence_penalty": 3}, "presence_penalty"),
    "another one": ({"frequency_penalty": -3}, "frequency_penalty"),
    "no penalty at all": ({"repetition_penalty": 0}, "repetition_penalty"),
    "more tokens at least than at most": ({"min_tokens": 5}, "min_tokens"),
}


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_what_cannot_be_done_is_refused_and_the_field_named(stream):
    async with served() as here:
        for name, (fields, param) in REFUSED.items():
            body = {"model": MODEL, "prompt": "a", "max_tokens": 4, "stream": stream} | fields
            if stream and "stream_options" in body:
                continue
            with pytest.raises(openai.BadRequestError) as caught:
                await here.openai.post("/completions", cast_to=object, body=body)
            assert caught.value.type == "invalid_request_error", name
            assert caught.value.param == param, name
            assert caught.value.body["message"], name
        await here.idle()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@in_loop
async def test_the_field_is_named_as_the_call_names_it(name):
    async with served() as here:
        with pytest.raises(openai.BadRequestError, match=f"{name} is 0") as caught:
            await here.openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "a"}], **{name: 0}
            )
        assert caught.value.param == name


@in_loop
async def test_bodies_that_are_no_request_are_refused():
    async with served(limits=ServerLimits(body_bytes=1000)) as here:
        http = here.openai._client
        for body, status in (
            (b"", 400), (b"{", 400), (b"[1]", 400), (b"\xff\xfe", 400), (b"[" * 900, 400),
            (b'{"prompt": "\\ud800"}', 400), (b'{"prompt": "a", "temperature": NaN}', 400),
            (b'{"prompt": ' + b"1" * 900 + b"}", 400),
            (b'{"prompt": "' + b"a" * 1000 + b'"}', 413),
        ):  # fmt: skip
            answer = await http.post(f"{here.url}/v1/completions", content=body)
            assert answer.status_code == status, body[:40]
            assert answer.json()["error"]["message"]

        async def parts():
            for _ in range(100):
                yield b" " * 100

        answer = await http.post(f"{here.url}/v1/completions", content=parts())
        assert answer.status_code == 413


@in_loop
async def test_errors_have_the_status_and_shape_of_the_openai_api():
    async with served(api_keys=["right", "spare"], key="wrong") as here:
        with pytest.raises(openai.AuthenticationError) as caught:
            await here.openai.models.list()
        assert caught.value.code == "invalid_api_key"
        http = here.openai._client
        assert (await http.get(f"{here.url}/health")).status_code == 200
        for path, status in (("/v1/nothing", 404), ("/v1/completions", 405)):
            answer = await http.get(here.url + path)
            assert (answer.status_code, set(answer.json()["error"])) == (
                status,
                {"message", "type", "param", "code"},
            )
        known = here.openai.with_options(api_key="spare")
        with pytest.raises(openai.NotFoundError) as caught:
            await known.completions.create(model="other", prompt="a")
        assert caught.value.code == "model_not_found"
        [card] = (await known.models.list()).data
        assert card.id == MODEL
        assert (await known.models.retrieve(MODEL)).max_model_len == 512


@in_loop
async def test_a_model_without_a_tokenizer_is_served_by_token_ids():
    async with served() as here:
        here.server._tokenizer = here.server._answers._tokenizer = None
        ask = functools.partial(here.openai.completions.create, model=MODEL, temperature=0, max_tokens=4)
        found = (await ask(prompt=list(b"ab"))).choices[0]
        assert len(found.token_ids) == 4
        assert found.text == ""
        with pytest.raises(openai.BadRequestError, match="token ids"):
            await ask(prompt="ab")
        with pytest.raises(openai.BadRequestError, match="/v1/completions"):
            await here.openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "a"}]
            )


@in_loop
async def test_a_model_without_a_template_says_so():
    async with served(tokenizer=byte_tokenizer(template=None)) as here:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            await here.openai.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "a"}]
            )
