"""A build trains over two hosts as on one process, through a short fault of the network, and ends in a long one."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from models import gpt
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.jobs.job import job_of
from superscaler.jobs.torchrun import torchrun_commands
from superscaler.planner.cluster import Cluster
from superscaler.runtime.build import read_build
from tests.jobs.two_hosts import ADDRESSES, INTERFACE, may_make_hosts, two_hosts
from tests.runtime import forked_training

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.skipif(not may_make_hosts(), reason="needs the right to make network namespaces"),
]

SIZES = {"layers": 2, "width": 16, "heads": 4, "seq": 8, "vocab": 32}
TIMEOUT = 8


def compiled(folder, plan, devices):
    torch.manual_seed(0)
    model, inputs = gpt.build("tiny", **SIZES).double(), gpt.example_inputs("tiny", batch=8, **SIZES)
    compiler.compile(
        model, inputs, cluster=Cluster.local(devices), plan=plan, optimizer=AdamW(lr=1e-4), save=folder
    )
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Two pipeline stages, each on both hosts: every axis of the plan leads over the cable."""
    folder = compiled(tmp_path_factory.mktemp("build") / "gpt", "dp=2,pp=2,micro_batches=2", 4)
    torch.manual_seed(1)
    save_file(gpt.example_inputs("tiny", batch=24, **SIZES), folder.parent / "data.safetensors")
    return folder


def commands(build, *arguments, max_restarts=0):
    data = ["--data", str(build.parent / "data.safetensors"), "--timeout", str(TIMEOUT), "--threads", "1"]
    job = job_of(
        read_build(build), nodes=2, processes=2, arguments=[*data, "--backend", "gloo", *map(str, arguments)],
        environment={"GLOO_SOCKET_IFNAME": INTERFACE}, is_gpu=False,
        max_restarts=max_restarts,
    )  # fmt: skip
    return [line for line in torchrun_commands(job, ADDRESSES).splitlines() if not line.startswith("#")]


def losses_alone(build, tmp_path, steps):
    folder = compiled(tmp_path / "alone", "none", 1)
    return forked_training.losses(folder, 1, "--steps", steps, "--data", build.parent / "data.safetensors")


def wait_for_step(hosts, step):
    """Return once some host has printed this step."""
    for _ in range(600):
        if any(f"step {step}/" in text for text in hosts.printed("out")):
            return
        assert all(process.poll() is None for process in hosts.running), hosts.printed("err")
        time.sleep(0.1)
    raise AssertionError(f"step {step} is not reached: {hosts.printed('err')}")


def test_losses_are_those_of_one_process_also_when_the_network_fails_for_a_second(build, tmp_path):
    with two_hosts(tmp_path) as hosts:
        hosts.start(commands(build, "--steps", 300, "--losses", tmp_path / "losses.json"))
        wait_for_step(hosts, 50)
        hosts.cut()
        time.sleep(1)
        hosts.mend()
        assert hosts.codes() == [0, 0], hosts.printed("err")
    found = json.loads((tmp_path / "losses.json").read_text())
    assert found == pytest.approx(losses_alone(build, tmp_path, 300), rel=1e-9)


def test_a_process_that_is_killed_comes_back_and_the_losses_are_the_same(build, tmp_path):
    keeps = ["--checkpoint", tmp_path / "run", "--checkpoint-every", 20, "--resume"]
    options = ["--steps", 200, "--losses", tmp_path / "losses.json", *keeps]
    with two_hosts(tmp_path) as hosts:
        hosts.start(commands(build, *options, max_restarts=2))
        wait_for_step(hosts, 50)
        hosts.kill_a_rank(host=1)
        assert hosts.codes() == [0, 0], hosts.printed("err")
        assert any("note: the run goes on from" in text for text in hosts.printed("out"))
    found = json.loads((tmp_path / "losses.json").read_text())
    assert found == pytest.approx(losses_alone(build, tmp_path, 200), rel=1e-9)


def test_hosts_that_lose_each_other_for_good_both_end_and_name_what_they_waited_for(build, tmp_path):
    with two_hosts(tmp_path) as hosts:
        hosts.start(commands(build, "--steps", 1_000_000))
        wait_for_step(hosts, 50)
        hosts.cut()
        assert hosts.codes() == [1, 1]
        for own, text in zip(((0, 1), (2, 3)), hosts.printed("err"), strict=True):
            lines = [line for line in text.splitlines() if line.startswith("superscaler: rank ")]
            assert {int(line.split()[2].rstrip(":")) for line in lines} <= set(own)
            assert any("CommunicationError" in line for line in lines)
            assert "missing: " in text
            assert "in step " in text
            assert "stage" in text
            assert f"{TIMEOUT} s" in text or f"{TIMEOUT} seconds" in text
