"""Text: tokens become characters as they come, up to the first stop string."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
"""What decoders give for bytes that are no character, so also for the first bytes of one."""
_CONTEXT = 6
"""Tokens of the prompt before the first new one: what they are decides whether it begins with a space."""
_LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, so at most as many tokens."""


class Detokenizer:
    """Decodes tokens one by one; the texts joined are that of all tokens at once.

    A window of tokens is decoded again with each new one: what a token looks like depends on those before it.
    Where the text ends in the middle of a character, it waits for the rest.

    Args:
        decode: Text of token ids.
        prompt: Token ids before the first that is decoded.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT:])
        self._known = len(self._window)
        """So many tokens of the window have given their text, which is `_text`."""
        self._text = decode(self._window) if self._window else ""
        for _ in range(
            _LONGEST_CHARACTER - 1
        ):  # the first new token may end a character that the prompt began
            if self._known < 2 or not self._text.endswith(_INCOMPLETE):
                break
            self._known -= 1
            self._text = decode(self._window[: self._known])

    def add(self, token: int) -> str:
        """What can be said after one more token."""
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) <= len(self._text) or text.endswith(_INCOMPLETE):
            return ""
        new = text[len(self._text) :]
        del self._window[: self._known]
        self._known = len(self._window)
        self._text = self._decode(self._window)
        return new

    def finish(self) -> str:
        """What has waited for more, now that there is no more."""
        return self._decode(self._window)[len(self._text) :] if len(self._window) > self._known else ""


class StopStrings:
    """Lets text through up to the stop string that is complete first; of two that end together, the longer.

    Text that may be the beginning of a stop string is held back.

    Args:
        stops: The stop strings, none of them empty.
        keep: Whether the stop string is let through, too.
    """

    def __init__(self, stops: Sequence[str], keep: bool = False) -> None:
        self._stops, self._keep = tuple(stops), keep
        self._longest = max(map(len, stops), default=0)
        self._text = ""
        """What may still be part of a stop string."""
        self._sent = 0
        """How much of it has been let through."""
        self.found: str | None = None
        """The stop string, once there was one."""

    def add(self, text: str, heeded: bool = True) -> str:
        """What is let through after some more text.

        Args:
            text: More text, none after a stop string.
            heeded: Whether stop strings that end in it count.
        """
        assert self.found is None, "the text has ended"
        if not self._stops:
            return text
        before = len(self._text)
        self._text += text
        end = self._first_end(before) if heeded else None
        if end is not None:
            return self._take(end, end)
        held = 0 if self._keep else self._possible_beginning()
        return self._take(len(self._text) - held, max(0, len(self._text) - self._longest + 1))

    def finish(self) -> str:
        """What was held back, now that there is no more."""
        return self._take(len(self._text), len(self._text)) if self.found is None else ""

    def _first_end(self, before: int) -> int | None:
        """Up to where the text counts, if a stop string ends in what is new."""
        found = []
        for stop in self._stops:
            start = self._text.find(stop, max(0, before - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if not found:
            return None
        end, start, self.found = min(found)
        return end if self._keep else start

    def _possible_beginning(self) -> int:
        """The length of the longest end of the text with which a stop string begins."""
        longest = min(self._longest - 1, len(self._text))
        return next(
            (size for size in range(longest, 0, -1) if self._begins_stop(self._text[-size:])),
            0,
        )

    def _begins_stop(self, text: str) -> bool:
        return any(len(stop) > len(text) and stop.startswith(text) for stop in self._stops)

    def _take(self, end: int, forget: int) -> str:
        """Let through what lies before `end`; what lies before `forget` and is sent is no longer looked at."""
        new = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        forget = min(forget, self._sent)
        self._text, self._sent = self._text[forget:], self._sent - forget
        return new


class Text:
    """The text of one sequence, as its tokens come.

    Args:
        decode: Text of token ids.
        prompt: Token ids it goes on from.
        stops: Strings that end it.
        keep_stop: Whether the string that ends it is part of it.
        min_tokens: Before so many tokens, nothing ends it.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt: Sequence[int] = (),
        stops: Sequence[str] = (),
        keep_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(decode, prompt)
        self._stops = StopStrings(stops, keep_stop)
        self._min_tokens = min_tokens
        self._tokens = 0

    @property
    def stop(self) -> str | None:
        """The stop string that has ended it, if one has."""
        return self._stops.found

    def add(self, token: int) -> str:
        """What there is to say after one more token."""
        self._tokens += 1
        return self._stops.add(self._detokenizer.add(token), self._tokens >= self._min_tokens)

    def finish(self) -> str:
        """What is left to say when no more tokens come; a stop string may be found in it."""
        if self.stop is not None:
            return ""
        rest = self._detokenizer.finish()
        said = self._stops.add(rest, self._tokens >= self._min_tokens) if rest else ""
        return said + self._stops.finish()
