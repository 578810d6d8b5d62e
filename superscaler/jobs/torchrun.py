"""A command per host, to be typed, or sent by ssh, on each of them."""

import shlex
from collections.abc import Sequence

from superscaler.jobs.job import Job


def torchrun_commands(job: Job, hosts: Sequence[str]) -> str:
    """A shell command under the name of each host; the first is where all meet."""
    assert len(hosts) == job.nodes
    variables = [f"{name}={shlex.quote(value)}" for name, value in job.environment.items()]
    lines = []
    for number, host in enumerate(hosts):
        command = job.torchrun(hosts[0], host, str(number))
        lines += [f"# on {host}", " ".join([*variables, command])]
    return "\n".join(lines) + "\n"
