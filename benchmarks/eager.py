"""The step of eager PyTorch that benchmarks stand beside: a model with autograd and `torch.optim.AdamW`."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from superscaler.ir.optimizers import AdamW


def eager_step(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    options: AdamW,
    *,
    fused: bool,
    called: Callable[..., Tensor] | None = None,
) -> Callable[[], Tensor]:
    """A function that trains the model once on the inputs, and returns the loss.

    Args:
        model: Whose parameters are trained.
        inputs: By name.
        options: Of the optimizer.
        fused: Whether it is the fused one, else torch's default.
        called: What is called in place of the model, such as what `torch.compile` made of it.
    """
    betas = (options.beta1, options.beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        options.lr,
        betas,
        options.eps,
        options.weight_decay,
        fused=True if fused else None,
    )
    compute = model if called is None else called

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = compute(**inputs)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
