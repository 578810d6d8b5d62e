"""The three gradients of ``y = x @ weight.T + bias``, one function each: a plan may place them apart."""

from torch import Tensor


def linear_input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input, [*b, k], from `dy` [*b, n] and `weight` [n, k]."""
    return (_rows(dy) @ weight).view(*dy.shape[:-1], weight.shape[1])


def linear_weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight, [n, k], from `dy` [*b, n] and the input `x` [*b, k]."""
    return _rows(dy).t() @ _rows(x)


def linear_bias_gradient(dy: Tensor) -> Tensor:
    """Gradient of the bias, [n], from `dy` [*b, n]."""
    return _rows(dy).sum(0)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
