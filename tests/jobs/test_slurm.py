"""The batch script: the text, what bash says of it, and what it starts with stand-ins for Slurm's programs."""

import subprocess
from dataclasses import replace

from superscaler.jobs.slurm import sbatch_script
from tests.jobs.started import JOB, RESTARTED, expected, started

SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames node[7-8]" ] && printf 'node7\\nnode8\\n'
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
for number in 0 1; do
    SLURM_NODEID=$number "$@" || exit
done
"""
HOSTNAME = """#!/bin/bash
echo "node$((SLURM_NODEID + 7))"
"""


def test_one_torchrun_starts_on_each_node(golden, tmp_path):
    text = sbatch_script(JOB, ["--time=24:00:00", "--partition=long"], "source .venv/bin/activate")
    golden("jobs/slurm.txt", text)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    programs = {"scontrol": SCONTROL, "srun": SRUN, "hostname": HOSTNAME}
    for job in (JOB, RESTARTED):
        found = started(tmp_path, sbatch_script(job), programs, SLURM_JOB_NODELIST="node[7-8]")
        assert found == [expected(job, "node7", f"node{number + 7}", number) for number in (0, 1)]


def test_options_are_where_sbatch_reads_them():
    lines = sbatch_script(JOB, ["--time=1:00"], "echo hello").splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(options)] == options, "sbatch reads no option after the first command"
    assert "#SBATCH --gpus-per-node=4" in options
    assert "--gpus" not in sbatch_script(replace(JOB, is_gpu=False))
