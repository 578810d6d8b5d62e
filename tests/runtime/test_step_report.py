"""What is reported of training: the right numbers, when they are due, wherever they are wanted."""

import io
import json
import os
import pty
import sys
from types import SimpleNamespace

import pytest
import torch

from models import gpt, text
from superscaler import compiler
from superscaler.ir.learning_rates import Cosine
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.runtime.build import read_build
from superscaler.runtime.step_report import StepReport, StepReports
from superscaler.runtime.step_writers import JsonLines, TensorBoard, console
from tests.runtime.forked_training import train
from tests.runtime.test_launch import train_eagerly
from tests.runtime.tiny_build import write_build

pytestmark = pytest.mark.ranks

REPORT = StepReport(
    step=3, loss=2.5, grad_norm=1.25, lr=0.1, tokens_per_second=1e3, seconds=0.5, memory_bytes=2**30, mfu=0.25
)


class Kept(list):
    """A writer that keeps reports."""

    def write(self, report):
        self.append(report)

    def close(self):
        pass


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_has_the_losses_of_eager_training_for_the_steps_that_are_due(tmp_path):
    folder = write_build(tmp_path / "build")
    log = tmp_path / "log.jsonl"
    result = train(folder, 2, "--steps", 7, "--log", log, "--log-every", 3)
    assert result.codes == [0, 0], result.errors
    eager, _ = train_eagerly(folder, 7)
    assert [line["step"] for line in read(log)] == [3, 6, 7]
    assert [line["loss"] for line in read(log)] == pytest.approx([eager[2], eager[5], eager[6]], rel=1e-12)
    assert all(line["seconds"] > 0 and line["memory_bytes"] > 10**6 for line in read(log))
    assert read(log)[0]["mfu"] is None
    assert result.output.count("step ") == 3


def test_a_resumed_run_goes_on_in_its_log_and_rewrites_the_steps_it_makes_again(tmp_path):
    folder = write_build(tmp_path / "build", 1)
    log = tmp_path / "log.jsonl"
    options = ["--checkpoint", tmp_path / "run", "--log", log]
    assert train(folder, 1, "--steps", 4, *options).codes == [0]
    with log.open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 99.0}) + '\n{"step": 6, "lo')
    assert train(folder, 1, "--steps", 6, "--resume", *options).codes == [0]
    eager, _ = train_eagerly(folder, 6)
    assert [line["step"] for line in read(log)] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in read(log)] == pytest.approx(eager, rel=1e-12)


def test_between_reports_nothing_waits_for_the_loss(tmp_path):
    class Loss(torch.Tensor):
        waited = 0

        def __float__(self):
            Loss.waited += 1
            return 1.0

    build, kept = read_build(write_build(tmp_path, 1)), Kept()
    reports = StepReports(build, torch.device("cpu"), steps=10, every=4, writers=[kept])
    for step in range(1, 11):
        loss = torch.zeros(()).as_subclass(Loss)
        reports.after_step(SimpleNamespace(step=step, steps=step, losses=[loss]), {})
    assert [report.step for report in kept] == [4, 8, 10]
    assert Loss.waited == 3


def test_a_compiled_build_knows_its_arithmetic_learning_rate_and_tokens(tmp_path):
    sizes = {"layers": 1, "width": 16, "heads": 2, "vocab": 64, "seq": 8}
    optimizer = AdamW(lr=Cosine(peak=0.4, warmup=2, total=10), clip_norm=1.0)
    graph = trace(
        gpt.build("tiny", **sizes), gpt.example_inputs("tiny", batch=4, **sizes), optimizer=optimizer
    )
    folder = compiler.plan(graph, Cluster.local(1)).verify().save(tmp_path / "build")
    text.write_dataset(folder / "data.safetensors", sizes["seq"], sizes["vocab"])
    log = tmp_path / "log.jsonl"
    result = train(folder, 1, "--steps", 4, "--log", log, "--peak-flops", 1e12)
    assert result.codes == [0], result.errors
    lines = read(log)
    assert [line["lr"] for line in lines] == pytest.approx(
        [0.2, 0.4, 0.4 * 0.9619397662556434, 0.4 * 0.85355339]
    )
    tokens, parameters = 4 * 8, 16 * 16 * 4 + 16 * 64 * 2 + 16 * 64  # of products
    attention = 4 * 2 * 8 * 8 * 8 * 2
    flops = 3 * (2 * tokens * parameters + 2 * attention)
    for line in lines:
        assert line["grad_norm"] > 0
        assert line["tokens_per_second"] * line["seconds"] == pytest.approx(tokens)
        assert line["mfu"] * 1e12 * line["seconds"] == pytest.approx(flops, rel=0.15)
    assert read_build(folder).work.peak_flops is None


def test_a_cluster_from_a_data_sheet_has_a_known_peak(tmp_path):
    sizes = {"layers": 1, "width": 16, "heads": 2, "vocab": 64, "seq": 8}
    graph = trace(
        gpt.build("tiny", **sizes), gpt.example_inputs("tiny", batch=8, **sizes), optimizer=AdamW(lr=0.1)
    )
    folder = compiler.plan(graph, Cluster.preset("dgx-a100"), "dp=8").verify().save(tmp_path / "build")
    assert read_build(folder).work.peak_flops == 8 * Cluster.preset("dgx-a100").flops("float32")


def test_numbers_json_has_no_word_for_are_null(tmp_path):
    writer = JsonLines(tmp_path / "log.jsonl")
    writer.write(StepReport(1, float("nan"), float("inf"), [0.1, 0.2], 1.0, 1.0, 1, None))
    writer.close()
    (line,) = read(tmp_path / "log.jsonl")
    assert (line["loss"], line["grad_norm"], line["lr"]) == (None, None, [0.1, 0.2])


def test_a_terminal_gets_one_line_that_grows_and_a_pipe_gets_lines():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        bar = console(4, 0, terminal)
        bar.write(REPORT)
        bar.close()
        shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "3/4 [##################......] loss 2.5000  grad norm 1.250  1000 tokens/s" in shown
    assert shown.count("\n") == 1
    pipe = io.StringIO()
    lines = console(4, 0, pipe)
    lines.write(REPORT)
    lines.close()
    assert pipe.getvalue() == "step 3/4  loss 2.5000  grad norm 1.250  1000 tokens/s  MFU 25.0%  1.00 GiB\n"


def test_tensorboard_reads_back_what_was_reported(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorBoard(tmp_path / "events")
    writer.write(REPORT)
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    ((loss),) = events.Scalars("loss")
    assert (loss.step, loss.value) == (3, 2.5)
    assert set(events.Tags()["scalars"]) == {
        "loss", "grad_norm", "lr", "tokens_per_second", "seconds", "memory_bytes", "mfu",
    }  # fmt: skip


def without_tensorboard():
    sys.modules["torch.utils.tensorboard"] = None


def test_tensorboard_that_is_not_installed_says_what_to_install(tmp_path):
    folder = write_build(tmp_path / "build", 1)
    result = train(folder, 1, "--steps", 1, "--tensorboard", tmp_path / "events", patch=without_tensorboard)
    assert result.codes == [1]
    assert "pip install 'superscaler[tensorboard]'" in result.errors
