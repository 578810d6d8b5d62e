"""Swin Transformer: attention in windows of an image, every second time shifted; plain PyTorch, sizes at the bottom.

Shape suffixes: B batch, Y rows and X columns of patches, C channels, W windows of an image, P patches of a
window, N heads, H width of one head. Queries are P, keys Q.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Swin(nn.Module):
    """Stages of blocks; between two stages four patches become one, with twice the channels.

    Args:
        image: Height and width of the images.
        patch: Height and width of a patch; divides `image`.
        window: Height and width of a window, in patches; divides the patches of every stage that has more.
        channels: Channels of the first stage.
        depths: Blocks per stage.
        heads: Attention heads per stage.
        classes: Number of classes.
        dropout: Probability with which an element of the embedding and of each block's outputs is dropped.
    """

    def __init__(
        self,
        *,
        image: int,
        patch: int,
        window: int,
        channels: int,
        depths: Sequence[int],
        heads: Sequence[int],
        classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = PatchEmbedding(patch, channels)
        self.drop = nn.Dropout(dropout)
        sides = [image // patch >> number for number in range(len(depths))]
        self.stages = nn.ModuleList(
            Stage(side, min(window, side), channels << number, depth, heads[number], number > 0, dropout)
            for number, (side, depth) in enumerate(zip(sides, depths, strict=True))
        )
        self.norm = nn.LayerNorm(channels << len(depths) - 1)
        self.head = nn.Linear(channels << len(depths) - 1, classes)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean loss over `targets` [batch], or without them the logits [batch, classes].

        `images` are [batch, 3, image, image], `targets` integers below `classes`.
        """
        x_BYXC = self.drop(self.embed(images))
        for stage in self.stages:
            x_BYXC = stage(x_BYXC)
        logits = self.head(self.norm(x_BYXC).mean((1, 2)))
        return logits if targets is None else F.cross_entropy(logits, targets)


class PatchEmbedding(nn.Module):
    """A linear layer of each patch, then a normalisation; the same as a convolution that steps by a patch."""

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(3 * patch * patch, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Map [batch, 3, height, width] to [batch, rows, columns, channels]."""
        batch, colours, height, width = images.shape
        patches = images.reshape(
            batch, colours, height // self.patch, self.patch, width // self.patch, self.patch
        )
        return self.norm(self.proj(patches.permute(0, 2, 4, 1, 3, 5).flatten(3)))


class Stage(nn.Module):
    """Blocks at one resolution, after a merging of patches except in the first stage."""

    def __init__(
        self, side: int, window: int, channels: int, depth: int, heads: int, merges: bool, dropout: float
    ) -> None:
        super().__init__()
        if side % window or channels % heads:
            raise ValueError(
                f"{side} patches are no multiple of the window {window}, or {channels} channels of {heads} heads"
            )
        self.window = window
        self.shift = window // 2 if window < side else 0
        self.merge = PatchMerging(channels // 2) if merges else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(window, self.shift if number % 2 else 0, channels, heads, dropout)
            for number in range(depth)
        )

    def forward(self, x_BYXC: Tensor) -> Tensor:
        """Map [batch, rows, columns, channels] to the same; with merging, from twice the side, half the channels."""
        x_BYXC = self.merge(x_BYXC)
        offsets_PQ = offsets(self.window, x_BYXC.device)
        apart_WPQ = apart(x_BYXC.shape[1], self.window, self.shift, x_BYXC.device)
        for block in self.blocks:
            x_BYXC = block(x_BYXC, offsets_PQ, apart_WPQ)
        return x_BYXC


class PatchMerging(nn.Module):
    """Each two by two patches become one: normalised, and mapped to half of their channels together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.proj = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        """Map [batch, rows, columns, channels] to [batch, rows / 2, columns / 2, 2 channels]."""
        batch, rows, columns, channels = x_BYXC.shape
        fours = x_BYXC.reshape(batch, rows // 2, 2, columns // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.proj(self.norm(fours.flatten(3)))


class Block(nn.Module):
    """Attention in windows that lie `shift` patches down and right, then the perceptron, each added."""

    def __init__(self, window: int, shift: int, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm_1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(window, channels, heads)
        self.norm_2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BYXC: Tensor, offsets_PQ: Tensor, apart_WPQ: Tensor) -> Tensor:
        """Map [batch, rows, columns, channels] to the same.

        Args:
            x_BYXC: The patches.
            offsets_PQ: As `offsets` makes it.
            apart_WPQ: As `apart` makes it.
        """
        batch, rows, columns, channels = x_BYXC.shape
        y_BYXC = self.norm_1(x_BYXC)
        if self.shift:
            y_BYXC = y_BYXC.roll((-self.shift, -self.shift), (1, 2))
        grid = (rows // self.window, self.window, columns // self.window, self.window)
        y_BWPC = y_BYXC.reshape(batch, *grid, channels).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        y_BWPC = self.attn(y_BWPC, offsets_PQ, apart_WPQ if self.shift else None)
        y_BYXC = y_BWPC.reshape(batch, grid[0], grid[2], grid[1], grid[3], channels).transpose(2, 3)
        y_BYXC = y_BYXC.reshape(batch, rows, columns, channels)
        if self.shift:
            y_BYXC = y_BYXC.roll((self.shift, self.shift), (1, 2))
        x_BYXC = x_BYXC + self.drop(y_BYXC)
        return x_BYXC + self.drop(self.mlp(self.norm_2(x_BYXC)))


class WindowAttention(nn.Module):
    """Attention within each window; a score depends also on how far apart two patches are, by a learned table."""

    def __init__(self, window: int, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        # Softmax cancels a bias of k, and its gradient would be rounding noise.
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)
        self.bias = nn.Embedding((2 * window - 1) ** 2, heads)

    def forward(self, x_BWPC: Tensor, offsets_PQ: Tensor, apart_WPQ: Tensor | None) -> Tensor:
        """Map [batch, windows, patches, channels] to the same."""
        q_BWNPH, k_BWNQH, v_BWNQH = (
            linear(x_BWPC).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for linear in (self.q, self.k, self.v)
        )
        scale = q_BWNPH.shape[-1] ** -0.5
        scores_BWNPQ = (q_BWNPH * scale) @ k_BWNQH.transpose(-2, -1) + self.bias(offsets_PQ).permute(2, 0, 1)
        if apart_WPQ is not None:
            scores_BWNPQ = scores_BWNPQ.masked_fill(apart_WPQ.unsqueeze(1), float("-inf"))
        y_BWNPH = scores_BWNPQ.softmax(-1) @ v_BWNQH
        return self.proj(y_BWNPH.transpose(2, 3).flatten(-2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.Linear(channels, 4 * channels)
        self.down = nn.Linear(4 * channels, channels)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        """Map [..., channels] to the same."""
        return self.down(F.gelu(self.up(x_BYXC)))


def offsets(window: int, device: torch.device) -> Tensor:
    """The row of the table of biases for each pair of patches of a window: their distance down and right."""
    place = torch.arange(window, device=device)
    rows_P = place.unsqueeze(1).expand(-1, window).flatten()
    columns_P = place.unsqueeze(0).expand(window, -1).flatten()
    down_PQ, right_PQ = (
        place_P.unsqueeze(1) - place_P.unsqueeze(0) + window - 1 for place_P in (rows_P, columns_P)
    )
    return down_PQ * (2 * window - 1) + right_PQ


def apart(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which pairs of patches of a shifted window [windows, patches, patches] come from opposite edges."""
    place = torch.arange(side, device=device)
    part_Y = (place >= side - window).long() + (place >= side - shift).long()
    part_YX = 3 * part_Y.unsqueeze(1) + part_Y
    windows = side // window
    part_WP = part_YX.reshape(windows, window, windows, window).transpose(1, 2).reshape(windows**2, window**2)
    return part_WP.unsqueeze(2) != part_WP.unsqueeze(1)


def build(size: str = "tiny", **overrides: float) -> Swin:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`, or set ``dropout``.

    Raises:
        ValueError: There is no such size.
    """
    return Swin(**_row(size, overrides))


def example_inputs(size: str = "tiny", batch: int = 8, **overrides: float) -> dict[str, Tensor]:
    """Make random ``images`` [batch, 3, image, image] and ``targets`` [batch].

    Raises:
        ValueError: There is no such size.
    """
    row = _row(size, overrides)
    return {
        "images": torch.randn(batch, 3, row["image"], row["image"]),
        "targets": torch.randint(row["classes"], (batch,)),
    }


def _row(size: str, overrides: dict[str, float]) -> dict:
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return {**SIZES[size], **overrides}


# swin-t to swin-l as in the paper (arXiv 2103.14030), for images of 224. The larger ones have the widths and
# depths in the examples of nnScaler, which continues SuperScaler (arXiv 2301.08984), at its resolution of 1536
# with windows of 48, where activations fill the memory; they are named after the parameters they have here.
_SMALL_IMAGES = {"image": 224, "patch": 4, "window": 7, "classes": 1000}
_LARGE_IMAGES = {"image": 1536, "patch": 4, "window": 48, "classes": 1000}
SIZES = {
    "tiny": {
        "image": 32, "patch": 4, "window": 4, "channels": 16, "depths": (2, 2), "heads": (2, 4), "classes": 10,
    },
    "bench": {
        "image": 512, "patch": 4, "window": 16, "channels": 64, "depths": (2, 2, 2), "heads": (8, 16, 32),
        "classes": 100,
    },
    "swin-t": {"channels": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), **_SMALL_IMAGES},
    "swin-s": {"channels": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), **_SMALL_IMAGES},
    "swin-b": {"channels": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), **_SMALL_IMAGES},
    "swin-l": {"channels": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), **_SMALL_IMAGES},
    "swin-355m": {"channels": 256, "depths": (2, 2, 18, 2), "heads": (8, 16, 32, 64), **_LARGE_IMAGES},
    "swin-1.8b": {"channels": 512, "depths": (2, 2, 26, 2), "heads": (16, 32, 64, 128), **_LARGE_IMAGES},
    "swin-2.6b": {"channels": 512, "depths": (2, 2, 42, 2), "heads": (16, 32, 64, 128), **_LARGE_IMAGES},
    "swin-5.9b": {"channels": 768, "depths": (2, 2, 42, 2), "heads": (24, 48, 96, 192), **_LARGE_IMAGES},
}  # fmt: skip
