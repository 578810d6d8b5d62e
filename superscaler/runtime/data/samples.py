"""Samples as users' data sets give them, cut and stacked into the pieces of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.data.conversion import as_tensor
from superscaler.runtime.data.piece import Piece, cut


def stack_pieces(
    samples: Mapping[int, Any], pieces: Sequence[Piece], names: Sequence[str], whose: str
) -> list[Tensor]:
    """Each piece of the samples it needs.

    Args:
        samples: Number -> a mapping from names of inputs to values, or one value per input in a sequence.
        pieces: What to cut out; they have samples.
        names: The model's inputs, in the order of a sample that is a sequence.
        whose: The data set, as messages say it.

    Raises:
        BuildError: A sample lacks an input, or has another type or shape there.
    """
    return [_stack(samples, piece, names, whose) for piece in pieces]


def sample_value(sample: Any, name: str, names: Sequence[str]) -> Any:
    """One input of a sample.

    Raises:
        LookupError: It has none; says what it has.
    """
    if isinstance(sample, Mapping):
        if name not in sample:
            raise LookupError(f"has no input {name!r}; it has {', '.join(map(str, sample)) or 'nothing'}")
        return sample[name]
    if not isinstance(sample, Sequence) or isinstance(sample, str):
        raise LookupError(f"is a {type(sample).__name__}, neither a mapping nor a sequence of inputs")
    if len(sample) != len(names):
        raise LookupError(f"has {len(sample)} values; the inputs are {', '.join(names)}")
    return sample[names.index(name)]


def _stack(samples: Mapping[int, Any], piece: Piece, names: Sequence[str], whose: str) -> Tensor:
    inner = piece.runs[1:]
    parts = [
        cut(_checked(samples[number], piece, names, f"sample {number} of {whose}"), inner)
        for number in piece.samples
    ]
    if not parts:
        return cut(torch.empty(0, *piece.shape[1:], dtype=piece.dtype), ([(0, 0)], *inner))
    return torch.stack(parts)


def _checked(sample: Any, piece: Piece, names: Sequence[str], what: str) -> Tensor:
    try:
        value = sample_value(sample, piece.input, names)
    except LookupError as error:
        raise BuildError(
            f"{what} {error.args[0]}",
            remedy="give each sample as {name of input: value}, or as a tuple in the order of the model's inputs",
        ) from error
    try:
        x = as_tensor(value, piece.dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BuildError(
            f"{what}: input {piece.input!r} is no tensor: {type(error).__name__}: {error}",
            remedy="give tensors, arrays or numbers; leave out text, and fill sequences up to one length",
        ) from error
    expected = piece.shape[1:]
    if x.dtype == piece.dtype and x.shape == expected:
        return x
    remedy = "give the samples as the model reads them, or compile the model for this data"
    if x.shape[1:] == expected and x.dim() > len(expected):
        remedy = "this is a batch: give samples one by one (of a DataLoader, with batch_size=None)"
    raise BuildError(
        f"{what}: input {piece.input!r} is {x.dtype} {list(x.shape)}, but the model was compiled for "
        f"{piece.dtype} {list(expected)}",
        remedy=remedy,
    )
