"""One device: the generated step of a Llama, with and without ``--compile``, beside eager PyTorch and torch.compile.

On a GPU a Llama of 1.5 billion parameters in bfloat16, with ``--cuda-graphs`` too; without one a small Llama in
float32, so that the comparison can be made anywhere. The peers are the model as it is with autograd, and
``torch.compile`` of it, both with fused AdamW. MFU is the arithmetic of the model's products over what the device's own
largest matrix product reaches. Goal: the fastest of ours is no slower than the faster peer.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.eager import eager_step
from benchmarks.in_turn import time_in_turn
from benchmarks.report import finish, parse_arguments
from models import llama
from superscaler import compiler
from superscaler.ir.deferred import deferred_init
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.runtime.build import read_build
from superscaler.runtime.loaded import load

SMALL = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "inner": 704, "vocab": 1024}
OPTIMIZER = AdamW(lr=3e-4)
TOLERANCE = 0.02
"""Largest relative difference of first losses; products are rounded to bfloat16."""


def main() -> None:
    """Time all in turn."""
    options = parse_arguments(__doc__ or "")
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    sizes: dict[str, Any] = SMALL if options.quick else {"seq": 2048} if on_gpu else {}
    name = "llama3-1b" if on_gpu and not options.quick else "bench"
    batch, steps = (4, 20) if on_gpu or options.quick else (8, 12)
    inputs = {key: x.to(device) for key, x in llama.example_inputs(name, batch=batch, **sizes).items()}
    with tempfile.TemporaryDirectory() as folder:
        arithmetic = _compile(Path(folder), name, sizes, dtype, inputs)
        torch.manual_seed(0)
        weights = {key: x.to(dtype) for key, x in llama.build(name, **sizes).state_dict().items()}
        contenders = {
            "ours": _ours(Path(folder), device, weights, inputs),
            "ours, compiled": _ours(Path(folder), device, weights, inputs, compile=True),
            "eager": _peer(name, sizes, device, weights, inputs),
            "torch.compile": _peer(name, sizes, device, weights, inputs, torch.compile),
        }
        if on_gpu:
            contenders["ours, compiled, replayed"] = _ours(
                Path(folder), device, weights, inputs, compile=True, cuda_graphs=True
            )
        seconds, losses = time_in_turn(contenders, steps, device)
    ceiling = _ceiling(device, dtype)
    medians = {who: median(times) for who, times in seconds.items()}
    rows = [
        {
            "step": who,
            "median_ms": 1e3 * own,
            "mfu": arithmetic / own / ceiling,
            "first_loss": losses[who],
        }
        for who, own in medians.items()
    ]
    ours = min((who for who in medians if who.startswith("ours")), key=medians.__getitem__)
    peer = min(("eager", "torch.compile"), key=medians.__getitem__)
    ratio = median(b / a for a, b in zip(seconds[ours], seconds[peer], strict=True))
    agree = all(abs(loss / losses["eager"] - 1) < TOLERANCE for loss in losses.values())
    finish(
        "gpu_train", ratio >= 1.0 and agree, rows, options.quick,
        ratio=ratio, ours=ours, peer=peer, mfu=arithmetic / medians[ours] / ceiling, device=device,
        model=name, ceiling_tflops=ceiling / 1e12,
    )  # fmt: skip


def _compile(
    folder: Path, name: str, sizes: dict[str, Any], dtype: torch.dtype, inputs: dict[str, Tensor]
) -> float:
    """Write the build; returns the operations of a step's products."""
    with deferred_init():
        model = llama.build(name, **sizes).to(dtype)
    example = {key: x.cpu() for key, x in inputs.items()}
    compiler.compile(model, example, cluster=Cluster.local(1), optimizer=OPTIMIZER, save=folder)
    return read_build(folder).work.model_flops


def _ours(
    folder: Path, device: str, weights: dict[str, Tensor], inputs: dict[str, Tensor], **options: bool
) -> Callable[[], Any]:
    program = load(folder, device, **options)
    for name, value in program.weights.items():
        value.copy_(weights[name])
    return lambda: program(inputs)


def _peer(
    name: str, sizes: dict[str, Any], device: str, weights: dict[str, Tensor], inputs: dict[str, Tensor],
    compiled: Callable[[torch.nn.Module], Any] = lambda model: model,
) -> Callable[[], Any]:  # fmt: skip
    dtype = next(iter(weights.values())).dtype
    model = llama.build(name, **sizes).to(dtype)
    model.load_state_dict(weights)
    model = model.to(device)
    return eager_step(model, inputs, OPTIMIZER, fused=True, called=compiled(model))


def _ceiling(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, at best."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        torch.matmul(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
