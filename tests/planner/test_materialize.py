"""Communication is what the literature counts, and every dependency holds in any plan that is accepted."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superscaler.errors import PlanError
from superscaler.ir.tensor import Role
from superscaler.planner import schedules
from superscaler.planner.materialize import Keep, Run, Store
from tests.planner.dependencies import assert_dependencies_hold
from tests.planner.samples import gpt_graph, mlp_graph, moves, plan_of, script_plan

LAYERS, BATCH, SEQ, WIDTH, VOCAB = 2, 8, 64, 64, 256
ACTIVATION = BATCH * SEQ * WIDTH * 4
"""Bytes of the residual stream of the whole batch in float32."""


def parameters(graph):
    return {tensor.name: tensor for tensor in graph.of_role(Role.PARAMETER)}


def test_tensor_parallelism_all_reduces_as_megatron_counts():
    plan = plan_of(gpt_graph(), "tp=2")
    forward, backward = moves(plan, "F", "all_reduce"), moves(plan, "B", "all_reduce")
    large = [size for _, size in forward if size == ACTIVATION]
    rows = [size for _, size in forward if size == BATCH * SEQ * 4]
    assert len(large) == 2 * LAYERS + 1, "attention and perceptron of each layer, and the embedding"
    assert len(rows) == 2, "the loss: log-sum-exp and the picked logit of every token"
    assert len(forward) == len(large) + len(rows)
    assert [size for _, size in backward] == [ACTIVATION] * (2 * LAYERS + 1)
    assert len(plan.transfers) == len(forward) + len(backward), "nothing else, and nothing in the update"


def test_sequence_parallelism_replaces_each_all_reduce_by_a_pair():
    plan = plan_of(gpt_graph(), "tp=2,sp")
    for phase in "FB":
        scattered = moves(plan, phase, "reduce_scatter")
        gathered = [size for _, size in moves(plan, phase, "all_gather") if size == ACTIVATION // 2]
        assert [size for _, size in scattered] == [ACTIVATION] * (2 * LAYERS + 1)
        assert len(gathered) == 2 * LAYERS + 1
    assert [size for _, size in moves(plan, "F", "all_reduce")] == [BATCH * SEQ * 4] * 2
    normalisations = {tensor for tensor, _ in moves(plan, "B", "all_reduce")}
    assert normalisations <= set(plan.graph.gradients.values()), "no activation"


def test_an_odd_sequence_is_cut_unevenly():
    plan = plan_of(gpt_graph(seq=63), "tp=2,sp")
    assert_dependencies_hold(plan.materialized)
    sizes = {
        layout.piece_sizes(1)
        for operator in plan.graph.operators
        for layout in plan.placed.writes(operator)
        if layout.sizes == (BATCH, 63, WIDTH) and layout.cuts[1]
    }
    assert sizes == {(31, 32)}


def test_data_parallelism_reduces_each_gradient_once_and_no_activation():
    plan = plan_of(gpt_graph(), "dp=2")
    whole = sum(tensor.num_bytes for tensor in parameters(plan.graph).values())
    backward, update = moves(plan, "B", "all_reduce"), moves(plan, "U", "all_reduce")
    reduced = [size for _, size in backward + update if size > 8]
    assert len(reduced) == len(parameters(plan.graph))
    assert sum(reduced) == whole
    assert all(size <= 8 for _, size in moves(plan, "F", "all_reduce")), "the loss and the number of tokens"
    assert {transfer.step.kind for _, transfer in plan.transfers} == {"all_reduce"}


def test_zero_scatters_every_gradient_and_gathers_every_parameter():
    plan = plan_of(gpt_graph(), "dp=2,zero=1")
    known = parameters(plan.graph)
    gathered = Counter(tensor for tensor, _ in moves(plan, "U", "all_gather"))
    assert gathered == Counter(plan.graph.updates[name] for name in known)
    scattered = moves(plan, "B", "reduce_scatter")
    assert sum(size for _, size in scattered) == sum(tensor.num_bytes for tensor in known.values())
    assert len(scattered) == len(known)
    for state in plan.graph.of_role(Role.STATE):
        homes = [
            name for name in plan.materialized.stored if plan.materialized.values[name].tensor == state.name
        ]
        layouts = [plan.materialized.values[name].layout for name in homes]
        assert [layout.replicated for layout in layouts] == [()], state.name


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_pipeline_sends_activations_per_micro_batch_and_tied_weights_once(micro_batches):
    plan = plan_of(gpt_graph(), f"pp=2,micro_batches={micro_batches}")
    each, weight = ACTIVATION // micro_batches, VOCAB * WIDTH * 4
    assert [size for _, size in moves(plan, "F", "send")] == [each]
    # without micro-batches the tied weight's gradients are added up within the backward
    assert [size for _, size in moves(plan, "B", "send")] == ([each] if micro_batches > 1 else [each, weight])
    update = moves(plan, "U", "send")
    assert [size for _, size in update] == ([weight, weight] if micro_batches > 1 else [weight])
    assert update[-1][0] == plan.graph.updates["wte.weight"]
    assert len(plan.transfers) == 4


def test_a_tied_weight_has_a_home_on_each_stage_and_is_stored_in_both():
    plan = plan_of(gpt_graph(), "pp=2")
    graph = plan.materialized
    homes = [name for name in graph.stored if graph.values[name].tensor == "wte.weight"]
    assert [graph.stages.index(graph.values[name].layout.mesh) for name in homes] == [0, 1]
    stored = [event.write for event in graph.events["U"] if isinstance(event, Store)]
    assert set(homes) <= set(stored)
    assert len(stored) == len(set(stored))


def test_micro_batches_add_up_each_gradient_once_per_micro_batch():
    plan = plan_of(gpt_graph(), "micro_batches=4")
    kept = [event for phase in "FB" for event in plan.materialized.events[phase] if isinstance(event, Keep)]
    added = [plan.materialized.values[event.read].tensor for event in kept if event.add]
    assert len(added) == len(set(added))
    for name, gradient in plan.graph.gradients.items():
        # the positions' gradient is summed over the batch first: its summands are those of what it reads
        sources = {gradient, *plan.graph.writer[gradient].reads}
        assert sources & set(added), name
    assert not plan.transfers


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "micro_batches=2",
        "dp=3",
        "dp=1,tp=4",
        "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=2,zero=1,sp",
        "tp=3",
        "dp=2,tp=2,sp,micro_batches=4",
        "dp=2,tp=3,zero=1",
    ],
)
def test_dependencies_hold_in_plan_strings(text):
    assert_dependencies_hold(plan_of(gpt_graph(), text).materialized)


def test_meshes_of_different_shapes_follow_each_other():
    def script(p):
        first, second = p.mesh([0, 1], dp=2), p.mesh([2, 3, 4], tp=3)
        p.assign(p.select("h.0"), first)
        p.assign(p.select("h.1"), second)
        p.trans(p.axis("batch"), "dp")
        p.trans(p.select("h.1.mlp.up").axis("out"), "tp", pieces=(100, 100, 56))
        p.order(schedules.one_f_one_b(2))

    plan = script_plan(gpt_graph(), 5, script)
    assert_dependencies_hold(plan.materialized)
    assert moves(plan, "F", "exchange")
    pieces = [
        plan.materialized.values[name].layout.piece_sizes(0)
        for name in plan.materialized.stored
        if name == "h.1.mlp.up.weight"
    ]
    assert pieces == [(100, 100, 56)]


def test_a_piece_made_for_a_micro_batch_is_not_read_by_the_update():
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], x=2))
        p.trans(p.select("down").only("F"), "x", letter="n")  # the backward reads the weight whole
        p.trans(p.select("down.weight/adamw"), "x", letter="p0")
        p.order(schedules.gpipe(2))

    assert_dependencies_hold(script_plan(mlp_graph(), 2, script).materialized)


def test_ordered_operators_run_in_that_order_and_data_still_comes_first():
    def script(p):
        p.assign(p.everything(), [0])
        p.order(p.select("h.0.attn.v", "F"), p.select("h.0.attn.q", "F"))

    plan = script_plan(gpt_graph(), 1, script)
    assert_dependencies_hold(plan.materialized)
    names = [event.operator for event in plan.materialized.events["F"] if isinstance(event, Run)]
    last = max(i for i, name in enumerate(names) if name.startswith("h.0.attn.v"))
    assert last < min(i for i, name in enumerate(names) if name.startswith("h.0.attn.q"))


@st.composite
def random_scripts(draw):
    """Cuts of anything over anything, on one or two meshes; most make sense, some do not."""
    shapes = [{"a": 2}, {"a": 2, "b": 2}, {"a": 3}, {"a": 2, "b": 3}]
    staged = draw(st.booleans())
    first, second = draw(st.sampled_from(shapes)), draw(st.sampled_from(shapes))
    micro_batches = draw(st.sampled_from([1, 1, 2, 4]))
    choices = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["axis", "letter", "within"]),
                st.integers(0, 40),
                st.sampled_from("ab"),
                st.integers(0, 8),
            ),
            max_size=4,
        )
    )

    def size(shape):
        count = 1
        for value in shape.values():
            count *= value
        return count

    def script(p):
        here = p.mesh(range(size(first)), **first)
        p.assign(p.everything(), here)
        if staged:
            p.assign(p.select("down"), p.mesh(range(size(first), size(first) + size(second)), **second))
        axes = list(
            {
                axis: None
                for letters in p.axes.letters.values()
                for parts in letters.values()
                for axis in parts
            }
        )
        for kind, number, over, which in choices:
            operator = p.graph.operators[number % len(p.graph.operators)]
            if kind == "letter":
                letters = list(p.axes.letters[operator.name])
                p.trans(operator, over, letter=letters[which % len(letters)] if letters else "none")
            else:
                within = p.select(operator.name) if kind == "within" else None
                p.trans(axes[which % len(axes)], over, within=within)
        p.order(schedules.gpipe(micro_batches))

    return script


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(random_scripts())
def test_any_script_is_refused_or_its_dependencies_hold(script):
    plan, refusal = None, None
    try:
        plan = script_plan(mlp_graph(), 12, script)
    except PlanError as error:
        refusal = error
    if plan is None:
        assert refusal is not None
        assert refusal.where, "the script's line"
        assert refusal.remedy
        return
    assert_dependencies_hold(plan.materialized)
