"""Stow: what a forward leaves for the backward of its micro-batch waits in host memory.

A pass over a program. At the end of a layer's forward goes to the host what that layer alone still needed; what later
layers read as well goes as soon as it is made. Every layer of a backward begins by fetching what it reads, so that
no more than a layer's activations are on the device at a time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from superscaler.codegen.layer_runs import LayerRun, layer_runs
from superscaler.codegen.program import (
    FromHost,
    Instruction,
    Keep,
    LocalValue,
    Part,
    Program,
    ToHost,
    reads_of,
    with_reads,
    writes_of,
)
from superscaler.codegen.shared_memory import add_views
from superscaler.ir.graph import Phase

_LATER = (Phase.BACKWARD, Phase.WEIGHT)


def stow_saved(program: Program, on_host: Collection[str], layers: Collection[str]) -> Program:
    """Move what forwards make of the tensors `on_host` there, and back for each layer that reads it later.

    Args:
        program: Any.
        on_host: Names of tensors.
        layers: Module paths of layers.
    """
    return _Stow(program, on_host, layers).result()


@dataclass
class _Stow:
    program: Program
    on_host: Collection[str]
    layers: Collection[str]
    values: dict[str, LocalValue] = field(default_factory=dict)

    def result(self) -> Program:
        """The program with its moves."""
        bodies = dict(self.program.bodies)
        self.values = dict(self.program.values)
        for forward in self.program.parts(Phase.FORWARD):
            later = [part for part in bodies if part.phase in _LATER and part.stage == forward.stage]
            stowed = self._saved(forward, later)
            if not stowed:
                continue
            bodies[forward] = self._stow(forward, stowed)
            bodies |= {part: self._fetch(part, stowed) for part in later}
        return replace(self.program, values=self.values, bodies=bodies)

    def _saved(self, forward: Part, later: Sequence[Part]) -> dict[str, str]:
        """What a forward leaves for later phases and has no other reason to stay -> its name in host memory."""
        staying = {*self.program.stored, *self.program.fed, *self.program.outputs.values()}
        wanted = {name for part in later for i in self.program.bodies[part] for name in reads_of(i)}
        return {
            name: f"{name}|host"
            for instruction in self.program.bodies[forward]
            if not isinstance(instruction, Keep)
            for name in writes_of(instruction)
            if name in wanted
            and self.program.values[name].tensor in self.on_host
            and staying.isdisjoint((name, self._views.get(name, name)))
        }

    @cached_property
    def _views(self) -> Mapping[str, str]:
        """Value -> the value of which it is a view."""
        table: dict[str, str] = {}
        add_views(self.program, table)
        return table

    def _stow(self, part: Part, stowed: Mapping[str, str]) -> tuple[Instruction, ...]:
        runs = layer_runs(self.program, self.program.bodies[part], self.layers)
        ends: dict[int, list[Instruction]] = {}
        for name, end in _ends(runs).items():
            if name in stowed:
                self.values[stowed[name]] = replace(self.values[name], name=stowed[name], host=True)
                ends.setdefault(end, []).append(ToHost(name, stowed[name]))
        return tuple(i for number, run in enumerate(runs) for i in (*run.instructions, *ends.get(number, ())))

    def _fetch(self, part: Part, stowed: Mapping[str, str]) -> tuple[Instruction, ...]:
        result: list[Instruction] = []
        for run in layer_runs(self.program, self.program.bodies[part], self.layers):
            read = (name for i in run.instructions for name in reads_of(i) if name in stowed)
            fetched = {name: declare_fetched(self.values, name) for name in dict.fromkeys(read)}
            result += [FromHost(stowed[name], fetched[name]) for name in fetched]
            result += [with_reads(instruction, fetched) for instruction in run.instructions]
        return tuple(result)


def declare_fetched(values: dict[str, LocalValue], name: str) -> str:
    """Add one more copy of a value on the device to a program's values; returns its name."""
    number, fetched = 1, f"{name}|device"
    while fetched in values:
        number += 1
        fetched = f"{name}|device{number}"
    values[fetched] = replace(values[name], name=fetched, host=False)
    return fetched


def _ends(runs: Sequence[LayerRun]) -> dict[str, int]:
    """Value -> the run behind which it may leave the device.

    That is the last that reads it, if one layer alone does; else the one that makes it. So layers stay alike, and the
    values of a run are in the order in which they come up there.
    """
    made: dict[str, int] = {}
    reading: dict[str, dict[int, None]] = {}
    places: dict[tuple[str, int], int] = {}
    for number, run in enumerate(runs):
        for instruction in run.instructions:
            if isinstance(instruction, Keep):
                continue
            made |= dict.fromkeys(writes_of(instruction), number)
            for name in reads_of(instruction):
                reading.setdefault(name, {})[number] = None
            for name in (*reads_of(instruction), *writes_of(instruction)):
                places.setdefault((name, number), len(places))
    ends = {
        name: [*reading[name]][-1] if len({runs[n].layer for n in reading.get(name, ())}) == 1 else made[name]
        for name in made
    }
    return dict(sorted(ends.items(), key=lambda end: places[end]))
