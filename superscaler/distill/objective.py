"""What a draft is trained for: to find those tokens likely that the model it drafts for finds likely."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superscaler.serve.language_model import next_logits


class Distillation(nn.Module):
    """A draft that is trained by how far it is from what another model found likely.

    Args:
        draft: Maps tokens [batch, seq] to logits [batch, seq, vocab], as a model does that is served.
    """

    def __init__(self, draft: nn.Module) -> None:
        super().__init__()
        self.draft = draft

    def forward(self, tokens: Tensor, likely: Tensor, shares: Tensor) -> Tensor:
        """The mean cross-entropy of the draft against the shares.

        Their difference to the least that it can be is the Kullback-Leibler divergence, over the tokens that are
        named; those that are not named are taken to be impossible.

        Args:
            tokens: Integers [batch, seq].
            likely: Integers [batch, seq, likely]: after each token, which may come.
            shares: [batch, seq, likely]: how probable each of these is; they add up to 1.
        """
        logarithms = F.log_softmax(next_logits(self.draft, tokens).to(shares.dtype), dim=-1)
        return -(shares * logarithms.gather(-1, likely)).sum(-1).mean()


def agreement(draft: nn.Module, tokens: Tensor, likely: Tensor, first: int, batch: int = 32) -> float:
    """The share of places at which the draft's likeliest token is the model's.

    Args:
        draft: As for `Distillation`.
        tokens: [samples, seq].
        likely: [samples, seq, likely], the likeliest first.
        first: The first place that counts.
        batch: Samples at a time.
    """
    was_training = draft.training
    draft.eval()
    found = 0
    with torch.no_grad():
        for some, wanted in zip(tokens.split(batch), likely.split(batch), strict=True):
            best = next_logits(draft, some)[:, first:].argmax(-1)
            found += int((best == wanted[:, first:, 0]).sum())
    draft.train(was_training)
    return found / (tokens.shape[0] * (tokens.shape[1] - first))
