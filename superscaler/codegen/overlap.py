"""Overlap: communication goes on while the program computes.

Reductions whose results are only kept (gradients) are started where they are made, and waited for at the end of the
body; those that scatter, so that whole gradients can be forgotten, one layer later. Those of gradients that micro-
batches add up are started as the last one adds, and waited for where the update begins. Gathers of stored pieces
(parameters) travel in a group per layer, each group while the one before it is used.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from superscaler.codegen.program import (
    Await,
    Collective,
    FromHost,
    Instruction,
    Keep,
    Part,
    Program,
    reads_of,
)
from superscaler.ir.graph import Phase
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.plan import Plan
from superscaler.planner.steps import StepKind


def overlap(plan: Plan, programs: Iterable[Program]) -> tuple[Program, ...]:
    """Start communication early and wait for it late, wherever nothing needs its result in between."""
    layers = find_layers(plan.graph, plan.placed.axes, len(plan.graph.operators))
    on_host = plan.placed.on_host
    return tuple(_Overlap(program, layers.keys(), on_host).result() for program in programs)


@dataclass
class _Overlap:
    program: Program
    layers: Collection[str]
    """Modules."""
    on_host: Collection[str]
    """Tensors, whose pieces go ahead from host memory, and are gathered once they are here."""

    def result(self) -> Program:
        """The program, with the marks on its collectives."""
        bodies = dict(self.program.bodies)
        for part in (part for part in bodies if part.phase.is_repeated):
            body = self._gather_ahead(bodies[part])
            bodies[part] = tuple(body if part.phase is Phase.FORWARD else self._start_reductions(body))
        update = Part(Phase.UPDATE)
        if self.program.micro_batches > 1 and update in bodies:
            bodies[update] = tuple(self._start_complete(bodies[update]))
        return replace(self.program, bodies=bodies)

    @cached_property
    def readers(self) -> Counter[str]:
        """How many instructions read a value."""
        return Counter(name for _, i in self.program.instructions() for name in reads_of(i))

    def _start_reductions(self, body: Sequence[Instruction]) -> list[Instruction]:
        """Start sums that are only kept; wait for all at the end, and layer by layer for those that scatter."""
        kept = {i.read for i in body if isinstance(i, Keep) and self.readers[i.read] == 1}
        started = {
            i.write: i for i in body if isinstance(i, Collective) and i.write in kept and self._may_start(i)
        }
        if not started:
            return list(body)
        layers = {write: self._layer(write) for write in started}
        counts = Counter(layers.values())
        scattered = {layers[i.write] for i in started.values() if i.step.kind is StepKind.REDUCE_SCATTER}
        last = {write: layer for layer, write in {layer: write for write, layer in layers.items()}.items()}
        result: list[Instruction] = []
        for instruction in body:
            if isinstance(instruction, Collective) and instruction.write in started:
                result.append(replace(instruction, is_started=True))
                continue
            result.append(instruction)
            layer = last.get(instruction.read, "") if isinstance(instruction, Keep) else ""
            if layer in scattered - {""}:
                result.append(Await(counts[layer]))
        return [*result, Await()]

    def _start_complete(self, body: Sequence[Instruction]) -> list[Instruction]:
        """Start sums of what backwards have added up, before all else."""
        complete = {
            i.write
            for part, i in self.program.instructions()
            if isinstance(i, Keep)
            and i.add
            and part.phase in (Phase.BACKWARD, Phase.WEIGHT)
            and self.readers[i.write] == 1
        }
        started = [i for i in body if isinstance(i, Collective) and i.read in complete and self._may_start(i)]
        if not started:
            return list(body)
        rest = [i for i in body if i not in started]
        return [*(replace(i, is_started=True) for i in started), Await(), *rest]

    def _may_start(self, instruction: Collective) -> bool:
        kinds = (StepKind.ALL_REDUCE, StepKind.REDUCE_SCATTER)
        is_sum = instruction.step.kind in kinds and instruction.step.before.reducer == "sum"
        return is_sum and self._stays_within(instruction)

    def _gather_ahead(self, body: Sequence[Instruction]) -> list[Instruction]:
        """Bring gathers of stored pieces into groups, each where the first of it is used."""
        gathers = [i for i in body if isinstance(i, Collective) and self._may_go_ahead(i)]
        if not gathers:
            return list(body)
        mesh, axis = self.program.mesh_of(gathers[0]), gathers[0].step.axis
        gathers = [i for i in gathers if (self.program.mesh_of(i), i.step.axis) == (mesh, axis)]
        order = {name: place for place, name in enumerate(self.program.stored)}
        runs = groupby(gathers, lambda instruction: self._layer(instruction.write))
        groups = [
            [replace(i, group=number) for i in sorted(run, key=lambda i: order[i.read])]
            for number, (_, run) in enumerate(runs)
        ]
        group_of = {instruction.write: number for number, group in enumerate(groups) for instruction in group}
        result: list[Instruction] = []
        for instruction in body:
            number = group_of.get(instruction.write, -1) if isinstance(instruction, Collective) else -1
            if number < 0:
                result.append(instruction)
            elif groups[number]:
                result += groups[number]
                groups[number] = []
        return result

    def _may_go_ahead(self, instruction: Collective) -> bool:
        is_stored = instruction.read in self.program.stored
        is_here = is_stored and self.program.values[instruction.read].tensor not in self.on_host
        return instruction.step.kind is StepKind.ALL_GATHER and is_here and self._stays_within(instruction)

    def _layer(self, value: str) -> str:
        """The layer a parameter or gradient belongs to; empty where it belongs to none."""
        tensor = self.program.values[value].tensor
        writer = self.program.graph.writer.get(tensor)
        module = writer.module if writer else tensor.rpartition(".")[0]
        while module and module not in self.layers:
            module = module.rpartition(".")[0]
        return module

    def _stays_within(self, instruction: Collective) -> bool:
        """Whether only devices of this row take part, which all run the same program."""
        mesh, devices = self.program.mesh_of(instruction), self.program.devices
        return set(mesh.group(instruction.step.axis, devices[0])) <= set(devices)


# what follows for memory


def arriving(body: Sequence[Instruction]) -> dict[int, list[str]]:
    """Place of an `Await` -> what must stay until there: results in their bucket, and what reductions scatter."""
    found: dict[int, list[str]] = {}
    under_way: list[str] = []
    for place, instruction in enumerate(body):
        if isinstance(instruction, Collective) and instruction.is_started:
            is_scattered = instruction.step.kind is StepKind.REDUCE_SCATTER
            under_way.append(instruction.read if is_scattered else instruction.write)
        if isinstance(instruction, Await):
            done = max(0, len(under_way) - instruction.leaving)
            found[place], under_way = under_way[:done], under_way[done:]
    return found


def coming(body: Sequence[Instruction]) -> dict[int, list[str]]:
    """Place of the first of a group -> what the next group, which sets out there, writes; of gathers or fetches."""
    groups: dict[tuple[type, int], list[str]] = {}
    first: dict[tuple[type, int], int] = {}
    for place, instruction in enumerate(body):
        if isinstance(instruction, Collective | FromHost) and instruction.group >= 0:
            key = type(instruction), instruction.group
            groups.setdefault(key, []).append(instruction.write)
            first.setdefault(key, place)
    return {place: groups.get((kind, number + 1), []) for (kind, number), place in first.items()}
