"""What each process of `benchmarks.memory_runs` does: run builds one after another, and measure memory and time."""

import gc
import json
import os
import sys
import time
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.memory_watch import MemoryWatch
from superscaler.runtime.build import read_build
from superscaler.runtime.data import Batches
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.weights import load_weights


def main() -> None:
    """Run the builds named on the command line; rank 0 writes ``measured.json`` beside them."""
    folder, steps, *names = sys.argv[1:]
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if not on_gpu:
        torch.set_num_threads(1)
        keep_freed_memory()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    measured = {name: _measure(Path(folder), name, int(steps), device) for name in names}
    if dist.get_rank() == 0:
        (Path(folder) / "measured.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def _measure(folder: Path, name: str, steps: int, device: torch.device) -> dict[str, Any]:
    """The loss of the first step, the most bytes on any rank in the second, and seconds per step of the others."""
    build, rank = read_build(folder / name), dist.get_rank()
    runtime = make_runtime(build, rank, device)
    module = load_module(build.folder, build.program_of(rank))
    start = load_weights(folder / "weights.safetensors", build, rank, device)
    batches = Batches(folder / "data.safetensors", build, rank, device).micro_batches(0)
    loss = module.train_step(start.weights, start.states, batches, 1, runtime).get("loss")
    losses = torch.tensor(-inf if loss is None else loss.item(), device=device)  # not all stages have it
    dist.all_reduce(losses, dist.ReduceOp.MAX)
    gc.collect()
    with MemoryWatch((start.weights, start.states, batches, loss), device) as watch:
        module.train_step(start.weights, start.states, batches, 2, runtime)
    most = torch.tensor(watch.most_bytes, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    seconds = []
    for number in range(steps):
        dist.barrier()
        begin = time.perf_counter()
        module.train_step(start.weights, start.states, batches, 3 + number, runtime)
        if device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()
        seconds.append(time.perf_counter() - begin)
    return {"loss": losses.item(), "bytes": int(most), "seconds": median(seconds)}


if __name__ == "__main__":
    main()
