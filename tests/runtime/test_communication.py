"""Every communication, on four ranks over gloo, gives what the definition computed from all pieces gives."""

import pytest
import torch
import torch.distributed as dist

from superscaler.ir import bucket
from superscaler.ir.mesh import Mesh
from superscaler.runtime import started as started_file
from superscaler.runtime.communication import CommunicationError, Runtime
from tests.runtime.ranks import run_ranks

pytestmark = pytest.mark.ranks

MESH = Mesh((0, 1, 2, 3), (("dp", 2), ("tp", 2)))


def piece(rank, *shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)).to(dtype)


def collectives(rank):
    rt = Runtime(rank, [MESH])
    tp, dp = rt.axis("tp"), rt.axis("dp")
    pieces = [piece(r, 4, 6, 8) for r in tp.ranks]
    mine, total = pieces[tp.coordinate], pieces[0] + pieces[1]
    assert MESH.group("tp", rank) == tp.ranks
    assert tp.coordinate == rank % 2

    x = mine.clone()
    assert rt.all_reduce(x, tp) is x
    torch.testing.assert_close(x, total)
    x = mine.clone().transpose(0, 2)
    assert rt.all_reduce(x, tp) is x
    torch.testing.assert_close(x, total.transpose(0, 2))
    torch.testing.assert_close(rt.all_reduce(mine.clone(), tp, "max"), torch.maximum(*pieces))
    log = rt.all_reduce(mine * 500, tp, "logsumexp")
    torch.testing.assert_close(log, torch.logaddexp(pieces[0] * 500, pieces[1] * 500))
    nothing = rt.all_reduce(torch.full((2,), -torch.inf), tp, "logsumexp")
    assert (nothing == -torch.inf).all()

    for dim in range(3):
        torch.testing.assert_close(rt.reduce_scatter(mine, tp, dim), total.chunk(2, dim)[tp.coordinate])
        torch.testing.assert_close(rt.all_gather(mine, tp, dim), torch.cat(pieces, dim))
        for other in range(3):
            expected = torch.cat([p.chunk(2, dim)[tp.coordinate] for p in pieces], other)
            result = rt.all_to_all(mine, tp, dim, other)
            torch.testing.assert_close(result, expected)
            assert result.is_contiguous()
    other = piece(rank, 2) + rt.all_reduce(torch.zeros(2, dtype=torch.float64), dp)
    torch.testing.assert_close(rt.all_reduce(other, dp), piece(dp.ranks[0], 2) + piece(dp.ranks[1], 2))


def lists(rank):
    rt = Runtime(rank, [MESH])
    dp = rt.axis("dp")
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float64, torch.float32]
    shapes = [(4, 6), (2,), (6, 2), (8, 2, 3), ()]

    def make(r, count=5):
        return [
            piece(r + i, *s, dtype=d) for i, (s, d) in enumerate(zip(shapes[:count], dtypes, strict=False))
        ]

    both = [make(r) for r in dp.ranks]
    xs = make(rank)
    xs[0] = xs[0].t().contiguous().t()
    reduced = rt.all_reduce(xs, dp)
    assert reduced is xs
    for x, a, b in zip(xs, *both, strict=True):
        torch.testing.assert_close(x, a + b)
    dims = [1, 0, 0, 0]
    scattered = rt.reduce_scatter(make(rank, 4), dp, dims)
    gathered = rt.all_gather(make(rank, 4), dp, dims)
    for x, y, a, b, dim in zip(scattered, gathered, both[0], both[1], dims, strict=False):
        torch.testing.assert_close(x, (a + b).chunk(2, dim)[dp.coordinate])
        torch.testing.assert_close(y, torch.cat([a, b], dim))


def stages(rank):
    meshes = [Mesh((0, 1), (("tp", 2),)), Mesh((2, 3), (("tp", 2),))]
    rt = Runtime(rank, meshes, messages=[(0, 1), (1, 0)])
    other = 1 - rank // 2
    for i in range(40):
        rt.send(piece(rank * 100 + i, 50, 70).t(), other)
    for i in range(40):
        x = rt.receive((70, 50), torch.float64, other)
        torch.testing.assert_close(x, piece((rank + 2) % 4 * 100 + i, 50, 70).t())
    rt.finish()


def exchanged(rank):
    whole = torch.arange(48, dtype=torch.float32).view(2, 4, 6)
    # two ranks hold halves of the last dim; three ranks want 1, 1 and 2 of the middle one
    moves = []
    for source in (0, 1):
        for target, (a, b) in ((1, (0, 1)), (2, (1, 2)), (3, (2, 4))):
            moves.append(
                [source, target, [[0, 2], [a, b], [0, 3]], [[0, 2], [0, b - a], [source * 3, source * 3 + 3]]]
            )
    table = {
        "dtype": "float32",
        "source_view": {"0": [2, 4, 3], "1": [2, 4, 3]},
        "target_view": {"1": [2, 1, 6], "2": [2, 1, 6], "3": [2, 2, 6]},
        "target_shape": {"1": [2, 6], "2": [2, 6], "3": [4, 6]},
        "sum": False,
        "crosses": True,
        "moves": moves,
    }
    sums = {**table, "sum": True, "moves": [m[:3] + [m[3][:2] + [[0, 3]]] for m in moves]}
    meshes = [Mesh((0, 1), (("tp", 2),)), Mesh((1, 2, 3), (("dp", 3),))]
    rt = Runtime(rank, meshes, exchanges={"a": table, "b": sums})
    if rank < 2:
        x = whole[..., rank * 3 : rank * 3 + 3].reshape(8, 3)
        rt.give(x, "a")
        rt.give(x, "b")
    if rank == 0:
        rt.finish()
        return
    summed, result = rt.take("b"), rt.take("a")
    rt.finish()
    a, b = {1: (0, 1), 2: (1, 2), 3: (2, 4)}[rank]
    expected = whole[:, a:b]
    assert torch.equal(result, expected.reshape(result.shape))
    expected = torch.cat([expected[..., :3] + expected[..., 3:], torch.zeros(2, b - a, 3)], -1)
    assert torch.equal(summed, expected.reshape(summed.shape))


def failing(rank):
    rt = Runtime(rank, [MESH], timeout=20)
    dist.barrier()  # a rank that is gone while another still connects breaks the connecting
    if rank in (0, 3):
        return ""
    with pytest.raises(CommunicationError) as caught:
        rt.all_reduce(torch.ones(3), rt.axis("dp" if rank == 2 else "tp"))
    return str(caught.value)


@pytest.mark.parametrize("function", [collectives, lists, stages, exchanged])
def test_four_ranks(function, tmp_path):
    run_ranks(function, 4, tmp_path)


def test_a_missing_rank_is_named(tmp_path):
    messages = run_ranks(failing, 4, tmp_path)
    assert "all_reduce (sum) over tp (ranks 0,1) failed on rank 1" in messages[1]
    assert "all_reduce (sum) over dp (ranks 0,2) failed on rank 2" in messages[2]
    assert "--timeout" in messages[1]


def test_axes_of_one_device_need_no_group():
    rt = Runtime(0, [Mesh((0,), (("dp", 1), ("tp", 1)))])
    x = torch.ones(2, 2)
    assert rt.axis("dp").group is None
    assert rt.all_reduce(x, rt.axis("dp")) is x
    assert rt.all_gather(x, rt.axis("tp"), 1) is x
    assert rt.reduce_scatter(x, rt.axis("tp"), 1) is x
    assert rt.all_to_all(x, rt.axis("tp"), 0, 1) is x
    rt.finish()


def started(rank):
    rt = Runtime(rank, [MESH])
    tp = rt.axis("tp")
    sizes = {"small": (4, 6), "large": (2, 2**17), "other": (6, 2), "scalar": ()}  # 2 MiB travel alone
    pieces = {name: [piece(r, *shape) for r in tp.ranks] for name, shape in sizes.items()}
    totals = {name: sum(both) for name, both in pieces.items()}
    sums, scattered = {"small": torch.ones(4, 6, dtype=torch.float64)}, {}
    for name, both in pieces.items():
        rt.start_all_reduce(both[tp.coordinate].clone(), tp, sums, name)
        if both[0].dim():
            rt.start_reduce_scatter(both[tp.coordinate], tp, 1, scattered, name)
    assert set(sums) == {"small"}
    rt.wait(leaving=5)
    assert set(sums) == {"small"}, "the first two have arrived, and one of them adds"
    assert set(scattered) == {"small"}
    rt.wait()
    torch.testing.assert_close(sums.pop("small"), totals["small"] + 1)
    for name, total in sums.items():
        torch.testing.assert_close(total, totals[name])
    for name, mine in scattered.items():
        torch.testing.assert_close(mine, totals[name].chunk(2, 1)[tp.coordinate])
    assert len(sums) == len(scattered) == 3


def joined(rank):
    """Two steps: the second knows how much comes together."""
    bucket.BUCKET_BYTES = started_file.BUCKET_BYTES = 1000  # in this process
    rt = Runtime(rank, [MESH])
    tp = rt.axis("tp")
    shapes = {"large": (5, 25), "a": (2, 25), "b": (7, 7), "c": (3, 10), "d": ()}
    for step in range(2):
        own = {name: piece(rank + step, *shape) for name, shape in shapes.items()}
        sums, large = {}, own["large"].data_ptr()
        for name in shapes:
            rt.start_all_reduce(own.pop(name), tp, sums, name)
        rt.wait()
        for name, total in sums.items():
            torch.testing.assert_close(total, sum(piece(r + step, *shapes[name]) for r in tp.ranks))
        memory = {name: total.untyped_storage() for name, total in sums.items()}
        assert sums["large"].data_ptr() == large, "1,000 bytes stay where they are"
        places = {name: one.data_ptr() for name, one in memory.items()}
        assert places["a"] == places["b"] != places["c"] == places["d"], "792 bytes have room for no 240 more"
        sizes = {name: memory[name].nbytes() for name in ("a", "c")}
        assert sizes == ({"a": 792, "c": 248} if step else {"a": 1000, "c": 1000})


def accumulated(rank):
    """Two steps of three micro-batches: what they add up is summed with the last."""
    bucket.BUCKET_BYTES = started_file.BUCKET_BYTES = 1000  # in this process
    rt = Runtime(rank, [MESH])
    tp = rt.axis("tp")
    shapes = {"large": (5, 26), "a": (2, 25), "b": (8, 6), "c": (3, 10), "d": (), "scattered": (3, 4)}
    for step in range(2):
        sums = {}
        for mb in range(3):
            for name, shape in shapes.items():
                dim = 1 if name == "scattered" else None
                rt.accumulate(piece(rank + step + mb, *shape), tp, sums, name, mb == 2, dim)
            rt.accumulate(piece(rank + step + mb, 3).double(), tp, sums, "alone in its bucket", mb == 2)
        rt.wait()
        assert not sums, "what micro-batches add up is not waited for with the rest"
        rt.wait_accumulated()
        alone = sum(piece(r + step + mb, 3).double() for r in tp.ranks for mb in range(3))
        torch.testing.assert_close(sums["alone in its bucket"], alone)
        for name, shape in shapes.items():
            total = sum(piece(r + step + mb, *shape) for r in tp.ranks for mb in range(3))
            mine = total.chunk(2, 1)[tp.coordinate] if name == "scattered" else total
            torch.testing.assert_close(sums[name], mine)
        places = {name: total.untyped_storage().data_ptr() for name, total in sums.items()}
        assert places["a"] == places["b"] != places["c"] == places["d"]


def beside_what_adds_up(rank):
    """In the last micro-batch a body waits for its own sums while others are not complete yet."""
    rt = Runtime(rank, [MESH])
    tp = rt.axis("tp")
    own, sums = {name: piece(rank, 3, 4) for name in ("first", "second", "scattered")}, {}
    for is_last in (False, True):
        rt.accumulate(own["first"].clone(), tp, sums, "first", is_last)
        rt.start_reduce_scatter(own["scattered"], tp, 1, sums, "scattered")
        rt.wait()
        rt.accumulate(own["second"].clone(), tp, sums, "second", is_last)
    assert set(sums) == {"scattered"}
    rt.wait_accumulated()
    total = 2 * sum(piece(r, 3, 4) for r in tp.ranks)
    torch.testing.assert_close(sums["first"], total)
    torch.testing.assert_close(sums["second"], total)
    torch.testing.assert_close(sums["scattered"], total.chunk(2, 1)[tp.coordinate])


def of_stages_that_differ(rank):
    """Two stages on the same ranks: along `dp` lie other ranks, along `tp` the same in another order."""
    other = Mesh((1, 2, 0, 3), (("dp", 2), ("tp", 2)))
    reversed_tp = Mesh((1, 0, 3, 2), (("dp", 2), ("tp", 2)))
    rt = Runtime(rank, [MESH, other, reversed_tp])
    sums, scattered = {}, {}
    for stage in range(3):
        rt.start_all_reduce(piece(rank, 4, 6), rt.axis("dp", stage), sums, f"{stage}")
        rt.start_reduce_scatter(piece(rank, 4, 6), rt.axis("tp", stage), 1, scattered, f"{stage}")
    rt.wait()
    for stage in range(3):
        dp, tp = rt.axis("dp", stage), rt.axis("tp", stage)
        torch.testing.assert_close(sums[f"{stage}"], sum(piece(r, 4, 6) for r in dp.ranks))
        mine = sum(piece(r, 4, 6) for r in tp.ranks).chunk(2, 1)[tp.coordinate]
        torch.testing.assert_close(scattered[f"{stage}"], mine)


def gathered(rank):
    rt = Runtime(rank, [MESH])
    tp = rt.axis("tp")
    shapes = {"a": (4, 6), "b": (2, 2**17), "c": (6, 2), "d": (3,)}
    whole = {name: [piece(r, *shape) for r in tp.ranks] for name, shape in shapes.items()}
    own = {name: both[tp.coordinate] for name, both in whole.items()}
    ahead = rt.gather_ahead(own, [("a", "b", "c"), ("d",)], tp, {1: ("c",)})
    a, b, c = next(ahead)
    torch.testing.assert_close(a, torch.cat(whole["a"]))
    torch.testing.assert_close(b, torch.cat(whole["b"]))
    torch.testing.assert_close(c, torch.cat(whole["c"], 1))
    (d,) = next(ahead)
    torch.testing.assert_close(d, torch.cat(whole["d"]))
    assert next(ahead, None) is None


@pytest.mark.parametrize(
    "function", [started, joined, accumulated, beside_what_adds_up, of_stages_that_differ, gathered]
)
def test_what_is_started_arrives_in_order_and_equals_what_is_waited_for_at_once(tmp_path, function):
    run_ranks(function, 4, tmp_path)
