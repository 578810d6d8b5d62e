"""Meeting: the ranks of one start find one another in a store that may hold what earlier starts have left there.

torchrun keeps one store for all the times it starts a run anew, and addresses found there may be those of processes
that are gone. So every process has a name that none had before: rank 0 answers each by name, with a prefix for all that
this start keeps in the store. What no living process answers for is never believed.
"""

import time
import uuid
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

from superscaler.errors import BuildError
from superscaler.ir.mesh import format_devices
from superscaler.runtime.communication import CommunicationError

_PAUSE = 0.02
"""Seconds from one look for newcomers to the next."""


def meet_in(store: Any, rank: int, world_size: int, identity: str, timeout: float) -> Any:
    """The part of a store that belongs to this start, once all ranks are here; every rank calls this.

    Args:
        store: Which all ranks reach.
        rank: This process.
        world_size: How many ranks are to come.
        identity: What all must have in common.
        timeout: Longest wait, in seconds.

    Raises:
        BuildError: Another rank has another identity.
        CommunicationError: Not all have come in time.
    """
    if rank == 0:
        return PrefixStore(_welcome(store, world_size, identity, timeout), store)
    name = uuid.uuid4().hex
    store.set(f"hello/{rank}", f"{name} {identity}")
    try:
        store.wait([f"welcome/{name}"], timedelta(seconds=timeout))
    except RuntimeError as error:
        raise CommunicationError(
            f"rank {rank} has met no rank 0 in {timeout:g} s", remedy="look for an error of rank 0"
        ) from error
    start, _, expected = store.get(f"welcome/{name}").decode().partition(" ")
    store.set(f"here/{start}/{name}", "")
    _check_same(rank, identity, expected)
    return PrefixStore(start, store)


def _welcome(store: Any, world_size: int, identity: str, timeout: float) -> str:
    start, missing = uuid.uuid4().hex, dict.fromkeys(range(1, world_size), "")
    end = time.monotonic() + timeout
    while missing:
        for rank in tuple(missing):
            if not store.check([f"hello/{rank}"]):
                continue
            name, _, found = store.get(f"hello/{rank}").decode().partition(" ")
            if name != missing[rank]:  # a process of an earlier start may have left the one before
                missing[rank] = name
                store.set(f"welcome/{name}", f"{start} {identity}")
            elif store.check([f"here/{start}/{name}"]):
                del missing[rank]
                _check_same(rank, found, identity)
        if time.monotonic() > end:
            raise CommunicationError(
                f"of {world_size} ranks {format_devices(tuple(missing))} have not come in {timeout:g} s",
                remedy="look for their errors, or wait longer: --timeout",
            )
        time.sleep(_PAUSE if missing else 0)
    return start


def _check_same(rank: int, found: str, expected: str) -> None:
    if found != expected:
        raise BuildError(
            f"rank {rank} has {found}, but rank 0 has {expected}",
            remedy="copy the same build folder to every machine, and install one version of torch",
        )
