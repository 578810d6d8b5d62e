"""A lowered graph, run step by step: several sequences whose pages lie anywhere, a few tokens of each at a time."""

from collections.abc import Mapping, Sequence

import torch

from superscaler.ir.interpret import interpret
from superscaler.ir.tensor import Role
from superscaler.serve import Servable


class Stepped:
    """Caches and page tables of sequences called by number."""

    def __init__(self, servable: Servable, weights: Mapping[str, torch.Tensor], seed: int = 0) -> None:
        graph = servable.graph
        self._servable, self._weights = servable, dict(weights)
        shuffled = torch.randperm(servable.cache.pages, generator=torch.Generator().manual_seed(seed))
        self._free = shuffled.tolist()
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self.caches = {
            tensor.name: torch.full(tensor.shape, torch.nan, dtype=getattr(torch, tensor.dtype))
            for tensor in graph.of_role(Role.BUFFER)
            if "cached_" in tensor.name
        }

    def step(
        self,
        new: Mapping[int, Sequence[int]],
        *,
        wanted: Sequence[int] | None = None,
        depths: Mapping[int, Sequence[int]] | None = None,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [wanted, vocab] of the new tokens of each sequence; by default those of all."""
        size = self._servable.cache.page_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for number, own in new.items():
            first = self._lengths.get(number, 0)
            self._lengths[number] = first + len(own)
            pages = self._pages.setdefault(number, [])
            while len(pages) * size < first + len(own):
                pages.append(self._free.pop())
            places = range(first, first + len(own))
            tokens += own
            slots += [pages[place // size] * size + place % size for place in places]
            positions += [first + depth for depth in depths[number]] if depths else places
            starts.append(len(tokens))
        most = max(len(self._pages[number]) for number in new)
        table = [self._pages[number] + [0] * (most - len(self._pages[number])) for number in new]
        graph = self._servable.graph
        inputs = {
            graph.inputs[0]: torch.tensor([tokens]),
            "positions": torch.tensor(positions),
            "slots": torch.tensor(slots),
            "starts": torch.tensor(starts),
            "lengths": torch.tensor([self._lengths[number] for number in new]),
            "page_table": torch.tensor(table),
            "visible": torch.ones(len(tokens), 1, dtype=torch.bool) if visible is None else visible,
            "wanted": torch.arange(len(tokens)) if wanted is None else torch.tensor(wanted),
        }
        found = interpret(graph, {**self._weights, **self.caches, **inputs})
        return found[graph.outputs[0]][0]
