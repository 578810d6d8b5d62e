"""Plans whose pages the tests of this room look at."""

from functools import cache

from superscaler import compiler
from superscaler.compiler import CompiledPlan
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.search.auto import Choice, Report
from tests.codegen.plans import tiny_gpt

SEARCHED = Report(
    choices=(
        Choice("dp=2,<zero>=3", 0.1, 0.125, 3 * 2**30, fits=True),
        Choice(
            "tp=2,pp=2,micro_batches=4,schedule=1f1b,recompute=layers", 0.0625, 0.0625, 9 * 2**30, fits=False
        ),
    ),
    estimated=1234,
    bound=0.05,
    gap=0.2,
    with_more_memory=0.05,
    refused=(
        "heads(3) cannot be cut in 2, which pp=3,layers=1+1+1,micro_batches=8,schedule=gpipe wants\n  remedy: none",
    ),
)
"""A search that found a plan: what it says is made up."""


@cache
def compiled(how: str) -> CompiledPlan:
    """A plan of the tiny GPT."""
    return compiler.plan(tiny_gpt(layers=4)[2], Cluster.local(parse_plan(how).num_devices), how)
