"""Stow: what a forward leaves for the backward of its micro-batch waits in host memory.

A pass over a program. At the end of a layer's forward goes to the host what that layer alone still needed; what later
layers read as well goes as soon as it is made. Every layer of a backward begins by fetching what it reads, so that
no more than a layer's activations are on the device at a time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

from superscaler.codegen.modules import modules_of
from superscaler.codegen.program import (
    Free,
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


@dataclass(frozen=True)
class _Run:
    """Instructions of a body that follow each other and belong to one layer, or to none."""

    layer: str
    instructions: tuple[Instruction, ...]


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
        runs = self._runs(part)
        ends: dict[int, list[Instruction]] = {}
        for name, end in _ends(runs).items():
            if name in stowed:
                self.values[stowed[name]] = replace(self.values[name], name=stowed[name], host=True)
                ends.setdefault(end, []).append(ToHost(name, stowed[name]))
        return tuple(i for number, run in enumerate(runs) for i in (*run.instructions, *ends.get(number, ())))

    def _fetch(self, part: Part, stowed: Mapping[str, str]) -> tuple[Instruction, ...]:
        result: list[Instruction] = []
        for run in self._runs(part):
            read = (name for i in run.instructions for name in reads_of(i) if name in stowed)
            fetched = {name: self._declare(name) for name in dict.fromkeys(read)}
            result += [FromHost(stowed[name], fetched[name]) for name in fetched]
            result += [with_reads(instruction, fetched) for instruction in run.instructions]
        return tuple(result)

    def _declare(self, name: str) -> str:
        """One more copy of a value on the device."""
        number, fetched = 1, f"{name}|device"
        while fetched in self.values:
            number += 1
            fetched = f"{name}|device{number}"
        self.values[fetched] = replace(self.values[name], name=fetched)
        return fetched

    def _runs(self, part: Part) -> list[_Run]:
        body = [i for i in self.program.bodies[part] if not isinstance(i, Free)]
        layers = list(map(self._layer, modules_of(self.program, body)))
        runs = groupby(zip(layers, body, strict=True), lambda pair: pair[0])
        return [_Run(layer, tuple(instruction for _, instruction in run)) for layer, run in runs]

    def _layer(self, module: str) -> str:
        """The layer a module lies in; empty where it lies in none."""
        while module and module not in self.layers:
            module = module.rpartition(".")[0]
        return module


def _ends(runs: Sequence[_Run]) -> dict[str, int]:
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
