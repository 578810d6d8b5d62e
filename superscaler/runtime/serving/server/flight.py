"""Flight: a request on its way through an engine, and how it goes on in another one when that engine dies.

Tokens are drawn by the request's seed, the number of the sequence and the position. So a sequence that goes on
after the tokens it has gets those that it would have got; where penalties count what was generated, or sequences
are numbered, the request is computed anew instead, and what comes again is checked and left out.
"""

import secrets
from dataclasses import replace

from superscaler.errors import ServingError
from superscaler.runtime.serving.output import Output
from superscaler.runtime.serving.request import Request


class Flight:
    """What of a request has come.

    Args:
        request: As the user wants it; without a seed, one is drawn.
    """

    def __init__(self, request: Request) -> None:
        params = request.params
        if params.seed is None:
            request = replace(request, params=replace(params, seed=secrets.randbits(63)))
        self.request = request
        self.tokens: list[list[int]] = [[] for _ in range(params.n)]
        """Of each sequence: what was generated, [n][generated]."""
        self.is_sent = False
        """Whether an engine has been asked."""
        self.interruptions = 0
        """How often the engine died that had been asked."""
        self._again = [0] * params.n
        """Of each sequence: how many of its tokens the engine will give once more."""
        self._going = set(range(params.n))
        self._stopped: set[int] = set()
        """Sequences that the user's side has ended, of which the engine has not been told."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return not self._going

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return any(self.tokens)

    def again(self) -> Request:
        """What another engine is to be asked for."""
        self.interruptions += self.is_sent
        self.is_sent = True
        request, params = self.request, self.request.params
        if params.n > 1 or params.presence_penalty or params.frequency_penalty:
            self._again = [len(tokens) for tokens in self.tokens]
            self._stopped = set(range(params.n)) - self._going
            return request
        done = len(self.tokens[0])
        most = None if params.max_tokens is None else params.max_tokens - done
        least = max(0, params.min_tokens - done)
        return replace(
            request,
            prompt=request.prompt + tuple(self.tokens[0]),
            answered=done,
            params=replace(params, max_tokens=most, min_tokens=least),
        )

    def take(self, output: Output) -> Output | None:
        """What is new of what a step gave a sequence; None where nothing is.

        Raises:
            ServingError: An engine that was to give tokens once more gave others.
        """
        index = output.index
        if index not in self._going:
            return None
        known, mine = self._again[index], self.tokens[index]
        repeated, new = output.tokens[:known], output.tokens[known:]
        place = len(mine) - known
        if list(repeated) != mine[place : place + len(repeated)]:
            raise ServingError(
                "the engine was restarted, and does not give the same tokens once more",
                remedy="send the request again",
            )
        self._again[index] -= len(repeated)
        mine.extend(new)
        if output.finish_reason is not None:
            self._going.discard(index)
        if not new and output.finish_reason is None:
            return None
        if not repeated:
            return output
        return replace(output, tokens=new, logprobs=output.logprobs[len(repeated) :])

    def stop(self, index: int) -> None:
        """The user's side wants no more of a sequence."""
        self._going.discard(index)
        self._stopped.add(index)

    def to_end(self, index: int) -> bool:
        """Whether the engine is to be told now that a sequence, of which something came, has been ended."""
        if index not in self._stopped:
            return False
        self._stopped.discard(index)
        return True
