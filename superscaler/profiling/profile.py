"""Profile: measure the machine at hand, and make a cluster and a database of times of it."""

import os
import pickle
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from superscaler.compiler import CompiledPlan, plan
from superscaler.errors import ProfileError
from superscaler.ir.deferred import deferred_init
from superscaler.ir.float8 import FLOAT8 as NARROW
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster, Nodes
from superscaler.planner.device import FLOAT8, Device
from superscaler.planner.prices import Prices
from superscaler.planner.profile_database import ProfileDatabase
from superscaler.profiling.call import Call, calls_of
from superscaler.profiling.fit import OperatorTime, fit_device, fit_links
from superscaler.profiling.measuring import Result, Task
from superscaler.profiling.standard_models import SIZES, Sizes, standard_models

COLLECTIVE_BYTES = {True: (2**12, 2**18, 2**22), False: (2**10, 2**14, 2**18, 2**22, 2**24, 2**26)}
"""By whether it should be quick."""
QUICK_SECONDS, FULL_SECONDS = 0.01, 0.05
"""Spent on each call."""
DTYPES = {"float64": "float64", "half": "bfloat16"}
"""Class of dtypes -> the dtype that is measured for it, beside float32."""


@dataclass(frozen=True)
class Profile:
    """What was measured of a machine."""

    cluster: Cluster
    database: ProfileDatabase
    not_measured: tuple[str, ...]
    """Calls that cannot be made with random values."""
    curve_error: float
    """By which part of the measured time the curves miss it, of half of the calls that they were fitted to."""

    def save(self, path: Path, database: Path) -> None:
        """Write the cluster as YAML, and add the times of calls to a database.

        Raises:
            PlanError: There is a database that is damaged.
        """
        known = ProfileDatabase.load(database) if database.exists() else ProfileDatabase()
        known.merged(self.database).save(database)
        self.cluster.save(path, os.path.relpath(database, path.parent))

    def __str__(self) -> str:
        """Print the peaks, and how well the curves fit."""
        (nodes,) = self.cluster.nodes
        device, link = nodes.device, nodes.link
        speeds = ", ".join(f"{speed / 1e9:.4g} in {kind}" for kind, speed in device.flops_per_second)
        is_guess = " (a guess: one device was measured)" if nodes.num_devices == 1 else ""
        lines = [
            f"{nodes.num_devices} x {device.name}",
            f"GFLOP/s {speeds}; memory {device.memory_bandwidth / 1e9:.4g} GB/s",
            f"links {link.bandwidth / 1e9:.4g} GB/s after {link.latency * 1e6:.4g} us{is_guess}",
            f"{len(self.database.seconds)} calls measured; half are within {self.curve_error:.0%} of the curves",
        ]
        lines += [f"not measured: {call}" for call in self.not_measured]
        return "\n".join(lines)


def profile(
    num_devices: int = 1, backend: str = "", *, quick: bool = False, model: CompiledPlan | None = None
) -> Profile:
    """Measure operators of every class and collectives, on `num_devices` of this machine at the same time.

    Args:
        num_devices: Processes, on a GPU each or sharing the CPU.
        backend: gloo measures CPUs, nccl GPUs; by default GPUs if there are any.
        quick: Fewer sizes and shorter measurements.
        model: A plan whose programs' operators are measured too, so that the database knows them exactly.

    Raises:
        ProfileError: There are not so many GPUs, or a process failed.
    """
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "nccl" and torch.cuda.device_count() < num_devices:
        raise ProfileError(
            f"{num_devices} GPUs should be measured, there are {torch.cuda.device_count()}",
            remedy="ask for fewer --devices, or measure CPUs with --backend gloo",
        )
    name, memory_bytes = _device(backend, num_devices)
    standard = _standard_calls(SIZES["cpu" if backend == "gloo" else "cuda", quick], name)
    of_model = (
        calls_of(model.programs, Prices(model.materialized.placed, model.cluster), name) if model else {}
    )
    largest = max(
        (call for call in standard.values() if call.operator.kind == "linear"),
        key=lambda call: call.work.flops,
    )
    others = {kind: largest.in_dtype(dtype) for kind, dtype in DTYPES.items()}
    others[FLOAT8] = others["half"].of_kind(NARROW["linear"])  # no GPU before Ada makes it
    calls = {**standard, **of_model, **{call.text: call for call in others.values()}}
    task = Task(
        backend,
        tuple(calls.values()),
        seconds_per_call=QUICK_SECONDS if quick else FULL_SECONDS,
        sizes=COLLECTIVE_BYTES[quick],
        runs=10 if quick else 30,
    )
    result = _run(task, num_devices)
    seconds = {text: taken for text, taken in zip(calls, result.seconds, strict=True) if taken is not None}
    times = [OperatorTime(call.work, seconds[text]) for text, call in standard.items() if text in seconds]
    speeds = {
        kind: seconds[largest.text] / seconds[call.text]
        for kind, call in others.items()
        if kind in DTYPES or call.text in seconds
    }
    device = fit_device(name, memory_bytes, times, {"float32": 1.0, **speeds}, result.host_bandwidth)
    guess = Cluster.local(1)
    link, transport = (
        fit_links(backend, result.collectives)
        if result.collectives
        else (guess.nodes[0].link, guess.transport)
    )
    nodes = Nodes(1, num_devices, device, link, link, num_devices)
    database = ProfileDatabase(seconds)
    cluster = Cluster(f"profile of {platform.node()}", (nodes,), transport, database)
    not_measured = tuple(text for text in calls if text not in seconds)
    return Profile(cluster, database, not_measured, _curve_error(device, times))


def _curve_error(device: Device, times: Iterable[OperatorTime]) -> float:
    return median(abs(time.work.seconds(device) / time.seconds - 1) for time in times)


def _device(backend: str, num_devices: int) -> tuple[str, int]:
    """Name and memory of the kind of device; processes on one CPU share its memory."""
    if backend == "nccl":
        properties = torch.cuda.get_device_properties(0)
        return properties.name.replace(" ", "-"), properties.total_memory
    threads = int(_environment(num_devices).get("OMP_NUM_THREADS", torch.get_num_threads()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_devices
    return f"{platform.machine()}-cpu-{threads}-threads-of-{num_devices}-processes", memory


def _environment(num_devices: int) -> dict[str, str]:
    """Of the processes that measure: as many threads as torchrun gives to those of a program."""
    return {**({"OMP_NUM_THREADS": "1"} if num_devices > 1 else {}), **os.environ}


def _standard_calls(sizes: Sizes, device: str) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for build, inputs in standard_models(sizes):
        with deferred_init():
            module = build()
        graph = trace(module, inputs, optimizer=AdamW())
        whole = plan(graph, Cluster.local(1).with_memory(2**50))
        calls |= calls_of(whole.programs, Prices(whole.materialized.placed, whole.cluster), device)
    return calls


def _run(task: Task, num_devices: int) -> Result:
    """Measure in processes of their own, so that they are like those of a program."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "task", Path(folder) / "result"
        given.write_bytes(pickle.dumps(task))
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_devices)]
        command = [
            sys.executable, *(torchrun if num_devices > 1 else []),
            "-m", "superscaler.profiling.worker", str(given), str(made),
        ]  # fmt: skip
        done = subprocess.run(
            command, env=_environment(num_devices), capture_output=True, text=True, check=False
        )
        if done.returncode or not made.is_file():
            raise ProfileError(
                f"a process that measures failed:\n{done.stderr[-2000:]}",
                remedy="see whether torchrun can start so many processes here, and whether their memory suffices",
            )
        return pickle.loads(made.read_bytes())
