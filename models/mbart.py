"""mBART: an encoder and a decoder that share one embedding, in plain PyTorch; the sizes are in a table at the bottom.

Shape suffixes: B batch, S source positions, T target positions, W width, N heads, H width of one head,
V vocabulary.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MBart(nn.Module):
    """Normalisation in front of each layer, learned positions, tied embeddings (scaled by the root of the width).

    Args:
        layers: Layers of the encoder, and as many of the decoder.
        width: Width of both residual streams; a multiple of `heads`.
        heads: Attention heads.
        inner: Width inside the perceptrons.
        seq: Longest source, and longest target, in tokens.
        vocab: Number of different tokens, of all languages together.
        dropout: Probability with which an element of the embeddings and of each layer's outputs is dropped.
    """

    def __init__(
        self, *, layers: int, width: int, heads: int, inner: int, seq: int, vocab: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.shared = nn.Embedding(vocab, width)
        self.encoder = Encoder(layers, width, heads, inner, seq, dropout)
        self.decoder = Decoder(layers, width, heads, inner, seq, dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, source: Tensor, shifted: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean loss over `targets` [batch, target], or without them the logits [batch, target, vocab].

        Args:
            source: Tokens of the source [batch, source].
            shifted: What the decoder has seen when it predicts each target: the targets, one to the right.
            targets: Tokens to predict.
        """
        scale = sqrt(self.shared.embedding_dim)
        encoded_BSW = self.encoder(self.shared(source) * scale)
        decoded_BTW = self.decoder(self.shared(shifted) * scale, encoded_BSW)
        logits_BTV = F.linear(decoded_BTW, self.shared.weight)
        if targets is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets.flatten())


class Encoder(nn.Module):
    """Positions, then layers that see the whole source."""

    def __init__(self, layers: int, width: int, heads: int, inner: int, seq: int, dropout: float) -> None:
        super().__init__()
        self.positions = Positions(seq, width)
        self.norm_in = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map embedded tokens [batch, source, width] to what the decoder attends to, of the same shape."""
        x_BSW = self.drop(self.norm_in(self.positions(x_BSW)))
        for layer in self.layers:
            x_BSW = layer(x_BSW)
        return self.norm_out(x_BSW)


class Decoder(nn.Module):
    """Positions, then layers that see earlier targets and the whole encoded source."""

    def __init__(self, layers: int, width: int, heads: int, inner: int, seq: int, dropout: float) -> None:
        super().__init__()
        self.positions = Positions(seq, width)
        self.norm_in = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x_BTW: Tensor, encoded_BSW: Tensor) -> Tensor:
        """Map embedded tokens [batch, target, width] to the same shape."""
        x_BTW = self.drop(self.norm_in(self.positions(x_BTW)))
        for layer in self.layers:
            x_BTW = layer(x_BTW, encoded_BSW)
        return self.norm_out(x_BTW)


class Positions(nn.Module):
    """Adds a learned vector per position; the first two rows of the table are unused, as in fairseq."""

    def __init__(self, seq: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(seq + 2, width)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same."""
        return x_BSW + self.table(torch.arange(2, x_BSW.shape[1] + 2, device=x_BSW.device))


class EncoderLayer(nn.Module):
    """Self-attention, then the perceptron, each added to the residual stream."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, inner)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, source, width] to the same."""
        normed_BSW = self.norm_1(x_BSW)
        x_BSW = x_BSW + self.drop(self.attn(normed_BSW, normed_BSW))
        return x_BSW + self.drop(self.mlp(self.norm_2(x_BSW)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, then the perceptron, each added to the residual stream."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=True)
        self.norm_2 = nn.LayerNorm(width)
        self.cross = Attention(width, heads)
        self.norm_3 = nn.LayerNorm(width)
        self.mlp = MLP(width, inner)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTW: Tensor, encoded_BSW: Tensor) -> Tensor:
        """Map [batch, target, width] to the same."""
        normed_BTW = self.norm_1(x_BTW)
        x_BTW = x_BTW + self.drop(self.attn(normed_BTW, normed_BTW))
        x_BTW = x_BTW + self.drop(self.cross(self.norm_2(x_BTW), encoded_BSW))
        return x_BTW + self.drop(self.mlp(self.norm_3(x_BTW)))


class Attention(nn.Module):
    """Attention of one sequence to another, or with `causal` of a sequence to its own past."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.q = nn.Linear(width, width)
        # Softmax cancels a bias of k, and its gradient would be rounding noise.
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTW: Tensor, seen_BSW: Tensor) -> Tensor:
        """Map [batch, target, width] to the same, from what is seen [batch, source, width]."""
        q_BNTH, k_BNSH, v_BNSH = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q(x_BTW), self.k(seen_BSW), self.v(seen_BSW))
        )
        y_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, is_causal=self.causal)
        return self.proj(y_BNTH.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same."""
        return self.down(F.gelu(self.up(x_BSW)))


def build(size: str = "tiny", **overrides: float) -> MBart:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`, or set ``dropout``.

    Raises:
        ValueError: There is no such size.
    """
    return MBart(**_row(size, overrides))


def example_inputs(size: str = "tiny", batch: int = 8, **overrides: float) -> dict[str, Tensor]:
    """Make random ``source``, ``shifted`` and ``targets``, all int64 [batch, seq].

    The first token of ``shifted`` is the last of ``targets``: mBART's targets end with the language, and
    decoding starts from it.

    Raises:
        ValueError: There is no such size.
    """
    row = _row(size, overrides)
    source, targets = torch.randint(row["vocab"], (2, batch, row["seq"]))
    return {"source": source, "shifted": targets.roll(1, -1), "targets": targets}


def _row(size: str, overrides: dict[str, float]) -> dict:
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return {**SIZES[size], **overrides}


# "large" is mBART-50 as published: 25 languages more than the first mBART, otherwise the same. "base" has the
# width and depth of BART-base. "mbart-500k" is the layers of "large" under the vocabulary of 500,000 words for
# which SuperScaler (arXiv 2301.08984) interlaces the embedding with the pipeline; the paper grows its models
# with the number of devices, to sizes that are not given here.
_LARGE = {"layers": 12, "width": 1024, "heads": 16, "inner": 4096, "seq": 1024}
SIZES = {
    "tiny": {"layers": 2, "width": 32, "heads": 4, "inner": 64, "seq": 12, "vocab": 96},
    "base": {"layers": 6, "width": 768, "heads": 12, "inner": 3072, "seq": 1024, "vocab": 250054},
    "large": {**_LARGE, "vocab": 250054},
    "mbart-500k": {**_LARGE, "vocab": 500000},
}
