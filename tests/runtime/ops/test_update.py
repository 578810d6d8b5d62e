"""Updates, of one tensor and over lists, equal torch.optim over several steps; and what all updates share."""

import pytest
import torch

from superscaler.runtime import ops

ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def gradients(shapes, steps, dtype=torch.float64):
    return [[torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(steps)]


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_adam_equals_torch(name):
    one, many = getattr(ops, name.lower()), getattr(ops, f"{name.lower()}_")
    shapes = [(3, 4), (70,)]
    ps = [torch.randn(s, dtype=torch.float64) for s in shapes]
    reference = [p.clone().requires_grad_() for p in ps]
    optimizer = getattr(torch.optim, name)(
        reference, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    fused = [p.clone() for p in ps], *([torch.zeros_like(p) for p in ps] for _ in range(2))
    plain = [(p.clone(), torch.zeros_like(p), torch.zeros_like(p)) for p in ps]
    for step, gs in enumerate(gradients(shapes, 6), 1):
        for p, g in zip(reference, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        many(fused[0], gs, fused[1], fused[2], step, **ADAMW)
        plain = [one(p, g, m, v, step, **ADAMW) for (p, m, v), g in zip(plain, gs, strict=True)]
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
    buffers = [[torch.full_like(p, 7.0) for p in ps]] if momentum else []
    plain = [(p.clone(), torch.full_like(p, 7.0) if momentum else None) for p in ps]
    for step, gs in enumerate(gradients(shapes, 4), 1):
        for p, g in zip(reference, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        ops.sgd_(fused, gs, *buffers, step, **options)
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
    ops.sgd_([p], [g], 1, lr=1.0)
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


def test_lion_takes_steps_of_the_sign_of_its_momentum():
    """By the paper's Program 1, written out."""
    torch.manual_seed(0)
    p, m = torch.randn(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01}
    many = [p.clone()], [m.clone()]
    one = p.clone(), m.clone()
    for step, (g,) in enumerate(gradients([(5,)], 4), 1):
        direction = torch.sign(0.9 * m + 0.1 * g)
        p, m = p - 0.1 * (direction + 0.01 * p), 0.99 * m + 0.01 * g
        ops.lion_(many[0], [g], many[1], step, **options)
        one = ops.lion(one[0], g, one[1], step, **options)
    for found in (one, (many[0][0], many[1][0])):
        torch.testing.assert_close(found[0], p, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(found[1], m, rtol=1e-14, atol=1e-15)


KINDS = {
    "adamw": (2, {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}),
    "adam": (2, {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}),
    "sgd": (1, {"momentum": 0.9}),
    "lion": (1, {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}),
}


def both(kind, p, g, states, step, **options):
    """A step by the functional update, and in place over lists: parameter and states of each."""
    options = {"lr": 0.1, **KINDS[kind][1], **options}
    one = getattr(ops, kind)(p, g, *states, step, **options)
    lists = [p.clone()], *([state.clone()] for state in states)
    getattr(ops, f"{kind}_")(lists[0], [g], *lists[1:], step, **options)
    return one, tuple(column[0] for column in lists)


def start(kind):
    torch.manual_seed(1)
    p, g = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    return p, g, [torch.rand(6, dtype=torch.float64) for _ in range(KINDS[kind][0])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_gradient_is_the_gradient_multiplied(kind):
    p, g, states = start(kind)
    scale = torch.tensor(0.25, dtype=torch.float64)
    kept = g.clone()
    for found in both(kind, p, g, states, 3, gradient_scale=scale):
        for value, truth in zip(found, both(kind, p, g * 0.25, states, 3)[0], strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-14, atol=1e-15)
    assert torch.equal(g, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_changes_nothing_whatever_the_gradient(kind):
    p, g, states = start(kind)
    g[2] = float("inf")
    for found in both(kind, p, g, states, 3, skip=torch.tensor(True)):
        for value, before in zip(found, (p, *states), strict=True):
            assert torch.equal(value, before)


@pytest.mark.parametrize("kind", KINDS)
def test_corrections_count_the_updates_that_were_made(kind):
    p, g, states = start(kind)
    for found in both(kind, p, g, states, 5, count=torch.tensor(3)):
        for value, truth in zip(found, both(kind, p, g, states, 3)[0], strict=True):
            torch.testing.assert_close(value, truth, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_master_weights_are_what_is_updated(kind):
    """Three steps in bfloat16 with float32 copies are three steps in float32, rounded where they are read."""
    torch.manual_seed(2)
    count = KINDS[kind][0]
    rounded = torch.randn(6).bfloat16()
    truth = [rounded.float(), *(torch.zeros(6) for _ in range(count))]
    one, lists = (rounded, *(torch.zeros(6) for _ in range(count + 1))), None
    lists = tuple([value.clone()] for value in one)
    for step in range(1, 4):
        g = torch.randn(6).bfloat16()
        options = {"lr": 1e-3, **KINDS[kind][1]}
        truth = getattr(ops, kind)(truth[0], g.float(), *truth[1:], step, **options)
        one = getattr(ops, kind)(one[0], g, *one[1:], step, master_weights=True, **options)
        getattr(ops, f"{kind}_")(lists[0], [g], *lists[1:], step, master_weights=True, **options)
    for found in (one, tuple(column[0] for column in lists)):
        torch.testing.assert_close(found[-1], truth[0], rtol=1e-6, atol=1e-7)
        assert torch.equal(found[0], found[-1].bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_half_precision_are_scaled_by_a_number_of_single_precision(kind):
    torch.manual_seed(3)
    p, g = torch.randn(6).bfloat16(), torch.randn(6).bfloat16()
    states = [torch.rand(6).bfloat16() for _ in range(KINDS[kind][0])]
    one, many = both(kind, p, g, states, 3, gradient_scale=torch.tensor(0.3))
    for first, second in zip(one, many, strict=True):
        assert first.dtype == torch.bfloat16
        torch.testing.assert_close(first, second, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("chunk", [1, 200, 2**26])
@pytest.mark.parametrize("master_weights", [False, True])
def test_states_fetched_in_pieces_are_updated_as_all_at_once(chunk, master_weights, monkeypatch):
    monkeypatch.setattr("superscaler.runtime.ops.update._CHUNK_BYTES", chunk)
    shapes = [(3, 4), (7,), (2, 5), (6,)]
    dtype = torch.bfloat16 if master_weights else torch.float64
    ps = [torch.randn(shape, dtype=dtype) for shape in shapes]
    states = [[torch.zeros(p.shape, dtype=torch.float32) for p in ps] for _ in range(3)]
    states = states if master_weights else [[torch.zeros_like(p) for p in ps] for _ in range(2)]
    whole = [[x.clone() for x in column] for column in (ps, *states)]
    pieces = [[x.clone() for x in column] for column in (ps, *states)]
    for step, gs in enumerate(gradients(shapes, 3, dtype), 1):
        options = {**ADAMW, "master_weights": master_weights, "gradient_scale": torch.tensor(0.5)}
        ops.adamw_(whole[0], gs, *whole[1:], step, **options)
        ops.update_fetching(ops.adamw_, pieces[0], gs, *pieces[1:], step, **options)
    for ours, wanted in zip(pieces, whole, strict=True):
        for x, y in zip(ours, wanted, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [None, 3.0])
@pytest.mark.parametrize("skip", [None, False, True])
def test_a_step_whose_number_is_in_a_tensor_is_the_same_step(kind, count, skip):
    p, g, states = start(kind)
    options = {"gradient_scale": torch.tensor(0.25, dtype=torch.float64), "lr": ("cosine", 0.1, 2, 10, 0.01)}
    options |= {} if count is None else {"count": torch.tensor(count)}
    options |= {} if skip is None else {"skip": torch.tensor(skip)}
    options |= KINDS[kind][1]
    found = []
    for step in (5, torch.tensor(5)):
        lists = [p.clone()], *([state.clone()] for state in states)
        getattr(ops, f"{kind}_")(lists[0], [g], *lists[1:], step, **options)
        found.append([column[0] for column in lists])
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-14, atol=1e-15)
    assert torch.equal(found[1][0], p) == bool(skip)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_made_in_a_first_step_that_is_skipped_serve_the_next(kind):
    """The first has a number of Python's, the others one in a tensor, which cannot say that copies are to be made."""
    torch.manual_seed(4)
    rounded = torch.randn(6).bfloat16()
    lists = tuple([x] for x in (rounded.clone(), *(torch.zeros(6) for _ in range(KINDS[kind][0] + 1))))
    truth = rounded.float(), *(torch.zeros(6) for _ in range(KINDS[kind][0]))
    g, options = torch.randn(6).bfloat16(), {"lr": 1e-3, **KINDS[kind][1]}
    skipped = {"skip": torch.tensor(True), "count": torch.tensor(0.0), "master_weights": True}
    made = {"skip": torch.tensor(False), "count": torch.tensor(1.0), "master_weights": True}
    getattr(ops, f"{kind}_")(lists[0], [g], *lists[1:], 1, **skipped, **options)
    assert torch.equal(lists[0][0], rounded)
    getattr(ops, f"{kind}_")(lists[0], [g], *lists[1:], torch.tensor(2), **made, **options)
    wanted = getattr(ops, kind)(truth[0], g.float(), *truth[1:], 1, **options)
    torch.testing.assert_close(lists[-1][0], wanted[0], rtol=1e-6, atol=1e-7)
