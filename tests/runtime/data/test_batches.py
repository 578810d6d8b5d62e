"""All ranks and micro-batches together see exactly the samples of the step, of any source, under any plan."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, IterableDataset

from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.data import Batches
from tests.runtime.data.layouts import (
    BATCH,
    CPU,
    LENGTH,
    PLANS,
    check_pieces,
    check_step,
    make_build,
    numbered,
    rank_batches,
)
from tests.runtime.tiny_build import write_build

SAMPLES = 20


class Numbered(Dataset):
    """Remembers what it was asked for."""

    def __init__(self, samples=SAMPLES):
        self.whole, self.asked = numbered(samples), []

    def __len__(self):
        return len(self.whole["tokens"])

    def __getitem__(self, number):
        self.asked.append(number)
        return {name: x[number] for name, x in self.whole.items()}


class Streamed(IterableDataset):
    """Keeps its place where it is told to, and remembers how many samples it gave."""

    def __init__(self, samples=SAMPLES):
        self.whole, self.given = numbered(samples), 0

    def __iter__(self):
        for tokens, targets in zip(self.whole["tokens"], self.whole["targets"], strict=True):
            self.given += 1
            yield tokens, targets


def write_tensors(folder):
    save_file(numbered(SAMPLES), folder / "numbers.safetensors")
    return folder / "numbers.safetensors"


SOURCES = {
    "safetensors": lambda folder: write_tensors(folder),
    "dataset": lambda folder: Numbered(),
    "list": lambda folder: list(zip(*numbered(SAMPLES).values(), strict=True)),
    "stream": lambda folder: Streamed(),
    "generator function": lambda folder: lambda: iter(Streamed()),
}


def by_hand(rows):
    return {name: x[rows] for name, x in numbered(SAMPLES).items()}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("plan", PLANS)
def test_pieces_make_up_the_step(tmp_path, plan, source):
    build = make_build(tmp_path, plan)
    ranks = rank_batches(lambda: SOURCES[source](tmp_path), build)
    for step in [0, 1, 2, 3, 7]:
        check_step(ranks, build, step, by_hand([(step * BATCH + i) % SAMPLES for i in range(BATCH)]))


def test_a_shuffled_epoch_is_the_same_under_every_plan_and_has_each_sample_once(tmp_path):
    builds = {plan: make_build(tmp_path / plan, plan) for plan in PLANS}
    path = write_tensors(tmp_path)
    for make in (lambda: path, Numbered):
        alone = Batches(make(), builds["one"], 0, CPU, seed=7)
        seen = [alone.micro_batches(step)[0] for step in range(5)]  # 40 samples: two epochs
        rows = torch.cat([batch["tokens_0"] for batch in seen])[:, 0] // LENGTH
        assert sorted(rows[:SAMPLES].tolist()) == sorted(rows[SAMPLES:].tolist()) == list(range(SAMPLES))
        assert rows[:SAMPLES].tolist() != rows[SAMPLES:].tolist() != list(range(SAMPLES))
        for build in builds.values():
            ranks = rank_batches(make, build, seed=7)
            for step in range(5):
                check_step(ranks, build, step, by_hand(rows[step * BATCH : (step + 1) * BATCH]))


def test_the_order_depends_on_the_seed(tmp_path):
    build = make_build(tmp_path, "one")
    first = [
        Batches(Numbered(), build, 0, CPU, seed=seed).micro_batches(0)[0]["tokens_0"] for seed in (0, 1, 0)
    ]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("plan", ["dp=3", "dp=2,micro_batches=2", "pp=3,dp=2"])
def test_a_rank_asks_for_its_own_samples_once(tmp_path, plan):
    build = make_build(tmp_path, plan)
    datasets = [Numbered() for _ in range(build.world_size)]
    for rank, dataset in enumerate(datasets):
        Batches(dataset, build, rank, CPU).micro_batches(1)
    stages = {"dp=3": [3], "dp=2,micro_batches=2": [2], "pp=3,dp=2": [2, 2, 2]}[plan]
    asked = [sorted(dataset.asked) for dataset in datasets]
    for size in stages:
        stage, asked = asked[:size], asked[size:]
        everything = sorted(number for numbers in stage for number in numbers)
        assert everything in ([], list(range(BATCH, 2 * BATCH)))
    if plan.startswith("pp"):
        assert datasets[2].asked == datasets[3].asked == []


def test_a_rank_without_inputs_does_not_go_along_an_iterable(tmp_path):
    build = make_build(tmp_path, "pp=3,dp=2")
    streams = [Streamed() for _ in range(build.world_size)]
    for rank, stream in enumerate(streams):
        Batches(stream, build, rank, CPU).micro_batches(0)
    assert [stream.given for stream in streams] == [8, 8, 0, 0, 8, 8]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("samples", [3, 8, 16, 20])
def test_an_epoch_for_inference_has_each_sample_once(tmp_path, source, samples, monkeypatch):
    monkeypatch.setattr("tests.runtime.data.test_batches.SAMPLES", samples)
    monkeypatch.setattr(Streamed.__init__, "__defaults__", (samples,))
    monkeypatch.setattr(Numbered.__init__, "__defaults__", (samples,))
    build = make_build(tmp_path, "pp=3,dp=2")
    ranks = rank_batches(lambda: SOURCES[source](tmp_path), build, is_once=True, reads_ahead=True)
    steps = list(zip(*(batches.epoch() for batches in ranks), strict=True))
    assert len(steps) == -(-samples // BATCH)
    for step, batches_of_ranks in enumerate(steps):
        rows = [(step * BATCH + i) % samples for i in range(BATCH)]
        check_pieces(list(batches_of_ranks), build, by_hand(rows))
    assert [batches.samples for batches in ranks] == [samples] * build.world_size


class Placed(Streamed):
    """An iterable with a state, as torchdata's StatefulDataLoader is one; another order in each epoch."""

    def __init__(self, samples=SAMPLES):
        super().__init__(samples)
        self.epoch, self.next, self.resumed = 0, 0, None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.resumed = state["next"]

    def __iter__(self):
        self.next, self.resumed = self.resumed or 0, None
        while self.next < SAMPLES:
            row = (self.next + 3 * self.epoch) % SAMPLES
            self.next += 1
            self.given += 1
            yield {name: x[row] for name, x in self.whole.items()}


class Epochs(Placed):
    """Knows epochs, but has a state that JSON cannot hold."""

    def state_dict(self):
        return {"next": torch.tensor(self.next)}


class Keyed(Placed):
    """Has a state that JSON gives back with other keys."""

    def state_dict(self):
        return {0: self.next}

    def load_state_dict(self, state):
        raise AssertionError("not the state that was given")


RESUMABLE = {
    **SOURCES,
    "with a state": lambda folder: Placed(),
    "with epochs": lambda folder: Epochs(),
    "keyed": lambda folder: Keyed(),
}


@pytest.mark.parametrize("reads_ahead", [False, True])
@pytest.mark.parametrize("source", RESUMABLE)
@pytest.mark.parametrize("plan", ["one", "pp=3,dp=2", "cp=2,dp=2"])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path, plan, source, reads_ahead):
    def open_ranks(build):
        return rank_batches(lambda: RESUMABLE[source](tmp_path), build, seed=seed, reads_ahead=reads_ahead)

    seed = 3 if source in ("dataset", "safetensors", "list") else None
    first, second = make_build(tmp_path / "a", plan), make_build(tmp_path / "b", "dp=2,micro_batches=2")
    alone = open_ranks(make_build(tmp_path / "c", "one"))[0]
    truth = [
        {name.removesuffix("_0"): x for name, x in alone.micro_batches(step)[0].items()} for step in range(8)
    ]
    ranks = open_ranks(first)
    for stop in (3, 5):
        for step in range(ranks[0].state_dict()["step"], stop):
            check_step(ranks, first, step, truth[step])
        states = [json.loads(json.dumps(batches.state_dict())) for batches in ranks]
        ranks = open_ranks(first)
        for batches, state in zip(ranks, states, strict=True):
            batches.load_state_dict(state)
    moved = open_ranks(second)  # the state of one rank serves another plan, also that of one without input
    for batches in moved:
        batches.load_state_dict(states[2 % len(states)])
    for step in range(5, 8):
        check_step(ranks, first, step, truth[step])
        check_step(moved, second, step, truth[step])


def test_an_iterable_that_keeps_its_place_is_not_read_again(tmp_path):
    build = make_build(tmp_path, "one")
    counts = {}
    for kind in (Streamed, Epochs, Placed):
        batches = Batches(kind(), build, 0, CPU)
        for step in range(4):
            batches.micro_batches(step)
        stream = kind()
        resumed = Batches(stream, build, 0, CPU)
        resumed.load_state_dict(batches.state_dict())
        resumed.micro_batches(4)
        counts[kind] = stream.given
    # 32 samples are an epoch of 20, and 12
    assert counts == {Streamed: 32 + 8, Epochs: 12 + 8, Placed: 8}


@pytest.mark.parametrize(
    ("options", "other", "message"),
    [
        ({"seed": 1}, Numbered(), "20 samples as they lie in batches of 8; .* in the order of --shuffle"),
        ({}, Numbered(21), "had 20 samples .*; Numbered now gives 21 samples"),
        ({}, Streamed(), "had 20 samples .*; Streamed now gives an iterable's samples"),
    ],
)  # fmt: skip
def test_other_samples_than_those_of_the_interrupted_run_are_refused(tmp_path, options, other, message):
    build = make_build(tmp_path, "one")
    state = Batches(Numbered(), build, 0, CPU).state_dict()
    with pytest.raises(BuildError, match=message):
        Batches(other, build, 0, CPU, **options).load_state_dict(state)


def test_an_iterable_cannot_be_shuffled_from_outside(tmp_path):
    with pytest.raises(BuildError, match=r"(?s)--shuffle: Streamed is an iterable.*set_epoch"):
        Batches(Streamed(), make_build(tmp_path, "one"), 0, CPU, seed=0)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(8, 40), steps=st.integers(1, 9), stop=st.integers(0, 8))
def test_any_stop_of_any_stream_is_resumed_exactly(tmp_path_factory, samples, steps, stop):
    build = make_build(tmp_path_factory.mktemp("build"), "one")
    first = Batches(Streamed(samples), build, 0, CPU)
    for step in range(stop):
        first.micro_batches(step)
    second = Batches(Streamed(samples), build, 0, CPU)
    second.load_state_dict(first.state_dict())
    for step in range(stop, stop + steps):
        rows = [(step * BATCH + i) % samples for i in range(BATCH)]
        expected = {name: x[rows] for name, x in numbered(samples).items()}
        check_step([second], build, step, expected)


@pytest.fixture
def tiny(tmp_path):
    return read_build(write_build(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, r"no input 'y'; it has x"),
        ({"y": torch.ones(20, 4)}, r"input 'y' .* is torch\.float32 \[20, 4\]"),
        ({"x": torch.ones(20, 5, dtype=torch.float64)}, r"compiled for torch\.float64 \['samples', 6\]"),
        ({"x": torch.ones(19, 6, dtype=torch.float64)}, "different lengths"),
        (
            {name: torch.ones(7, size, dtype=torch.float64) for name, size in (("x", 6), ("y", 4))},
            r"has 7 samples; one batch takes 8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tiny, change, message):
    tensors = {**load_file(tmp_path / "data.safetensors"), **change}
    save_file({name: x for name, x in tensors.items() if x is not None}, tmp_path / "other.safetensors")
    with pytest.raises(BuildError, match=message):
        Batches(tmp_path / "other.safetensors", tiny, 0, CPU)


def test_narrow_whole_numbers_in_a_file_become_those_of_the_model(tmp_path):
    build = make_build(tmp_path, "one")
    save_file({name: x.to(torch.int16) for name, x in numbered(20).items()}, tmp_path / "x.safetensors")
    check_step([Batches(tmp_path / "x.safetensors", build, 0, CPU)], build, 0, by_hand(list(range(8))))


def test_a_stream_too_short_for_a_batch_is_refused(tmp_path):
    batches = Batches(Streamed(5), make_build(tmp_path, "one"), 0, CPU)
    with pytest.raises(BuildError, match="Streamed has 5 samples; one batch takes 8"):
        batches.micro_batches(0)


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
def test_batches_come_to_a_gpu_through_pinned_memory(tmp_path, source):
    build, gpu = make_build(tmp_path, "one"), torch.device("cuda", 0)
    batches = Batches(SOURCES[source](tmp_path), build, 0, gpu, reads_ahead=True)
    for step in range(6):
        (micro_batch,) = batches.micro_batches(step)
        assert all(x.device == gpu for x in micro_batch.values())
        rows = [(step * BATCH + i) % SAMPLES for i in range(BATCH)]
        check_pieces([[{name: x.cpu() for name, x in micro_batch.items()}]], build, by_hand(rows))
    assert all(x.is_pinned() for x in batches._read(6).micro_batches[0].values())
