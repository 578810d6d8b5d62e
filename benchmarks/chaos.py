"""Processes that die, hang and never come back: training goes on by itself and computes what it would have computed.

A tiny GPT in double precision under real torchrun (gloo), in three cases:

* killed: kill -9 of a random rank at random steps, while a checkpoint is being written, and while ranks start, in turn.
  torchrun starts all ranks anew, and they go on from the newest checkpoint. Goal: losses bit for bit those of an
  undisturbed run; every checkpoint there is after a kill is whole, and none that was there is lost.
* lost: four machines of a rank each, of which one dies for good. Goal: the others go on under a plan that the compiler
  makes for three meanwhile, with losses within 1e-10 of those of the undisturbed run.
* hung: a rank stands still (SIGSTOP). Goal: it is named, and the others have ended, 15 seconds after the time-out.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.chaos_run import ChaosRun
from benchmarks.parity import free_port
from benchmarks.report import finish, parse_arguments
from models import text
from superscaler.cli import main as superscaler
from superscaler.errors import BuildError
from superscaler.runtime.checkpoint_folder import CheckpointFolder
from superscaler.runtime.checkpoint_manifest import read_manifest
from superscaler.runtime.checksummed_file import ChecksummedFile

SIZES = {"layers": 2, "width": 24, "heads": 6, "vocab": 128, "seq": 8}
BATCH, SEED, CLOSE = 12, 0, 1e-10
TIMEOUT, ALLOWANCE = 5, 15
"""Of the hung case, in seconds: the longest wait for a rank, and what may pass from then until the others end."""
AT_A_STEP, WRITING, STARTING = "at a step", "while writing", "while starting"
MOMENTS = (WRITING, AT_A_STEP, STARTING)


@dataclass(frozen=True)
class Scale:
    """How much is tried."""

    plan: str
    ranks: int
    steps: int
    kills: int
    machines: int
    """Of which one is lost."""


FULL = Scale("dp=2,pp=2,micro_batches=2", ranks=4, steps=300, kills=20, machines=4)
QUICK = Scale("dp=2", ranks=2, steps=40, kills=1, machines=2)
EVERY = "--checkpoint-every=5"


def main() -> None:
    """Run the cases."""
    options = parse_arguments(__doc__ or "")
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text.write_dataset(folder / "data.safetensors", SIZES["seq"], SIZES["vocab"])
        _compile(folder / "build", scale.plan, scale.ranks)
        _compile(folder / "elastic", f"dp={scale.machines}", scale.machines)
        undisturbed = _run(folder, scale, [f"--steps={scale.steps}"], "undisturbed").losses()
        killed = _killed(folder, scale, undisturbed)
        hung = _hung(folder, scale)
        lost = _lost(folder, scale, undisturbed)
    rows = [
        {"case": name, "ok": case["ok"], "seconds": case["seconds"]}
        for name, case in (("killed", killed), ("hung", hung), ("lost", lost))
    ]
    finish(
        "chaos", all(row["ok"] for row in rows), rows, options.quick,
        kills=sum(killed["kills"].values()), kills_while_writing=killed["kills"][WRITING],
        kills_while_starting=killed["kills"][STARTING], verified=killed["verified"], broken=killed["broken"],
        lost_checkpoints=killed["lost"], identical=killed["identical"], hung_seconds=hung["seconds"],
        recovered_seconds=lost["recovered"], lost_difference=lost["difference"],
    )  # fmt: skip


def _run(
    folder: Path, scale: Scale, options: Sequence[str], name: str, launcher: Sequence[str] = ()
) -> ChaosRun:
    return ChaosRun(folder / "build", folder / "data.safetensors", scale.ranks, options, launcher, name)


def _killed(folder: Path, scale: Scale, undisturbed: list[float]) -> dict[str, Any]:
    """Ranks are killed one after another, and come back."""
    begun = time.monotonic()
    options = [f"--steps={scale.steps}", f"--checkpoint={folder / 'run'}", EVERY, "--resume"]
    run = _run(folder, scale, options, "killed", [f"--max-restarts={scale.kills + 3}"])
    random, checkpoints = Random(SEED), CheckpointFolder(folder / "run")
    kills, verified, broken, lost, newest = dict.fromkeys(MOMENTS, 0), 0, 0, 0, 0
    for number in range(scale.kills):
        moment = MOMENTS[number % len(MOMENTS)]
        _wait_for(moment, run, checkpoints, random, (number + 1) * scale.steps // (scale.kills + 1))
        run.kill_a_rank(random)
        kills[moment] += 1
        found = checkpoints.steps()
        verified += len(found)
        broken += sum(not _is_whole(checkpoints.of(step)) for step in found)
        lost += newest > max(found, default=0)
        newest = max(found, default=0)
    is_same = run.losses() == undisturbed
    is_ok = is_same and not broken and not lost
    seconds = time.monotonic() - begun
    return {
        "ok": is_ok, "seconds": seconds, "kills": kills, "verified": verified, "broken": broken, "lost": lost,
        "identical": is_same,
    }  # fmt: skip


def _wait_for(moment: str, run: ChaosRun, checkpoints: CheckpointFolder, random: Random, step: int) -> None:
    """Wait for a moment to kill a rank; those of steps and checkpoints are not before `step`."""
    if moment == STARTING:
        come = run.wait_until(lambda: len(run.ranks()) > 1)
        time.sleep(random.uniform(0.0, 4.0))
    else:
        come = run.wait_until(lambda: run.step() >= step)
    if moment == AT_A_STEP:
        time.sleep(random.uniform(0.0, 0.05))
    if moment == WRITING:
        come = run.wait_until(lambda: any(checkpoints.path.glob("*.unfinished/rank*")))
    if not come or run.is_over():
        raise RuntimeError(f"the run ended before a rank was killed {moment}:\n{run.text()[-4000:]}")


def _is_whole(path: Path) -> bool:
    """Whether all of a checkpoint is as it was written."""
    try:
        for record in read_manifest(path).files:
            with ChecksummedFile(path, record) as file:
                for name, (header, _) in file.pieces.items():
                    target = torch.empty(header.shape, dtype=header.dtype)
                    file.read_into(name, [0] * target.dim(), target)
    except BuildError:
        return False
    return True


def _hung(folder: Path, scale: Scale) -> dict[str, Any]:
    """A rank stands still."""
    options = ["--steps=1000000", f"--timeout={TIMEOUT}"]
    run = _run(folder, scale, options, "hung")
    run.wait_until(lambda: run.step() >= 5)
    begun = time.monotonic()
    run.stop_a_rank()
    run.wait_until(lambda: len(run.ranks()) == 1)
    seconds = time.monotonic() - begun
    is_named = f"missing: rank {scale.ranks - 1} gives no sign of life" in run.text()
    run.kill()  # torchrun would wait for the rank that stands still for thirty seconds, and do the same
    return {"ok": is_named and seconds < TIMEOUT + ALLOWANCE, "seconds": seconds}


def _lost(folder: Path, scale: Scale, undisturbed: list[float]) -> dict[str, Any]:
    """A machine of several dies for good."""
    begun, most, left = time.monotonic(), scale.machines, scale.machines - 1
    options = [
        f"--steps={scale.steps}", f"--checkpoint={folder / 'lost'}", EVERY, "--resume",
        f"--elastic={left}:{most}", "--elastic-plan=dp={n}",
    ]  # fmt: skip
    meeting = [f"--nnodes={left}:{most}", "--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=lost"]
    meeting += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    waits = "last_call_timeout=4,keep_alive_interval=1,keep_alive_max_attempt=3"
    machines = [
        ChaosRun(
            folder / "elastic", folder / "data.safetensors", 1, options,
            [*meeting, f"--rdzv-conf={waits},is_host={int(number == 0)}"], f"machine{number}",
        )
        for number in range(most)
    ]  # fmt: skip
    machines[0].wait_until(lambda: any(machine.step() >= scale.steps // 3 for machine in machines))
    machines[-1].kill()
    killed = time.monotonic()
    machines[0].wait_until(lambda: any("note: the run goes on" in machine.text() for machine in machines))
    recovered = time.monotonic() - killed
    losses = machines[0].losses()
    is_planned = f"for {left} processes, plan dp={left}" in "".join(machine.text() for machine in machines)
    for machine in machines[1:-1]:
        machine.end()
    difference = max(abs(a - b) / abs(b) for a, b in zip(losses, undisturbed, strict=True))
    return {
        "ok": is_planned and difference <= CLOSE, "seconds": time.monotonic() - begun, "recovered": recovered,
        "difference": difference,
    }  # fmt: skip


def _compile(folder: Path, plan: str, devices: int) -> None:
    """By the command line, so that the build says how it is compiled."""
    sizes = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
    with redirect_stdout(StringIO()):
        code = superscaler(
            [
                "compile", "models/gpt.py:tiny", f"--batch={BATCH}", "--dtype=float64", "--clip-norm=1", *sizes,
                f"--cluster=local:{devices}", f"--plan={plan}", f"--output={folder}",
            ]
        )  # fmt: skip
    if code:
        raise RuntimeError(f"{plan} does not compile")


if __name__ == "__main__":
    main()
