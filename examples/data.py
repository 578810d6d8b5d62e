"""A data set of one's own: samples cut from the documentation inside every Python, a byte a token.

    superscaler compile models/gpt.py:tiny --cluster local:2 --plan dp=2 -o build/gpt
    torchrun --nproc-per-node 2 build/gpt/train.py --data examples/data.py:documentation --shuffle --steps 100

Each process calls `documentation` and asks for the samples it needs: a sample has a value per input of the model.
"""

from pydoc_data.topics import topics

import torch
from torch.utils.data import Dataset

SEQ = 64


class Text(Dataset):
    """Sample i is bytes i * SEQ and on, and what follows each."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def __len__(self) -> int:
        return (len(self.text) - 1) // SEQ

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        part = self.text[number * SEQ : (number + 1) * SEQ + 1]
        return {"tokens": torch.tensor(list(part[:-1])), "targets": torch.tensor(list(part[1:]))}


def documentation() -> Text:
    """What `--data` names: a function without arguments that returns a dataset or an iterable."""
    return Text("\n\n".join(topics[name] for name in sorted(topics)).encode())
