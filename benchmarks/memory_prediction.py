"""Peak memory of plans of all kinds: predicted by liveness over their programs, and measured under torchrun.

A Llama whose activations, parameters and optimizer states all weigh. What a plan predicts of its fullest device, beside
the most that any rank's tensors take at once while its generated program runs a step (`benchmarks.memory_watch`), or
what the CUDA allocator says. All plans start from the same weights and must have the same loss. Goal: within 5 %.
"""

import torch

from benchmarks.memory_runs import device_type, losses_agree, memory_rows
from benchmarks.report import finish, parse_arguments
from models import llama

SIZES = {"layers": 8, "width": 256, "heads": 8, "kv_heads": 4, "inner": 704, "vocab": 2048, "seq": 256}
BATCH = 8
PLANS = (
    "none", "micro_batches=4", "recompute", "co_shard=4", "dp=2", "dp=2,zero=1,micro_batches=2",
    "dp=2,zero=2,micro_batches=2", "dp=2,zero=3", "tp=2,sp", "cp=2", "pp=2,schedule=1f1b,micro_batches=4",
    "pp=2,schedule=zb-h1,micro_batches=4", "pp=2,schedule=interleaved,micro_batches=4,offload=activations",
    "dp=2,offload=optimizer,zero=1",
)  # fmt: skip
QUICK = ("none", "dp=2", "tp=2,sp", "pp=2,schedule=1f1b,micro_batches=4")
CLOSE = 0.05


def main() -> None:
    """Compile all plans, run them, and compare."""
    options = parse_arguments(__doc__ or "")
    torch.manual_seed(0)
    model, batch = llama.build("bench", **SIZES), llama.example_inputs("bench", batch=BATCH, **SIZES)
    rows = memory_rows(model, batch, QUICK if options.quick else PLANS, steps=1)
    ratios = [row["predicted/measured"] for row in rows]
    worst = max(abs(ratio - 1) for ratio in ratios)
    ok = losses_agree(rows) and worst <= CLOSE
    finish(
        "memory_prediction", ok, rows, options.quick,
        plans=len(rows), worst=worst, ratio_lowest=min(ratios), ratio_highest=max(ratios), device=device_type(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
