"""Element by element, with torch's broadcasting: kind -> the function, as generated source names it."""

from superscaler.ir.kind import Kind
from superscaler.ir.shape_rules import pointwise

_POINTWISE = {
    "aten.add.Tensor": "torch.add", "aten.add.Scalar": "torch.add",
    "aten.sub.Tensor": "torch.sub", "aten.sub.Scalar": "torch.sub", "aten.rsub.Scalar": "torch.rsub",
    "aten.mul.Tensor": "torch.mul", "aten.mul.Scalar": "torch.mul",
    "aten.div.Tensor": "torch.div", "aten.div.Scalar": "torch.div",
    "aten.pow.Tensor_Scalar": "torch.pow", "aten.pow.Tensor_Tensor": "torch.pow",
    "aten.neg": "torch.neg", "aten.abs": "torch.abs", "aten.exp": "torch.exp", "aten.log": "torch.log",
    "aten.sqrt": "torch.sqrt", "aten.rsqrt": "torch.rsqrt", "aten.reciprocal": "torch.reciprocal",
    "aten.sin": "torch.sin", "aten.cos": "torch.cos", "aten.tanh": "torch.tanh", "aten.sigmoid": "torch.sigmoid",
    "aten.relu": "torch.relu", "aten.gelu": "F.gelu", "aten.silu": "F.silu", "aten.erf": "torch.erf",
    "aten.clamp": "torch.clamp", "aten.maximum": "torch.maximum", "aten.minimum": "torch.minimum",
    "aten.gelu_backward": "torch.ops.aten.gelu_backward", "aten.silu_backward": "torch.ops.aten.silu_backward",
    "aten.tanh_backward": "torch.ops.aten.tanh_backward", "aten.sigmoid_backward": "torch.ops.aten.sigmoid_backward",
    "aten.threshold_backward": "torch.ops.aten.threshold_backward",
    "aten.where.self": "torch.where", "aten.masked_fill.Scalar": "torch.masked_fill",
    "aten.masked_fill.Tensor": "torch.masked_fill", "aten.logical_not": "torch.logical_not",
    "aten.bitwise_not": "torch.bitwise_not", "aten.logical_and": "torch.logical_and",
    "aten.bitwise_and.Tensor": "torch.bitwise_and", "aten.bitwise_or.Tensor": "torch.bitwise_or",
    "aten.eq.Scalar": "torch.eq", "aten.eq.Tensor": "torch.eq", "aten.ne.Scalar": "torch.ne",
    "aten.ne.Tensor": "torch.ne", "aten.lt.Scalar": "torch.lt", "aten.lt.Tensor": "torch.lt",
    "aten.le.Scalar": "torch.le", "aten.le.Tensor": "torch.le", "aten.gt.Scalar": "torch.gt",
    "aten.gt.Tensor": "torch.gt", "aten.ge.Scalar": "torch.ge", "aten.ge.Tensor": "torch.ge",
    "aten.fill.Tensor": "torch.ops.aten.fill.Tensor", "aten.fill.Scalar": "torch.ops.aten.fill.Scalar",
    "aten._to_copy": "torch.ops.aten._to_copy",
    "aten.ceil": "torch.ceil", "aten.sign": "torch.sign",
    "aten.softplus": "F.softplus", "aten.softplus_backward": "torch.ops.aten.softplus_backward",
}  # fmt: skip
_LINEAR = {"aten.add.Tensor", "aten.sub.Tensor", "aten.neg"}

POINTWISE = {kind: Kind(pointwise, call, linear=kind in _LINEAR) for kind, call in _POINTWISE.items()}
