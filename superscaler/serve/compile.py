"""Compile a language model for serving: trace, lower, plan; what is written is a build that an engine runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from superscaler.compiler import CompiledPlan, plan
from superscaler.planner.cluster import Cluster
from superscaler.serve.generation import generation_facts
from superscaler.serve.inputs import token_input
from superscaler.serve.language_model import configured_length, trace_language_model
from superscaler.serve.lower import Servable, lower
from superscaler.serve.paged import DEFAULT_CACHE, CacheSize, caches_of


@dataclass(frozen=True)
class ServingPlan:
    """A plan for a lowered model."""

    plan: CompiledPlan
    servable: Servable
    generation: Mapping[str, Any] = field(default_factory=dict)
    """What the model says of its own answers: `generation_facts`."""

    def save(
        self, directory: str | Path, model_reference: str = "", facts: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the build folder, which ``superscaler serve`` and `Engine.load` run; returns it.

        Args:
            directory: The folder.
            model_reference: How the user named the model, for the record.
            facts: Further entries of ``plan.json``.

        Raises:
            BuildError: The folder exists and is not a build.
        """
        return self.plan.save(directory, model_reference, {"serving": self._facts(), **(facts or {})})

    def _facts(self) -> dict[str, Any]:
        """What an engine must know of the program."""
        graph, cache = self.servable.graph, self.servable.cache
        logits = graph.outputs[0]
        return {
            "tokens": token_input(graph),
            "logits": logits,
            "vocab": graph.tensors[logits].shape[-1],
            "pages": cache.pages,
            "page_size": cache.page_size,
            "longest": self.servable.longest,
            "caches": [name for operator in graph.operators for name in caches_of(operator)],
            **self.generation,
        }


def compile_serving(
    model: torch.nn.Module,
    cluster: Cluster,
    wanted: Any = "none",
    *,
    cache: CacheSize = DEFAULT_CACHE,
    longest: int | None = None,
) -> ServingPlan:
    """Compile a causal language model for serving; the plan is verified.

    Args:
        model: Maps tokens [batch, seq] to logits [batch, seq, vocab]: one of `transformers`, or any module whose
            first argument is the tokens.
        cluster: What it runs on.
        wanted: A plan string, such as ``"tp=2"``, or a plan script.
        cache: How many tokens the caches hold.
        longest: Limits sequences to so many tokens; None: to those that a model of `transformers` is configured
            for. Tables of positions in the model set a limit of their own.

    Raises:
        TraceError: The model cannot be served; the message says why.
        PlanError: The plan cannot be.
    """
    longest = longest or configured_length(model)
    servable = lower(trace_language_model(model), cache=cache, longest=longest)
    planned = plan(servable.graph, cluster, wanted)
    planned.verify()
    vocab = servable.graph.tensors[servable.graph.outputs[0]].shape[-1]
    return ServingPlan(planned, servable, generation_facts(model, vocab))
