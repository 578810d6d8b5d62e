"""Standard models: small ones whose operators, forward, backward and update, are a sample of each class."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Transformer(nn.Module):
    """A layer of a transformer between its embedding and its loss."""

    def __init__(self, vocab: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocab, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss of predicting `targets` [batch, seq] from `tokens` [batch, seq]."""
        x = self.embed(tokens)
        normed = self.norm_1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


class Convolutions(nn.Module):
    """Two convolutions of images, and a number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """A number from images `x` [batch, channels, height, width]."""
        return self.second(F.relu(self.first(x))).square().mean()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the standard models."""

    widths: tuple[int, ...]
    """Of transformers."""
    tokens: tuple[int, int]
    """Batch and sequence."""
    channels: tuple[int, ...]
    """Of convolutions."""
    image: tuple[int, int]
    """Batch, and height and width."""


SIZES = {
    ("cpu", True): Sizes((64, 256), (2, 128), (16, 64), (2, 32)),
    ("cpu", False): Sizes((64, 256, 512, 1024), (4, 256), (16, 64, 128), (4, 56)),
    ("cuda", True): Sizes((256, 2048), (4, 1024), (64, 256), (16, 56)),
    ("cuda", False): Sizes((256, 1024, 4096, 8192), (4, 2048), (64, 256, 512), (32, 56)),
}
"""By type of device, and whether it should be quick."""
HEAD_WIDTH = 64
VOCAB_PER_WIDTH = 8


def standard_models(sizes: Sizes) -> Iterator[tuple[Callable[[], nn.Module], tuple[Tensor, ...]]]:
    """Ways to build a model, with its example inputs."""
    for width in sizes.widths:
        vocab = VOCAB_PER_WIDTH * width
        tokens = torch.zeros(sizes.tokens, dtype=torch.long)
        yield partial(Transformer, vocab, width, max(1, width // HEAD_WIDTH)), (tokens, tokens.clone())
    for channels in sizes.channels:
        batch, edge = sizes.image
        yield partial(Convolutions, channels), (torch.zeros(batch, channels, edge, edge),)
