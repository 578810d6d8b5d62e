"""Operators of generated programs where torch has no one function: pure, device-neutral, without autograd."""

from superscaler.runtime.ops.attention import attention, attention_backward, attention_mask_gradient
from superscaler.runtime.ops.batch_norm import (
    batch_norm,
    batch_norm_input_gradient,
    batch_norm_sums,
    channel_squares,
    channel_sums,
)
from superscaler.runtime.ops.convolution import (
    convolution,
    convolution_input_gradient,
    convolution_weight_gradient,
)
from superscaler.runtime.ops.cross_entropy import cross_entropy, cross_entropy_backward
from superscaler.runtime.ops.dropout import dropout, dropout_backward
from superscaler.runtime.ops.embedding import embedding, embedding_backward
from superscaler.runtime.ops.group_norm import group_norm, group_norm_backward
from superscaler.runtime.ops.layer_norm import layer_norm_backward
from superscaler.runtime.ops.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from superscaler.runtime.ops.optimizer import adamw, adamw_, sgd, sgd_
from superscaler.runtime.ops.shapes import as_strided, as_strided_scatter, repeat

__all__ = [
    "adamw",
    "adamw_",
    "as_strided",
    "as_strided_scatter",
    "attention",
    "attention_backward",
    "attention_mask_gradient",
    "batch_norm",
    "batch_norm_input_gradient",
    "batch_norm_sums",
    "channel_squares",
    "channel_sums",
    "convolution",
    "convolution_input_gradient",
    "convolution_weight_gradient",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "group_norm",
    "group_norm_backward",
    "layer_norm_backward",
    "linear_bias_gradient",
    "linear_input_gradient",
    "linear_weight_gradient",
    "repeat",
    "sgd",
    "sgd_",
]
