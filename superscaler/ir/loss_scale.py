"""Dynamic loss scaling as data."""

from dataclasses import dataclass

from superscaler.errors import TraceError


@dataclass(frozen=True, slots=True)
class LossScale:
    """The loss is multiplied by a number that follows what gradients allow, as ``torch.amp.GradScaler`` has it.

    The number starts as `init`. A step in which a gradient is not finite is skipped and multiplies it by `backoff`;
    `interval` steps in a row without one multiply it by `growth`.
    """

    init: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000

    def __post_init__(self) -> None:
        if not (self.init > 0 and self.growth >= 1 and 0 < self.backoff < 1 and self.interval >= 1):
            raise TraceError(
                f"{self} does not grow and back off",
                remedy="use init above 0, growth of 1 or more, backoff between 0 and 1, interval of 1 or more",
            )

    @classmethod
    def of(cls, value: "LossScale | str | None") -> "LossScale | None":
        """What a user says: a LossScale, ``"dynamic"`` for the defaults, or nothing."""
        if value is None or isinstance(value, LossScale):
            return value
        if value != "dynamic":
            raise TraceError(f"loss_scale={value!r}", remedy='use "dynamic", or LossScale(init=..., ...)')
        return cls()
