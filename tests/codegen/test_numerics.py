"""What people train with computes the same under every plan, and what eager PyTorch computes."""

from functools import cache

import pytest
import torch
from safetensors.torch import save_file

import superscaler as ss
from models import gpt
from superscaler import compiler
from superscaler.errors import TraceError
from superscaler.ir.graph import Phase
from superscaler.ir.trace import trace
from superscaler.planner.recipes import data_parallel, parse_plan
from superscaler.planner.steps import StepKind
from tests.codegen.plans import SIZES, planned
from tests.codegen.test_emit import STEPS, assert_equal, small_gpt, small_inputs, torchrun
from tests.codegen.test_virtual import check

PLANS = [
    "none", "dp=2", "tp=2", "pp=2", "dp=2,zero=1", "tp=2,sp", "dp=3", "tp=3", "micro_batches=4",
    "dp=2,tp=2,pp=2,micro_batches=4", "dp=2,tp=2,pp=2,sp,zero=1,micro_batches=4",
]  # fmt: skip


@cache
def model_and_inputs(layers: int = 2):
    torch.manual_seed(0)
    sizes = {**SIZES, "layers": layers}
    return gpt.build("tiny", **sizes).double(), gpt.example_inputs("tiny", batch=8, **sizes)


def trained(how, optimizer, layers: int = 2, devices: int = 0):
    model, inputs = model_and_inputs(layers)
    return check(model, inputs, trace(model, inputs, optimizer=optimizer), how, devices)


@pytest.mark.parametrize("how", PLANS)
def test_clipped_training_is_that_of_eager_pytorch(how):
    trained(how, ss.AdamW(lr=1e-2, clip_norm=0.1))


def test_a_bound_that_is_not_reached_changes_nothing():
    trained("dp=2", ss.AdamW(lr=1e-2, clip_norm=1e6))


@pytest.mark.parametrize("how", ["pp=4,micro_batches=4", "dp=2,pp=3", "tp=2,pp=4,sp"])
def test_the_norm_is_added_up_over_many_stages(how):
    trained(how, ss.SGD(lr=0.1, clip_norm=0.1), layers=4)


def test_the_norm_is_added_up_over_uneven_pieces_and_meshes_of_two_shapes():
    def script(p):
        first, second = p.split("h.*", 2)
        p.assign(first, p.mesh(range(2), tp=2))
        p.assign(second, p.mesh(range(2, 5), dp=3))
        p.trans(p.select("h.0.mlp.up").axis("out"), "tp", pieces=(40, 24))
        data_parallel(p)

    trained(script, ss.AdamW(lr=1e-2, clip_norm=0.1), devices=5)


@pytest.mark.parametrize(
    ("how", "reduced", "sent"),
    [("tp=2", 1, 0), ("dp=2,zero=1", 1, 0), ("dp=2,tp=2,zero=1", 2, 0), ("tp=2,pp=2", 2, 2), ("pp=4", 0, 6)],
)
def test_the_norm_is_reduced_once_per_mesh_axis_and_stage(how, reduced, sent):
    model, inputs = model_and_inputs(4)
    plan = planned(trace(model, inputs, optimizer=ss.AdamW(clip_norm=1.0)), how)
    moved = [(t.step.kind, plan.materialized.values[t.read].tensor) for _, t in plan.transfers]
    numbers = [
        kind
        for kind, name in moved
        if plan.graph.tensors[name].shape == () and plan.graph.writer[name].phase is Phase.UPDATE
    ]
    assert numbers.count(StepKind.ALL_REDUCE) == reduced
    assert len(numbers) - numbers.count(StepKind.ALL_REDUCE) == sent


class Shared(torch.nn.Module):
    """Two parameters with one and the same gradient, one used twice, one frozen, one scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.randn(6)), torch.nn.Parameter(torch.randn(6))
        self.twice = torch.nn.Linear(6, 6)
        self.frozen = torch.nn.Parameter(torch.randn(6, 6), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return (
            (self.twice(torch.tanh(self.twice(x + self.a + self.b))) @ self.frozen * self.scale)
            .square()
            .mean()
        )


@pytest.mark.parametrize("how", ["none", "dp=2", "dp=2,zero=1", "tp=2", "dp=2,micro_batches=2"])
@pytest.mark.parametrize("optimizer", [ss.AdamW(lr=0.1, clip_norm=0.01), ss.Adam(lr=0.1, clip_norm=0.01)])
def test_shared_and_frozen_parameters_count_as_in_eager(how, optimizer):
    torch.manual_seed(0)
    model, inputs = Shared().double(), (torch.randn(8, 6).double(),)
    graph = trace(model, inputs, optimizer=optimizer)
    assert "frozen" not in graph.updates
    check(model, inputs, graph, how)


@pytest.mark.parametrize("how", ["none", "tp=2", "dp=2,zero=1", "dp=2,tp=2,pp=2,micro_batches=4"])
@pytest.mark.parametrize(
    "optimizer",
    [
        ss.Adam(lr=1e-2, weight_decay=0.1),
        ss.Lion(lr=1e-3, weight_decay=0.1),
        ss.AdamW(lr=ss.Cosine(peak=1e-2, warmup=1, total=3, floor=1e-3)),
        ss.AdamW(
            lr=1e-2, weight_decay=0.1, clip_norm=0.1,
            overrides={"*.bias": {"weight_decay": 0.0}, "*ln*": {"weight_decay": 0.0, "lr": 1e-3}},
        ),
        ss.SGD(lr=0.1, overrides={"wte.weight": {"momentum": 0.9}}),
    ],
)  # fmt: skip
def test_optimizers_schedules_and_groups(how, optimizer):
    trained(how, optimizer)


def test_overrides_reach_the_parameters_they_mean_and_later_ones_win():
    optimizer = ss.AdamW(weight_decay=0.1, overrides={"*.bias": {"weight_decay": 0.0}, "h.0.*": {"lr": 0.5}})
    assert optimizer.for_parameter("h.0.up.bias").weight_decay == 0.0
    assert optimizer.for_parameter("h.0.up.bias").lr == 0.5
    assert optimizer.for_parameter("h.1.up.weight").weight_decay == 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"*.biass": {"weight_decay": 0.0}}, r"'\*\.biass' of AdamW matches none.*wte\.weight"),
        ({"*.bias": {"decay": 0.0}}, r"(?s)'\*\.bias' sets 'decay'.*weight_decay"),
        ({"*.bias": {"clip_norm": 0.0}}, r"sets 'clip_norm', which AdamW has not per parameter"),
    ],
)
def test_an_override_that_means_nothing_is_named(overrides, message):
    model, inputs = model_and_inputs()
    with pytest.raises(TraceError, match=message.replace("matches none.*", r"matches none(?s:.*)")):
        trace(model, inputs, optimizer=ss.AdamW(overrides=overrides))


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["dp=2,tp=2,pp=2,micro_batches=4,zero=1", "tp=2,sp", "pp=4,micro_batches=4"])
def test_torchrun_clips_and_schedules_as_eager(how, tmp_path):
    optimizer = ss.AdamW(
        lr=ss.Cosine(peak=1e-2, warmup=2, total=4), clip_norm=0.1, overrides={"*.bias": {"weight_decay": 0.0}}
    )
    devices = parse_plan(how).num_devices
    torch.manual_seed(1)
    data = small_inputs(16 * STEPS)
    save_file(data, tmp_path / "data.safetensors")
    model = small_gpt(layers=4)
    compiler.compile(
        model, small_inputs(16), cluster=ss.Cluster.local(devices), plan=how, optimizer=optimizer,
        save=tmp_path / "build",
    )  # fmt: skip
    losses, weights = torchrun(tmp_path, devices)
    groups = [
        {"params": [p for n, p in model.named_parameters() if not n.endswith(".bias")], "weight_decay": 0.01},
        {"params": [p for n, p in model.named_parameters() if n.endswith(".bias")], "weight_decay": 0.0},
    ]
    eager = torch.optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(eager, [0.5, 1.0, 0.5, 0.0].__getitem__)
    truth = []
    for i in range(STEPS):
        eager.zero_grad()
        loss = model(**{name: value[16 * i : 16 * (i + 1)] for name, value in data.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        eager.step()
        schedule.step()
        truth.append(loss.item())
    assert_equal(losses, weights, (truth, dict(model.named_parameters())))
