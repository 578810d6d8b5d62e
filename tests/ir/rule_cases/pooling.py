"""Sample calls: windows over space."""

import torch

from tests.ir.rule_cases.samples import case, derived, real

SPACE = {1: (7,), 2: (6, 5), 3: (4, 5, 4)}
SMALL = {1: [3], 2: [3, 2], 3: [2, 3, 2]}
LARGE = {1: [9], 2: [8, 7], 3: [6, 5, 7]}


def pooled(rank, *options):
    """With a batch and channels, and without a batch."""
    return [case(real(*lead, *SPACE[rank]), *options) for lead in ((3, 2), (4,))]


def backward_of(forward, *shape, after=()):
    """The backward of a pooling that keeps indices, or of an average: gradient, input, options (, indices)."""

    def derive(draw):
        x = draw(*shape)
        results = getattr(torch.ops.aten, forward)(x, *after)
        y, indices = results if isinstance(results, tuple) else (results, None)
        options = [] if forward.startswith(("adaptive", "_adaptive")) else after
        return case(draw(*y.shape), x, *options, *([] if indices is None else [indices]))

    return derived(derive)


def window(rank):
    return [3] * rank, [2] * rank, [1] * rank


def resampled(rank, *options):
    return [case(real(3, 2, *SPACE[rank]), size[rank], *options) for size in (SMALL, LARGE)]


def resampled_backward(rank, *options):
    return [case(real(3, 2, *LARGE[rank]), LARGE[rank], [3, 2, *SPACE[rank]], *options)]


def padded(way, rank):
    widths = [1, 2, 1, 0, 2, 1][: 2 * rank]
    return [case(real(*lead, *SPACE[rank]), widths) for lead in ((3, 2), (4,))]


def padded_backward(way, rank):
    widths = [1, 2, 1, 0, 2, 1][: 2 * rank]
    return [backward_of(f"{way}_pad{rank}d", 3, 2, *SPACE[rank], after=[widths])]


def sampled(rank):
    return [case(real(3, 2, *SPACE[rank]), real(3, *SPACE[rank][::-1], rank), 0, 0, False)]


def sampled_backward(rank, wanted):
    grid = SPACE[rank][::-1]
    return case(real(3, 2, *grid), real(3, 2, *SPACE[rank]), real(3, *grid, rank), 0, 0, False, wanted)


def unpooled(draw, rank):
    y, indices = getattr(torch.ops.aten, f"max_pool{rank}d_with_indices")(draw(3, 2, *[4] * rank), [2] * rank)
    return case(y, indices, [4] * rank, *([[2] * rank, [0] * rank] if rank == 3 else []))


LINEAR = {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"}

CASES = {
    "aten.max_pool2d_with_indices": [*pooled(2, *window(2)), case(real(2, 4, 2, 2), [2, 2])],
    "aten.max_pool3d_with_indices": pooled(3, *window(3)),
    **{
        f"aten.max_pool{rank}d_with_indices_backward": [
            backward_of(f"max_pool{rank}d_with_indices", *lead, *SPACE[rank], after=[*window(rank), [1] * rank, False])
            for lead in ((3, 2), (4,))
        ]
        for rank in (2, 3)
    },
    **{f"aten.max_unpool{rank}d": [derived(lambda draw, r=rank: unpooled(draw, r))] for rank in (2, 3)},
    **{f"aten.avg_pool{rank}d": pooled(rank, *window(rank)) for rank in (2, 3)},
    **{
        f"aten.avg_pool{rank}d_backward": [
            backward_of(f"avg_pool{rank}d", 3, 2, *SPACE[rank], after=[*window(rank), False, True, None])
        ]
        for rank in (2, 3)
    },
    **{f"aten._adaptive_avg_pool{rank}d": pooled(rank, SMALL[rank]) for rank in (2, 3)},
    **{f"aten.adaptive_max_pool{rank}d": pooled(rank, SMALL[rank]) for rank in (2, 3)},
    **{
        f"aten.{name}_pool{rank}d_backward": [backward_of(f"{name}_pool{rank}d", 3, 2, *SPACE[rank], after=[SMALL[rank]])]
        for name in ("_adaptive_avg", "adaptive_max") for rank in (2, 3)
    },
    **{f"aten.{way}{rank}d": resampled(rank) for way in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3)},
    **{f"aten.{way}{rank}d_backward": resampled_backward(rank) for way in ("upsample_nearest", "_upsample_nearest_exact") for rank in (1, 2, 3)},
    **{f"aten.{name}": [*resampled(rank, False), *resampled(rank, True)] for rank, name in LINEAR.items()},
    **{f"aten.{name}_backward": resampled_backward(rank, False) for rank, name in LINEAR.items()},
    **{f"aten.{name}": resampled(2, False) for name in ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")},
    **{f"aten.{name}_backward": resampled_backward(2, False) for name in ("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")},
    **{f"aten.{way}_pad{rank}d": padded(way, rank) for way in ("reflection", "replication") for rank in (1, 2, 3)},
    **{f"aten.{way}_pad{rank}d_backward": padded_backward(way, rank) for way in ("reflection", "replication") for rank in (1, 2, 3)},
    **{f"aten.grid_sampler_{rank}d": sampled(rank) for rank in (2, 3)},
    **{
        f"aten.grid_sampler_{rank}d_backward": [sampled_backward(rank, wanted) for wanted in ([True, True], [False, True])]
        for rank in (2, 3)
    },
    "aten.im2col": [case(real(3, 2, 6, 5), [3, 2], [1, 1], [1, 0], [2, 1])],
    "aten.col2im": [case(real(3, 8, 20), [6, 5], [2, 2], [1, 1], [0, 0], [1, 1])],
    "aten.pixel_shuffle": [case(real(3, 8, 4, 3), 2), case(real(9, 2, 4), 3)],
    "aten.pixel_unshuffle": [case(real(3, 2, 4, 6), 2), case(real(2, 3, 9), 3)],
}  # fmt: skip
