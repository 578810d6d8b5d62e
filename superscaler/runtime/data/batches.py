"""The batches of a data set that one rank sees, step by step."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build
from superscaler.runtime.data.feed import Feed, Ordered
from superscaler.runtime.data.opening import open_data
from superscaler.runtime.data.piece import Piece
from superscaler.runtime.data.read_ahead import ReadAhead
from superscaler.runtime.data.source import Source, check_rows
from superscaler.runtime.data.stream import Stream
from superscaler.runtime.stored_tensor import StoredTensor


@dataclass(frozen=True, slots=True)
class _Step:
    """What was read for a step."""

    micro_batches: list[dict[str, Tensor]]
    """On the CPU, in pinned memory where they go to a GPU."""
    place: dict[str, Any] | None
    """Where the data set stands after it."""
    is_last: bool


class Batches:
    """The batches one rank sees: step i has samples ``[i * B, (i + 1) * B)``, and after the last the first again.

    The samples of an epoch come in an order of their own where there is a seed: the same under every plan.
    A rank reads the samples its pieces lie in, of a file only the pieces; nothing if its program has no input.

    Args:
        data: What `open_data` takes or returns.
        build: Says what the inputs are, and B in the first dim of each.
        rank: This process.
        device: Where batches are put.
        seed: Of the shuffle; None: samples come as they lie.
        is_once: Whether each sample is wanted once, as inference does: less than one batch of samples will do, and
            ranks without inputs go along an iterable too, so that all know where it ends.
        reads_ahead: Whether a thread reads the next batch while the caller computes.
        timeout: Longest wait for a batch, in seconds.

    Raises:
        BuildError: The data set cannot be opened, or there are too few samples. Or, now or in the step that reads
            it, an input is missing or has another type or shape.
    """

    def __init__(
        self,
        data: Any,
        build: Build,
        rank: int,
        device: torch.device,
        *,
        seed: int | None = None,
        is_once: bool = False,
        reads_ahead: bool = False,
        timeout: float = 600.0,
    ) -> None:
        self._feed = _in_order(open_data(data, build.inputs), build, seed)
        self._feed.check(build.inputs)
        self._batch = next((shape[0] for _, shape in build.inputs.values() if shape), 1)
        self._dtypes = {name: dtype for name, (dtype, _) in build.inputs.items()}
        self._rank, self._device, self._count = rank, device, build.micro_batches
        self._inputs = build.program_of(rank).with_role(Role.INPUT)
        self._is_reader = bool(self._inputs) or is_once
        self._seed, self._is_once = seed, is_once
        self._check_enough()
        self._reads_ahead = reads_ahead
        self._ahead = ReadAhead(self._read, timeout)
        self._next, self._place = 0, None

    @property
    def samples(self) -> int | None:
        """How many there are; None of an iterable that has not ended yet."""
        return self._feed.samples

    def micro_batches(self, step: int) -> list[dict[str, Tensor]]:
        """This rank's inputs of each micro-batch of step number `step`, which counts from 0."""
        return self._take(step)[0]

    def epoch(self) -> Iterator[list[dict[str, Tensor]]]:
        """The micro-batches of the steps it takes to see each sample once; made for `is_once`."""
        step, is_last = 0, False
        while not is_last:
            micro_batches, is_last = self._take(step)
            yield micro_batches
            step += 1

    def state_dict(self) -> dict[str, Any]:
        """Where training stands after the batches it was given, as plain values that JSON can hold.

        Of a data set with numbered samples it is the step. Of an iterable it is the iterable's own state, where it
        keeps one that JSON can hold; otherwise as many samples are read and left out. A state of one rank serves
        every rank, under any plan.
        """
        return {
            "step": self._next,
            "batch": self._batch,
            "samples": None if isinstance(self._feed, Stream) else self._feed.samples,
            "seed": self._seed,
            "place": _plain(self._place),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; ask for the batch of step ``state["step"]`` next.

        Raises:
            BuildError: Other samples would follow than without the interruption.
        """
        self._ahead.drop()
        then, now = _described(state), _described(self.state_dict())
        if then != now:
            raise BuildError(
                f"the training to continue had {then}; {self._feed.name} now gives {now}",
                remedy="continue with the data set, batch size, --shuffle and --data-seed it began with",
            )
        self._next, self._place = state["step"], state["place"]
        if self._place is not None and self._is_reader:
            self._feed.go_to(self._place)

    def _take(self, step: int) -> tuple[list[dict[str, Tensor]], bool]:
        """The micro-batches of a step on the device, and whether all samples have been seen."""
        read = self._ahead.get(step) if self._reads_ahead else self._read(step)
        self._next, self._place = step + 1, read.place
        on_device = [
            {name: x.to(self._device, non_blocking=True) for name, x in micro_batch.items()}
            for micro_batch in read.micro_batches
        ]
        if self._reads_ahead and not read.is_last:
            self._ahead.start(step + 1)
        return on_device, read.is_last

    @torch.no_grad()
    def _read(self, step: int) -> _Step:
        if not self._is_reader:
            return _Step([{} for _ in range(self._count)], None, False)
        numbers = range(step * self._batch, (step + 1) * self._batch)
        wanted = [(number, tensor) for number in range(self._count) for tensor in self._inputs]
        tensors = self._feed.read([self._piece(tensor, step, number) for number, tensor in wanted], numbers)
        micro_batches: list[dict[str, Tensor]] = [{} for _ in range(self._count)]
        for (number, tensor), x in zip(wanted, tensors, strict=True):
            micro_batches[number][tensor.name] = self._pinned(x)
        # an iterable is looked into for its end only where nobody asks for its place
        is_last = self._is_once and self._feed.is_over(numbers.stop)
        self._check_enough()
        return _Step(micro_batches, None if self._is_once else self._feed.place(), is_last)

    def _piece(self, tensor: StoredTensor, step: int, micro_batch: int) -> Piece:
        runs = tensor.runs(self._rank, micro_batch)
        if runs:
            first = step * tensor.shape[0]
            runs[0] = [(first + start, first + stop) for start, stop in runs[0]]
        dtype = self._dtypes[tensor.source]
        return Piece(tensor.source, dtype, tensor.shape, tuple(runs))

    def _pinned(self, x: Tensor) -> Tensor:
        """In memory a GPU copies from without the CPU's waiting, where batches go to one."""
        if self._device.type != "cuda":
            return x
        with torch.cuda.device(self._device):  # a thread starts with the first GPU, whichever is this rank's
            return x.pin_memory()

    def _check_enough(self) -> None:
        enough = 1 if self._is_once else self._batch
        if self._feed.samples is not None and self._feed.samples < enough:
            raise BuildError(
                f"{self._feed.name} has {self._feed.samples} samples; one batch takes {self._batch}",
                remedy="give more data, or compile for a smaller batch",
            )


def batch_shapes(data: Source | Stream, build: Build, batch: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of each input in one batch of a data set, with `batch` samples or as many as the build has now.

    Of datasets and iterables the first sample is read, on every rank.
    """
    shapes = {}
    for name, (_, shape) in build.inputs.items():
        sample = data.sample_shape(name)
        shapes[name] = (batch or shape[0], *(shape[1:] if sample is None else sample)) if shape else shape
    return shapes


def _in_order(data: Source | Stream, build: Build, seed: int | None) -> Feed:
    if isinstance(data, Source):
        if seed is not None:
            check_rows(build.inputs, f"{data.name}, shuffled,")
        return Ordered(data, seed)
    if seed is not None:
        raise BuildError(
            f"--shuffle: {data.name} is an iterable, whose samples come in the order it gives them",
            remedy="shuffle in the iterable, by a fixed seed and, for another order in each epoch, set_epoch",
        )
    return data


def _described(state: Mapping[str, Any]) -> str:
    """What must be as it was for the same samples to follow."""
    count = "an iterable's" if state["samples"] is None else state["samples"]
    order = (
        "as they lie" if state["seed"] is None else f"in the order of --shuffle --data-seed {state['seed']}"
    )
    return f"{count} samples {order} in batches of {state['batch']}"


def _plain(place: dict[str, Any] | None) -> dict[str, Any] | None:
    """A place that JSON gives back as it was: without the iterable's own state where JSON would not."""
    try:
        is_kept = json.loads(json.dumps(place)) == place
    except (TypeError, ValueError):
        is_kept = False
    return place if is_kept or place is None else {**place, "iterable": None}
