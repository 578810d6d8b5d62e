"""Device: the memory and speed of one kind of hardware that runs a program."""

from dataclasses import dataclass

from superscaler.errors import PlanError
from superscaler.planner.efficiency import PEAK, Efficiency
from superscaler.planner.figures import check_positive

GIB = 2**30
DTYPE_CLASS = {"float64": "float64", "float32": "float32", "bfloat16": "half", "float16": "half"}
"""Which entry of `Device.flops_per_second` a dtype uses; integers count as float32."""
FLOPS_CLASSES = ("float64", "float32", "half")
"""What every device has."""
FLOAT8 = "float8"
"""What some have beside: products of float8 numbers."""


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of device; figures are those of a data sheet, `efficiency` says what is reached of them.

    Raises:
        PlanError: when a figure is not positive.
    """

    name: str
    memory_bytes: int
    flops_per_second: tuple[tuple[str, float], ...]
    """Peak arithmetic per class of dtypes: ``float64``, ``float32``, ``half``, and ``float8`` where it has that."""
    memory_bandwidth: float
    """Bytes per second between the device and its own memory."""
    host_bandwidth: float = 1.2e10
    """Bytes per second between the device and host memory, one way: by default what PCIe 3.0 x16 gives."""
    efficiency: Efficiency = PEAK

    def __post_init__(self) -> None:
        check_positive(f"device {self.name!r}", self)
        for kind, speed in self.flops_per_second:
            if not speed > 0:
                raise PlanError(
                    f"device {self.name!r} does {speed} operations per second in {kind}",
                    remedy="give a positive number",
                )

    @property
    def has_float8(self) -> bool:
        """Whether it multiplies float8 numbers."""
        return FLOAT8 in dict(self.flops_per_second)

    def flops(self, dtype: str) -> float:
        """Peak floating-point operations per second in `dtype`; in float8, of a device that has it."""
        return dict(self.flops_per_second)[dtype if dtype == FLOAT8 else DTYPE_CLASS.get(dtype, "float32")]
