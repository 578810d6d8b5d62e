"""Operators of generated programs where torch has no one function: pure, device-neutral, without autograd."""

from superscaler.runtime.ops.adam import adam, adam_, adamw, adamw_
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
from superscaler.runtime.ops.float8 import (
    float8_columns,
    float8_rows,
    linear_float8,
    linear_float8_input_gradient,
    linear_float8_weight_gradient,
)
from superscaler.runtime.ops.gradient_norm import (
    clip_coefficient,
    gradient_norm,
    squared_norm,
    squared_norms,
    total,
)
from superscaler.runtime.ops.group_norm import group_norm, group_norm_backward
from superscaler.runtime.ops.grouped_mm import grouped_mm
from superscaler.runtime.ops.layer_norm import layer_norm_backward
from superscaler.runtime.ops.learning_rate import constant_rate, cosine_rate, linear_rate
from superscaler.runtime.ops.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from superscaler.runtime.ops.lion import lion, lion_
from superscaler.runtime.ops.loss_scale import (
    count_nonfinite,
    count_updates,
    counts_nonfinite,
    inverse_scale,
    loss_scale,
    next_loss_scale,
    overflows,
    unscale,
    unscaled_norm,
)
from superscaler.runtime.ops.paged_attention import paged_attention
from superscaler.runtime.ops.sgd import sgd, sgd_
from superscaler.runtime.ops.shapes import as_strided, as_strided_scatter, repeat
from superscaler.runtime.ops.update import update_fetching

__all__ = [
    "adam",
    "adam_",
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
    "clip_coefficient",
    "constant_rate",
    "convolution",
    "convolution_input_gradient",
    "convolution_weight_gradient",
    "cosine_rate",
    "count_nonfinite",
    "count_updates",
    "counts_nonfinite",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "float8_columns",
    "float8_rows",
    "gradient_norm",
    "group_norm",
    "group_norm_backward",
    "grouped_mm",
    "inverse_scale",
    "layer_norm_backward",
    "linear_bias_gradient",
    "linear_float8",
    "linear_float8_input_gradient",
    "linear_float8_weight_gradient",
    "linear_input_gradient",
    "linear_rate",
    "linear_weight_gradient",
    "lion",
    "lion_",
    "loss_scale",
    "next_loss_scale",
    "overflows",
    "paged_attention",
    "repeat",
    "sgd",
    "sgd_",
    "squared_norm",
    "squared_norms",
    "total",
    "unscale",
    "unscaled_norm",
    "update_fetching",
]
