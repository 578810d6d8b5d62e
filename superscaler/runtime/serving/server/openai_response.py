"""Answers of the OpenAI API: objects and the chunks of streams, as JSON has them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from superscaler.runtime.serving.request import FinishReason
from superscaler.runtime.serving.sampling import Logprobs
from superscaler.runtime.serving.server.openai_request import Answering
from superscaler.runtime.serving.server.tool_calls import ToolCall, ToolCallReader
from superscaler.runtime.serving.server.writing import Piece

TokenText = Callable[[int], str]
"""What a token looks like by itself."""


@dataclass
class Usage:
    """How many tokens there were."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def json(self) -> dict[str, Any]:
        """As an answer says it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class Choice:
    """What one sequence has become."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        """Take in what is new."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.logprobs += filter(None, piece.logprobs)
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason

    def as_piece(self, index: int) -> Piece:
        """All of it at once."""
        return Piece(
            index, self.text, tuple(self.tokens), tuple(self.logprobs), self.finish_reason, self.stop_reason
        )


class CompletionShape:
    """Answers of /v1/completions.

    Args:
        answer_id: Of the answer.
        model: The name it is served under.
        answering: How the call wants to be answered.
        token_text: What a token looks like by itself.
        echoes: What is said before the text of each prompt.
        prompts: Tokens of each prompt.
    """

    def __init__(
        self,
        answer_id: str,
        model: str,
        answering: Answering,
        token_text: TokenText,
        echoes: Sequence[str],
        prompts: Sequence[tuple[int, ...]],
    ) -> None:
        self._head = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._answering, self._token_text = answering, token_text
        self._echoes, self._prompts = echoes, prompts
        self._offsets: dict[int, int] = {}
        """Of each choice that has begun: characters of its tokens so far."""

    def chunks(self, prompt: int, piece: Piece) -> list[dict[str, Any]]:
        """What is streamed of a piece."""
        return [self._head | {"choices": [self._choice(prompt, piece)]}]

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The end of a stream, where it is asked for."""
        return self._head | {"choices": [], "usage": usage.json()}

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The answer as a whole."""
        n = self._answering.params.n
        found = [self._choice(place // n, choice.as_piece(place % n)) for place, choice in enumerate(choices)]
        return self._head | {"choices": found, "usage": usage.json()}

    def _choice(self, prompt: int, piece: Piece) -> dict[str, Any]:
        index = prompt * self._answering.params.n + piece.index
        is_first = index not in self._offsets
        echo = self._echoes[prompt] if is_first else ""
        offset = self._offsets.get(index, len(echo))
        logprobs = None
        if self._answering.params.logprobs is not None:
            logprobs = completion_logprobs(piece, self._token_text, offset)
            offset += sum(map(len, logprobs["tokens"]))
        self._offsets[index] = offset
        choice = {
            "index": index,
            "text": echo + piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        return choice | token_ids(self._answering, piece, self._prompts[prompt] if is_first else None)


class ChatShape:
    """Answers of /v1/chat/completions.

    Args:
        answer_id: Of the answer.
        model: The name it is served under.
        answering: How the call wants to be answered.
        token_text: What a token looks like by itself.
        prompt: Its tokens.
        reads_calls: Whether tool calls are looked for.
        call_ending: The reason for which an answer has ended that calls tools; the OpenAI API says ``stop`` where the
            user named the function.
    """

    def __init__(
        self,
        answer_id: str,
        model: str,
        answering: Answering,
        token_text: TokenText,
        prompt: tuple[int, ...],
        reads_calls: bool,
        call_ending: str = "tool_calls",
    ) -> None:
        self._id, self._model, self._created = answer_id, model, int(time.time())
        self._answering, self._token_text, self._prompt = answering, token_text, prompt
        self._reads_calls, self._call_ending = reads_calls, call_ending
        self._readers: dict[int, ToolCallReader | None] = {}
        """Of each choice that has begun."""

    def chunks(self, prompt: int, piece: Piece) -> list[dict[str, Any]]:
        """What is streamed of a piece; the first of each choice says who speaks."""
        index, chunks = piece.index, []
        is_first = index not in self._readers
        if is_first:
            self._readers[index] = ToolCallReader() if self._reads_calls else None
            chunks.append(self._chunk(index, {"role": "assistant", "content": ""}))
        reader = self._readers[index]
        text, reason = piece.text, piece.finish_reason
        delta: dict[str, Any] = {}
        if reader is not None:
            before = len(reader.calls)
            text = reader.add(text) + (reader.finish() if reason is not None else "")
            new = [
                tool_call(self._id, index, place, reader.calls[place])
                for place in range(before, len(reader.calls))
            ]
            delta = {"tool_calls": new} if new else {}
        if text:
            delta["content"] = text
        logprobs = chat_logprobs(piece.logprobs, piece.tokens, self._token_text) if piece.logprobs else None
        said = token_ids(self._answering, piece, self._prompt if is_first else None)
        if delta or logprobs or said or reason is not None:
            called = reason == "stop" and reader is not None and reader.calls
            more = {"stop_reason": piece.stop_reason} | said
            chunks.append(self._chunk(index, delta, logprobs, self._call_ending if called else reason, more))
        return chunks

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The end of a stream, where it is asked for."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage.json()}

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The answer as a whole."""
        found = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._head("chat.completion") | {"choices": found, "usage": usage.json()}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        reason = choice.finish_reason
        if self._reads_calls:
            reader = ToolCallReader()
            text = reader.add(choice.text) + reader.finish()
            calls = [tool_call(self._id, index, place, call) for place, call in enumerate(reader.calls)]
            if calls:
                message |= {"content": text or None, "tool_calls": [_without_index(call) for call in calls]}
                reason = self._call_ending if reason == "stop" else reason
        logprobs = None
        if self._answering.params.logprobs is not None:
            logprobs = chat_logprobs(choice.logprobs, choice.tokens, self._token_text)
        found = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": reason,
            "stop_reason": choice.stop_reason,
        }
        return found | token_ids(self._answering, choice.as_piece(index), self._prompt)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason} | (
            more or {}
        )
        return self._head("chat.completion.chunk") | {"choices": [choice]}


def token_ids(answering: Answering, piece: Piece, prompt: tuple[int, ...] | None) -> dict[str, Any]:
    """What vLLM adds where token ids are asked for; those of the prompt once."""
    if not answering.token_ids:
        return {}
    return {"token_ids": list(piece.tokens)} | ({} if prompt is None else {"prompt_token_ids": list(prompt)})


def tool_call(answer_id: str, index: int, place: int, call: ToolCall) -> dict[str, Any]:
    """A call of a tool, as a stream has it; its id tells it apart from all others."""
    function = {"name": call.name, "arguments": call.arguments}
    name = f"call-{answer_id.removeprefix('chatcmpl-')}-{index}-{place}"
    return {"index": place, "id": name, "type": "function", "function": function}


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "index"}


# -- log probabilities


def completion_logprobs(piece: Piece, token_text: TokenText, offset: int) -> dict[str, Any]:
    """Those of a piece as /v1/completions has them; its first token begins at the character `offset`."""
    tokens, chosen, likeliest, offsets = [], [], [], []
    for token, found in zip(piece.tokens, piece.logprobs, strict=True):
        assert found is not None, "asked for"
        tokens.append(token_text(token))
        chosen.append(_finite(found.chosen))
        likeliest.append({token_text(other): _finite(value) for other, value in reversed(found.likeliest)})
        likeliest[-1][tokens[-1]] = chosen[-1]
        offsets.append(offset)
        offset += len(tokens[-1])
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": likeliest, "text_offset": offsets}


def chat_logprobs(
    logprobs: Sequence[Logprobs | None], tokens: Sequence[int], token_text: TokenText
) -> dict[str, Any]:
    """Those of some tokens as /v1/chat/completions has them."""
    content = []
    for token, found in zip(tokens, logprobs, strict=True):
        assert found is not None, "asked for"
        others = [_chat_logprob(token_text(other), value) for other, value in found.likeliest]
        content.append(_chat_logprob(token_text(token), found.chosen) | {"top_logprobs": others})
    return {"content": content, "refusal": None}


def _chat_logprob(text: str, value: float) -> dict[str, Any]:
    """A token that holds but a part of a character has no bytes that its text could tell."""
    known = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": _finite(value), "bytes": known}


def _finite(value: float) -> float:
    """JSON has no infinity; the OpenAI API says this of a token that is out of the question."""
    return max(value, -9999.0)
