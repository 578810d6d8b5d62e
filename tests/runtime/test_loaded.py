"""A build inside one's own loop trains as eager PyTorch does, on one process and on the ranks of its plan."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from models import gpt
from superscaler import compiler
from superscaler.errors import BuildError
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.runtime.loaded import load
from tests.runtime.ranks import run_ranks
from tests.runtime.tiny_build import write_build

ROOT = Path(__file__).parents[2]
SIZES = {"layers": 2, "width": 16, "heads": 4, "seq": 8, "vocab": 32}
OPTIMIZER = AdamW(lr=1e-3, eps=1e-5)
BATCH, STEPS = 8, 3


def model():
    torch.manual_seed(0)
    return gpt.build("tiny", **SIZES).double()


def batches():
    torch.manual_seed(1)
    return [gpt.example_inputs("tiny", batch=BATCH, **SIZES) for _ in range(STEPS)]


def compiled(folder, plan, **options):
    cluster = Cluster.local(parse_plan(plan).num_devices)
    compiler.compile(model(), batches()[0], cluster=cluster, plan=plan, save=folder, **options)
    return folder


def eager():
    trained = model()
    optimizer = torch.optim.AdamW(
        trained.parameters(), OPTIMIZER.lr, (OPTIMIZER.beta1, OPTIMIZER.beta2), OPTIMIZER.eps,
        OPTIMIZER.weight_decay,
    )  # fmt: skip
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        loss = trained(**batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, trained.state_dict()


def assert_trained_as_eager(losses, weights):
    truth, state = eager()
    assert losses == pytest.approx(truth, rel=1e-12)
    model().load_state_dict(weights)
    for name, value in state.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-11, msg=name)


def part_of(batch, step):
    return {name: batch[name][samples] for name, samples in step.own_samples.items()}


def train_on_a_rank(rank, folder, is_own):
    step = load(folder, timeout=60)
    losses = []
    for batch in batches():
        given = part_of(batch, step) if is_own else batch
        losses.append(step(given, is_own=is_own).item())
    step.save(folder / "saved.safetensors", with_states=True)
    step.close()
    assert dist.is_initialized(), "a group that was there before stays"
    return losses, step.state_dict(), step.own_shapes


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("plan", "is_own"),
    [
        ("dp=2,zero=3,micro_batches=2", False),
        ("dp=2,micro_batches=2", True),
        ("tp=2", False),
        ("pp=2,micro_batches=2", False),
        ("pp=2,micro_batches=2", True),
        ("cp=2", True),
    ],
)
def test_ranks_of_a_group_that_is_there_train_as_eager(plan, is_own, tmp_path):
    folder = compiled(tmp_path / "build", plan, optimizer=OPTIMIZER)
    if "cp" in plan:
        results = run_ranks(train_with_pieces_of_sequences, 2, tmp_path, folder)
    else:
        results = run_ranks(train_on_a_rank, 2, tmp_path, folder, is_own)
    for losses, weights, _ in results:
        assert_trained_as_eager(losses, weights)
    if "micro_batches" in plan and "dp" in plan:
        assert [shapes["tokens"] for *_, shapes in results] == [(4, 8), (4, 8)]
    saved = load_file(folder / "saved.safetensors")
    for name, value in results[0][1].items():
        assert torch.equal(saved.get(name, value), value), name
    assert any("exp_avg" in name for name in saved)


def train_with_pieces_of_sequences(rank, folder):
    step = load(folder, timeout=60)
    assert step.own_shapes["tokens"] == (BATCH, SIZES["seq"] // 2)
    halves = [
        {name: x if step.own_shapes[name] == x.shape else x.chunk(2, 1)[rank] for name, x in batch.items()}
        for batch in batches()
    ]
    losses = [step(half, is_own=True).item() for half in halves]
    step.save(folder / "saved.safetensors", with_states=True)
    return losses, step.state_dict(), step.own_shapes


def test_one_process_trains_as_eager_and_goes_on_from_what_it_saved(tmp_path):
    folder = compiled(tmp_path / "build", "micro_batches=2", optimizer=OPTIMIZER)
    step, (*first, last) = load(folder, "cpu"), batches()
    losses = [step(batch).item() for batch in first]
    step.save(tmp_path / "half", with_states=True)
    assert (tmp_path / "half" / "model.safetensors").is_file()
    again = load(folder, "cpu", weights=tmp_path / "half")
    assert again.steps == len(first)
    losses.append(again(last).item())
    assert_trained_as_eager(losses, again.state_dict())


def infer_on_a_rank(rank, folder):
    step = load(folder, timeout=60)
    whole = batches()[0]
    return step(whole), step(part_of(whole, step), is_own=True)


@pytest.mark.ranks
@pytest.mark.parametrize("plan", ["dp=2,micro_batches=2", "pp=2,micro_batches=2"])
def test_every_rank_gets_the_whole_outputs(plan, tmp_path):
    folder = compiled(tmp_path / "build", plan)
    truth = model()(**batches()[0]).detach()
    for outputs in run_ranks(infer_on_a_rank, 2, tmp_path, folder):
        for one in outputs:
            torch.testing.assert_close(next(iter(one.values())), truth, rtol=1e-12, atol=1e-12)


def torchrun(*command, ranks=2):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
         *map(str, command)],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.mark.ranks
def test_the_example_trains_under_torchrun_as_the_same_build_on_one_process(tmp_path):
    sizes = {"seq": 64}
    trained = []
    for number, plan in enumerate(["dp=2", "none"]):
        torch.manual_seed(0)
        inputs = gpt.example_inputs("tiny", batch=4, **sizes)
        compiler.compile(
            gpt.build("tiny"), inputs, cluster=Cluster.local(2 - number), plan=plan, optimizer=OPTIMIZER,
            save=tmp_path / plan,
        )  # fmt: skip
        saved = tmp_path / f"{number}.safetensors"
        options = [tmp_path / plan, "--steps", 4, "--every", 2, "--save", saved]
        done = torchrun(ROOT / "examples" / "own_loop.py", *options, ranks=2 - number)
        assert done.returncode == 0, done.stderr
        trained.append((re.findall(r"^step (\d+)  (loss|held out) ([\d.]+)$", done.stdout, re.M), saved))
    assert [(step, what) for step, what, _ in trained[0][0]] == [
        ("1", "loss"), ("2", "loss"), ("2", "held out"), ("3", "loss"), ("4", "loss"), ("4", "held out"),
    ]  # fmt: skip
    for (*_, one), (*_, other) in zip(trained[0][0], trained[1][0], strict=True):
        assert float(one) == pytest.approx(float(other), abs=2e-4)


@pytest.mark.ranks
def test_another_build_on_another_rank_is_refused_on_both(tmp_path):
    folders = [write_build(tmp_path / "a"), write_build(tmp_path / "b")]
    with (folders[1] / "stage0.py").open("a") as file:
        file.write("# edited\n")
    messages = run_ranks(load_one_of, 2, tmp_path, folders)
    for message in messages:
        assert re.search(r"rank 1 has build \w+, torch .*, but rank 0 has build \w+", message)
        assert "load the same build folder on every rank" in message


def load_one_of(rank, folders):
    with pytest.raises(BuildError) as error:
        load(folders[rank], timeout=30, allow_edited=True)
    return str(error.value)


@pytest.mark.ranks
def test_a_group_of_another_size_is_refused(tmp_path):
    messages = run_ranks(load_expecting_an_error, 2, tmp_path, write_build(tmp_path / "build", 4))
    for message in messages:
        assert "needs 4 processes, but 2 were started" in message
        assert "torchrun --nproc-per-node 4 YOUR_SCRIPT.py" in message


def load_expecting_an_error(rank, folder):
    with pytest.raises(BuildError) as error:
        load(folder, timeout=30)
    return str(error.value)


def test_a_batch_of_another_shape_is_refused_before_anything_changes(tmp_path):
    step = load(write_build(tmp_path, 1), "cpu")
    batch = {"x": torch.zeros(8, 6, dtype=torch.float64), "y": torch.zeros(8, 4, dtype=torch.float64)}
    with pytest.raises(BuildError, match=r"the input 'x' is nothing, not torch.float64 \[8, 6\]"):
        step({"y": batch["y"]})
    with pytest.raises(
        BuildError, match=r"the input 'y' is torch.float32 \[8, 4\], not torch.float64 \[8, 4\]"
    ):
        step({**batch, "y": batch["y"].float()})
    assert step.steps == 0


@pytest.mark.ranks
def test_a_part_in_place_of_a_whole_batch_is_refused_with_the_way_to_say_it(tmp_path):
    messages = run_ranks(confuse_parts, 2, tmp_path, write_build(tmp_path / "build"))
    for rank, (part, whole) in enumerate(messages):
        assert "the input 'x' is torch.float64 [4, 6], not torch.float64 [8, 6]" in part
        assert "step(batch, is_own=True)" in part
        assert (
            f"rank {rank}'s part of the input 'x' is torch.float64 [8, 6], not torch.float64 [4, 6]" in whole
        )


def confuse_parts(rank, folder):
    step = load(folder, timeout=30)
    messages = []
    for size, is_own in ((4, False), (8, True)):
        batch = {name: torch.zeros(size, width, dtype=torch.float64) for name, width in (("x", 6), ("y", 4))}
        with pytest.raises(BuildError) as error:
            step(batch, is_own=is_own)
        messages.append(str(error.value))
    return messages


@pytest.mark.ranks
def test_a_device_the_group_does_not_serve_is_refused(tmp_path):
    (message, _) = run_ranks(load_on_meta, 2, tmp_path, write_build(tmp_path / "build"))
    assert "the process group communicates on cpu" in message
    assert "not on meta" in message


def load_on_meta(rank, folder):
    with pytest.raises(BuildError) as error:
        load(folder, "meta", timeout=30)
    return str(error.value)


def test_the_public_name_needs_no_compiler(tmp_path):
    write_build(tmp_path, 1)
    code = (
        f"import sys, torch, superscaler as ss; step = ss.load({str(tmp_path)!r}, 'cpu')\n"
        "step({'x': torch.zeros(8, 6).double(), 'y': torch.zeros(8, 4).double()})\n"
        "rooms = ('planner', 'codegen', 'compiler', 'search', 'simulator')\n"
        "print([m for m in sys.modules if m == 'ortools' or m.startswith(tuple('superscaler.' + r for r in rooms))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
