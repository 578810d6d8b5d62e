"""The backward of layer normalisation for inputs of any memory layout."""

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, as ``torch.native_layer_norm``'s autograd gives them.

    Args:
        dy: Gradient of the result, [*b d].
        x: Input of the forward, [*b d].
        normalized_shape: The sizes of d.
        mean, rstd: Statistics of the forward, [*b 1]. The CPU kernel of torch reads them as if they were
            contiguous, which a piece cut along a middle dim is not.
        weight, bias: Of the normalisation, [d], or None.
        wanted: Which of the three gradients to compute; the others come out as None.
    """
    return torch.ops.aten.native_layer_norm_backward(
        dy, x, list(normalized_shape), mean.contiguous(), rstd.contiguous(), weight, bias, list(wanted)
    )
