"""A batch script for Slurm, which starts one torchrun on each node."""

import shlex
from collections.abc import Sequence

from superscaler.jobs.job import Job


def sbatch_script(job: Job, options: Sequence[str] = (), setup: str = "") -> str:
    """The script that sbatch takes.

    Args:
        job: What it runs.
        options: Further ones of sbatch, such as ``--time=24:00:00``.
        setup: A shell command before all, such as one that activates an environment.
    """
    asked = [
        f"--job-name={job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={job.processes}"] if job.is_gpu else []),
        *options,
    ]
    command = job.torchrun("$FIRST_NODE", "$(hostname)", "$SLURM_NODEID")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in asked),
        "set -euo pipefail",
        *([setup] if setup else []),
        *(f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()),
        'NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        r"export FIRST_NODE=${NODES%%$'\n'*}",
        "# each node's own shell fills in what differs between nodes; one that fails ends all",
        f"exec srun --kill-on-bad-exit=1 bash -c {shlex.quote(command)}",
    ]
    return "\n".join(lines) + "\n"
