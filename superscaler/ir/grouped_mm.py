"""The product of grouped rows with a matrix per expert, as one operator whose gradients are such products again."""

from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("superscaler", "FRAGMENT")


def _shape(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    experts = (ends.shape[0],) if a.dim() == b.dim() else ()
    return a.new_empty(*experts, a.shape[-2], b.shape[-1])


_library.define("grouped_mm(Tensor a, Tensor b, Tensor ends) -> Tensor")
torch.library.register_fake("superscaler::grouped_mm", _shape, lib=_library)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: Tensor) -> Any:
    a, b, ends = ctx.saved_tensors
    product, needs = torch.ops.superscaler.grouped_mm, ctx.needs_input_grad
    return (
        product(dout, b.mT, ends) if needs[0] else None,
        product(a.mT, dout, ends) if needs[1] else None,
        None,
    )


torch.library.register_autograd("superscaler::grouped_mm", _backward, setup_context=_save, lib=_library)


def grouped_mm(
    input: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """As ``torch._grouped_mm``, which ``F.grouped_mm`` calls; without offsets a product of batches."""
    out = torch.bmm(input, mat2) if offs is None else torch.ops.superscaler.grouped_mm(input, mat2, offs)
    out = out if bias is None else out + bias
    return out if out_dtype is None else out.to(out_dtype)
