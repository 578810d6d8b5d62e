"""Ranks find those of their own start, whatever earlier ones have left in the store."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from superscaler.errors import BuildError
from superscaler.runtime.communication import CommunicationError
from superscaler.runtime.meeting import meet_in


def start(store, identities, timeout=20.0):
    """Each rank in a thread, with a connection of its own; what it gets or raises."""
    results = [None] * len(identities)

    def meet(rank):
        try:
            results[rank] = meet_in(store.clone(), rank, len(identities), identities[rank], timeout)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(len(identities))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))


def test_every_start_has_a_store_of_its_own(store):
    for number in range(3):
        stores = start(store, ["same"] * 3)
        assert not stores[1].check(["address/0"]), "of the start before"
        stores[0].set("address/0", str(number))
        assert [found.get("address/0") for found in stores] == [str(number).encode()] * 3


def test_what_an_earlier_start_has_agreed_on_does_not_count_for_those_who_are_late(store):
    start(store, ["same"] * 2)
    found = []
    first = threading.Thread(target=lambda: found.append(meet_in(store.clone(), 0, 2, "same", 20.0)))
    first.start()
    first.join(1.0)
    assert first.is_alive(), "took the rank of the earlier start for one of this"
    second = meet_in(store.clone(), 1, 2, "same", 20.0)
    first.join(60)
    second.set("a", "b")
    assert found[0].get("a") == b"b"


def test_a_hello_that_nobody_stands_behind_is_not_counted(store):
    store.set("hello/1", "dead same")
    (error,) = start(store, ["same"][:1], timeout=1.0)
    assert not isinstance(error, Exception)
    store.set("hello/2", "dead other")
    stores = start(store, ["same"] * 3)
    stores[2].set("a", "b")
    assert stores[0].get("a") == b"b"


def test_a_rank_that_was_here_in_an_earlier_start_is_waited_for(store):
    assert not any(isinstance(found, Exception) for found in start(store, ["same"] * 2))
    with pytest.raises(CommunicationError, match=r"of 2 ranks 1 have not come in 0.2 s"):
        meet_in(store, 0, 2, "same", 0.2)


def test_ranks_that_do_not_come_are_named(store):
    with pytest.raises(CommunicationError, match=r"of 4 ranks 1-3 have not come in 0.2 s"):
        meet_in(store, 0, 4, "same", 0.2)
    with pytest.raises(CommunicationError, match=r"rank 2 has met no rank 0 in 0.2 s"):
        meet_in(store, 2, 4, "same", 0.2)


def test_ranks_that_differ_are_refused_on_both_sides(store):
    first, second = start(store, ["build a", "build b"])
    for error in (first, second):
        assert isinstance(error, BuildError)
        assert "rank 1 has build b, but rank 0 has build a" in str(error)
