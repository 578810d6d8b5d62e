"""A compiled model goes on under any other plan and number of devices: dropout, a dynamic loss scale, tied weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import gpt
from superscaler import compiler
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from tests.runtime.forked_training import losses, train

pytestmark = pytest.mark.ranks

SIZES = {"layers": 2, "width": 12, "heads": 6, "vocab": 24, "seq": 4}
BATCH, STEPS, SAVED_AT = 12, 6, 3
PLANS = (
    "none",
    "dp=2,tp=2,zero=1",
    "pp=2,micro_batches=2",
    "tp=2",
    "dp=3",
    "dp=2,zero=3",
    "dp=2,offload=optimizer",
)


def make_model(**sizes):
    torch.manual_seed(0)
    return gpt.build("tiny", **{**SIZES, **sizes}, dropout=0.1).double()


def compile_plans(folder, model, plans, optimizer=None, batch=BATCH):
    inputs = gpt.example_inputs("tiny", batch=batch, **SIZES)
    graph = trace(
        model,
        inputs,
        optimizer=optimizer or AdamW(lr=1e-2),
        loss_scale=LossScale(init=8.0, interval=2),
    )
    for plan in plans:
        compiler.plan(graph, Cluster.local(parse_plan(plan).num_devices), plan).verify().save(folder / plan)
    return folder


def devices(plan):
    return parse_plan(plan).num_devices


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builds")
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(SIZES["vocab"], (40, SIZES["seq"] + 1), generator=generator)
    save_file(
        {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()},
        folder / "data.safetensors",
    )
    return compile_plans(folder, make_model(), PLANS)


def run(builds, plan, *options):
    return losses(builds / plan, devices(plan), "--data", builds / "data.safetensors", *options)


@pytest.fixture(scope="module")
def uninterrupted(builds, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "weights.safetensors"
    return run(builds, "none", "--steps", STEPS, "--save", out, "--save-state"), load_file(out)


@pytest.mark.parametrize("saved", ["dp=2,tp=2,zero=1", "pp=2,micro_batches=2", "dp=2,offload=optimizer"])
def test_losses_and_all_tensors_are_those_of_the_run_that_never_stopped(
    builds, uninterrupted, tmp_path, saved
):
    run(builds, saved, "--steps", SAVED_AT, "--checkpoint", tmp_path / "run")
    expected_losses, expected = uninterrupted
    for plan in PLANS:
        copy = shutil.copytree(tmp_path / "run", tmp_path / f"run-{plan}")
        out = tmp_path / "out.safetensors"
        options = ["--steps", STEPS, "--checkpoint", copy, "--resume", "--save", out, "--save-state"]
        assert run(builds, plan, *options) == pytest.approx(expected_losses, rel=1e-10, abs=1e-10)
        found = load_file(out)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("plan", ["none", "dp=2,tp=2,zero=1", "pp=2,micro_batches=2"])
def test_under_the_same_plan_they_are_so_bit_for_bit(builds, tmp_path, plan):
    def all_of_it(name, *options):
        return run(builds, plan, "--save", tmp_path / name, "--save-state", "--steps", STEPS, *options)

    expected = all_of_it("whole.safetensors")
    options = ["--checkpoint", tmp_path / "run"]
    run(builds, plan, "--steps", SAVED_AT, *options)
    assert all_of_it("resumed.safetensors", "--resume", *options) == expected
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert resumed["loss_scale/scale"] > 8.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": 18}, ["other: wte.weight is float64 [24, 12], not float64 [24, 18]", "the same model"]),
        ({"layers": 1}, ["left over: h.1.attn", "a build of the same model"]),
        ({"layers": 3}, ["missing: h.2.ln_1.weight", "a build of the same model"]),
        (
            {"optimizer": SGD(lr=0.1, momentum=0.9)},
            ["left over: ", "missing: ", "momentum", "optimizer of the run"],
        ),
        ({"batch": 6}, ["batches of 12", "batches of 6", "batch size"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_model_optimizer_or_batch_is_refused_by_name(builds, tmp_path, change, expected):
    run(builds, "none", "--steps", 1, "--checkpoint", tmp_path / "run")
    other = {name: change[name] for name in ("optimizer", "batch") if name in change}
    sizes = {name: size for name, size in change.items() if name not in other}
    folder = compile_plans(tmp_path, make_model(**sizes), ["dp=2"], **other)
    data = ["--data", builds / "data.safetensors"]
    refused = train(folder / "dp=2", 2, "--resume", "--checkpoint", tmp_path / "run", *data)
    assert refused.codes == [1, 1]
    assert refused.errors.count("BuildError") == 2
    for text in expected:
        assert text in refused.errors, refused.errors


def test_weights_are_exported_from_a_checkpoint_and_start_a_run(builds, tmp_path):
    run(builds, "dp=2,zero=3", "--steps", 2, "--checkpoint", tmp_path / "run")
    out = tmp_path / "out"
    run(builds, "tp=2", "--resume", "--steps", 0, "--checkpoint", tmp_path / "run", "--save", out)
    model = make_model()
    missing, unexpected = model.load_state_dict(load_file(out / "model.safetensors"), strict=False)
    assert (missing, unexpected) == ([], [])
    direct = tmp_path / "direct.safetensors"
    run(builds, "dp=2,zero=3", "--steps", 2, "--save", direct)
    for name, value in load_file(direct).items():
        torch.testing.assert_close(load_file(out / "model.safetensors")[name], value, rtol=1e-10, atol=1e-10)
    assert len(run(builds, "none", "--weights", out, "--steps", 1)) == 1


def test_shuffled_samples_go_on_where_they_were_in_a_later_epoch(builds, tmp_path):
    expected = run(builds, "none", "--steps", STEPS, "--shuffle")
    options = ["--checkpoint", tmp_path / "run", "--shuffle"]
    run(builds, "dp=3", "--steps", 4, *options)
    resumed = run(builds, "pp=2,micro_batches=2", "--steps", STEPS, "--resume", *options)
    assert resumed == pytest.approx(expected, rel=1e-10)
    assert resumed != pytest.approx(run(builds, "none", "--steps", STEPS), rel=1e-3)
