"""Transfers: one call of the runtime that moves data, as text, and what the comment beside it says."""

from collections.abc import Iterable, Sequence
from typing import Any

from superscaler.codegen.offload import Move, moved_together
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import Collective, Exchange, FromHost, Receive, Send, ToHost
from superscaler.codegen.sizes import Sizes
from superscaler.planner.reasons import reason
from superscaler.planner.steps import StepKind


def transfer(
    printed: PrintedProgram, sizes: Sizes, instruction: Send | Receive | Exchange | Collective, operand: str
) -> tuple[str, str]:
    """The call for one instruction that is waited for where it stands, and its comment.

    Args:
        printed: The program it is part of.
        sizes: Writes what depends on the device.
        instruction: What moves.
        operand: The text of what it reads; empty where it reads nothing.
    """

    def shape(value: str) -> str:
        return sizes.shown(printed.value(value).shape)

    def own_stage(role: str) -> str:
        if not printed.hosts_several:
            return ""
        return f", {role}={printed.number(printed.program.mesh_of(instruction))}"

    match instruction:
        case Send(read=read, stage=to):
            return f"rt.send({operand}, {to}{own_stage('source')})", f"to stage {to} {shape(read)}"
        case Receive(write=write, stage=origin):
            value = printed.value(write)
            size = sizes.shape(value.shape) + ("," if len(value.shape) == 1 else "")
            call = f"rt.receive(({size}), torch.{value.dtype}, {origin}{own_stage('target')})"
            return call, f"from stage {origin}"
        case Exchange(name=name, write=""):
            return f'rt.give({operand}, "{name}")', "redistribute"
        case Exchange(name=name, write=write):
            call = f'rt.exchange({operand}, "{name}")' if operand else f'rt.take("{name}")'
            return call, f"redistribute {shape(write)}"
        case Collective(step=step, write=write):
            why = reason(printed.plan.placed, printed.value(instruction.read).tensor, step)
            return _collective(sizes, instruction, operand), f"{why} {shape(write)}"


def _collective(sizes: Sizes, instruction: Collective, operand: str) -> str:
    step = instruction.step
    axis = sizes.axis(step.axis)
    match step.kind:
        case StepKind.ALL_REDUCE:
            last = "" if step.before.reducer == "sum" else f', "{step.before.reducer}"'
        case StepKind.ALL_TO_ALL:
            last = f", {instruction.dim}, {instruction.from_dim}"
        case _:
            last = f", {instruction.dim}"
    return f"rt.{step.kind}({operand}, {axis}{last})"


def started_sum(sizes: Sizes, instruction: Collective, operand: str, target: str) -> tuple[str, str]:
    """The call of a reduction that is under way while the program computes, and what it brings.

    Args:
        sizes: Writes what depends on the device.
        instruction: A reduction, all of it or scattered.
        operand: The text of what it reads.
        target: The dict and the key its result is kept under, as two arguments.
    """
    step = instruction.step
    is_piece = step.kind is StepKind.REDUCE_SCATTER
    where = sizes.axis(step.axis) + (f", {instruction.dim}" if is_piece else "")
    return (
        f"rt.start_{step.kind}({operand}, {where}, {target})",
        "own piece of the sum" if is_piece else "sum",
    )


def accumulated_sum(sizes: Sizes, total: Collective, operand: str, target: str) -> str:
    """The call that adds up over micro-batches and, with the last, starts the sum over devices.

    Args:
        sizes: Writes what depends on the device.
        total: The sum over devices.
        operand: The text of what is added.
        target: The dict and the key of the sum, as two arguments.
    """
    dim = f", {total.dim}" if total.step.kind is StepKind.REDUCE_SCATTER else ""
    return f"rt.accumulate({operand}, {sizes.axis(total.step.axis)}, {target}, is_last{dim})"


def made_together(items: Iterable[Any]) -> dict[str, Sequence[Collective | Move]]:
    """Value -> the instructions that one statement makes: what moves to or from host memory, or ahead of its use."""
    items = list(items)
    groups: dict[tuple[type, int], list[Collective | Move]] = {}
    for item in items:
        if isinstance(item, Collective | FromHost) and item.group >= 0:
            groups.setdefault((type(item), item.group), []).append(item)
    runs = [*moved_together(items, ToHost), *moved_together(items, FromHost), *groups.values()]
    return {instruction.write: run for run in runs for instruction in run}
