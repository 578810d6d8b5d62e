"""Ways: how the layers of a plan are cut, what they keep for their backward, and what stages they make."""

from dataclasses import dataclass
from enum import Enum


class Form(Enum):
    """What stages the layers of a pipeline make."""

    CHAIN = "chain"
    """Runs of layers, one after another."""
    PASSES = "passes"
    """Runs of layers that a micro-batch goes through several times (3F1B)."""
    INTERLACED = "interlaced"
    """Runs of layers, between tasks over the vocabulary that all rows of devices do together."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the layers of a plan are cut and what they keep, on the devices of one replica of a stage."""

    tp: int = 1
    sp: bool = False
    recompute: str = ""
    co_shard: int = 1
    form: Form = Form.CHAIN
    ep: int = 1
    """These devices have samples of their own."""
    cp: int = 1

    @property
    def num_devices(self) -> int:
        """Of one replica of a stage."""
        return self.ep * self.cp * self.tp

    @property
    def words(self) -> tuple[str, ...]:
        """As a plan string says it."""
        said = [
            f"{axis}={size}" for axis, size in (("ep", self.ep), ("cp", self.cp), ("tp", self.tp)) if size > 1
        ]
        said += ["sp"] * self.sp
        said += [f"co_shard={self.co_shard}"] * (self.co_shard > 1)
        return (*said, *([f"recompute={self.recompute}"] * bool(self.recompute)))
