"""Sample calls: element by element, with broadcasting."""

from tests.ir.rule_cases.samples import case, derived, flags, positive, real, whole_numbers


def one(make=real, *arguments, **keywords):
    return [case(make(3, 1, 4), *arguments, **keywords)]


def two(make=real):
    """Two tensors of one shape, of broadcasting shapes and of fewer dims."""
    shapes = [((3, 4), (3, 4)), ((3, 1, 4), (5, 1)), ((4,), (3, 4)), ((3, 4), ())]
    return [case(make(*first), make(*second)) for first, second in shapes]


def same(draw):
    x = draw(3, 4)
    return case(x, x)


CASES = {
    **{
        f"aten.{name}": one()
        for name in ("neg", "abs", "exp", "sin", "cos", "tanh", "sigmoid", "relu", "gelu", "silu", "erf", "ceil", "sign", "softplus")
    },
    **{f"aten.{name}": one(positive) for name in ("log", "sqrt", "rsqrt", "reciprocal")},
    **{
        f"aten.{name}.Tensor": [*two(), derived(same), *one(real, 3)]
        for name in ("add", "sub", "mul", "div")
    },
    **{f"aten.{name}.Scalar": one(real, 3) for name in ("add", "sub", "mul", "div", "rsub")},
    **{f"aten.{name}": two() for name in ("maximum", "minimum")},
    **{f"aten.{name}_backward": two()[:1] for name in ("gelu", "silu", "tanh", "sigmoid")},
    **{f"aten.{name}": one(flags) for name in ("logical_not", "bitwise_not")},
    **{f"aten.{name}": two(flags) for name in ("logical_and", "bitwise_and.Tensor", "bitwise_or.Tensor")},
    **{f"aten.{name}.Scalar": one(whole_numbers, 1) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"aten.{name}.Tensor": two(whole_numbers) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "aten.pow.Tensor_Scalar": one(positive, 3),
    "aten.pow.Tensor_Tensor": two(positive),
    "aten.clamp": one(real, -0.5, 0.5),
    "aten.threshold_backward": [case(real(3, 4), real(3, 4), 0)],
    "aten.softplus_backward": [case(real(3, 4), real(3, 4), 1, 20)],
    "aten.where.self": [
        case(flags(3, 1, 4), real(5, 1), real()),
        case(flags(3, 4), real(3, 4), real(3, 4)),
    ],
    "aten.masked_fill.Scalar": [case(real(2, 3, 4), flags(3, 1), 7.0)],
    "aten.masked_fill.Tensor": [case(real(2, 3, 4), flags(3, 4), real())],
    "aten._to_copy": one(real, dtype="torch.float32"),
    "aten.fill.Tensor": [case(real(3, 4), real())],
    "aten.fill.Scalar": one(real, 2.0),
}  # fmt: skip
CASES["aten.add.Tensor"].append(case(real(3, 4), real(4), alpha=2.0))
