"""Tokens per second that a pipeline of two ranks serves with a step under way for each, and with one step at a time.

A Llama of 27 million parameters in single precision with random weights under ``pp=2``, each rank on one thread. All
requests are there from the start: few, with which each step takes about as long for half of them as for all (it reads
the weights); many; and many with long prompts and short answers. Both ways are served in turns by engines of their own;
a ratio is of the medians. Goal: the same answers, and 1.2 times the tokens per second where there are many.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.report import finish, parse_arguments
from benchmarks.served import Served
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize

PLAN, RANKS, VOCAB = "pp=2", 2, 4096
SIZES = {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1376, "vocab_size": VOCAB}
FASTER = 1.2
"""Where there are many requests."""


@dataclass(frozen=True)
class Load:
    """Requests, and from how many to how many tokens their prompts and answers have."""

    name: str
    count: int
    prompt: tuple[int, int]
    answer: tuple[int, int]
    is_judged: bool = True

    def requests(self) -> list[Request]:
        """The same ones every time."""
        chance = random.Random(self.name)
        return [
            Request(
                f"{self.name} {number}",
                tuple(chance.randrange(VOCAB) for _ in range(chance.randint(*self.prompt))),
                SamplingParams(temperature=0.0, max_tokens=chance.randint(*self.answer)),
            )
            for number in range(self.count)
        ]


LOADS = (
    Load("few", 16, (16, 128), (16, 96), is_judged=False),
    Load("many", 192, (16, 128), (16, 96)),
    Load("long prompts", 192, (64, 192), (4, 16)),
)
QUICK_LOADS = (Load("long prompts", 96, (64, 192), (4, 16)),)


def main() -> None:
    """Serve every load both ways."""
    options = parse_arguments(__doc__ or "")
    loads, rounds = (QUICK_LOADS, 1) if options.quick else (LOADS, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "build"
        compile_serving(_model(), Cluster.local(RANKS), PLAN, cache=CacheSize(pages=4096)).save(folder)
        rows = [_row(folder, load, rounds) for load in loads]
    ratios = [row["ratio"] for row, load in zip(rows, loads, strict=True) if load.is_judged]
    same = all(row["same answers"] for row in rows)
    ok = same and min(ratios) >= FASTER
    finish("serve_pipeline", ok, rows, options.quick, same=same, least=min(ratios), most=max(ratios))


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def _row(folder: Path, load: Load, rounds: int) -> dict[str, str | float | bool]:
    requests = load.requests()
    tokens = sum(request.params.max_tokens or 0 for request in requests)
    seconds: dict[int, list[float]] = {1: [], RANKS: []}
    answers = []
    for _ in range(rounds):
        for steps, times in seconds.items():
            found, taken = _served(folder, requests, steps)
            answers.append(found)
            times.append(taken)
    one, several = (tokens / statistics.median(times) for times in seconds.values())
    same = all(found == answers[0] for found in answers)
    return {
        "requests": load.name, "count": load.count, "tokens": tokens, "tokens/s, one step": one,
        "tokens/s, a step a stage": several, "ratio": several / one, "same answers": same,
    }  # fmt: skip


def _served(
    folder: Path, requests: Sequence[Request], steps: int
) -> tuple[dict[str, tuple[int, ...]], float]:
    """The answers, and the seconds for all of them."""
    with Served(folder, ["--steps-under-way", steps], ranks=RANKS) as engine:
        engine.answers([Request("first", (1, 2, 3), SamplingParams(temperature=0.0, max_tokens=4))])
        start = time.perf_counter()
        return dict(engine.answers(requests)), time.perf_counter() - start


if __name__ == "__main__":
    main()
