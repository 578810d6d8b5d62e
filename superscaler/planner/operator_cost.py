"""Seconds that one operator takes on one device: a roofline whose slopes are what its class reaches of the peaks."""

from superscaler.planner.device import Device
from superscaler.planner.efficiency import OperatorClass


def operator_seconds(
    operator_class: OperatorClass, flops: float, num_bytes: float, dtype: str, device: Device
) -> float:
    """How long arithmetic or memory takes, whichever is longer, and the start.

    Args:
        operator_class: Which curve of the device holds.
        flops: Its arithmetic.
        num_bytes: Read from and written to the device's memory.
        dtype: Of its result.
        device: What runs it.
    """
    if flops <= 0 and num_bytes <= 0:
        return 0.0
    curve = device.efficiency.curve(operator_class)
    # matrix units are for products alone
    speed = device.flops(dtype) if operator_class.is_product else min(map(device.flops, (dtype, "float32")))
    # work / (fraction * work / (work + half)) is (work + half) / fraction
    arithmetic = (flops / speed + curve.half_seconds) / curve.arithmetic if flops > 0 else 0.0
    memory = (num_bytes / device.memory_bandwidth + curve.half_seconds) / curve.memory
    return device.efficiency.launch_seconds + max(arithmetic, memory)


def copy_seconds(num_bytes: float, device: Device) -> float:
    """How long copying within the device's memory takes; `num_bytes` counts what is read and what is written."""
    return operator_seconds(OperatorClass.POINTWISE, 0.0, num_bytes, "float32", device)


def host_copy_seconds(num_bytes: float, device: Device) -> float:
    """How long it takes to move so many bytes between the device and host memory."""
    return device.efficiency.launch_seconds + num_bytes / device.host_bandwidth
