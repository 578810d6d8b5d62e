"""Seconds of instructions: what a program's compute, copies, collectives and messages take by a cluster's prices."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.codegen.program import (
    Collective,
    Compute,
    Exchange,
    FromHost,
    Instruction,
    Keep,
    Mask,
    Program,
    Send,
    Store,
    ToHost,
)
from superscaler.ir.optimizers import OPTIMIZERS
from superscaler.planner.prices import Prices


@dataclass(frozen=True)
class InstructionPrices:
    """Seconds of the instructions of a plan's programs."""

    prices: Prices

    def seconds(self, program: Program, instruction: Instruction) -> float:
        """Of one instruction; of a message the time that it is on its way."""
        prices = self.prices
        match instruction:
            case Compute(operator=operator):
                return prices.operator(operator) if operator else 0.0
            case Collective(step=step, read=read) | Send(step=step, read=read):
                return prices.step(step, program.values[read].tensor)
            case Exchange(step=step, read=read, write=write):
                return prices.step(step, program.values[read or write].tensor)
            case Keep(read=read, add=add) if add and program.micro_batches > 1:
                return _copy(prices, program, read, is_added=True)
            case Store(read=read) if not _is_in_place(program, read):
                return _copy(prices, program, read)
            case Mask(read=read):
                return _copy(prices, program, read)
            case ToHost(read=read) | FromHost(read=read):
                return prices.host_copy(program.values[read].tensor, program.values[read].layout)
            case _:
                return 0.0

    def together(self, program: Program, collectives: Sequence[Collective]) -> float:
        """Of one message for several collectives of a kind over one mesh axis."""
        return self.prices.steps_together([(c.step, program.values[c.read].tensor) for c in collectives])


def _copy(prices: Prices, program: Program, name: str, *, is_added: bool = False) -> float:
    value = program.values[name]
    return prices.copy(value.tensor, value.layout, is_added=is_added)


def _is_in_place(program: Program, name: str) -> bool:
    """Whether a value to be stored lies in the memory it is stored to already, as optimizers' results do."""
    writer = program.graph.writer.get(program.values[name].tensor)
    return writer is not None and writer.kind in OPTIMIZERS
