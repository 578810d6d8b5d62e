"""A .safetensors file whose tensors are named as the model's inputs, one sample per row."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.data.conversion import is_lossless
from superscaler.runtime.data.piece import Piece
from superscaler.runtime.data.source import Inputs, Source
from superscaler.runtime.safetensors_files import TensorFiles


class TensorSource(Source):
    """The rows of the tensors of a file, or of a folder of them.

    Args:
        path: The file or folder.
        inputs: The inputs of the model.

    Raises:
        BuildError: There is no such file, it is damaged, or its tensors differ in length.
    """

    def __init__(self, path: Path | str, inputs: Inputs) -> None:
        self._files = TensorFiles(path)
        self.name = str(path)
        headers = self._files.headers
        counts = {
            name: headers[name].shape[0]
            for name, (_, shape) in inputs.items()
            if shape and name in headers and headers[name].shape
        }
        if len(set(counts.values())) > 1:
            raise BuildError(
                f"{path} has inputs of different lengths: {counts}", remedy="one row per sample in each"
            )
        self.samples = min(counts.values(), default=1)

    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where an input is missing, or of another type or shape."""
        headers = self._files.headers
        for name, (dtype, shape) in inputs.items():
            if name not in headers:
                raise BuildError(
                    f"{self.name} has no input {name!r}; it has {', '.join(headers) or 'nothing'}",
                    remedy="name the tensors of the data set as the model's inputs",
                )
            found = headers[name]
            is_like = isinstance(found.dtype, torch.dtype) and is_lossless(found.dtype, dtype)
            if not is_like or found.shape[1:] != shape[1:] or (found.shape == ()) != (shape == ()):
                raise BuildError(
                    f"input {name!r} in {self.name} is {found.dtype} {list(found.shape)}, but the model was "
                    f"compiled for {dtype} {['samples', *shape[1:]] if shape else []}",
                    remedy="write the data set as the model reads it, or compile the model for this data",
                )

    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a row."""
        header = self._files.headers.get(name)
        return header.shape[1:] if header else None

    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The pieces; of the file only what they hold."""
        return [self._files.read(piece.input, list(piece.runs)).to(piece.dtype) for piece in pieces]
