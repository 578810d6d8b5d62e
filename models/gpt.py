"""GPT-2 and GPT-3: a decoder-only transformer in plain PyTorch; the sizes are in a table at the bottom.

Shape suffixes: B batch, S sequence, W width, N heads, H width of one head, V vocabulary.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GPT(nn.Module):
    """Tied embeddings, learned positions, `layers` blocks with the normalisation in front.

    Args:
        layers: Number of blocks.
        width: Width of the residual stream; a multiple of `heads`.
        heads: Attention heads per block.
        seq: Longest sequence, in tokens.
        vocab: Number of different tokens.
        dropout: Probability with which an element of the embeddings and of each block's two outputs is
            dropped. Attention weights are not dropped.
    """

    def __init__(
        self, *, layers: int, width: int, heads: int, seq: int, vocab: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(seq, width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self._initialise()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean loss over `targets` [batch, seq], or without them the logits [batch, seq, vocab].

        `tokens` [batch, seq] and `targets` are integers below `vocab`.
        """
        positions_S = torch.arange(tokens.shape[1], device=tokens.device)
        x_BSW = self.drop(self.wte(tokens) + self.wpe(positions_S))
        for block in self.h:
            x_BSW = block(x_BSW)
        logits_BSV = F.linear(self.ln_f(x_BSW), self.wte.weight)
        if targets is None:
            return logits_BSV
        return F.cross_entropy(logits_BSV.flatten(0, 1), targets.flatten())

    def _initialise(self) -> None:
        """Fill the parameters as GPT-2 does."""
        residual_std = 0.02 / sqrt(2 * len(self.h))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                adds_to_residual = name.endswith(("attn.proj", "mlp.down"))
                nn.init.normal_(module.weight, std=residual_std if adds_to_residual else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)


class Block(nn.Module):
    """Attention, then the two-layer perceptron, each added to the residual stream [batch, seq, width]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same."""
        x_BSW = x_BSW + self.drop(self.attn(self.ln_1(x_BSW)))
        return x_BSW + self.drop(self.mlp(self.ln_2(x_BSW)))


class Attention(nn.Module):
    """Causal self-attention over `heads` heads of equal width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        # A bias of k adds the same amount to all scores of a query, and softmax cancels it: its gradient
        # would be rounding noise, which Adam blows up to full-size steps.
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same; position s sees positions up to s."""
        q_BNSH, k_BNSH, v_BNSH = (
            linear(x_BSW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        y_BNSH = F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, is_causal=True)
        return self.proj(y_BNSH.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same."""
        return self.down(F.gelu(self.up(x_BSW), approximate="tanh"))


def build(size: str = "tiny", **overrides: float) -> GPT:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`, or set ``dropout``.

    Raises:
        ValueError: There is no such size.
    """
    return GPT(**_row(size, overrides))


def example_inputs(size: str = "tiny", batch: int = 8, **overrides: float) -> dict[str, Tensor]:
    """Make random ``tokens`` and ``targets``, both int64 [batch, seq], as the forward of `build` takes them.

    Raises:
        ValueError: There is no such size.
    """
    row = _row(size, overrides)
    return {
        "tokens": torch.randint(row["vocab"], (batch, row["seq"])),
        "targets": torch.randint(row["vocab"], (batch, row["seq"])),
    }


def _row(size: str, overrides: dict[str, float]) -> dict:
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return {**SIZES[size], **overrides}


# GPT-2 as published by OpenAI. GPT-3 as in table 2.1 of its paper, with the head counts that divide the width
# and the vocabulary rounded up to a multiple of 1024.
SIZES = {
    "tiny": {"layers": 4, "width": 64, "heads": 4, "seq": 64, "vocab": 256},
    "bench": {"layers": 8, "width": 512, "heads": 8, "seq": 256, "vocab": 256},
    "small": {"layers": 12, "width": 768, "heads": 12, "seq": 1024, "vocab": 50257},
    "medium": {"layers": 24, "width": 1024, "heads": 16, "seq": 1024, "vocab": 50257},
    "large": {"layers": 36, "width": 1280, "heads": 20, "seq": 1024, "vocab": 50257},
    "xl": {"layers": 48, "width": 1600, "heads": 25, "seq": 1024, "vocab": 50257},
    "gpt3-1.3b": {"layers": 24, "width": 2048, "heads": 16, "seq": 2048, "vocab": 51200},
    "gpt3-2.7b": {"layers": 32, "width": 2560, "heads": 32, "seq": 2048, "vocab": 51200},
    "gpt3-6.7b": {"layers": 32, "width": 4096, "heads": 32, "seq": 2048, "vocab": 51200},
    "gpt3-13b": {"layers": 40, "width": 5120, "heads": 40, "seq": 2048, "vocab": 51200},
    "gpt3-175b": {"layers": 96, "width": 12288, "heads": 96, "seq": 2048, "vocab": 51200},
}
