"""A speculator that is a small model: a build of its own, on one device, with its own cache of keys and values.

It computes what was accepted since it was last asked, for all sequences in one batch; this gives what comes after
each root. Then it goes down the trees, a level of all of them at a time. The first levels, as long as they are one
node wide, lie in a row in the cache as any earlier tokens do; what comes below the first fork goes through the
model again with each level, as a tree of new tokens, since earlier tokens are seen by all.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.speculation.draft_batch import Piece, make_batch
from superscaler.runtime.serving.speculation.drafting import Place, grow
from superscaler.runtime.serving.speculation.step import Proposal, Wish
from superscaler.runtime.serving.speculation.token_tree import ROOT, depths


@dataclass(slots=True)
class _Known:
    """A sequence in the cache."""

    name: str
    """By which the cache has it."""
    computed: int = 0
    """How many of its tokens have their keys there."""
    row: tuple[int, ...] = field(default=())
    """Nodes of the tree that is being grown, from the first level down, whose keys follow in a row."""


class DraftModel:
    """Proposes the tokens that a small model finds likeliest, or draws from it where the request draws.

    Sequences share nothing in its cache, so what is in one cannot be noticed by another. Where there is no room for
    one, those for which nothing was asked longest are dropped; where that is not enough, nothing is proposed.

    Args:
        run: Computes the logits [wanted, vocab] of a batch (see `worker.Worker`).
        cache: The pages of its model.
        longest: Tokens of the longest sequence that the model is for.
        speculator: Its number among those whose proposals are merged.
        step_tokens: Most tokens in a batch; a longer text is computed in several.
    """

    def __init__(
        self,
        run: Callable[[Batch], Tensor],
        cache: KvCache,
        longest: int,
        speculator: int = 0,
        step_tokens: int = 2048,
    ) -> None:
        self._run, self._cache, self._longest = run, cache, longest
        self._speculator, self._step_tokens = speculator, step_tokens
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        """The one for which nothing was asked longest first."""
        self._names = 0

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """One proposal for each, empty where there is no room."""
        asked = {wish.sequence for wish in wishes}
        known = [self._with_room(wish, asked) for wish in wishes]
        chosen = [(wish, one) for wish, one in zip(wishes, known, strict=True) if one is not None]
        proposals = iter(
            grow([wish for wish, _ in chosen], lambda places: self._logits(chosen, places), self._speculator)
        )
        for _, one in chosen:
            self._cache.truncate(one.name, one.computed)
        return [Proposal() if one is None else next(proposals) for one in known]

    def forget(self, sequence: Hashable) -> None:
        """The sequence has ended, or will go on elsewhere; unknown ones are ignored."""
        known = self._known.pop(sequence, None)
        if known is not None:
            self._cache.close(known.name)

    def _with_room(self, wish: Wish, asked: set[Hashable]) -> _Known | None:
        """The sequence, with pages for its new tokens and its tree; None where there are too few."""
        if not wish.shape or _length(wish) + max(depths(wish.shape)) > self._longest:
            return None
        known = self._known.get(wish.sequence)
        if known is None:
            self._names += 1
            known = self._known[wish.sequence] = _Known(str(self._names))
            self._cache.open(known.name, ())
        self._known.move_to_end(wish.sequence)
        # the last token goes through the model again where the sequence did not go on since
        known.computed = min(known.computed, _length(wish) - 1)
        parents = len(set(wish.shape) - {ROOT})  # only these go through the model
        while self._cache.reserve(known.name, known.computed, _length(wish) + parents) is None:
            oldest = next(iter(self._known))
            if oldest in asked:
                return None
            self.forget(oldest)
        return known

    def _logits(self, chosen: Sequence[tuple[Wish, _Known]], places: Sequence[Place]) -> Tensor:
        """The logits [places, vocab] at a level of the trees."""
        pieces: list[Piece] = []
        for number, group in groupby(places, key=lambda place: place.wish):
            wish, known = chosen[number]
            paths = [place.path for place in group]
            if paths == [()]:
                pieces += self._text(wish, known)
            else:
                pieces.append(_level(known, paths))
        return torch.cat([self._run(make_batch(some, self._cache)) for some in self._batches(pieces)])

    def _text(self, wish: Wish, known: _Known) -> Iterator[Piece]:
        """What of the sequence is not in the cache yet; what follows its last token is wanted."""
        start = known.computed
        tokens = wish.row.certain(start)
        known.computed, known.row = start + len(tokens), ()
        for first in range(0, len(tokens), self._step_tokens):
            some = tokens[first : first + self._step_tokens]
            is_last = first + len(some) == len(tokens)
            wanted = (len(some) - 1,) if is_last else ()
            yield Piece(known.name, start + first, some, range(-1, len(some) - 1), wanted)

    def _batches(self, pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
        """The pieces in order, as many at a time as the tokens of a batch allow, one at least."""
        batch: list[Piece] = []
        room = self._step_tokens
        for piece in pieces:
            if batch and len(piece.tokens) > room:
                yield batch
                batch, room = [], self._step_tokens
            batch.append(piece)
            room -= len(piece.tokens)
        yield batch


def _length(wish: Wish) -> int:
    return len(wish.row.prompt) + len(wish.row.output)


def _level(known: _Known, paths: Sequence[tuple[int, ...]]) -> Piece:
    """What is not in a row in the cache of the nodes at the ends of the paths, all of one level, and above them."""
    shared = _common((known.row, *paths))
    numbers: dict[tuple[int, ...], int] = {}
    parents: list[int] = []
    for depth in range(shared + 1, len(paths[0]) + 1):
        for path in paths:
            if path[:depth] not in numbers:
                parents.append(numbers.get(path[: depth - 1], ROOT))
                numbers[path[:depth]] = len(numbers)
    known.row = paths[0][: _common(paths)]
    wanted = [numbers[path] for path in paths]
    return Piece(known.name, known.computed + shared, [path[-1] for path in numbers], parents, wanted)


def _common(paths: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all of them have in common."""
    columns = enumerate(zip(*paths, strict=False))
    return next((number for number, column in columns if len(set(column)) > 1), min(map(len, paths)))
