"""Sample calls: losses."""

import torch

from tests.ir.rule_cases.samples import case, derived, fraction, index, positive, real

NONE, MEAN, SUM = 0, 1, 2


def elementwise(*rest, predicted=real, expected=real):
    """A loss as it is, as a sum and as a mean."""
    return [case(predicted(3, 4), expected(3, 4), reduction, *rest) for reduction in (NONE, SUM, MEAN)]


def gradient(*rest):
    return [
        case(real(3, 4), real(3, 4), real(3, 4), NONE, *rest),
        case(real(), real(3, 4), real(3, 4), SUM, *rest),
        case(real(), real(3, 4), real(3, 4), MEAN, *rest),
    ]


def nll_loss(shape, classes, reduction, weight=True):
    return case(
        real(*shape),
        index(classes, shape[0], *shape[2:]),
        positive(classes) if weight else None,
        reduction,
        1,
    )


def nll_loss_backward(name, shape, classes, reduction, weight=True):
    def derive(draw):
        arguments = (
            draw(*shape),
            torch.randint(classes, (shape[0], *shape[2:])),
            draw(classes).abs() if weight else None,
        )
        loss, total = getattr(torch.ops.aten, f"{name}_forward")(*arguments, reduction, 1)
        return case(draw(*loss.shape), *arguments, reduction, 1, total)

    return derived(derive)


CASES = {
    "aten.mse_loss": elementwise(),
    "aten.smooth_l1_loss": elementwise(0.7),
    "aten.huber_loss": elementwise(0.7),
    "aten.soft_margin_loss": elementwise(),
    **{f"aten.{name}_backward": gradient() for name in ("mse_loss", "soft_margin_loss")},
    **{f"aten.{name}_backward": gradient(0.7) for name in ("smooth_l1_loss", "huber_loss")},
    "aten.binary_cross_entropy": [
        case(fraction(3, 4), fraction(3, 4), positive(4), NONE),
        case(fraction(3, 4), fraction(3, 4), None, SUM),
    ],
    "aten.binary_cross_entropy_backward": [
        case(real(3, 4), fraction(3, 4), fraction(3, 4), positive(3, 4), NONE),
        case(real(), fraction(3, 4), fraction(3, 4), None, SUM),
    ],
    "aten.binary_cross_entropy_with_logits": [
        case(real(3, 4), fraction(3, 4), None, positive(4), NONE),
        case(real(3, 4), fraction(3, 4), positive(3, 4), None, SUM),
    ],
    "aten.nll_loss_forward": [
        nll_loss((5, 4), 4, NONE),
        nll_loss((5, 4), 4, SUM),
        nll_loss((5, 4), 4, SUM, weight=False),
        nll_loss((5, 4), 4, MEAN),
    ],
    "aten.nll_loss2d_forward": [nll_loss((3, 4, 2, 5), 4, NONE), nll_loss((3, 4, 2, 5), 4, SUM)],
    "aten.nll_loss_backward": [
        nll_loss_backward("nll_loss", (5, 4), 4, NONE),
        nll_loss_backward("nll_loss", (5, 4), 4, SUM, weight=False),
        nll_loss_backward("nll_loss", (5, 4), 4, MEAN),
    ],
    "aten.nll_loss2d_backward": [
        nll_loss_backward("nll_loss2d", (3, 4, 2, 5), 4, NONE),
        nll_loss_backward("nll_loss2d", (3, 4, 2, 5), 4, SUM),
    ],
}
