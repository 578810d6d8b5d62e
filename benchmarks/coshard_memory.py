"""Peak memory of co-shard beside recomputation and tensor parallelism, on a Swin at high resolution.

What each plan predicts, by liveness over its programs, against what its generated program holds at most while it runs
a step: the bytes of all tensors alive (`benchmarks.memory_watch`), or what the CUDA allocator says. Every plan starts
from the same weights and must have the same loss. Goal: the prediction is within 5 % wherever a plan saves memory.
"""

from typing import Any

import torch

from benchmarks.memory_runs import device_type, losses_agree, memory_rows
from benchmarks.report import finish, parse_arguments
from models import swin

PLANS = (
    "none", "recompute", "tp=2", "tp=2,recompute", "co_shard=2", "co_shard=4", "co_shard=8", "co_shard=2,recompute",
    "co_shard=4,recompute", "co_shard=8,recompute", "tp=2,co_shard=4,recompute",
)  # fmt: skip
QUICK = ("none", "recompute", "tp=2", "co_shard=2", "co_shard=8", "co_shard=8,recompute")
CLOSE = 0.05


def main() -> None:
    """Compile all plans, run them, and compare."""
    options = parse_arguments(__doc__ or "")
    overrides: dict[str, Any] = {"image": 256, "depths": (2, 2)} if options.quick else {}
    torch.manual_seed(0)
    model, batch = swin.build("bench", **overrides), swin.example_inputs("bench", batch=1, **overrides)
    rows = memory_rows(model, batch, QUICK if options.quick else PLANS, steps=1 if options.quick else 3)
    plain = rows[0]["measured_mib"]
    rows = [{**row, "of_plain": row["measured_mib"] / plain} for row in rows]
    ratios = [row["predicted/measured"] for row in rows]
    saving = {row["plan"]: row["of_plain"] for row in rows}
    is_close = all(abs(ratio - 1) <= CLOSE for ratio in ratios)
    finish(
        "coshard_memory", losses_agree(rows) and is_close, rows, options.quick,
        ratio_lowest=min(ratios), ratio_highest=max(ratios), recompute=saving["recompute"],
        tp2=saving["tp=2"], co_shard8=saving["co_shard=8"], co_shard8_recompute=saving["co_shard=8,recompute"],
        device=device_type(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
