"""Step writers: lines, a bar on a terminal, a file of JSON lines, TensorBoard."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from superscaler.errors import BuildError
from superscaler.runtime.step_report import StepReport, StepWriter

_BAR_WIDTH = 24


def console(steps: int, done: int, stream: TextIO) -> StepWriter:
    """A bar on a terminal, lines elsewhere.

    Args:
        steps: Of the whole run.
        done: Steps made before it was resumed.
        stream: Where to print.
    """
    return Bar(steps, done, stream) if stream.isatty() else Lines(steps, stream)


class Lines:
    """A line per report."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self._steps, self._stream = steps, stream

    def write(self, report: StepReport) -> None:
        """Print it."""
        print(f"step {report.step}/{self._steps}  {_figures(report)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """One line of a terminal that is written again and again."""

    def __init__(self, steps: int, done: int, stream: TextIO) -> None:
        self._steps, self._done, self._stream = steps, done, stream
        self._begun = time.monotonic()
        self._is_open = False

    def write(self, report: StepReport) -> None:
        """Draw it anew."""
        filled = _BAR_WIDTH * report.step // max(1, self._steps)
        left = (time.monotonic() - self._begun) / (report.step - self._done) * (self._steps - report.step)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        line = f"{report.step}/{self._steps} [{bar}] {_figures(report)}  {_clock(left)} left"
        width = _width(self._stream)
        self._stream.write(f"\r\033[K{line[: width - 1]}")
        self._stream.flush()
        self._is_open = True

    def close(self) -> None:
        """Leave the line."""
        if self._is_open:
            self._stream.write("\n")
            self._stream.flush()


class JsonLines:
    """A JSON object per report: the fields of `StepReport`; what is no finite number is null.

    Args:
        path: The file. A run that is resumed writes behind what it holds of the steps before.
        done: Steps made before the run was resumed; 0 begins the file anew.

    Raises:
        BuildError: The file cannot be written.
    """

    def __init__(self, path: Path, done: int = 0) -> None:
        try:
            kept = _steps_until(path, done) if done else []
            beside = path.with_name(f"{path.name}.new")
            beside.write_text("".join(kept), encoding="utf-8")
            os.replace(beside, path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise BuildError(
                f"cannot write the log {path}: {error}",
                remedy="name a file in a folder that exists with --log",
            ) from error

    def write(self, report: StepReport) -> None:
        """Add a line."""
        fields = {name: _finite(value) for name, value in asdict(report).items()}
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Curves for TensorBoard, one per field of a report.

    Args:
        folder: Of the run's events.
        done: Steps made before the run was resumed; what the folder holds of later ones is hidden.

    Raises:
        BuildError: The package is not installed.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BuildError(
                "--tensorboard needs a package that is not installed here",
                remedy="pip install 'superscaler[tensorboard]' (or tensorboard), or keep a log with --log",
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def write(self, report: StepReport) -> None:
        """Add a point to each curve."""
        for name, value in asdict(report).items():
            for curve, number in _curves(name, value):
                self._writer.add_scalar(curve, number, report.step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _figures(report: StepReport) -> str:
    parts = [f"loss {report.loss:.4f}"]
    if report.grad_norm is not None:
        parts.append(f"grad norm {report.grad_norm:.3f}")
    parts.append(f"{report.tokens_per_second:.0f} tokens/s")
    if report.mfu is not None:
        parts.append(f"MFU {report.mfu:.1%}")
    parts.append(f"{report.memory_bytes / 2**30:.2f} GiB")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _width(stream: TextIO) -> int:
    columns = os.get_terminal_size(stream.fileno()).columns
    return columns or 80  # a terminal that does not know says 0


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _steps_until(path: Path, done: int) -> list[str]:
    """The lines of a log that are of the first `done` steps; a line that was cut off is of none."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if step <= done:
            kept.append(line)
    return kept


def _curves(name: str, value: float | Sequence[float] | None) -> list[tuple[str, float]]:
    if name == "step" or value is None:
        return []
    if isinstance(value, Sequence):
        return [(f"{name}/{number}", item) for number, item in enumerate(value)]
    return [(name, value)]
