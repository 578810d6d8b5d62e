"""Whether a training checkpoint fits a build: the same tensors of the same model, however either cuts them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build
from superscaler.runtime.checkpoint_manifest import Manifest
from superscaler.runtime.safetensors_files import Header
from superscaler.runtime.stored_tensor import StoredTensor

KEPT = (Role.PARAMETER, Role.BUFFER, Role.STATE)
"""What a training checkpoint holds of a model."""
LOSSES = "superscaler/losses"
"""The tensor of a checkpoint that holds the losses of the run so far: float64, one per step."""
_SHOWN = 5
_EXPORT = (
    "export the weights with a build that fits (--resume --steps 0 --save OUT) and start a new run from them "
    "(--weights OUT)"
)
_OTHER_OPTIMIZER = f"compile the model with the optimizer of the run; or {_EXPORT}"
_OTHER_MODEL = (
    "resume with a build of the same model, in the same dtypes; or name another folder with --checkpoint"
)


def kept_tensors(build: Build) -> dict[str, StoredTensor]:
    """All that a checkpoint holds of a build's model, by name; of what several programs hold, the first."""
    return {name: tensor for name, tensor in build.tensors(*KEPT).items() if 0 not in tensor.shape}


def check_fits(path: Path, manifest: Manifest, build: Build) -> None:
    """Compare all that a checkpoint holds with what a build needs, whatever the plans.

    Args:
        path: The checkpoint, for messages.
        manifest: What it holds.
        build: Where its run is to go on.

    Raises:
        BuildError: They differ; it names the first tensors that are missing, left over or of another shape.
    """
    found = {name: tensor.header for name, tensor in manifest.tensors.items() if name != LOSSES}
    wanted = {name: Header(tensor.shape, tensor.dtype) for name, tensor in kept_tensors(build).items()}
    faults = _differences(found, wanted)
    if faults:
        weights = {name: wanted[name] for name in wanted.keys() - build.tensors(Role.STATE).keys()}
        # the compiler names a state after its parameter: weight/exp_avg
        has_weights = weights.items() <= found.items() and all(
            "/" in n for n in found.keys() - weights.keys()
        )
        raise BuildError(
            f"{path} is of a run of {manifest.run.model!r} and does not fit this build of {build.name!r}:\n  "
            + "\n  ".join(faults),
            remedy=_OTHER_OPTIMIZER if has_weights else _OTHER_MODEL,
        )
    losses = manifest.tensors.get(LOSSES)
    if losses and losses.header != Header((manifest.run.step - manifest.run.begun_at,), torch.float64):
        raise BuildError(
            f"{path} has losses of other steps than its own", remedy="name another folder with --checkpoint"
        )


def _differences(found: Mapping[str, Header], wanted: Mapping[str, Header]) -> list[str]:
    """A line for each kind of difference."""
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    other = [
        f"{name} is {_text(found[name])}, not {_text(header)}"
        for name, header in wanted.items()
        if name in found and found[name] != header
    ]
    kinds = (("missing", missing), ("left over", unknown), ("other", other))
    return [f"{kind}: {_first(names)}" for kind, names in kinds if names]


def _text(header: Header) -> str:
    return f"{str(header.dtype).removeprefix('torch.')} {list(header.shape)}"


def _first(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
