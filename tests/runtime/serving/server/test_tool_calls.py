"""Calls are taken out of a text the same way however it comes in parts."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.serving.server.tool_calls import ToolCall, ToolCallReader, are_known

CALL = '<tool_call>\n{"name": "sum", "arguments": {"of": [1, "é"]}}\n</tool_call>'
PIECES = st.sampled_from([CALL, "a", " ", "\n", "<", "<tool", "<tool_call>", "</tool_call>", "{}", "b"])


def read(parts):
    reader = ToolCallReader()
    said = "".join(map(reader.add, parts))
    return said + reader.finish(), reader.calls


@given(st.lists(PIECES, max_size=6), st.lists(st.integers(0, 300), max_size=8))
def test_parts_say_what_the_whole_says(pieces, cuts):
    text = "".join(pieces)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    assert read(parts) == read([text])


@given(st.lists(st.sampled_from(["a", " b", "\n", CALL]), max_size=6))
def test_calls_are_found_in_order_and_the_rest_is_said(pieces):
    said, calls = read(["".join(pieces)])
    assert len(calls) == pieces.count(CALL)
    assert said.replace(" ", "").replace("\n", "") == "".join(
        piece.strip() for piece in pieces if piece != CALL
    )


def test_a_call_has_its_arguments_as_json():
    said, [call] = read([CALL])
    assert said == ""
    assert call == ToolCall("sum", json.dumps({"of": [1, "é"]}, ensure_ascii=False))


def test_what_is_no_call_stays_text():
    for text in (
        "a < b",
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": 3}</tool_call>',
        "<tool_call>{",
    ):
        assert read(list(text)) == (text, [])


def test_only_templates_that_teach_the_convention_are_known():
    assert are_known("write <tool_call> and the call")
    assert not are_known("write [TOOL_CALLS]")
    assert not are_known(None)
