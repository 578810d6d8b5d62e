"""A Triton kernel of one's own in a parallel plan, without a word about how it may be cut.

    pip install "superscaler[triton]"
    python examples/custom_operator.py [--steps 5] [-o build/custom_operator]

The model's feed-forward layer calls a SwiGLU written in Triton (examples/swiglu_kernel.py). The compiler runs the
operator whole and in pieces, finds its rule, cuts the layer over two processes as it would with operators of torch,
verifies the programs, and torchrun trains them; the losses are those of eager PyTorch in this process. With fewer
than two GPUs everything runs on the CPU: Triton interprets the kernels.
"""

import argparse
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
if find_spec("triton") is None:
    sys.exit('this example needs Triton: pip install "superscaler[triton]"')
if torch.cuda.device_count() < 2:
    os.environ["TRITON_INTERPRET"] = "1"

from swiglu_kernel import swiglu

import superscaler as ss
from benchmarks.parity import torchrun

BATCH, SEQ, WIDTH, HIDDEN = 4, 8, 16, 64
RATE = 2.0


class FeedForward(nn.Module):
    """The feed-forward block of a Llama, trained to copy one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b s d] -> loss."""
        return (self.down(swiglu(self.gate(x), self.up(x))) - x).square().mean()


def main() -> None:
    """Compile, verify, run, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/custom_operator"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(format="%(message)s")  # shows the rules found

    plan = ss.compile(
        build_model(), (torch.zeros(BATCH, SEQ, WIDTH),),
        cluster=ss.Cluster.local(2), plan="tp=2", optimizer=ss.SGD(lr=RATE), save=options.output / "program",
    )  # fmt: skip
    print(f"\n{plan}\n")
    for operator in plan.graph.operators:
        if operator.rule:
            print(f"rule of {operator.kind}: {operator.rule}")

    torch.manual_seed(1)
    x = torch.randn(BATCH, SEQ, WIDTH).repeat(options.steps, 1, 1)
    save_file({"x": x}, options.output / "data.safetensors")
    parallel, _ = torchrun(options.output / "program", 2, options.output / "data.safetensors", options.steps)
    single = train_eager(x)
    worst = max(abs(a - b) for a, b in zip(parallel, single, strict=True))
    print(f"loss on one device   {single[0]:.6f} -> {single[-1]:.6f} after {options.steps} steps")
    print(f"loss on two          {parallel[0]:.6f} -> {parallel[-1]:.6f}")
    print(f"largest difference   {worst:.2e}")
    print(f"generated program    {options.output / 'program' / 'stage0.py'}")
    if worst > 1e-4:
        sys.exit(f"the losses differ by {worst:.2e}: this must not be")


def build_model() -> FeedForward:
    """The same model every time."""
    torch.manual_seed(0)
    return FeedForward()


def train_eager(x: torch.Tensor) -> list[float]:
    """Losses of plain PyTorch, batch by batch."""
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for batch in x.split(BATCH):
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    main()
