"""Mixtral: Llama whose perceptrons are routed experts; plain PyTorch, the sizes are in a table at the bottom.

The experts' weights are one tensor [experts, in, out], so `experts` is an axis that can be cut over devices.
Every expert has room for a fixed number of tokens of each sequence: no shape depends on the data, and what one
sequence computes does not depend on the others of its batch, however the batch is cut.

Shape suffixes: B batch, S sequence, W width, N heads, K key-value heads, H width of one head, R half of it,
E experts, T choices of a token, C room of an expert, F width inside an expert, V vocabulary.
"""

from fractions import Fraction
from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MoE(nn.Module):
    """`layers` blocks of attention and routed experts, with the normalisation in front.

    Args:
        layers: Number of blocks.
        width: Width of the residual stream; a multiple of `heads`.
        heads: Heads of the queries.
        kv_heads: Heads of the keys and values; each serves `heads / kv_heads` heads of the queries.
        inner: Width inside an expert.
        experts: Number of experts of a block.
        choices: Experts that work on one token.
        seq: Length of the sequences `example_inputs` makes; the model itself takes any.
        vocab: Number of different tokens.
        room: Tokens of a sequence an expert takes, over the number it would take if all took the same. What is
            beyond its room passes the expert by; with `experts / choices` nothing is.
        balance: Weight of the loss that pulls experts to equal use.
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
        experts: int,
        choices: int,
        seq: int,
        vocab: int,
        room: float,
        balance: float = 0.02,
        theta: float = 1e6,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise ValueError(f"width {width}, heads {heads} and kv_heads {kv_heads} do not divide each other")
        if not 1 <= choices <= experts:
            raise ValueError(f"a token cannot choose {choices} of {experts} experts")
        self.head_width = width // heads
        self.balance = balance
        self.theta = theta
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(
            Block(width, heads, kv_heads, inner, experts, choices, room, eps) for _ in range(layers)
        )
        self.norm = RMSNorm(width, eps)
        self.head = nn.Linear(width, vocab, bias=False)
        self._initialise()

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Mean loss over `targets` [batch, seq], or without them the logits [batch, seq, vocab].

        `tokens` [batch, seq] and `targets` are integers below `vocab`. The loss includes that of balance.
        """
        x_BSW = self.embed(tokens)
        rotation = rotary_table(tokens.shape[1], self.head_width, self.theta, like=x_BSW)
        imbalances = []
        for block in self.layers:
            x_BSW, imbalance_B = block(x_BSW, *rotation)
            imbalances.append(imbalance_B)
        logits_BSV = self.head(self.norm(x_BSW))
        if targets is None:
            return logits_BSV
        imbalance = torch.stack(imbalances).mean()
        return F.cross_entropy(logits_BSV.flatten(0, 1), targets.flatten()) + self.balance * imbalance

    def _initialise(self) -> None:
        """Normal values of 0.02; what is added to the residual stream starts smaller, as in GPT-2."""
        residual_std = 0.02 / sqrt(2 * len(self.layers))
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                adds_to_residual = name.endswith(("attn.proj.weight", "experts.down"))
                nn.init.normal_(parameter, std=residual_std if adds_to_residual else 0.02)


class Block(nn.Module):
    """Attention, then the routed experts, each added to the residual stream [batch, seq, width]."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        inner: int,
        experts: int,
        choices: int,
        room: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(width, eps)
        self.attn = Attention(width, heads, kv_heads)
        self.norm_2 = RMSNorm(width, eps)
        self.router = Router(width, experts, choices, room)
        self.experts = Experts(width, inner, experts)

    def forward(self, x_BSW: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, Tensor]:
        """Map [batch, seq, width] to the same, and the imbalance of the experts per sequence [batch]."""
        x_BSW = x_BSW + self.attn(self.norm_1(x_BSW), cos_SR, sin_SR)
        y_BSW = self.norm_2(x_BSW)
        places_BSEC, weights_BSEC, imbalance_B = self.router(y_BSW)
        sent_BECW = torch.einsum("bsec,bsw->becw", places_BSEC, y_BSW)
        done_BECW = self.experts(sent_BECW)
        return x_BSW + torch.einsum("bsec,becw->bsw", weights_BSEC, done_BECW), imbalance_B


class Router(nn.Module):
    """Each token chooses experts, and gets a place in each while there is room; first come, first served."""

    def __init__(self, width: int, experts: int, choices: int, room: float) -> None:
        super().__init__()
        self.experts = experts
        self.choices = choices
        self.room = room
        self.gate = nn.Linear(width, experts, bias=False)

    def forward(self, x_BSW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens [batch, seq, width] to places, weights and the imbalance of each sequence [batch].

        Places [batch, seq, experts, room] are 1 where a token has that place of that expert, else 0; weights
        are the same times the token's weight for the expert.
        """
        scores_BSE = self.gate(x_BSW)
        shares_BSE = scores_BSE.softmax(-1, torch.promote_types(x_BSW.dtype, torch.float32))
        experts_E = torch.arange(self.experts, device=x_BSW.device)
        chosen_BST = shares_BSE.detach().topk(self.choices).indices
        picks_BSE = (chosen_BST.unsqueeze(-1) == experts_E).to(shares_BSE.dtype).sum(-2)
        kept_BSE = shares_BSE * picks_BSE
        weights_BSE = kept_BSE / kept_BSE.sum(-1, keepdim=True)
        share = Fraction(self.room).limit_denominator(1000) * self.choices / self.experts
        room = min(x_BSW.shape[1], -(-x_BSW.shape[1] * share.numerator // share.denominator))
        before_BSE = picks_BSE.cumsum(1) - picks_BSE
        places_C = torch.arange(room, device=x_BSW.device)
        places_BSEC = (before_BSE.unsqueeze(-1) == places_C).to(x_BSW.dtype) * picks_BSE.to(
            x_BSW.dtype
        ).unsqueeze(-1)
        imbalance_B = self.experts * (picks_BSE.mean(1) * shares_BSE.mean(1)).sum(-1)
        return places_BSEC, places_BSEC * weights_BSE.to(x_BSW.dtype).unsqueeze(-1), imbalance_B


class Experts(nn.Module):
    """Gated perceptrons of equal size; their weights are stacked, one matrix product computes all."""

    def __init__(self, width: int, inner: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, width, inner))
        self.up = nn.Parameter(torch.empty(experts, width, inner))
        self.down = nn.Parameter(torch.empty(experts, inner, width))

    def forward(self, x_BECW: Tensor) -> Tensor:
        """Map the tokens of each expert [batch, experts, room, width] to the same."""
        batch, _, room, _ = x_BECW.shape
        x_EXW = x_BECW.transpose(0, 1).flatten(1, 2)
        y_EXF = F.silu(torch.bmm(x_EXW, self.gate)) * torch.bmm(x_EXW, self.up)
        return torch.bmm(y_EXF, self.down).unflatten(1, (batch, room)).transpose(0, 1)


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


def build(size: str = "tiny", **overrides: float) -> MoE:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`.

    Raises:
        ValueError: There is no such size.
    """
    return MoE(**_row(size, overrides))


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


# mixtral-8x7b as published, but for `room`: it drops no token, and every expert would need room for all.
SIZES = {
    "tiny": {
        "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "inner": 48, "experts": 4, "choices": 2, "seq": 16,
        "vocab": 64, "room": 1.25,
    },
    "mixtral-8x7b": {
        "layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "inner": 14336, "experts": 8, "choices": 2,
        "seq": 4096, "vocab": 32000, "room": 1.25,
    },
}  # fmt: skip
