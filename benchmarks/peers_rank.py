"""What each process of `benchmarks.peers_train` does: ours and a peer train the same model, in turn, block by block."""

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.peers import PEERS, Step
from models import llama
from superscaler.ir.optimizers import AdamW
from superscaler.runtime.build import read_build
from superscaler.runtime.compiled import compile_program
from superscaler.runtime.data import Batches
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.weights import load_weights

WARM_UP = 2
"""Steps whose losses are compared, and after which memory has grown to what a step needs."""


def main() -> None:
    """Run the rows the folder's ``settings.json`` names; rank 0 writes ``measured.json``."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    measured = [_measure(folder, name, is_compiled, settings) for name, is_compiled in settings["rows"]]
    if dist.get_rank() == 0:
        (folder / "measured.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def _measure(folder: Path, name: str, is_compiled: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Losses and seconds per step of both contenders, and why the peer is not compiled where it cannot be."""
    torch.compiler.reset()
    ours = _ours(folder, name, is_compiled)
    losses, why_not = {"ours": [_mean_loss(ours()) for _ in range(WARM_UP)]}, ""
    try:
        peer = _peer(folder, name, is_compiled, settings)
        losses["peer"] = [_mean_loss(peer()) for _ in range(WARM_UP)]
    except Exception as error:  # whatever torch says of its own parallelism, on all ranks alike
        if not is_compiled:
            raise
        why_not = f"{type(error).__name__}: {error}"
        peer = _peer(folder, name, False, settings)
        losses["peer"] = [_mean_loss(peer()) for _ in range(WARM_UP)]
    contenders = {"ours": ours, "peer": peer}
    seconds: dict[str, list[float]] = {who: [] for who in contenders}
    for number in range(settings["blocks"]):
        for who in list(contenders) if number % 2 else reversed(contenders):
            seconds[who].append(_time(contenders[who], settings["steps"]))
    return {"losses": losses, "seconds": seconds, "why_not": why_not}


def _peer(folder: Path, name: str, is_compiled: bool, settings: dict[str, Any]) -> Step:
    model = llama.build("bench", **settings["overrides"])
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    if is_compiled:  # each traces its functions when they are first called, as the plan has changed them
        for block in model.layers:
            block.compile()
    return PEERS[name].make(model, load_file(folder / "data.safetensors"), AdamW(**settings["optimizer"]))


def _ours(folder: Path, name: str, is_compiled: bool) -> Step:
    build, rank = read_build(folder / name), dist.get_rank()
    device = torch.device("cpu")
    runtime = make_runtime(build, rank, device)
    module = load_module(build.folder, build.program_of(rank))
    if is_compiled:
        compile_program(module, runtime)
    start = load_weights(folder / "weights.safetensors", build, rank, device)
    batches = Batches(folder / "data.safetensors", build, rank, device).micro_batches(0)
    count = 0

    def step() -> Tensor | None:
        nonlocal count
        count += 1
        return module.train_step(start.weights, start.states, batches, count, runtime).get("loss")

    return step


def _time(step: Callable[[], Any], steps: int) -> float:
    """Seconds per step, from all ranks' start to the last one's end."""
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return (time.perf_counter() - begin) / steps


def _mean_loss(loss: Tensor | None) -> float:
    """The mean over the ranks that have a loss: of their samples, or of all."""
    both = torch.tensor([0.0, 0.0] if loss is None else [float(loss), 1.0])
    dist.all_reduce(both)
    return float(both[0] / both[1])


if __name__ == "__main__":
    main()
