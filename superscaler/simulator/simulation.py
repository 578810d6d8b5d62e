"""Simulation: what a step of a plan takes on its cluster: time, waiting, arithmetic reached, memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from superscaler.codegen.memory import MemoryUse, peak_memory
from superscaler.codegen.program import Program
from superscaler.ir.mesh import format_devices
from superscaler.planner.arithmetic import arithmetic, arithmetic_dtype
from superscaler.planner.operator_class import class_of
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.plan import Plan
from superscaler.planner.prices import Prices
from superscaler.simulator.actions import find_actions
from superscaler.simulator.instruction_seconds import InstructionPrices
from superscaler.simulator.replay import RowActions, Span, Stream, replay, whole_step


@dataclass(frozen=True, slots=True)
class SimulatedRow:
    """A row's part in a step: all its devices do this alike."""

    title: str
    devices: tuple[int, ...]
    spans: tuple[Span, ...]
    """What occupies its streams, in the order in which it begins."""
    computing: float
    """Seconds; computing, exposed and waiting add up to the step."""
    exposed: float
    """Seconds in which a device communicates while it does not compute."""
    waiting: float
    """Seconds of neither: for other rows, or at the ends of the step."""
    memory: MemoryUse
    memory_limit: int
    """Of a device, in bytes."""

    @property
    def fits(self) -> bool:
        """Whether its devices have the memory they need."""
        return self.memory.total <= self.memory_limit


@dataclass(frozen=True)
class Simulation:
    """One step of a plan, replayed."""

    rows: tuple[SimulatedRow, ...]
    model_flops: float
    """Arithmetic of the model's products in a step, without what is computed again."""
    peak_flops: float
    """Per second, of all devices together."""

    @cached_property
    def step_seconds(self) -> float:
        """From the start of the step until the last device is done."""
        return _end(row.spans for row in self.rows)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the part of the devices' peak that the model's arithmetic reaches (2204.02311)."""
        return self.model_flops / (self.step_seconds * self.peak_flops) if self.step_seconds else 0.0

    @property
    def bubble(self) -> float:
        """Which part of the step devices wait, on average over devices."""
        waiting = sum(row.waiting * len(row.devices) for row in self.rows)
        devices = sum(len(row.devices) for row in self.rows)
        return waiting / (self.step_seconds * devices) if self.step_seconds else 0.0

    @property
    def fits(self) -> bool:
        """Whether every device has the memory its row needs."""
        return all(row.fits for row in self.rows)

    def __str__(self) -> str:
        """A table: the step, then a line per row."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"step {format_seconds(self.step_seconds)}, MFU {self.mfu:.1%}, bubble {self.bubble:.1%}"
            + ("" if self.fits else ", DOES NOT FIT IN MEMORY")
        )
        cells = [["row", "devices", "computing", "exposed communication", "waiting", "peak memory", "of"]]
        for row in self.rows:
            shares = (f"{part / self.step_seconds:.1%}" for part in (row.computing, row.exposed, row.waiting))
            memory = (f"{size / 2**30:.3g} GiB" for size in (row.memory.total, row.memory_limit))
            cells.append([row.title, format_devices(row.devices), *shares, *memory])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        for line in cells:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def simulate(plan: Plan, programs: Sequence[Program], prices: Prices | None = None) -> Simulation:
    """Replay a step of a plan's programs over the compute and communication streams of its cluster's devices.

    Devices of a row are simulated once. Sizes that vary are those of the example.

    Args:
        plan: What is simulated.
        programs: Its programs, one per row.
        prices: What operators and communication steps take; by default as programs run them, kernel by kernel.
    """
    prices = prices or Prices(plan.placed, plan.cluster)
    rows = {device: program.row for program in programs for device in program.devices}
    found = (find_actions(program, rows, InstructionPrices(prices)) for program in programs)
    given = [
        RowActions(whole_step(program.tasks), actions.bodies, actions.last)
        for program, actions in zip(programs, found, strict=True)
    ]
    spans = replay(given)
    end = _end(spans)
    simulated = tuple(_row(plan, program, own, end) for program, own in zip(programs, spans, strict=True))
    work = model_work(plan.placed)
    dtype = max(work, key=work.__getitem__, default="float32")
    peak = sum(plan.cluster.flops(dtype, [device]) for row in simulated for device in row.devices)
    return Simulation(simulated, sum(work.values()), peak)


def _row(plan: Plan, program: Program, spans: tuple[Span, ...], step_seconds: float) -> SimulatedRow:
    computing = _length([(s.start, s.end) for s in spans if s.stream is Stream.COMPUTE])
    busy = _length([(s.start, s.end) for s in spans if s.stream is not Stream.LINK])
    return SimulatedRow(
        program.title,
        program.devices,
        spans,
        computing,
        busy - computing,
        step_seconds - busy,
        peak_memory(program),
        plan.cluster.memory_of(program.devices),
    )


def _end(spans: Iterable[Sequence[Span]]) -> float:
    """When the last of all rows' spans ends."""
    return max((span.end for row in spans for span in row), default=0.0)


def model_work(placed: PlacedGraph) -> dict[str, float]:
    """Arithmetic of a step's products per dtype, without what is computed again."""
    work: dict[str, float] = {}
    for operator in placed.graph.operators:
        if class_of(operator).is_product and not operator.is_again:
            dtype = arithmetic_dtype(placed.graph, operator)
            work[dtype] = work.get(dtype, 0.0) + arithmetic(placed.axes, operator)
    return work


def format_seconds(seconds: float) -> str:
    """In the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} us"


def _length(intervals: Sequence[tuple[float, float]]) -> float:
    """Of the union of intervals."""
    total, reached = 0.0, 0.0
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
