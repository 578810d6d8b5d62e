"""Element by element, with torch's broadcasting."""

from superscaler.ir.kind import Kind
from superscaler.ir.shape_rules import pointwise

_OF_TORCH = """
    abs acos acosh angle asin asinh atan atanh ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 floor frac i0
    lgamma log log10 log1p log2 logit nan_to_num neg polygamma rad2deg reciprocal relu round round.decimals rsqrt sgn
    sigmoid sign signbit sin sinc sinh sqrt square tan tanh trunc
    isnan isinf isposinf isneginf logical_not bitwise_not
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
    div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode floor_divide floor_divide.Scalar
    remainder.Tensor remainder.Scalar remainder.Scalar_Tensor fmod.Tensor fmod.Scalar
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar
    atan2 copysign.Tensor copysign.Scalar fmax fmin gcd heaviside hypot lcm logaddexp logaddexp2 maximum minimum nextafter
    xlogy.Tensor xlogy.Scalar_Other xlogy.Scalar_Self
    addcmul addcdiv lerp.Scalar lerp.Tensor clamp clamp.Tensor clamp_min clamp_min.Tensor clamp_max clamp_max.Tensor
    eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar gt.Tensor ge.Scalar ge.Tensor
    logical_and logical_or logical_xor bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar
    bitwise_xor.Tensor bitwise_xor.Scalar bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar
    bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar
    where.self where.ScalarSelf where.ScalarOther where.Scalar masked_fill.Scalar masked_fill.Tensor
    complex polar
"""
"""Kinds whose function is ``torch.NAME`` with the arguments of ATen."""

_OF_FUNCTIONAL = """
    gelu silu mish leaky_relu hardtanh hardswish hardsigmoid softplus softshrink hardshrink threshold
"""
"""Kinds whose function is ``torch.nn.functional.NAME``."""

_OF_ATEN = """
    _to_copy fill.Scalar fill.Tensor elu _prelu_kernel special_xlog1py special_xlog1py.other_scalar
    gelu_backward silu_backward tanh_backward sigmoid_backward threshold_backward softplus_backward elu_backward
    leaky_relu_backward hardtanh_backward hardswish_backward hardsigmoid_backward mish_backward softshrink_backward
    hardshrink_backward logit_backward
"""
"""Kinds of which torch has no public function."""

_LINEAR = {"add.Tensor", "sub.Tensor", "neg"}

POINTWISE = {
    **{
        f"aten.{name}": Kind(pointwise, f"torch.{name.partition('.')[0]}", linear=name in _LINEAR)
        for name in _OF_TORCH.split()
    },
    **{f"aten.{name}": Kind(pointwise, f"F.{name}") for name in _OF_FUNCTIONAL.split()},
    **{f"aten.{name}": Kind(pointwise) for name in _OF_ATEN.split()},
    "aten._prelu_kernel_backward": Kind(pointwise, outputs=("dx", "dweight")),
    "widen": Kind(pointwise, "torch.Tensor.to", linear=True),
    "aten._conj": Kind(pointwise, "torch.conj_physical"),
}
