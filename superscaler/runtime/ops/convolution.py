"""Convolution and its two gradients, of any number of spatial dims, whole or on a piece of the channels.

Shapes: x [b, groups * k, *s], weight [groups * n, k, *u], bias [groups * n], out [b, groups * n, *t]; a
transposed convolution has weight [groups * k, n, *u]. `groups` is that of the whole: how many of them a piece
of a plain convolution holds follows from its shapes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """As ``torch.convolution``."""
    groups = groups if transposed else x.shape[1] // weight.shape[1]
    return torch.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def convolution_input_gradient(
    dy: Tensor,
    weight: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient of x, of the given shape."""
    groups = groups if transposed else shape[1] // weight.shape[1]
    x = dy.new_empty(1).expand(shape)
    return _backward(dy, x, weight, stride, padding, dilation, transposed, output_padding, groups, 0)


def convolution_weight_gradient(
    dy: Tensor,
    x: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient of the weight, of the given shape."""
    groups = groups if transposed else x.shape[1] // shape[1]
    weight = dy.new_empty(1).expand(shape)
    return _backward(dy, x, weight, stride, padding, dilation, transposed, output_padding, groups, 1)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, *rest) -> Tensor:
    *options, wanted = rest
    mask = [wanted == 0, wanted == 1, False]
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *options, mask)[wanted]
