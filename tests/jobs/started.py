"""Run what starts a job on this machine, with stand-ins for the programs it calls, and read what torchrun was told."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

from superscaler.jobs.job import Job

JOB = Job(
    "gpt", "/work/build/gpt/train.py", ("--steps", "3", "--data", "my data.bin"), nodes=2, processes=4,
    environment={"GLOO_SOCKET_IFNAME": "eth0", "NOTE": "it's $HOME"},
)  # fmt: skip
RESTARTED = replace(JOB, max_restarts=2)
TORCHRUN = """#!/usr/bin/env python3
import json, os, sys
seen = {"words": sys.argv[1:], "environment": {name: os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NOTE")}}
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(seen) + "\\n")
"""


def started(
    folder: Path, text: str, programs: dict[str, str] | None = None, **environment: str
) -> list[dict]:
    """What each torchrun that a shell script starts was told, in order."""
    seen = folder / "seen"
    seen.unlink(missing_ok=True)
    for name, source in {"torchrun": TORCHRUN, **(programs or {})}.items():
        (folder / name).write_text(source)
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": path, "HOME": "/nowhere", "SEEN": str(seen), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in seen.read_text().splitlines()]


def expected(job: Job, first: str, own: str, number: int) -> dict:
    """What torchrun is to be told on one node."""
    words = ["--nnodes", "2", "--nproc-per-node", "4", "--max-restarts", str(job.max_restarts)]
    if job.max_restarts:
        words += ["--rdzv-backend", "c10d", "--rdzv-id", "gpt", "--rdzv-endpoint", f"{first}:29500"]
        words += ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", own]
    else:
        words += ["--node-rank", str(number), "--master-addr", first, "--master-port", "29500"]
    return {"words": [*words, job.script, *job.arguments], "environment": dict(job.environment)}
