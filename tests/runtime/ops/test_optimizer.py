"""AdamW and SGD, functional and fused, equal torch.optim over several steps."""

import pytest
import torch

from superscaler.runtime import ops

ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def gradients(shapes, steps, dtype=torch.float64):
    return [[torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(steps)]


def test_adamw_equals_torch():
    shapes = [(3, 4), (70,)]
    ps = [torch.randn(s, dtype=torch.float64) for s in shapes]
    reference = [p.clone().requires_grad_() for p in ps]
    optimizer = torch.optim.AdamW(
        reference, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    fused = [p.clone() for p in ps], *([torch.zeros_like(p) for p in ps] for _ in range(2))
    plain = [(p.clone(), torch.zeros_like(p), torch.zeros_like(p)) for p in ps]
    for step, gs in enumerate(gradients(shapes, 6), 1):
        for p, g in zip(reference, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        ops.adamw_(fused[0], gs, fused[1], fused[2], step, **ADAMW)
        plain = [ops.adamw(p, g, m, v, step, **ADAMW) for (p, m, v), g in zip(plain, gs, strict=True)]
    for i, p in enumerate(reference):
        torch.testing.assert_close(fused[0][i], p.detach(), rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(plain[i][0], p.detach(), rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(fused[1][i], optimizer.state[p]["exp_avg"], rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(plain[i][2], optimizer.state[p]["exp_avg_sq"], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_equals_torch(momentum, weight_decay):
    shapes = [(3, 4), (70,)]
    ps = [torch.randn(s, dtype=torch.float64) for s in shapes]
    reference = [p.clone().requires_grad_() for p in ps]
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    optimizer = torch.optim.SGD(reference, **options)
    fused = [p.clone() for p in ps]
    buffers = [torch.full_like(p, 7.0) for p in ps] if momentum else None
    plain = [(p.clone(), torch.full_like(p, 7.0) if momentum else None) for p in ps]
    for step, gs in enumerate(gradients(shapes, 4), 1):
        for p, g in zip(reference, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        ops.sgd_(fused, gs, buffers, step, **options)
        updated = [
            ops.sgd(p, g, *([] if buffer is None else [buffer]), step, **options)
            for (p, buffer), g in zip(plain, gs, strict=True)
        ]
        plain = [x if isinstance(x, tuple) else (x, None) for x in updated]
    for i, p in enumerate(reference):
        torch.testing.assert_close(fused[i], p.detach(), rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(plain[i][0], p.detach(), rtol=1e-14, atol=1e-15)


def test_a_gradient_laid_out_otherwise_than_its_parameter_is_read_right():
    p, g = torch.zeros(3, 4), torch.randn(4, 3).t()
    ops.sgd_([p], [g], None, 1, lr=1.0)
    assert torch.equal(p, -g)


def test_fused_updates_take_mixed_dtypes():
    ps = [torch.ones(3), torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.float64)]
    gs = [torch.ones_like(p) for p in ps]
    ops.adamw_(ps, gs, [torch.zeros_like(p) for p in ps], [torch.zeros_like(p) for p in ps], 1, **ADAMW)
    for p in ps:
        torch.testing.assert_close(
            p.double(), torch.full((3,), 0.989, dtype=torch.float64), rtol=4e-3, atol=0
        )


def test_a_parameter_that_is_a_piece_of_another_is_updated_in_its_place():
    torch.manual_seed(0)
    whole, options = (
        torch.randn(6, 8, dtype=torch.float64),
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8},
    )
    piece, g = whole.narrow(1, 2, 3), torch.randn(6, 3, dtype=torch.float64)
    m, v = torch.rand(6, 3, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    rest = whole.clone()
    wanted = ops.adamw(piece.clone(), g, m, v, 2, weight_decay=0.01, **options)
    ops.adamw_([piece], [g], [m], [v], 2, weight_decay=0.01, **options)
    for got, truth in zip((whole.narrow(1, 2, 3), m, v), wanted, strict=True):
        torch.testing.assert_close(got, truth)
    rest.narrow(1, 2, 3).copy_(piece)
    assert torch.equal(whole, rest)
