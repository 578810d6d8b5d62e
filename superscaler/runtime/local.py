"""A build for one device, run inside one's own Python process: ``step = load("build/gpt"); loss = step(batch)``."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import read_build
from superscaler.runtime.communication import Runtime
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.launch import WEIGHTS_FILE, load_module
from superscaler.runtime.weights import load_weights, make_weights, zero_states


class LocalProgram:
    """A training program on one device, with its weights and optimizer states.

    Args:
        folder: A build folder compiled for one device.
        device: Where it runs.
        weights: A safetensors file or folder to start from; by default those of the build, else its initialisers.
        seed: Of the initialisers.

    Raises:
        BuildError: The folder is no build, or its plan needs several processes.
    """

    def __init__(
        self,
        folder: Path | str,
        device: torch.device | str = "cpu",
        weights: Path | str | None = None,
        seed: int = 0,
    ) -> None:
        build = read_build(folder)
        if build.world_size != 1:
            raise BuildError(
                f"plan {build.plan!r} of {build.name} needs {build.world_size} processes",
                remedy=f"torchrun --nproc-per-node {build.world_size} {Path(folder) / 'train.py'}",
            )
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.build = build
        self.steps = 0
        """Steps done so far."""
        own = build.folder / WEIGHTS_FILE
        source = weights or (own if own.is_file() else None)
        if source is None:
            self.weights: dict[str, Tensor] = make_weights(build, 0, self.device, seed)
            self.state: dict[str, Tensor] = zero_states(build, 0, self.device)
        else:
            self.weights, self.state, self.steps = load_weights(source, build, 0, self.device)
        self._runtime = Runtime(0, [build.stages[0].mesh], self.device)
        self._inputs = build.stages[0].with_role(Role.INPUT)
        self._module = load_module(build.folder, build.stages[0])

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train one step on a whole batch, inputs by name; returns the loss."""
        self.steps += 1
        micro_batches = [
            {value.name: self._piece(batch, value.source, value.runs(0, number)) for value in self._inputs}
            for number in range(self.build.micro_batches)
        ]
        with torch.no_grad():
            outputs = self._module.train_step(
                self.weights, self.state, micro_batches, self.steps, self._runtime
            )
        return outputs["loss"]

    def _piece(self, batch: Mapping[str, Tensor], name: str, runs: list[list[tuple[int, int]]]) -> Tensor:
        dtype, shape = self.build.inputs[name]
        given = batch.get(name)
        if given is None or given.shape != shape or given.dtype != dtype:
            found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
            raise BuildError(
                f"the input {name!r} is {found}, not {dtype} {list(shape)}",
                remedy=f"give a batch with {', '.join(self.build.inputs)} as compiled",
            )
        piece = given.to(self.device)
        for dim, intervals in enumerate(runs):
            if intervals != [(0, piece.shape[dim])]:
                piece = torch.cat([piece.narrow(dim, start, stop - start) for start, stop in intervals], dim)
        return piece


def load(
    folder: Path | str, device: torch.device | str = "cpu", weights: Path | str | None = None, seed: int = 0
) -> LocalProgram:
    """Load a build for one device; see `LocalProgram`."""
    return LocalProgram(folder, device, weights, seed)
