"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from superscaler.runtime.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def resident_mebibytes():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096 / 2**20

before = resident_mebibytes()
tensors = [torch.ones(4 * 2**20) for _ in range(12)]
during = resident_mebibytes()
del tensors
print(during - before, resident_mebibytes() - before)
"""


def held(mode):
    """Mebibytes held with twelve tensors of 16 MiB, and when they are gone."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_what_tensors_took_stays_when_they_are_gone():
    during, after = held("keep")
    assert during > 180
    assert after > 180
    during, after = held("default")
    assert during > 180 > 60 > after, "where this holds no more, the switch is no longer needed"
