"""Low precision under a plan: a 4-layer Llama under torchrun with gloo against one process of eager PyTorch.

* bfloat16 autocast with gradients clipped by their global norm, ``dp=2,tp=2``: the losses follow those of one process
  (``torch.autocast``, ``clip_grad_norm_``, ``torch.optim.AdamW``) within the noise of bfloat16. The noise is measured
  in one process: how far its losses come from its own in float32, and from its own when each batch's samples stand in
  another order. The larger counts, and at least 2 ** -8 of the loss, its last bit as a bfloat16 number.
* float16 with dynamic loss scaling from a scale that overflows: every rank skips the same first steps, the scale
  backs off, and training goes on as with ``torch.amp.GradScaler`` in one process, within 2 ** -8.
"""

import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.parity import torchrun
from benchmarks.report import finish, parse_arguments
from models import llama, text
from superscaler import compiler
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLAN, BATCH, SEQ = "dp=2,tp=2", 8, 32
SIZES = {"layers": 4, "seq": SEQ, "vocab": 256}
OPTIMIZER = AdamW(lr=1e-3, clip_norm=1.0)
LAST_BIT = 2.0**-8
"""Of a bfloat16 number, relative to it."""
SCALING = LossScale(init=2.0**40, backoff=2.0**-8)


def main() -> None:
    """Run both parts."""
    options = parse_arguments(__doc__ or "")
    steps = 20 if options.quick else 60
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "text.safetensors"
        text.write_dataset(data, seq=SEQ)
        samples = load_file(data)
        single = _eager(samples, steps, torch.bfloat16)
        noise = {
            "float32": _deviation(single, _eager(samples, steps, None)),
            "other order": _deviation(single, _eager(samples, steps, torch.bfloat16, is_turned=True)),
        }
        parallel, _ = torchrun(_build(Path(folder) / "bf16", "bfloat16", None), 4, data, steps)
        half, _ = torchrun(_build(Path(folder) / "fp16", "float16", SCALING), 4, data, steps)
    scaled, skipped = _scaled(samples, steps)
    bf16, fp16 = _deviation(parallel, single), _deviation(half, scaled)
    rows = [
        {"run": "bfloat16, one process", "first": single[0], "last": single[-1], "deviation": 0.0},
        {"run": f"bfloat16, {PLAN}", "first": parallel[0], "last": parallel[-1], "deviation": bf16},
        *(
            {"run": f"noise: {name}", "first": "", "last": "", "deviation": value}
            for name, value in noise.items()
        ),
        {"run": "float16, one process", "first": scaled[0], "last": scaled[-1], "deviation": 0.0},
        {"run": f"float16, {PLAN}", "first": half[0], "last": half[-1], "deviation": fp16},
    ]
    bound = max(LAST_BIT, *noise.values())
    ok = bf16 <= bound and fp16 <= LAST_BIT and skipped > 0 and half[-1] < half[0]
    finish(
        "numerics", ok, rows, options.quick,
        bf16=bf16, bound=bound, fp16=fp16, skipped=skipped, steps=steps,
    )  # fmt: skip


def _model() -> llama.Llama:
    torch.manual_seed(0)
    return llama.build("tiny", **SIZES)


def _build(folder: Path, precision: str, scaling: LossScale | None) -> Path:
    compiler.compile(
        _model(), llama.example_inputs("tiny", batch=BATCH, **SIZES), plan=PLAN, optimizer=OPTIMIZER, save=folder,
        cluster=Cluster.local(parse_plan(PLAN).num_devices), autocast=precision, loss_scale=scaling,
    )  # fmt: skip
    return folder


def _batch(
    samples: dict[str, torch.Tensor], step: int, *, is_turned: bool = False
) -> dict[str, torch.Tensor]:
    rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(samples["tokens"])
    rows = rows.flip(0) if is_turned else rows
    return {name: values[rows] for name, values in samples.items()}


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    betas = OPTIMIZER.beta1, OPTIMIZER.beta2
    return torch.optim.AdamW(
        model.parameters(), OPTIMIZER.lr, betas, OPTIMIZER.eps, OPTIMIZER.weight_decay
    )  # fmt: skip


def _eager(
    samples: dict[str, torch.Tensor], steps: int, dtype: torch.dtype | None, *, is_turned: bool = False
) -> list[float]:
    """Losses of one process; in float32 without a `dtype`."""
    model, losses = _model(), []
    optimizer = _optimizer(model)
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            loss = model(**_batch(samples, step, is_turned=is_turned))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _scaled(samples: dict[str, torch.Tensor], steps: int) -> tuple[list[float], int]:
    """Losses of one process in float16 with a gradient scaler, and how many steps it skipped."""
    model, losses = _model(), []
    optimizer = _optimizer(model)
    scaler = torch.amp.GradScaler("cpu", SCALING.init, SCALING.growth, SCALING.backoff, SCALING.interval)
    skipped = 0
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(**_batch(samples, step))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        skipped += scaler.get_scale() < before
        losses.append(loss.item())
    return losses, skipped


def _deviation(losses: list[float], truth: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(losses, truth, strict=True))


if __name__ == "__main__":
    main()
