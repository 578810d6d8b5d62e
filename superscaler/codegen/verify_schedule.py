"""Proof that all rows' tasks run to their end: messages meet their receives, nobody waits for ever."""

from collections.abc import Mapping, Sequence

from superscaler.codegen.program import Part, Program
from superscaler.errors import VerificationError
from superscaler.planner.progress import Message, RowTasks, find_stop

Messages = Mapping[Part, Sequence[Message]]


def verify_schedule(programs: Sequence[Program], messages: Sequence[Messages]) -> None:
    """Run the schedule on message lists.

    Args:
        programs: One per row.
        messages: Per row the messages of each body, in order.

    Raises:
        VerificationError: A row lacks a task, a receive meets a message of another task, or rows wait for each
            other; the text shows the schedule with an arrow.
    """
    rows = [
        RowTasks(program.title, tuple(program.stages), frozenset(program.bodies), program.tasks, found)
        for program, found in zip(programs, messages, strict=True)
    ]
    stop = find_stop(rows, programs[0].micro_batches)
    if stop is not None:
        raise VerificationError(stop.what, remedy=stop.remedy)
