"""Speculative serving beside plain serving: the same answers, tokens per step by the width of trees, and latency.

A target and two small drafts are trained here on real text of five families (`benchmarks.text_families`), by the
project's own training programs; the second draft is distilled from what the target itself writes. Then:

* *identity*: greedy answers to held-out prompts, without speculation, and with trees of all speculators merged;
* *tokens per step*: of trees <1,1,k,1,...> with 8 levels, by family: greedy, drawn with multi-step speculative sampling
  (tokens drawn by the draft are judged by what it drew from), and drawn naively (a token is accepted if the target
  happens to draw it);
* *latency*: seconds per token at batches of 1 to 16, without speculation and with trees as it pays, in turns;
* *offloaded*: the same at batch 1, with the target's weights in host memory, from where they come layer by layer: here,
  where that is the memory of the device too, and over a link of which each step takes about ten times as long as its
  computing (over PCIe, with 13 billion parameters on an A10, it is about thirty times). The link is waited for.

Goals: all answers the same; 1.5 times as fast at batch 1, 2.6 times over the link; nowhere below 0.98 times.
"""

import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.report import RESULTS, finish, parse_arguments, print_table
from benchmarks.slow_link import SlowLink
from benchmarks.text_families import families, split
from benchmarks.trained import KEPT, Recipe, trained
from superscaler.distill.lesson import LessonRecipe, Teacher
from superscaler.distill.training import TrainingRecipe, distill
from superscaler.planner.cluster import Cluster
from superscaler.runtime import communication
from superscaler.runtime.loaded import load_alone
from superscaler.runtime.serving.engine import Engine
from superscaler.runtime.serving.offline import generate
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings, make_engine
from superscaler.runtime.serving.speculation.speculators import NGRAM, make_speculator
from superscaler.runtime.serving.speculation.step import Proposal, Speculator, Wish
from superscaler.runtime.serving.speculation.token_tree import expansion
from superscaler.runtime.serving.speculation.tree_drafting import FixedShape, TreeDrafting
from superscaler.runtime.serving.worker import Worker
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize

CACHE = CacheSize(pages=512)
PROMPT = 64
"""Tokens."""
LEVELS = 8
FASTER, OFFLOADED_FASTER, NEVER_SLOWER = 1.5, 2.6, 0.98
LINK = 0.5e9
"""Bytes per second."""
CLOCK = time.thread_time
"""Seconds that the one thread computes: what else runs on the machine is not counted."""
Clock = Callable[[], float]
_WHERE = {None: "on the device", math.inf: "from the host"}


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    text: int
    """Bytes of each family."""
    target: Recipe
    draft: Recipe
    distilled: Recipe
    lesson: LessonRecipe
    """What the target writes for the distilled draft."""
    answers: int
    """That are compared."""
    new: int
    """Tokens of each answer."""
    tree_prompts: int
    """Of each family, for tokens per step."""
    latency_new: int
    """Tokens of an answer whose latency is measured, in the middle."""
    rounds: int
    """Of latency, after as many again to warm up."""
    widths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Of trees."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Of latency."""


FULL = Scale(
    text=200_000,
    target=Recipe(layers=12, width=512, heads=8, steps=600),
    draft=Recipe(layers=1, width=96, heads=4, steps=600, rate=3e-3),
    distilled=Recipe(layers=1, width=128, heads=4, steps=4000, rate=3e-3),
    lesson=LessonRecipe(samples=2000), answers=500, new=32, tree_prompts=12, latency_new=128, rounds=3,
)  # fmt: skip
QUICK = Scale(
    text=20_000,
    target=Recipe(layers=3, width=128, heads=4, steps=40, batch=8, rate=3e-3),
    draft=Recipe(layers=1, width=64, heads=2, steps=40, batch=8, rate=4e-3),
    distilled=Recipe(layers=1, width=64, heads=2, steps=40, batch=8, rate=4e-3),
    lesson=LessonRecipe(samples=20, prompt_tokens=32, answer_tokens=32), answers=10, new=16, tree_prompts=1,
    latency_new=16, rounds=2, widths=(1, 3), batches=(1, 4),
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The models, each a build and its weights, and what they have not seen."""

    target: tuple[Path, Path]
    offloaded: Path
    """Its build whose weights are in host memory."""
    drafts: tuple[str, ...]
    """As an option wants them; the distilled one is the last."""
    held_out: Mapping[str, list[bytes]]
    """By family."""

    def prompts(self, family: str, count: int) -> list[list[int]]:
        """Of a family, from places nobody has seen."""
        chance = random.Random(family)
        return [_prompt(chance, chance.choice(self.held_out[family])) for _ in range(count)]

    def mixed(self, count: int) -> list[list[int]]:
        """Of all families in turn."""
        each = [self.prompts(family, -(-count // len(self.held_out))) for family in self.held_out]
        return [prompt for together in zip(*each, strict=True) for prompt in together][:count]

    def engine(self, clock: Clock = CLOCK, link: float | None = None, **settings: Any) -> Engine:
        """One that serves the target, with weights that come over a link of so many bytes per second, if any."""
        folder, weights = self.target
        with patch.object(communication, "carrier_of", lambda device: SlowLink(link or 1.0)):
            program = load_alone(self.offloaded if link else folder, "cpu", weights)
        return make_engine(Worker(program), Settings(**settings), clock=clock)


def main() -> None:
    """Train, or find what was trained, and measure."""
    options = parse_arguments(__doc__ or "")
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as home:
        models = _train(scale, Path(home))
        torch.set_num_threads(1)
        answers, same = _identity(models, scale)
        trees = _tokens_per_step(models, scale)
        rows = [_latency(models, scale, batch) for batch in scale.batches]
        rows += [_latency(models, scale, 1, link) for link in (math.inf, LINK)]
    print_table(trees)
    kept = RESULTS / f"speculation_trees{'-quick' if options.quick else ''}.json"
    kept.write_text(json.dumps(trees, indent=1) + "\n")
    ratios = [row["times as fast"] for row in rows]
    is_faster = ratios[0] >= FASTER and ratios[-1] >= OFFLOADED_FASTER
    ok = same == answers and is_faster and min(ratios) >= NEVER_SLOWER
    finish(
        "speculation", ok, rows, options.quick, answers=answers, same=same, faster_at_1=ratios[0],
        faster_offloaded=ratios[-1], least=min(ratios),
    )  # fmt: skip


# -- training


def _train(scale: Scale, home: Path) -> Trained:
    pieces = {name: split(text) for name, text in families(scale.text).items()}
    seen = [piece for seen, _ in pieces.values() for piece in seen]
    random.Random(0).shuffle(seen)
    text = b"".join(seen)
    target = (_build(scale.target.model(), home / "target"), trained(scale.target, text))
    draft = f"{_build(scale.draft.model(), home / 'draft')}:{trained(scale.draft, text)}"
    distilled = _build(_distilled(scale, target, text), home / "distilled")
    held_out = {name: held_out for name, (_, held_out) in pieces.items()}
    offloaded = _build(scale.target.model(), home / "offloaded", "offload=parameters")
    return Trained(target, offloaded, (draft, str(distilled)), held_out)


def _build(model: nn.Module, folder: Path, plan: str = "none") -> Path:
    return compile_serving(model, Cluster.local(1), plan, cache=CACHE, longest=512).save(folder)


def _distilled(scale: Scale, target: tuple[Path, Path], text: bytes) -> nn.Module:
    """The second draft, with its weights."""
    recipe = scale.distilled
    draft = recipe.model()
    how = TrainingRecipe(recipe.steps, recipe.batch, recipe.rate, "bfloat16")
    work = KEPT / f"distilled-{target[1].stem}-{scale.lesson.samples}"
    found = distill(Teacher(*target), draft, np.frombuffer(text, np.uint8), scale.lesson, how, work)
    print(
        f"the distilled draft: {100 * found.agreement:.1f} % of the target's tokens are its likeliest",
        flush=True,
    )
    return draft


def _prompt(chance: random.Random, piece: bytes) -> list[int]:
    start = chance.randrange(len(piece) - PROMPT)
    return list(piece[start : start + PROMPT])


# -- measuring


def _identity(models: Trained, scale: Scale) -> tuple[int, int]:
    """How many answers, and how many of them are the same with and without speculation."""
    prompts = models.mixed(scale.answers)
    params = SamplingParams(temperature=0.0, max_tokens=scale.new)
    found = [
        [one.tokens for (one,) in generate(models.engine(step_sequences=16, **more), prompts, params)]
        for more in ({}, {"speculate": (NGRAM, *models.drafts), "tree": "1,1,3,1"})
    ]
    return len(prompts), sum(plain == speculative for plain, speculative in zip(*found, strict=True))


def _tokens_per_step(models: Trained, scale: Scale) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for how, temperature, is_naive in (("greedy", 0.0, False), ("drawn", 1.0, False), ("naive", 1.0, True)):
        params = SamplingParams(temperature=temperature, max_tokens=scale.new, seed=3, ignore_eos=True)
        for width in scale.widths:
            row: dict[str, Any] = {"sampling": how, "width": width}
            for family in models.held_out:
                engine = _engine(models, expansion(1, 1, width, *[1] * (LEVELS - 3)), is_naive)
                generate(engine, models.prompts(family, scale.tree_prompts), params)
                load = engine.load
                row[family] = 1 + load.accepted_tokens / load.drafts
            rows.append(row)
    return rows


def _engine(models: Trained, shape: tuple[int, ...], is_naive: bool) -> Engine:
    """One with trees of one shape from the distilled draft."""
    folder, weights = models.target
    worker = Worker(load_alone(folder, "cpu", weights))
    draft = make_speculator(models.drafts[-1], 0, worker.vocab, "cpu")
    speculator = Naive(draft) if is_naive else draft
    return make_engine(
        worker, Settings(), clock=CLOCK, drafting=TreeDrafting([speculator], FixedShape(shape), CLOCK)
    )


class Naive:
    """Another's proposals as if nothing had been drawn: the target draws, and sees whether a child has it."""

    def __init__(self, speculator: Speculator) -> None:
        self._speculator = speculator

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """The same trees."""
        return [Proposal(proposal.tree) for proposal in self._speculator.propose(wishes)]

    def forget(self, sequence: Any) -> None:
        """The sequence has ended."""
        self._speculator.forget(sequence)


def _latency(models: Trained, scale: Scale, batch: int, link: float | None = None) -> dict[str, Any]:
    """Milliseconds per token of each sequence, plain and as it pays, in turns."""
    ways = {"plain": {}, "speculative": {"speculate": (models.drafts[-1],), "tree": "auto"}}
    clock = time.perf_counter if link else CLOCK  # what copies is not the thread that computes
    busy = {
        name: Busy(models, batch, scale.latency_new, clock, link=link, **how) for name, how in ways.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in busy}
    for number in range(2 * scale.rounds):
        for name in list(busy)[:: 1 if number % 2 else -1]:
            rates[name].append(busy[name].seconds_per_token(batch * scale.latency_new))
    kept = {name: 1e3 * batch * statistics.mean(found[scale.rounds :]) for name, found in rates.items()}
    load = busy["speculative"].engine.load
    drafts = max(1, load.drafts)
    return {
        "weights": _WHERE.get(link) or f"from the host, {link / 1e9:g} GB/s",
        "batch": batch,
        "plain ms": kept["plain"],
        "speculative ms": kept["speculative"],
        "times as fast": kept["plain"] / kept["speculative"],
        "drafts": load.drafts,
        "nodes a draft": load.draft_tokens / drafts,
        "accepted a draft": load.accepted_tokens / drafts,
    }


class Busy:
    """An engine with always so many sequences: where one ends, the next begins.

    Args:
        models: What it serves.
        batch: Sequences.
        new: Tokens of an answer, in the middle: they differ, or all would begin and end together.
        clock: Seconds.
        settings: Of the engine.
    """

    def __init__(self, models: Trained, batch: int, new: int, clock: Clock, **settings: Any) -> None:
        self.engine, self._clock = models.engine(clock, **settings), clock
        self._prompts = cycle(models.mixed(16 * batch))
        self._lengths = random.Random(batch)
        self._new = new
        self._requests = 0
        for _ in range(batch):
            self._add()

    def seconds_per_token(self, tokens: int) -> float:
        """Of the next so many tokens, and a few more."""
        began, found = self._clock(), 0
        while found < tokens:
            for output in self.engine.step():
                found += len(output.tokens)
                if output.finish_reason:
                    self._add()
        return (self._clock() - began) / found

    def _add(self) -> None:
        self._requests += 1
        most = self._lengths.randint(self._new // 2, self._new * 3 // 2)
        params = SamplingParams(temperature=0.0, max_tokens=most)
        self.engine.add(Request(str(self._requests), tuple(next(self._prompts)), params))


if __name__ == "__main__":
    main()
