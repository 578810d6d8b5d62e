"""Sample calls: convolutions and their gradients."""

from tests.ir.rule_cases.samples import case, derived, real

SHAPES = [
    # x, weight, stride, padding, dilation, transposed, output_padding, groups
    ((3, 4, 7), (6, 4, 3), 1, 1, 1, False, 0, 1),
    ((3, 4, 8), (6, 4, 3), 2, 0, 2, False, 0, 1),
    ((3, 4, 6, 6), (5, 4, 3, 2), 1, 0, 1, False, 0, 1),
    ((2, 3, 8, 4), (5, 3, 4, 2), (4, 2), 0, 1, False, 0, 1),
    ((2, 4, 5, 3), (6, 4, 1, 1), 1, 0, 1, False, 0, 1),
    ((2, 4, 5, 4), (6, 4, 1, 1), 2, 0, 1, False, 0, 1),
    ((2, 3, 4, 3, 4), (4, 3, 2, 1, 3), (2, 1, 1), 0, 1, False, 0, 1),
    ((3, 6, 7), (4, 3, 3), 1, 1, 1, False, 0, 2),
    ((2, 6, 5, 5), (9, 2, 3, 3), 1, 1, 1, False, 0, 3),
    ((3, 6, 7), (6, 1, 4), 1, 3, 1, False, 0, 6),
    ((2, 4, 6, 6), (8, 1, 3, 3), 1, 1, 1, False, 0, 4),
    ((3, 4, 5), (4, 6, 3), 1, 1, 1, True, 0, 1),
    ((3, 4, 5), (4, 6, 3), 2, 1, 1, True, 1, 1),
    ((2, 4, 3, 3), (4, 5, 2, 2), 2, 0, 1, True, 0, 1),
    ((2, 6, 4), (6, 2, 3), 2, 0, 1, True, 0, 2),
    ((1, 1, 6), (1, 1, 3), 1, 0, 1, False, 0, 1),
]


def options(x, weight, stride, padding, dilation, transposed, output_padding, groups):
    def spread(value):
        return list(value) if isinstance(value, tuple) else [value] * (len(x) - 2)

    return spread(stride), spread(padding), spread(dilation), transposed, spread(output_padding), groups


def forward(*shapes, bias=True):
    x, weight = shapes[:2]
    transposed, groups = shapes[5], shapes[7]
    outside = weight[1] * groups if transposed else weight[0]
    return case(real(*x), real(*weight), real(outside) if bias else None, *options(*shapes))


def gradient(which, *shapes):
    """The gradient of x (0) or of the weight (1)."""

    def derive(draw):
        out = forward(*shapes, bias=False).call("aten.convolution").results[0]
        other, own = shapes[1 - which], shapes[which]
        return case(draw(*out.shape), draw(*other), list(own), *options(*shapes))

    return derived(derive)


CASES = {
    "aten.convolution": [
        *(forward(*shapes) for shapes in SHAPES),
        *(forward(*shapes, bias=False) for shapes in SHAPES[:8]),
    ],
    "convolution_input_gradient": [gradient(0, *shapes) for shapes in SHAPES],
    "convolution_weight_gradient": [gradient(1, *shapes) for shapes in SHAPES],
}
