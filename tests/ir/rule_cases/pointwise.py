"""Sample calls: element by element, with broadcasting."""

import torch

from tests.ir.rule_cases.samples import Sample, case, derived, flags, fraction, positive, real, whole_numbers


def one(make=real, *arguments, **keywords):
    return [case(make(3, 1, 4), *arguments, **keywords)]


def two(make=real, **keywords):
    """Two tensors of one shape, of broadcasting shapes and of fewer dims."""
    shapes = [((3, 4), (3, 4)), ((3, 1, 4), (5, 1)), ((4,), (3, 4)), ((3, 4), ())]
    return [case(make(*first), make(*second), **keywords) for first, second in shapes]


def above_one(*shape):
    return Sample(lambda dtype: positive(*shape).draw(dtype) + 0.75)


def wide(*shape):
    """In a type of which there is a complex one."""
    return Sample(lambda dtype: real(*shape).draw(torch.float64 if dtype == torch.float64 else torch.float32))


def same(draw):
    x = draw(3, 4)
    return case(x, x)


def each(names, make=one, *samples, **keywords):
    return {f"aten.{name}": make(*samples, **keywords) for name in names.split()}


CASES = {
    **each(
        "abs angle asinh atan ceil cos deg2rad erf erfc exp exp2 expm1 floor frac i0 nan_to_num neg rad2deg relu round sgn"
        " sigmoid sign signbit sin sinc sinh square tan tanh trunc isnan isinf isposinf isneginf cosh"
        " gelu silu mish leaky_relu hardtanh hardswish hardsigmoid softplus softshrink hardshrink elu"
    ),
    **each("log log10 log1p log2 sqrt rsqrt reciprocal digamma lgamma", one, positive),
    **each("acos asin atanh logit erfinv", one, fraction),
    "aten.acosh": one(above_one),
    "aten.polygamma": [case(1, positive(3, 4))],
    "aten.round.decimals": one(real, decimals=1),
    "aten.threshold": one(real, 0.1, 2.0),
    **each("add.Tensor sub.Tensor mul.Tensor div.Tensor", lambda: [*two(), derived(same), *one(real, 3)]),
    "aten.rsub.Tensor": two(),
    **each("add.Scalar sub.Scalar mul.Scalar div.Scalar rsub.Scalar", one, real, 3),
    **each("div.Tensor_mode", lambda: [*two(positive, rounding_mode="floor"), *two(positive, rounding_mode="trunc")]),
    "aten.div.Scalar_mode": one(real, 0.7, rounding_mode="floor"),
    "aten.floor_divide": two(positive),
    **each("remainder.Tensor fmod.Tensor", two, positive),
    **each("floor_divide.Scalar remainder.Scalar fmod.Scalar", one, real, 0.7),
    "aten.remainder.Scalar_Tensor": [case(2.5, positive(3, 4))],
    **each("atan2 fmax fmin hypot logaddexp logaddexp2 maximum minimum nextafter copysign.Tensor heaviside", two),
    "aten.copysign.Scalar": one(real, -1.0),
    **each("xlogy.Tensor special_xlog1py pow.Tensor_Tensor", two, positive),
    **each("xlogy.Scalar_Other special_xlog1py.other_scalar", one, positive, 0.5),
    "aten.xlogy.Scalar_Self": [case(0.5, positive(3, 4))],
    "aten.pow.Tensor_Scalar": one(positive, 3),
    "aten.pow.Scalar": [case(2.0, real(3, 4))],
    **each("gcd lcm bitwise_xor.Tensor bitwise_left_shift.Tensor bitwise_right_shift.Tensor", two, whole_numbers),
    **each(
        "bitwise_xor.Scalar bitwise_and.Scalar bitwise_or.Scalar bitwise_left_shift.Tensor_Scalar"
        " bitwise_right_shift.Tensor_Scalar eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar",
        one, whole_numbers, 1,
    ),
    **each("eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor", two, whole_numbers),
    **each("logical_not bitwise_not", one, flags),
    **each("logical_and logical_or logical_xor bitwise_and.Tensor bitwise_or.Tensor", two, flags),
    **each(
        "gelu_backward silu_backward tanh_backward sigmoid_backward hardswish_backward hardsigmoid_backward mish_backward",
        lambda: two()[:1],
    ),
    **each("threshold_backward softshrink_backward hardshrink_backward", lambda: [case(real(3, 4), real(3, 4), 0.5)]),
    "aten.logit_backward": [case(real(3, 4), fraction(3, 4), 0.01)],
    "aten.softplus_backward": [case(real(3, 4), real(3, 4), 1, 20)],
    "aten.elu_backward": [case(real(3, 4), 1.0, 1, 1, False, real(3, 4))],
    "aten.leaky_relu_backward": [case(real(3, 4), real(3, 4), 0.1, False)],
    "aten.hardtanh_backward": [case(real(3, 4), real(3, 4), -0.5, 0.5)],
    "aten._prelu_kernel": [case(real(2, 3, 4), real(1, 3, 1)), case(real(2, 3), real(1, 1))],
    "aten._prelu_kernel_backward": [case(real(2, 3, 4), real(2, 3, 4), real(1, 3, 1))],
    **each("addcmul addcdiv", lambda: [case(real(3, 4), real(3, 1), positive(4), value=0.5), case(real(3, 4), real(3, 4), positive(3, 4))]),
    "aten.lerp.Scalar": [case(real(3, 4), real(3, 4), 0.3)],
    "aten.lerp.Tensor": [case(real(3, 4), real(3, 4), real(4))],
    "aten.clamp": one(real, -0.5, 0.5),
    "aten.clamp.Tensor": [case(real(3, 4), real(4), real(3, 1)), case(real(3, 4), None, real(3, 4))],
    **each("clamp_min clamp_max", one, real, 0.2),
    **each("clamp_min.Tensor clamp_max.Tensor", two),
    "aten.where.self": [
        case(flags(3, 1, 4), real(5, 1), real()),
        case(flags(3, 4), real(3, 4), real(3, 4)),
    ],
    "aten.where.ScalarSelf": [case(flags(3, 4), 2.0, real(4))],
    "aten.where.ScalarOther": [case(flags(3, 4), real(3, 1), 0.0)],
    "aten.where.Scalar": [case(flags(3, 4), 1.0, 0.0)],
    "aten.masked_fill.Scalar": [case(real(2, 3, 4), flags(3, 1), 7.0)],
    "aten.masked_fill.Tensor": [case(real(2, 3, 4), flags(3, 4), real())],
    "aten._to_copy": one(real, dtype="torch.float32"),
    "widen": one(real, "torch.float64"),
    "aten.fill.Tensor": [case(real(3, 4), real())],
    "aten.fill.Scalar": one(real, 2.0),
    **each("complex polar", two, wide),
    "aten._conj": [derived(lambda draw: case(torch.complex(draw(3, 4).double(), draw(3, 4).double())))],
}  # fmt: skip
CASES["aten.add.Tensor"].append(case(real(3, 4), real(4), alpha=2.0))
