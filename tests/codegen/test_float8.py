"""Training in float8 under every plan is that of eager PyTorch and near that in bfloat16, or it is refused.

Bounds: on one device the operators are the same and so are the bits. Elsewhere sums are rounded to bfloat16 once more,
which now and then moves a number to the next of float8, 2^-3 of it away; a gradient is a sum of many of them.
"""

import re
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

import superscaler as ss
from models import gpt
from superscaler import compiler
from superscaler.codegen.comparison import compare_programs_with_eager, initial_state
from superscaler.codegen.emit import emit
from superscaler.codegen.verify import verify_programs
from superscaler.codegen.virtual import run_step
from superscaler.errors import BuildError, PlanError, TraceError
from superscaler.ir.float8 import FLOAT8, WIDE, count_float8, wide_layers
from superscaler.ir.text import format_graph, parse_graph
from superscaler.ir.trace import trace
from superscaler.planner.recipes import parse_plan
from superscaler.runtime.build import read_build
from superscaler.runtime.session import make_runtime
from tests.codegen.plans import planned, programs_of
from tests.codegen.test_emit import STEPS, torchrun

SIZES = {"layers": 2, "width": 64, "heads": 4, "seq": 32, "vocab": 128}
SGD = ss.SGD(lr=0.1, momentum=0.9)
PLANS = [
    "dp=2", "tp=2", "tp=2,sp", "cp=2", "pp=2,micro_batches=2", "dp=2,zero=1", "dp=2,zero=3,micro_batches=2",
    "recompute=layers", "co_shard=2", "dp=2,tp=2,pp=2,micro_batches=4",
]  # fmt: skip


@cache
def tiny(dtype=torch.float32):
    torch.manual_seed(0)
    return gpt.build("tiny", **SIZES).to(dtype), gpt.example_inputs("tiny", batch=8, **SIZES)


@cache
def traced(dtype=torch.float32, float8=True):
    return trace(*tiny(dtype), optimizer=SGD, autocast="bfloat16", float8=float8)


def compared(graph, how, dtype=torch.float32):
    plan = planned(graph, how)
    verify_programs(plan, programs_of(plan))
    return compare_programs_with_eager(plan, programs_of(plan), *tiny(dtype), steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_one_device_are_those_of_eager_float8_bit_for_bit(dtype):
    assert compared(traced(dtype), "none", dtype).gradients == 0.0


@pytest.mark.parametrize("how", PLANS)
def test_a_plan_is_eager_float8_but_for_rounding(how):
    found = compared(traced(), how)
    assert found.loss < 1e-3
    assert found.gradients < 0.1, found
    assert found.replicas == 0.0


@cache
def losses(how, float8=True, steps=30):
    model, batch = tiny()
    graph = trace(model, batch, optimizer=ss.AdamW(lr=3e-3), autocast="bfloat16", float8=float8)
    programs = programs_of(planned(graph, how))
    state, found = initial_state(graph, model), []
    for step in range(1, steps + 1):
        result = run_step(programs, state, batch, step)
        state = result.state
        found.append(result.outputs[graph.outputs[0]].item())
    return torch.tensor(found)


@pytest.mark.parametrize("how", ["none", "dp=2", "tp=2", "pp=2,micro_batches=2"])
def test_the_loss_follows_that_of_bfloat16_and_plans_follow_each_other(how):
    """While it falls to less than a quarter."""
    narrow, wide = losses(how), losses("none", float8=False)
    assert wide[-1] < wide[0] / 4
    assert not torch.equal(narrow, wide)
    assert ((narrow - wide).abs() / wide).max() < 0.1
    assert ((narrow - losses("none")).abs() / wide).max() < 0.1


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["dp=2", "tp=2,recompute=layers"])
def test_a_build_trains_as_one_device(how, tmp_path):
    model, _ = tiny()
    data = gpt.example_inputs("tiny", batch=8 * STEPS, **SIZES)
    save_file(data, tmp_path / "data.safetensors")
    first = {name: value[:8] for name, value in data.items()}
    plan = compiler.compile(
        model, first, cluster=ss.Cluster.local(parse_plan(how).num_devices), plan=how, optimizer=SGD,
        autocast="bfloat16", float8=True, save=tmp_path / "build",
    )  # fmt: skip
    found, weights = torchrun(tmp_path, plan.num_devices)
    programs, state = programs_of(planned(traced(), "none")), initial_state(traced(), model)
    for step in range(1, STEPS + 1):
        batch = {name: value[8 * step - 8 : 8 * step] for name, value in data.items()}
        result = run_step(programs, state, batch, step)
        state = result.state
        assert found[step - 1] == pytest.approx(result.outputs[traced().outputs[0]].item(), rel=5e-3)
    for name, value in weights.items():
        change = state[name] - initial_state(traced(), model)[name]
        assert (value - state[name]).norm() <= 0.1 * change.norm(), name


def test_every_product_of_a_linear_layer_is_one_of_float8():
    graph = traced()
    kinds = [operator.kind for operator in graph.operators]
    assert not set(kinds) & FLOAT8.keys()
    assert [kinds.count(kind) for kind in WIDE] == [13, 13, 13]
    assert count_float8(graph) == 13
    assert wide_layers(graph) == []


def test_a_graph_in_float8_is_printed_and_read():
    text = format_graph(traced())
    assert parse_graph(text).float8
    assert format_graph(parse_graph(text)) == text
    assert not parse_graph(format_graph(traced(float8=False))).float8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_several_products_read_is_cast_once(dtype):
    """q, k and v read one tensor: once by rows in the forward, once by columns for the gradients of their weights."""
    plan = planned(traced(dtype), "none")
    (program,) = programs_of(plan)
    source = emit(plan, program)
    forward, backward = (
        re.search(rf"def block_{name}\(.*?\n\n\n", source, re.DOTALL).group()
        for name in ("forward", "backward")
    )
    (cast,) = re.findall(r"(\w+) = ops.float8_rows\(", forward)
    assert forward.count(f"ops.linear_float8({cast}, ") == 3
    (cast,) = re.findall(r"(\w+) = ops.float8_columns\(", backward)
    assert len(re.findall(rf"ops.linear_float8_weight_gradient\(\w+, {cast}\)", backward)) == 3
    assert "ops.float8" not in source.replace(forward, "").replace(backward, "")


class Odd(torch.nn.Module):
    """Layers that cannot all multiply in float8."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.rows, self.both = (torch.nn.Linear(*sizes) for sizes in ((16, 32), (32, 50), (50, 7)))

    def forward(self, x):
        return self.both(self.rows(self.good(x))).float().square().mean()


def test_what_stays_wide_is_told_with_the_reason():
    model, inputs = Odd(), (torch.randn(4, 16),)
    graph = trace(model, inputs, optimizer=SGD, autocast="bfloat16", float8=True)
    assert wide_layers(graph) == [
        ("rows", "its 50 outputs are no multiple of 16"),
        ("both", "its 7 outputs are no multiple of 16 and its 50 inputs are no multiple of 16"),
    ]
    plan = compiler.plan(graph, ss.Cluster.local(1))
    assert "float8: 1 linear layer multiplies in float8" in str(plan)
    assert "not rows: its 50 outputs are no multiple of 16" in str(plan)
    assert compare_programs_with_eager(plan, plan.programs, model, inputs, steps=1).gradients == 0.0


def test_pieces_need_no_multiples_of_16():
    """Two devices hold 8 of 16 hidden units, two samples each, or both."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
    x = torch.randn(4, 16)
    graph = trace(
        model, (x,), loss=lambda y: y.square().mean(), optimizer=SGD, autocast="bfloat16", float8=True
    )
    for how in ("dp=2", "tp=2", "dp=2,tp=2"):
        plan = planned(graph, how)
        found = compare_programs_with_eager(
            plan, programs_of(plan), model, (x,), loss=lambda y: y.square().mean(), steps=1
        )
        assert found.gradients < 0.1, how


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": None, "autocast": "bfloat16"}, "float8 is for training"),
        ({"optimizer": SGD}, r"no linear layer .* computes in float32, not in bfloat16"),
        ({"optimizer": SGD, "autocast": "float16"}, r"no linear layer .* computes in float16"),
    ],
)
def test_float8_of_nothing_is_refused(options, message):
    with pytest.raises(TraceError, match=message):
        trace(*tiny(), float8=True, **options)


def test_devices_without_float8_are_refused():
    with pytest.raises(PlanError, match="A100-80GB of dgx-a100 has no such arithmetic"):
        compiler.plan(traced(), ss.Cluster.preset("dgx-a100"), "dp=8")


def test_a_build_does_not_start_on_an_older_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    compiler.plan(traced(), ss.Cluster.local(1)).save(tmp_path / "build")
    with pytest.raises(BuildError, match=r"multiplies in float8, which cuda:0 .*8\.0.* cannot"):
        make_runtime(read_build(tmp_path / "build"), 0, torch.device("cuda", 0))


@pytest.mark.parametrize("preset", ["dgx-h100", "h200", "workstation-4090"])
def test_products_in_float8_take_less_and_casts_take_some_of_it(preset):
    """Of layers large enough to be bound by arithmetic."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8192, 8192), torch.nn.ReLU(), torch.nn.Linear(8192, 8192))
    x = torch.empty(2**14, 8192, device="meta")
    steps = []
    for float8 in (False, True):
        graph = trace(
            model, (x,), loss=lambda y: y.square().mean(), optimizer=SGD, autocast="bfloat16", float8=float8
        )
        steps.append(compiler.plan(graph, ss.Cluster.preset(preset).first(1).with_memory(2**40)).simulate())
    wide, narrow = steps
    assert narrow.peak_flops == pytest.approx(2 * wide.peak_flops, rel=1e-3)
    assert narrow.model_flops == wide.model_flops
    assert 0.5 < narrow.step_seconds / wide.step_seconds < 0.9
