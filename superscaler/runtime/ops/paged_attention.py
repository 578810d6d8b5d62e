"""Attention of the new tokens of many sequences to caches of keys and values that lie in pages.

A step brings a flat list of t new tokens of s sequences. Their keys and values are put in the caches first; then each
token attends to the earlier keys of its sequence and to the new ones before it, or, in a tree of tokens, to the new
ones it is told. On CUDA that is done by Triton kernels, which read the pages where they lie. Elsewhere pages are
gathered for groups of sequences (`superscaler.runtime.ops.paged_layout`) and attended to by torch's fused kernel.
"""

import os

import torch
from torch import Tensor

from superscaler.runtime.ops.attention import attention
from superscaler.runtime.ops.paged_layout import Group, LayoutOfLastStep, Options, Step

_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton kernels are asked for without a GPU; Triton, too, reads it once."""
_FEW_HEADS = 3
"""Query heads up to which one bfloat16 query each is sooner done head by head on a processor with a matrix unit."""
_last_step = LayoutOfLastStep()


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    starts: Tensor,
    lengths: Tensor,
    pages: Tensor,
    positions: Tensor,
    visible: Tensor,
    *,
    scale: float,
    page_size: int,
    window: int = 0,
) -> Tensor:
    """Write the new keys and values into the caches, and attend to those of each token's own sequence.

    A token without a key to look at gets zeros. Calls with equal `starts`, `lengths`, `pages`, `positions` and
    `visible`, as the layers of a model make them, share what follows from these: off CUDA it is worked out by the
    first call and kept until another step asks. On CUDA nothing waits for the device; only float64, which the
    kernels do not compute in, goes the way of other devices.

    Args:
        q: Queries of the new tokens [1, h, t, d].
        k: Their keys [1, g, t, d]; h is a multiple of g, and query heads in a row share a head of keys and values.
        v: Their values [1, g, t, e].
        keys: The cache of keys [slots, g, d], in whole pages, written in place.
        values: The cache of values [slots, g, e], likewise.
        slots: Where in the caches each new token goes [t].
        starts: Sequence i has the new tokens starts[i] to starts[i + 1] - 1 [s + 1].
        lengths: Keys of each sequence, the new ones included, which are the last [s].
        pages: Pages of each sequence in order, filled up with any page [s, p]: key number i lies in slot
            ``pages[i // page_size] * page_size + i % page_size``.
        positions: The position of each new token in its sequence; that of an earlier key is its number [t].
        visible: Whether a new token sees new token j of its sequence [t, w]. In a sequence with more than w new tokens,
            and with w < 2 in any, it sees those up to itself.
        scale: What scores are multiplied by.
        page_size: Slots of a page.
        window: A token sees only keys at positions greater than its own less this; 0: all.

    Returns:
        The output [1, h, t, e].
    """
    assert q.shape[1] % k.shape[1] == 0, (q.shape, k.shape)
    assert keys.shape[0] % page_size == 0, (keys.shape, page_size)
    step = Step(starts, lengths, pages, positions, visible)
    if q.dtype != torch.float64 and (q.is_cuda or _IS_INTERPRETED):
        # Triton is there where CUDA is, and only there
        import superscaler.runtime.ops.paged_attention_triton as kernels

        kernels.append(k, v, keys, values, slots)
        return kernels.attend(q, keys, values, step, scale=scale, page_size=page_size, window=window)
    keys.index_copy_(0, slots, k[0].transpose(0, 1))
    values.index_copy_(0, slots, v[0].transpose(0, 1))
    options = Options(
        page_size=page_size, window=window, sharing=q.shape[1] // k.shape[1],
        key_bytes=keys[0].numel() * keys.element_size(), dtype=q.dtype,
    )  # fmt: skip
    queries, groups = q[0].transpose(0, 1), _last_step.of(step, options)
    if len(groups) == 1 and isinstance(groups[0].tokens, slice):  # all tokens, in order
        out = _attend(queries, keys, values, groups[0], options, scale)
    else:
        out = q.new_empty(q.shape[2], q.shape[1], v.shape[3])
        for group in groups:
            tokens = group.tokens
            own = queries[tokens] if isinstance(tokens, slice) else queries.index_select(0, tokens)
            out[tokens] = _attend(own, keys, values, group, options, scale)
    return out.transpose(0, 1).unsqueeze(0)


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, group: Group, options: Options, scale: float
) -> Tensor:
    """The output of one group [b n, h, e], for its queries [b n, h, d].

    Query heads that share keys become rows of one head, so that a key is read, and in bfloat16 packed for the
    processor's matrix unit, once for all of them. Measured for 8 heads of 64 on 4 of keys (2 cores, AVX512), one new
    token for each of 8 sequences of 256 keys, it takes in bfloat16 a fifth of the time of `enable_gqa` and two fifths
    of that of two ``matmul`` around a softmax; in float32, on one core, nine tenths of the first. Sequence after
    sequence takes two to three times as long, and for 64 sequences of 64 keys six times. With a matrix unit (AMX), a
    single row is multiplied without packing: two heads of one bfloat16 query each take two thirds of the time apart,
    four as long as together, eight half as long again.
    """
    k, v = (_gather(cache, group, options.page_size) for cache in (keys, values))
    if group.is_long_chunk:
        q, mask, start = queries.transpose(0, 1).unsqueeze(0), group.mask, group.query_start
        out, _ = attention(q, k, v, mask, causal=mask is None, scale=scale, query_start=start)
        return out[0].transpose(0, 1)
    if len(queries) == group.sequences and _is_sooner_apart(options):
        return attention(queries.unsqueeze(2), k, v, group.mask, causal=False, scale=scale)[0].squeeze(2)
    if len(queries) == group.sequences:
        rows = queries.unflatten(1, (keys.shape[1], options.sharing))
        return attention(rows, k, v, group.mask, causal=False, scale=scale)[0].flatten(1, 2)
    apart = queries.unflatten(0, (group.sequences, -1)).unflatten(2, (keys.shape[1], options.sharing))
    rows = apart.permute(0, 2, 3, 1, 4).flatten(2, 3)
    out, _ = attention(rows, k, v, group.mask, causal=False, scale=scale)
    heads = out.unflatten(2, (options.sharing, -1)).permute(0, 3, 1, 2, 4)
    return heads.flatten(2, 3).flatten(0, 1)


def _is_sooner_apart(options: Options) -> bool:
    is_few = options.sharing <= _FEW_HEADS and options.dtype == torch.bfloat16
    return is_few and torch.cpu._is_amx_tile_supported()


def _gather(cache: Tensor, group: Group, page_size: int) -> Tensor:
    """The keys or values of a group [b, g, m, d]."""
    slots = cache.unflatten(0, (-1, page_size)).index_select(0, group.pages).flatten(0, 1)
    if group.unwritten is not None:
        slots.index_fill_(0, group.unwritten, 0)
    return slots.unflatten(0, (group.sequences, -1))[:, : group.num_keys].transpose(1, 2)
