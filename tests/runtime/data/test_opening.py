"""A data set is what its path, function or object says it is, and what is none is refused with a remedy."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset

from superscaler.errors import BuildError
from superscaler.runtime.data import Stream, open_data
from superscaler.runtime.data.dataset_source import DatasetSource
from superscaler.runtime.data.piece import Piece
from superscaler.runtime.data.tensor_source import TensorSource
from tests.runtime.data.layouts import CPU, INPUTS, Batches, check_step, make_build, numbered

ROOT = Path(__file__).parents[3]
SAMPLE = ({name: torch.zeros(6, dtype=torch.int64) for name in INPUTS},)
FILE = """
import neighbour
import torch.utils.data


def dataset():
    return neighbour.SAMPLES


def generator():
    yield from neighbour.SAMPLES


def iterable():
    return {0: 1}.keys()


def path():
    return neighbour.PATH


def nothing():
    return 5


def fails():
    raise KeyError("lost")  # on purpose


def no_samples():
    return []


def wants(argument):
    return argument
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("def train():\n    return 1 +\n")
    (tmp_path / "raises.py").write_text("import no_such_module_anywhere\n")
    path = tmp_path / "x.safetensors"
    save_file(numbered(20), path)
    (tmp_path / "notes.txt").write_text("no data")
    text = f"PATH = {str(path)!r}\nSAMPLES = [((i,) * 6, (-i,) * 6) for i in range(20)]\n"
    (tmp_path / "neighbour.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "kind"),
    [("dataset", DatasetSource), ("generator", Stream), ("iterable", Stream), ("path", TensorSource)],
)
def test_a_function_is_named_by_its_file(folder, function, kind):
    assert isinstance(open_data(f"{folder}/data.py:{function}", INPUTS), kind)
    assert isinstance(open_data(folder / f"data.py:{function}", INPUTS), kind)


@pytest.mark.parametrize("function", ["dataset", "generator"])
def test_a_function_gives_its_samples(folder, function):
    build = make_build(folder / "build", "one")
    batches = Batches(f"{folder}/data.py:{function}", build, 0, CPU)
    for step in (0, 2, 5):
        rows = torch.tensor([(step * 8 + i) % 20 for i in range(8)])
        expected = rows.unsqueeze(1).expand(8, 6).contiguous()
        check_step([batches], build, step, {"tokens": expected, "targets": -expected})


def test_the_example_gives_bytes_and_what_follows_them():
    inputs = dict.fromkeys(INPUTS, (torch.int64, (2, 64)))
    source = open_data(ROOT / "examples" / "data.py:documentation", inputs)
    source.check(inputs)
    whole = [Piece(name, torch.int64, (2, 64), ([(0, 2)], [(0, 64)])) for name in INPUTS]
    tokens, targets = (x.flatten() for x in source.read(whole))
    assert torch.equal(tokens[1:], targets[:-1])
    first = "\n\n".join(topics[name] for name in sorted(topics)).encode()[:128]
    assert bytes(tokens.tolist()) == first


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("data.py:missing", r"no function 'missing'; it has dataset, generator, iterable"),
        ("gone.py:f", r"no Python file '.*gone\.py'"),
        ("broken.py:train", r"(?s)cannot be imported: SyntaxError.*broken\.py:2: return 1 \+"),
        ("raises.py:f", r"(?s)cannot be imported: ModuleNotFoundError.*raises\.py:1: import no_such"),
        ("data.py:fails", r"(?s)fails\(\) fails: KeyError: 'lost'.*data\.py:\d+: raise KeyError\(\"lost\"\)"),
        ("data.py:wants", r"wants\(\) fails: TypeError: .*argument"),
        ("data.py:nothing", r"nothing is a int, which is no dataset with `len` and `\[\]` and no iterable"),
        ("data.py:no_samples", r"no_samples has no samples"),
        ("gone.safetensors", r"no tensors at .*gone\.safetensors"),
        ("notes.txt", r"(?s)notes\.txt is no kind of data set that is known.*FILE\.py:FUNCTION"),
    ],
)
def test_what_cannot_be_opened_says_why(folder, reference, message):
    with pytest.raises(BuildError, match=message):
        open_data(f"{folder}/{reference}", INPUTS)


class WithoutLength(Dataset):
    def __getitem__(self, number):
        return SAMPLE


class LengthFails(list):
    def __len__(self):
        raise RuntimeError("no index yet")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WithoutLength(), r"WithoutLength is a WithoutLength, which is no dataset"),
        (LengthFails(), r"the length of LengthFails cannot be had: RuntimeError: no index yet"),
        (numbered(8), r"dict is a dict, which is no dataset"),
        (7, r"int is a int"),
    ],
)
def test_objects_that_are_no_data_set_are_refused(data, message):
    with pytest.raises(BuildError, match=message):
        open_data(data, INPUTS)


def test_an_iterator_is_read_once(tmp_path):
    samples = list(zip(*numbered(20).values(), strict=True))
    batches = Batches(iter(samples), make_build(tmp_path, "one"), 0, CPU)
    batches.micro_batches(0)
    batches.micro_batches(1)
    with pytest.raises(BuildError, match=r"(?s)ended after 20 samples and cannot be begun again.*function"):
        batches.micro_batches(2)


class Promises:
    """An iterable that says it has more than it gives."""

    def __len__(self):
        return 20

    def __iter__(self):
        return iter(list(zip(*numbered(15).values(), strict=True)))


def test_an_iterable_that_ends_in_the_middle_of_its_epoch_is_refused(tmp_path):
    batches = Batches(Promises(), make_build(tmp_path, "one"), 0, CPU)
    batches.micro_batches(0)
    with pytest.raises(BuildError, match="Promises ended after 15 of the 20 samples it has by `len`"):
        batches.micro_batches(1)


def test_an_iterable_without_samples_is_refused(tmp_path):
    batches = Batches(lambda: iter(()), make_build(tmp_path, "one"), 0, CPU)
    with pytest.raises(BuildError, match="has no samples"):
        batches.micro_batches(0)


def test_inputs_that_are_not_one_row_per_sample_need_a_file_of_tensors():
    inputs = {**INPUTS, "scale": (torch.float32, ())}
    for data in ([SAMPLE], iter([SAMPLE])):
        with pytest.raises(BuildError, match=r"(?s)do not all have one row per sample.*'scale': \[\]"):
            open_data(data, inputs).check(inputs)
