"""The Triton kernels of paged attention, interpreted on the CPU: `TRITON_INTERPRET=1 python -m` this module.

A process of its own, for Triton reads the variable when kernels are defined.
"""

import torch

from superscaler.runtime import ops
from superscaler.runtime.ops import paged_attention_triton as kernels
from superscaler.runtime.ops.paged_layout import Step
from tests.runtime.ops.paged_steps import PagedStep, by_definition, random_step

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
MIXED = [(1, 30), (19, 65), (0, 3), (5, 0)]
DECODES = [(1, 30), (1, 129), (1, 0)]
CASES = [
    # shapes, heads, widths, window, tree, the widest tree, splits
    (DECODES, (4, 2), (16, 16), 0, False, None, 1),
    (DECODES, (6, 2), (8, 24), 0, False, None, 4),
    (DECODES, (4, 1), (16, 16), 9, False, None, 2),
    (MIXED, (4, 2), (16, 16), 0, False, None, 2),
    (MIXED, (6, 2), (20, 8), 9, False, None, 1),
    (MIXED, (4, 2), (16, 16), 0, True, None, 2),
    (MIXED, (1, 1), (16, 16), 9, True, None, 1),
    (MIXED, (4, 2), (16, 16), 0, True, 5, 2),
    ([(70, 10)], (2, 1), (16, 16), 0, False, None, 1),
]


def main() -> None:
    """Compare with the definition, and the operator as it is called with that of float64, which takes no kernel."""
    torch.set_num_threads(1)
    for number, (*shape, window, tree, widest, splits) in enumerate(CASES):
        for dtype in TOLERANCE if number in (1, 5) else (torch.float32,):
            step = random_step(*shape, 8, window, tree, number, widest).to(dtype)
            expected, keys, values = by_definition(step)
            kernels.append(step.k, step.v, step.keys, step.values, step.slots)
            for cache, filled in ((step.keys, keys), (step.values, values)):
                torch.testing.assert_close(cache, filled, rtol=0, atol=0, equal_nan=True)
            metadata = Step(step.starts, step.lengths, step.pages, step.positions, step.visible)
            out = kernels.attend(step.q, step.keys, step.values, metadata, splits=splits, **step.options)
            torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
            print(f"case {number} {dtype}: {out.numel()} numbers agree")
    step = random_step(MIXED, (4, 2), (16, 16), 8, 0, False, 0)
    torch.testing.assert_close(_call(step.to(torch.float32)).double(), _call(step.to(torch.float64)), **NEAR)


NEAR = {"rtol": 1e-5, "atol": 1e-5}


def _call(step: PagedStep) -> torch.Tensor:
    return ops.paged_attention(*step.tensors, **step.options)


if __name__ == "__main__":
    main()
