"""Random steps of paged attention, and what they must give: a loop over tokens and keys, by definition."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PagedStep:
    """The arguments of one call of `paged_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    pages: Tensor
    positions: Tensor
    visible: Tensor
    options: dict[str, Any]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.q, self.k, self.v, self.keys, self.values, self.slots,
                self.starts, self.lengths, self.pages, self.positions, self.visible)  # fmt: skip

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "PagedStep":
        """The same in another type of element, on another device; nothing is shared."""
        names = [name for name in self.__dataclass_fields__ if name != "options"]
        moved = {name: getattr(self, name).clone().to(device) for name in names}
        return replace(
            self, **{name: x.to(dtype) if x.is_floating_point() else x for name, x in moved.items()}
        )


def random_step(
    shapes: Sequence[tuple[int, int]], heads: tuple[int, int], widths: tuple[int, int],
    page_size: int, window: int, tree: bool, seed: int, widest: int | None = None,
) -> PagedStep:  # fmt: skip
    """A step of sequences with so many new tokens and earlier keys, on shuffled pages, in caches of NaN elsewhere.

    With `tree` the new tokens hang in random trees: each sees its ancestors and itself, or nothing at all. Those of
    sequences with more than `widest` follow each other.
    """
    generator, draw = torch.Generator().manual_seed(seed), random.Random(seed)
    (h, g), (d, e) = heads, widths
    counts = [-(-(new + earlier) // page_size) for new, earlier in shapes]
    num_pages = sum(counts) + 2
    free = torch.randperm(num_pages, generator=generator).tolist()
    pages = torch.zeros(len(shapes), max([*counts, 1]), dtype=torch.int64)
    num_tokens = sum(new for new, _ in shapes)
    keys, values = (torch.full((num_pages * page_size, g, w), math.nan, dtype=torch.float64) for w in widths)
    widest = max(new for new, _ in shapes) if widest is None else widest
    visible = torch.zeros(num_tokens, widest if tree else 0, dtype=torch.bool)
    starts, slots, positions = [0], [], []
    for number, ((new, earlier), count) in enumerate(zip(shapes, counts, strict=True)):
        pages[number, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int64)
        own = [int(pages[number, i // page_size]) * page_size + i % page_size for i in range(new + earlier)]
        for cache in (keys, values):
            cache[own[:earlier]] = torch.randn(
                earlier, *cache.shape[1:], generator=generator, dtype=torch.float64
            )
        slots += own[earlier:]
        depths: list[int] = []
        is_tree = tree and new <= widest
        for token in range(new):
            parent = draw.randrange(-1, token) if is_tree else token - 1
            if is_tree and draw.random() < 0.9:
                row = visible[starts[-1] + token]
                if parent >= 0:
                    row |= visible[starts[-1] + parent]
                row[token] = True
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        positions += [earlier + depth for depth in depths]
        starts.append(starts[-1] + new)
    q, k, v = (
        torch.randn(1, num_tokens, count, width, generator=generator, dtype=torch.float64).transpose(1, 2)
        for count, width in ((h, d), (g, d), (g, e))
    )
    whole = [torch.tensor(x, dtype=torch.int64) for x in (slots, starts, [sum(shape) for shape in shapes])]
    options = {"scale": 1 / math.sqrt(d), "page_size": page_size, "window": window}
    return PagedStep(
        q, k, v, keys, values, *whole, pages, torch.tensor(positions, dtype=torch.int64), visible, options
    )


def by_definition(step: PagedStep) -> tuple[Tensor, Tensor, Tensor]:
    """The output in float64, and the caches afterwards."""
    keys, values = step.keys.clone(), step.values.clone()
    for token, slot in enumerate(step.slots.tolist()):
        keys[slot], values[slot] = step.k[0, :, token], step.v[0, :, token]
    q, out = step.q.double(), torch.zeros(*step.q.shape[:3], step.v.shape[3], dtype=torch.float64)
    sharing, page_size = q.shape[1] // keys.shape[1], step.options["page_size"]
    out = out.to(q.device)
    for sequence, length in enumerate(step.lengths.tolist()):
        start, stop = step.starts[sequence : sequence + 2].tolist()
        earlier = length - (stop - start)
        for token in range(start, stop):
            seen = [
                number for number in range(length) if _is_seen(step, token, start, number, earlier, length)
            ]
            slots = [int(step.pages[sequence, i // page_size]) * page_size + i % page_size for i in seen]
            for head in range(q.shape[1]) if seen else ():
                scores = keys[slots, head // sharing].double() @ q[0, head, token] * step.options["scale"]
                out[0, head, token] = scores.softmax(0) @ values[slots, head // sharing].double()
    return out, keys, values


def _is_seen(step: PagedStep, token: int, start: int, number: int, earlier: int, length: int) -> bool:
    """Whether a new token sees the key of some number of its sequence."""
    new = number - earlier
    position = number if new < 0 else int(step.positions[start + new])
    if step.options["window"] and position <= int(step.positions[token]) - step.options["window"]:
        return False
    if new < 0:
        return True
    is_told = 1 < step.visible.shape[1] >= length - earlier
    return bool(step.visible[token, new]) if is_told else new <= token - start
