"""A reference in double precision: what `transformers` computes in single precision, whatever the model's."""

import pytest
import torch


@pytest.fixture
def transformers(monkeypatch):
    """The library, all of whose conversions to single precision go to double."""
    library = pytest.importorskip("transformers")
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return library
