"""Text that comes token by token is the text of all tokens, up to the first stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.serving.server.text import Detokenizer, StopStrings, Text

ALPHABET = "aab€🙂 "


def decode_bytes(tokens):
    """Each token is a byte, as the smallest tokens of byte-level tokenizers are."""
    return bytes(tokens).decode("utf-8", errors="replace")


def decode_words(tokens):
    """Each token is a word with a space in front, which the text does not begin with; 0 is not shown."""
    return "".join(f" w{token}" for token in tokens if token).removeprefix(" ")


@given(st.lists(st.integers(0, 255)))
def test_bytes_joined_are_the_text_of_all(tokens):
    stream = Detokenizer(decode_bytes)
    parts = [stream.add(token) for token in tokens]
    assert "".join(parts) + stream.finish() == decode_bytes(tokens)


@given(st.text(ALPHABET))
def test_no_part_holds_half_a_character(text):
    stream = Detokenizer(decode_bytes)
    parts = [stream.add(token) for token in text.encode()]
    assert "".join(parts) == text
    assert stream.finish() == ""


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(1, 3), min_size=1))
def test_words_keep_their_spaces_after_a_prompt(tokens, prompt):
    stream = Detokenizer(decode_words, prompt)
    text = "".join([*map(stream.add, tokens), stream.finish()])
    assert decode_words(prompt) + text == decode_words([*prompt, *tokens])


def test_a_character_that_the_prompt_began_is_said_whole():
    first, *rest = "€".encode()
    stream = Detokenizer(decode_bytes, [*b"so: ", first])
    assert "".join(map(stream.add, rest)) == "€"


def first_stop(text, stops):
    """Where the text ends and with which stop string, by str.find."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    return min(found, default=(len(text), len(text), None))


@st.composite
def cut_texts(draw):
    text = draw(st.text("abc", max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_texts(), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.booleans())
def test_stop_strings_are_found_where_find_finds_them_for_any_cut(cut, stops, keep):
    text, parts = cut
    stream, said = StopStrings(stops, keep), ""
    for part in parts:
        said += stream.add(part)
        if stream.found is not None:
            break
    said += stream.finish()
    end, start, stop = first_stop(text, stops)
    assert stream.found == stop
    assert said == text[: end if keep or stop is None else start]


@given(cut_texts(), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_is_held_back_only_while_it_may_begin_a_stop_string(cut, stops):
    _, parts = cut
    stream, said, seen = StopStrings(stops), "", ""
    for part in parts:
        said, seen = said + stream.add(part), seen + part
        if stream.found is not None:
            return
        beginnings = {stop[:size] for stop in stops for size in range(1, len(stop))}
        held = max((len(each) for each in beginnings if seen.endswith(each)), default=0)
        assert said == seen[: len(seen) - held]


@given(st.text(ALPHABET, max_size=20), st.lists(st.text(ALPHABET, min_size=1, max_size=3), max_size=3))
def test_tokens_end_at_the_stop_string_that_is_complete_first(text, stops):
    stream, said, taken = Text(decode_bytes, stops=stops), "", 0
    for token in text.encode():
        said, taken = said + stream.add(token), taken + 1
        if stream.stop is not None:
            break
    said += stream.finish()
    end, start, stop = first_stop(text, stops)
    assert stream.stop == stop
    assert said == text[:start]
    assert taken == len(text[:end].encode())


@pytest.mark.parametrize(("least", "said"), [(0, "x"), (2, "x"), (3, "xabx"), (5, "xabx"), (6, "xabxab")])
def test_nothing_stops_a_text_before_it_has_enough_tokens(least, said):
    stream, heard = Text(decode_bytes, stops=["ab"], min_tokens=least + 1), ""
    for token in b"xabxab":
        if stream.stop is None:
            heard += stream.add(token)
    assert heard + stream.finish() == said


def test_half_a_character_at_the_end_is_said_as_decoding_all_at_once_says_it():
    stream = Text(decode_bytes)
    assert stream.add(0xE2) == ""
    assert stream.finish() == decode_bytes([0xE2])
