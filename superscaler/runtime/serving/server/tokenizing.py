"""Tokenizing: /tokenize and /detokenize, as vLLM has them, for who counts tokens before a call."""

from collections.abc import Sequence
from typing import Any

from superscaler.runtime.serving.server.api_error import ApiError
from superscaler.runtime.serving.server.fields import Fields
from superscaler.runtime.serving.server.openai_request import parse_messages, parse_token_ids
from superscaler.runtime.serving.server.tokenizer import Tokenizer
from superscaler.runtime.serving.server.tool_choice import parse_tools


def tokenized(fields: Fields, tokenizer: Tokenizer, longest: int) -> dict[str, Any]:
    """The answer of /tokenize: the tokens of a prompt, or of a conversation up to where the model is to answer.

    Args:
        fields: Of the body.
        tokenizer: The model's.
        longest: Tokens of the longest sequence.

    Raises:
        RequestError: A field is wrong, or asks for what is not offered.
    """
    if ("prompt" in fields.names) == ("messages" in fields.names):
        raise ApiError("the body has to have a prompt or messages", param="prompt", remedy="give one of them")
    tokens = _of_prompt(fields, tokenizer) if "prompt" in fields.names else _of_chat(fields, tokenizer)
    texts = tokenizer.pieces(tokens) if fields.flag("return_token_strs") else None
    return {"count": len(tokens), "max_model_len": longest, "tokens": list(tokens), "token_strs": texts}


def detokenized(fields: Fields, tokenizer: Tokenizer, vocab: int) -> dict[str, Any]:
    """The answer of /detokenize: the text of tokens, special ones included.

    Raises:
        RequestError: There are no tokens, or one that the model has not.
    """
    tokens = parse_token_ids(fields, "tokens", fields.get("tokens"))
    if strange := [token for token in tokens if token >= vocab]:
        raise ApiError(
            f"there is no token {strange[0]}", param="tokens", remedy=f"the model has {vocab}, counted from 0"
        )
    return {"prompt": tokenizer.decode(tokens, special=True)}


def _of_prompt(fields: Fields, tokenizer: Tokenizer) -> Sequence[int]:
    return tokenizer.encode(fields.text("prompt"), fields.flag("add_special_tokens", True))


def _of_chat(fields: Fields, tokenizer: Tokenizer) -> Sequence[int]:
    for name in ("continue_final_message", "chat_template"):
        if fields.get(name):
            raise fields.refuse(name, "leave it out")
    given = fields.object("chat_template_kwargs")
    options = {"add_generation_prompt": fields.flag("add_generation_prompt", True)}
    options |= {} if given is None else given.values()
    tools = parse_tools(fields).offered or None
    return tokenizer.chat(parse_messages(fields), tools, options, fields.flag("add_special_tokens"))
