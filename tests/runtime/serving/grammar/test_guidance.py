"""llguidance holds answers to what a schema, an expression, a choice or a grammar says: judged by json and re."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.grammar.guidance import GuidanceGrammars, check_grammar
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from tests.runtime.serving.server.fake_engine import END, VOCAB, make_engine
from tests.runtime.serving.server.served import byte_tokenizer

COMPACT = {"x-guidance": {"whitespace_flexible": False}}
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"enum": ["red", "blue", None]}, "minItems": 1, "maxItems": 3}


def is_point(found):
    return found.keys() == {"x", "on"} and 0 <= found["x"] <= 99 and isinstance(found["on"], bool)


def is_list(found):
    return 1 <= len(found) <= 3 and set(found) <= {"red", "blue", None}


def is_parsed(judge):
    return lambda text: judge(json.loads(text))


EXPRESSIONS = ["[a-f]{3,6}", "(0|[1-9][0-9]{0,2}),-?", "x(ab|cd)*y?", "[ä-ü]{1,3}!", "[0-9]{4}-[0-9]{2}"]
CHOICES = ["yes", "yes, indeed", "nö", 'a "quote"\n']
RULES = 'start: item ("," item){0,2}\nitem: /[ab]{1,2}/'
CASES = [
    (Grammar.json({**POINT, **COMPACT}), is_parsed(is_point)),
    (Grammar.json({**LIST, **COMPACT}), is_parsed(is_list)),
    (Grammar.choice(CHOICES), CHOICES.__contains__),
    (Grammar.lark(RULES), re.compile("[ab]{1,2}(,[ab]{1,2}){0,2}").fullmatch),
    *((Grammar.regex(text), re.compile(text).fullmatch) for text in EXPRESSIONS),
]


@pytest.fixture(scope="module")
def grammars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer()._loaded.save_pretrained(folder)
    return GuidanceGrammars(folder, VOCAB, frozenset([END]))


def random_rule(spread):
    def rule(token, position):
        return torch.randn(VOCAB, generator=torch.Generator().manual_seed(token * 1009 + position)) * spread

    return rule


def answers_of(grammars, requests, rule):
    """Text and reason of each sequence, by request and index."""
    engine = make_engine(rule, grammars)
    for request in requests:
        engine.add(request)
    found = {}
    while not engine.is_idle:
        for output in engine.step():
            tokens, _ = found.get((output.request_id, output.index), ((), None))
            found[output.request_id, output.index] = ((*tokens, *output.tokens), output.finish_reason)
    assert engine._matchers == {}
    return {
        name: (bytes(token for token in tokens if token < 256).decode("utf-8", "replace"), reason)
        for name, (tokens, reason) in found.items()
    }


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, len(CASES) - 1),
    st.integers(0, 1 << 30),
    st.sampled_from([0.0, 0.7, 5.0]),
    st.floats(0.1, 9),
)
def test_answers_of_random_weights_are_valid(grammars, number, seed, temperature, spread):
    grammar, judge = CASES[number]
    params = SamplingParams(
        temperature=temperature, seed=seed, n=1 if temperature == 0 else 2, max_tokens=200, grammar=grammar
    )
    found = answers_of(grammars, [Request("a", (65, seed % 256), params)], random_rule(spread))
    assert found
    for text, reason in found.values():
        assert reason == "stop"
        assert judge(text), text


def test_objects_of_no_schema_are_json(grammars):
    requests = [
        Request(str(seed), (seed,), SamplingParams(seed=seed, max_tokens=400, grammar=Grammar.json_object()))
        for seed in range(8)
    ]
    found = answers_of(grammars, requests, random_rule(1.0))
    ended = [text for text, reason in found.values() if reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


@pytest.mark.parametrize("expression", ["[a-f]{3,6}", "x(ab|cd){0,3}y?"])
def test_greedy_is_that_of_a_loop_that_tries_each_token_with_re(grammars, expression):
    """Beginnings of texts are told by brute force: all texts of these small languages are listed."""
    if expression.startswith("["):
        words = [""]
        words = [word for length in range(3, 7) for word in _strings("abcdef", length)]
    else:
        words = [
            f"x{''.join(parts)}{y}"
            for length in range(4)
            for parts in _strings(("ab", "cd"), length)
            for y in ("", "y")
        ]
    assert all(re.fullmatch(expression, word) for word in words)
    beginnings = {word[:length] for word in words for length in range(len(word) + 1)}
    whole, rule = set(words), random_rule(1.0)
    for seed in range(12):
        text, last, position = "", seed, 1
        while any(text + letter in beginnings for letter in "abcdefxy"):
            allowed = [ord(letter) for letter in "abcdefxy" if text + letter in beginnings] + [END] * (
                text in whole
            )
            logits = rule(last, position - 1)
            last, position = max(allowed, key=lambda token: logits[token].item()), position + 1
            if last == END:
                break
            text += chr(last)
        params = SamplingParams(temperature=0, max_tokens=50, grammar=Grammar.regex(expression))
        ((found, reason),) = answers_of(grammars, [Request("a", (seed,), params)], rule).values()
        assert (found, reason) == (text, "stop")


def _strings(parts, length):
    return [""] if not length else [text + part for text in _strings(parts, length - 1) for part in parts]


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar.regex("a("), "regular expression cannot be used: .*"),
        (Grammar.lark("start: /a/ nothing_like_it"), "grammar cannot be used: .*nothing_like_it"),
        (Grammar.json({"type": "strange"}), "JSON schema cannot be used: .*"),
    ],
)
def test_what_makes_no_sense_is_refused_in_llguidances_words(grammars, grammar, message):
    with pytest.raises(RequestError, match=message):
        check_grammar(grammar)
    with pytest.raises(RequestError, match=message):
        grammars.begin(grammar, ())


def test_a_grammar_that_allows_no_token_is_refused(grammars):
    with pytest.raises(RequestError, match="no token of the model begins a text"):
        grammars.begin(Grammar.regex(""), (END,))


def test_a_tokenizer_that_is_not_there_and_a_model_without_an_end_say_what_to_do(tmp_path):
    for grammars, message in (
        (GuidanceGrammars(tmp_path, VOCAB, frozenset([END])), "there is no .*tokenizer.json"),
        (GuidanceGrammars(tmp_path, VOCAB, frozenset()), "needs to know the model's end token"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            grammars.begin(Grammar.regex("a"), ())
        assert caught.value.remedy


def test_a_grammar_is_compiled_once(grammars, monkeypatch):
    grammar = Grammar.regex("only once")
    grammars.begin(grammar, ())
    monkeypatch.setattr(grammars, "_compile", None)
    first, second = grammars.begin(grammar, ()), grammars.begin(grammar, ())
    first.take(ord("o"))
    assert second.allowed().tolist() != first.allowed().tolist()
