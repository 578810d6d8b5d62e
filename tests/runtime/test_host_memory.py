"""Freed memory stays with the process, and is not faulted in anew."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from superscaler.runtime.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults_of_a_round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(4 * 2**20) for _ in range(12)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*(faults_of_a_round() for _ in range(2)))
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_memory_is_faulted_in_once():
    first, second = faults("keep")
    assert second < first / 4
    first, second = faults("default")
    assert second > first / 2, "where this holds no more, the switch is no longer needed"
