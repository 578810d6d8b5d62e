"""Plans whose pages the tests of this room look at."""

from functools import cache

from superscaler import compiler
from superscaler.compiler import CompiledPlan
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from tests.codegen.plans import tiny_gpt


@cache
def compiled(how: str) -> CompiledPlan:
    """A plan of the tiny GPT."""
    return compiler.plan(tiny_gpt(layers=4)[2], Cluster.local(parse_plan(how).num_devices), how)
