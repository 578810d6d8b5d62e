"""Read a build folder, and check that it is whole, unedited and made for this version."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from superscaler.errors import BuildError
from superscaler.ir.mesh import Mesh
from superscaler.ir.size import Requirement, bind_sizes, evaluate, symbol
from superscaler.ir.tensor import Role
from superscaler.runtime.ops.learning_rate import Rate
from superscaler.runtime.stored_tensor import StoredTensor, read_stored_tensor

FORMAT = 2
"""Version of plan.json this runtime reads."""
TORCH_FROM, TORCH_BELOW = (2, 11), (2, 14)
"""Versions of torch this runtime is known to work with."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor ``infer_step`` returns."""

    name: str
    tensor: StoredTensor
    rows_per_sample: int
    """Rows of its first dim per sample; 0 where the first dim is not the batch."""


@dataclass(frozen=True, slots=True)
class RowProgram:
    """One source file, and the devices that run it."""

    module: str
    """Name of the file, without ``.py``."""
    devices: tuple[int, ...]
    stages: tuple[int, ...]
    """The stages these devices take part in."""
    tensors: Mapping[str, StoredTensor]
    outputs: Mapping[str, Output]
    """What its ``infer_step`` returns; empty for training."""

    def with_role(self, *roles: Role) -> list[StoredTensor]:
        """Its tensors of these roles, in order."""
        return [tensor for tensor in self.tensors.values() if tensor.role in roles]


@dataclass(frozen=True, slots=True)
class UnreadTensor:
    """A parameter or buffer of the model that no program reads; a checkpoint holds it all the same."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    saved_as: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What a training step computes."""

    model_flops: float = 0.0
    """Arithmetic of the model's products, without what is computed again; 0 where the build does not say."""
    peak_flops: float | None = None
    """Per second, of all devices of the cluster that was planned for; None where that is a guess."""


@dataclass(frozen=True, slots=True)
class Build:
    """A build folder."""

    folder: Path
    name: str
    plan: str
    """The plan as the user wrote it, such as ``dp=2,tp=2``."""
    entry: str
    """The script torchrun starts: ``train.py``, or ``run.py`` for inference."""
    world_size: int
    micro_batches: int
    inputs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    """Name -> dtype and shape of one whole step."""
    stages: tuple[Mesh, ...]
    """The mesh of each; a device may take part in several."""
    programs: tuple[RowProgram, ...]
    loss_row: int
    """Which of the programs reports the loss."""
    messages: tuple[tuple[int, int], ...]
    """The pairs of stages between which messages travel, the one that sends first."""
    initialisers: Mapping[str, Any]
    exchanges: Mapping[str, Any]
    unread: Mapping[str, UnreadTensor]
    learning_rates: tuple[Rate, ...]
    """Those of the updates, each once; empty where the build does not say."""
    work: Work
    float8: bool
    """Whether it multiplies float8 numbers, which old GPUs cannot."""
    sizes: Mapping[str, int]
    """Symbol of a size that varies -> its value: at first that of the example, after `bind` a run's."""
    described: Mapping[str, Any] = field(repr=False)
    """The contents of plan.json."""
    fingerprint: str
    """Of plan.json and all files as found; ranks compare it."""

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> "Build":
        """The build for a batch of inputs of these shapes.

        Raises:
            SizeError: It is not for such inputs.
        """
        symbols = {name: symbol(name, hint) for name, hint in self.described.get("sizes", {}).items()}
        inputs = self.described["inputs"].items()
        declared = {name: _at_sizes(entry["shape"], symbols) for name, entry in inputs}
        requirements = [Requirement(*pair) for pair in self.described.get("requirements", ())]
        whose = f"the build {self.folder.name} of {self.name} under the plan {self.plan!r}"
        sizes = bind_sizes(declared, shapes, requirements, whose)
        return self if sizes == self.sizes else self._at(sizes)

    def _at(self, sizes: Mapping[str, int]) -> "Build":
        """The build for other sizes, in which inputs, outputs and exchanges differ."""
        plan = self.described
        programs = []
        for program, entry in zip(self.programs, plan["programs"], strict=True):
            inputs = {name: one for name, one in entry["tensors"].items() if one["role"] == Role.INPUT}
            fresh = _read_tensors(_at_sizes(inputs, sizes), self.stages)
            outputs = _read_outputs(_at_sizes(entry.get("outputs", {}), sizes), self.stages)
            programs.append(replace(program, tensors={**program.tensors, **fresh}, outputs=outputs))
        return replace(
            self,
            inputs=_read_inputs(_at_sizes(plan["inputs"], sizes)),
            programs=tuple(programs),
            exchanges=_at_sizes(plan["exchanges"], sizes),
            sizes=sizes,
        )

    @property
    def reporter(self) -> int:
        """The rank that reports the loss."""
        return self.programs[self.loss_row].devices[0]

    def program_of(self, rank: int) -> RowProgram:
        """The program of a rank."""
        return next(program for program in self.programs if rank in program.devices)

    def outputs(self) -> dict[str, Output]:
        """What ``infer_step`` returns, over all programs; of one that several hold, the first."""
        found: dict[str, Output] = {}
        for program in self.programs:
            for name, output in program.outputs.items():
                found.setdefault(name, output)
        return found

    def tensors(self, *roles: Role) -> dict[str, StoredTensor]:
        """Tensors of these roles over all programs by source; of one that several hold, the first."""
        found: dict[str, StoredTensor] = {}
        for program in self.programs:
            for tensor in program.with_role(*roles):
                found.setdefault(tensor.source, tensor)
        return found


def read_build(folder: Path | str, *, allow_edited: bool = False) -> Build:
    """Read and check a build folder.

    Args:
        folder: Holds ``plan.json`` and the files it lists.
        allow_edited: Whether source files may differ from what the compiler wrote.

    Raises:
        BuildError: It is no build folder, of another format, incomplete or edited, or torch is another one.
    """
    folder = Path(folder)
    plan, text = _read_plan(folder)
    _check_torch(plan.get("torch", "an unknown version"))
    hashes = _check_files(folder, plan, allow_edited)
    fingerprint = hashlib.sha256(text + json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    try:
        return _read(folder, plan, fingerprint)
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise BuildError(
            f"{folder / 'plan.json'} is damaged: {type(error).__name__}: {error}",
            remedy="compile the build again",
        ) from error


def _read_plan(folder: Path) -> tuple[dict[str, Any], bytes]:
    path = folder / "plan.json"
    if not path.is_file():
        raise BuildError(
            f"{folder} is no build folder: it has no plan.json",
            remedy="make one with `superscaler compile ... -o FOLDER`",
        )
    text = path.read_bytes()
    try:
        plan = json.loads(text)
    except ValueError as error:
        raise BuildError(f"{path} is not JSON: {error}", remedy="compile the build again") from error
    if not isinstance(plan, dict) or not {"format", "world_size", "stages", "files"} <= plan.keys():
        raise BuildError(
            f"{path} is not a plan of superscaler", remedy="give the folder `superscaler compile` wrote"
        )
    if plan["format"] != FORMAT:
        raise BuildError(
            f"{path} has format {plan['format']}, written by superscaler {plan.get('superscaler', '?')};"
            f" this superscaler reads format {FORMAT}",
            remedy="compile the build again with the installed version",
        )
    return plan, text


def _check_torch(built_with: str) -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if not TORCH_FROM <= version < TORCH_BELOW:
        low, high = (".".join(map(str, bound)) for bound in (TORCH_FROM, TORCH_BELOW))
        raise BuildError(
            f"torch {torch.__version__} is installed; builds run with torch from {low} to below {high}, "
            f"and this one was made with {built_with}",
            remedy=f'pip install "torch>={low},<{high}"',
        )


def _check_files(folder: Path, plan: Mapping[str, Any], allow_edited: bool) -> dict[str, str]:
    """Hashes of the files as found."""
    found = {}
    for name, expected in plan["files"].items():
        path = folder / name
        if not path.is_file():
            raise BuildError(f"{path} is missing", remedy="copy the whole build folder, or compile it again")
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if found[name] == expected or (allow_edited and name.endswith(".py")):
            continue
        remedy = "compile the build again"
        if name.endswith(".py"):
            remedy += (
                ", or run with --allow-edited if the edit is meant (its plan is then no longer verified)"
            )
        raise BuildError(f"{path} was edited after it was compiled", remedy=remedy)
    return found


def _read(folder: Path, described: Mapping[str, Any], fingerprint: str) -> Build:
    sizes = described.get("sizes", {})
    plan = _at_sizes(described, sizes)
    stages = tuple(_read_mesh(entry, plan["micro_batches"]) for entry in plan["stages"])
    programs = tuple(_read_program(entry, stages) for entry in plan["programs"])
    devices = sorted(device for program in programs for device in program.devices)
    assert devices == list(range(plan["world_size"])), f"programs use devices {devices}"
    return Build(
        folder=folder,
        name=plan["name"],
        plan=plan["plan"],
        entry=plan.get("entry", "train.py"),
        world_size=plan["world_size"],
        micro_batches=plan["micro_batches"],
        inputs=_read_inputs(plan["inputs"]),
        stages=stages,
        programs=programs,
        loss_row=plan["loss_row"],
        messages=tuple((source, target) for source, target in plan["messages"]),
        initialisers=plan["initialisers"],
        exchanges=plan["exchanges"],
        unread={
            name: UnreadTensor(
                getattr(torch, entry["dtype"]), tuple(entry["shape"]), tuple(entry["saved_as"])
            )
            for name, entry in plan.get("unread", {}).items()
        },
        learning_rates=tuple(
            tuple(rate) if isinstance(rate, list) else rate for rate in plan.get("learning_rates", ())
        ),
        work=Work(**plan.get("work", {})),
        float8=bool(plan.get("float8", False)),
        sizes=sizes,
        described=described,
        fingerprint=fingerprint,
    )


def _read_inputs(entries: Mapping[str, Any]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (getattr(torch, entry["dtype"]), tuple(entry["shape"])) for name, entry in entries.items()}


def _read_mesh(entry: Mapping[str, Any], micro_batches: int) -> Mesh:
    axes = tuple((name, size) for name, size in entry["axes"])
    return Mesh(tuple(entry["devices"]), axes, micro_batches, entry["chunk"])


def _read_program(entry: Mapping[str, Any], stages: Sequence[Mesh]) -> RowProgram:
    tensors = _read_tensors(entry["tensors"], stages)
    outputs = _read_outputs(entry.get("outputs", {}), stages)
    return RowProgram(entry["module"], tuple(entry["devices"]), tuple(entry["stages"]), tensors, outputs)


def _read_tensors(entries: Mapping[str, Any], stages: Sequence[Mesh]) -> dict[str, StoredTensor]:
    return {
        name: read_stored_tensor(name, entry, stages[entry["stage"]].home) for name, entry in entries.items()
    }


def _read_outputs(entries: Mapping[str, Any], stages: Sequence[Mesh]) -> dict[str, Output]:
    tensors = _read_tensors(entries, stages)
    return {name: Output(name, tensors[name], entry["rows_per_sample"]) for name, entry in entries.items()}


def _at_sizes(value: Any, sizes: Mapping[str, int]) -> Any:
    """A part of plan.json with numbers in place of ``{"size": "batch / 2"}``."""
    if isinstance(value, Mapping):
        if value.keys() == {"size"}:
            return evaluate(value["size"], sizes)
        return {key: _at_sizes(item, sizes) for key, item in value.items()}
    return [_at_sizes(item, sizes) for item in value] if isinstance(value, list) else value
