"""A recorded step, replayed, trains to the bit as its program; and what no record can hold is refused."""

import copy
import json
import math
from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file

from models import gpt
from superscaler import compiler
from superscaler.errors import BuildError
from superscaler.ir.learning_rates import Cosine, Linear
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import SGD, Adam, AdamW, Lion
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.runtime import cuda_graph
from superscaler.runtime.cuda_graph import CudaRecorder
from superscaler.runtime.loaded import load
from superscaler.runtime.recorded import WARM_UP, record_program
from tests.runtime import forked_training
from tests.runtime.emulated_graph import EmulatedRecorder
from tests.runtime.ranks import run_ranks

SIZES = {"layers": 2, "width": 16, "heads": 4, "seq": 8, "vocab": 32}
SCHEDULE = Cosine(1e-2, warmup=5, total=12, floor=1e-4)
OPTIMIZER = AdamW(lr=SCHEDULE, eps=1e-5, clip_norm=0.5)
BATCH, STEPS, NEVER = 8, 10, 1000


def model(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    return gpt.build("tiny", **({"dropout": dropout} if dropout else {}), **SIZES).to(dtype)


def batches():
    torch.manual_seed(1)
    return [gpt.example_inputs("tiny", batch=BATCH, **SIZES) for _ in range(STEPS)]


def compiled(folder, plan, trained, **options):
    cluster = Cluster.local(parse_plan(plan).num_devices)
    options = {"optimizer": OPTIMIZER, **options}
    compiler.compile(trained, batches()[0], cluster=cluster, plan=plan, save=folder, **options)
    return folder


def train(folder, recorder=None, warm_up=WARM_UP, device="cpu", **options):
    """Losses of all steps, and what this rank holds after them; by a recorder, if one is given."""
    step = load(folder, device, timeout=120, **options)
    if recorder:
        everyone = range(step.build.world_size)
        record_program(step._module, recorder, step._waits, everyone, warm_up)
    losses = [step(batch) for batch in batches()]  # read after the last: no replay has overwritten another's
    return [loss.item() for loss in losses], {**step.weights, **step.state}, step.state_dict()


def assert_same(found, wanted):
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        assert torch.equal(found[1][name], value), name


def eager():
    """The same training in PyTorch, with the formula of the schedule written out."""
    trained = model()
    optimizer = torch.optim.AdamW(
        trained.parameters(), eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )
    losses = []
    for number, batch in enumerate(batches(), 1):
        part = (number - SCHEDULE.warmup) / (SCHEDULE.total - SCHEDULE.warmup)
        falling = SCHEDULE.floor + (SCHEDULE.peak - SCHEDULE.floor) * (1 + math.cos(math.pi * part)) / 2
        rising = SCHEDULE.peak * number / SCHEDULE.warmup
        optimizer.param_groups[0]["lr"] = rising if part < 0 else falling
        optimizer.zero_grad()
        loss = trained(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, trained.state_dict()


def assert_trained_as_eager(losses, weights, rtol=1e-9):
    truth, state = eager()
    assert losses == pytest.approx(truth, rel=rtol)
    for name, value in state.items():
        torch.testing.assert_close(weights[name], value, rtol=rtol, atol=rtol)


BUILDS = {
    "schedule and clipping": ("none", {}, {}),
    "micro-batches": ("micro_batches=2", {}, {}),
    "recomputation": ("recompute=layers,micro_batches=2", {}, {}),
    "dropout": ("micro_batches=2", {"dtype": torch.float32, "dropout": 0.2}, {}),
    "autocast": ("micro_batches=2", {"dtype": torch.float32}, {"autocast": "bfloat16"}),
    "master weights": (
        "none",
        {"dtype": torch.bfloat16},
        {"optimizer": AdamW(lr=SCHEDULE, clip_norm=0.5, master_weights=True)},
    ),
    "sgd": ("none", {}, {"optimizer": SGD(lr=Linear(0.1, 2, 12), momentum=0.9)}),
    "adam": ("none", {}, {"optimizer": Adam(lr=1e-3, weight_decay=0.1)}),
    "lion": ("none", {}, {"optimizer": Lion(lr=SCHEDULE, clip_norm=0.5)}),
}


@pytest.mark.parametrize("name", BUILDS)
def test_replays_train_to_the_bit_as_the_program(name, tmp_path):
    plan, made, options = BUILDS[name]
    folder = compiled(tmp_path, plan, model(**made), **options)
    recorder = EmulatedRecorder()
    found = train(folder, recorder)
    assert (recorder.warmed_up, recorder.recordings[0].replays) == (WARM_UP, STEPS - WARM_UP)
    assert_same(found, train(folder))


@pytest.mark.parametrize("optimizer", [AdamW, SGD, Lion])
def test_steps_that_overflow_are_skipped_in_replays_too(optimizer, tmp_path):
    """The scale is too large for all steps before the record and some after it, so the first update is a replay's."""
    momentum = {"momentum": 0.9} if optimizer is SGD else {}
    options = {
        "optimizer": optimizer(lr=SCHEDULE, clip_norm=0.5, **momentum),
        "loss_scale": LossScale(init=2.0**26, interval=2),
    }
    folder = compiled(tmp_path, "none", model(torch.float32), autocast="float16", **options)
    found = train(folder, EmulatedRecorder())
    assert WARM_UP < STEPS - found[1]["loss_scale/updates"].item() < STEPS
    assert_same(found, train(folder))


def train_on_a_rank(rank, folder):
    recorder = EmulatedRecorder()
    found, plain = train(folder, recorder), train(folder)
    assert recorder.recordings[0].replays == STEPS - WARM_UP
    assert_same(found, plain)
    return found[0], found[2]


PLANS = [
    "none", "dp=2,zero=1,micro_batches=2", "dp=2,zero=2", "dp=2,zero=3,micro_batches=2", "tp=2", "tp=2,sp", "cp=2",
    "pp=2,micro_batches=2", "pp=2,micro_batches=4,recompute=layers",
]  # fmt: skip


@pytest.mark.ranks
@pytest.mark.parametrize("plan", PLANS)
def test_replays_train_as_eager_under_every_plan(plan, tmp_path):
    folder = compiled(tmp_path / "build", plan, model())
    ranks = parse_plan(plan).num_devices
    for losses, weights in run_ranks(train_on_a_rank, ranks, tmp_path, folder):
        assert_trained_as_eager(losses, weights)


class Changed(EmulatedRecorder):
    """A recorder of a program some of whose step is another in the record."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def record(self, step):
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.patch(monkeypatch)
            return super().record(step)


def freeze_rate(monkeypatch):
    monkeypatch.setattr("superscaler.runtime.ops.cosine_rate", lambda step, **options: 1e-3)


def freeze_corrections(monkeypatch):
    def adam(kernel, p, g, m, v, step, *, skip, **options):
        steps = [torch.full((), 4.0, dtype=p[0].dtype)] * len(p)
        kernel(p, g, m, v, [], steps, amsgrad=False, maximize=False, found_inf=skip, **options)

    monkeypatch.setattr(import_module("superscaler.runtime.ops.adam"), "_kernel", adam)


def freeze_masks(monkeypatch):
    monkeypatch.setattr(import_module("superscaler.runtime.ops.dropout"), "seed_at", lambda key, step: 7)


@pytest.mark.parametrize("freeze", [freeze_rate, freeze_corrections, freeze_masks])
def test_a_number_of_python_in_a_record_would_be_seen(freeze, tmp_path):
    folder = compiled(tmp_path, "none", model(dropout=0.2))
    found, plain = train(folder, Changed(freeze)), train(folder)
    assert found[0][:WARM_UP] == plain[0][:WARM_UP]
    assert found[0] != plain[0]


def test_a_step_that_waits_for_the_device_is_refused_with_its_line(tmp_path):
    folder = compiled(tmp_path, "none", model())
    stage = folder / "stage0.py"
    begin = "    grads, kept = {}, {}\n"
    stage.write_text(stage.read_text().replace(begin, f"{begin}    int(step)\n"))
    with pytest.raises(BuildError, match=r"step 4 cannot be recorded .*_local_scalar_dense") as caught:
        train(folder, EmulatedRecorder(), allow_edited=True)
    assert "without --cuda-graphs" in str(caught.value)
    frames = [str(entry.path) for entry in caught.traceback]
    assert str(stage) in frames


def test_what_a_user_keeps_of_a_step_stays(tmp_path):
    folder = compiled(tmp_path, "none", model())
    step, plain = load(folder), load(folder)
    record_program(step._module, EmulatedRecorder(), step._waits, (0,))
    kept = []
    for batch in batches():
        assert torch.equal(step(batch), plain(batch))
        kept.append((step.outputs["grad_norm"], plain.outputs["grad_norm"]))
    assert all(torch.equal(ours, theirs) for ours, theirs in kept)


def test_a_watchdog_is_told_of_replays(tmp_path):
    seen = []

    class Watched(EmulatedRecorder):
        def record(self, run):
            outputs, recording = super().record(run)
            replay = recording.replay
            recording.replay = lambda: (seen.append(step._waits.oldest()), replay())
            return outputs, recording

    step = load(compiled(tmp_path, "none", model()))
    record_program(step._module, Watched(), step._waits, range(2))
    for batch in batches():
        step(batch)
    assert {(wait.operation, wait.ranks) for wait in seen} == {("the replay of a recorded step", (0, 1))}
    assert step._waits.oldest() is None


def test_weights_put_elsewhere_after_the_record_are_refused(tmp_path):
    step = load(compiled(tmp_path, "none", model()))
    record_program(step._module, EmulatedRecorder(), step._waits, (0,))
    for batch in batches()[: WARM_UP + 1]:
        step(batch)
    step.weights["wte.weight"] = step.weights["wte.weight"].clone()
    with pytest.raises(BuildError, match=r"'wte.weight' is another tensor than when the step was recorded"):
        step(batches()[0])


def record_without_a_gpu():
    """Let ``--cuda-graphs`` record by the emulation, wherever it is."""
    cuda_graph.check_recordable = lambda *given: None
    cuda_graph.CudaRecorder = lambda device: EmulatedRecorder()


@pytest.mark.ranks
def test_a_run_that_is_recorded_is_saved_and_resumed_between_replays(tmp_path):
    folder = compiled(tmp_path / "build", "dp=2,zero=1,micro_batches=2", model())
    joined = {name: torch.cat([batch[name] for batch in batches()]) for name in batches()[0]}
    save_file(joined, tmp_path / "data.safetensors")
    given = ["--data", tmp_path / "data.safetensors"]
    wanted = forked_training.losses(folder, 2, *given, "--steps", STEPS)
    options = [*given, "--cuda-graphs", "--checkpoint", tmp_path / "run", "--checkpoint-every", 1]
    result = forked_training.train(folder, 2, *options, "--steps", 6, patch=record_without_a_gpu)
    assert result.codes == [0, 0], result.errors
    path = tmp_path / "losses.json"
    options += ["--resume", 5, "--losses", path, "--steps", STEPS]
    result = forked_training.train(folder, 2, *options, patch=record_without_a_gpu)
    assert result.codes == [0, 0], result.errors
    assert json.loads(path.read_text()) == wanted
    assert wanted == pytest.approx(eager()[0], rel=1e-9)


def train_on_a_gpu(folder, **options):
    device = torch.device("cuda", 0)
    return train(folder, CudaRecorder(device), device=device, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("plan", ["none", "micro_batches=2", "recompute=layers,micro_batches=2"])
def test_on_a_gpu_replays_train_as_eager(plan, tmp_path):
    """Rates are float32 there."""
    folder = compiled(tmp_path, plan, model())
    losses, _, weights = train_on_a_gpu(folder)
    assert_trained_as_eager(losses, weights, rtol=1e-6)
    again = train_on_a_gpu(folder, warm_up=NEVER)
    assert losses == pytest.approx(again[0], rel=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("name", ["dropout", "autocast", "master weights", "lion"])
def test_on_a_gpu_replays_train_as_the_program(name, is_compiled, tmp_path):
    """In low precision sums of another order are other sums: the first steps must agree, and losses fall alike."""
    plan, made, options = BUILDS[name]
    folder = compiled(tmp_path, plan, model(**made), **options)
    found = train_on_a_gpu(folder, compile=is_compiled)
    again = train_on_a_gpu(folder, compile=is_compiled, warm_up=NEVER)
    assert found[0] == pytest.approx(again[0], rel=2e-3)


@pytest.mark.gpu
def test_on_a_gpu_a_program_is_recorded_where_that_is_asked_for(tmp_path):
    folder = compiled(tmp_path, "micro_batches=2", model())
    with load(folder, "cuda:0", cuda_graphs=True) as step:
        losses = [step(batch) for batch in batches()]
        weights = copy.deepcopy(step.state_dict())
        assert step._recorded._recording is not None
    assert_trained_as_eager([loss.item() for loss in losses], weights, rtol=1e-6)
