"""Operators of generated programs where torch has no one function: pure, device-neutral, without autograd."""

from superscaler.runtime.ops.attention import attention, attention_backward
from superscaler.runtime.ops.batch_norm import (
    batch_norm,
    batch_norm_input_gradient,
    batch_norm_sums,
    channel_squares,
    channel_sums,
)
from superscaler.runtime.ops.cross_entropy import cross_entropy, cross_entropy_backward
from superscaler.runtime.ops.dropout import dropout, dropout_backward
from superscaler.runtime.ops.embedding import embedding, embedding_backward
from superscaler.runtime.ops.layer_norm import layer_norm_backward
from superscaler.runtime.ops.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from superscaler.runtime.ops.optimizer import adamw, adamw_, sgd, sgd_

__all__ = [
    "adamw",
    "adamw_",
    "attention",
    "attention_backward",
    "batch_norm",
    "batch_norm_input_gradient",
    "batch_norm_sums",
    "channel_squares",
    "channel_sums",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "layer_norm_backward",
    "linear_bias_gradient",
    "linear_input_gradient",
    "linear_weight_gradient",
    "sgd",
    "sgd_",
]
