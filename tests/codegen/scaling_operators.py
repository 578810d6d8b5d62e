"""Operators of a user's, as tests need them: a product with a weight, and the gradient of the weight."""

import torch


@torch.library.custom_op("scalingtest::scale", mutates_args=())
def scale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * weight


@torch.library.custom_op("scalingtest::weight_gradient", mutates_args=())
def weight_gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (gradient * x).flatten(0, -2).sum(0)


scale.register_fake(lambda x, weight: torch.empty_like(x))
weight_gradient.register_fake(lambda gradient, x: x.new_empty(x.shape[-1]))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    x, weight = ctx.saved_tensors
    return scale(gradient, weight), weight_gradient(gradient, x)


scale.register_autograd(_backward, setup_context=_save)
