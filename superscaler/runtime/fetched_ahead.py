"""Fetched ahead: tensors in host memory come to the device in groups, each group while the one before it is used."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ALIGNMENT = 64
"""Bytes. Where tensors of a group begin: at what kernels load at once, and compilers rely on."""


class Arrival(Protocol):
    """Tensors on their way to the device."""

    def wait(self) -> list[Tensor]:
        """The tensors, once they are there."""
        ...


class Carrier(Protocol):
    """Copies tensors to a device while that computes."""

    def start(self, sources: Sequence[Tensor]) -> Arrival:
        """Set tensors on their way, into one new piece of memory."""
        ...


class FetchedAhead(Iterator[list[Tensor]]):
    """Groups of tensors on the device, of which the next is on its way while one is used.

    So two are on the device at most, if each is forgotten before the next is taken.

    Args:
        source: Holds the tensors in host memory, which stay as they are meanwhile.
        groups: The names of each group, in the order of use.
        carrier: What copies them.
    """

    def __init__(
        self, source: Mapping[str, Tensor], groups: Iterable[Sequence[str]], carrier: Carrier
    ) -> None:
        self._source, self._groups, self._carrier = source, iter(groups), carrier
        self._coming = self._start()

    def __next__(self) -> list[Tensor]:
        """Set the group after the next on its way, and wait for the next; raises what went wrong with it."""
        if self._coming is None:
            raise StopIteration
        arriving, self._coming = self._coming, self._start()
        return arriving.wait()

    def _start(self) -> Arrival | None:
        names = next(self._groups, None)
        return None if names is None else self._carrier.start([self._source[name] for name in names])


def carrier_of(device: torch.device) -> Carrier:
    """What copies to a device: a stream of a GPU, a thread beside that which computes on CPUs."""
    return StreamCarrier(device) if device.type == "cuda" else ThreadCarrier()


class ThreadCarrier:
    """Copies in a thread of its own, one group after another; torch lets go of the interpreter meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "superscaler-fetch")

    def start(self, sources: Sequence[Tensor]) -> "ThreadArrival":
        """Set tensors on their way."""
        copies = _room_for(sources, torch.device("cpu"))
        # a thread does not know in which mode the one is that it works for
        is_inference = torch.is_inference_mode_enabled()
        return ThreadArrival(copies, self._thread.submit(_copy, copies, list(sources), is_inference))


@dataclass(frozen=True, slots=True)
class ThreadArrival:
    """What a thread is copying."""

    copies: list[Tensor]
    done: Future[None]

    def wait(self) -> list[Tensor]:
        """The copies, once they are made; raises what went wrong."""
        self.done.result()
        return self.copies


class StreamCarrier:
    """Copies in a stream of its own, from page-locked memory.

    Memory is of the computing stream, so that what the layer before last leaves serves for the next one without delay,
    however far the program is ahead of the device: the copy begins when all is computed that was asked for before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, sources: Sequence[Tensor]) -> "StreamArrival":
        """Set tensors on their way."""
        copies = _room_for(sources, self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            torch.ops.aten._foreach_copy_(copies, list(sources), non_blocking=True)
        done = torch.cuda.Event()
        done.record(self._stream)
        return StreamArrival(copies, self._stream, done)


@dataclass
class StreamArrival:
    """What a stream is copying."""

    copies: list[Tensor]
    stream: torch.cuda.Stream
    done: torch.cuda.Event
    is_taken: bool = False

    def wait(self) -> list[Tensor]:
        """The copies, which the computing stream waits for."""
        torch.cuda.current_stream(self.stream.device).wait_event(self.done)
        self.is_taken = True
        return self.copies

    def __del__(self) -> None:
        """Of what nobody took, as after a failure, no memory is given to others before the copy is done."""
        if not self.is_taken:
            for copy in self.copies:
                copy.record_stream(self.stream)


def _copy(copies: list[Tensor], sources: list[Tensor], is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        torch.ops.aten._foreach_copy_(copies, sources)


def _room_for(sources: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors like these in one piece of memory, which is freed with the last of them."""
    starts, size = [], 0
    for source in sources:
        starts.append(size)
        size += -(-source.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    return [
        memory[start : start + source.nbytes].view(source.dtype).view(source.shape)
        for start, source in zip(starts, sources, strict=True)
    ]
