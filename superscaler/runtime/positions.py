"""Positions: where each rank is, and what that says when some have waited too long."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from superscaler.ir.mesh import format_devices
from superscaler.runtime.waits import Line, Waits


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rank was at a moment."""

    beat: int
    """How many positions it has told before; one that tells no more is stopped or gone."""
    step: int
    """Of training, from 1; 0 where it does not train."""
    waits_for: str
    """The communication it is in; empty if in none."""
    line: str
    seconds: float
    """How long it has been in it, or out of the last."""

    def to_json(self) -> bytes:
        """As a store holds it."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(text: bytes) -> "Position":
        """Read it back."""
        return Position(**json.loads(text))


def position(waits: Waits, beat: int, folder: Path) -> Position:
    """Where this process is.

    Args:
        waits: What its main thread waits for.
        beat: How many positions it has told before.
        folder: Of the programs; the line is one of theirs if the main thread is in one.
    """
    wait, now = waits.oldest(), time.monotonic()
    if wait is None:
        return Position(beat, waits.step, "", str(_line_of_main_thread(folder)), now - waits.left)
    what = f"{wait.operation} over {wait.where} (ranks {format_devices(wait.ranks)})"
    return Position(beat, waits.step, what, str(wait.line), now - wait.since)


def explain(before: Mapping[int, Position | None], after: Mapping[int, Position | None]) -> str:
    """What holds the ranks up, from where each was at two moments.

    Args:
        before: By rank; None of one that never told.
        after: Later, by several beats.
    """
    silent = [rank for rank, seen in after.items() if seen is None or seen == before[rank]]
    alive = {rank: seen for rank, seen in after.items() if seen is not None and rank not in silent}
    busy = {rank: seen for rank, seen in alive.items() if not seen.waits_for}
    waiting = {rank: seen for rank, seen in alive.items() if seen.waits_for}
    lines = [f"missing: rank {rank} gives no sign of life{_last_seen(after[rank])}" for rank in silent]
    lines += _grouped("busy elsewhere", busy)
    lines += _grouped("waiting", waiting)
    if not silent and not busy:
        lines.append("all ranks wait: they do not agree on which communication is next")
    return "\n  ".join(lines)


def _last_seen(seen: Position | None) -> str:
    return ", and never did" if seen is None else f", last seen {_where(seen)}"


def _grouped(title: str, positions: Mapping[int, Position]) -> list[str]:
    """A line for each place, with all ranks that are there."""
    groups: dict[tuple[int, str, str], list[int]] = {}
    for rank, seen in positions.items():
        groups.setdefault((seen.step, seen.waits_for, seen.line), []).append(rank)
    lines = []
    for ranks in groups.values():
        seconds = max(positions[rank].seconds for rank in ranks)
        name = f"rank{'s' if len(ranks) > 1 else ''} {format_devices(tuple(ranks))}"
        lines.append(f"{title}: {name} for {seconds:.0f} s {_where(positions[ranks[0]])}")
    return lines


def _where(seen: Position) -> str:
    step = f"in step {seen.step}, " if seen.step else ""
    what = f"in {seen.waits_for}, " if seen.waits_for else ""
    return f"{step}{what}at {seen.line}"


def _line_of_main_thread(folder: Path) -> Line:
    frame = innermost = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None and Path(frame.f_code.co_filename).parent != folder:
        frame = frame.f_back
    return Line.of(frame or innermost)
