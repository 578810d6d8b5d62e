"""CUDA graphs are refused where they cannot be, and what surrounds one holds to its rules; without a GPU."""

import contextlib

import pytest
import torch
import torch.distributed as dist

from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.cuda_graph import CudaRecorder, CudaRecording, check_recordable
from superscaler.runtime.loaded import load
from superscaler.runtime.pending_sends import PendingSends
from superscaler.runtime.session import load_module
from superscaler.runtime.waits import Waits
from tests.runtime.ranks import run_ranks
from tests.runtime.test_launch import start
from tests.runtime.test_recorded import compiled, model
from tests.runtime.tiny_build import write_build

GPU = torch.device("cuda", 0)


def check(folder, device=GPU, rank=0):
    build = read_build(folder)
    check_recordable(build, rank, load_module(folder, build.program_of(rank)), device)


def test_a_program_of_one_gpu_is_taken(tmp_path):
    check(compiled(tmp_path, "micro_batches=2", model()))


def test_a_cpu_is_refused(tmp_path):
    folder = compiled(tmp_path, "none", model())
    with pytest.raises(
        BuildError, match="rank 0 runs on cpu, and CUDA graphs are of GPUs\n  remedy: train without"
    ):
        load(folder, "cpu", cuda_graphs=True)


@pytest.mark.parametrize("kept", ["activations", "optimizer", "parameters"])
def test_host_memory_is_refused(kept, tmp_path):
    folder = compiled(tmp_path, f"offload={kept}", model())
    with pytest.raises(
        BuildError, match=r"it keeps tensors in host memory \(.*(stow|update_fetching|fetch_ahead)"
    ):
        check(folder)


def check_on_a_rank(rank, folder):
    assert dist.get_backend() == "gloo"
    with pytest.raises(BuildError, match="its ranks communicate by gloo, and only NCCL can be recorded"):
        check(folder, rank=rank)


@pytest.mark.ranks
def test_ranks_that_communicate_by_gloo_are_refused(tmp_path):
    run_ranks(check_on_a_rank, 2, tmp_path, write_build(tmp_path / "build"))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "no step of tiny can be recorded in a CUDA graph: rank 0 runs on cpu"),
        (["--profile", "traces"], "--cuda-graphs replays steps without calling them"),
    ],
)
def test_a_script_that_cannot_record_says_so_at_its_start(options, reason, tmp_path):
    result = start(write_build(tmp_path / "build", 1), "--cuda-graphs", *options, ranks=0)
    assert result.returncode == 1
    assert reason in result.stderr
    assert "step 1" not in result.stdout


def test_no_more_than_one_replay_waits_behind_another(monkeypatch):
    done = []

    class Event:
        def record(self):
            done.append(f"replay {sum(entry.startswith('replay') for entry in done)}")
            self.name = done[-1]

        def synchronize(self):
            done.append(f"waited for {self.name}")

    class Graph:
        def replay(self):
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    recording = CudaRecording(Graph())
    for _ in range(4):
        recording.replay()
    assert done == [
        "replay 0", "replay 1", "waited for replay 0", "replay 2", "waited for replay 1", "replay 3",
    ]  # fmt: skip


def test_what_failed_in_a_record_is_told_and_not_what_its_end_says(monkeypatch):
    @contextlib.contextmanager
    def graph(*_, **__):
        try:
            yield
        finally:
            raise RuntimeError("capture was invalidated")

    def step():
        raise RuntimeError("the cause")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(RuntimeError, match="the cause"):
        CudaRecorder(GPU).record(step)
    with pytest.raises(RuntimeError, match="capture was invalidated"):
        CudaRecorder(GPU).record(dict)


def test_events_and_sends_that_are_recorded_are_not_asked_whether_they_are_done(monkeypatch):
    class Recorded:
        waited = 0

        def is_completed(self):
            raise RuntimeError("operation not permitted when stream is capturing")

        def wait(self):
            self.waited += 1

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Recorded)
    waits = Waits("cuda")
    with waits.during("send", "stage 1", (0, 1)):
        assert waits.oldest().operation == "send"
    assert waits.oldest() is None
    sends, works = PendingSends(is_gloo=False), [Recorded(), Recorded()]
    for work in works:
        sends.add(work, torch.zeros(1))
    sends.wait()
    assert [work.waited for work in works] == [1, 1]
