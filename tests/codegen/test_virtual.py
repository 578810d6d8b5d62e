import pytest
import torch
from torch import nn

from superscaler.codegen.comparison import compare_programs_with_eager
from superscaler.codegen.memory import free_values
from superscaler.codegen.verify import verify_programs
from superscaler.errors import VerificationError
from superscaler.ir.mesh import Mesh
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.trace import trace
from superscaler.planner.recipes import data_parallel, tensor_parallel
from superscaler.planner.schedules import gpipe, interlaced, one_f_one_b
from tests.codegen.plans import planned, programs_of, tiny_gpt

TOLERANCE = 1e-12


def check(model, inputs, graph, how, devices=0, loss=None):
    """Verify a plan, run two steps of it with its frees, and hold it against eager PyTorch."""
    plan = planned(graph, how, devices)
    programs = [free_values(program) for program in programs_of(plan)]
    verify_programs(plan, programs)
    found = compare_programs_with_eager(plan, programs, model, inputs, loss=loss, steps=2)
    assert found.largest <= TOLERANCE, str(found)
    return found


@pytest.mark.parametrize(
    "how",
    [
        "none", "dp=2", "tp=2", "pp=2", "dp=2,zero=1", "dp=2,tp=2", "tp=2,sp",
        "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4",
        "dp=4", "dp=8", "dp=3", "tp=4", "tp=3",
        "dp=4,zero=1", "dp=8,zero=1", "tp=4,sp",
        "dp=2,micro_batches=2", "micro_batches=8", "tp=2,micro_batches=4", "dp=2,zero=1,micro_batches=2",
        "tp=2,sp,micro_batches=2", "pp=2,schedule=gpipe,micro_batches=4", "pp=2,micro_batches=8",
        "dp=2,tp=4", "dp=4,tp=2", "dp=4,tp=4", "dp=2,tp=2,zero=1", "dp=2,tp=2,sp", "dp=2,tp=2,sp,zero=1",
        "dp=2,pp=2,zero=1,micro_batches=2", "tp=2,pp=2,sp,micro_batches=4",
        "dp=2,tp=2,pp=2,sp,zero=1,micro_batches=4", "dp=2,tp=4,pp=2,sp,micro_batches=2",
    ],
)  # fmt: skip
def test_plans_compute_what_eager_pytorch_computes(how):
    check(*tiny_gpt(), how)


@pytest.mark.parametrize(
    "how", ["pp=4,micro_batches=8", "pp=3", "dp=2,tp=2,pp=4,micro_batches=4", "tp=2,pp=4,sp,zero=0"]
)
def test_deep_pipelines_compute_what_eager_pytorch_computes(how):
    check(*tiny_gpt(layers=4), how)


@pytest.mark.parametrize(
    "how",
    [
        "pp=2,schedule=interleaved,micro_batches=4", "pp=2,schedule=interleaved,virtual=4,micro_batches=2",
        "dp=2,tp=2,pp=2,zero=1,schedule=interleaved,micro_batches=2",
        "pp=4,schedule=zb-h1,micro_batches=8", "pp=2,tp=2,sp,schedule=zb-h2,micro_batches=4",
        "pp=4,schedule=zb-v,micro_batches=8", "dp=2,pp=2,schedule=zb-v,micro_batches=2",
        "pp=4,schedule=bidirectional,micro_batches=4", "dp=2,tp=2,pp=2,schedule=bidirectional,micro_batches=2",
        "pp=4,schedule=interlaced,micro_batches=4", "dp=2,tp=2,pp=2,schedule=interlaced,micro_batches=4",
        "pp=4,schedule=solved,micro_batches=8", "dp=2,tp=2,pp=2,schedule=solved,micro_batches=4",
        "pp=2,recompute,schedule=zb-h1,micro_batches=4", "dp=2,pp=2,zero=3,schedule=interleaved,micro_batches=2",
    ],
)  # fmt: skip
def test_stages_that_share_devices_compute_what_eager_pytorch_computes(how):
    check(*tiny_gpt(layers=8), how)


def test_stages_on_overlapping_meshes_hand_over_and_add_up_gradients_of_what_they_share():
    """A tied table over all devices before and behind layers on half of them each."""

    def script(p):
        wide = p.mesh(range(4), pp=2, tp=2)
        for layers, devices in zip(p.split_layers(2), ([0, 1], [2, 3]), strict=True):
            p.assign(layers, p.mesh(devices, tp=2))
        p.assign(p.select("wte").only("F"), wide)
        for name in ("linear", "cross_entropy"):
            p.assign(p.select(name, "F"), wide, chunk=1)
        p.trans(p.axis("vocab"), "pp")
        p.trans(p.axis("heads"), "tp")
        p.order(interlaced(2))

    check(*tiny_gpt(), script, 4)


def uneven_pieces(p):
    p.assign(p.everything(), p.mesh(range(2), tp=2))
    p.trans(p.select("h.*.mlp.up").axis("out"), "tp", pieces=(40, 24))
    p.trans(p.axis("heads"), "tp", pieces=(1, 3))


def uneven_batch(p):
    p.assign(p.everything(), p.mesh(range(2), dp=2))
    p.trans(p.axis("batch"), "dp", pieces=(3, 5))


def uneven_vocabulary(p):
    p.assign(p.everything(), p.mesh(range(3), tp=3))
    p.trans(p.select("wte").axis("vocab"), "tp", pieces=(20, 5, 7))


def layers_cut_differently(p):
    p.assign(p.everything(), p.mesh(range(4), a=2, b=2))
    p.trans(p.axis("batch"), "a")
    p.trans(p.select("h.0.mlp.up").axis("out"), "b")
    for operator in p.select("h.1.mlp"):
        if operator.kind == "aten.gelu":
            p.trans(operator, "b", letter="a2")
    p.order(gpipe(2))


def meshes_of_two_shapes(p):
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(2), dp=2))
    p.assign(second, p.mesh(range(2, 6), dp=2, tp=2))
    data_parallel(p)
    tensor_parallel(p)
    p.order(one_f_one_b(2))


def meshes_of_two_sizes(p):
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(3), dp=3))
    p.assign(second, p.mesh(range(3, 5), dp=2))
    data_parallel(p)


def many_to_few(p):
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(4), dp=4))
    p.assign(second, p.mesh([4], x=1))
    data_parallel(p)
    p.order(one_f_one_b(2))


def sequence_then_batch(p):
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(2), sp=2))
    p.assign(second, p.mesh(range(2, 6), dp=4))
    p.trans(p.axis("seq"), "sp")
    data_parallel(p)
    p.order(one_f_one_b(2))


def embeddings_apart(p):
    p.assign(p.select("wte"), p.mesh([0], x=1))
    p.assign(p.select("h.*"), p.mesh([1, 2], dp=2))
    data_parallel(p)


@pytest.mark.parametrize(
    ("script", "devices"),
    [
        (uneven_pieces, 2),
        (uneven_batch, 2),
        (uneven_vocabulary, 3),
        (layers_cut_differently, 4),
        (meshes_of_two_shapes, 6),
        (meshes_of_two_sizes, 5),
        (many_to_few, 5),
        (sequence_then_batch, 6),
        (embeddings_apart, 3),
    ],
)
def test_scripts_compute_what_eager_pytorch_computes(script, devices):
    check(*tiny_gpt(), script, devices)


@pytest.mark.parametrize("how", ["dp=2", "tp=2,sp", "dp=2,tp=2,pp=2,micro_batches=2"])
def test_dropout_is_the_same_under_every_plan(how):
    found = check(*tiny_gpt(dropout=0.3), how)
    assert found.reference == "the graph on one device"


class Wide(nn.Module):
    """One dim seen as 3 x 4 and as 4 x 3: its views do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.randn(4, 1))
        self.b = nn.Linear(4, 3)

    def forward(self, x, y):
        x = torch.tanh(self.a(x).unflatten(-1, (4, 3)) * self.scale)
        x = x.flatten(1).unflatten(-1, (3, 4)).sum(1)
        return (self.b(x) - y).pow(2).mean()


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.1)])
@pytest.mark.parametrize("how", ["none", "dp=2", "dp=4,zero=1", "tp=2", "dp=2,micro_batches=2"])
def test_views_that_do_not_nest(how, optimizer):
    torch.manual_seed(0)
    model, inputs = Wide().double(), (torch.randn(8, 12).double(), torch.randn(8, 3).double())
    check(model, inputs, trace(model, inputs, optimizer=optimizer), how)


@pytest.mark.parametrize("how", ["dp=2", "tp=2", "pp=2", "dp=2,pp=2,micro_batches=2"])
def test_inference(how):
    model, inputs, _ = tiny_gpt()
    tokens = {"tokens": inputs["tokens"]}
    check(model, tokens, trace(model, tokens), how)


def test_a_deadlock_shows_where_every_device_waits():
    plan = planned(tiny_gpt()[2], "pp=2,micro_batches=2")
    programs = programs_of(plan)
    from dataclasses import replace

    swapped = tuple(reversed(programs[0].tasks))
    with pytest.raises(VerificationError, match=r"(?s)device +0 \| B1.*device +1 \| F0"):
        compare_programs_with_eager(plan, [replace(programs[0], tasks=swapped), programs[1]], *tiny_gpt()[:2])


def test_assembled_pieces_are_the_whole():
    from superscaler.codegen.pieces import assemble, piece
    from superscaler.ir.layout import Layout

    mesh = Mesh(tuple(range(6)), (("a", 2), ("b", 3)))
    layout = Layout(mesh, (4, 6, 5), (("a",), (), ("b",)), pieces=(None, None, (1, 3, 1)))
    whole = torch.randn(24, 5)
    pieces = {}
    for device in mesh.devices:
        here = mesh.coordinates(device)
        shape = layout.region(here).shape
        pieces[device, 0] = piece(whole, layout, here, (shape[0] * shape[1], shape[2]))
    assert torch.equal(assemble(pieces, layout, whole.shape).whole, whole)
    del pieces[5, 0]
    with pytest.raises(VerificationError, match="of 120 elements"):
        assemble(pieces, layout, whole.shape)
