"""A grammar is a value: equal where it is the same, sent between processes, and refused where it says nothing."""

import json
import pickle

import pytest

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "null"}}}


def test_a_schema_and_its_text_are_the_same_grammar_with_names_in_their_order():
    grammar = Grammar.json(SCHEMA)
    assert grammar == Grammar.json(json.dumps(SCHEMA, indent=3)) == pickle.loads(pickle.dumps(grammar))
    assert len({grammar, Grammar.json(json.dumps(SCHEMA)), Grammar.regex(grammar.text)}) == 2
    assert list(json.loads(grammar.text)["properties"]) == ["b", "a"]
    assert Grammar.json_object() == Grammar.json({"type": "object"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json("{"), "the schema is no JSON"),
        (lambda: Grammar.json({"a": {1, 2}}), "the schema is no JSON"),
        (lambda: Grammar.json("[" * 100_000), "the schema is no JSON"),
        (lambda: Grammar.json("[1]"), r"the schema is \[1\]"),
        (lambda: Grammar.choice([]), r"the choice is \[\]"),
        (lambda: Grammar.choice(["a", ""]), r'the choice is \["a", ""\]'),
    ],
)
def test_what_is_no_grammar_is_refused_with_a_remedy(make, message):
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert caught.value.remedy
