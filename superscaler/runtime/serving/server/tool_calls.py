"""Tool calls: found in what a model writes, where its chat template has taught it how to write them.

One convention is known, that of Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.
"""

import json
from dataclasses import dataclass

OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""The marks around a call."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: str
    """JSON."""


def are_known(chat_template: str | None) -> bool:
    """Whether a model with this template writes calls in a way that is understood."""
    return chat_template is not None and OPEN in chat_template


class ToolCallReader:
    """Takes a text apart, as it comes, into what is for the user and calls.

    What looks like a call and is none stays text. White space before a call belongs to nobody.
    """

    def __init__(self) -> None:
        self._rest = ""
        """What has not been said: the end of a text where a call may begin, or a call that has begun."""
        self._in_call = False
        self.calls: list[ToolCall] = []
        """Those that are complete."""

    def add(self, text: str) -> str:
        """What is for the user of some more text."""
        self._rest += text
        said = ""
        while True:
            before, mark, after = self._rest.partition(CLOSE if self._in_call else OPEN)
            if not mark:
                break
            said += self._close(before) if self._in_call else before.rstrip()
            self._rest, self._in_call = after, not self._in_call
        if self._in_call:
            return said
        new = self._rest[: len(self._rest) - _begun(self._rest)].rstrip()
        self._rest = self._rest[len(new) :]
        return said + new

    def finish(self) -> str:
        """What is left for the user at the end."""
        if self._in_call:
            return OPEN + self._rest
        return self._rest.rstrip() if self.calls else self._rest

    def _close(self, body: str) -> str:
        """Take in what stands between the marks; what is for the user of it."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return f"{OPEN}{body}{CLOSE}"
        self.calls.append(ToolCall(found["name"], json.dumps(found.get("arguments", {}), ensure_ascii=False)))
        return ""


def _begun(text: str) -> int:
    """With how many of its first characters a text ends that may become a call."""
    return next((size for size in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:size])), 0)
