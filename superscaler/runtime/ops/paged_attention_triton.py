"""Triton kernels of paged attention: they read keys and values where they lie, page by page.

One attention kernel does all: a program takes a block of the queries of one sequence, for the query heads that share
one head of keys, and runs over tiles of keys. With few queries (decoding) a block is small, and the keys are split over
several programs whose results a second kernel puts together, so that a few long sequences fill the device as well
(flash-decoding). The grid follows from shapes alone, so that nothing waits for what the device holds: there may be more
programs than blocks, and those that find none return.

Scores are kept in float32 and as exponents of 2. Letters: t new tokens, s sequences, h query heads, g heads of keys.
"""

# kernels are written in the language of Triton, whose types these are not
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from superscaler.runtime.ops.paged_layout import Step

_LOG2_E = 1.4426950408889634
_FEWEST_ROWS = 16
"""Rows of the smallest matrix product, and of a block of few queries."""
_MANY_ROWS = 64
"""Rows of a block of many queries."""
_TILE = 64
"""Keys of a tile."""
_PROGRAMS_PER_PROCESSOR = 4
"""Programs wanted on each multiprocessor before keys stop being split."""
_MOST_SPLITS = 32
_PRODUCTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""In what products take their operands; interpreted, in float32, for Triton's interpreter takes the bits of a bfloat16
for a number."""


def append(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Write k [1, g, t, d] and v [1, g, t, e] into the caches [slots, g, d] and [slots, g, e] at `slots` [t]."""
    heads, tokens = k.shape[1:3]
    if not tokens:
        return
    _append[tokens, 2](
        k, v, keys, values, slots, k.stride(1), k.stride(2), k.stride(3), v.stride(1), v.stride(2), v.stride(3),
        HEADS=heads, K_WIDTH=k.shape[3], V_WIDTH=v.shape[3],
        BLOCK=triton.next_power_of_2(heads * max(k.shape[3], v.shape[3])),
    )  # fmt: skip


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Step,
    *,
    scale: float,
    page_size: int,
    window: int,
    splits: int | None = None,
) -> Tensor:
    """Attention of q [1, h, t, d] to what the caches hold (`paged_attention`) [1, h, t, e].

    Args:
        splits: Programs that share the keys of a block of few queries, a power of 2; None: enough to fill the device.
    """
    heads, tokens = q.shape[1:3]
    out = q.new_empty(tokens, heads, values.shape[2])
    if tokens:
        sharing = heads // keys.shape[1]
        few = max(1, _FEWEST_ROWS // sharing)
        call = _Call(q, keys, values, out, step, scale * _LOG2_E, page_size, window)
        if tokens <= len(step.lengths):
            call.run(_FEWEST_ROWS, splits, 1, tokens)
        else:
            # the first run gives zeros for the tokens of longer chunks, which the second overwrites
            call.run(_FEWEST_ROWS, splits, 1, few)
            call.run(_MANY_ROWS, 1, few + 1, tokens)
    return out.transpose(0, 1).unsqueeze(0)


class _Call:
    """Runs of the kernel over the same tensors."""

    def __init__(
        self, q: Tensor, keys: Tensor, values: Tensor, out: Tensor, step: Step,
        scale: float, page_size: int, window: int,
    ) -> None:  # fmt: skip
        self.q, self.keys, self.values, self.out, self.step = q, keys, values, out, step
        self.scale, self.page_size, self.window = scale, page_size, window

    def run(self, rows: int, splits: int | None, fewest: int, most: int) -> None:
        """Attend, for sequences with `fewest` to `most` new tokens, in blocks of about `rows` queries and heads."""
        step, (_, heads, tokens, width) = self.step, self.q.shape
        groups, value_width = self.values.shape[1:]
        sharing = heads // groups
        rows = max(rows, triton.next_power_of_2(sharing))
        block = rows // sharing
        blocks = tokens // block + len(step.lengths)
        splits = splits or self._splits(blocks * groups)
        partial, sums = self.out, self.out
        if splits > 1:
            partial = self.q.new_empty(tokens, heads, splits, value_width, dtype=torch.float32)
            sums = self.q.new_empty(tokens, heads, splits, dtype=torch.float32)
            if most < tokens:
                sums.fill_(-math.inf)
        _attend[blocks, groups, splits](
            self.q, self.keys, self.values, self.out, partial, sums,
            step.starts, step.lengths, step.pages, step.positions, step.visible,
            len(step.lengths), self.q.stride(1), self.q.stride(2), self.q.stride(3), step.pages.stride(0),
            step.visible.stride(0), step.visible.shape[1], self.scale, fewest, most,
            SHARING=sharing, WIDTH=width, VALUE_WIDTH=value_width,
            BLOCK_WIDTH=max(16, triton.next_power_of_2(width)),
            BLOCK_VALUE_WIDTH=max(16, triton.next_power_of_2(value_width)),
            ROWS=rows, BLOCK=block, TILE=_TILE, PAGE_SIZE=self.page_size, WINDOW=self.window,
            IS_TREE=step.is_tree, SPLITS=splits,
            PRODUCT=_PRODUCTS[self.q.dtype] if self.q.is_cuda else tl.float32,
            PRECISION="ieee" if self.q.dtype == torch.float32 else "tf32",
        )  # fmt: skip
        if splits > 1:
            _put_together[tokens * heads,](
                partial, sums, self.out, VALUE_WIDTH=value_width,
                BLOCK_VALUE_WIDTH=triton.next_power_of_2(value_width), SPLITS=splits,
            )  # fmt: skip

    def _splits(self, programs: int) -> int:
        """How many programs share the keys of a block, so that all together fill the device."""
        if not self.q.is_cuda:
            return 1
        processors = torch.cuda.get_device_properties(self.q.device).multi_processor_count
        wanted = triton.cdiv(_PROGRAMS_PER_PROCESSOR * processors, programs)
        tiles = triton.cdiv(self.step.pages.shape[1] * self.page_size, _TILE)
        return triton.next_power_of_2(max(1, min(wanted, tiles // 2, _MOST_SPLITS)))


@triton.jit
def _append(
    k, v, keys, values, slots, k_head, k_token, k_element, v_head, v_token, v_element,
    HEADS: tl.constexpr, K_WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A token's keys (program 0 of the second axis) or values, of all heads, to its slot."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    element = tl.arange(0, BLOCK)
    if tl.program_id(1) == 0:
        inside = element < HEADS * K_WIDTH
        source = k + (element // K_WIDTH) * k_head + token * k_token + (element % K_WIDTH) * k_element
        tl.store(keys + slot * HEADS * K_WIDTH + element, tl.load(source, mask=inside), mask=inside)
    else:
        inside = element < HEADS * V_WIDTH
        source = v + (element // V_WIDTH) * v_head + token * v_token + (element % V_WIDTH) * v_element
        tl.store(values + slot * HEADS * V_WIDTH + element, tl.load(source, mask=inside), mask=inside)


@triton.jit
def _sequence_of(block_number, starts, num_sequences, BLOCK: tl.constexpr):
    """The sequence of a block of queries: sequence i begins with block number ``starts[i] // BLOCK + i``."""
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle) // BLOCK + middle <= block_number:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _attend(
    q, keys, values, out, partial, sums, starts, lengths, pages, positions, visible,
    num_sequences, q_head, q_token, q_element, pages_row, visible_row, tree_width, scale, fewest, most,
    SHARING: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    BLOCK_VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr, IS_TREE: tl.constexpr, SPLITS: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of one sequence, for the query heads of one head of keys, over one share of the keys.

    Rows are the pairs of a query and a head. With SPLITS > 1 the share's output goes to `partial` [t, h, SPLITS, e],
    and the logarithm of its sum of exponents to `sums` [t, h, SPLITS].
    """
    head_of_keys = tl.program_id(1)
    num_heads_of_keys = tl.num_programs(1)
    split = tl.program_id(2)
    sequence = _sequence_of(tl.program_id(0), starts, num_sequences, BLOCK)
    start = tl.load(starts + sequence)
    new = tl.load(starts + sequence + 1) - start
    first_query = (tl.program_id(0) - (start // BLOCK + sequence)) * BLOCK
    if first_query >= new:
        return
    if new < fewest:
        return
    if new > most:
        return
    length = tl.load(lengths + sequence)
    earlier = length - new

    row = tl.arange(0, ROWS)
    query = first_query + row // SHARING
    is_row = (row // SHARING < BLOCK) & (query < new)
    token = start + query
    head = head_of_keys * SHARING + row % SHARING
    column = tl.arange(0, BLOCK_WIDTH)
    value_column = tl.arange(0, BLOCK_VALUE_WIDTH)
    of_query = q + head[:, None] * q_head + token[:, None] * q_token + column[None, :] * q_element
    q_tile = tl.load(of_query, mask=is_row[:, None] & (column[None, :] < WIDTH), other=0.0).to(PRODUCT)

    first_key = earlier * 0
    end = length
    if not IS_TREE:
        end = tl.minimum(length, earlier + first_query + BLOCK)
    if WINDOW > 0:
        position = tl.load(positions + token, mask=is_row, other=2**62)
        first_key = tl.maximum(0, tl.minimum(earlier, tl.min(position, 0) - WINDOW + 1))
    first_tile = first_key // TILE
    per_split = tl.cdiv(tl.cdiv(end, TILE) - first_tile, SPLITS)
    first_tile += split * per_split
    end_tile = tl.minimum(first_tile + per_split, tl.cdiv(end, TILE))

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, BLOCK_VALUE_WIDTH], tl.float32)
    for tile in range(first_tile, end_tile):
        number = tile * TILE + tl.arange(0, TILE)
        is_key = number < length
        page = tl.load(pages + sequence * pages_row + number // PAGE_SIZE, mask=is_key, other=0)
        place = (page.to(tl.int64) * PAGE_SIZE + number % PAGE_SIZE) * num_heads_of_keys + head_of_keys
        of_key = keys + place[None, :] * WIDTH + column[:, None]
        k_tile = tl.load(of_key, mask=is_key[None, :] & (column[:, None] < WIDTH), other=0.0)
        scores = tl.dot(q_tile, k_tile.to(PRODUCT), input_precision=PRECISION) * scale

        new_number = number - earlier  # among the new keys
        is_new = (new_number >= 0) & is_key
        if IS_TREE:
            is_chunk = new + 0 * number > tree_width
            is_told = is_new & ~is_chunk
            flags = visible + token[:, None] * visible_row + new_number[None, :]
            seen_new = tl.load(flags, mask=is_row[:, None] & is_told[None, :], other=0) != 0
            seen_new = seen_new | (is_chunk[None, :] & (new_number[None, :] <= query[:, None]))
            seen = ((new_number < 0) & is_key)[None, :] | (is_new[None, :] & seen_new)
        else:
            seen = is_key[None, :] & (new_number[None, :] <= query[:, None])
        if WINDOW > 0:
            key_position = tl.load(positions + start + new_number, mask=is_new, other=0)
            key_position = tl.where(is_new, key_position, number)
            seen = seen & (key_position[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen & is_row[:, None], scores, float("-inf"))

        larger = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # a row that has seen nothing yet
        weights = tl.exp2(scores - base[:, None])
        kept = tl.exp2(largest - base)
        of_value = values + place[:, None] * VALUE_WIDTH + value_column[None, :]
        v_tile = tl.load(of_value, mask=is_key[:, None] & (value_column[None, :] < VALUE_WIDTH), other=0.0)
        total = total * kept + tl.sum(weights, 1)
        result = result * kept[:, None]
        result += tl.dot(weights.to(PRODUCT), v_tile.to(PRODUCT), input_precision=PRECISION)
        largest = larger

    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    of_row = token * (num_heads_of_keys * SHARING) + head
    is_result = is_row[:, None] & (value_column[None, :] < VALUE_WIDTH)
    if SPLITS == 1:
        to = out + of_row[:, None] * VALUE_WIDTH + value_column[None, :]
        tl.store(to, result.to(out.dtype.element_ty), mask=is_result)
    else:
        of_split = of_row * SPLITS + split
        tl.store(partial + of_split[:, None] * VALUE_WIDTH + value_column[None, :], result, mask=is_result)
        is_seen = total > 0.0
        logarithm = tl.where(is_seen, largest + tl.log2(tl.where(is_seen, total, 1.0)), float("-inf"))
        tl.store(sums + of_split, logarithm, mask=is_row)


@triton.jit
def _put_together(
    partial, sums, out, VALUE_WIDTH: tl.constexpr, BLOCK_VALUE_WIDTH: tl.constexpr, SPLITS: tl.constexpr
):
    """One row of the output from those over the shares of its keys, weighed by their sums of exponents."""
    row = tl.program_id(0).to(tl.int64)
    share = row * SPLITS + tl.arange(0, SPLITS)
    column = tl.arange(0, BLOCK_VALUE_WIDTH)
    inside = column < VALUE_WIDTH
    logarithm = tl.load(sums + share)
    largest = tl.max(logarithm, 0)
    weight = tl.exp2(logarithm - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(weight, 0)
    from_share = partial + share[:, None] * VALUE_WIDTH + column[None, :]
    results = tl.load(from_share, mask=(weight > 0.0)[:, None] & inside[None, :], other=0.0)
    result = tl.sum(results * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * VALUE_WIDTH + column, result.to(out.dtype.element_ty), mask=inside)
