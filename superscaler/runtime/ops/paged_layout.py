"""Paged layout: which sequences of a step are attended to together, and what of the caches each group reads.

It follows from what is known of a step before any layer runs, and is the same for all layers; so the last step's is
kept. Sequences of similar length with as many new tokens make a group: its pages are gathered by one call and attended
to by another, with a mask only where they differ. Nothing is padded to the longest sequence of the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import torch
from torch import Tensor

LONG_CHUNK = 128
"""New tokens from which a sequence is attended to alone, and without a mask if nothing but order hides keys: for fewer,
putting the parts before and within the chunk together costs more than the scores that a mask computes in vain (64
tokens: 6 %; even at 128; for 1024 of 1024 it saves a third)."""
SIMILAR = 0.75
"""Sequences of a group have at least this share of the keys of its longest, ..."""
PADDING_BYTES = 256 << 10
"""... or are padded, all together, with so many bytes of keys at most: these take about as long as another call."""
GROUP_BYTES = 4 << 20
"""Gathered keys of a group: they are still in the processor's cache when they are read, and the allocator reuses their
memory (64 sequences of 2048 keys in one gather take 4 times as long as in groups, most of it for fresh memory)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step knows of its sequences; [s] are sequences, [t] new tokens of all of them (`paged_attention`)."""

    starts: Tensor
    lengths: Tensor
    pages: Tensor
    positions: Tensor
    visible: Tensor

    @property
    def is_tree(self) -> bool:
        """Whether new tokens are told which of the new they see; one column would say that a lone one sees itself."""
        return self.visible.shape[1] > 1

    def tells(self, new: int) -> bool:
        """Whether a sequence with so many new tokens is told: one with more than there are columns is a plain chunk."""
        return self.is_tree and new <= self.visible.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return self.starts, self.lengths, self.pages, self.positions, self.visible


@dataclass(frozen=True, slots=True)
class Options:
    """What the layout depends on besides, which is the same for most layers."""

    page_size: int
    window: int
    sharing: int
    """Query heads that share a head of keys."""
    key_bytes: int
    """Of one key, all heads together."""
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that are attended to in one call: b of them with n new tokens and up to m keys each."""

    tokens: Tensor | slice
    """Their new tokens [b n]."""
    pages: Tensor
    """What is gathered of the caches [b p]."""
    sequences: int
    num_keys: int
    """m: of what is gathered of each sequence, the first so many are keys of the longest."""
    unwritten: Tensor | None
    """Numbers of gathered slots (of [b p page_size]) that hold no key of the sequence, but what others left there."""
    mask: Tensor | None
    """Added to the scores: [b, 1, sharing * n or 1, m], [1, 1, n, m] of a long chunk; None: all is seen, or, by a long
    chunk, all up to itself."""
    query_start: int
    """The number of the first query among the keys, where it is a long chunk."""
    is_long_chunk: bool

    def to(self, device: torch.device) -> "Group":
        """The same on a device."""
        names = ("tokens", "pages", "unwritten", "mask")
        moved = {name: getattr(self, name) for name in names}
        return replace(self, **{key: x.to(device) for key, x in moved.items() if isinstance(x, Tensor)})


@dataclass(frozen=True, slots=True)
class _Sequence:
    number: int
    start: int
    """Of its new tokens."""
    new: int
    length: int
    first_page: int
    """The first that holds a key that is in a window of its new tokens."""
    span: int
    """Keys from there on."""


def layout(step: Step, options: Options) -> tuple[Group, ...]:
    """The groups of a step, each new token in one of them; waits for the device."""
    device, step = step.starts.device, Step(*(tensor.cpu() for tensor in step.tensors))
    sequences = sorted(_sequences(step, options), key=lambda one: (-one.new, -one.span))
    groups = [_group(step, options, chosen) for chosen in _similar(sequences, options)]
    return tuple(group.to(device) for group in groups)


def _sequences(step: Step, options: Options) -> Iterator[_Sequence]:
    starts, lengths = step.starts.tolist(), step.lengths.tolist()
    positions = step.positions.tolist() if options.window else []
    for number, length in enumerate(lengths):
        start, stop = starts[number : number + 2]
        new = stop - start
        if not new:
            continue
        first_page = 0
        if options.window:
            earliest = min(min(positions[start:stop]) - options.window + 1, length - new)
            first_page = max(0, earliest) // options.page_size
        yield _Sequence(number, start, new, length, first_page, length - first_page * options.page_size)


def _similar(sequences: Sequence[_Sequence], options: Options) -> Iterator[list[_Sequence]]:
    """Groups of sequences that come sorted, the longest first."""
    group: list[_Sequence] = []
    padding = 0
    for one in sequences:
        if group:
            padding += group[0].span - one.span
            if not _joins(group, one, padding, options):
                yield group
                group, padding = [], 0
        group.append(one)
    if group:
        yield group


def _joins(group: Sequence[_Sequence], one: _Sequence, padding: int, options: Options) -> bool:
    """Whether a sequence goes with a group, in which so many keys are padding then."""
    longest = group[0]
    if one.new != longest.new or one.new >= LONG_CHUNK:
        return False
    if (len(group) + 1) * longest.span * options.key_bytes > GROUP_BYTES:
        return False
    return one.span >= SIMILAR * longest.span or padding * options.key_bytes <= PADDING_BYTES


def _group(step: Step, options: Options, chosen: Sequence[_Sequence]) -> Group:
    """The group of sequences of which the first is the longest; in it they lie in the order of the batch."""
    longest, chosen = chosen[0], sorted(chosen, key=attrgetter("number"))
    is_even = all(one.span == longest.span for one in chosen)
    is_long_chunk = longest.new >= LONG_CHUNK
    is_plain = not options.window and not step.tells(longest.new)
    is_unmasked = is_plain and (is_long_chunk or (is_even and longest.new == 1))
    return Group(
        tokens=_tokens(chosen),
        pages=_pages(step, options, chosen, longest.span),
        sequences=len(chosen),
        num_keys=longest.span,
        unwritten=None if is_even else _unwritten(options, chosen, longest.span),
        mask=None if is_unmasked else _mask(step, options, chosen, longest.span),
        query_start=longest.span - longest.new,
        is_long_chunk=is_long_chunk,
    )


def _tokens(chosen: Sequence[_Sequence]) -> Tensor | slice:
    new, first = chosen[0].new, chosen[0].start
    if all(one.start == first + new * place for place, one in enumerate(chosen)):
        return slice(first, first + new * len(chosen))
    return (torch.tensor([one.start for one in chosen])[:, None] + torch.arange(new)).flatten()


def _pages(step: Step, options: Options, chosen: Sequence[_Sequence], span: int) -> Tensor:
    """Behind its own pages a shorter sequence repeats its first, all of whose slots hold keys, if there is a second."""
    columns = torch.arange(-(-span // options.page_size))
    counts = torch.tensor([-(-one.span // options.page_size) for one in chosen])[:, None]
    first = torch.tensor([one.first_page for one in chosen])[:, None]
    rows = torch.tensor([one.number for one in chosen])[:, None]
    return step.pages[rows, first + columns.where(columns < counts, 0)].flatten()


def _unwritten(options: Options, chosen: Sequence[_Sequence], span: int) -> Tensor:
    """What a mask would hide if it were finite: an infinity of another sequence is none of this one's."""
    slots = torch.arange(-(-span // options.page_size) * options.page_size)
    spans = torch.tensor([one.span for one in chosen])[:, None]
    is_repeated = slots // options.page_size * options.page_size >= spans
    written = torch.where(is_repeated, slots % options.page_size, slots) < spans
    return (~written).flatten().nonzero().flatten()


def _mask(step: Step, options: Options, chosen: Sequence[_Sequence], num_keys: int) -> Tensor:
    """What is added to the scores of n new tokens; of a short chunk, for each of the query heads that share keys."""

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values)[:, None, None]

    new = chosen[0].new
    keys = column([one.first_page * options.page_size for one in chosen]) + torch.arange(num_keys)
    earlier = column([one.length - one.new for one in chosen])
    starts, lengths = column([one.start for one in chosen]), column([one.length for one in chosen])
    queries = torch.arange(new)[:, None]
    number = (keys - earlier).clamp(0, new - 1)  # of a new key, among the new
    if step.tells(new):
        seen = step.visible[starts + queries, number] | (keys < earlier)
    else:
        seen = keys <= earlier + queries
    if options.window:
        key_positions = torch.where(keys < earlier, keys, step.positions[starts + number])
        seen &= key_positions > step.positions[starts + queries] - options.window
    seen = seen & (keys < lengths)
    mask = torch.zeros(seen.shape, dtype=options.dtype).masked_fill_(~seen, float("-inf"))
    rows = 1 if new == 1 or new >= LONG_CHUNK else options.sharing
    return mask.repeat(1, rows, 1).unsqueeze(1)


@dataclass(frozen=True)
class _Kept:
    step: Step
    layouts: dict[Options, tuple[Group, ...]] = field(default_factory=dict)


class LayoutOfLastStep:
    """Layouts of the step that was asked for last.

    The tensors are compared by what they hold, not by identity: that takes a few microseconds, and it is right also
    where one is overwritten between steps, which in inference mode no version counter would tell.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def of(self, step: Step, options: Options) -> tuple[Group, ...]:
        """As `layout`."""
        kept = self._kept
        if kept is None or not all(map(torch.equal, kept.step.tensors, step.tensors)):
            kept = _Kept(Step(*(tensor.clone() for tensor in step.tensors)))
            self._kept = kept
        if options not in kept.layouts:
            kept.layouts[options] = layout(step, options)
        return kept.layouts[options]
