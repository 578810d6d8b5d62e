"""examples/custom_operator.py runs as it is written: a Triton kernel cut over two processes by a rule nobody gave."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.ranks
def test_a_triton_kernel_is_cut_by_the_rule_found_and_trains_as_eager(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "custom_operator.py"), "--steps=3", f"-o={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'found a rule for swiglu.forward: "a b c, a b c -> a b c"' in done.stderr
    assert "rule of swiglu.backward: a b c, a b c, a b c -> a b c, a b c" in done.stdout
    assert float(re.search(r"largest difference +(\S+)", done.stdout)[1]) < 1e-5
    source = (tmp_path / "program" / "stage0.py").read_text()
    assert 'define("swiglu.forward", by="operators_swiglu_kernel.py", beside=__file__)' in source
    assert "torch.ops.swiglu.forward(" in source
