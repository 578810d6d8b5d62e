"""Answers: requests are put to the engine, and what it gives comes back as text."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from superscaler.errors import ServingError
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.api_error import ApiError
from superscaler.runtime.serving.server.engine_client import EngineClient
from superscaler.runtime.serving.server.metrics import Metrics
from superscaler.runtime.serving.server.openai_request import Answering
from superscaler.runtime.serving.server.tokenizer import Tokenizer
from superscaler.runtime.serving.server.writing import Piece, Writer


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and how its answer is to be written down."""

    request: Request
    keep_stop: bool = False


def make_request(request_id: str, prompt: tuple[int, ...], answering: Answering) -> Request:
    """The engine's request for what a call asks."""
    return Request(
        request_id,
        prompt,
        answering.params,
        priority=answering.priority,
        cache_salt=answering.cache_salt,
    )


def check_fits(prompt: tuple[int, ...], params: SamplingParams, vocab: int, longest: int) -> None:
    """Refuse what the model has no room or no word for.

    Raises:
        ApiError: Which says how much room there is.
    """
    if not prompt:
        raise ApiError("the prompt has no tokens", param="prompt")
    given = {"prompt": prompt, "logit_bias": params.logit_bias, "stop_token_ids": params.stop_token_ids}
    for name, tokens in given.items():
        if strange := [token for token in tokens if token >= vocab]:
            raise ApiError(
                f"there is no token {strange[0]}",
                param=name,
                remedy=f"the model has {vocab}, counted from 0",
            )
    most = params.max_tokens or 1
    if len(prompt) + most > longest:
        raise ApiError(
            f"a sequence has at most {longest} tokens, but the prompt has {len(prompt)}, and {most} are to follow",
            code="context_length_exceeded",
            remedy="shorten the prompt, or lower max_tokens",
        )


def with_default_tokens(
    answering: Answering, prompt: tuple[int, ...], room: int, default: int | None
) -> Answering:
    """At most `default` tokens are generated where the call does not say how many.

    Args:
        answering: How it wants to be answered.
        prompt: Its tokens.
        room: Most tokens of a sequence, prompt and answer.
        default: None: as many as there is room for.
    """
    params = answering.params
    if params.max_tokens is not None or default is None:
        return answering
    most = max(1, params.min_tokens, min(default, room - len(prompt)))
    return replace(answering, params=replace(params, max_tokens=most))


class Answers:
    """Where questions are answered.

    Args:
        client: The engine's.
        metrics: Told of each token.
        tokenizer: None: answers have no text.
    """

    def __init__(self, client: EngineClient, metrics: Metrics, tokenizer: Tokenizer | None) -> None:
        self._client, self._metrics, self._tokenizer = client, metrics, tokenizer

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer, as they come; whoever closes this no longer wants it.

        Raises:
            ServingError: The engine cannot serve the request, or fails.
        """
        request = question.request
        decode = None if self._tokenizer is None else self._tokenizer.decode
        writer = Writer(request, decode, question.keep_stop)
        watch = self._metrics.request(len(request.prompt))
        reason = "abort"
        try:
            with self._client.answer(request) as answer:
                async for output in answer:
                    piece = writer.write(output)
                    if piece is None:
                        continue
                    if piece.finish_reason in ("abort", "error"):
                        raise ServingError("the engine failed at the request", remedy="send it again")
                    watch.observe(piece.index, len(piece.tokens), output.cached, output.queued)
                    if piece.finish_reason is not None:
                        watch.end(piece.index, piece.finish_reason)
                        if output.finish_reason is None:
                            answer.stop_sequence(piece.index)
                    yield piece
        except ServingError:
            reason = "error"
            raise
        finally:
            for index in writer.going:
                watch.end(index, reason)

    async def answer_all(self, questions: Sequence[Question]) -> AsyncGenerator[tuple[int, Piece], None]:
        """The pieces of several answers, each with the number of its question, as they come.

        Raises:
            ServingError: As `answer`; nothing more comes then.
        """
        if len(questions) == 1:
            async with aclosing(self.answer(questions[0])) as pieces:
                async for piece in pieces:
                    yield 0, piece
            return
        come: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

        async def forward(number: int, question: Question) -> None:
            try:
                async with aclosing(self.answer(question)) as pieces:
                    async for piece in pieces:
                        come.put_nowait((number, piece))
            except ServingError as error:
                come.put_nowait((number, error))
            else:
                come.put_nowait((number, None))

        tasks = [asyncio.create_task(forward(*each)) for each in enumerate(questions)]
        going = len(tasks)
        try:
            while going:
                number, what = await come.get()
                if isinstance(what, BaseException):
                    raise what
                if what is None:
                    going -= 1
                else:
                    yield number, what
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
