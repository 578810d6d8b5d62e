"""One process, no cuts: the generated step against eager PyTorch, step by step in turn, on one GPT.

Goal: the median of the paired ratios generated / eager is at most 1.05. Eager is the model as it is with autograd and
``torch.optim.AdamW``, in its default form and fused; the faster of the two counts.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.eager import eager_step
from benchmarks.in_turn import time_in_turn
from benchmarks.report import finish, parse_arguments
from models import gpt
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.runtime.loaded import load

GOAL = 1.05


def main() -> None:
    """Time both in turn."""
    options = parse_arguments(__doc__ or "")
    batch, steps = (4, 8) if options.quick else (4, 40)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = gpt.build("bench")
    inputs = _inputs(gpt.example_inputs("bench", batch=batch), device)
    optimizer = AdamW(lr=3e-4)
    with tempfile.TemporaryDirectory() as folder:
        plan = compiler.compile(
            model, inputs, cluster=Cluster.local(1), optimizer=optimizer, save=Path(folder) / "b"
        )
        generated = load(Path(folder) / "b", device)
        contenders: dict[str, Callable[[], Any]] = {
            "generated": lambda: generated(inputs),
            "eager": _eager(inputs, device, optimizer, fused=False),
            "eager fused": _eager(inputs, device, optimizer, fused=True),
        }
        seconds, losses = time_in_turn(contenders, steps, device)
    rows = [
        {
            "step": name,
            "median_ms": 1e3 * median(times),
            "min_ms": 1e3 * min(times),
            "first_loss": losses[name],
        }
        for name, times in seconds.items()
    ]
    ratios = {
        name: median(a / b for a, b in zip(seconds["generated"], seconds[name], strict=True))
        for name in contenders
    }
    worst = max(ratios["eager"], ratios["eager fused"])
    assert plan.num_devices == 1
    finish(
        "one_device", worst <= GOAL, rows, options.quick,
        ratio_eager=ratios["eager"], ratio_eager_fused=ratios["eager fused"], device=device, batch=batch,
    )  # fmt: skip


def _inputs(example: Any, device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(0, 256, value.shape, generator=generator).to(device)
        for name, value in example.items()
    }


def _eager(inputs: dict[str, torch.Tensor], device: str, options: AdamW, *, fused: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = gpt.build("bench").to(device)
    return eager_step(model, inputs, options, fused=fused)


if __name__ == "__main__":
    main()
