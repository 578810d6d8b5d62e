"""Open a data set: a path, a function, a dataset or an iterable, as a source or a stream of samples."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.utils.data

from superscaler.errors import BuildError
from superscaler.runtime.data import hugging_face
from superscaler.runtime.data.dataset_source import DatasetSource
from superscaler.runtime.data.source import Inputs, Source
from superscaler.runtime.data.stream import Stream
from superscaler.runtime.data.tensor_source import TensorSource
from superscaler.runtime.data.token_source import TokenFormat, TokenSource
from superscaler.runtime.data.users_code import load_function, users_error

_KINDS = (
    "a .safetensors file, a .bin or .npy file of tokens, a folder of save_to_disk, or FILE.py:FUNCTION that "
    "returns a dataset or an iterable"
)
_TOKENS = (".bin", ".npy")


def open_data(data: Any, inputs: Inputs, form: TokenFormat | None = None) -> Source | Stream:
    """Open a data set.

    Args:
        data: A path, by its suffix; ``FILE.py:FUNCTION``, or a function without arguments; a dataset with ``len``
            and ``[]``; an iterable; or what this returned before.
        inputs: The inputs of the model.
        form: How samples are cut from a file of tokens.

    Raises:
        BuildError: It is none of these, cannot be opened, or has no samples.
    """
    if isinstance(data, Source | Stream):
        return data
    if isinstance(data, str | Path):
        return _open_path(str(data), inputs, form or TokenFormat())
    if not _is_dataset(data) and not hasattr(data, "__iter__") and callable(data):
        name = f"{getattr(data, '__module__', '')}.{getattr(data, '__qualname__', type(data).__name__)}"
        return _open_function(data, name, inputs, form)
    return _open_object(data, type(data).__name__, inputs)


def _open_path(path: str, inputs: Inputs, form: TokenFormat) -> Source | Stream:
    file, _, function = path.rpartition(":")
    if file.endswith(".py") and function:
        return _open_function(load_function(path), path, inputs, form)
    found = Path(path)
    if found.suffix in _TOKENS:
        return TokenSource(found, inputs, form)
    if hugging_face.is_saved(found):
        return _open_object(hugging_face.load_saved(found), path, inputs)
    if found.suffix == ".safetensors" or not found.is_file():
        return TensorSource(found, inputs)
    raise BuildError(f"{path} is no kind of data set that is known", remedy=f"give {_KINDS}")


def _open_function(
    function: Callable[[], Any], name: str, inputs: Inputs, form: TokenFormat | None
) -> Source | Stream:
    try:
        made = function()
    except Exception as error:
        raise users_error(error, f"{name}() fails") from error
    if isinstance(made, str | Path | Source | Stream):
        return open_data(made, inputs, form)
    if not isinstance(made, Iterator):
        return _open_object(made, name, inputs)
    first = [made]
    return Stream(lambda: first.pop() if first else function(), name, inputs)


def _open_object(data: Any, name: str, inputs: Inputs) -> Source | Stream:
    hugging_face.check_one_split(data, name)
    data = hugging_face.only_columns(data, inputs)
    if _is_dataset(data):
        return DatasetSource(data, name, inputs)
    if hasattr(data, "__iter__") and not isinstance(data, Mapping):
        keeps_place = hugging_face.keeps_place(data)
        return Stream(lambda: data, name, inputs, is_once=isinstance(data, Iterator), keeps_place=keeps_place)
    raise BuildError(
        f"{name} is a {type(data).__name__}, which is no dataset with `len` and `[]` and no iterable",
        remedy=f"give {_KINDS}",
    )


def _is_dataset(data: Any) -> bool:
    """Whether samples are had by number; PyTorch's IterableDataset inherits a ``[]`` that only raises."""
    if isinstance(data, torch.utils.data.IterableDataset | Mapping):
        return False
    return hasattr(type(data), "__len__") and hasattr(type(data), "__getitem__")
