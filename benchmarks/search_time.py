"""How long the search for a plan takes: GPT-3 175B on 1,024 A100, a smaller GPT on 32 V100, and 32 to 4,096 devices.

The graph is traced beforehand; what is timed is the search: shortening the graph, pricing its layers, bounding plans
and cutting stages. Goals: 1,024 A100 in under 60 s with a gap of at most 5 %, 32 V100 in under 15 s (to a plan for a
smaller model, and for the large one to the proof that there is none), 4,096 devices in less than 3 times what 32 take.
"""

import time
from math import inf
from typing import Any

import torch

from benchmarks.report import finish, parse_arguments
from models import gpt
from superscaler.ir.deferred import deferred_init
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.search.search import Found, Search

LARGE = {"name": "gpt3-175b"}
SMALL = {"name": "gpt3-175b", "layers": 32, "width": 4096, "heads": 32}
"""A GPT of 6.7 billion parameters, of which 32 V100 hold all states."""
CASES: tuple[tuple[str, dict[str, Any], str, int], ...] = (
    ("32 V100", SMALL, "dgx-1-v100:4", 256),
    ("32 V100, too few", LARGE, "dgx-1-v100:4", 256),
    ("32 A100", SMALL, "dgx-a100:4", 256),
    ("4,096 A100", SMALL, "dgx-a100:512", 4096),
    ("1,024 A100", LARGE, "dgx-a100:128", 1536),
)
"""Title, sizes of the model, cluster, global batch."""
QUICK = CASES[:2]


def main() -> None:
    """Search for all, and compare."""
    options = parse_arguments(__doc__ or "")
    rows = [_row(*case) for case in (QUICK if options.quick else CASES)]
    seconds = {row["devices"]: row["seconds"] for row in rows}
    gap = max(row["gap"] for row in rows)
    few = max(seconds["32 V100"], seconds["32 V100, too few"])
    ok = few < 15 and gap <= 0.05
    figures: dict[str, Any] = {"seconds_32_v100": few, "gap": gap}
    if not options.quick:
        growth = seconds["4,096 A100"] / seconds["32 A100"]
        ok = ok and seconds["1,024 A100"] < 60 and growth < 3
        figures |= {"seconds_1024_a100": seconds["1,024 A100"], "growth_32_to_4096": growth}
    finish("search_time", ok, rows, options.quick, **figures)


def _row(title: str, sizes: dict[str, Any], cluster: str, batch: int) -> dict[str, Any]:
    graph, traced = _graph(batch, **sizes)
    start = time.perf_counter()
    found = Search(graph, Cluster.parse(cluster)).run(time_limit=600.0)
    seconds = time.perf_counter() - start
    best = found.plans[0] if found.plans else None
    return {
        "devices": title,
        "layers": sizes.get("layers", 96),
        "trace_seconds": traced,
        "seconds": seconds,
        "gap": found.gap if best else 0.0,
        "plans": len(found.plans),
        "step_seconds": best.seconds if best else inf,
        "plan": str(best.candidate) if best else _too_few(found),
    }


def _too_few(found: Found) -> str:
    """What it takes, where it is proved that no plan fits."""
    assert found.bound == inf
    assert found.least_memory is not None
    needed, candidate = found.least_memory
    return f"none: every plan takes at least {needed / 2**30:.0f} GiB ({candidate})"


def _graph(batch: int, name: str, **sizes: int) -> tuple[Graph, float]:
    start = time.perf_counter()
    with deferred_init():
        model = gpt.build(name, **sizes).to(torch.bfloat16)
    inputs = gpt.example_inputs(name, batch=batch, **sizes)
    return trace(model, inputs, optimizer=AdamW()), time.perf_counter() - start


if __name__ == "__main__":
    main()
