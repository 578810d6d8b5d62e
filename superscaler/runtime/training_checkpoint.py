"""Training checkpoints: written while training goes on, and read under any plan for any number of devices.

`torch.distributed.checkpoint` plans and coordinates (`checkpoint_pieces`), in a thread and a process group of its own;
files are ours (`checkpoint_storage`).
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build
from superscaler.runtime.checkpoint_fit import LOSSES, kept_tensors
from superscaler.runtime.checkpoint_folder import CheckpointFolder
from superscaler.runtime.checkpoint_manifest import RunRecord
from superscaler.runtime.checkpoint_pieces import Piece, PiecesToSave, boxes, whole
from superscaler.runtime.checkpoint_storage import FolderWriter
from superscaler.runtime.ranks import from_first, group_of_all
from superscaler.runtime.resume import cause_of, resume
from superscaler.runtime.training_run import Positioned, TrainingRun

LONGEST_WRITE = 3600.0
"""Seconds after which a checkpoint that is still being written or read is given up."""


class Checkpoints:
    """The checkpoints of one run, as one rank sees them; every rank makes one and calls the same methods in turn.

    Args:
        path: Their folder, which all ranks share.
        build: Says which rank holds what.
        rank: This process.
        device: Where its tensors are.
        every: Steps from one checkpoint to the next; None for none but those asked for.
        keep: How many of the newest stay.
    """

    def __init__(
        self, path: Path | str, build: Build, rank: int, device: torch.device, *,
        every: int | None = None, keep: int = 2,
    ) -> None:  # fmt: skip
        self.folder = CheckpointFolder(Path(path))
        self._build, self._rank, self._device = build, rank, device
        self._every, self._keep = every, keep
        self._group = group_of_all(LONGEST_WRITE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._staged: dict[str, Tensor] = {}
        self._saved = -1

    def start(self, step: int | None = None) -> TrainingRun | None:
        """Begin or go on: the run as it was saved, with this rank's pieces of it; None for a new one.

        Args:
            step: Of which checkpoint, or `NEWEST`, which is a new run where there is none yet. None for a new run.

        Raises:
            BuildError: A new run finds checkpoints of another; or there is none of that step, or it is damaged, or
                of another model.
        """
        if step is None:
            self._check_empty()
            return None
        run = resume(self.folder, self._build, self._rank, self._device, self._group, step)
        self._saved = run.step if run else -1
        if self._rank == 0:
            where = f"goes on from {self.folder.of(run.step)}" if run else "begins: no checkpoint yet"
            print(f"note: the run {where}", flush=True)  # noqa: T201
        return run

    def _check_empty(self) -> None:
        steps = from_first(self._group, self.folder.steps)
        if steps:
            raise BuildError(
                f"{self.folder.path} holds checkpoints of a run, the newest of step {steps[-1]}",
                remedy="go on with that run (--resume), or name another folder for a new one (--checkpoint)",
            )

    def after_step(self, run: TrainingRun, batches: Positioned) -> None:
        """Save the run if it is time; raises what went wrong with the checkpoint before."""
        if self._writing is not None and self._writing.done():
            self.wait()
        if self._every and run.step % self._every == 0:
            self.save(run, batches)

    def save(self, run: TrainingRun, batches: Positioned) -> None:
        """Save the run as it is now; returns when all is copied, and files are written meanwhile.

        A checkpoint that is still being written is waited for; a step that is saved already is not saved again.

        Args:
            run: What to save.
            batches: Whose position is saved.

        Raises:
            BuildError: The one before could not be written.
        """
        if run.step == self._saved:
            return
        self.wait()
        planner = PiecesToSave(self._stage(run), self._position(batches))
        work = _record(run, self._build), planner, self._staging_done(), self._saved
        self._writing = self._thread.submit(self._write, *work)
        self._saved = run.step

    def wait(self) -> None:
        """Return once what was saved last is a checkpoint.

        Raises:
            BuildError: It could not be written, or not within `LONGEST_WRITE`.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result(LONGEST_WRITE)
        except TimeoutError as error:
            raise BuildError(
                f"a checkpoint in {self.folder.path} is not written after {LONGEST_WRITE:.0f} s",
                remedy="check the file system, or name a folder on a faster one with --checkpoint",
            ) from error

    def close(self) -> None:
        """Wait for what is being written, and end the thread."""
        self.wait()
        self._thread.shutdown()

    def _stage(self, run: TrainingRun) -> list[Piece]:
        """Copies in host memory of what this rank writes: its pieces, where it is the first of those that hold them."""
        values = {**run.weights, **run.states}
        pieces = []
        for source, tensor in kept_tensors(self._build).items():
            if tensor.is_on(self._rank) and tensor.is_first_copy(self._rank):
                copy = self._copy(source, values[tensor.name])
                pieces.append(Piece(source, tensor.shape, boxes(tensor.runs(self._rank)), copy))
        if run.losses:
            pieces.append(whole(LOSSES, run.settled_losses()))
        return pieces

    def _copy(self, source: str, value: Tensor) -> Tensor:
        if source not in self._staged:
            on_device = value.device.type == "cuda"
            self._staged[source] = torch.empty(value.shape, dtype=value.dtype, pin_memory=on_device)
        return self._staged[source].copy_(value.detach(), non_blocking=True)

    def _staging_done(self) -> Any:
        """What the copies are waited for with: later steps of the program are behind them in the same stream."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _position(self, batches: Positioned) -> Any:
        """Where the batches are, if this rank can know."""
        has_inputs = self._build.program_of(self._rank).with_role(Role.INPUT)
        return batches.state_dict() if has_inputs else None

    def _write(self, record: RunRecord, planner: PiecesToSave, ready: Any, after: int) -> None:
        if ready is not None:
            ready.synchronize()
        writer = FolderWriter(self.folder, record, self._keep, after)
        try:
            save({}, storage_writer=writer, planner=planner, process_group=self._group)
        except CheckpointException as error:
            raise _explained(cause_of(error), self.folder.of(record.step)) from error
        for step in writer.abandoned:
            note = f"{self.folder.of(step)}, which this run did anew, is set aside as .abandoned"
            print(f"note: {note}", flush=True)  # noqa: T201


def _record(run: TrainingRun, build: Build) -> RunRecord:
    return RunRecord(
        step=run.step,
        begun_at=run.begun_at,
        seed=run.seed,
        model=build.name,
        plan=build.plan,
        world_size=build.world_size,
        superscaler=build.described["superscaler"],
        torch=torch.__version__,
    )


def _explained(error: BaseException, path: Path) -> BaseException:
    if not isinstance(error, OSError):
        return error
    return BuildError(
        f"cannot write the checkpoint {path}: {error}",
        remedy="give a --checkpoint folder with free space, on a file system that all ranks share; the checkpoint "
        "before is whole (--resume)",
    )
