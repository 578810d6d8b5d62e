"""A command per host: the text, and what a shell makes of it."""

import pytest

from superscaler.jobs.torchrun import torchrun_commands
from tests.jobs.started import JOB, RESTARTED, expected, started


@pytest.mark.parametrize(("job", "name"), [(JOB, "torchrun"), (RESTARTED, "torchrun_restarted")])
def test_each_host_is_told_where_all_meet(job, name, golden, tmp_path):
    text = torchrun_commands(job, ["alpha", "beta"])
    golden(f"jobs/{name}.txt", text)
    assert started(tmp_path, text) == [
        expected(job, "alpha", host, number) for number, host in enumerate(("alpha", "beta"))
    ]
