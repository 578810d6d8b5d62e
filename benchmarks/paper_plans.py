"""SuperScaler's experiment (arXiv 2301.08984), simulated: its plans beside those of other systems, on 4 to 32 V100.

Every system is a space of plans within one search, so that all are judged by one simulator: Megatron-LM (stages of as
many layers), DeepSpeed ZeRO-3, Alpa (parallelism within and between operators), and all plans there are. The plan that
the paper proposes for a model (co-shard for Swin and GPT-3, interlaced for mBART, 3F1B for AlphaFold 2) is searched for
alone, too. Attention stores its scores, as it did in all of these systems then.

What a plan's devices do more and less than the peer's is given in parts of the peer's step: that says why it is slower
or faster.

The paper scales its models with the number of devices, to sizes that are not published; these are ours. Goal: no system
is faster than all plans there are, and the paper's plan is at least as fast as the system the paper compares it with,
or the table says what it does more.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from math import inf, prod
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import finish, parse_arguments
from superscaler import compiler
from superscaler.errors import PlanError
from superscaler.ir.deferred import deferred_init
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.search.candidate import Candidate, Space
from superscaler.search.search import Search

SECONDS, SECONDS_OF_ALL = 300.0, 150.0
"""For one search, of a system and of all plans; prices of layers are found once for all."""
PLAIN = (("", 1), ("layers", 1))
PIECES = (("", 4), ("", 8), ("", 16))
SYSTEMS = {
    "megatron": Space(("1f1b", "interleaved"), (0,), PLAIN, sp=(False,), even=True),
    "deepspeed": Space((), (3,), PLAIN, most_tp=1, most_pp=1),
    "alpa": Space(("1f1b",), (0, 1), PLAIN, sp=(False,)),
}
ALL = replace(Space(), keeps=(*Space().keeps, ("", 16)))
PROPOSED = "paper's plan"


@dataclass(frozen=True)
class Model:
    """One of the paper's models, in sizes for 4, 8, 16 and 32 devices."""

    title: str
    module: str
    """In `models`."""
    batch: int
    sizes: tuple[tuple[str, dict[str, Any]], ...]
    plan: Space
    """The plan the paper proposes."""
    peer: str
    """The system the paper compares it with."""
    published: str
    """By how much it is faster there."""


GPUS = (4, 8, 16, 32)
MODELS = (
    Model(
        "mBART, 500,000 words", "mbart", 256,
        tuple(
            ("mbart-500k", {"layers": layers, "width": width, "heads": width // 64, "inner": 4 * width})
            for layers, width in ((12, 1536), (24, 2048), (24, 2560), (24, 3072))
        ),
        Space(("interlaced", "interlaced-ahead"), (0, 1), PLAIN, least_pp=2), "megatron", "up to 2.2 (T5)",
    ),
    Model(
        "GPT-3, 16,384 tokens", "gpt", 32,
        tuple(
            ("gpt3-175b", {"layers": layers, "width": width, "heads": heads, "seq": 16384})
            for layers, width, heads in ((24, 2048, 32), (32, 2560, 32), (32, 4096, 32), (40, 5120, 40))
        ),
        Space(keeps=PIECES, schedules=("1f1b",)), "megatron", "faster",
    ),
    Model(
        "Swin, 1536 x 1536", "swin", 64,
        tuple((name, {}) for name in ("swin-355m", "swin-1.8b", "swin-2.6b", "swin-5.9b")),
        Space(keeps=PIECES, schedules=("1f1b",)), "megatron", "up to 3.5",
    ),
    Model(
        "AlphaFold 2, 3 recycles", "alphafold2", 64,
        tuple((name, {}) for name in ("initial", "wide", "wide", "wider")),
        Space(("3f1b",), (0, 1), PLAIN, least_pp=2), "deepspeed", "up to 1.8",
    ),
)  # fmt: skip
QUICK = (
    replace(MODELS[0], sizes=(("mbart-500k", {"layers": 4, "width": 1024, "heads": 16, "inner": 4096}),)),
)


def main() -> None:
    """Search in all spaces, simulate what is found, and compare."""
    options = parse_arguments(__doc__ or "")
    cases = [
        (model, gpus, *size)
        for model in (QUICK if options.quick else MODELS)
        for gpus, size in zip(GPUS, model.sizes, strict=False)
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(_rows, *zip(*cases, strict=True)) for row in found]
    ours = [row for row in rows if row["space"] == PROPOSED]
    whole = [row for row in rows if row["space"] == "all"]
    wins = sum(row["over peer"] >= 1 for row in ours)
    is_best = all(row["over best system"] >= 0.99 for row in whole)
    figures = {f"best_{row['model'].split()[0].strip(',').lower()}": 0.0 for row in ours}
    for row in ours:
        name = f"best_{row['model'].split()[0].strip(',').lower()}"
        figures[name] = max(figures[name], row["over peer"])
    are_told = all(row["over peer"] >= 1 or row["beside peer"] for row in ours)
    finish("paper_plans", is_best and are_told, rows, options.quick,
           wins=wins, comparisons=len(ours), **figures)  # fmt: skip


def _rows(model: Model, gpus: int, size: str, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per space."""
    graph, cluster = _graph(model, size, sizes), _cluster(gpus)
    search = Search(graph, cluster)
    spaces = {**SYSTEMS, PROPOSED: model.plan, "all": ALL}
    simulated: dict[str, Outcome] = {}
    found = {}
    for title, space in spaces.items():
        search.space = space
        found[title] = _best(search, simulated, SECONDS_OF_ALL if title == "all" else SECONDS)
    # what was found in a part of all plans is one of them
    found["all"] = min(found.values(), key=lambda outcome: outcome.seconds)
    peer, fastest = found[model.peer], min(found[title].seconds for title in SYSTEMS)
    rows = [
        {
            "model": model.title,
            "gpus": gpus,
            "parameters": f"{_parameters(graph) / 1e9:.2f} B",
            "space": title,
            "samples/s": model.batch / outcome.seconds,
            "over peer": _ratio(peer.seconds, outcome.seconds),
            "over best system": _ratio(fastest, outcome.seconds),
            "published": f"{model.published} over {model.peer}" if title == PROPOSED else "",
            "beside peer": _beside(outcome, peer),
            "GiB": outcome.memory,
            "plan": outcome.plan,
        }
        for title, outcome in found.items()
    ]
    ratios = ", ".join(f"{row['space']} {row['over peer']:.3f}" for row in rows)
    print(f"{time.strftime('%H:%M:%S')} {model.title} on {gpus} V100: {ratios}", flush=True)
    return rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan as it is simulated; on average over devices, seconds of a step by what they do."""

    plan: str
    seconds: float = inf
    computing: float = 0.0
    exposed: float = 0.0
    """Communicating while nothing is computed."""
    waiting: float = 0.0
    memory: float = 0.0
    """GiB of the fullest device."""
    fits: bool = False


def _best(search: Search, simulated: dict[str, Outcome], seconds: float) -> Outcome:
    """The plan with the best estimate of those that fit as they are simulated."""
    unfit: set[Candidate] = set()
    while estimated := search.run(seconds, without=unfit).plans:
        for candidate in (plan.candidate for plan in estimated):
            text = str(candidate)
            if text not in simulated:
                simulated[text] = _simulate(search.graph, search.cluster, text)
            if simulated[text].fits:
                return simulated[text]
            unfit.add(candidate)
    return Outcome("none fits")


def _simulate(graph: Graph, cluster: Cluster, text: str) -> Outcome:
    try:
        done = compiler.plan(graph, cluster, text).simulate()
    except PlanError:  # what the estimate does not know of, such as uneven pieces
        return Outcome(text)

    def mean(name: str) -> float:
        return sum(getattr(row, name) * len(row.devices) for row in done.rows) / cluster.num_devices

    memory = max(row.memory.total for row in done.rows) / 2**30
    return Outcome(
        text, done.step_seconds, mean("computing"), mean("exposed"), mean("waiting"), memory, done.fits
    )


def _beside(own: Outcome, peer: Outcome) -> str:
    """What its devices do more and less, in parts of the peer's step."""
    if inf in (own.seconds, peer.seconds):
        return ""
    changes = {
        name: (getattr(own, name) - getattr(peer, name)) / peer.seconds
        for name in ("computing", "exposed", "waiting")
    }
    return ", ".join(f"{name} {change:+.1%}" for name, change in changes.items())


def _ratio(one: float, other: float) -> float:
    """How much faster the other is; 0 where it does not fit."""
    return one / other if other < inf else 0.0


def _graph(model: Model, size: str, sizes: dict[str, Any]) -> Graph:
    source = import_module(f"models.{model.module}")
    with deferred_init():
        module = source.build(size, **sizes).to(torch.float16)
    inputs = {
        name: value.half() if value.is_floating_point() else value
        for name, value in source.example_inputs(size, batch=model.batch, **sizes).items()
    }
    with _stored_scores():
        return trace(module, inputs, optimizer=AdamW(master_weights=True))


def _parameters(graph: Graph) -> int:
    return sum(prod(graph.tensors[name].shape) for name in graph.gradients)


def _cluster(gpus: int) -> Cluster:
    """So many V100 in servers of eight, or in a part of one."""
    cluster = Cluster.preset("superscaler-v100", max(1, gpus // 8))
    return replace(cluster, nodes=tuple(replace(n, devices_per_node=min(8, gpus)) for n in cluster.nodes))


@contextmanager
def _stored_scores() -> Iterator[None]:
    """Attention as it was before FlashAttention: products and a softmax, whose results are stored."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        assert not dropout_p
        assert not enable_gqa
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            later = torch.arange(key.shape[-2]).unsqueeze(0) > torch.arange(query.shape[-2]).unsqueeze(1)
            scores = scores.masked_fill(later, -1e4)
        if attn_mask is not None:
            is_bias = attn_mask.dtype != torch.bool
            scores = scores + attn_mask if is_bias else scores.masked_fill(~attn_mask, -1e4)
        return torch.softmax(scores, -1) @ value

    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention  # pyright: ignore
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


if __name__ == "__main__":
    main()
