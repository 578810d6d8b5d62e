"""A model's own tokenizer and template, read from its folder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.errors import BuildError, RequestError
from superscaler.runtime.serving.server.text import Detokenizer
from superscaler.runtime.serving.server.tokenizer import load_tokenizer
from tests.runtime.serving.server.served import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_back_token_by_token(text):
    tokens = TOKENIZER.encode(text)
    assert bytes(tokens) == text.encode()
    stream = Detokenizer(TOKENIZER.decode)
    assert "".join([*map(stream.add, tokens), stream.finish()]) == text


def test_special_tokens_are_no_text_but_can_be_named():
    assert TOKENIZER.decode([256, 97, 257]) == "a"
    assert TOKENIZER.token_text(257) == "</s>"
    assert TOKENIZER.decode([97, 5000]) == "a"


def test_what_a_folder_says_ends_a_text(tmp_path):
    assert load_tokenizer(tmp_path) is None
    TOKENIZER._loaded.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).end_tokens == {257}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 3}))
    assert load_tokenizer(tmp_path).end_tokens == {3}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    found = load_tokenizer(tmp_path)
    assert found.end_tokens == {3, 4}
    assert found.encode("héllo") == TOKENIZER.encode("héllo")
    assert found.chat([{"role": "user", "content": "hi"}]) == TOKENIZER.encode("[user]hi[assistant]")


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BuildError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_template_may_refuse_a_conversation():
    strict = byte_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        strict.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(RequestError, match="refuses the messages"):
        byte_tokenizer("{{ messages[7].content + 1 }}").chat([{"role": "user", "content": "hi"}])
    with pytest.raises(RequestError, match="no Unicode"):
        strict.encode("a\ud800")
