"""Inference builds compute what eager PyTorch computes: in this process, and under torchrun for a whole file."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import gpt
from superscaler import compiler
from superscaler.errors import BuildError
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.runtime.loaded import load

SIZES = {"layers": 2, "width": 32, "seq": 16, "vocab": 64}
SAMPLES = 11


@cache
def model():
    torch.manual_seed(0)
    return gpt.build("tiny", **SIZES).double().eval()


def tokens(batch):
    return {"tokens": gpt.example_inputs("tiny", batch=batch, **SIZES)["tokens"]}


def compiled(plan, folder):
    cluster = Cluster.local(parse_plan(plan).num_devices)
    compiler.compile(model(), tokens(4), cluster=cluster, plan=plan, save=folder)
    return folder


def run(folder, data, out, ranks, *options):
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [str(folder / "run.py"), f"--data={data}", f"--out={out}", "--backend=gloo", "--threads=1"]
    command += options
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("plan", ["none", "micro_batches=2"])
def test_one_device_computes_what_eager_computes(plan, tmp_path):
    program, batch = load(compiled(plan, tmp_path / "b"), "cpu"), tokens(4)
    (logits,) = program(batch).values()
    torch.testing.assert_close(logits, model()(**batch).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("plan", "options"),
    [("none", ()), ("dp=2,micro_batches=2", ()), ("tp=2", ("--compile",)), ("pp=2,micro_batches=2", ())],
)
def test_a_whole_file_is_computed_also_where_the_last_batch_is_not_full(plan, options, tmp_path):
    data, out = tmp_path / "data.safetensors", tmp_path / "out.safetensors"
    batch = tokens(SAMPLES)
    save_file(batch, data)
    printed = run(compiled(plan, tmp_path / "b"), data, out, parse_plan(plan).num_devices, *options)
    assert printed.endswith(f"outputs of {SAMPLES} samples\n")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.safetensors"]
    (logits,) = load_file(out).values()
    torch.testing.assert_close(logits, model()(**batch).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.ranks
def test_all_ranks_agree_where_an_iterable_ends(tmp_path):
    batch, out = tokens(SAMPLES), tmp_path / "out.safetensors"
    save_file(batch, tmp_path / "data.safetensors")
    (tmp_path / "data.py").write_text(
        "from safetensors.torch import load_file\n\n\ndef samples():\n"
        f"    for x in load_file({str(tmp_path / 'data.safetensors')!r})['tokens']:\n        yield (x,)\n"
    )
    run(compiled("pp=2,micro_batches=2", tmp_path / "b"), f"{tmp_path}/data.py:samples", out, 2)
    (logits,) = load_file(out).values()
    torch.testing.assert_close(logits, model()(**batch).detach(), rtol=1e-12, atol=1e-12)


class Statistics(nn.Module):
    """Three outputs: two rows per sample, one number per batch, one tensor without the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(6.0))

    def forward(self, x):
        return (x * self.table).reshape(-1, 3), x.sum(), self.table + 1.0


def test_outputs_without_a_row_per_sample_are_written_once_per_batch(tmp_path):
    x = torch.arange(18.0).reshape(3, 6)
    compiler.compile(Statistics(), (x[:2],), cluster=Cluster.local(1), save=tmp_path / "b")
    save_file({"x": x}, tmp_path / "data.safetensors")
    run(tmp_path / "b", tmp_path / "data.safetensors", tmp_path / "out.safetensors", 1)
    rows, total, table = (load_file(tmp_path / "out.safetensors")[name] for name in ("reshape", "sum", "add"))
    assert torch.equal(rows, (x * torch.arange(6.0)).reshape(-1, 3))
    assert torch.equal(total, torch.stack([x[:2].sum(), x[[2, 0]].sum()]))
    assert torch.equal(table, torch.stack([torch.arange(6.0) + 1.0] * 2))


def test_a_build_of_several_devices_is_not_loaded_into_one_process(tmp_path):
    with pytest.raises(BuildError, match=r"needs 2 processes(.|\n)*torchrun --nproc-per-node 2 YOUR_SCRIPT"):
        load(compiled("tp=2", tmp_path / "b"))
