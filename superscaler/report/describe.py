"""Describe a compiled plan for its page, as JSON. A build keeps it, so that its page can be made without the model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from superscaler.codegen.memory import MemoryUse, TaskMemory, memory_over_tasks
from superscaler.codegen.plan_file import module_name
from superscaler.codegen.program import Program
from superscaler.ir.mesh import format_devices
from superscaler.ir.tensor import Role
from superscaler.planner.communication import Communication
from superscaler.planner.plan import Plan
from superscaler.planner.schedule import Task
from superscaler.planner.show import describe_stage, format_bytes, format_count, format_plan
from superscaler.report.drawn_memory import DrawnMemory, draw_memory
from superscaler.report.drawn_spans import DrawnSpan, draw_spans, share
from superscaler.report.layer_places import LayerPlace, layer_places
from superscaler.report.search_section import describe_search
from superscaler.search.auto import Report
from superscaler.simulator.replay import Span, Stream
from superscaler.simulator.simulation import SimulatedRow, Simulation, format_seconds

FORMAT = 2
"""Version of the description; `superscaler.report.page` reads it."""
MOST_SPANS = 20_000
"""That a page draws of a step; beyond, neighbours are joined."""
PARTS = ("parameters", "states", "gradients", "activations", "temporary")
"""What fills a device's memory."""


def describe(
    plan: Plan, programs: Sequence[Program], simulation: Simulation, search: Report | None = None
) -> dict[str, Any]:
    """All that a page shows but the source. Times are in nanoseconds, memory is in bytes.

    Args:
        plan: What is shown.
        programs: One per row.
        simulation: Of one step.
        search: How the plan was found, where it was searched for.
    """
    communication = plan.communication()
    memory = [memory_over_tasks(program) for program in programs]
    streams = Counter((span.row, span.stream) for row in simulation.rows for span in row.spans)
    drawing = _Drawing(share([*streams.values(), *map(len, memory)], MOST_SPANS))
    rows = [_row(row, held, drawing) for row, held in zip(simulation.rows, memory, strict=True)]
    return {
        "format": FORMAT,
        "title": plan.graph.name,
        "plan": plan.name,
        "facts": _facts(plan, simulation, communication),
        "step": _nanoseconds(simulation.step_seconds),
        "rows": rows,
        "parts": list(PARTS),
        "tasks": [[str(task.phase), task.stage, task.micro_batch] for task in drawing.tasks],
        "names": list(drawing.names),
        "stages": [
            [str(mesh), [list(line) for line in describe_stage(plan, number)]]
            for number, mesh in enumerate(plan.materialized.stages)
        ],
        "layers": [_layer(place, len(plan.materialized.stages)) for place in layer_places(plan)],
        "communication": [
            [phase, what, devices, times, float(size), reason]
            for phase, what, devices, times, size, reason in communication.table()
        ],
        "text": format_plan(plan),
        "search": describe_search(search, plan.cluster.memory_of()) if search else None,
        "sources": [[f"{module_name(program)}.py", program.title] for program in programs],
    }


def _facts(plan: Plan, simulation: Simulation, communication: Communication) -> list[list[str]]:
    """What one wants to know first: a word, and the answer."""
    graph = plan.graph
    parameters = sum(tensor.num_elements for tensor in graph.of_role(Role.PARAMETER))
    inputs = ", ".join(f"{name} {list(graph.tensors[name].shape)}" for name in graph.inputs)
    fullest = max(simulation.rows, key=lambda row: row.memory.total / row.memory_limit)
    memory = f"{format_bytes(fullest.memory.total)} of {format_bytes(fullest.memory_limit)}"
    fits = "" if simulation.fits else ": does not fit"
    return [
        ["step", format_seconds(simulation.step_seconds)],
        ["MFU", f"{simulation.mfu:.1%}"],
        ["bubble", f"{simulation.bubble:.1%}"],
        ["fullest device", memory + fits],
        ["sends most per step", format_bytes(float(communication.bytes_per_device))],
        ["devices", f"{plan.num_devices} of {plan.cluster.name}"],
        ["parameters", format_count(parameters)],
        ["batch", f"{inputs}, in {plan.schedule.micro_batches} micro-batch(es)"],
        ["schedule", plan.schedule.name],
    ]


class _Drawing:
    """What spans refer to by number, in order of first use."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Spans of one stream, and steps of one row's memory."""
        self.tasks: dict[Task, int] = {}
        self.names: dict[str, int] = {}

    def spans(self, spans: Sequence[Span]) -> list[list[int]]:
        """First and last task, name, start, end, how many, and how long the stream is occupied."""
        return [self._span(span) for span in draw_spans(spans, self.most)]

    def _span(self, span: DrawnSpan) -> list[int]:
        tasks = self._task(span.first), self._task(span.last)
        name = self.names.setdefault(span.name, len(self.names))
        times = _nanoseconds(span.start), _nanoseconds(span.end)
        return [*tasks, name, *times, span.count, _nanoseconds(span.busy)]

    def memory(self, drawn: DrawnMemory) -> list[Any]:
        """First and last task, start, end, parts at the fullest moment and afterwards, and that moment."""
        tasks = self._task(drawn.first), self._task(drawn.last)
        times = _nanoseconds(drawn.start), _nanoseconds(drawn.end)
        return [*tasks, *times, _parts(drawn.most), _parts(drawn.after), drawn.most.moment]

    def _task(self, task: Task) -> int:
        return self.tasks.setdefault(task, len(self.tasks))


def _row(row: SimulatedRow, held: Sequence[TaskMemory], drawing: _Drawing) -> dict[str, Any]:
    return {
        "title": row.title,
        "devices": format_devices(row.devices),
        "computing": row.computing,
        "exposed": row.exposed,
        "waiting": row.waiting,
        "peak": row.memory.total,
        "moment": row.memory.moment,
        "host": row.memory.host,
        "limit": row.memory_limit,
        "streams": {
            str(stream): drawing.spans([span for span in row.spans if span.stream is stream])
            for stream in Stream
        },
        "memory": [drawing.memory(drawn) for drawn in draw_memory(held, row.spans, drawing.most)],
    }


def _layer(place: LayerPlace, stages: int) -> list[Any]:
    """The layer's name, and per stage how many operators of each phase it has there."""
    counts = [place.operators.get(stage, {}) for stage in range(stages)]
    return [place.layer, [{str(phase): count for phase, count in one.items()} for one in counts]]


def _parts(use: MemoryUse) -> list[int]:
    return [getattr(use, part) for part in PARTS]


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
