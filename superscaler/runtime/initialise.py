"""Fill a local piece of a parameter as the whole parameter would have been filled, under any plan."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Region
from superscaler.runtime.random import element_numbers, row_chunks, uniform

Step = Sequence[str | float]
"""The name of an in-place method of a tensor, and its arguments: ``["normal_", 0.0, 0.02]``."""

POINTWISE = frozenset(
    {"abs_", "add_", "clamp_", "copysign_", "cos_", "div_", "erf_", "erfinv_", "exp_", "fill_", "log_",
     "mul_", "neg_", "pow_", "reciprocal_", "rsqrt_", "sigmoid_", "sin_", "sqrt_", "square_", "sub_", "tanh_",
     "zero_"}
)  # fmt: skip
"""What may follow the first step: methods that look at one element at a time."""


def initialise(
    steps: Sequence[Step],
    region: Region,
    fine_sizes: tuple[int, ...],
    local_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    name: str,
) -> Tensor:
    """The piece `region` of the tensor `name`, initialised, as a new tensor of `local_shape`.

    Args:
        steps: The first fills (``normal_``, ``uniform_``, ``fill_``, ``zero_``, ``ones_``), the rest change.
        region: The piece, over the fine dims.
        fine_sizes: Elements per fine dim of the whole tensor.
        local_shape: Shape of the piece; as many elements as `region`.
        dtype: Of the result; random numbers are made in float64 and rounded last.
        device: Of the result.
        seed: The user's seed.
        name: The tensor's name; two tensors draw independently.

    Raises:
        BuildError: A step that is not known or not pointwise.
    """
    first, rest = _checked(steps, name)
    out = torch.empty(local_shape, dtype=dtype, device=device)
    assert out.numel() == region.num_elements, (name, local_shape, region)
    flat = out.view(-1)
    for here in row_chunks(region.shape, device):
        numbers = element_numbers(region.intervals, fine_sizes, here, device)
        values = first(numbers, seed, name)
        for method, *arguments in rest:
            getattr(values, str(method))(*arguments)
        flat[here] = values.to(dtype)
    return out


def _checked(steps: Sequence[Step], name: str) -> tuple[Callable[[Tensor, int, str], Tensor], Sequence[Step]]:
    """The function that fills, and the steps that follow."""
    if not steps or str(steps[0][0]) not in _FILLS:
        raise BuildError(
            f"initialiser of {name!r} starts with {steps[0] if steps else 'nothing'}",
            remedy=f"start with one of {', '.join(_FILLS)}",
        )
    for method, *_ in steps[1:]:
        if method not in POINTWISE:
            raise BuildError(
                f"initialiser of {name!r} uses {method!r}, which is not known to be pointwise",
                remedy="pass trained or hand-made values with --weights",
            )
    make, arguments = _FILLS[str(steps[0][0])], steps[0][1:]
    return (lambda numbers, seed, key: make(numbers, seed, key, *arguments)), steps[1:]


def _normal(numbers: Tensor, seed: int, key: str, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Box and Muller: the radius from one number in (0, 1], the angle from another."""
    radius = (1.0 - uniform(seed, f"{key}/radius", numbers)).log_().mul_(-2.0).sqrt_()
    angle = uniform(seed, f"{key}/angle", numbers).mul_(2 * torch.pi).cos_()
    return radius.mul_(angle).mul_(std).add_(mean)


def _uniform(numbers: Tensor, seed: int, key: str, low: float = 0.0, high: float = 1.0) -> Tensor:
    return uniform(seed, key, numbers).mul_(high - low).add_(low)


def _fill(numbers: Tensor, _seed: int, _key: str, value: float) -> Tensor:
    return torch.full(numbers.shape, value, dtype=torch.float64, device=numbers.device)


def _zero(numbers: Tensor, seed: int, key: str) -> Tensor:
    return _fill(numbers, seed, key, 0.0)


def _ones(numbers: Tensor, seed: int, key: str) -> Tensor:
    return _fill(numbers, seed, key, 1.0)


_FILLS = {"normal_": _normal, "uniform_": _uniform, "fill_": _fill, "zero_": _zero, "ones_": _ones}
