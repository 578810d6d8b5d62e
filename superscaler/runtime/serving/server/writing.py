"""Writing: what the engine gives the sequences of a request becomes text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from superscaler.runtime.serving.output import Output
from superscaler.runtime.serving.request import FinishReason, Request
from superscaler.runtime.serving.sampling import Logprobs
from superscaler.runtime.serving.server.text import Text


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one sequence."""

    index: int
    """Which of the request's n."""
    text: str
    tokens: tuple[int, ...]
    """Those that are new; their text may still be held back."""
    logprobs: tuple[Logprobs | None, ...]
    """Of each of them; empty where the request does not ask."""
    finish_reason: FinishReason | None = None
    """Why it has ended with this, if it has."""
    stop_reason: int | str | None = None
    """The stop string or the request's own stop token that ended it."""
    cached: int = 0
    """Tokens of the prompt that were in the cache."""


class Writer:
    """Writes down what comes of one request.

    Args:
        request: Which one.
        decode: Text of token ids; None: only the ids count.
        keep_stop: Whether what ends a text is part of it.
    """

    def __init__(
        self,
        request: Request,
        decode: Callable[[Sequence[int]], str] | None,
        keep_stop: bool = False,
    ) -> None:
        params = request.params
        decode = decode or (lambda tokens: "")
        self._params, self._keep_stop = params, keep_stop
        self._texts = [
            Text(decode, request.prompt, params.stop, keep_stop, params.min_tokens) for _ in range(params.n)
        ]
        self._going = set(range(params.n))

    @property
    def going(self) -> frozenset[int]:
        """The sequences that have not ended."""
        return frozenset(self._going)

    def write(self, output: Output) -> Piece | None:
        """What is new with an output; None after a sequence's end."""
        if output.index not in self._going:
            return None
        text, said, taken = self._texts[output.index], [], 0
        for token in output.tokens:
            taken += 1
            is_end = output.by_end_token and taken == len(output.tokens)
            if not is_end or self._keep_stop:  # a token that only ends the text is no part of it
                said.append(text.add(token))
            if text.stop is not None:
                break
        reason = "stop" if text.stop is not None else output.finish_reason
        if reason is not None:
            said.append(text.finish())
            self._going.discard(output.index)
        tokens = output.tokens[:taken]
        by_string = text.stop is not None
        return Piece(
            output.index,
            "".join(said),
            tokens,
            output.logprobs[:taken] if self._params.logprobs is not None else (),
            "stop" if by_string else reason,
            text.stop if by_string else self._stop_token(reason, tokens),
            output.cached,
        )

    def _stop_token(self, reason: FinishReason | None, tokens: tuple[int, ...]) -> int | None:
        stopped = reason == "stop" and tokens and tokens[-1] in self._params.stop_token_ids
        return tokens[-1] if stopped else None
