"""Sample calls: Normalisations."""

import torch

from tests.ir.rule_cases.samples import case, derived, positive, real


def layer_norm_backward(wanted, weight=True):
    def derive(draw):
        x = draw(3, 4, 6)
        _, mean, rstd = torch.native_layer_norm(x, [6], None, None, 1e-5)
        affine = (draw(6), draw(6)) if weight else (None, None)
        return case(draw(3, 4, 6), x, [6], mean, rstd, *affine, wanted)

    return derived(derive)


def batch_norm(has_weight, backward=False):
    weight = real(4) if has_weight else None
    if not backward:
        return case(real(6, 4, 5), real(4), positive(4), weight, weight)
    return case(real(6, 4, 5), real(6, 4, 5), real(4), positive(4), weight, real(4), real(4), count=30.0)


def group_norm_backward(wanted, weight=True, shape=(3, 6, 5, 2)):
    def derive(draw):
        x, groups = draw(*shape), shape[1] // 2
        _, mean, rstd = torch.native_group_norm(x, None, None, *shape[:2], x[0, 0].numel(), groups, 1e-5)
        return case(
            draw(*shape), x, mean, rstd, draw(shape[1]) if weight else None, group_size=2, wanted=wanted
        )

    return derived(derive)


def native_batch_norm_backward(wanted, training, weight=True):
    def derive(draw):
        x, mean, rstd = draw(6, 4, 5), draw(4), draw(4).square() + 1
        running = (mean, rstd) if not training else (None, None)
        saved = (x.mean((0, 2)), (x.var((0, 2), correction=0) + 1e-5).rsqrt()) if training else (None, None)
        return case(draw(6, 4, 5), x, draw(4) if weight else None, *running, *saved, training, 1e-5, wanted)

    return derived(derive)


def weight_norm_backward(dim, *shape):
    def derive(draw):
        size = [1] * len(shape)
        size[dim] = shape[dim]
        v, g = draw(*shape), draw(*size)
        _, norm = torch._weight_norm_interface(v, g, dim)
        return case(draw(*shape), v, g, norm, dim)

    return derived(derive)


CASES = {
    "aten.native_layer_norm": [
        case(real(3, 4, 6), [6], real(6), real(6), 1e-5),
        case(real(3, 1, 4, 6), [4, 6], real(4, 6), None, 1e-5),
        case(real(3, 6), [6], None, None, 1e-5),
    ],
    "aten.native_layer_norm_backward": [
        layer_norm_backward([True, True, True]),
        layer_norm_backward([True, False, False], weight=False),
        layer_norm_backward([False, True, True]),
    ],
    "channel_sums": [case(real(6, 4, 5)), case(real(6, 4))],
    "channel_squares": [case(real(6, 4, 5, 3), real(4))],
    "batch_norm": [batch_norm(True), batch_norm(False)],
    "batch_norm_sums": [case(real(6, 4, 5), real(6, 4, 5), real(4), positive(4))],
    "batch_norm_input_gradient": [
        batch_norm(True, backward=True),
        batch_norm(False, backward=True),
    ],
    "group_norm": [
        case(real(3, 6, 5, 2), real(6), real(6), group_size=2, eps=1e-5),
        case(real(3, 6, 5), None, None, group_size=3, eps=1e-5),
        case(real(3, 4), real(4), real(4), group_size=4, eps=1e-5),
        case(real(3, 4, 7), real(4), real(4), group_size=1, eps=1e-5),
    ],
    "group_norm_backward": [
        group_norm_backward([True, True, True]),
        group_norm_backward([True, False, False], weight=False),
        group_norm_backward([False, True, True], shape=(3, 8, 5)),
        group_norm_backward([True, False, True], shape=(3, 4)),
    ],
    "aten.native_batch_norm": [
        case(real(6, 4, 5), real(4), real(4), None, None, True, 0.1, 1e-5),
        case(real(6, 4, 5, 3), None, None, None, None, True, 0.1, 1e-5),
        case(real(1, 6, 5), None, None, None, None, True, 0.1, 1e-5),
    ],
    "aten._native_batch_norm_legit_functional": [
        case(real(6, 4, 5), real(4), real(4), real(4), positive(4), True, 0.1, 1e-5),
        case(real(6, 4), None, None, real(4), positive(4), True, 0.1, 1e-5),
    ],
    "aten.native_batch_norm_backward": [
        native_batch_norm_backward([True, True, True], True),
        native_batch_norm_backward([True, False, False], True, weight=False),
        native_batch_norm_backward([True, True, True], False),
        native_batch_norm_backward([False, True, True], False),
    ],
    "aten._weight_norm_interface": [
        case(real(6, 4, 3), real(6, 1, 1), 0),
        case(real(6, 4, 3), real(1, 1, 3), 2),
        case(real(6, 4), real(6, 1)),
    ],
    "aten._weight_norm_interface_backward": [weight_norm_backward(0, 6, 4, 3), weight_norm_backward(2, 6, 4, 3)],
}  # fmt: skip
