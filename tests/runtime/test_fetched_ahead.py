"""Groups of tensors come from host memory one ahead of their use; what fails is told where it is waited for."""

from threading import Event

import pytest
import torch

from superscaler.runtime.fetched_ahead import FetchedAhead, ThreadCarrier, carrier_of

GROUPS = (("a", "b"), ("c",), ("a",))


def held():
    torch.manual_seed(0)
    return {
        "a": torch.randn(3, 5),
        "b": torch.randn(7, dtype=torch.float64),
        "c": torch.randn(4, 6).t(),
    }


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


class Noting:
    """A carrier that notes what is set on its way, and what is waited for."""

    def __init__(self):
        self.notes = []

    def start(self, sources):
        self.notes.append(f"start {len(sources)}")
        return Arriving(self, sources)


class Arriving:
    def __init__(self, carrier, sources):
        self.carrier, self.sources = carrier, sources

    def wait(self):
        self.carrier.notes.append(f"wait {len(self.sources)}")
        return self.sources


def test_what_is_fetched_is_what_lies_in_host_memory(device):
    source = held()
    if device.type == "cuda":
        source = {name: x.pin_memory() for name, x in source.items()}
    ahead = FetchedAhead(source, GROUPS, carrier_of(device))
    for names in GROUPS:
        for name, x in zip(names, next(ahead), strict=True):
            assert x.device.type == device.type
            assert torch.equal(x.cpu(), source[name])
    with pytest.raises(StopIteration):
        next(ahead)


def test_a_group_sets_out_before_the_one_in_front_of_it_is_waited_for():
    carrier = Noting()
    ahead = FetchedAhead(held(), GROUPS, carrier)
    assert carrier.notes == ["start 2"]
    next(ahead)
    assert carrier.notes == ["start 2", "start 1", "wait 2"]
    list(ahead)
    assert carrier.notes == ["start 2", "start 1", "wait 2", "start 1", "wait 1", "wait 1"]


def test_a_group_lies_in_one_piece_of_memory_where_kernels_can_load_it():
    first, second = next(FetchedAhead(held(), GROUPS, ThreadCarrier()))
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0
    assert first.is_contiguous()
    assert second.is_contiguous()


def test_the_program_goes_on_while_a_thread_copies():
    carrier, may_copy = ThreadCarrier(), Event()
    busy = carrier._thread.submit(may_copy.wait)
    ahead = FetchedAhead(held(), GROUPS, carrier)  # comes back although nothing can be copied yet
    assert not busy.done()
    may_copy.set()
    assert torch.equal(next(ahead)[0], held()["a"])


def test_a_copy_that_fails_is_reported_where_it_is_waited_for():
    source = {**held(), "c": torch.empty(4, device="meta")}  # has no values
    ahead = FetchedAhead(source, GROUPS, ThreadCarrier())
    assert torch.equal(next(ahead)[0], source["a"])
    with pytest.raises(NotImplementedError, match="meta"):
        next(ahead)
    assert torch.equal(next(ahead)[0], source["a"])


def test_what_is_missing_is_named():
    ahead = FetchedAhead({"a": torch.ones(1)}, (("a",), ("lost",)), ThreadCarrier())
    with pytest.raises(KeyError, match="lost"):
        next(ahead)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_fetches_in_the_modes_of_inference(mode):
    with mode():
        ahead = FetchedAhead(held(), GROUPS, ThreadCarrier())
        found = [x.clone() for group in ahead for x in group]
    assert [torch.equal(x, held()[name]) for x, name in zip(found, "abca", strict=True)] == [True] * 4
