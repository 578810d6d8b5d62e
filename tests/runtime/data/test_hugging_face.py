"""Hugging Face datasets are read as they are, saved and streamed, and resumed exactly where their state suffices."""

import builtins
import json

import pytest
import torch

from superscaler.errors import BuildError
from superscaler.runtime.data import Batches, Stream, open_data
from superscaler.runtime.data.dataset_source import DatasetSource
from superscaler.runtime.data.hugging_face import keeps_place
from tests.runtime.data.layouts import BATCH, CPU, INPUTS, check_step, make_build, numbered, rank_batches

datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")

SAMPLES = 20


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def make(**more):
    columns = {name: x.tolist() for name, x in numbered(SAMPLES).items()}
    return datasets.Dataset.from_dict({**columns, **more})


def by_hand(step, samples=SAMPLES):
    rows = [(step * BATCH + i) % samples for i in range(BATCH)]
    return {name: x[rows] for name, x in numbered(samples).items()}


KINDS = {
    "lists": make,
    "torch": lambda: make().with_format("torch"),
    "numpy": lambda: make().with_format("numpy"),
    "with text": lambda: make(text=["more"] * SAMPLES),
    "streamed": lambda: make(text=["more"] * SAMPLES).to_iterable_dataset(num_shards=3),
    "streamed as torch": lambda: make().to_iterable_dataset().with_format("torch"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["cp=2,dp=2", "pp=3,dp=2"])
def test_all_ranks_together_see_the_samples_of_the_step(tmp_path, kind, plan):
    build = make_build(tmp_path, plan)
    ranks = rank_batches(KINDS[kind], build, reads_ahead=True)
    for step in range(4):
        check_step(ranks, build, step, by_hand(step))


def test_a_saved_folder_is_read_by_its_path(tmp_path):
    build = make_build(tmp_path / "build", "dp=2,micro_batches=2")
    make().save_to_disk(tmp_path / "saved")
    ranks = rank_batches(lambda: tmp_path / "saved", build)
    for step in (0, 2):
        check_step(ranks, build, step, by_hand(step))


def test_of_several_splits_one_is_to_be_named(tmp_path):
    splits = datasets.DatasetDict({"train": make(), "test": make()})
    splits.save_to_disk(tmp_path / "all")
    with pytest.raises(BuildError, match=r"(?s)several datasets: test, train.*all/test"):
        open_data(tmp_path / "all", INPUTS)
    with pytest.raises(BuildError, match="several datasets: train, test"):
        open_data(splits, INPUTS)
    assert open_data(tmp_path / "all" / "train", INPUTS).samples == SAMPLES


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch):
    def no_datasets(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return import_it(name, *rest)

    make().save_to_disk(tmp_path / "saved")
    import_it = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_datasets)
    with pytest.raises(BuildError, match=r"(?s)`datasets` is not installed.*superscaler\[datasets\]"):
        open_data(tmp_path / "saved", INPUTS)


def test_a_damaged_folder_is_refused(tmp_path):
    make().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(BuildError, match="cannot be read as a Hugging Face dataset"):
        open_data(tmp_path / "saved", INPUTS)


def test_columns_that_are_no_inputs_are_not_decoded(tmp_path):
    def refuse(batch):
        assert set(batch) == set(INPUTS)
        return batch

    data = make(text=["more"] * SAMPLES).with_transform(refuse)
    assert isinstance(open_data(data, INPUTS), DatasetSource)
    check_step(
        [Batches(data, make_build(tmp_path, "one"), 0, CPU)], make_build(tmp_path, "one"), 0, by_hand(0)
    )


STREAMS = {
    "as it is": lambda: make().to_iterable_dataset(num_shards=3),
    "shuffled": lambda: make().to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=7),
    "mapped": lambda: (
        make().to_iterable_dataset().shuffle(seed=2, buffer_size=5).map(lambda row: {"more": row["tokens"]})
    ),
    "joined": lambda: datasets.concatenate_datasets(
        [make().to_iterable_dataset().shuffle(seed=2), make().to_iterable_dataset()]
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_a_resumed_stream_goes_on_as_an_uninterrupted_one(tmp_path, kind, stop):
    build = make_build(tmp_path, "one")
    whole = Batches(STREAMS[kind](), build, 0, CPU)
    truth = [whole.micro_batches(step)[0] for step in range(stop + 4)]
    first = Batches(STREAMS[kind](), build, 0, CPU, reads_ahead=True)
    for step in range(stop):
        first.micro_batches(step)
    second, state = Batches(STREAMS[kind](), build, 0, CPU, reads_ahead=True), first.state_dict()
    assert (state["place"]["iterable"] is not None) == (kind == "as it is")
    second.load_state_dict(json.loads(json.dumps(state)))
    for step in range(stop, stop + 4):
        given = second.micro_batches(step)[0]
        assert all(torch.equal(x, truth[step][name]) for name, x in given.items())


def test_the_state_of_a_shuffle_buffer_is_known_to_be_incomplete():
    assert [keeps_place(make_stream()) for make_stream in STREAMS.values()] == [True, False, False, False]


def test_a_shuffled_stream_has_another_order_in_each_epoch(tmp_path):
    batches = Batches(STREAMS["shuffled"](), make_build(tmp_path, "one"), 0, CPU)
    rows = torch.cat([batches.micro_batches(step)[0]["tokens_0"] for step in range(5)])[:, 0] // 6
    epochs = rows.view(2, SAMPLES).tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(SAMPLES))
    assert epochs[0] != epochs[1]


def test_a_streamed_dataset_is_a_stream():
    assert isinstance(open_data(KINDS["streamed"](), INPUTS), Stream)
