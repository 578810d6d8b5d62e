"""A call prescribes the form of its answer as OpenAI or vLLM have it, and the server holds to it, over deaths too."""

import functools
import json

import openai
import pytest

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.server.answer_form import parse_form
from superscaler.runtime.serving.server.api_error import ApiError
from superscaler.runtime.serving.server.fields import Fields
from tests.runtime.serving.finite_language import ChoiceGrammars
from tests.runtime.serving.server.fake_engine import VOCAB
from tests.runtime.serving.server.served import served
from tests.runtime.serving.server.test_application import in_loop, streamed, texts_of

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "null"}}}
FORMS = [
    ({}, None),
    ({"response_format": None, "guided_json": None}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar.json_object()),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
            }
        },
        Grammar.json(SCHEMA),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, Grammar.json(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Grammar.json(SCHEMA)),
    ({"structured_outputs": {"json_object": True}}, Grammar.json_object()),
    ({"structured_outputs": {"regex": "[a-z]+", "disable_any_whitespace": False}}, Grammar.regex("[a-z]+")),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, Grammar.choice(["yes", "no"])),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar.lark('start: "a"')),
    ({"guided_json": SCHEMA}, Grammar.json(SCHEMA)),
    ({"guided_regex": "a*"}, Grammar.regex("a*")),
    ({"guided_choice": ["a", "b"]}, Grammar.choice(["a", "b"])),
    ({"guided_grammar": 'start: "a"', "response_format": {"type": "text"}}, Grammar.lark('start: "a"')),
]


@pytest.mark.parametrize(("body", "expected"), FORMS)
def test_each_way_to_prescribe_a_form_is_understood(body, expected):
    grammar, field = parse_form(Fields(body))
    assert grammar == expected
    assert (field in body) if expected else field == ""


REFUSED = {
    "response_format": ({"response_format": "json"}, "response_format"),
    "no type": ({"response_format": {}}, "response_format.type"),
    "another type": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "an empty schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema"
    ),
    "a schema that is a number": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
        "response_format.json_schema.schema",
    ),
    "no JSON": ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    "a list": ({"structured_outputs": ["a"]}, "structured_outputs"),
    "nothing": ({"structured_outputs": {}}, "structured_outputs"),
    "two": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    "two with an object": ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
    "a tag": ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    "a regex that is a number": ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
    "no choice": ({"guided_choice": []}, "guided_choice"),
    "an empty choice": ({"guided_choice": ["a", ""]}, "guided_choice"),
    "a choice of numbers": ({"guided_choice": [1]}, "guided_choice"),
    "two fields": ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_prescribes_no_form_is_refused_and_the_field_named(name):
    body, param = REFUSED[name]
    with pytest.raises(ApiError) as caught:
        parse_form(Fields(body))
    assert caught.value.param == param
    assert caught.value.remedy


def with_choices(*deaths, **options):
    """A server that knows choices, whose first engines die after so many tokens."""
    return served(
        *deaths,
        engine={"grammars": ChoiceGrammars(VOCAB)},
        check_grammar=options.pop("check", lambda grammar: None),
    )


CHOICES = ["yellow", "yellowish", "green", "grün", "a very long colour that nobody has a name for"]


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_a_completion_is_one_of_the_choices(stream):
    async with with_choices() as here:
        ask = functools.partial(
            here.openai.completions.create, model="table", prompt="colour: ", n=4, max_tokens=60, stream=stream,
            extra_body={"structured_outputs": {"choice": CHOICES}},
        )  # fmt: skip
        seen = set()
        for seed in range(8):
            answer = await (streamed(ask(seed=seed)) if stream else ask(seed=seed))
            if stream:
                texts = texts_of(answer)
                reasons = [
                    each.finish_reason for chunk in answer for each in chunk.choices if each.finish_reason
                ]
            else:
                texts = {choice.index: choice.text for choice in answer.choices}
                reasons = [choice.finish_reason for choice in answer.choices]
            assert set(texts.values()) <= set(CHOICES)
            assert reasons == ["stop"] * 4
            seen |= set(texts.values())
        assert len(seen) > 2
        await here.idle()


@pytest.mark.parametrize("n", [1, 2])
@in_loop
async def test_a_chat_goes_on_within_its_form_when_engines_die(n):
    ask = {
        "model": "table", "messages": [{"role": "user", "content": "colour"}], "seed": 5, "n": n, "temperature": 1.5,
        "extra_body": {"guided_choice": [text * 6 for text in CHOICES]},
    }  # fmt: skip
    async with with_choices() as here:
        whole = [
            choice.message.content for choice in (await here.openai.chat.completions.create(**ask)).choices
        ]
    async with with_choices(3, 8) as here:
        answer = await here.openai.chat.completions.create(**ask)
        assert [choice.message.content for choice in answer.choices] == whole
        assert {choice.finish_reason for choice in answer.choices} == {"stop"}
        assert len(here.engines) == 3
        await here.idle()


@in_loop
async def test_others_beside_a_form_and_length_and_stop_are_as_ever():
    async with with_choices() as here:
        ask = functools.partial(
            here.openai.completions.create, model="table", prompt="so", seed=2, max_tokens=9
        )
        form = {"structured_outputs": {"choice": CHOICES[-1:]}}
        free = (await ask()).choices[0].text
        held, beside = [(await ask(extra_body=extra)).choices[0] for extra in (form, {})]
        assert beside.text == free
        assert (held.text, held.finish_reason) == ("a very lo", "length")
        stopped = (await ask(extra_body=form, stop=["y l"])).choices[0]
        assert (stopped.text, stopped.finish_reason) == ("a ver", "stop")


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_a_form_that_makes_no_sense_never_reaches_the_engine(stream):
    def check(grammar):
        raise RequestError(f"no {grammar.kind} like this", remedy="another")

    async with with_choices(check=check) as here:
        for body, param in (
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ):
            with pytest.raises(openai.BadRequestError, match="like this") as caught:
                await here.openai.chat.completions.create(
                    model="table", messages=[{"role": "user", "content": "a"}], stream=stream, extra_body=body
                )
            assert caught.value.param == param
        assert not here.engine.messages
        here.server._tokenizer = here.server._answers._tokenizer = None
        with pytest.raises(openai.BadRequestError, match="without a tokenizer"):
            await here.openai.completions.create(model="table", prompt=[1], extra_body={"guided_regex": "a"})
