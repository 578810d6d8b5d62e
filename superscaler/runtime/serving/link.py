"""Link: what the server and the engine tell each other, over a connection of two processes on one machine."""

from dataclasses import dataclass

from superscaler.runtime.serving.output import Load, Output
from superscaler.runtime.serving.request import FinishReason, Request

KEY = "SUPERSCALER_SERVING_KEY"
"""Environment variable with the key, in hexadecimal, that both sides must have."""

# from the server to the engine


@dataclass(frozen=True, slots=True)
class Submit:
    """Serve this; its arrival is now."""

    request: Request


@dataclass(frozen=True, slots=True)
class End:
    """Nobody wants more of this."""

    request_id: str
    index: int | None = None
    """Which of its sequences; None: all."""
    reason: FinishReason = "abort"


@dataclass(frozen=True, slots=True)
class Stop:
    """End the engine; what is not finished is lost."""


# from the engine to the server


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine has its weights, and takes requests."""

    vocab: int
    longest: int
    """Tokens of the longest sequence."""
    pages: int
    page_size: int
    plan: str
    ranks: int

    @property
    def room(self) -> int:
        """Most tokens of a sequence, prompt and answer: nothing follows the last one, so it needs no key."""
        return min(self.longest, self.pages * self.page_size + 1)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that can never be served."""

    request_id: str
    reason: str
    param: str | None = None
    """The name of the one value that is wrong, where it is one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step gave."""

    outputs: tuple[Output, ...]
    load: Load


ToEngine = Submit | End | Stop
ToServer = Ready | Refused | Progress
