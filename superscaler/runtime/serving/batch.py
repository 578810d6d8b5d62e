"""Batch: what one step of the engine runs."""

from dataclasses import dataclass

Pairs = tuple[tuple[int, int], ...]
"""From where, to where."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens that go through the model in one step, and where their keys and values lie.

    T tokens of S sequences. Keys of a sequence are numbered in the order in which they lie in its pages, which
    in a token tree is not the order of their positions: siblings share a position.

    Before the model runs, the caches change in this order: swaps_out, swaps_in, moves, copies. Pairs of one kind
    may be done one after another, or all read and then all written.
    """

    tokens: tuple[int, ...]
    """[T] The tokens, sequence after sequence."""
    positions: tuple[int, ...]
    """[T] Place of each in its own sequence."""
    slots: tuple[int, ...]
    """[T] Where its keys and values go in the cache: page * page_size + offset."""
    starts: tuple[int, ...]
    """[S+1] Sequence s has tokens starts[s]:starts[s+1]."""
    lengths: tuple[int, ...]
    """[S] Keys of the sequence in the cache after this step: earlier ones and the new."""
    pages: tuple[tuple[int, ...], ...]
    """[S] Its pages in order: key i lies at pages[i // page_size] * page_size + i % page_size."""
    wanted: tuple[int, ...]
    """Rows of `tokens` whose logits are wanted; a row comes again for each sequence that continues from it."""
    visible: tuple[tuple[bool, ...], ...] = ()
    """[T][W] Whether a token sees new token j of its own sequence, W the most new tokens of one with a token tree.

    New tokens of a sequence with more see each other causally, and so do all where this is empty. Earlier keys are
    always seen.
    """
    copies: Pairs = ()
    """Pages, (from, to): copied before they are written (copy on write)."""
    moves: Pairs = ()
    """Slots, (from, to): the accepted path of a tree is put in a row."""
    swaps_out: Pairs = ()
    """(Device page, host page)."""
    swaps_in: Pairs = ()
    """(Host page, device page)."""


def verify_batch(batch: Batch, page_size: int) -> None:
    """Assert that sizes agree, new keys are the last of their sequence, and nobody writes what another reads."""
    total, new = len(batch.tokens), []
    assert len(batch.positions) == len(batch.slots) == total > 0
    assert len(batch.lengths) == len(batch.pages) == len(batch.starts) - 1
    assert (batch.starts[0], batch.starts[-1]) == (0, total)
    for start, stop, length, pages in zip(
        batch.starts, batch.starts[1:], batch.lengths, batch.pages, strict=False
    ):
        assert 0 < stop - start <= length <= len(pages) * page_size
        keys = range(length - (stop - start), length)
        slots = tuple(pages[key // page_size] * page_size + key % page_size for key in keys)
        assert batch.slots[start:stop] == slots, "the new keys are not the last of the sequence"
        new.append(stop - start)
    assert len(set(batch.slots)) == total, "two tokens write the same slot"
    written = {slot // page_size for slot in batch.slots}
    for sequence, pages in enumerate(batch.pages):
        first_new = (batch.lengths[sequence] - new[sequence]) // page_size
        seen = pages[:first_new]
        assert written.isdisjoint(seen), "a page is written that a sequence reads as full"
    if batch.visible:
        assert len(batch.visible) == total
        assert len({len(row) for row in batch.visible}) == 1
    assert list(batch.wanted) == sorted(batch.wanted)
    assert all(0 <= row < total for row in batch.wanted)
    _verify_transfers(batch)


def _verify_transfers(batch: Batch) -> None:
    for pairs in (batch.copies, batch.moves, batch.swaps_out, batch.swaps_in):
        targets = [target for _, target in pairs]
        assert len(set(targets)) == len(targets), "two things are put in one place"
    arrive = {target for _, target in batch.copies}
    arrive |= {target for _, target in batch.swaps_in}
    assert arrive.isdisjoint(source for source, _ in batch.copies), (
        "a page is overwritten before it is copied"
    )
    stay = {source for source, _ in batch.swaps_in}
    assert stay.isdisjoint(target for _, target in batch.swaps_out), (
        "a host page is overwritten before it is read"
    )
