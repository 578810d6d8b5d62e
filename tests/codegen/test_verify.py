import re
from dataclasses import replace

import pytest

from superscaler.codegen import row_proof
from superscaler.codegen.memory import free_values
from superscaler.codegen.program import Collective, Compute, Free, Keep, Mask, Receive, Send, Slice, Store
from superscaler.codegen.verify import verify_programs
from superscaler.errors import VerificationError
from superscaler.ir.graph import Phase
from superscaler.planner.cluster import Cluster
from superscaler.planner.schedules import parse_schedule
from superscaler.planner.steps import plain
from tests.codegen.plans import planned, programs_of, tiny_gpt

PIPELINE = "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4"


def find(program, phase, kind, which=0):
    """The position of an instruction of a kind in a body."""
    return [i for i, item in enumerate(program.bodies[program.parts(phase)[0]]) if isinstance(item, kind)][
        which
    ]


def with_body(program, phase, change):
    body = list(program.bodies[program.parts(phase)[0]])
    change(body)
    return replace(program, bodies={**program.bodies, program.parts(phase)[0]: tuple(body)})


def rejected(how, stage, phase, change):
    """The message with which a plan's programs are rejected after a change of one body."""
    plan = planned(tiny_gpt()[2], how)
    programs = programs_of(plan)
    verify_programs(plan, programs)
    programs[stage] = with_body(programs[stage], phase, lambda body: change(programs[stage], body))
    with pytest.raises(VerificationError) as caught:
        verify_programs(plan, programs)
    return str(caught.value)


def over(instruction, axis):
    return replace(instruction, step=replace(instruction.step, axis=axis))


def test_a_forgotten_all_reduce_shows_the_reader_both_layouts_and_the_users_line():
    def forget(program, body):
        index = find(program, Phase.FORWARD, Collective)
        gone = body.pop(index)
        for i, item in enumerate(body):
            if isinstance(item, Compute) and gone.write in item.reads:
                body[i] = replace(
                    item, reads=tuple(gone.read if name == gone.write else name for name in item.reads)
                )

    message = rejected("tp=2", 0, Phase.FORWARD, forget)
    assert "summands (sum) over tp" in message
    assert re.search(r"--> +\d+  add = aten.add.Tensor", message)
    assert re.search(r"at: models/gpt.py:\d+", message)


def test_another_mesh_axis_is_not_the_same():
    def other(program, body):
        index = find(program, Phase.FORWARD, Collective)
        body[index] = over(body[index], "dp")

    assert "all_reduce over 'dp' is not allowed on" in rejected("dp=2,tp=2", 0, Phase.FORWARD, other)


def test_what_a_step_claims_to_leave_is_not_believed():
    def lie(program, body):
        index = find(program, Phase.UPDATE, Collective)
        before = body[index].step.after  # claims to start from what it should lead to
        body[index] = replace(
            body[index], step=replace(body[index].step, before=before, after=before, axis="tp")
        )

    assert "is not allowed on" in rejected("dp=2,tp=2,micro_batches=2", 0, Phase.UPDATE, lie)


@pytest.mark.parametrize(
    ("how", "stage", "phase", "kind", "change", "message"),
    [
        ("tp=2,sp", 0, "F", Slice, lambda s: replace(s, start=replace(s.start, scale=2)), "slice over"),
        ("tp=2", 0, "F", Mask, lambda m: over(m, "dp"), "mask over 'dp' is not"),
        ("pp=2", 0, "F", Send, lambda s: replace(s, stage=0), "sends to stage 0, which is no other stage"),
        ("pp=2", 0, "F", Send, lambda s: replace(s, read="add"), "but it holds add as cut"),
        ("pp=2", 1, "F", Receive, lambda r: replace(r, stage=5), "which is no other stage"),
        (PIPELINE, 1, "B", Keep, lambda k: replace(k, add=False), "of the last micro-batch alone"),
        ("dp=2", 0, "U", Store, lambda s: replace(s, read="wte.weight"), "'wte.weight' takes wte.weight/new"),
    ],
)  # fmt: skip
def test_an_instruction_that_means_something_else(how, stage, phase, kind, change, message):
    def apply(program, body):
        index = find(program, Phase(phase), kind)
        body[index] = change(body[index])

    assert message in rejected(how, stage, Phase(phase), apply)


@pytest.mark.parametrize(
    ("how", "stage", "phase", "kind", "message"),
    [
        ("pp=2", 0, Phase.FORWARD, Send, "waits for what no other stage sends"),
        ("pp=2", 1, Phase.FORWARD, Receive, "which nothing writes"),
        ("dp=2", 0, Phase.UPDATE, Store, "never stores the new value of 'wte.weight'"),
        (PIPELINE, 0, Phase.BACKWARD, Keep, "which nothing writes"),
        ("none", 0, Phase.FORWARD, Compute, "which nothing writes"),
    ],
)
def test_an_instruction_left_out(how, stage, phase, kind, message):
    assert message in rejected(how, stage, phase, lambda program, body: body.pop(find(program, phase, kind)))


def test_operators_run_once():
    assert "writes 'arange', which is written already" in rejected(
        "none", 0, Phase.FORWARD, lambda program, body: body.insert(3, body[0])
    )


def test_sends_in_another_order():
    """Two gradients of one shape that cross at the end of the step."""

    def swap(program, body):
        one, other = (find(program, phase, Send, which) for which in (0, 1))
        body[one], body[other] = body[other], body[one]

    phase = Phase.UPDATE
    plan = planned(tiny_gpt()[2], two_homes, 2)
    programs = programs_of(plan)
    verify_programs(plan, programs)
    sender = next(
        i for i, p in enumerate(programs) if sum(isinstance(x, Send) for x in p.bodies[p.parts(phase)[0]]) > 1
    )
    programs[sender] = with_body(programs[sender], phase, lambda body: swap(programs[sender], body))
    with pytest.raises(VerificationError, match="but it holds"):
        verify_programs(plan, programs)


def two_homes(p):
    """Updates of one stage's parameters run on the other."""
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh([0], dp=1))
    p.assign(second, p.mesh([1], dp=1))
    for operator in p.graph.operators:
        if operator.kind == "adamw" and operator.name.startswith("h.0.attn"):
            p.assign(operator, p.mesh([1], dp=1))


def test_calls_tell_their_piece():
    def elsewhere(program, body):
        index = next(
            i for i, item in enumerate(body) if isinstance(item, Compute) and item.kind == "embedding"
        )
        (name, offset), *_ = body[index].keywords
        body[index] = replace(body[index], keywords=((name, replace(offset, pieces=(8, 24))),))

    message = rejected("tp=2", 0, Phase.FORWARD, elsewhere)
    assert "'wte/embedding' must be called with" in message
    assert "pieces=(16, 16)" in message


def test_the_update_reads_only_what_was_kept():
    def early(program, body):
        for i, item in enumerate(body):
            if isinstance(item, Collective):
                body[i] = replace(item, read=item.read.removesuffix("|kept"))

    assert "of one micro-batch" in rejected("dp=2,micro_batches=2", 0, Phase.UPDATE, early)


def test_reading_after_free():
    plan = planned(tiny_gpt()[2], "none")
    (program,) = (free_values(program) for program in programs_of(plan))

    def early(body):
        index = find(program, Phase.BACKWARD, Free, 5)
        body.insert(0, body.pop(index))

    freed = with_body(program, Phase.BACKWARD, early)
    with pytest.raises(VerificationError, match=r"frees .* which it does not hold here|after it was freed"):
        verify_programs(plan, [freed])
    (name, *_) = next(
        i for i in program.bodies[program.parts(Phase.FORWARD)[0]] if isinstance(i, Compute)
    ).writes
    early_free = with_body(program, Phase.FORWARD, lambda body: body.insert(1, Free((name,))))
    with pytest.raises(VerificationError, match="after it was freed"):
        verify_programs(plan, [early_free])


# schedules


def scheduled(text, how="pp=2,micro_batches=2"):
    plan = planned(tiny_gpt()[2], how)
    rows = parse_schedule(text).rows
    return plan, [replace(program, tasks=row) for program, row in zip(programs_of(plan), rows, strict=True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("F0 F1 B0 B1\nF0 B0 B1", r"stage 1 leaves out F1:\n.*\n.*stage 1: F0 B0 B1  <-- leaves out F1"),
        ("F0 F1 B0 B1\nF0 F0 B0 F1 B1", r"runs F0 twice"),
        ("F0 F1 F2 B0 B1\nF0 F1 B0 B1", r"runs F2, which is no task of its 2 micro-batches"),
        ("F0 B1 F1 B0\nF0 F1 B0 B1", r"runs B1 before its forward"),
        ("F0 B0 F1 B1\nF0 F1 B0 B1", r"(?s)deadlock.*stage 0: +F0.*<-- B0 waits.*stage 1:.*<-- F1 waits"),
        (
            "F0 F1 B0 B1\nF1 B1 F0 B0",
            r"(?s)receives .* in F1, but the next message is .* of F0.*stage 1:.*<-- ",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_shown_as_a_grid(text, message):
    with pytest.raises(VerificationError, match=message):
        verify_programs(*scheduled(text))


def test_other_schedules_are_fine():
    verify_programs(*scheduled("F0 F1 B0 B1\nF0 B0 F1 B1"))
    verify_programs(*scheduled("F1 F0 B0 B1\nF1 F0 B0 B1"))


# the whole plan


def test_too_little_memory_names_the_stage_and_what_fills_it():
    plan = planned(tiny_gpt()[2], "pp=2")
    small = replace(plan, cluster=Cluster.local(2).with_memory(100_000))
    with pytest.raises(VerificationError, match=r"(?s)stage 0 needs .* GiB too much.*activations.*remedy"):
        verify_programs(small, programs_of(plan))


def test_a_cut_against_the_rule_is_found():
    plan = planned(tiny_gpt()[2], "dp=2")
    placed = plan.placed
    name = next(o.name for o in plan.graph.operators if o.kind == "aten.native_layer_norm")
    rule = placed.axes.rules[name]
    (letter,) = list(rule.fixed)[:1]
    axis = placed.axes.letters[name][letter][0]
    wrong = replace(placed.placements[name], cuts=(((letter, axis.index), ("dp",)),))
    broken = replace(placed, placements={**placed.placements, name: wrong})
    with pytest.raises(VerificationError, match="which its rule forbids"):
        verify_programs(
            replace(plan, materialized=replace(plan.materialized, placed=broken)), programs_of(plan)
        )


def test_a_missing_program_is_found():
    plan = planned(tiny_gpt()[2], "pp=2")
    with pytest.raises(VerificationError, match=r"every device must run one program"):
        verify_programs(plan, programs_of(plan)[:1])


def test_work_does_not_grow_with_devices(monkeypatch):
    """The same layouts are looked at for 4 and for 16 devices."""
    counts = []
    for how in ("dp=2,tp=2", "dp=4,tp=4"):
        plan = planned(tiny_gpt()[2], how)
        programs = programs_of(plan)
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(row_proof, "plain", lambda layout, seen=seen: seen.append(1) or plain(layout))
            verify_programs(plan, programs)
        counts.append(len(seen))
    assert counts[0] == counts[1]
