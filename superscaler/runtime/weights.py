"""Read this rank's pieces of weights and optimizer states; write all ranks' pieces as one file."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build
from superscaler.runtime.initialise import initialise
from superscaler.runtime.safetensors_files import Header, TensorFiles, write_stream
from superscaler.runtime.stored_tensor import StoredTensor

WEIGHTS = (Role.PARAMETER, Role.BUFFER)
_SHOWN = 8
"""How many names of a kind an error lists."""


def load_weights(path: Path | str, build: Build, rank: int, device: torch.device) -> tuple[dict, dict, int]:
    """This rank's pieces from a file or folder of safetensors.

    All names, shapes and dtypes are checked first, those of other ranks too, so every rank agrees.

    Returns:
        Weights by name, optimizer states by name (zeros where the file has none), and the number of steps
        the states have seen.

    Raises:
        BuildError: A tensor is missing, unexpected, or has another shape or dtype.
    """
    files = TensorFiles(path)
    weights, states = build.tensors(*WEIGHTS), build.tensors(Role.STATE)
    has_states = bool(states.keys() & files.headers.keys())
    check_headers(files.path, files.headers, {**weights, **(states if has_states else {})})
    stage = build.stage_of(rank)
    p = {t.name: files.read(t.source, t.runs(rank)).to(device) for t in stage.with_role(*WEIGHTS)}
    if not has_states:
        return p, zero_states(build, rank, device), 0
    state = {t.name: files.read(t.source, t.runs(rank)).to(device) for t in stage.with_role(Role.STATE)}
    return p, state, int(files.metadata.get("step", 0))


def make_weights(build: Build, rank: int, device: torch.device, seed: int) -> dict[str, Tensor]:
    """This rank's pieces, from the initialisers in the build.

    Raises:
        BuildError: A tensor has no initialiser.
    """
    missing = [name for name in build.tensors(*WEIGHTS) if name not in build.initialisers]
    if missing:
        raise BuildError(f"no initial values for {_shown(missing)}", remedy="give them with --weights")
    return {
        t.name: initialise(
            build.initialisers[t.source], t.region(rank), t.layout.sizes, t.local_shape(rank), t.dtype, device,
            seed, t.source,
        )
        for t in build.stage_of(rank).with_role(*WEIGHTS)
    }  # fmt: skip


def zero_states(build: Build, rank: int, device: torch.device) -> dict[str, Tensor]:
    """This rank's pieces of optimizer states before the first step."""
    states = build.stage_of(rank).with_role(Role.STATE)
    return {t.name: torch.zeros(t.local_shape(rank), dtype=t.dtype, device=device) for t in states}


def check_headers(path: Path, found: Mapping[str, Header], wanted: Mapping[str, StoredTensor]) -> None:
    """Compare what a file holds with what is wanted; BuildError names every kind of difference at once."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    faults = []
    if missing:
        nearest = {name: get_close_matches(name, unexpected, 1) for name in missing[:_SHOWN]}
        hints = [f"{name} (there is {near[0]})" if near else name for name, near in nearest.items()]
        faults.append(f"missing: {_shown(hints, len(missing))}")
    if unexpected:
        faults.append(f"unexpected: {_shown(unexpected)}")
    wrong = [
        f"{name} is {header.dtype} {list(header.shape)}, not {wanted[name].dtype} {list(wanted[name].shape)}"
        for name, header in found.items()
        if name in wanted and (header.shape, header.dtype) != (wanted[name].shape, wanted[name].dtype)
    ]
    if wrong:
        faults.append(f"wrong: {_shown(wrong)}")
    if faults:
        raise BuildError(
            f"{path} does not fit the model:\n  " + "\n  ".join(faults),
            remedy="give weights saved from this model, named and shaped like its state_dict",
        )


def save_weights(
    path: Path | str,
    build: Build,
    rank: int,
    tensors: Mapping[str, Tensor],
    meet: Callable[[], None],
    *,
    step: int,
    with_states: bool = False,
) -> None:
    """Write one .safetensors file of whole tensors; every rank calls this.

    Args:
        path: The file, on a file system all ranks share: pieces are first written beside it.
        build: Says which rank holds what.
        rank: This process.
        tensors: This rank's weights, and states where asked for.
        meet: Returns once every rank has called it.
        step: How many steps the weights have seen.
        with_states: Whether to write optimizer states too.
    """
    path = Path(path)
    parts = path.with_name(path.name + ".pieces")
    parts.mkdir(parents=True, exist_ok=True)
    roles = (*WEIGHTS, Role.STATE) if with_states else WEIGHTS
    whole = build.tensors(*roles)
    own = {
        name: tensors[tensor.name].detach().cpu().contiguous()
        for name, tensor in whole.items()
        if rank in tensor.layout.mesh.devices and tensor.is_first_copy(rank)
    }
    save_file(own, parts / f"rank{rank}.safetensors")
    meet()
    if rank == 0:
        headers = {name: Header(tensor.shape, tensor.dtype) for name, tensor in whole.items()}
        opened: dict[int, TensorFiles] = {}
        write_stream(path, headers, lambda name: _assemble(whole[name], parts, opened), {"step": str(step)})
        opened.clear()
        shutil.rmtree(parts)
    meet()


def _assemble(tensor: StoredTensor, parts: Path, opened: dict[int, TensorFiles]) -> Tensor:
    """A whole tensor from the pieces ranks wrote."""
    fine = torch.empty(tensor.layout.sizes, dtype=tensor.dtype)
    for rank in tensor.layout.mesh.devices:
        if not tensor.is_first_copy(rank):
            continue
        if rank not in opened:
            opened[rank] = TensorFiles(parts / f"rank{rank}.safetensors")
        region = tensor.region(rank)
        piece = opened[rank].read(tensor.source, [[(0, size)] for size in tensor.local_shape(rank)])
        fine[tuple(slice(start, stop) for start, stop in region.intervals)] = piece.view(region.shape)
    return fine.view(tensor.shape)


def _shown(names: Sequence[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    rest = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
