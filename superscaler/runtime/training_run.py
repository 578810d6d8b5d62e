"""A training run as it stands between two steps: all that a checkpoint of it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from superscaler.errors import BuildError

NEWEST = -1
"""Stands for the step of the newest checkpoint."""


class Positioned(Protocol):
    """Batches that know where in the data they are."""

    def state_dict(self) -> dict[str, Any]:
        """The position between two steps, as JSON can hold it; that of a rank with inputs serves all ranks."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""


@dataclass
class TrainingRun:
    """One rank's view of a run."""

    weights: dict[str, Tensor]
    """This rank's pieces, by the name its program uses."""
    states: dict[str, Tensor]
    """Optimizer states and the loss scale, likewise."""
    step: int
    """Steps the weights have seen. Random numbers follow from it."""
    begun_at: int
    """Steps they had seen when the run began."""
    seed: int
    """Of the initialisation."""
    position: Any = None
    """Where the batches were when the run was saved; None for a new one."""
    losses: list[Tensor | float] = field(default_factory=list)
    """Of every step of the run, on the rank that reports them; on others empty."""

    def restore(self, batches: Positioned) -> None:
        """Take batches to where they were when the run was saved.

        Raises:
            BuildError: They are others.
        """
        if self.position is None:
            return
        try:
            batches.load_state_dict(self.position)
        except (KeyError, TypeError) as error:
            raise BuildError(
                f"the checkpoint has no position of batches as superscaler writes one: {error!r}",
                remedy="name another folder with --checkpoint",
            ) from error

    @property
    def steps(self) -> int:
        """Steps this run has made, those before it was resumed among them."""
        return self.step - self.begun_at

    def settled_losses(self) -> Tensor:
        """The losses so far, float64 [steps], on the CPU; waits for the device."""
        self.losses = [float(loss) for loss in self.losses]
        return torch.tensor(self.losses, dtype=torch.float64)
