"""A profile shows what every rank did beside what was foretold, and nothing twice."""

import json
import re

import pytest
from safetensors.torch import save_file

from tests.runtime.forked_training import train
from tests.runtime.test_loaded import OPTIMIZER, batches, compiled
from tests.runtime.tiny_build import write_build

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("plan", ["dp=2,micro_batches=2", "pp=2,micro_batches=2"])
def test_spans_of_all_ranks_stand_beside_those_foretold(plan, tmp_path):
    build = compiled(tmp_path / "build", plan, optimizer=OPTIMIZER)
    save_file(batches()[0], build / "data.safetensors")
    result = train(build, 2, "--steps", 6, "--profile", tmp_path / "profile", "--profile-steps", 3)
    assert result.codes == [0, 0], result.errors
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    spans = {}
    for event in events:
        if event["ph"] == "X":
            spans.setdefault(processes[event["pid"]], []).append(event)
    for rank in (0, 1):
        names = [event["name"] for event in spans[f"rank {rank}, measured: CPU"]]
        assert names.count("update") == names.count("forward") / 2 == names.count("backward") / 2 == 3
        assert any(" over " in name for name in names)
        assert "aten::mm" in names
    foretold = [name for name in processes.values() if name.startswith("foretold")]
    assert len(foretold) == (2 if "pp" in plan else 1)
    for name in foretold:
        assert sum(event["name"] == "backward 1" for event in spans[name]) in (3, 6)
    ((step, *parts),) = [
        [float(found) for found in re.findall(r"([0-9.]+) ms +[0-9.]+ ms", table)]
        for table in result.output.split("profile of rank 0")[1:]
    ]
    assert len(parts) >= 4
    assert sum(parts) <= step * 1.01


def test_a_run_with_too_few_steps_says_how_many_it_takes(tmp_path):
    result = train(write_build(tmp_path / "build", 1), 1, "--steps", 3, "--profile", tmp_path / "profile")
    assert result.codes == [1]
    assert "measures 2 steps after the first 2, and the run has 3" in result.errors
