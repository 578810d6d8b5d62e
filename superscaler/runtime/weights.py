"""Read this rank's pieces of weights and optimizer states before the first step: from files, or made anew.

A tensor may have several names in a checkpoint (tied weights) or none (buffers that are not persistent): the
values of those lie in the build, or are made by its initialisers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build, UnreadTensor
from superscaler.runtime.host_memory import in_host_memory
from superscaler.runtime.initialise import initialise
from superscaler.runtime.safetensors_files import Header, TensorFiles
from superscaler.runtime.stored_tensor import StoredTensor

WEIGHTS = (Role.PARAMETER, Role.BUFFER)
WEIGHTS_FILE = "weights.safetensors"
"""In a build folder: the values the model brought when it was compiled."""
_SHOWN = 8
"""How many names of a kind an error lists."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a rank starts from."""

    weights: dict[str, Tensor]
    """By the name the rank's program uses."""
    states: dict[str, Tensor]
    """Optimizer states; zeros where the files have none."""
    step: int
    """Steps the states have seen."""
    notes: tuple[str, ...] = ()
    """What a user should know, the same on every rank."""


def load_weights(
    path: Path | str | None, build: Build, rank: int, device: torch.device, seed: int = 0
) -> Loaded:
    """This rank's pieces of weights and optimizer states.

    All names, shapes and dtypes are checked first, those of other ranks too, so every rank agrees.

    Args:
        path: A file or folder of safetensors; None for the values in the build, else its initialisers.
        build: Says what is needed.
        rank: Whose pieces.
        device: Where they go.
        seed: Of the initialisers.

    Raises:
        BuildError: A tensor is missing, unexpected, or has another shape or kind of dtype; or nothing says
            what its values are.
    """
    given = None if path is None else TensorFiles(path)
    kept = build.folder / WEIGHTS_FILE
    own = TensorFiles(kept) if kept.is_file() else None
    states = build.tensors(Role.STATE)
    has_states = given is not None and bool(states.keys() & given.headers.keys())
    if given is not None:
        check_headers(given.path, given.headers, _wanted(build), states if has_states else {})
    _check_all_known(build, given, own)
    program = build.program_of(rank)
    weights = {
        tensor.name: _weight(tensor, rank, build, given, own, device, seed)
        for tensor in program.with_role(*WEIGHTS)
    }
    if given is None or not has_states:
        return Loaded(weights, _zero_states(build, rank, device), 0, _notes(build, given))
    pieces = {t.name: given.read(t.source, t.runs(rank)) for t in program.with_role(Role.STATE)}
    found = {t.name: _put(t, pieces[t.name], device) for t in program.with_role(Role.STATE)}
    return Loaded(weights, found, int(given.metadata.get("step", 0)), _notes(build, given))


def names_in(files: TensorFiles | None, tensor: StoredTensor | UnreadTensor) -> tuple[str, ...]:
    """The names a tensor has in a checkpoint, or would have where there is none yet."""
    if files is None:
        return tensor.saved_as[:1]
    return tuple(name for name in tensor.saved_as if name in files.headers)


def _wanted(build: Build) -> dict[str, StoredTensor | UnreadTensor]:
    return {**build.tensors(*WEIGHTS), **build.unread}


def _weight(
    tensor: StoredTensor, rank: int, build: Build, given: TensorFiles | None, own: TensorFiles | None,
    device: torch.device, seed: int,
) -> Tensor:  # fmt: skip
    """A rank's piece of a tensor: of the files given, else of the build, else as initialised."""
    if given is not None and (names := names_in(given, tensor)):
        return _put(tensor, _read_tied(given, names, tensor, rank), device)
    for files in filter(None, (own, given)):
        if tensor.source in files.headers:
            return _put(tensor, files.read(tensor.source, tensor.runs(rank)), device)
    made = initialise(
        build.initialisers[tensor.source], tensor.region(rank), tensor.layout.sizes, tensor.local_shape(rank),
        tensor.dtype, device, seed, tensor.source,
    )  # fmt: skip
    return _put(tensor, made, device)


def _read_tied(files: TensorFiles, names: Sequence[str], tensor: StoredTensor, rank: int) -> Tensor:
    """A piece of a tensor that a checkpoint may hold under several names, with the same values."""
    piece = files.read(names[0], tensor.runs(rank))
    for other in names[1:]:
        if not torch.equal(piece, files.read(other, tensor.runs(rank))):
            raise BuildError(
                f"{files.path} holds different values as {names[0]} and {other}, which are one tensor here",
                remedy="compile the model without tying the two, or tie them before saving",
            )
    return piece


def _zero_states(build: Build, rank: int, device: torch.device) -> dict[str, Tensor]:
    states = build.program_of(rank).with_role(Role.STATE)
    return {t.name: _put(t, torch.zeros(t.local_shape(rank), dtype=t.dtype), device) for t in states}


def _put(tensor: StoredTensor, piece: Tensor, device: torch.device) -> Tensor:
    """A piece where the program wants it: on the device, or in host memory."""
    if tensor.host:
        return in_host_memory(piece.to(tensor.dtype), device)
    return piece.to(device, tensor.dtype)


def _check_all_known(build: Build, given: TensorFiles | None, own: TensorFiles | None) -> None:
    """Whatever no checkpoint gives must be in the build."""
    known = {*build.initialisers, *(own.headers if own else ()), *(given.headers if given else ())}
    missing = [
        name
        for name, tensor in build.tensors(*WEIGHTS).items()
        if name not in known and not (given and tensor.saved_as)
    ]
    saved = [name for name in missing if build.tensors(*WEIGHTS)[name].saved_as]
    if saved:
        raise BuildError(f"no initial values for {_shown(saved)}", remedy="give them with --weights")
    if missing:
        raise BuildError(
            f"no values for {_shown(missing)}, which the model keeps out of checkpoints",
            remedy="compile a model made inside `with ss.deferred_init():`, or with real tensors: "
            "then the build holds them",
        )


def _notes(build: Build, files: TensorFiles | None) -> tuple[str, ...]:
    """A line for each conversion of dtype."""
    if files is None:
        return ()
    counts: dict[str, int] = {}
    for tensor in _wanted(build).values():
        for name in names_in(files, tensor)[:1]:
            if files.headers[name].dtype != tensor.dtype:
                what = f"from {files.headers[name].dtype} to {tensor.dtype}".replace("torch.", "")
                counts[what] = counts.get(what, 0) + 1
    return tuple(f"{count} tensor(s) of {files.path} are converted {what}" for what, count in counts.items())


def check_headers(
    path: Path,
    found: Mapping[str, Header],
    wanted: Mapping[str, StoredTensor | UnreadTensor],
    states: Mapping[str, StoredTensor],
) -> None:
    """Compare what a file holds with what is wanted; BuildError names every kind of difference at once."""
    by_file_name = {alias: tensor for name, tensor in wanted.items() for alias in (*tensor.saved_as, name)}
    by_file_name |= states
    missing = [name for name in states if name not in found]
    missing += [
        " or ".join(tensor.saved_as)
        for tensor in wanted.values()
        if isinstance(tensor, StoredTensor) and tensor.saved_as and not found.keys() & set(tensor.saved_as)
    ]
    unexpected = [name for name in found if name not in by_file_name]
    faults = []
    if missing:
        nearest = {
            name: get_close_matches(name.partition(" or ")[0], unexpected, 1) for name in missing[:_SHOWN]
        }
        hints = [f"{name} (there is {near[0]})" if near else name for name, near in nearest.items()]
        faults.append(f"missing: {_shown(hints, len(missing))}")
    if unexpected:
        faults.append(f"unexpected: {_shown(unexpected)}")
    wrong = [
        f"{name} is {header.dtype} {list(header.shape)}, not {by_file_name[name].dtype} "
        f"{list(by_file_name[name].shape)}"
        for name, header in found.items()
        if name in by_file_name and not _fits(header, by_file_name[name])
    ]
    if wrong:
        faults.append(f"wrong: {_shown(wrong)}")
    if faults:
        raise BuildError(
            f"{path} does not fit the model:\n  " + "\n  ".join(faults),
            remedy="give weights saved from this model, named and shaped like its state_dict",
        )


def _fits(header: Header, tensor: StoredTensor | UnreadTensor) -> bool:
    """The same shape and dtype, or both floating point: such values are converted."""
    both_float = (
        isinstance(header.dtype, torch.dtype)
        and header.dtype.is_floating_point
        and tensor.dtype.is_floating_point
    )
    return header.shape == tensor.shape and (both_float or header.dtype == tensor.dtype)


def _shown(names: Sequence[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    rest = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
