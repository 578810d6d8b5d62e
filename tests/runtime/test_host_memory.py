"""Freed memory stays with the process; what moves to host memory and back is as it was, and moves once."""

import subprocess
import sys

import pytest
import torch

from superscaler.runtime.host_memory import HostMoves

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


def saved(device):
    """Tensors such as a layer saves: whole ones, views of one memory, a part of something larger, nothing."""
    torch.manual_seed(0)
    base, large = torch.randn(6, 4, 8, device=device), torch.randn(100, 8, device=device)
    query, key = base.chunk(2)
    row = torch.randn(1, 8, device=device)
    return [
        torch.randn(3, 5, dtype=torch.bfloat16, device=device),
        query.transpose(0, 1),
        key,
        large[3:5],
        row.expand(50, 8),
        base.reshape(24, 8) > 0,
        torch.tensor(3, device=device),
        torch.empty(0, 4, device=device),
        torch.randn(4, 6, device=device).t(),
    ]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_moves_to_host_memory_and_back_is_as_it_was(device):
    moves, tensors = HostMoves(torch.device(device)), saved(device)
    expected = [tensor.clone() for tensor in tensors]
    stowed = moves.stow(tensors)
    assert {tensor.device.type for tensor in stowed} == {"cpu"}
    strides = [tensor.stride() for tensor in tensors]
    del tensors
    noise = [torch.randn(100, 100, device=device) for _ in range(20)]  # takes the memory that became free
    fetched = moves.fetch(stowed)
    assert {tensor.device.type for tensor in fetched} == {device}
    del stowed, noise
    for tensor, value in zip(fetched, expected, strict=True):
        torch.testing.assert_close(tensor, value, rtol=0, atol=0)
    assert [tensor.stride() for tensor in fetched] == strides


@pytest.mark.parametrize("device", DEVICES)
def test_views_of_one_memory_are_views_of_one_copy(device):
    moves, tensors = HostMoves(torch.device(device)), saved(device)

    def sizes(of):
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in of}.values())

    _, query, key, part, spread, *_ = moves.stow(tensors)
    assert query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
    assert part.untyped_storage().nbytes() == part.nbytes
    assert spread.untyped_storage().nbytes() == 8 * 4
    whole = sizes(tensors) - tensors[3].untyped_storage().nbytes() + tensors[3].nbytes
    assert sizes(moves.stow(tensors)) == sizes(moves.fetch(moves.stow(tensors))) == whole


def test_a_copy_in_host_memory_is_a_copy_on_a_cpu_too():
    x = torch.ones(4)
    (stowed,) = HostMoves(torch.device("cpu")).stow([x])
    x.zero_()
    assert stowed.tolist() == [1.0] * 4
