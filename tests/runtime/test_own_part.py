"""What a rank reads of a batch, as one part: against indices written out."""

import numpy as np
import pytest
import torch

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import Role
from superscaler.runtime.own_part import own_parts
from superscaler.runtime.stored_tensor import StoredTensor


def indices(runs):
    return np.concatenate([np.arange(start, stop) for start, stop in runs])


@pytest.mark.parametrize("cuts", [(("mb", "dp"), ()), (("dp", "mb"), ()), ((), ("dp",)), ((), ())])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_pieces_lie_in_the_part_where_their_samples_do(cuts, micro_batches):
    mesh = Mesh((0, 1), (("dp", 2),), micro_batches, 0)
    each, before = (
        StoredTensor(name, "x", Role.INPUT, torch.float32, (12, 4), ((12,), (4,)), Layout(mesh, (12, 4), cut))
        for name, cut in (("each", cuts), ("before", (("dp",), ())))
    )
    whole = np.arange(48).reshape(12, 4)
    for rank in (0, 1):
        part = own_parts([each, before], rank, micro_batches)["x"]
        own = whole[np.ix_(*map(indices, part.runs))]
        assert own.shape == part.shape
        read = set()
        for tensor in (each, before):
            for number in range(micro_batches):
                expected = whole[np.ix_(*map(indices, tensor.runs(rank, number)))]
                found = own[np.ix_(*map(indices, part.pieces[tensor.name][number]))]
                assert (found == expected).all()
                read |= set(expected.ravel())
        if cuts[1] != ("dp",):
            assert set(own.ravel()) == read, "nothing is in the part that is not read"
