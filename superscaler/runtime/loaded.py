"""A build inside one's own loop: ``step = ss.load("build/gpt")``, then ``loss = step(batch)``.

One process runs a build for one device; a build for several runs in a script of one's own that torchrun starts.
A training build is a function of a batch that trains one step and returns the loss; an inference build is one
that returns the outputs by name.
"""

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build, read_build
from superscaler.runtime.checkpoint import save_weights
from superscaler.runtime.compiled import compile_program
from superscaler.runtime.cuda_graph import record_in_cuda_graph
from superscaler.runtime.data.piece import cut
from superscaler.runtime.everyone import Everyone
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.own_part import own_parts
from superscaler.runtime.ranks import (
    check_world,
    choose_device,
    default_store,
    join_ranks,
    leave,
    meet,
    served_devices,
)
from superscaler.runtime.recorded import RecordedStep
from superscaler.runtime.safetensors_files import TensorFiles
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.stored_tensor import Runs, StoredTensor
from superscaler.runtime.waits import Waits
from superscaler.runtime.watchdog import Watchdog
from superscaler.runtime.weights import WEIGHTS, WEIGHTS_FILE, load_weights

_KEPT_SIZES = 256
"""For so many shapes of inputs a program remembers what it is for them."""
_NUMBERS = count()
"""Of the programs on several devices that this process loads; ranks load the same ones in the same order."""


class _Program:
    """This rank's program, with its pieces of the weights.

    Args:
        build: What was compiled.
        rank: This process, joined with the others.
        device: Where it runs.
        weights: A safetensors file or folder to start from; by default those of the build, else its initialisers.
        seed: Of the initialisers.
        timeout: Longest wait for another rank, in seconds.
        has_joined: Whether the process group is there for this program.
        is_compiled: Whether what layers compute goes through `torch.compile`.
        is_recorded: Whether steps are recorded in a CUDA graph, and replayed.
    """

    def __init__(
        self,
        build: Build,
        rank: int,
        device: torch.device,
        weights: Path | str | None,
        seed: int,
        timeout: float,
        has_joined: bool,
        is_compiled: bool,
        is_recorded: bool,
    ) -> None:
        self._has_joined = has_joined
        self._waits, self._watchdog = Waits(device), None
        if build.world_size > 1:
            store = PrefixStore(f"superscaler program {next(_NUMBERS)}", default_store())
            self._watchdog = Watchdog(store, rank, build.world_size, self._waits, timeout, build.folder)
        self.build, self.rank, self.device = build, rank, device
        self._everyone = Everyone(build, rank, device, timeout)
        self._source = weights
        start = load_weights(weights, build, rank, device, seed)
        self.weights = start.weights
        """This rank's pieces, by the name its program uses."""
        self.state = start.states
        """Its optimizer states, likewise."""
        self.steps = start.step
        """Training steps the weights have seen."""
        self.notes = start.notes
        """What a user should know of how the weights were read."""
        self._runtime = make_runtime(build, rank, device, timeout, self._waits)
        self._module = load_module(build.folder, build.program_of(rank))
        self._recorded: RecordedStep | None = None
        if is_recorded:
            self._recorded = record_in_cuda_graph(build, rank, self._module, device, self._waits)
        self.is_compiled = is_compiled
        """Whether what layers compute goes through `torch.compile`."""
        if is_compiled:
            compile_program(self._module, self._runtime)
        self._inputs = build.program_of(rank).with_role(Role.INPUT)
        self._parts = own_parts(self._inputs, rank, build.micro_batches)
        self._bound: dict[tuple[torch.Size, ...], Build] = {}
        """By the shapes of inputs."""

    @property
    def batch_size(self) -> int:
        """Samples in a whole batch: what its inputs' first dim is."""
        return next((shape[0] for _, shape in self.build.inputs.values() if shape), 1)

    @property
    def on_host(self) -> frozenset[str]:
        """The names of the weights and states that lie in host memory, and are fetched where they are used."""
        stored = self.build.program_of(self.rank).with_role(*WEIGHTS, Role.STATE)
        return frozenset(tensor.name for tensor in stored if tensor.host)

    @property
    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs this rank reads, and the shape of its own part of each; none where its stage reads no input."""
        return {name: part.shape for name, part in self._parts.items()}

    @property
    def own_samples(self) -> dict[str, list[int]]:
        """The inputs this rank reads, and which indices of the whole batch's first dim its own part has."""
        return {
            name: [index for start, stop in part.runs[0] for index in range(start, stop)]
            for name, part in self._parts.items()
            if part.runs
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The whole weights on the CPU, by the names of the model's ``state_dict``; all ranks call this, and get it.

        What no program reads is there too, where the file of weights or the build holds it.
        """
        found: dict[str, Tensor] = {}
        for tensor in self.build.tensors(*WEIGHTS).values():
            whole = self._everyone.whole(tensor, self.weights).cpu()
            found |= dict.fromkeys(tensor.saved_as, whole)
        kept = self.build.folder / WEIGHTS_FILE
        files = [TensorFiles(path) for path in (self._source, kept if kept.is_file() else None) if path]
        for name, tensor in ((name, one) for one in self.build.unread.values() for name in one.saved_as):
            holder = next((one for one in files if name in one.headers), None)
            if holder is not None:
                found[name] = holder.read(name, []).to(tensor.dtype)
        return found

    def save(self, path: Path | str, *, with_states: bool = False) -> None:
        """Write the whole weights as a .safetensors file, or else as a folder of them; all ranks call this.

        No rank ever holds more than one whole tensor. What is written can be given to `load`, or to ``--weights``.

        Args:
            path: On a file system all ranks share.
            with_states: Whether to write optimizer states too, so that training can go on.

        Raises:
            BuildError: It cannot be written.
        """
        tensors = {**self.weights, **self.state}
        save_weights(
            path, self.build, self.rank, tensors, meet,
            step=self.steps, with_states=with_states, source=self._source,
        )  # fmt: skip

    def _micro_batches(self, batch: Mapping[str, Tensor], is_own: bool) -> list[dict[str, Tensor]]:
        if self.build.sizes:
            self._take_sizes(batch, is_own)
        given = {name: self._checked(batch, name, is_own) for name in self._parts}
        return [
            {
                one.name: cut(given[one.source], self._runs(one, number, is_own)).to(self.device)
                for one in self._inputs
            }
            for number in range(self.build.micro_batches)
        ]

    def _runs(self, tensor: StoredTensor, micro_batch: int, is_own: bool) -> tuple[Runs, ...]:
        """Where the piece of a micro-batch lies in what was given."""
        return (
            self._parts[tensor.source].pieces[tensor.name][micro_batch]
            if is_own
            else tuple(tensor.runs(self.rank, micro_batch))
        )

    def _take_sizes(self, batch: Mapping[str, Tensor], is_own: bool) -> None:
        """Be a program for inputs of these shapes."""
        if is_own or not batch.keys() >= self.build.inputs.keys():
            raise BuildError(
                f"the sizes of {self.build.name} vary, and a part of a batch does not tell them",
                remedy=f"give the whole batch on every rank: {', '.join(self.build.inputs)}",
            )
        shapes = {name: batch[name].shape for name in self.build.inputs}
        key = tuple(shapes.values())
        if key not in self._bound:
            if len(self._bound) == _KEPT_SIZES:
                del self._bound[next(iter(self._bound))]
            self._bound[key] = self.build.bind(shapes)
        if self._bound[key] is self.build:
            return
        self.build = self._bound[key]
        self._runtime.use_sizes(self.build.sizes, self.build.exchanges)
        self._inputs = self.build.program_of(self.rank).with_role(Role.INPUT)

    def _checked(self, batch: Mapping[str, Tensor], name: str, is_own: bool) -> Tensor:
        """An input as it was given, once it is as wanted."""
        dtype, whole = self.build.inputs[name]
        part = self._parts[name].shape
        wanted, other = (part, whole) if is_own else (whole, part)
        given = batch.get(name)
        if given is not None and given.shape == wanted and given.dtype == dtype:
            return given
        found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
        remedy = f"give a batch with {', '.join(self._parts)} as compiled"
        if given is not None and given.shape == other:
            remedy = "call step(batch)" if is_own else "for this rank's part, call step(batch, is_own=True)"
        whose = f"rank {self.rank}'s part of the input" if is_own else "the input"
        raise BuildError(f"{whose} {name!r} is {found}, not {dtype} {list(wanted)}", remedy=remedy)

    def close(self) -> None:
        """Leave the other ranks, if it was `load` that joined them; other builds cannot run after that."""
        if self._recorded:
            self._recorded.close()
        if self._watchdog:
            self._watchdog.close()
        if self._has_joined:
            leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is None:  # after a failure, others may never come to say goodbye
            self.close()


class TrainingProgram(_Program):
    """This rank's part of a training program, with its weights and optimizer states."""

    _loss_dtype: torch.dtype | None = None

    def __call__(self, batch: Mapping[str, Tensor], *, is_own: bool = False) -> Tensor:
        """Train one step; every rank calls this, and gets the loss of the whole batch.

        Args:
            batch: Inputs by name: the whole batch, the same on every rank, of which each reads its part.
            is_own: Whether it is this rank's part alone, of `own_shapes`: of the samples `own_samples`, in this order.

        Raises:
            BuildError: An input this rank reads is missing, or has another shape or dtype.
            CommunicationError: Another rank is gone, or took longer than the timeout.
        """
        micro_batches = self._micro_batches(batch, is_own)
        self.steps += 1
        self._waits.step = self.steps
        with torch.no_grad():
            outputs = self._module.train_step(
                self.weights, self.state, micro_batches, self.steps, self._runtime
            )
        self._runtime.finish()
        self.outputs = {name: x for name, x in outputs.items() if name != "loss"}
        """What else the last step returned on this rank, such as `grad_norm`."""
        return self._shared(outputs.get("loss"))

    def _shared(self, loss: Tensor | None) -> Tensor:
        """The loss, also on ranks whose program does not compute it."""
        if len(self.build.programs) == 1:
            assert loss is not None
            return loss
        reporter = self.build.reporter
        dtype = self._loss_dtype or self._everyone.value_of(reporter, None if loss is None else loss.dtype)
        self._loss_dtype = dtype
        return self._everyone.tensor_of(reporter, loss, (), dtype)


class InferenceProgram(_Program):
    """This rank's part of an inference program, with its weights."""

    def __call__(self, batch: Mapping[str, Tensor], *, is_own: bool = False) -> dict[str, Tensor]:
        """Compute the outputs of a batch; every rank calls this, and gets them whole, by the graph's names, in order.

        Args:
            batch: Inputs by name: the whole batch, the same on every rank, of which each reads its part.
            is_own: Whether it is this rank's part alone, of `own_shapes`.

        Raises:
            BuildError: An input this rank reads is missing, or has another shape or dtype.
            SizeError: The sizes vary, and the build is not for these.
            CommunicationError: Another rank is gone, or took longer than the timeout.
        """
        results = self._compute(batch, is_own)
        if self._is_whole:
            return {name: results[name] for name in self.build.outputs()}
        return {
            name: self._everyone.whole_output(output, results, self.build.micro_batches)
            for name, output in self.build.outputs().items()
        }

    def start(self, batch: Mapping[str, Tensor], *, reader: int) -> Callable[[], dict[str, Tensor]]:
        """Compute this rank's part of a batch, whose outputs one rank gets while the others go on.

        Every rank calls this, with the same batches in the same order.

        Args:
            batch: As in a call.
            reader: The rank that gets the outputs.

        Returns:
            What waits for the outputs, as a call returns them; only the reader may call it.

        Raises:
            BuildError: As a call does.
            SizeError: As a call does.
            CommunicationError: As a call does, and so does what is returned.
        """
        results = self._compute(batch, False)
        outputs = self.build.outputs()
        if self._is_whole:
            return lambda: {name: results[name] for name in outputs}
        waiting = {
            name: self._everyone.output_on(reader, output, results, self.build.micro_batches)
            for name, output in outputs.items()
        }
        return lambda: {name: whole() for name, whole in waiting.items()}

    @property
    def _is_whole(self) -> bool:
        """Whether what this rank computes is all there is."""
        return self.build.world_size == self.build.micro_batches == 1

    def _compute(self, batch: Mapping[str, Tensor], is_own: bool) -> Mapping[str, Tensor]:
        """This rank's pieces of the outputs."""
        micro_batches = self._micro_batches(batch, is_own)
        with torch.no_grad():
            results = self._module.infer_step(self.weights, micro_batches, self._runtime)
            self._runtime.finish()
        return results


def load(
    folder: Path | str,
    device: torch.device | str | None = None,
    weights: Path | str | None = None,
    seed: int = 0,
    *,
    timeout: float = 600.0,
    allow_edited: bool = False,
    compile: bool = False,
    cuda_graphs: bool = False,
) -> TrainingProgram | InferenceProgram:
    """Load a build, to run it in a loop of one's own; of a build for several devices, every rank does so.

    The ranks are those of the default process group of torch.distributed. Where there is none yet, it is made as
    torchrun's environment variables say, with nccl on GPUs and gloo on CPUs. A communication that takes longer than the
    timeout ends all ranks, and one of them prints which rank is missing, and where each is.

    Args:
        folder: A build folder.
        device: Where this rank runs; by default the GPU of its local rank where there are GPUs, else the CPU.
        weights: A safetensors file or folder to start from; by default those of the build, else its initialisers.
        seed: Of the initialisers.
        timeout: Longest wait for another rank, in seconds.
        allow_edited: Run although stage files were edited after compiling.
        compile: Let what layers compute go through `torch.compile`; the first call takes longer by that.
        cuda_graphs: Record a training step in a CUDA graph, and replay it from then on.

    Returns:
        A function of a batch, inputs by name: a training program trains one step and returns the loss, an
        inference program returns the outputs by name.

    Raises:
        BuildError: The folder is no build, its plan needs another number of processes, or ranks have different builds.
            Or CUDA graphs are asked for where they cannot be.
        CommunicationError: Another rank did not come.
    """
    build = read_build(folder, allow_edited=allow_edited)
    rank = check_world(build, "YOUR_SCRIPT.py")
    chosen = _device(device)
    has_joined = build.world_size > 1 and not dist.is_initialized()
    if has_joined:
        join_ranks(build, rank, "gloo" if chosen.type == "cpu" else "nccl", timeout)
    kind = TrainingProgram if build.entry == "train.py" else InferenceProgram
    return kind(build, rank, chosen, weights, seed, timeout, has_joined, compile, cuda_graphs)


def load_alone(
    folder: Path | str,
    device: torch.device | str | None = None,
    weights: Path | str | None = None,
    seed: int = 0,
    *,
    allow_edited: bool = False,
    compile: bool = False,
) -> InferenceProgram:
    """Load an inference build for one device in this process alone, whatever other ranks there are.

    Args are those of `load`.

    Raises:
        BuildError: The folder is no build, one for training, or one for several devices.
    """
    build = read_build(folder, allow_edited=allow_edited)
    if build.entry == "train.py" or build.world_size != 1:
        kind = "for training" if build.entry == "train.py" else f"for {build.world_size} devices"
        raise BuildError(f"{folder} is a build {kind}", remedy="give one for inference on one device")
    return InferenceProgram(build, 0, _device(device), weights, seed, 0.0, False, compile, False)


def _device(wanted: torch.device | str | None) -> torch.device:
    """This rank's device, which the process group serves if there is one."""
    served = served_devices() if dist.is_initialized() else {"cpu": "gloo", "cuda": "nccl"}
    if wanted is None:
        return choose_device("nccl" if torch.cuda.is_available() and served.get("cuda") == "nccl" else "gloo")
    device = torch.device(wanted)
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if device.type not in served:
        raise BuildError(
            f"the process group communicates on {' and '.join(served)}, not on {device}",
            remedy="make it with init_process_group() and no backend, which serves all, or name another device",
        )
    return device
