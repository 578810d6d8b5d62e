"""What ZeRO stores, keeps and moves: textbook bytes, and every tensor in the layout its update reads."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import llama
from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import make_plan
from superscaler.planner.recipes.sharding import optimizer_sharding
from tests.planner.samples import gpt_graph, plan_of


def llama_graph(**options):
    with torch.device("meta"):
        model, inputs = llama.build("tiny"), llama.example_inputs("tiny", batch=8)
    return trace(model, inputs, optimizer=AdamW(), **options)


def parameter_bytes(graph):
    return sum(tensor.num_bytes for tensor in graph.of_role(Role.PARAMETER))


def bytes_of_parameters_and_gradients(plan):
    tensors = {*plan.graph.gradients, *plan.graph.gradients.values(), *plan.graph.updates.values()}
    return sum(m.times * m.bytes_sent(0) for m in plan.communication() if m.tensor in tensors)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize(
    ("plan", "passes"),
    [
        ("", 2), ("zero=1", 2), ("zero=2", 2), ("zero=3", 3),
        ("micro_batches=2", 2), ("zero=1,micro_batches=2", 2), ("zero=2,micro_batches=2", 3),
        ("zero=3,micro_batches=2", 6),
    ],
)  # fmt: skip
def test_devices_send_what_the_textbook_says(devices, plan, passes):
    """A pass over the parameters costs (n - 1) / n of them; an all-reduce is two passes."""
    graph = llama_graph()
    made = plan_of(graph, f"dp={devices},{plan}")
    expected = passes * parameter_bytes(graph)
    if "zero=3" in plan:  # the backward of an embedding does not read its table
        expected -= graph.tensors["embed.weight"].num_bytes * made.schedule.micro_batches
    assert bytes_of_parameters_and_gradients(made) == expected * Fraction(devices - 1, devices)


def homes(plan):
    values = plan.materialized.values
    return {values[name].tensor: values[name].layout for name in plan.materialized.stored}


@pytest.mark.parametrize("how", ["dp=4,zero=3", "dp=2,tp=2,zero=3", "dp=2,tp=2,pp=2,zero=3,micro_batches=2"])
def test_parameters_lie_where_their_optimizer_states_lie(how):
    found = homes(plan_of(gpt_graph(), how))
    for name, layout in found.items():
        assert any("dp" in cut for cut in layout.cuts), name
        if f"{name}/exp_avg" in found:
            assert found[f"{name}/exp_avg"].cuts == layout.cuts, name


def test_a_tied_parameter_is_stored_in_pieces_on_both_stages():
    values = plan_of(gpt_graph(), "dp=2,pp=2,zero=3").materialized.values
    homes = [value.layout for name, value in values.items() if name in ("wte.weight", "wte.weight|1")]
    assert [layout.mesh.devices for layout in homes] == [(0, 1), (2, 3)]
    assert {layout.cuts for layout in homes} == {(("dp",), ())}


def test_each_gradient_is_cut_over_data_parallel_devices_before_it_is_kept():
    plan = plan_of(llama_graph(), "dp=2,tp=2,zero=2,micro_batches=2,sp")
    kept = {v.tensor: v.layout for name, v in plan.materialized.values.items() if name.endswith("|kept")}
    for gradient in plan.graph.gradients.values():
        assert any("dp" in cut for cut in kept[gradient].cuts), gradient


def test_summands_over_tensor_parallel_devices_are_brought_together_once_per_step():
    plan = plan_of(gpt_graph(), "dp=2,tp=2,zero=2,micro_batches=2,sp")
    norm = plan.graph.gradients["ln_f.weight"]
    moves = [(m.phase, m.axis, m.times) for m in plan.communication() if m.tensor == norm]
    assert moves == [(Phase.BACKWARD, "dp", 2), (Phase.UPDATE, "tp", 1)]


def test_the_backward_brings_parameters_together_again():
    plan = plan_of(gpt_graph(), "dp=2,zero=3")
    weight = [(m.phase, m.kind) for m in plan.communication() if m.tensor == "h.0.mlp.up.weight"]
    assert weight == [(Phase.FORWARD, "all_gather"), (Phase.BACKWARD, "all_gather")]


def test_copies_in_low_precision_are_made_of_pieces_and_travel_as_such():
    graph = llama_graph(autocast="bfloat16")
    plan = plan_of(graph, "dp=2,zero=3")
    products = [tensor for tensor in graph.of_role(Role.PARAMETER) if "norm" not in tensor.name]
    gathered = [m for m in plan.communication() if m.kind == "all_gather" and m.element_bytes == 2]
    elements = sum(tensor.num_bytes // 4 for tensor in products if tensor.name != "embed.weight")
    assert sum(m.bytes_sent(0) for m in gathered) == 2 * elements * 2 // 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.up = nn.Linear(3, 4)

    def forward(self, x):
        return F.gelu(self.up(x * self.scale)).sum()


def test_a_parameter_too_small_to_cut_is_stored_whole_with_the_reason():
    plan = plan_of(trace(Scaled(), {"x": torch.zeros(4, 3)}, optimizer=SGD()), "dp=2,zero=3")
    assert homes(plan)["scale"].cuts == ((),)
    assert homes(plan)["up.weight"].cuts == (("dp",), ())
    assert "not cut over dp: no dim of [3]" in plan.explain("scale/sgd")


def test_a_script_may_store_some_layers_in_pieces_and_others_whole():
    def script(p):
        p.assign(p.everything(), p.mesh(range(2), dp=2))
        p.trans(p.axis("batch"), "dp")
        optimizer_sharding(p)
        p.store_as_updated(p.select("h.1"))

    found = homes(make_plan(gpt_graph(), Cluster.local(2), script, "script"))
    assert found["h.0.mlp.up.weight"].cuts == ((), ())
    assert found["h.1.mlp.up.weight"].cuts == (("dp",), ())


def test_what_updates_no_parameter_cannot_be_stored_otherwise():
    def script(p):
        p.assign(p.everything(), p.mesh(range(2), dp=2))
        p.store_as_updated(p.select("h.1", "F"))

    with pytest.raises(PlanError, match="updates no parameter") as error:
        make_plan(gpt_graph(), Cluster.local(2), script, "script")
    assert "test_sharding.py" in error.value.where
