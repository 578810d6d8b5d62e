"""The ranks of a build as processes that a test can signal while they train, with and without torchrun."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.runtime.forked_training import free_port
from tests.runtime.tiny_build import write_build

ROOT = Path(__file__).parents[2]
STARTED: list[subprocess.Popen] = []
"""Processes of the test that goes on."""
LIMIT = 120
"""Seconds after which a test gives up."""
_PIDS = '    open(f"{os.path.dirname(__file__)}/pid{rt.rank}", "w").write(str(os.getpid()))\n'


def write_slow_build(folder: Path, ranks: int, line: str = "") -> Path:
    """A tiny build whose steps take a while, with a line of its own in each; ranks leave their process ids there."""
    write_build(folder, ranks)
    stage = folder / "stage0.py"
    begin = '    dp = rt.axis("dp")\n'
    added = f"{_PIDS}    __import__('time').sleep(0.05)\n    {line}\n"
    stage.write_text(stage.read_text().replace(begin, begin + added))
    return folder


def torchrun(
    folder: Path, ranks: int, *options: object, launcher: tuple[str, ...] = (), suffix: str = ""
) -> subprocess.Popen:
    """``torchrun train.py``, its output in ``out.txt`` and ``err.txt`` of the build folder, with a suffix to the name.

    It is one machine of one, unless the launcher's own options name a meeting point.
    """
    alone = () if "--rdzv-endpoint" in launcher else ("--standalone",)
    command = ["-m", "torch.distributed.run", *alone, "--nproc-per-node", str(ranks), *launcher]
    return _start(folder, suffix, [*command, str(folder / "train.py")], options, {})


def ranks_alone(
    folder: Path, ranks: int, *options: object, script: str = "train.py"
) -> list[subprocess.Popen]:
    """The ranks without torchrun, which would end the others when one ends; their output in ``out0.txt`` and so on."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    command = [str(folder / script)]
    return [
        _start(folder, str(rank), command, options, {**shared, "RANK": str(rank)}) for rank in range(ranks)
    ]


def pid(folder: Path, rank: int) -> int:
    """The process of a rank, once it has begun its first step."""
    path = folder / f"pid{rank}"
    wait_until(lambda: path.is_file() and path.read_text())
    return int(path.read_text())


def wait_until(is_so, process: subprocess.Popen | None = None) -> None:
    """Return once something is so."""
    end = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < end, "it never came to be"
        assert process is None or process.poll() is None, "the process ended before it came to be"
        time.sleep(0.02)


def has_reached(folder: Path, step: int, name: str = "out.txt"):
    """Whether the ranks have printed a step."""
    return lambda: f"step {step}/" in (folder / name).read_text()


def _start(folder: Path, suffix: str, command: list[str], options, variables) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    options = ["--backend", "gloo", "--threads", "1", "--allow-edited", *map(str, options)]
    with (folder / f"out{suffix}.txt").open("w") as out, (folder / f"err{suffix}.txt").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *command, *options], stdout=out, stderr=err, env=environment
        )
    STARTED.append(process)
    return process
