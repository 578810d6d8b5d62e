"""Sample calls: optimizers, and numbers made of gradients."""

import torch

from tests.ir.rule_cases.samples import case, positive, real

_ADAM = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
_STEP = torch.tensor(3)

CASES = {
    "adamw": [
        case(real(5, 4), real(5, 4), real(5, 4), positive(5, 4), _STEP, lr=0.1, **_ADAM),
        case(real(4), real(4), real(4), positive(4), _STEP, lr=0.1, gradient_scale=positive(), **_ADAM),
    ],
    "adam": [
        case(
            real(5, 4), real(5, 4), real(5, 4), positive(5, 4), _STEP, lr=("cosine", 0.1, 2, 9, 0.0), **_ADAM
        )
    ],
    "sgd": [
        case(real(5, 4), real(5, 4), _STEP, lr=0.1, momentum=0.0, weight_decay=0.1),
        case(real(5, 4), real(5, 4), real(5, 4), _STEP, lr=0.1, momentum=0.9, weight_decay=0.0),
    ],
    "lion": [
        case(real(5, 4), real(5, 4), real(5, 4), _STEP, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1)
    ],
    "squared_norm": [case(real(5, 4)), case(real(5))],
    "total": [case([real(), real(), real()])],
    "gradient_norm": [case(positive())],
    "clip_coefficient": [case(positive(), max_norm=0.5)],
    "count_nonfinite": [case(real(5, 4))],
    "loss_scale": [case(positive(), _STEP, init=4.0)],
    "overflows": [case(positive())],
    "unscaled_norm": [case(positive(), positive())],
    "unscale": [case(positive(), positive())],
    "inverse_scale": [case(positive())],
    "count_updates": [case(positive(), torch.tensor(True))],
    "next_loss_scale": [
        case(positive(), torch.tensor(1.0), torch.tensor(False), growth=2.0, backoff=0.5, interval=2)
    ],
}
