"""Call: what one device runs of an operator, as data that can be sent to the processes that measure it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from superscaler.codegen.program import Compute, Offset, Program
from superscaler.ir.graph import Operator, map_refs
from superscaler.ir.interpret import own_type
from superscaler.ir.kinds import call_name, resolve
from superscaler.ir.layout import Extent
from superscaler.ir.mesh import Mesh
from superscaler.ir.optimizers import OPTIMIZERS
from superscaler.ir.tensor import Role
from superscaler.planner.operator_work import Work, is_view
from superscaler.planner.prices import Prices


@dataclass(frozen=True, slots=True)
class Call:
    """An operator with the arguments of one device's piece."""

    text: str
    """As a profile database names it."""
    operator: Operator
    reads: tuple[tuple[str, tuple[int, ...]] | None, ...]
    """Dtype and shape of what it reads; None: the number of the step."""
    work: Work

    def in_dtype(self, dtype: str) -> "Call":
        """The same on floating-point numbers of another dtype than float32."""
        reads = tuple((dtype, read[1]) if read and read[0] == "float32" else read for read in self.reads)
        return replace(self, text=self.text.replace("float32", dtype), reads=reads)

    def of_kind(self, kind: str) -> "Call":
        """The same call of another kind of operator."""
        text = self.text.replace(f"{self.operator.kind}(", f"{kind}(", 1)
        return replace(self, text=text, operator=replace(self.operator, kind=kind))

    def prepared(self, device: torch.device, generator: torch.Generator) -> Callable[[], Any]:
        """A function of no arguments that makes the call, on random values."""
        bound = min((size for read in self.reads if read for size in read[1]), default=1)
        values = [read if read is None else _random(*read, bound, device, generator) for read in self.reads]
        function, arguments, keywords = self._function(values)
        return lambda: function(*arguments, **keywords)

    def _function(self, values: list[Any]) -> tuple[Callable[..., Any], list[Any], Mapping[str, Any]]:
        operator = self.operator
        if operator.kind in OPTIMIZERS:
            # programs update in place, many parameters in one call; the step is 1
            lists = [1 if value is None else [value] for value in values]
            keywords = dict(operator.keywords)
            return resolve(f"{call_name(operator.kind)}_"), lists, keywords
        held = [1 if value is None else value for value in values]
        arguments = [own_type(map_refs(value, lambda ref: held[ref.index])) for value in operator.arguments]
        keywords = {
            name: own_type(map_refs(value, lambda ref: held[ref.index])) for name, value in operator.keywords
        }
        return resolve(call_name(operator.kind)), arguments, keywords


def calls_of(programs: Iterable[Program], prices: Prices, device: str) -> dict[str, Call]:
    """The different calls of the operators that these programs run, each once, by the text of a database."""
    calls: dict[str, Call] = {}
    for program in programs:
        for _, instruction in program.instructions():
            if isinstance(instruction, Compute) and instruction.operator:
                operator = program.graph.by_name[instruction.operator]
                text = prices.call(operator.name, device)
                if text not in calls and not is_view(operator):
                    calls[text] = _call(program, instruction, text, prices.work(operator.name))
    return calls


def _call(program: Program, instruction: Compute, text: str, work: Work) -> Call:
    graph, mesh = program.graph, program.mesh_of(instruction)
    here = {**mesh.coordinates(program.devices[0]), "mb": 0}
    reads = tuple(
        None
        if name in graph.tensors and graph.tensors[name].role is Role.STEP
        else (
            program.values[name].dtype,
            tuple(int(extent.at(mesh, here)) for extent in program.values[name].shape),
        )
        for name in instruction.reads
    )
    operator = replace(
        graph.by_name[instruction.operator],
        arguments=_local(instruction.arguments, mesh, here),
        keywords=_local(instruction.keywords, mesh, here),
    )
    return Call(text, operator, reads, work)


def _local(value: Any, mesh: Mesh, here: Mapping[str, int]) -> Any:
    """Arguments with this device's numbers in place of extents and offsets."""
    if isinstance(value, Extent | Offset):
        return int(value.at(mesh, here))
    if isinstance(value, tuple | list):
        return type(value)(_local(item, mesh, here) for item in value)
    return value


def _random(
    dtype: str, shape: tuple[int, ...], bound: int, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Positive numbers of moderate size; integers below `bound`, so that they may be indices."""
    kind = getattr(torch, dtype)
    if kind.is_floating_point or kind.is_complex:
        return (torch.rand(shape, generator=generator, dtype=torch.float32) + 0.5).to(device, kind)
    high = 2 if kind is torch.bool else max(1, bound)
    return torch.randint(0, high, shape, generator=generator).to(device, kind)
