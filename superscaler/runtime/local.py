"""A build for one device, run inside one's own Python process: ``program = load("build/gpt")``.

A training build is a function of a batch that trains one step and returns the loss; an inference build is one
that returns the outputs by name.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build, read_build
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.outputs import join_pieces
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.weights import load_weights


class _Program:
    """A program on one device, with its weights.

    Args:
        build: Compiled for one device.
        device: Where it runs.
        weights: A safetensors file or folder to start from; by default those of the build, else its initialisers.
        seed: Of the initialisers.
    """

    def __init__(self, build: Build, device: torch.device, weights: Path | str | None, seed: int) -> None:
        self.build, self.device = build, device
        start = load_weights(weights, build, 0, device, seed)
        self.weights = start.weights
        self.state = start.states
        self.steps = start.step
        """Training steps the weights have seen."""
        self.notes = start.notes
        """What a user should know of how the weights were read."""
        self._runtime = make_runtime(build, 0, device)
        self._module = load_module(build.folder, build.program_of(0))

    def _micro_batches(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        if self.build.sizes and batch.keys() >= self.build.inputs.keys():
            self.build = self.build.bind({name: batch[name].shape for name in self.build.inputs})
            self._runtime.use_sizes(self.build.sizes, self.build.exchanges)
        inputs = self.build.program_of(0).with_role(Role.INPUT)
        return [
            {value.name: self._piece(batch, value.source, value.runs(0, number)) for value in inputs}
            for number in range(self.build.micro_batches)
        ]

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


class TrainingProgram(_Program):
    """A training program on one device, with its weights and optimizer states."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Train one step on a whole batch, inputs by name; returns the loss."""
        micro_batches = self._micro_batches(batch)
        self.steps += 1
        with torch.no_grad():
            outputs = self._module.train_step(
                self.weights, self.state, micro_batches, self.steps, self._runtime
            )
        return outputs["loss"]


class InferenceProgram(_Program):
    """An inference program on one device, with its weights."""

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs of a whole batch, inputs by name; returns them by the graph's names, in order."""
        micro_batches = self._micro_batches(batch)
        with torch.no_grad():
            results = self._module.infer_step(self.weights, micro_batches, self._runtime)
        count = self.build.micro_batches
        return {
            name: join_pieces(output, {0: results[name]}, count) if count > 1 else results[name]
            for name, output in self.build.outputs().items()
        }


def load(
    folder: Path | str, device: torch.device | str = "cpu", weights: Path | str | None = None, seed: int = 0
) -> TrainingProgram | InferenceProgram:
    """Load a build for one device.

    Args:
        folder: A build folder.
        device: Where it runs.
        weights: A safetensors file or folder to start from; by default those of the build, else its initialisers.
        seed: Of the initialisers.

    Returns:
        A function of a batch, inputs by name: a training program trains one step and returns the loss, an
        inference program returns the outputs by name.

    Raises:
        BuildError: The folder is no build, or its plan needs several processes.
    """
    build, device = read_build(folder), torch.device(device)
    if build.world_size != 1:
        raise BuildError(
            f"plan {build.plan!r} of {build.name} needs {build.world_size} processes",
            remedy=f"torchrun --nproc-per-node {build.world_size} {Path(folder) / build.entry}",
        )
    if device.type == "cpu":
        keep_freed_memory()
    kind = TrainingProgram if build.entry == "train.py" else InferenceProgram
    return kind(build, device, weights, seed)
