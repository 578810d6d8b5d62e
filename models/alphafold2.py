"""AlphaFold 2's Evoformer: an alignment of sequences and pairs of residues inform each other, again and again.

Plain PyTorch; the sizes are in a table at the bottom. Algorithms are numbered as in the supplement of Jumper et
al., Nature 596 (2021). Left out are the structure module, the templates and the stack of extra sequences.

Shape suffixes: B batch, S sequences of the alignment, I, J, K residues, M channels of the alignment, Z channels
of a pair, C and D channels inside, N heads, H width of one head. In attention A are the rows that do not see
each other, P and Q the places of one row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS_OF_RESIDUES = 23
"""Twenty amino acids, unknown, gap and mask."""


class AlphaFold2(nn.Module):
    """Embeds an alignment, runs the Evoformer on it several times, and predicts masked residues and distances.

    Args:
        blocks: Blocks of the Evoformer.
        msa_width: Channels of the alignment.
        pair_width: Channels of a pair of residues.
        msa_heads: Heads of attention within the alignment.
        pair_heads: Heads of attention among pairs.
        head_width: Width of one head.
        outer_width: Channels of the outer product.
        triangle_width: Channels of the triangle multiplications.
        sequences: Sequences of the alignments `example_inputs` makes; the model itself takes any.
        residues: Residues likewise.
        recycles: Passes without gradient whose result the last pass starts from.
        bins: Bins of distance to predict.
        dropout: Probability with which a row of an update of pairs is dropped; of the alignment, 3/5 of that.
    """

    def __init__(
        self,
        *,
        blocks: int,
        msa_width: int,
        pair_width: int,
        msa_heads: int,
        pair_heads: int,
        head_width: int,
        outer_width: int,
        triangle_width: int,
        sequences: int,
        residues: int,
        recycles: int,
        bins: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.recycles = recycles
        self.embed = InputEmbedding(msa_width, pair_width)
        self.recycle = Recycling(msa_width, pair_width)
        self.blocks = nn.ModuleList(
            Block(
                msa_width, pair_width, msa_heads, pair_heads, head_width, outer_width, triangle_width, dropout
            )
            for _ in range(blocks)
        )
        self.residue_head = nn.Linear(msa_width, KINDS_OF_RESIDUES)
        self.distance_head = nn.Linear(pair_width, bins)
        self._initialise()

    def forward(
        self,
        target: Tensor,
        msa: Tensor,
        residue_targets: Tensor | None = None,
        distance_targets: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of masked residues and distances, or without targets the logits of both.

        Args:
            target: Features of the sequence to fold [batch, residues, 22].
            msa: Features of the alignment, its first sequence the target [batch, sequences, residues, 49].
            residue_targets: The kind of each residue that was masked, else -100 [batch, sequences, residues].
            distance_targets: The bin of each pair's distance [batch, residues, residues].
        """
        m_BSIM, z_BIJZ = self.embed(target, msa)
        first_BIM, pairs_BIJZ = torch.zeros_like(m_BSIM[:, 0]), torch.zeros_like(z_BIJZ)
        with torch.no_grad():
            for _ in range(self.recycles):
                done_BSIM, pairs_BIJZ = self._evoformer(*self.recycle(m_BSIM, z_BIJZ, first_BIM, pairs_BIJZ))
                first_BIM = done_BSIM[:, 0]
        m_BSIM, z_BIJZ = self._evoformer(*self.recycle(m_BSIM, z_BIJZ, first_BIM, pairs_BIJZ))
        residues_BSIV = self.residue_head(m_BSIM)
        half_BIJV = self.distance_head(z_BIJZ)
        distances_BIJV = half_BIJV + half_BIJV.transpose(1, 2)
        if residue_targets is None or distance_targets is None:
            return residues_BSIV, distances_BIJV
        residue_loss = F.cross_entropy(residues_BSIV.flatten(0, 2), residue_targets.flatten())
        distance_loss = F.cross_entropy(distances_BIJV.flatten(0, 2), distance_targets.flatten())
        return 2.0 * residue_loss + 0.3 * distance_loss

    def _evoformer(self, m_BSIM: Tensor, z_BIJZ: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            m_BSIM, z_BIJZ = block(m_BSIM, z_BIJZ)
        return m_BSIM, z_BIJZ

    def _initialise(self) -> None:
        """Gates are open and what is added to a representation starts at zero; the rest keeps variances."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if not isinstance(module, nn.Linear):
                continue
            if "gate" in name or name.endswith(("out", "down")):
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.constant_(module.bias, 1.0 if "gate" in name else 0.0)


class InputEmbedding(nn.Module):
    """Algorithms 3 and 4: the two representations, from features and from distances along the chain."""

    reach = 32
    """Residues further apart along the chain than this are all alike."""

    def __init__(self, msa_width: int, pair_width: int) -> None:
        super().__init__()
        self.left = nn.Linear(22, pair_width)
        self.right = nn.Linear(22, pair_width)
        self.distance = nn.Embedding(2 * self.reach + 1, pair_width)
        self.target = nn.Linear(22, msa_width)
        self.msa = nn.Linear(49, msa_width)

    def forward(self, target: Tensor, msa: Tensor) -> tuple[Tensor, Tensor]:
        """Map features to [batch, sequences, residues, msa_width] and [batch, residues, residues, pair_width]."""
        places_I = torch.arange(target.shape[1], device=target.device)
        apart_IJ = places_I.unsqueeze(1) - torch.arange(target.shape[1], device=target.device)
        near_IJ = apart_IJ.clamp(-self.reach, self.reach) + self.reach
        pairs_BIJZ = self.left(target).unsqueeze(2) + self.right(target).unsqueeze(1)
        return self.msa(msa) + self.target(target).unsqueeze(1), pairs_BIJZ + self.distance(near_IJ)


class Recycling(nn.Module):
    """Algorithm 32, without the distances of predicted atoms: what the pass before found is added."""

    def __init__(self, msa_width: int, pair_width: int) -> None:
        super().__init__()
        self.norm_msa = nn.LayerNorm(msa_width)
        self.norm_pair = nn.LayerNorm(pair_width)

    def forward(
        self, m_BSIM: Tensor, z_BIJZ: Tensor, first_BIM: Tensor, pairs_BIJZ: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the first row and the pairs of the pass before to both representations."""
        is_first_S = (torch.arange(m_BSIM.shape[1], device=m_BSIM.device) == 0).to(m_BSIM.dtype)
        added_BSIM = is_first_S.unsqueeze(-1).unsqueeze(-1) * self.norm_msa(first_BIM).unsqueeze(1)
        return m_BSIM + added_BSIM, z_BIJZ + self.norm_pair(pairs_BIJZ)


class Block(nn.Module):
    """Algorithm 6: one block of the Evoformer."""

    def __init__(
        self,
        msa_width: int,
        pair_width: int,
        msa_heads: int,
        pair_heads: int,
        head_width: int,
        outer_width: int,
        triangle_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.row = RowAttention(msa_width, pair_width, msa_heads, head_width)
        self.column = ColumnAttention(msa_width, msa_heads, head_width)
        self.msa_transition = Transition(msa_width)
        self.outer = OuterProductMean(msa_width, pair_width, outer_width)
        self.triangle_out = TriangleMultiplication(pair_width, triangle_width, outgoing=True)
        self.triangle_in = TriangleMultiplication(pair_width, triangle_width, outgoing=False)
        self.triangle_start = TriangleAttention(pair_width, pair_heads, head_width)
        self.triangle_end = TriangleAttention(pair_width, pair_heads, head_width)
        self.pair_transition = Transition(pair_width)
        self.drop_msa_rows = SharedDropout(0.6 * dropout, dim=1)
        self.drop_rows = SharedDropout(dropout, dim=1)
        self.drop_columns = SharedDropout(dropout, dim=2)

    def forward(self, m_BSIM: Tensor, z_BIJZ: Tensor) -> tuple[Tensor, Tensor]:
        """Map both representations to the same shapes."""
        m_BSIM = m_BSIM + self.drop_msa_rows(self.row(m_BSIM, z_BIJZ))
        m_BSIM = m_BSIM + self.column(m_BSIM)
        m_BSIM = m_BSIM + self.msa_transition(m_BSIM)
        z_BIJZ = z_BIJZ + self.outer(m_BSIM)
        z_BIJZ = z_BIJZ + self.drop_rows(self.triangle_out(z_BIJZ))
        z_BIJZ = z_BIJZ + self.drop_rows(self.triangle_in(z_BIJZ))
        z_BIJZ = z_BIJZ + self.drop_rows(self.triangle_start(z_BIJZ))
        ending_BJIZ = self.triangle_end(z_BIJZ.transpose(1, 2))
        z_BIJZ = z_BIJZ + self.drop_columns(ending_BJIZ.transpose(1, 2))
        return m_BSIM, z_BIJZ + self.pair_transition(z_BIJZ)


class GatedAttention(nn.Module):
    """What algorithms 7, 8, 13 and 14 share: attention within each row, gated by what asks."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k = nn.Linear(width, heads * head_width, bias=False)
        self.v = nn.Linear(width, heads * head_width, bias=False)
        self.gate = nn.Linear(width, heads * head_width)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x_BAPC: Tensor, bias_BNPQ: Tensor | None = None) -> Tensor:
        """Map [batch, rows, places, width] to the same; the bias is added to the scores of every row."""
        q_BANPH, k_BANQH, v_BANQH, gate_BANPH = (
            linear(x_BAPC).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for linear in (self.q, self.k, self.v, self.gate)
        )
        scores_BANPQ = (q_BANPH * q_BANPH.shape[-1] ** -0.5) @ k_BANQH.transpose(-2, -1)
        if bias_BNPQ is not None:
            scores_BANPQ = scores_BANPQ + bias_BNPQ.unsqueeze(1)
        y_BANPH = gate_BANPH.sigmoid() * (scores_BANPQ.softmax(-1) @ v_BANQH)
        return self.out(y_BANPH.transpose(2, 3).flatten(-2))


class RowAttention(nn.Module):
    """Algorithm 7: each sequence attends along itself; pairs of residues say where to look."""

    def __init__(self, msa_width: int, pair_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm_msa = nn.LayerNorm(msa_width)
        # Softmax cancels a bias here, and its gradient would be rounding noise.
        self.norm_pair = nn.LayerNorm(pair_width, bias=False)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.attend = GatedAttention(msa_width, heads, head_width)

    def forward(self, m_BSIM: Tensor, z_BIJZ: Tensor) -> Tensor:
        """The update of the alignment."""
        bias_BNIJ = self.bias(self.norm_pair(z_BIJZ)).permute(0, 3, 1, 2)
        return self.attend(self.norm_msa(m_BSIM), bias_BNIJ)


class ColumnAttention(nn.Module):
    """Algorithm 8: each residue attends to the same place of the other sequences."""

    def __init__(self, msa_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(msa_width)
        self.attend = GatedAttention(msa_width, heads, head_width)

    def forward(self, m_BSIM: Tensor) -> Tensor:
        """The update of the alignment."""
        return self.attend(self.norm(m_BSIM).transpose(1, 2)).transpose(1, 2)


class Transition(nn.Module):
    """Algorithms 9 and 15: two linear layers with a ReLU between them, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BIJC: Tensor) -> Tensor:
        """The update of a representation."""
        return self.down(F.relu(self.up(self.norm(x_BIJC))))


class OuterProductMean(nn.Module):
    """Algorithm 10: what two places of the alignment have in common, over all sequences, updates their pair."""

    def __init__(self, msa_width: int, pair_width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(msa_width)
        self.left = nn.Linear(msa_width, inner)
        self.right = nn.Linear(msa_width, inner)
        self.out = nn.Linear(inner * inner, pair_width)

    def forward(self, m_BSIM: Tensor) -> Tensor:
        """The update of the pairs."""
        m_BSIM = self.norm(m_BSIM)
        mean_BIJCD = torch.einsum("bsic,bsjd->bijcd", self.left(m_BSIM), self.right(m_BSIM)) / m_BSIM.shape[1]
        return self.out(mean_BIJCD.flatten(-2))


class TriangleMultiplication(nn.Module):
    """Algorithms 11 and 12: a pair is updated from the two other edges of all triangles it is in."""

    def __init__(self, pair_width: int, inner: int, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.norm = nn.LayerNorm(pair_width)
        self.left = nn.Linear(pair_width, inner)
        self.left_gate = nn.Linear(pair_width, inner)
        self.right = nn.Linear(pair_width, inner)
        self.right_gate = nn.Linear(pair_width, inner)
        self.norm_out = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, pair_width)
        self.gate = nn.Linear(pair_width, pair_width)

    def forward(self, z_BIJZ: Tensor) -> Tensor:
        """The update of the pairs: of (i, j) from (i, k) and (j, k), or incoming from (k, i) and (k, j)."""
        z_BIJZ = self.norm(z_BIJZ)
        left = self.left_gate(z_BIJZ).sigmoid() * self.left(z_BIJZ)
        right = self.right_gate(z_BIJZ).sigmoid() * self.right(z_BIJZ)
        edges = "bikc,bjkc->bijc" if self.outgoing else "bkic,bkjc->bijc"
        return self.gate(z_BIJZ).sigmoid() * self.out(self.norm_out(torch.einsum(edges, left, right)))


class TriangleAttention(nn.Module):
    """Algorithm 13: a pair attends to those with the same first residue; turned, algorithm 14."""

    def __init__(self, pair_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(pair_width)
        self.bias = nn.Linear(pair_width, heads, bias=False)
        self.attend = GatedAttention(pair_width, heads, head_width)

    def forward(self, z_BIJZ: Tensor) -> Tensor:
        """The update of the pairs."""
        z_BIJZ = self.norm(z_BIJZ)
        return self.attend(z_BIJZ, self.bias(z_BIJZ).permute(0, 3, 1, 2))


class SharedDropout(nn.Module):
    """Dropout that drops the same elements all along one dim."""

    def __init__(self, p: float, dim: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(p)
        self.dim = dim

    def forward(self, x_BIJC: Tensor) -> Tensor:
        """Map [batch, ..., channels] to the same."""
        if self.drop.p == 0.0:
            return x_BIJC
        return x_BIJC * self.drop(torch.ones_like(x_BIJC.narrow(self.dim, 0, 1)))


def build(size: str = "tiny", **overrides: float) -> AlphaFold2:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`, or set ``dropout``.

    Raises:
        ValueError: There is no such size.
    """
    return AlphaFold2(**_row(size, overrides))


def example_inputs(size: str = "tiny", batch: int = 8, **overrides: float) -> dict[str, Tensor]:
    """Make random features, and targets for every seventh residue and for all distances.

    Raises:
        ValueError: There is no such size.
    """
    row = _row(size, overrides)
    sequences, residues = row["sequences"], row["residues"]
    residue_targets = torch.randint(KINDS_OF_RESIDUES, (batch, sequences, residues))
    is_masked = torch.arange(sequences * residues).reshape(sequences, residues) % 7 == 0
    return {
        "target": torch.randn(batch, residues, 22),
        "msa": torch.randn(batch, sequences, residues, 49),
        "residue_targets": residue_targets.where(is_masked, -100),
        "distance_targets": torch.randint(row.get("bins", 64), (batch, residues, residues)),
    }


def _row(size: str, overrides: dict[str, float]) -> dict:
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return {**SIZES[size], **overrides}


# "initial" and "finetune" are the stages of training of the paper (supplement, table 4): the same model, larger
# inputs. SuperScaler (arXiv 2301.08984) makes the model wider with the number of devices; the wider ones here
# keep the proportions and are named after their parameters.
_PAPER = {
    "blocks": 48, "msa_width": 256, "pair_width": 128, "msa_heads": 8, "pair_heads": 4, "head_width": 32,
    "outer_width": 32, "triangle_width": 128, "sequences": 128, "residues": 256, "recycles": 3,
}  # fmt: skip
SIZES = {
    "tiny": {
        "blocks": 2, "msa_width": 16, "pair_width": 12, "msa_heads": 4, "pair_heads": 2, "head_width": 4,
        "outer_width": 4, "triangle_width": 8, "sequences": 5, "residues": 6, "recycles": 1, "bins": 8,
    },
    "initial": _PAPER,
    "finetune": {**_PAPER, "sequences": 512, "residues": 384},
    "wide": {
        **_PAPER, "msa_width": 512, "pair_width": 256, "msa_heads": 16, "pair_heads": 8, "triangle_width": 256,
    },
    "wider": {
        **_PAPER, "msa_width": 1024, "pair_width": 512, "msa_heads": 32, "pair_heads": 16, "triangle_width": 512,
    },
}  # fmt: skip
