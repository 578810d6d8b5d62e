"""Processes of torchrun train on data from a user's function as eager PyTorch does on the same samples."""

import json

import pytest
import torch
from safetensors.torch import load_file

from superscaler.runtime.build import read_build
from superscaler.runtime.data.order import shuffled
from superscaler.runtime.weights import load_weights
from tests.runtime.test_launch import start
from tests.runtime.tiny_build import write_build

pytestmark = pytest.mark.ranks

FILE = """
from pathlib import Path

from safetensors.torch import load_file

TENSORS = load_file(Path(__file__).with_name("data.safetensors"))


class Numbered:
    def __len__(self):
        return 20

    def __getitem__(self, number):
        return {name: x[number] for name, x in TENSORS.items()}


def dataset():
    return Numbered()


def stream():
    for number in range(20):
        yield TENSORS["x"][number].numpy(), TENSORS["y"][number].tolist()


def broken():
    for number in range(20):
        if number == 13:
            raise OSError("the disk is gone")
        yield Numbered()[number]


def fails():
    raise KeyError("no such corpus")
"""


@pytest.fixture
def folder(tmp_path):
    folder = write_build(tmp_path / "build")
    (folder / "samples.py").write_text(FILE)
    return folder


def train_eagerly(folder, rows):
    data = load_file(folder / "data.safetensors")
    alone = read_build(write_build(folder.parent / "alone", 1))
    weights = load_weights(None, alone, 0, torch.device("cpu")).weights
    w, b = (weights[name].requires_grad_() for name in "wb")
    optimizer = torch.optim.SGD([w, b], lr=0.1, momentum=0.9)
    losses = []
    for batch in rows:
        loss = (data["x"][batch] @ w.T + b - data["y"][batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("function", "options"),
    [("dataset", ("--shuffle", "--data-seed", 3)), ("stream", ("--no-read-ahead",))],
)
def test_training_on_a_function_equals_eager(folder, function, options):
    numbers = torch.arange(40)
    if "--shuffle" in options:
        rows = torch.cat([shuffled(numbers[:20], 20, 3, epoch) for epoch in range(2)])
    else:
        rows = numbers % 20
    losses = train_eagerly(folder, rows.view(5, 8))
    data = f"{folder}/samples.py:{function}"
    done = start(folder, "--steps", 5, "--data", data, "--losses", folder / "losses.json", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "losses.json").read_text()) == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize(
    ("function", "messages"),
    [
        ("broken", ["sample 13 of", "cannot be read: OSError: the disk is gone", 'raise OSError("the disk is']),
        ("fails", ["fails() fails: KeyError: 'no such corpus'", 'samples.py:', 'raise KeyError("no such corpus")']),
    ],
)  # fmt: skip
def test_what_the_users_code_raises_ends_all_ranks_with_its_line(folder, function, messages):
    done = start(folder, "--steps", 5, "--data", f"{folder}/samples.py:{function}")
    assert done.returncode != 0
    assert ("step 1/5" in done.stdout) == (function == "broken")
    assert "step 2/5" not in done.stdout
    for message in messages:
        assert message in done.stderr
