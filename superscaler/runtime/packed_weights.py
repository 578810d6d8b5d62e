"""Packed weights: matrices that do not change, laid out once as the processor multiplies by them fastest.

torch multiplies by a weight as it lies in memory, and brings it into the order of its kernels in each call anew. oneDNN
keeps it in that order. Measured in single precision (AMD EPYC with AVX512, 2 cores, 512 x 1376): 2.0 times as fast for
8 rows, 2.3 for 32, 2.5 for 96; even for one row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 64
"""Rows of the input that the layout is chosen for; it serves any number."""
_LEAST = 64
"""Rows and columns of the smallest matrix worth it."""


class PackedWeight(Tensor):
    """A weight [out, in] with a copy of itself for `F.linear`; everything else takes it for the tensor that it is."""

    packed: Tensor

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Multiply by the copy; any other function works on the tensor itself."""
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear and not kwargs and isinstance(args[1], PackedWeight):
                x, weight, *bias = args
                return torch.ops.mkldnn._linear_pointwise(
                    x, weight.packed, bias[0] if bias else None, "none", [], ""
                )
            return function(*args, **(kwargs or {}))


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, of which matrices in single precision on a CPU are packed; they may not change afterwards.

    Of others, torch's own multiplication is as fast, or the only one. What is packed takes its memory twice.
    """
    return {name: _packed(weight) if _is_worth_it(weight) else weight for name, weight in weights.items()}


def _is_worth_it(weight: Tensor) -> bool:
    is_matrix = weight.dim() == 2 and min(weight.shape) >= _LEAST
    is_plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()
    return is_matrix and is_plain and torch.backends.mkldnn.is_available()


def _packed(weight: Tensor) -> PackedWeight:
    result = weight.detach().as_subclass(PackedWeight)
    result.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return result
