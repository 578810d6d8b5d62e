"""Batches of a draft model: texts that go on, or the parts of token trees that are not in a row in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.speculation.token_tree import depths, visible


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of one sequence."""

    sequence: str
    """Its name in the cache."""
    start: int
    """Keys before them."""
    tokens: Sequence[int]
    parents: Sequence[int]
    """Which of the tokens each follows, level by level; -1: what came before."""
    wanted: Sequence[int]
    """Rising: of which tokens the logits are wanted."""

    @property
    def is_row(self) -> bool:
        """Whether each token follows the last."""
        return all(parent == number - 1 for number, parent in enumerate(self.parents))


def make_batch(pieces: Sequence[Piece], cache: KvCache) -> Batch:
    """All pieces as one batch; their logits come in the order of the pieces."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    wanted: list[int] = []
    for piece in pieces:
        wanted += (len(tokens) + row for row in piece.wanted)
        tokens += piece.tokens
        positions += (piece.start + depth - 1 for depth in depths(piece.parents))
        slots += cache.slots(piece.sequence, range(piece.start, piece.start + len(piece.tokens)))
        starts.append(len(tokens))
    return Batch(
        tokens=tuple(tokens),
        positions=tuple(positions),
        slots=tuple(slots),
        starts=tuple(starts),
        lengths=tuple(piece.start + len(piece.tokens) for piece in pieces),
        pages=tuple(cache.pages_of(piece.sequence) for piece in pieces),
        wanted=tuple(wanted),
        visible=_visible(pieces),
    )


def _visible(pieces: Sequence[Piece]) -> tuple[tuple[bool, ...], ...]:
    """[T][W] Which new tokens of its own piece each sees; empty where all are rows."""
    if all(piece.is_row for piece in pieces):
        return ()
    width = max(len(piece.tokens) for piece in pieces)
    rows: list[tuple[bool, ...]] = []
    for piece in pieces:
        hidden = (False,) * (width - len(piece.tokens))
        rows += [(*row[1:], *hidden) for row in visible(piece.parents)[1:]]  # row and column 0 are the root
    return tuple(rows)
