"""Engine options: what a command line can say of an engine, that of ``superscaler serve`` or of a ``serve.py``."""

import argparse
from typing import Any

from superscaler.runtime.option_values import natural, positive
from superscaler.runtime.serving.policies import POLICIES

_NAMES = (
    "seed", "timeout", "threads", "step_tokens", "step_sequences", "chunk_tokens", "steps_under_way", "host_pages",
    "policy", "tree",
)  # fmt: skip


def add_engine_options(group: Any) -> None:
    """Describe them to a parser of argparse, or a group of one."""
    add = group.add_argument
    add("--seed", type=int, default=0, help="of the initialisation, without weights")
    add("--timeout", type=float, default=300.0, metavar="SECONDS",
        help="longest wait of a rank for another (default 300)")  # fmt: skip
    add("--threads", type=positive, help="CPU threads per rank (default: torch's)")
    add(
        "--step-tokens", type=positive, default=2048, metavar="N", help="most tokens in a step (default 2048)"
    )
    add(
        "--step-sequences",
        type=positive,
        default=256,
        metavar="N",
        help="most sequences at once (default 256)",
    )
    add("--chunk-tokens", type=positive, metavar="N", help="most tokens of one prompt in a step")
    add("--steps-under-way", type=positive, metavar="N",
        help="steps at once (default: one for each stage of the plan's pipeline; one with --speculate)")  # fmt: skip
    add("--host-pages", type=natural, default=0, metavar="N",
        help="pages of host memory for sequences that make room (default 0)")  # fmt: skip
    add("--policy", choices=sorted(POLICIES), default="fcfs", help="who goes first (default fcfs)")
    add("--speculate", action="append", default=[], metavar="ngram|FOLDER[:WEIGHTS]",
        help="what proposes tokens that one step checks: what followed earlier in the text, or a small model's build, "
        "as `superscaler distill` makes it; repeated, their proposals are merged")  # fmt: skip
    add("--tree", default="auto", metavar="auto|off|K,K,...",
        help="shape of proposals: as it pays, or children of the nodes of each level (default auto)")  # fmt: skip


def engine_words(options: argparse.Namespace) -> list[str]:
    """Those options as a ``serve.py`` takes them."""
    given = [(name, getattr(options, name)) for name in _NAMES]
    given += [("speculate", each) for each in options.speculate]
    return [f"--{name.replace('_', '-')}={value}" for name, value in given if value is not None]
