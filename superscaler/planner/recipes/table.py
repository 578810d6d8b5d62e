"""The table of recipes: per word of a plan string the script it stands for, what that does, and whose idea it is."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getdoc
from math import prod
from typing import Any

from superscaler.planner.planner import Planner
from superscaler.planner.recipes.co_sharding import co_shard_layers
from superscaler.planner.recipes.context_parallelism import context_parallel
from superscaler.planner.recipes.data_parallelism import data_parallel
from superscaler.planner.recipes.expert_parallelism import expert_parallel
from superscaler.planner.recipes.offloading import (
    offload_activations,
    offload_everything,
    offload_optimizer,
    offload_optimizer_and_activations,
    offload_optimizer_and_parameters,
    offload_parameters,
)
from superscaler.planner.recipes.pipelines import pipeline
from superscaler.planner.recipes.recomputation import recompute_attention, recompute_layers, recompute_stages
from superscaler.planner.recipes.sharding import gradient_sharding, optimizer_sharding, parameter_sharding
from superscaler.planner.recipes.tensor_parallelism import sequence_parallel, tensor_parallel
from superscaler.planner.schedules import NAMED


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan string can say."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    zero: int = 0
    sp: bool = False
    recompute: str = ""
    offload: str = ""
    co_shard: int = 1
    schedule: str = ""
    micro_batches: int = 1
    virtual: int = 2
    layers: tuple[int, ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices the plan needs."""
        return self.pp * prod(self.axes.values())

    @property
    def schedule_name(self) -> str:
        """The schedule, named or not."""
        return self.schedule or "1f1b"

    @property
    def axes(self) -> dict[str, int]:
        """The mesh axes of a stage, major to minor; those of one device too."""
        return {"dp": self.dp, "ep": self.ep, "cp": self.cp, "tp": self.tp}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A word of plan strings and the script it stands for."""

    word: str
    """``tp=N`` takes a number, of which 1 says nothing; ``zero=1`` is one choice of several; ``sp`` is said or not."""
    script: Callable[..., Any]
    """The function of a Planner; or, of ``schedule=``, what makes the schedule for ``p.order``."""
    apply: Callable[[Planner, PlanOptions], None] | None = None
    """How a plan string calls the script; None: it tells `scheduled_pipeline`, with which every plan string begins."""

    @property
    def key(self) -> str:
        """The word without its value, and the field of `PlanOptions` that holds it."""
        return self.word.partition("=")[0]

    @property
    def value(self) -> str:
        """What the word says behind ``=``; empty: nothing."""
        return self.word.partition("=")[2]

    @property
    def name(self) -> str:
        """What to call the plan: ``tensor parallel``."""
        return self.script.__name__.replace("_", " ")

    @property
    def about(self) -> str:
        """What the script does, from the first line of its docstring."""
        return self._summary[0]

    @property
    def source(self) -> str:
        """Where the idea is from, which stands in parentheses at the end of that line."""
        return self._summary[1]

    @property
    def _summary(self) -> tuple[str, str]:
        line = (getdoc(self.script) or "").partition("\n")[0].removesuffix(".")
        about, _, source = line.removesuffix(")").rpartition(" (")
        return (about, source) if line.endswith(")") else (line, "")

    def word_said(self, options: PlanOptions) -> str:
        """The word as the options say it; empty: they do not."""
        given = getattr(options, self.key)
        if self.value == "N":
            return f"{self.key}={given}" if given > 1 else ""
        return self.word if (str(given) == self.value if self.value else given) else ""


def _simply(script: Callable[[Planner], None]) -> Callable[[Planner, PlanOptions], None]:
    """A script that needs no more than the planner."""
    return lambda p, _: script(p)


def _row(word: str, script: Callable[[Planner], None]) -> Recipe:
    return Recipe(word, script, _simply(script))


RECIPES: tuple[Recipe, ...] = (
    Recipe("pp=N", pipeline),
    *(Recipe(f"schedule={name}", schedule.make) for name, schedule in NAMED.items()),
    _row("dp=N", data_parallel),
    _row("ep=N", expert_parallel),
    _row("cp=N", context_parallel),
    _row("tp=N", tensor_parallel),
    _row("sp", sequence_parallel),
    _row("zero=1", optimizer_sharding),
    _row("zero=2", gradient_sharding),
    _row("zero=3", parameter_sharding),
    Recipe("co_shard=N", co_shard_layers, lambda p, options: co_shard_layers(p, options.co_shard)),
    _row("recompute=selective", recompute_attention),
    _row("recompute=layers", recompute_layers),
    _row("recompute=full", recompute_stages),
    _row("offload=optimizer", offload_optimizer),
    _row("offload=activations", offload_activations),
    _row("offload=parameters", offload_parameters),
    _row("offload=optimizer+activations", offload_optimizer_and_activations),
    _row("offload=optimizer+parameters", offload_optimizer_and_parameters),
    _row("offload=optimizer+activations+parameters", offload_everything),
)
"""All recipes, in the order in which a plan string's are applied."""

NUMBERS = {
    "micro_batches": "into how many parts the batch is cut, which run one after another",
    "virtual": "stages per row of devices, of schedule=interleaved",
}
"""Words that take a number and are no plans: they go with others."""

LISTS = {"layers": "layers of each stage, in order, where they are not to have nearly equal work"}
"""Words that take a number per stage: ``layers=5+7``."""

SHORT = {"recompute": "layers"}
"""What a word means where its value is left out."""
