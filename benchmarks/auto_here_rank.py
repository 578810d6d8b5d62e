"""What each process of `benchmarks.auto_here` does: it trains by one plan after another, a step each, in rounds."""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from superscaler.runtime.build import read_build
from superscaler.runtime.data import Batches
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.weights import load_weights

DEVICE = torch.device("cpu")
WARM_UP = 1
"""Rounds that are not counted."""


def main() -> None:
    """Run the plans named on the command line; rank 0 writes ``measured.json``."""
    folder, rounds, *names = sys.argv[1:]
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo")
    trainings = {name: Training(Path(folder), name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + int(rounds)):
        for name in names if number % 2 else reversed(names):
            taken = trainings[name].step()
            if number >= WARM_UP:
                seconds[name].append(taken)
    if dist.get_rank() == 0:
        (Path(folder) / "measured.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


class Training:
    """This rank's part of training by one plan."""

    def __init__(self, folder: Path, name: str) -> None:
        build, rank = read_build(folder / name), dist.get_rank()
        self.runtime = make_runtime(build, rank, DEVICE)
        self.module = load_module(build.folder, build.program_of(rank))
        self.start = load_weights(folder / "weights.safetensors", build, rank, DEVICE)
        self.batches = Batches(folder / "data.safetensors", build, rank, DEVICE).micro_batches(0)
        self.number = 0

    def step(self) -> float:
        """Seconds of one step, from all ranks' start to the last one's end."""
        self.number += 1
        dist.barrier()
        begin = time.perf_counter()
        self.module.train_step(self.start.weights, self.start.states, self.batches, self.number, self.runtime)
        dist.barrier()
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
