"""A chat that forces a call gets one, which pydantic reads as the function's own arguments; by the official client."""

import functools
import json
from typing import Literal

import openai
import pydantic
import pytest

from superscaler.runtime.serving.grammar.guidance import GuidanceGrammars
from tests.runtime.serving.server.fake_engine import END, VOCAB
from tests.runtime.serving.server.served import byte_tokenizer, served
from tests.runtime.serving.server.test_application import MODEL, in_loop, streamed

PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
ASK = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "?"}],
    "max_completion_tokens": 300,
    "temperature": 2,
}


class City(pydantic.BaseModel):
    name: Literal["Ulm", "Köln"]
    part: "City | None"


class Sky(pydantic.BaseModel):
    """The weather."""

    city: City
    days: Literal[1, 2, 3]


class Sum(pydantic.BaseModel):
    of: list[Literal[0, 1]] = pydantic.Field(min_length=1, max_length=3)


TOOLS = [openai.pydantic_function_tool(Sky, name="sky"), openai.pydantic_function_tool(Sum, name="sum")]
READ = {"sky": Sky, "sum": Sum}


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.fixture
def forced(tmp_path):
    """Makes a server whose engine holds to grammars."""
    byte_tokenizer()._loaded.save_pretrained(tmp_path)
    grammars = GuidanceGrammars(tmp_path, VOCAB, frozenset([END]))
    return lambda **more: served(engine={"grammars": grammars}, **more)


def call_in(deltas):
    """The only call in what was streamed."""
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    name = "".join(call.function.name or "" for call in calls)
    return name, "".join(call.function.arguments or "" for call in calls)


@pytest.mark.parametrize("template", [None, PLAIN])
@in_loop
async def test_any_answer_calls_one_of_the_tools(forced, template):
    options = {} if template is None else {"tokenizer": byte_tokenizer(template=template)}
    async with forced(**options) as here:
        seen = set()
        for seed in range(12):
            ask = functools.partial(
                here.openai.chat.completions.create, **ASK, tools=TOOLS, tool_choice="required", seed=seed
            )
            whole = (await ask()).choices[0]
            [call] = whole.message.tool_calls
            READ[call.function.name].model_validate_json(call.function.arguments)
            assert call.function.arguments == json.dumps(
                json.loads(call.function.arguments), ensure_ascii=False
            )
            assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
            chunks = await streamed(ask(stream=True))
            deltas = [chunk.choices[0].delta for chunk in chunks]
            assert call_in(deltas) == (call.function.name, call.function.arguments)
            assert not "".join(delta.content or "" for delta in deltas)
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
            seen.add(call.function.name)
        assert seen == READ.keys()
        await here.idle()


@pytest.mark.parametrize("name", READ)
@in_loop
async def test_the_function_that_is_named_is_called_and_the_end_is_called_a_stop(forced, name):
    async with forced() as here:
        for seed in range(6):
            ask = {**ASK, "tools": TOOLS, "tool_choice": named(name), "seed": seed, "n": 2}
            answer = await here.openai.chat.completions.parse(**ask, parallel_tool_calls=False)
            for choice in answer.choices:
                [call] = choice.message.tool_calls
                assert isinstance(call.function.parsed_arguments, READ[name])
                assert choice.finish_reason == "stop"
            chunks = await streamed(here.openai.chat.completions.create(**ask, stream=True))
            for choice in answer.choices:
                [call] = choice.message.tool_calls
                own = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
                assert call_in(each.delta for each in own) == (name, call.function.arguments)
                assert own[-1].finish_reason == "stop"


@in_loop
async def test_a_function_that_takes_nothing_gets_an_empty_object(forced):
    tool = {"type": "function", "function": {"name": "naïve"}}
    async with forced() as here:
        answer = await here.openai.chat.completions.create(**ASK, tools=[tool], tool_choice="required")
        [call] = answer.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("naïve", "{}")


BROKEN = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
REFUSED = {
    "no tools": ({"tool_choice": "required"}, "tool_choice"),
    "an unknown function": ({"tools": TOOLS, "tool_choice": named("moon")}, "tool_choice"),
    "another word": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    "another kind": ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    "no name": ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    "a form besides": (
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"
    ),
    "no schema": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
        "tools[0].function.parameters",
    ),
    "a schema of nothing": ({"tools": [BROKEN], "tool_choice": "required"}, "tool_choice"),
    "one call at most that is not forced": ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
}  # fmt: skip


@in_loop
async def test_what_forces_no_call_is_refused_and_the_field_named():
    async with served() as here:
        for name, (body, param) in REFUSED.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await here.openai.chat.completions.create(**ASK, extra_body=body)
            assert caught.value.param == param, name
        assert not here.engine.messages
