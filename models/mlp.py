"""Three linear layers: a model small enough that its graph, plan and program can be read in full.

Shape suffixes: B batch, W width, H width inside.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Up, through, and down again, with ReLU between; trained to map `x` onto `y`.

    Args:
        width: Width of what goes in and comes out.
        inner: Width inside.
    """

    def __init__(self, *, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.middle = nn.Linear(inner, inner)
        self.down = nn.Linear(inner, width)
        for layer in (self.up, self.middle, self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Mean squared difference from `y` [batch, width], or without it the output [batch, width]."""
        x_BH = F.relu(self.up(x))
        x_BH = F.relu(self.middle(x_BH))
        out_BW = self.down(x_BH)
        return out_BW if y is None else F.mse_loss(out_BW, y)


def build(size: str = "tiny", **overrides: int) -> MLP:
    """Make a model of a named size; `overrides` replace entries of its row in `SIZES`.

    Raises:
        ValueError: There is no such size.
    """
    return MLP(**_row(size, overrides))


def example_inputs(size: str = "tiny", batch: int = 8, **overrides: int) -> dict[str, Tensor]:
    """Make random ``x`` and ``y``, both [batch, width], as the forward of `build` takes them.

    Raises:
        ValueError: There is no such size.
    """
    width = _row(size, overrides)["width"]
    return {"x": torch.randn(batch, width), "y": torch.randn(batch, width)}


def _row(size: str, overrides: dict[str, int]) -> dict[str, int]:
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return {**SIZES[size], **overrides}


SIZES = {
    "tiny": {"width": 8, "inner": 16},
    "small": {"width": 1024, "inner": 4096},
}
