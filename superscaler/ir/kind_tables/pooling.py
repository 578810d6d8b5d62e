"""Windows over space: pooling, resampling, padding by what is there, patches. Space is whole; the rest goes along."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import RuleFunction, across

_VALUES = ("", "indices")


def _space(rank: int) -> RuleFunction:
    """The last `rank` dims are whole, and of another size in every tensor."""

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        full = len(reads[0])
        return across(full, set(range(full - rank, full)), reads, writes)

    return rule


def _grid_sampler(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x[n c *s], grid[n *t k] -> [n c *t]: every point of the grid looks anywhere in the image."""
    x, grid, out = _grid_terms(len(reads[0]) - 2)
    return f"{x}, {grid} -> {out}"


def _grid_sampler_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    x, grid, out = _grid_terms(len(reads[0]) - 2)
    wanted = [term for term, needed in zip((x, grid), operator.arguments[-1], strict=True) if needed]
    return f"{out}, {x}, {grid} -> {', '.join(wanted)}"


def _grid_terms(rank: int) -> tuple[str, str, str]:
    moved, swept = (" ".join(f"{letter}{i}{mark}" for i in range(rank)) for letter, mark in ("s!", "t "))
    return f"n c {moved}", f"n {swept} k!", f"n c {swept}"


_POOLS = {
    2: "avg_pool2d avg_pool2d_backward _adaptive_avg_pool2d _adaptive_avg_pool2d_backward"
    " adaptive_max_pool2d_backward max_pool2d_with_indices_backward max_unpool2d",
    3: "avg_pool3d avg_pool3d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward"
    " adaptive_max_pool3d_backward max_pool3d_with_indices_backward max_unpool3d",
}
_WITH_INDICES = {
    2: "max_pool2d_with_indices adaptive_max_pool2d",
    3: "max_pool3d_with_indices adaptive_max_pool3d",
}
_RESAMPLING = {
    1: "upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d",
    2: "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    3: "upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d",
}

POOLING = {
    **{f"aten.{name}": Kind(_space(rank)) for rank, names in _POOLS.items() for name in names.split()},
    **{f"aten.{name}": Kind(_space(rank), outputs=_VALUES) for rank, names in _WITH_INDICES.items() for name in names.split()},
    **{f"aten.{name}": Kind(_space(rank), flops_per_point=4) for rank, names in _RESAMPLING.items() for name in names.split()},
    **{f"aten.{name}_backward": Kind(_space(rank), shape_argument=2, flops_per_point=4)
       for rank, names in _RESAMPLING.items() for name in names.split()},
    **{f"aten.{way}_pad{rank}d{suffix}": Kind(_space(rank))
       for way in ("reflection", "replication") for rank in (1, 2, 3) for suffix in ("", "_backward")},
    "aten.grid_sampler_2d": Kind(_grid_sampler, flops_per_point=8),
    "aten.grid_sampler_3d": Kind(_grid_sampler, flops_per_point=16),
    "aten.grid_sampler_2d_backward": Kind(_grid_sampler_backward, outputs=("dx", "dgrid"), flops_per_point=16),
    "aten.grid_sampler_3d_backward": Kind(_grid_sampler_backward, outputs=("dx", "dgrid"), flops_per_point=32),
    "aten.im2col": Kind("*b c y! x! -> *b (c window!) place!"),
    "aten.col2im": Kind("*b (c window!) place! -> *b c y! x!"),
    "aten.pixel_shuffle": Kind("*b (c i! j!) h w -> *b c (h i) (w j)", "torch.pixel_shuffle", linear=True),
    "aten.pixel_unshuffle": Kind("*b c (h i!) (w j!) -> *b (c i j) h w", "torch.pixel_unshuffle", linear=True),
}  # fmt: skip
