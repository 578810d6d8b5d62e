"""Go on with a run from one of its checkpoints, under whatever plan the build at hand has."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build
from superscaler.runtime.checkpoint_fit import KEPT, LOSSES, check_fits
from superscaler.runtime.checkpoint_folder import CheckpointFolder
from superscaler.runtime.checkpoint_manifest import Manifest, read_manifest
from superscaler.runtime.checkpoint_pieces import Piece, PiecesToLoad, boxes, whole
from superscaler.runtime.checkpoint_storage import FolderReader
from superscaler.runtime.host_memory import in_host_memory
from superscaler.runtime.ranks import from_first
from superscaler.runtime.stored_tensor import StoredTensor
from superscaler.runtime.training_run import NEWEST, TrainingRun


def resume(
    folder: CheckpointFolder, build: Build, rank: int, device: torch.device, group: Any, step: int = NEWEST
) -> TrainingRun | None:
    """The run as it was saved, with this rank's pieces of it; None if there are no checkpoints yet.

    Every rank calls this. The first chooses and checks the checkpoint; each reads what it holds, and no more.

    Args:
        folder: The checkpoints of the run.
        build: Its model, under this or another plan.
        rank: This process.
        device: Where its tensors go.
        group: A group of all ranks on CPUs.
        step: Of which checkpoint.

    Raises:
        BuildError: There is no checkpoint of that step, or it is damaged, or of another model.
    """
    chosen = from_first(group, lambda: _choose(folder, build, step))
    if chosen is None:
        return None
    step, manifest = chosen
    program = build.program_of(rank)
    tensors = {tensor.name: _empty(tensor, rank, device) for tensor in program.with_role(*KEPT)}
    pieces = [
        Piece(tensor.source, tensor.shape, boxes(tensor.runs(rank)), tensors[tensor.name])
        for tensor in program.with_role(*KEPT)
        if 0 not in tensor.shape
    ]
    losses = torch.empty(_num_losses(manifest, build, rank), dtype=torch.float64)
    if len(losses):
        pieces.append(whole(LOSSES, losses))
    _read(folder, step, manifest, pieces, group)
    states = {tensor.name: tensors.pop(tensor.name) for tensor in program.with_role(Role.STATE)}
    run = manifest.run
    return TrainingRun(tensors, states, step, run.begun_at, run.seed, run.position, losses.tolist())


def cause_of(error: CheckpointException) -> BaseException:
    """What went wrong first of all that a DCP operation reports."""
    rank = min(error.failures)
    cause, _ = error.failures[rank]
    return cause


def _choose(folder: CheckpointFolder, build: Build, step: int) -> tuple[int, Manifest] | None:
    """The step of the checkpoint that is meant, and its manifest, once it is known to fit."""
    steps = folder.steps()
    if not steps and step == NEWEST:
        return None
    if step == NEWEST:
        step = steps[-1]
    elif step not in steps:
        raise BuildError(
            f"{folder.path} holds no checkpoint of step {step}",
            remedy=f"choose one of {', '.join(map(str, steps))} with --resume STEP" if steps else
            "name the folder of the run with --checkpoint",
        )  # fmt: skip
    try:
        manifest = read_manifest(folder.of(step))
    except BuildError as error:
        raise _broken(folder, step, error) from error
    check_fits(folder.of(step), manifest, build)
    return step, manifest


def _empty(tensor: StoredTensor, rank: int, device: torch.device) -> Tensor:
    if tensor.host:
        return in_host_memory(torch.empty(tensor.local_shape(rank), dtype=tensor.dtype), device)
    return torch.empty(tensor.local_shape(rank), dtype=tensor.dtype, device=device)


def _num_losses(manifest: Manifest, build: Build, rank: int) -> int:
    """How many losses this rank reads: all, or none where another reports them."""
    losses = manifest.tensors.get(LOSSES)
    return losses.header.shape[0] if losses and rank == build.reporter else 0


def _read(folder: CheckpointFolder, step: int, manifest: Manifest, pieces: list[Piece], group: Any) -> None:
    planner = PiecesToLoad(pieces)
    try:
        load({}, storage_reader=FolderReader(folder.of(step), manifest), planner=planner, process_group=group)
    except CheckpointException as error:
        cause = cause_of(error)
        if not isinstance(cause, BuildError | OSError):
            raise cause from error
        raise _broken(folder, step, cause) from error
    if not planner.is_complete:
        error = BuildError(f"pieces in {folder.of(step)} overlap")
        raise _broken(folder, step, error)


def _broken(folder: CheckpointFolder, step: int, error: Exception) -> BuildError:
    """Say what is broken, and which checkpoint there is instead; none is taken unasked."""
    what = error.what if isinstance(error, BuildError) else str(error)
    whole_before = next(
        (other for other in reversed(folder.steps()) if other < step and _has_all(folder, other)), None
    )
    if whole_before is None:
        remedy = (
            "there is none before it with all its files: copy it again from where it is whole, or start anew"
        )
    else:
        remedy = f"go on from step {whole_before}, the newest before it that has all its files: --resume {whole_before}"
    return BuildError(f"the checkpoint of step {step} is broken: {what}", remedy=remedy)


def _has_all(folder: CheckpointFolder, step: int) -> bool:
    try:
        read_manifest(folder.of(step))
    except BuildError:
        return False
    return True
