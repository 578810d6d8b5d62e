"""The sequence cut everywhere, attention included: equal to eager, and where keys and values are joined."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import gpt, llama, mbart
from superscaler import compiler
from superscaler.errors import PlanError
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.planner.recipes.context_parallelism import context_parallel
from superscaler.planner.steps import StepKind
from tests.planner.samples import gpt_graph, plan_of

GPT = {"layers": 2, "width": 16, "heads": 4, "seq": 12, "vocab": 32, "dropout": 0.1}
LLAMA = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "inner": 24, "seq": 12, "vocab": 32}


def largest_difference(model, inputs, text, steps=2):
    graph = trace(model, inputs, optimizer=AdamW(eps=1e-5))
    plan = compiler.plan(graph, Cluster.local(parse_plan(text).num_devices), text).verify()
    return plan.compare_with_eager(model, inputs, steps=steps).largest


PLANS = [
    ("gpt", "cp=5"),
    ("gpt", "cp=2,tp=2"),
    ("gpt", "cp=2,dp=2,zero=1"),
    ("gpt", "cp=2,pp=2,micro_batches=2"),
    ("llama", "cp=2"),
    ("llama", "cp=2,tp=2,sp,dp=2"),
    ("llama", "cp=3,recompute"),
]


@pytest.mark.parametrize(("name", "text"), PLANS)
def test_plans_equal_eager(name, text):
    torch.manual_seed(0)
    made, sizes = {"gpt": (gpt, GPT), "llama": (llama, LLAMA)}[name]
    model = made.build("tiny", **sizes).double()
    assert largest_difference(model, made.example_inputs("tiny", batch=4, **sizes), text) < 1e-11


def test_an_encoder_and_a_decoder_are_both_cut():
    torch.manual_seed(0)
    model = mbart.build("tiny").double()
    assert largest_difference(model, mbart.example_inputs("tiny", batch=4), "cp=2") < 1e-11


class Biased(nn.Module):
    """Attention whose scores get a learned bias per pair of positions; or whose weights are dropped."""

    def __init__(self, seq, dropout, causal):
        super().__init__()
        self.dropout, self.causal = dropout, causal
        self.qkv = nn.Linear(8, 24)
        self.bias = None if causal else nn.Parameter(torch.randn(2, seq, seq))

    def forward(self, x, seen):
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = None
        if self.bias is not None:
            mask = self.bias + torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, -9.0)
        out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout, is_causal=self.causal)
        return out.square().sum()


@pytest.mark.parametrize(("dropout", "causal"), [(0.0, False), (0.2, False), (0.2, True)])
def test_masks_learned_biases_and_dropped_weights_are_cut_along_the_queries(dropout, causal):
    torch.manual_seed(0)
    seen = torch.rand(4, 1, 6, 6) > 0.3
    inputs = {"x": torch.randn(4, 6, 8, dtype=torch.float64), "seen": seen}

    def script(p):
        p.assign(p.everything(), p.mesh(range(3), cp=3))
        context_parallel(p)

    model = Biased(6, dropout, causal).double()
    graph = trace(model, inputs, optimizer=AdamW(eps=1e-5))
    plan = compiler.plan(graph, Cluster.local(3), script).verify()
    assert plan.compare_with_eager(model, inputs, steps=2).largest < 1e-11
    scores = [m for m in plan.communication() if plan.graph.tensors[m.tensor].shape[-2:] == (6, 6)]
    assert {m.tensor for m in scores} <= {"bias", graph.gradients.get("bias")}, (
        "of what has a row per query only the bias and its gradient move, which the update reads whole"
    )


def test_keys_and_values_are_joined_before_heads_repeat_them_and_their_gradients_after():
    sizes = {**LLAMA, "seq": 16, "layers": 1}
    graph = trace(
        llama.build("tiny", **sizes), llama.example_inputs("tiny", batch=4, **sizes), optimizer=AdamW()
    )
    gradients = {*graph.gradients.values()}
    moved = plan_of(graph, "cp=2").communication()
    movements = [m for m in moved if m.phase in ("F", "B") and m.most_bytes > 4 and m.tensor not in gradients]
    keys = 4 * 16 * 2 * 4 * 4  # [batch, seq, kv_heads, width of a head] float32
    assert [(m.kind, m.most_bytes) for m in movements] == [
        *[(StepKind.ALL_GATHER, keys // 2)] * 2,
        *[(StepKind.REDUCE_SCATTER, keys // 2)] * 2,
    ]


def test_queries_tell_the_causal_attention_where_they_start():
    plan = compiler.plan(gpt_graph(), Cluster.local(2), "cp=2").verify()
    attention = next(i for _, i in plan.programs[0].instructions() if getattr(i, "kind", "") == "attention")
    assert dict(attention.keywords)["query_start"].axes == ("cp",)


def test_a_model_without_a_sequence_is_refused():
    with pytest.raises(PlanError, match="no sequence to cut") as error:
        plan_of(
            trace(nn.Linear(3, 3), {"input": torch.zeros(3)}, loss=lambda out: out.sum(), optimizer=AdamW()),
            "cp=2",
        )
    assert error.value.where == "cp=2 in the plan 'cp=2'"
