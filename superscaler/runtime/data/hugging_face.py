"""Hugging Face datasets, without importing them where there are none."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from superscaler.errors import BuildError

_SPLITS, _ONE = "dataset_dict.json", "state.json"
"""Files by which to know the folders that ``save_to_disk`` of a DatasetDict and of a Dataset write."""
_SHUFFLE_BUFFER = "BufferShuffledExamplesIterable"


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return (path / _SPLITS).is_file() or (path / _ONE).is_file()


def load_saved(path: Path) -> Any:
    """The dataset that ``save_to_disk`` wrote; its samples stay in the files until they are read.

    Raises:
        BuildError: The package is not installed, or the folder holds several datasets or a damaged one.
    """
    if (path / _SPLITS).is_file():
        splits = sorted(child.name for child in path.iterdir() if is_saved(child))
        raise BuildError(
            f"{path} holds several datasets: {', '.join(splits)}", remedy=f"name one: {path / splits[0]}"
        )
    try:
        import datasets
    except ImportError:
        raise BuildError(
            f"{path} is a Hugging Face dataset, and the package `datasets` is not installed",
            remedy='pip install "superscaler[datasets]"',
        ) from None
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise BuildError(
            f"{path} cannot be read as a Hugging Face dataset: {type(error).__name__}: {error}",
            remedy="write it again with save_to_disk",
        ) from error


def only_columns(dataset: Any, names: Collection[str]) -> Any:
    """A dataset without the columns that no input is named after, so that they are not decoded."""
    columns = getattr(dataset, "column_names", None)
    if not _is_hugging_face(dataset) or not isinstance(columns, list) or not set(names) < set(columns):
        return dataset
    return dataset.select_columns(list(names))


def check_one_split(dataset: Any, name: str) -> None:
    """Raise a BuildError for a dictionary of datasets."""
    if _is_hugging_face(dataset) and isinstance(dataset, dict):
        raise BuildError(
            f"{name} holds several datasets: {', '.join(map(str, dataset))}",
            remedy="choose one of them: dataset[...]",
        )


def keeps_place(dataset: Any) -> bool:
    """Whether ``state_dict`` of an iterable says all that there is to know of its place.

    That of a Hugging Face ``IterableDataset`` leaves out what is in a shuffle buffer, as its documentation says.
    """
    if not _is_hugging_face(dataset):
        return True
    stage = getattr(dataset, "_ex_iterable", None)
    return stage is not None and not _has_shuffle_buffer(stage)


def _has_shuffle_buffer(stage: Any) -> bool:
    """Whether some stage of a chain of iterables shuffles in a buffer."""
    if type(stage).__name__ == _SHUFFLE_BUFFER:
        return True
    inner = [getattr(stage, "ex_iterable", None), *getattr(stage, "ex_iterables", ())]
    return any(_has_shuffle_buffer(one) for one in inner if one is not None)


def _is_hugging_face(dataset: Any) -> bool:
    package = sys.modules.get("datasets")
    kinds = ("Dataset", "IterableDataset", "DatasetDict", "IterableDatasetDict")
    return any(isinstance(dataset, getattr(package, kind)) for kind in kinds if hasattr(package, kind))
