"""From a plan to its programs: lowered, with communication that overlaps, what waits in host memory, and frees."""

from superscaler.codegen.lower import lower
from superscaler.codegen.memory import free_values
from superscaler.codegen.offload import offload
from superscaler.codegen.overlap import overlap
from superscaler.codegen.program import Program
from superscaler.planner.plan import Plan


def make_programs(plan: Plan) -> tuple[Program, ...]:
    """One program per row."""
    return tuple(map(free_values, offload(plan, overlap(plan, lower(plan)))))
