"""The table of what moves: bytes by the usual count, times per step, groups, reasons and totals."""

import torch
from torch import nn

from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.steps import StepKind
from tests.planner.samples import gpt_graph, mlp_graph, plan_of, script_plan


def test_a_row_says_which_devices_how_often_how_much_and_why():
    communication = plan_of(mlp_graph(), "dp=2,tp=2,micro_batches=4").communication()
    first = next(iter(communication))
    assert (first.kind, first.axis, first.groups) == (StepKind.ALL_REDUCE, "tp", ((0, 1), (2, 3)))
    # [8 / 4 / 2, 6] float32: a ring of two sends 2 * 1/2 of it
    assert (first.times, first.most_bytes) == (4, 24)
    assert first.reason.endswith("down/linear: sum over tp, which cuts up.out")
    assert "forward  all_reduce  tp 0,1 | 2,3  4 x    24" in str(communication)


def test_every_device_of_a_ring_of_three_sends_four_thirds_of_an_all_reduce():
    graph = trace(nn.Linear(3, 1), {"input": torch.zeros(3, 3)}, loss=lambda out: out.sum(), optimizer=SGD())
    weight = next(m for m in plan_of(graph, "dp=3").communication() if "weight" in m.tensor)
    assert weight.most_bytes == 16


def test_a_log_sum_exp_is_a_maximum_and_a_sum():
    movements = plan_of(gpt_graph(), "tp=2").communication()
    (lse,) = (m for m in movements if m.tensor == "cross_entropy.lse")
    assert lse.most_bytes == 2 * 8 * 64 * 4


def test_layers_share_a_row_and_devices_a_total():
    communication = plan_of(gpt_graph(), "tp=2").communication()
    text = str(communication)
    assert "h.*/add reads h.*.attn.proj/linear: sum over tp, which cuts heads" in text
    total = sum(m.times * m.most_bytes for m in communication)
    assert communication.bytes_per_device == total
    assert f"sent per step by each of 0,1: {total} bytes (all_reduce {total})" in text


def test_of_pieces_of_several_sizes_each_device_sends_its_own():
    def script(p):
        p.assign(p.everything(), p.mesh(range(4), dp=2, tp=2))
        p.trans(p.axis("batch"), "dp")
        p.trans(p.select("up").axis("up.out"), "tp", pieces=[15, 5])

    communication = script_plan(mlp_graph(), 4, script).communication()
    bias = next(m for m in communication if m.tensor == "up/linear_bias_gradient")
    assert [bias.bytes_sent(device) for device in range(4)] == [60, 20, 60, 20]
    assert bias.most_bytes == 60


def test_only_who_holds_a_value_sends_it():
    communication = plan_of(gpt_graph(), "pp=2,micro_batches=2").communication()
    forward = next(iter(communication))
    assert (forward.kind, forward.ends, forward.groups) == (StepKind.SEND, (0, 1), ((0,),))
    assert (forward.bytes_sent(0), forward.bytes_sent(1)) == (8 // 2 * 64 * 64 * 4, 0)


def test_an_exchange_counts_what_leaves_a_device():
    def script(p):
        first, second = p.split_layers(2)
        p.assign(first, p.mesh([0, 1], dp=2))
        p.assign(second, p.mesh([2, 3, 4, 5], dp=4))
        p.trans(p.axis("batch"), "dp")

    movements = script_plan(gpt_graph(), 6, script).communication()
    forward = next(m for m in movements if m.kind is StepKind.EXCHANGE and m.phase == "F")
    activations = 8 * 64 * 64 * 4
    assert [forward.bytes_sent(device) for device in (0, 1)] == [activations // 2] * 2


def test_between_stages_on_one_device_nothing_is_sent():
    def script(p):
        for number, part in enumerate(p.split_layers(4)):
            p.assign(part, p.mesh([(0, 1, 1, 0)[number]], pp=1), chunk=number // 2)

    communication = script_plan(gpt_graph(layers=4), 2, script).communication()
    assert [m.ends for m in communication if m.phase == "F"] == [(0, 1), (2, 3)]
    assert [m.ends for m in communication if m.phase == "B"] == [(3, 2), (1, 0)]
    activations = 8 * 64 * 64 * 4
    assert communication.bytes_sent == {device: {StepKind.SEND: 2 * activations} for device in (0, 1)}


def test_nothing_moves_on_one_device():
    communication = plan_of(mlp_graph(), "none").communication()
    assert str(communication) == "communication per step: none"
    assert communication.bytes_per_device == 0
