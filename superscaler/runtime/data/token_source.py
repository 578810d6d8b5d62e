"""A long row of tokens in a memory-mapped file, cut into samples and their shifted targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.data.conversion import is_lossless, tensor_of
from superscaler.runtime.data.piece import Piece, cut
from superscaler.runtime.data.source import Inputs, Source, check_rows

TOKEN_DTYPES = ("uint16", "uint32")
"""Types of the tokens in a .bin file."""


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """How samples are cut from a file of tokens."""

    tokens: str = "tokens"
    """The input that is given the tokens."""
    targets: str = "targets"
    """The input that is given what follows each token."""
    shift: int = 1
    """How many places after its token a target lies; 0 for a model that shifts targets itself."""
    dtype: str = "uint16"
    """Of a .bin file, little-endian: one of `TOKEN_DTYPES`; a .npy file says its own."""
    length: int | None = None
    """Tokens of a sample; None: as many as the model was compiled for."""

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise BuildError(f"a sample of {self.length} tokens", remedy="cut samples of at least one token")
        assert self.shift >= 0, self.shift
        assert self.dtype in TOKEN_DTYPES, self.dtype


class TokenSource(Source):
    """Sample i has tokens ``[i * length, (i + 1) * length)``, and the targets that follow each.

    Args:
        path: A .bin file of tokens and nothing else, as nanoGPT writes one, or a .npy file of one dim.
        inputs: The inputs of the model.
        form: How samples are cut.

    Raises:
        BuildError: There is no such file, it holds something else, or it is too short for one sample.
    """

    def __init__(self, path: Path | str, inputs: Inputs, form: TokenFormat) -> None:
        self.name, self._form = str(path), form
        self._data = map_tokens(Path(path), form.dtype)
        _, shape = inputs.get(form.tokens, (None, ()))
        self._length = int(torch.Size(shape[1:]).numel()) if form.length is None else form.length
        needed = form.shift if form.targets in inputs else 0
        self.samples = (len(self._data) - needed) // self._length
        if self.samples < 1:
            raise BuildError(
                f"{path} has {len(self._data)} tokens; one sample takes {self._length + needed}",
                remedy="give more tokens, or cut shorter samples: --sample-tokens",
            )

    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where some input is neither tokens nor targets, or of another type or shape."""
        check_rows(inputs, self.name)
        own = tensor_of(self._data[:0]).dtype
        for name, (dtype, shape) in inputs.items():
            if self.sample_shape(name) is None:
                raise BuildError(
                    f"{self.name} holds tokens: it has {self._form.tokens!r} and {self._form.targets!r}, and no "
                    f"input {name!r}",
                    remedy="say which inputs are tokens and which what follows: --tokens NAME --targets NAME",
                )
            if not is_lossless(own, dtype) or shape[1:] != (self._length,):
                raise BuildError(
                    f"input {name!r} in {self.name} is {own} {['samples', self._length]}, but the model was "
                    f"compiled for {dtype} {['samples', *shape[1:]]}",
                    remedy="cut samples as the model reads them (--sample-tokens), or compile the model for this data",
                )

    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a sample's tokens or targets."""
        return (self._length,) if name in (self._form.tokens, self._form.targets) else None

    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The pieces; of the file only the pages they lie in."""
        return [self._read(piece) for piece in pieces]

    def _read(self, piece: Piece) -> Tensor:
        shift = self._form.shift if piece.input == self._form.targets else 0
        runs = piece.runs[1]
        first, last = (runs[0][0], runs[-1][1]) if runs else (0, 0)
        rows = np.empty((len(piece.samples), last - first), dtype=self._data.dtype)
        for row, sample in enumerate(piece.samples):
            start = sample * self._length + shift
            rows[row] = self._data[start + first : start + last]
        inner = [(start - first, stop - first) for start, stop in runs]
        return cut(tensor_of(rows).to(piece.dtype), ([(0, len(rows))], inner)).contiguous()


def map_tokens(path: Path, dtype: str) -> np.ndarray:
    """The tokens [count] in a .bin or .npy file, mapped into memory.

    Args:
        path: The file.
        dtype: Of a .bin file: one of `TOKEN_DTYPES`.

    Raises:
        BuildError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise BuildError(f"no file {path}", remedy="give the path of a .bin or .npy file of tokens")
    if path.suffix == ".npy":
        return _map_array(path)
    kind = np.dtype(dtype).newbyteorder("<")
    size = path.stat().st_size
    if size % kind.itemsize or not size:
        raise BuildError(
            f"{path} has {size} bytes, which is no number of tokens of {kind.itemsize} bytes each",
            remedy=f"say what its tokens are: --token-dtype {' or '.join(TOKEN_DTYPES)}",
        )
    return np.memmap(path, kind, mode="r")


def _map_array(path: Path) -> np.ndarray:
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BuildError(
            f"{path} cannot be read as .npy: {error}", remedy="write it again with numpy.save"
        ) from error
    if data.ndim != 1 or data.dtype.kind not in "iu":
        raise BuildError(
            f"{path} is {data.dtype} {list(data.shape)}, not one row of whole numbers",
            remedy="write the tokens of all texts one after another: numpy.concatenate, then numpy.save",
        )
    return data
