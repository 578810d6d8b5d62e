"""Paged attention in plans: heads cut over devices, each with its part of the caches, which it writes into."""

from dataclasses import replace

import pytest
import torch

from superscaler.codegen.program import Compute, written_into
from superscaler.codegen.verify import check_written, verify_programs
from superscaler.codegen.virtual import run_step
from superscaler.errors import VerificationError
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.interpret import interpret
from superscaler.ir.tensor import Role, Tensor
from superscaler.planner.operator_work import PlacedWork
from tests.codegen.plans import planned, programs_of
from tests.runtime.ops.paged_steps import random_step

NAMES = ("q", "k", "v", "keys", "values", "slots", "starts", "lengths", "pages", "positions", "visible")
CACHES = ("keys", "values")


def step_of_attention():
    """A graph of one attention with 4 heads on 2 of keys, and its tensors."""
    step = random_step([(3, 5), (1, 7)], (4, 2), (8, 8), 4, 0, False, 0)
    values = {name: torch.nan_to_num(tensor) for name, tensor in zip(NAMES, step.tensors, strict=True)}
    values["visible"] = torch.ones(4, 1, dtype=torch.bool)
    tensors = {
        name: Tensor(
            name, tuple(value.shape), str(value.dtype).removeprefix("torch."),
            Role.BUFFER if name in CACHES else Role.INPUT,
        )
        for name, value in values.items()
    }  # fmt: skip
    tensors["out"] = Tensor("out", tuple(values["q"].shape), "float64", Role.ACTIVATION)
    operator = Operator(
        "attend",
        "paged_attention",
        NAMES,
        ("out",),
        tuple(map(Ref, range(len(NAMES)))),
        tuple(step.options.items()),
    )
    inputs = tuple(name for name in NAMES if name not in CACHES)
    return Graph("attention", tensors, (operator,), inputs, ("out",)), values


def whole_on_one(p):
    p.assign(p.everything(), p.mesh([0], x=1))


def over_heads(p):
    mesh = p.mesh([0, 1], x=2)
    p.assign(p.everything(), mesh)
    p.trans(p.select("attend"), "x", letter="heads")


def test_devices_that_share_the_heads_compute_the_whole_and_hold_the_caches_together():
    graph, given = step_of_attention()
    plan = planned(graph, over_heads, 2)
    programs = programs_of(plan)
    verify_programs(plan, programs)
    before = {name: tensor.clone() for name, tensor in given.items()}
    state, batch = ({n: x for n, x in given.items() if (n in CACHES) is stored} for stored in (True, False))
    result = run_step(programs, state, batch, 1)
    assert all(torch.equal(given[name], before[name]) for name in NAMES), (
        "the virtual cluster changes nothing given"
    )
    expected = interpret(graph, before)
    torch.testing.assert_close(result.outputs["out"], expected["out"])
    for name in CACHES:
        assert not torch.equal(before[name], given[name])
        torch.testing.assert_close(result.state[name], before[name])


def test_its_work_is_that_of_the_pages_its_table_has_and_a_share_of_the_heads():
    graph, given = step_of_attention()
    cut, whole = (
        PlacedWork(planned(graph, how, 2).placed).of("attend") for how in (over_heads, whole_on_one)
    )
    pages = given["pages"].shape[1] * 4
    assert whole.flops == 2 * 4 * 4 * pages * (8 + 8)
    assert cut.flops == whole.flops / 2
    assert cut.num_bytes < 0.6 * whole.num_bytes


def test_writing_into_a_copy_of_a_cache_is_found_out():
    graph, _ = step_of_attention()
    plan = planned(graph, whole_on_one, 1)
    (program,) = programs_of(plan)
    (attend,) = (i for _, i in program.instructions() if isinstance(i, Compute))
    assert written_into(attend) == ("keys", "values")
    with pytest.raises(VerificationError, match=r"(?s)'attend'.*writes into 'keys'.*stored as it is read"):
        check_written(replace(program, stored=("values",)))
