"""A build inside a training loop of one's own, on one process or on as many as its plan wants.

    superscaler compile models/gpt.py:tiny --cluster local:2 --plan dp=2 --batch 16 -o build/gpt
    torchrun --nproc-per-node 2 examples/own_loop.py build/gpt --steps 100

Each process reads the samples of its own part. Every so many steps the whole weights go into the plain PyTorch model,
which is evaluated on text it has not seen.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import superscaler as ss
from examples.data import documentation
from models import gpt

HELD_OUT = 64


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", help="a folder that superscaler compile wrote for models/gpt.py:tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations (default 10)")
    parser.add_argument("--save", metavar="FILE.safetensors", help="write the trained weights here")
    options = parser.parse_args()
    text = documentation()
    with ss.load(options.build) as step:
        while step.steps < options.steps:
            first = step.steps * step.batch_size % (len(text) - HELD_OUT - step.batch_size)
            batch = {
                name: default_collate([text[first + sample][name] for sample in samples])
                for name, samples in step.own_samples.items()
            }
            loss = step(batch, is_own=True)
            if step.rank == 0:
                print(f"step {step.steps}  loss {loss.item():.4f}")
            if step.steps % options.every == 0:
                weights = step.state_dict()  # every rank takes part
                if step.rank == 0:
                    print(f"step {step.steps}  held out {evaluate(weights, text):.4f}")
        if options.save:
            step.save(options.save, with_states=True)


def evaluate(weights: dict[str, torch.Tensor], text: Sequence[dict[str, torch.Tensor]]) -> float:
    """The loss of the plain model with these weights, on the last samples."""
    model = gpt.build("tiny").eval()
    model.load_state_dict(weights)
    samples = [text[len(text) - HELD_OUT + i] for i in range(HELD_OUT)]
    with torch.no_grad():
        return model(**default_collate(samples)).item()


if __name__ == "__main__":
    main()
