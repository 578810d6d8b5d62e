"""A checkpoint of transformers, trained under a plan and read back by transformers, is what eager training gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import superscaler as ss
from superscaler import cli
from superscaler.runtime.loaded import load

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
STEPS, LR = 2, 1e-2


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, use_cache=False,
        )
    ).double()  # fmt: skip


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=32, attn_pdrop=0.0, embd_pdrop=0.0,
            resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
        )
    ).double()  # fmt: skip


def batches():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(64, (STEPS, 4, 12), generator=generator)


def square_of_logits(output):
    """A loss in the model's own precision."""
    return output.logits.square().mean()


def own_loss(output):
    """The loss of transformers, computed in float32."""
    return output.loss


def train_eagerly(model, loss, optimizer):
    for tokens in batches():
        optimizer.zero_grad()
        loss(model(tokens, labels=tokens)).backward()
        optimizer.step()


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [*map(str, arguments), "--backend", "gloo", "--threads", "1"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("make", "loss", "optimizer", "tolerance"),
    [
        (gpt2, square_of_logits, "AdamW", 1e-12),
        # Adam would make as much of a float32's last bit as of a gradient.
        (gpt2, own_loss, "SGD", 1e-8),
        (llama, own_loss, "SGD", 1e-8),
    ],
)
def test_a_trained_checkpoint_is_that_of_eager(tmp_path, make, loss, optimizer, tolerance):
    torch.manual_seed(0)
    eager = make()
    eager.save_pretrained(tmp_path / "in", max_shard_size="50KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").is_file()
    train_eagerly(eager, loss, getattr(torch.optim, optimizer)(eager.parameters(), lr=LR))

    with ss.deferred_init():
        model = make()
    tokens = batches()
    inputs = {"input_ids": tokens[0], "labels": tokens[0]}
    ss.compile(
        model, inputs, cluster=ss.Cluster.local(4), plan="tp=2,pp=2", loss=loss,
        optimizer=getattr(ss, optimizer)(lr=LR), save=tmp_path / "build",
    )  # fmt: skip
    save_file({name: tokens.flatten(0, 1).clone() for name in inputs}, tmp_path / "data.safetensors")
    torchrun(
        tmp_path / "build" / "train.py", "--steps", STEPS, "--data", tmp_path / "data.safetensors",
        "--weights", tmp_path / "in", "--save", tmp_path / "out", "--shard-bytes", 50_000,
    )  # fmt: skip

    written, given = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text())["weight_map"]
        for name in ("out", "in")
    )
    assert written.keys() == given.keys()
    trained = type(eager).from_pretrained(tmp_path / "out", dtype=torch.float64)
    expected = eager.state_dict()
    assert trained.state_dict().keys() == expected.keys()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=name)


def test_the_example_compiles_from_a_folder_and_starts_from_its_weights(tmp_path):
    torch.manual_seed(0)
    model = llama()
    model.save_pretrained(tmp_path / "in")
    reference = f"{ROOT / 'examples' / 'transformers_model.py'}:{tmp_path / 'in'}"
    options = ["--dtype", "float64", "--batch", "4", "--set", "sequence=12", "-o", str(tmp_path / "build")]
    assert cli.main(["compile", reference, *options]) == 0
    tokens = batches()[0]
    program = load(tmp_path / "build", "cpu", weights=tmp_path / "in")
    loss = program({"input_ids": tokens, "labels": tokens})
    torch.testing.assert_close(loss, model(tokens, labels=tokens).loss.detach(), rtol=1e-6, atol=0)
