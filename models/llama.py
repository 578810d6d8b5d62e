"""Llama 2 and Llama 3: a decoder-only transformer with rotary positions, shared key-value heads and a gated perceptron.

Plain PyTorch; the sizes are in a table at the bottom. Shape suffixes: B batch, S sequence, W width, N heads,
K key-value heads, G heads that share one of them, H width of one head, R half of it, V vocabulary.
"""

from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Llama(nn.Module):
    """`layers` blocks with the normalisation in front; the embedding and the head are two matrices.

    Args:
        layers: Number of blocks.
        width: Width of the residual stream; a multiple of `heads`.
        heads: Heads of the queries.
        kv_heads: Heads of the keys and values; each serves `heads / kv_heads` heads of the queries.
        inner: Width inside the perceptron.
        seq: Length of the sequences `example_inputs` makes; the model itself takes any.
        vocab: Number of different tokens.
        theta: Base of the rotary frequencies.
        eps: Added to the mean square in normalisations.
    """

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        kv_heads: int,
        inner: int,
        seq: int,
        vocab: int,
        theta: float = 10000.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise ValueError(f"width {width}, heads {heads} and kv_heads {kv_heads} do not divide each other")
        self.head_width = width // heads
        self.theta = theta
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Block(width, heads, kv_heads, inner, eps) for _ in range(layers))
        self.norm = RMSNorm(width, eps)
        self.head = nn.Linear(width, vocab, bias=False)
        self._initialise()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean loss over `targets` [batch, seq], or without them the logits [batch, seq, vocab].

        `tokens` [batch, seq] and `targets` are integers below `vocab`.
        """
        x_BSW = self.embed(tokens)
        rotation = rotary_table(tokens.shape[1], self.head_width, self.theta, like=x_BSW)
        for block in self.layers:
            x_BSW = block(x_BSW, *rotation)
        logits_BSV = self.head(self.norm(x_BSW))
        if targets is None:
            return logits_BSV
        return F.cross_entropy(logits_BSV.flatten(0, 1), targets.flatten())

    def _initialise(self) -> None:
        """Normal values of 0.02; what is added to the residual stream starts smaller, as in GPT-2."""
        residual_std = 0.02 / sqrt(2 * len(self.layers))
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                adds_to_residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=residual_std if adds_to_residual else 0.02)


class Block(nn.Module):
    """Attention, then the gated perceptron, each added to the residual stream [batch, seq, width]."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(width, eps)
        self.attn = Attention(width, heads, kv_heads)
        self.norm_2 = RMSNorm(width, eps)
        self.mlp = MLP(width, inner)

    def forward(self, x_BSW: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same."""
        x_BSW = x_BSW + self.attn(self.norm_1(x_BSW), cos_SR, sin_SR)
        return x_BSW + self.mlp(self.norm_2(x_BSW))


class Attention(nn.Module):
    """Causal self-attention with rotary positions; `heads / kv_heads` heads share keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.shared_by = heads // kv_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BSW: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same; position s sees positions up to s."""
        q_BNSH, k_BKSH, v_BKSH = (
            linear(x_BSW).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        q_BNSH, k_BKSH = (rotate(x_BNSH, cos_SR, sin_SR) for x_BNSH in (q_BNSH, k_BKSH))
        k_BNSH, v_BNSH = (
            x_BKSH.unsqueeze(2).expand(-1, -1, self.shared_by, -1, -1).flatten(1, 2)
            for x_BKSH in (k_BKSH, v_BKSH)
        )
        y_BNSH = F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, is_causal=True)
        return self.proj(y_BNSH.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """A linear layer gated by SiLU of another, and a third back to the width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [batch, seq, width] to the same."""
        return self.down(F.silu(self.gate(x_BSW)) * self.up(x_BSW))


class RMSNorm(nn.Module):
    """Divide by the root of the mean square over the last dim, at least in single precision, and scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BSW: Tensor) -> Tensor:
        """Map [..., width] to the same."""
        wide_BSW = x_BSW.to(torch.promote_types(x_BSW.dtype, torch.float32))
        scale_BS1 = torch.rsqrt(wide_BSW.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide_BSW * scale_BS1).to(x_BSW.dtype)


def rotary_table(seq: int, head_width: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of each position and pair of elements, both [seq, head_width / 2]."""
    options = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
    frequencies_R = torch.exp(torch.arange(0, head_width, 2, **options) * (-log(theta) / head_width))
    angles_SR = torch.arange(seq, **options).unsqueeze(1) * frequencies_R
    return angles_SR.cos().to(like.dtype), angles_SR.sin().to(like.dtype)


def rotate(x_BNSH: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Turn each pair (element i, element i + H/2) by the angle of its position."""
    a_BNSR, b_BNSR = x_BNSH.unflatten(-1, (2, -1)).unbind(-2)
    turned = (a_BNSR * cos_SR - b_BNSR * sin_SR, b_BNSR * cos_SR + a_BNSR * sin_SR)
    return torch.stack(turned, -2).flatten(-2)


def build(size: str = "tiny", **overrides: float) -> Llama:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`.

    Raises:
        ValueError: There is no such size.
    """
    return Llama(**_row(size, overrides))


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


# As in the published configurations; the sequence lengths are those of pre-training.
_LLAMA_2 = {"seq": 4096, "vocab": 32000}
_LLAMA_3 = {"seq": 8192, "vocab": 128256, "theta": 500000.0}
SIZES = {
    "tiny": {"layers": 4, "width": 64, "heads": 8, "kv_heads": 4, "inner": 128, "seq": 16, "vocab": 256},
    "bench": {"layers": 8, "width": 512, "heads": 8, "kv_heads": 4, "inner": 1376, "seq": 128, "vocab": 4096},
    "7b": {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 32, "inner": 11008, **_LLAMA_2},
    "13b": {"layers": 40, "width": 5120, "heads": 40, "kv_heads": 40, "inner": 13824, **_LLAMA_2},
    "70b": {"layers": 80, "width": 8192, "heads": 64, "kv_heads": 8, "inner": 28672, **_LLAMA_2},
    "llama3-1b": {"layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "inner": 8192, **_LLAMA_3},
    "llama3-8b": {"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "inner": 14336, **_LLAMA_3},
    "llama3-70b": {"layers": 80, "width": 8192, "heads": 64, "kv_heads": 8, "inner": 28672, **_LLAMA_3},
}
