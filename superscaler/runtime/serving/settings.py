"""Settings of an engine, and the engine made of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.engine import Drafting, Engine
from superscaler.runtime.serving.grammar.guidance import GuidanceGrammars
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.policies import make_policy
from superscaler.runtime.serving.scheduler import Scheduler
from superscaler.runtime.serving.speculation.speculators import AUTO, make_drafting
from superscaler.runtime.serving.worker import Worker


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine serves."""

    step_tokens: int = 2048
    """Most tokens in a step."""
    step_sequences: int = 256
    """Most sequences that run at once."""
    chunk_tokens: int | None = None
    """Most tokens of one prompt in a step."""
    longest: int | None = None
    """Most tokens of a sequence, prompt and answer; None: as many as the model is for."""
    host_pages: int = 0
    """Pages of host memory for sequences that make room; 0: these are computed again."""
    policy: str = "fcfs"
    """Who goes first."""
    end_tokens: frozenset[int] | None = None
    """Those with which the model ends a text; None: those that its build knows."""
    speculate: tuple[str, ...] = ()
    """What proposes tokens that one step checks, each ``ngram``, or a build of a small model on one device, as
    ``FOLDER`` or ``FOLDER:WEIGHTS``; the trees of several are merged."""
    tree: str = AUTO
    """Shape of their trees: ``auto``, ``off``, or how many children the nodes of each level have, ``1,1,3,1``."""
    steps_under_way: int | None = None
    """How many at once; None: one for each stage of the plan's pipeline, and one where something speculates, since what
    a step accepts is where the next proposals begin."""
    tokenizer: str | None = None
    """The folder with the model's tokenizer; None: there can be no grammars."""


def make_engine(
    worker: Worker,
    settings: Settings,
    start: Callable[[Batch], Callable[[], Tensor]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    drafting: Drafting | None = None,
) -> Engine:
    """An engine over a worker's pages.

    Args:
        worker: This rank's.
        settings: How to serve.
        start: Starts a batch on all ranks; None: on this one alone.
        clock: Seconds.
        drafting: Proposes tokens that one step checks, instead of what the settings say.

    Raises:
        ServingError: The settings allow no step.
        BuildError: What is to speculate cannot.
    """
    limits = Limits(
        sequence_tokens=min(worker.longest, settings.longest or worker.longest),
        step_tokens=settings.step_tokens,
        step_sequences=min(settings.step_sequences, settings.step_tokens),
        chunk_tokens=settings.chunk_tokens,
        preemption="swap" if settings.host_pages else "recompute",
    )
    ends = worker.end_tokens if settings.end_tokens is None else settings.end_tokens
    drafting = drafting or make_drafting(
        settings.speculate, settings.tree, worker.vocab, clock, worker.device
    )
    steps = settings.steps_under_way or (1 if drafting is not None else worker.stages)
    cache = KvCache(worker.pages, worker.page_size, settings.host_pages)
    policy = make_policy(settings.policy)
    scheduler = Scheduler(cache, policy, limits, clock, ends, steps)
    folder = settings.tokenizer
    grammars = None if folder is None else GuidanceGrammars(folder, worker.vocab, ends)
    return Engine(
        scheduler, cache, start or worker.start, clock, drafting, ends, grammars, worker.vocab, steps
    )
