"""``y = x @ weight.T + bias`` and its gradients, as products of float8 numbers with a scale per row.

Both operands of a product are cast just before it (dynamic scaling, as torchao's recipe "rowwise" and torchtitan have
it). A scale can be taken out of a sum only where it is the same for all summands, so it runs over the dim that the
product keeps, and each product casts its operands anew:

    y  = x @ weight.T    contracts k    a scale per token of x, per row of the weight
    dx = dy @ weight     contracts n    a scale per token of dy, per column of the weight
    dw = dy.T @ x        contracts b    a scale per column of dy, per column of x

* Everything is e4m3, gradients as well. Transformer Engine's "hybrid" has e5m2 for gradients, for the sake of its
  range, under one scale per tensor. Under a scale per row a range of 2^-9 to 448 suffices, and a third bit of mantissa
  is worth more; torchao's rowwise recipe chooses the same.
* Scales are powers of two, as torchao rounds them. Scaling then rounds nothing, and a number becomes the same float8
  number under any scale that is not far off: pieces of a row, each with a scale of its own, hold the numbers the whole
  row holds, but for those some 2^14 times smaller than its largest.
* Sums are taken in float32 (on Hopper with the "fast accumulation" its row-wise kernels are made for), results are
  bfloat16, the only type that row-wise products of torch give on CUDA.
* The kernel takes sizes that are multiples of 16. Pieces of a plan may be others; zeros are added to them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from superscaler.errors import BuildError

ALIGNED = 16
"""Of what the kernel takes multiples along the dim it contracts, and along the rows of its second operand."""
LARGEST = 448.0
"""The largest number of e4m3."""
_SMALLEST_MAXIMUM = 2.0**-117
"""Rows whose largest number is smaller are scaled as if it were this: the factor stays finite."""
_EXPONENT = 0x7F800000
"""The bits of a float32 that a power of two has."""
CAPABILITY = (8, 9)
"""Compute capability from which CUDA devices multiply float8 numbers: Ada; then Hopper (9.0)."""


class Cast(NamedTuple):
    """A matrix cast row by row."""

    numbers: Tensor
    """[m, k] in e4m3, with zeros up to a multiple of 16 of k."""
    scales: Tensor
    """What each row is to be multiplied by, [m, 1] in float32."""
    lead: tuple[int, ...]
    """The dims that m stands for."""


def float8_rows(x: Tensor) -> Cast:
    """The rows of `x` [*m, k], cast for a product that contracts k."""
    return _cast(_matrix(x), x.shape[:-1])


def float8_columns(x: Tensor) -> Cast:
    """The columns of `x` [*m, k], as the k rows of a matrix, cast for a product that contracts all of m."""
    return _cast(_matrix(x).t(), x.shape[-1:])


def linear_float8(x: Tensor | Cast, weight: Tensor | Cast, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of `x` [*b, k], `weight` [n, k] and `bias` [n], all in bfloat16: [*b, n].

    Here and below an operand may have been cast before: by `float8_rows` where its last dim is contracted, else by
    `float8_columns`.
    """
    rows = _rows(x)
    return _product(rows, _rows(weight), bias).view(*rows.lead, -1)


def linear_float8_input_gradient(dy: Tensor | Cast, weight: Tensor | Cast) -> Tensor:
    """Gradient of the input, [*b, k], from `dy` [*b, n] and `weight` [n, k]."""
    rows = _rows(dy)
    return _product(rows, _columns(weight)).view(*rows.lead, -1)


def linear_float8_weight_gradient(dy: Tensor | Cast, x: Tensor | Cast) -> Tensor:
    """Gradient of the weight, [n, k], from `dy` [*b, n] and the input `x` [*b, k]."""
    return _product(_columns(dy), _columns(x))


def check_float8(device: torch.device) -> None:
    """Make sure that a device multiplies float8 numbers; CPUs do, slowly.

    Raises:
        BuildError: It is a GPU that is too old.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= CAPABILITY:
        return
    name, found = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    raise BuildError(
        f"this build multiplies in float8, which {device} ({name}, compute capability {_dotted(found)}) cannot",
        remedy=f"run it on GPUs of compute capability {_dotted(CAPABILITY)} (Ada) or more, "
        "or compile it without --float8",
    )


def _rows(x: Tensor | Cast) -> Cast:
    return x if isinstance(x, Cast) else float8_rows(x)


def _columns(x: Tensor | Cast) -> Cast:
    return x if isinstance(x, Cast) else float8_columns(x)


def _cast(x: Tensor, lead: Sequence[int]) -> Cast:
    missing = -x.shape[1] % ALIGNED
    # in float32: the inductor of torch 2.13 makes code for CPUs that does not compile of a maximum of bfloat16
    wide = (F.pad(x, (0, missing)) if missing else x).float()
    largest = torch.linalg.vector_norm(wide, float("inf"), 1, keepdim=True)
    factor = (LARGEST / largest.clamp(min=_SMALLEST_MAXIMUM)).view(torch.int32).bitwise_and(_EXPONENT)
    factor = factor.view(torch.float32)
    numbers = (wide * factor).to(torch.float8_e4m3fn).contiguous()
    return Cast(numbers, factor.reciprocal(), tuple(lead))


def _product(a: Cast, b: Cast, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias``: [m, n] in bfloat16, of a [m, k] and b [n, k]."""
    (a_numbers, a_scales, _), (b_numbers, b_scales, _) = a, b
    if not (a_numbers.is_cuda or _CPU_HAS_KERNEL):
        y = (a_numbers.float() * a_scales) @ (b_numbers.float() * b_scales).t()
        return (y if bias is None else y + bias).bfloat16()
    size = b_numbers.shape[0]
    missing = -size % ALIGNED
    if missing:
        # zeros of float8 have bytes of zeros; few kernels fill float8 tensors
        b_numbers = F.pad(b_numbers.view(torch.uint8), (0, 0, 0, missing)).view(torch.float8_e4m3fn)
        b_scales = F.pad(b_scales, (0, 0, 0, missing))
        bias = None if bias is None else F.pad(bias, (0, missing))
    y = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        a_numbers, b_numbers.t(), a_scales, b_scales.t(), bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y[:, :size].contiguous() if missing else y


def _matrix(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _cpu_has_kernel() -> bool:
    """Whether torch multiplies float8 by rows on this CPU: seen with 2.13, oneDNN and AVX-512."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return version >= (2, 13) and torch.backends.mkldnn.is_available() and is_wide


_CPU_HAS_KERNEL = _cpu_has_kernel()
"""Elsewhere CPUs take the same sums of the same numbers by float32, which is about as fast."""
