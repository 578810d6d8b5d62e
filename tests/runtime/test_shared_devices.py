"""Stages that share devices: every message, exchange and collective is told apart, on ranks over gloo."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.mesh import LANE, Mesh
from superscaler.runtime.communication import CommunicationError, Runtime
from superscaler.runtime.groups import make_rounds
from tests.runtime.ranks import run_ranks
from tests.runtime.test_communication import piece

LARGE = 300_000
"""Elements of a message that no buffer of a socket holds."""


def message(*key):
    return torch.full((LARGE,), float(sum(part * 100**i for i, part in enumerate(key))))


def receive(rt, stage, target=None):
    return rt.receive((LARGE,), torch.float32, stage, target)


def interleaved(rank):
    """Four virtual stages on two rows of two: what 0 -> 1 and 2 -> 3 carry is awaited in another order than sent."""
    low, high = (0, 1), (2, 3)
    axes = (("tp", 2),)
    meshes = [Mesh(low, axes), Mesh(high, axes), Mesh(low, axes, chunk=1), Mesh(high, axes, chunk=1)]
    there = [(0, 1), (1, 2), (2, 3)]
    rt = Runtime(rank, meshes, messages=[*there, *((b, a) for a, b in there)])
    place = rank % 2
    assert rt.axis("tp") == rt.axis("tp", rank // 2) == rt.axis("tp", rank // 2 + 2)
    assert rt.axis("tp").ranks == (rank - place, rank - place + 1)
    if rank in low:
        for number in range(3):
            rt.send(message(0, number, place), 1, source=0)
            rt.send(message(2, number, place), 3, source=2)
        for number in range(3):
            assert torch.equal(receive(rt, 1, target=2), message(1, number, place))
        for number in range(3):
            assert torch.equal(receive(rt, 1, target=0), message(11, number, place))
    else:
        for number in range(3):
            rt.send(message(11, number, place), 0, source=1)
            rt.send(message(1, number, place), 2, source=1)
        for number in range(3):
            assert torch.equal(receive(rt, 2, target=3), message(2, number, place))
        for number in range(3):
            assert torch.equal(receive(rt, 0, target=1), message(0, number, place))
    total = rt.all_reduce(torch.tensor(float(rank)), rt.axis("tp"))
    assert total == sum(rt.axis("tp").ranks)
    rt.finish()


def lanes(rank):
    """Two pipelines in opposite directions: both ranks send before either receives, on one pair of stages."""
    meshes = [Mesh((0, 1), ((LANE, 2),)), Mesh((1, 0), ((LANE, 2),))]
    rt = Runtime(rank, meshes, messages=[(0, 1), (1, 0)])
    other = 1 - rank
    assert [rt.axis(LANE, stage).coordinate for stage in (0, 1)] == [rank, other]
    with pytest.raises(AssertionError, match="differ in the axis 'lane'"):
        rt.axis(LANE)
    with pytest.raises(AssertionError, match="name one"):
        rt.send(torch.ones(1), 1)
    for number in range(3):
        rt.send(message(0, number, rank), 1, source=0)
        rt.send(message(1, number, rank), 0, source=1)
    for number in range(3):
        assert torch.equal(receive(rt, 1, target=0), message(1, number, other))
        assert torch.equal(receive(rt, 0, target=1), message(0, number, other))
    rt.finish()


def turned(rank):
    """Collectives along an axis whose devices do not ascend follow the axis."""
    meshes = [Mesh((3, 1, 0, 2), (("tp", 4),)), Mesh((0, 1, 2, 3), (("tp", 4),))]
    rt = Runtime(rank, meshes)
    tp = rt.axis("tp", 0)
    assert tp.ranks == (3, 1, 0, 2)
    assert tp.coordinate == tp.ranks.index(rank)
    assert tp.group is rt.axis("tp", 1).group
    pieces = [piece(r, 8, 4) for r in tp.ranks]
    mine, total = piece(rank, 8, 4), sum(pieces)
    torch.testing.assert_close(rt.all_gather(mine, tp, 1), torch.cat(pieces, 1))
    torch.testing.assert_close(rt.reduce_scatter(mine, tp, 0), total.chunk(4, 0)[tp.coordinate])
    expected = torch.cat([p.chunk(4, 0)[tp.coordinate] for p in pieces], 1)
    torch.testing.assert_close(rt.all_to_all(mine, tp, 0, 1), expected)
    torch.testing.assert_close(
        rt.all_gather(mine, rt.axis("tp", 1), 0), torch.cat([piece(r, 8, 4) for r in range(4)])
    )


def split_rows(before, after, rows):
    """The exchange of a tensor of `rows` rows and 5 columns, cut over the devices of `before`, then `after`."""

    def pieces(devices):
        size = rows // len(devices)
        return {device: (i * size, (i + 1) * size) for i, device in enumerate(devices)}

    held, wanted, moves = pieces(before), pieces(after), []
    for target, (start, stop) in wanted.items():
        for source, (first, last) in held.items():
            low, high = max(start, first), min(stop, last)
            if low < high:
                boxes = [[low - first, high - first], [0, 5]], [[low - start, high - start], [0, 5]]
                moves.append([source, target, *boxes])
    held, wanted = ({str(d): [b - a, 5] for d, (a, b) in one.items()} for one in (held, wanted))
    return {
        "dtype": "float32",
        "source_view": held,
        "target_view": wanted,
        "target_shape": wanted,
        "sum": False,
        "crosses": True,
        "moves": moves,
    }


def embedding(rank):
    """An embedding over all ranks beside two stages of two: boxes to others and to oneself, there and back."""
    everyone, first, second = (0, 1, 2, 3), (0, 1), (3, 2)
    meshes = [Mesh(everyone, (("tp", 4),)), Mesh(first, (("dp", 2),)), Mesh(second, (("dp", 2),))]
    exchanges = {
        "to first": split_rows(everyone, first, 8),
        "to all": split_rows(second, everyone, 8),
    }
    assert any(source == target for source, target, *_ in exchanges["to first"]["moves"])
    rt = Runtime(rank, meshes, messages=[(1, 2)], exchanges=exchanges)
    assert rt.axis("tp").ranks == everyone
    assert rt.axis("dp").ranks == (first if rank in first else second)
    wholes = [torch.arange(40.0).view(8, 5) + 100 * number for number in range(3)]
    for whole in wholes:
        rt.give(whole.chunk(4)[rank], "to first")
    for whole in wholes:
        if rank in first:
            x = rt.take("to first")
            assert torch.equal(x, whole.chunk(2)[rank])
            rt.send(x, 2, source=1)
        else:
            place = second.index(rank)
            x = rt.receive((4, 5), torch.float32, 1, target=2)
            assert torch.equal(x, whole.chunk(2)[place])
            rt.give(x, "to all")
    for whole in wholes:
        assert torch.equal(rt.take("to all"), whole.chunk(4)[rank])
    rt.finish()


def within(rank):
    """A redistribution inside one stage gives and takes at once."""
    devices = (0, 1, 2, 3)
    table = {**split_rows(devices, (3, 1, 0, 2), 8), "crosses": False}
    rt = Runtime(rank, [Mesh(devices, (("dp", 4),))], exchanges={"turn": table})
    whole = torch.arange(40.0).view(8, 5)
    for _ in range(2):
        assert torch.equal(
            rt.exchange(whole.chunk(4)[rank], "turn"), whole.chunk(4)[(3, 1, 0, 2).index(rank)]
        )
    rt.finish()


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("function", "count"), [(interleaved, 4), (lanes, 2), (turned, 4), (embedding, 4), (within, 4)]
)
def test_ranks(function, count, tmp_path):
    run_ranks(function, count, tmp_path)


def test_a_rank_hands_over_to_itself():
    table = split_rows((0,), (0,), 4)
    rt = Runtime(
        0, [Mesh((0,), chunk=chunk) for chunk in range(3)], messages=[(0, 1), (1, 2)], exchanges={"x": table}
    )
    x, y = torch.ones(2, 3).t(), torch.zeros(3, 2)
    rt.send(x, 1, source=0)
    rt.send(y, 1, source=0)
    rt.send(2 * x, 2, source=1)
    assert torch.equal(rt.receive((3, 2), x.dtype, 1, target=2), 2 * x)
    received = rt.receive((3, 2), x.dtype, 0, target=1)
    assert received.is_contiguous()
    received.zero_()
    assert torch.equal(x, torch.ones(3, 2))
    assert torch.equal(rt.receive((3, 2), x.dtype, 0, target=1), y)
    with pytest.raises(CommunicationError, match="handed nothing to itself"):
        rt.receive((3, 2), x.dtype, 0, target=1)
    pieces = [torch.randn(4, 5) for _ in range(2)]
    for one in pieces:
        rt.give(one, "x")
    for one in pieces:
        assert torch.equal(rt.take("x"), one)
    rt.finish()


@given(st.lists(st.sets(st.integers(0, 7), min_size=1), max_size=12))
def test_groups_of_a_round_have_no_rank_in_common(groups):
    wanted = {number: tuple(sorted(ranks)) for number, ranks in enumerate(groups)}
    rounds = make_rounds(wanted)
    made = [key for members in rounds for key in dict.fromkeys(members.values())]
    assert sorted(made) == [number for number, ranks in wanted.items() if len(ranks) > 1]
    for members in rounds:
        for key in set(members.values()):
            assert tuple(sorted(rank for rank, its in members.items() if its == key)) == wanted[key]
