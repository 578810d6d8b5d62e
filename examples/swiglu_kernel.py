"""A user's own operator: SwiGLU as a Triton kernel, forward and backward, registered with torch.library.

Nothing here knows of superscaler. Without a GPU, Triton interprets the kernels on the CPU.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are decorated

import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def swiglu_kernel(gate, up, out, count, BLOCK: tl.constexpr):
    """``silu(gate) * up``, element by element."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0)
    u = tl.load(up + at, mask=inside, other=0.0)
    tl.store(out + at, g / (1 + tl.exp(-g)) * u, mask=inside)


@triton.jit
def swiglu_backward_kernel(d_out, gate, up, d_gate, d_up, count, BLOCK: tl.constexpr):
    """The gradients of both factors."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    d = tl.load(d_out + at, mask=inside, other=0.0)
    g = tl.load(gate + at, mask=inside, other=0.0)
    u = tl.load(up + at, mask=inside, other=0.0)
    s = 1 / (1 + tl.exp(-g))
    tl.store(d_gate + at, d * u * s * (1 + g * (1 - s)), mask=inside)
    tl.store(d_up + at, d * g * s, mask=inside)


@torch.library.custom_op("swiglu::forward", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    swiglu_kernel[(triton.cdiv(out.numel(), BLOCK),)](gate, up, out, out.numel(), BLOCK=BLOCK)
    return out


@torch.library.custom_op("swiglu::backward", mutates_args=())
def swiglu_backward(
    d_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients with respect to `gate` and `up`."""
    d_out, gate, up = d_out.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    grid = (triton.cdiv(gate.numel(), BLOCK),)
    swiglu_backward_kernel[grid](d_out, gate, up, d_gate, d_up, gate.numel(), BLOCK=BLOCK)
    return d_gate, d_up


@swiglu.register_fake
def _(gate, up):
    return torch.empty_like(gate)


@swiglu_backward.register_fake
def _(d_out, gate, up):
    return torch.empty_like(gate), torch.empty_like(up)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, d_out):
    return swiglu_backward(d_out, *ctx.saved_tensors)


swiglu.register_autograd(_backward, setup_context=_save)
