"""A training run under torchrun that can be watched, and whose ranks can be killed and stopped while it goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

LIMIT = 1500
"""Seconds after which what is waited for will not come."""
_ROOT = Path(__file__).parents[1]


class ChaosRun:
    """``torchrun train.py`` of a build, on CPUs.

    Args:
        build: Its folder.
        data: The data set.
        ranks: Processes that this torchrun starts.
        options: Of ``train.py``.
        launcher: Options of torchrun, by which it knows the others; without, it is alone.
        name: Tells runs of one build apart.
    """

    def __init__(
        self, build: Path, data: Path, ranks: int, options: Sequence[str], launcher: Sequence[str] = (),
        name: str = "run",
    ) -> None:  # fmt: skip
        beside = build.with_name(f"{build.name}-{name}")
        self._losses, self._log = beside.with_suffix(".json"), beside.with_suffix(".txt")
        alone = [] if any(option.startswith("--rdzv-endpoint") for option in launcher) else ["--standalone"]
        command = [
            sys.executable, "-m", "torch.distributed.run", *alone, f"--nproc-per-node={ranks}", *launcher,
            "--shutdown-timeout=10", "--monitor-interval=0.1", str(build / "train.py"), "--backend=gloo",
            f"--data={data}", f"--losses={self._losses}", *options,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._ranks = ranks

    def ranks(self) -> list[int]:
        """The processes torchrun has started, those that have not ended."""
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = map(int, path.read_text().split()) if path.exists() else ()
        return [process for process in found if _is_alive(process)]

    def text(self) -> str:
        """All that was printed so far."""
        return self._log.read_text(errors="replace")

    def step(self) -> int:
        """The last that was printed; 0 if none has been."""
        found = re.findall(r"^step (\d+)/", self.text(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def is_over(self) -> bool:
        """Whether torchrun has ended."""
        return self._process.poll() is not None

    def wait_until(self, is_so: Callable[[], object]) -> bool:
        """Return once something is so, or torchrun has ended; whether it is so."""
        end = time.monotonic() + LIMIT
        while not is_so():
            if self.is_over():
                return False
            if time.monotonic() > end:
                raise RuntimeError(f"it never came to be:\n{self.text()[-4000:]}")
            time.sleep(0.002)
        return True

    def kill_a_rank(self, random: Random) -> None:
        """Kill -9 any rank; returns once all ranks of this start have ended."""
        before = self.ranks()
        os.kill(random.choice(before), signal.SIGKILL)
        self.wait_until(lambda: not any(_is_alive(process) for process in before))

    def stop_a_rank(self) -> None:
        """Let a rank stand still."""
        os.kill(self.ranks()[-1], signal.SIGSTOP)

    def kill(self) -> None:
        """Kill -9 torchrun and its ranks, as if the machine were gone."""
        ranks = self.ranks()
        self._process.kill()
        for process in ranks:
            os.kill(process, signal.SIGKILL)
        self._process.wait()

    def end(self) -> int:
        """Wait for torchrun; its exit code."""
        return self._process.wait(LIMIT)

    def losses(self) -> list[float]:
        """Wait for torchrun; the losses of all steps.

        Raises:
            RuntimeError: It failed.
        """
        if self.end():
            raise RuntimeError(f"training failed:\n{self.text()[-6000:]}")
        return json.loads(self._losses.read_text())


def _is_alive(process: int) -> bool:
    """Whether a process runs, and is not only waiting for its parent to notice its end."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
