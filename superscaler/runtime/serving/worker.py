"""Worker: this rank's part of a serving program, its caches, and what is done to these between two steps."""

from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.loaded import InferenceProgram, TrainingProgram
from superscaler.runtime.packed_weights import pack
from superscaler.runtime.serving.batch import Batch, Pairs


class Worker:
    """Runs batches; every rank has one, and runs the same batches in the same order.

    Args:
        program: A build that `superscaler.serve` compiled.
        host_pages: Pages of host memory for sequences that make room on the device.

    Raises:
        BuildError: The build is not for serving.
    """

    def __init__(self, program: TrainingProgram | InferenceProgram, host_pages: int = 0) -> None:
        if not isinstance(program, InferenceProgram):
            raise BuildError(
                f"{program.build.folder} is a training build",
                remedy="compile the model with `superscaler serve`",
            )
        facts = program.build.described.get("serving")
        if facts is None:
            raise BuildError(
                f"{program.build.folder} was not compiled for serving",
                remedy="compile the model with `superscaler serve`, or superscaler.serve.compile_serving",
            )
        if not program.is_compiled:
            # what is fetched in every step comes as it lies in host memory
            resident = {name: x for name, x in program.weights.items() if name not in program.on_host}
            program.weights |= pack(resident)
        self._program = program
        self._tokens, self._logits = facts["tokens"], facts["logits"]
        self.device = program.device
        self.vocab: int = facts["vocab"]
        self.pages: int = facts["pages"]
        self.page_size: int = facts["page_size"]
        self.stages = len(program.build.programs)
        """Of ranks, each of which runs its part of the model after the other."""
        self.longest: int = facts["longest"]
        """Tokens of the longest sequence the model is for."""
        self.end_tokens: frozenset[int] = frozenset(facts.get("end_tokens", ()))
        """Those with which the model ends a text, as far as the build knows."""
        self._caches = [program.weights[name] for name in facts["caches"] if name in program.weights]
        self._host = [self._host_cache(cache, host_pages) for cache in self._caches]

    def start(self, batch: Batch) -> Callable[[], Tensor]:
        """Compute this rank's part of a step; on the first rank, what waits for the logits [wanted, vocab]."""
        for device, host in zip(self._caches, self._host, strict=True):
            self._exchange(device, host, batch)
        outputs = self._program.start(self._inputs(batch), reader=0)
        return lambda: outputs()[self._logits][0, : len(batch.wanted)]

    def run(self, batch: Batch) -> Tensor:
        """The logits [wanted, vocab] of a step of a program on one device."""
        return self.start(batch)()

    def _inputs(self, batch: Batch) -> Mapping[str, Tensor]:
        most = max(map(len, batch.pages))
        table = [(*pages, *(0,) * (most - len(pages))) for pages in batch.pages]
        visible = torch.tensor(batch.visible) if batch.visible else torch.ones(len(batch.tokens), 1).bool()
        return {
            self._tokens: torch.tensor([batch.tokens]),
            "positions": torch.tensor(batch.positions),
            "slots": torch.tensor(batch.slots),
            "starts": torch.tensor(batch.starts),
            "lengths": torch.tensor(batch.lengths),
            "page_table": torch.tensor(table),
            "visible": visible,
            "wanted": torch.tensor(batch.wanted or (0,)),  # no size of a program is 0
        }

    def _host_cache(self, cache: Tensor, pages: int) -> Tensor:
        shape = (pages * self.page_size, *cache.shape[1:])
        return torch.empty(shape, dtype=cache.dtype, pin_memory=cache.is_cuda)

    def _exchange(self, device: Tensor, host: Tensor, batch: Batch) -> None:
        """What the scheduler wants moved, in its order; each kind is read as a whole before it is written."""
        _copy(device, host, self._slots(batch.swaps_out))
        _copy(host, device, self._slots(batch.swaps_in))
        _copy(device, device, batch.moves)
        _copy(device, device, self._slots(batch.copies))

    def _slots(self, pages: Pairs) -> Pairs:
        size = self.page_size
        whole = (
            ((source * size + place, target * size + place) for place in range(size))
            for source, target in pages
        )
        return tuple(chain.from_iterable(whole))


def _copy(source: Tensor, target: Tensor, pairs: Pairs) -> None:
    if pairs:
        sources, targets = torch.tensor(pairs).unbind(1)
        target[targets.to(target.device)] = source[sources.to(source.device)].to(target.device)
