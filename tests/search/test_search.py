"""The search against brute force: over estimates, with random prices; over simulated steps, with real plans."""

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from math import inf
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import superscaler as ss
from models import gpt, moe
from superscaler.errors import PlanError
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.search import auto
from superscaler.search.auto import find_plan
from superscaler.search.bottleneck import least_pace
from superscaler.search.candidate import Candidate, Space, auto_space, candidates
from superscaler.search.costs import NOTHING, Costs, LayerCost, find_costs, with_together
from superscaler.search.estimate import least_seconds, step_seconds
from superscaler.search.priced_placement import LayerPrice
from superscaler.search.search import Search
from superscaler.search.stage_cuts import find_cuts, row_bytes
from superscaler.search.way import Form, Way
from superscaler.simulator.simulation import simulate

MIB = 2**20
SIZES = {"layers": 4, "width": 32, "heads": 2, "seq": 16, "vocab": 64}


@cache
def graph(batch=8, dtype=torch.float32, **sizes):
    torch.manual_seed(0)
    sizes = {**SIZES, **sizes}
    model = gpt.build("tiny", **sizes).to(dtype)
    return ss.trace(model, gpt.example_inputs("tiny", batch=batch, **sizes), optimizer=ss.AdamW())


def all_cuts(layers, stages):
    for inner in combinations(range(1, layers), stages - 1):
        ends = (0, *inner, layers)
        yield tuple(b - a for a, b in pairwise(ends))


def brute_force(candidate, costs):
    """The least estimate over all cuts that fit."""
    best = inf
    for cuts in all_cuts(len(costs.layers[0]), candidate.stages):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        tasks, steps, fits = [], [], True
        for row, (hosted, kind) in enumerate(zip(candidate.rows, costs.kinds, strict=True)):
            layers = costs.layers[kind]
            spans = [slice(starts[i], starts[i] + cuts[i]) for i in hosted]
            stages = [layers[span] for span in spans]
            own = [cost for stage in stages for cost in stage]
            fits = fits and row_bytes(candidate, row, spans, costs) <= costs.memory_bytes[kind]
            tasks.append(len(hosted) * max(sum(cost.task for cost in stage) for stage in stages))
            steps.append(sum(cost.step for cost in own))
        if fits:
            best = min(best, step_seconds(candidate, tasks, steps, costs))
    return best


layers_of_random_cost = st.lists(
    st.builds(
        lambda task, **rest: LayerCost(task=task, refill=task, longer=2 * task / 3, **rest),
        task=st.integers(1, 50).map(float),
        step=st.integers(0, 20).map(float),
        standing=st.integers(0, 40).map(lambda size: size * MIB),
        in_flight=st.integers(0, 20).map(lambda size: size * MIB),
        temporary=st.integers(0, 3).map(lambda size: size * MIB),
        hand_on=st.just(0.5),
    ),
    min_size=4,
    max_size=7,
)


@given(
    layers=layers_of_random_cost,
    pp=st.sampled_from([1, 2, 3]),
    schedule=st.sampled_from(["1f1b", "interleaved", "zb-h1", "zb-v", "interlaced", "interlaced-ahead"]),
    memory=st.integers(20, 400),
    speeds=st.lists(st.sampled_from([1.0, 1.0, 2.5]), min_size=3, max_size=3),
    smaller=st.sampled_from([1.0, 0.6]),
)
@settings(deadline=None, max_examples=80)
def test_cuts_are_the_best_of_all_that_fit_and_bounds_are_bounds(
    layers, pp, schedule, memory, speeds, smaller
):
    """Rows may be of two kinds of devices, of which one is faster and may have less memory."""
    candidate = Candidate(Way(), 1, pp, 4, 0, schedule if pp > 1 else "1f1b")
    assume(candidate.stages <= len(layers))
    faster = tuple(
        replace(cost, task=cost.task / 2.5, refill=cost.task / 2.5, longer=cost.task / 3) for cost in layers
    )
    kinds = tuple(int(speed > 1) for speed in speeds[:pp]) if pp > 1 else (0,)
    number = max(kinds) + 1
    together = replace(NOTHING, task=3.0, step=2.0, standing=5 * MIB) if schedule == "interlaced" else NOTHING
    costs = Costs(
        (tuple(layers), faster)[:number],
        (memory * MIB, int(smaller * memory) * MIB)[:number],
        kinds,
        together,
    )
    # the solver counts memory in small units, so that what fits to the byte may not fit there
    tight = replace(costs, memory_bytes=tuple(int(own * 0.999) for own in costs.memory_bytes))
    best, of_tight = brute_force(candidate, costs), brute_force(candidate, tight)
    cuts = find_cuts(candidate, costs, 10.0)
    if cuts is None:
        assert of_tight == inf
        return
    assert best * (1 - 1e-9) <= cuts.seconds <= of_tight * (1 + 2e-3)
    assert cuts.bound <= of_tight * (1 + 1e-3)
    assert least_seconds(candidate, costs) <= best * (1 + 1e-9)


@given(
    tasks=st.lists(st.integers(1, 50), min_size=6, max_size=9),
    pp=st.sampled_from([2, 3]),
    schedule=st.sampled_from(["1f1b", "interleaved", "zb-v"]),
    speeds=st.lists(st.sampled_from([1, 4]), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=80)
def test_the_least_pace_is_that_of_the_best_cuts_if_memory_does_not_matter(tasks, pp, schedule, speeds):
    candidate = Candidate(Way(), 1, pp, 6, 0, schedule)
    layers = [tuple(replace(NOTHING, task=task / speed) for task in tasks) for speed in (1, 4)]
    costs = Costs(tuple(layers), (MIB, MIB), tuple(int(speed == 4) for speed in speeds[:pp]))
    paces = []
    for cuts in all_cuts(len(tasks), candidate.stages):
        ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
        sums = [sum(tasks[end - cut : end]) for cut, end in zip(cuts, ends, strict=True)]
        rows = zip(candidate.rows, speeds, strict=False)
        paces.append(max(len(row) * sums[stage] / speed for row, speed in rows for stage in row))
    least = least_pace(candidate, costs)
    assert least <= min(paces) * (1 + 1e-9)
    if len(set(speeds[:pp])) == 1:
        assert least == pytest.approx(min(paces), rel=2e-3)


def test_even_cuts_are_those_of_equal_numbers_of_layers_and_no_better():
    layer = LayerCost(1.0, 1.0, 2 / 3, 0.5, 10 * MIB, MIB, MIB, 0.0)
    heavy = replace(layer, task=5.0, refill=5.0, longer=10 / 3)
    costs = Costs(((heavy, layer, layer, layer, layer, layer),), (100 * MIB,), (0, 0))
    candidate = Candidate(Way(), 1, 2, 4)
    even = find_cuts(candidate, costs, 10.0, even=True)
    best = find_cuts(candidate, costs, 10.0)
    assert even.layers == (3, 3)
    assert even.seconds == step_seconds(candidate, [7.0, 3.0], [1.5, 1.5], costs)
    assert best.layers == (1, 5)
    assert best.seconds < even.seconds
    assert find_cuts(candidate, replace(costs, memory_bytes=(20 * MIB,)), 10.0, even=True) is None


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("memory_mib", [4, 64])
def test_the_search_finds_the_least_estimate_of_the_whole_space(devices, memory_mib):
    space = Space(keeps=(("", 1), ("layers", 1)))
    search = Search(graph(), Cluster.local(devices).with_memory(memory_mib * MIB), space)
    best = inf
    for tp in (1, 2):
        for sp in (False, True)[:tp]:
            for recompute in ("", "layers"):
                way = Way(tp, sp, recompute=recompute)
                for samples in (1, 2, 4, 8):
                    if devices % tp:
                        continue
                    for form in (Form.CHAIN, Form.INTERLACED):
                        own = replace(way, form=form)
                        prices = search.prices(own, samples)
                        for candidate in candidates(space, search.cluster, own, 8, samples, 4):
                            costs = find_costs(candidate, prices, search.cluster)
                            together = search.together(candidate)
                            costs = with_together(costs, candidate, together, search.cluster)
                            best = min(best, brute_force(candidate, costs))
    found = search.run()
    assert (found.plans[0].seconds if found.plans else inf) == pytest.approx(best, rel=2e-3)
    assert found.bound <= best * (1 + 1e-3)


def every_plan(devices, batch, layers):
    """Plan strings of the default space, with all cuts."""
    for dp in (1, 2, 4):
        for tp in (1, 2):
            pp = devices // (dp * tp)
            if dp * tp * pp != devices or batch % dp:
                continue
            for micro_batches in (1, 2, 4, 8):
                if batch % (dp * micro_batches):
                    continue
                for zero in (0, 1, 2, 3) if dp > 1 else (0,):
                    words = [f"dp={dp}"] * (dp > 1) + [f"tp={tp}"] * (tp > 1) + [f"zero={zero}"] * (zero > 0)
                    words += [f"micro_batches={micro_batches}"] * (micro_batches > 1)
                    for sp in ([], ["sp"])[:tp]:
                        if pp == 1:
                            yield ",".join(words + sp) or "none"
                            continue
                        for cuts in all_cuts(layers, pp):
                            yield ",".join([*words, *sp, f"pp={pp}", f"layers={'+'.join(map(str, cuts))}"])


@pytest.mark.parametrize("devices", [1, 2])
def test_auto_is_as_fast_as_the_fastest_of_all_plans_simulated(devices):
    cluster = Cluster.local(devices)
    small = graph(4, layers=3)
    fastest = min(ss.plan(small, cluster, text).simulate().step_seconds for text in every_plan(devices, 4, 3))
    _, report = find_plan(small, cluster, simulated=12, within=0.5)
    assert report.chosen.simulated <= fastest * (1 + 1e-9)


def test_auto_makes_a_plan_that_is_right_and_says_how_good_it_is():
    plan = ss.plan(graph(), Cluster.local(2), "auto").verify()
    assert plan.num_devices == 2
    assert plan.report is not None
    assert plan.report.gap <= 1e-6
    assert plan.name == plan.report.chosen.plan
    assert "runners-up" in str(plan.report)


def test_words_behind_auto_are_kept():
    plan = ss.plan(graph(), Cluster.local(4), "auto,pp=2,zero=1")
    said = parse_plan(plan.name)
    assert (said.pp, said.dp, said.zero) == (2, 2, 1)
    assert parse_plan(ss.plan(graph(), Cluster.local(4), "auto,cp=2,dp=2").name).cp == 2
    with pytest.raises(PlanError, match="fixes 'offload', which the search does not vary"):
        auto_space("auto,offload=optimizer")


def test_rows_of_faster_devices_get_more_layers():
    """Two V100 and two A100, which compute about twice as fast: stages are no longer equal, and the step is shorter."""
    old, new = (Cluster.preset(name).nodes[0] for name in ("dgx-1-v100", "dgx-a100"))
    nodes = tuple(replace(kind, count=1, devices_per_node=2) for kind in (old, new))
    mixed = replace(Cluster.preset("dgx-a100"), name="mixed", nodes=nodes)
    large = graph(16, torch.float16, layers=12, width=1024, heads=16, seq=256, vocab=512)
    plan, report = find_plan(large, mixed, Space(schedules=("1f1b",), fixed=(("pp", 2), ("tp", 2))))
    layers = parse_plan(plan.name).layers
    assert sum(layers) == 12
    assert layers[0] < layers[1]
    even = ss.plan(
        large, mixed, plan.name.replace(f"layers={layers[0]}+{layers[1]}", "layers=6+6")
    ).simulate()
    assert report.chosen.simulated < even.step_seconds
    assert report.chosen.estimated == pytest.approx(report.chosen.simulated, rel=0.1)


def test_an_interlaced_pipeline_is_chosen_where_the_vocabulary_is_most_of_the_work():
    server = Cluster.preset("dgx-1-v100")
    cluster = replace(server, nodes=(replace(server.nodes[0], devices_per_node=4),))
    wordy = graph(64, layers=8, width=1024, heads=16, seq=512, vocab=128_000)
    space = Space(fixed=(("pp", 4),))
    plan, report = find_plan(wordy, cluster, space)
    assert parse_plan(plan.name).schedule.startswith("interlaced")
    assert report.chosen.estimated == pytest.approx(report.chosen.simulated, rel=0.1)
    chains = Space(schedules=("1f1b", "interleaved", "zb-h1", "zb-v"), fixed=(("pp", 4),))
    _, other = find_plan(wordy, cluster, chains)
    assert report.chosen.simulated < other.chosen.simulated


def test_experts_are_shared_out_where_all_of_them_do_not_fit_on_a_device():
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 32, "inner": 256, "experts": 8}
    inputs = moe.example_inputs("tiny", batch=8, **sizes)
    graph = ss.trace(moe.build("tiny", **sizes), inputs, optimizer=ss.AdamW())
    cluster = Cluster.local(2)
    needed = {
        text: max(row.memory.total for row in ss.plan(graph, cluster, text).simulate().rows)
        for text in ("dp=2", "ep=2")
    }
    between = cluster.with_memory(sum(needed.values()) // 2)
    space = Space(keeps=(("", 1),), zero=(0,), most_tp=1, most_pp=1)
    plan, _ = find_plan(graph, between, space)
    assert parse_plan(plan.name).ep == 2
    with pytest.raises(PlanError, match="memory per device"):
        find_plan(graph, between, replace(space, most_ep=1))


def test_plans_that_turn_out_not_to_fit_do_not_end_the_search(monkeypatch):
    """As when the estimate has promised more than is so: here of the fastest, and of all that are like it."""
    cluster = Cluster.local(2)
    fastest, _ = find_plan(graph(), cluster, within=0.0)
    assert "pp=2" in fastest.name

    def without_pipelines(plan, programs):
        done = simulate(plan, programs)
        fits = done.fits and "pp=" not in plan.name
        return SimpleNamespace(rows=done.rows, step_seconds=done.step_seconds, fits=fits)

    monkeypatch.setattr(auto, "simulate", without_pipelines)
    found, report = find_plan(graph(), cluster, within=0.0)
    assert "pp=" not in found.name
    assert report.chosen.fits
    assert fastest.name in [choice.plan for choice in report.choices if not choice.fits]


def test_what_does_not_fit_is_refused_with_the_least_that_would():
    with pytest.raises(PlanError, match=r"memory per device is .* the least that any plan needs is about"):
        ss.plan(graph(), Cluster.local(2).with_memory(MIB // 4), "auto")


def test_a_search_that_has_no_time_does_not_say_that_nothing_fits():
    with pytest.raises(PlanError, match=r"was found in 0 s, though there may be some"):
        find_plan(graph(), Cluster.local(2), time_limit=0.0)


def test_stages_that_are_not_decided_in_time_bound_the_rest(monkeypatch):
    def undecided(*_, **__):
        raise TimeoutError

    search = Search(graph(), Cluster.local(2), Space(keeps=(("", 1),), most_tp=1, fixed=(("pp", 2),)))
    decided = search.run()
    monkeypatch.setattr("superscaler.search.search.find_cuts", undecided)
    found = search.run()
    assert not found.plans
    assert 0 < found.bound <= decided.plans[0].seconds


def test_more_memory_is_worth_what_the_report_says():
    tight = Cluster.local(2).with_memory(2 * MIB)
    _, report = find_plan(graph(), tight)
    _, roomy = find_plan(graph(), tight.with_memory(2 * MIB + 8 * 2**30))
    fastest = min(choice.estimated for choice in roomy.choices)
    assert report.with_more_memory == pytest.approx(fastest, rel=1e-6)


def test_prices_between_sizes_of_micro_batches_are_what_they_would_be():
    search = Search(graph(16), Cluster.local(1))
    (between,) = search.prices(Way(), 4)
    exact = search._exact(Way(), 4, search.cluster.nodes[0])
    for one, other in zip(between, exact, strict=True):
        for name in ("forward", "backward", "update"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=0.05)
        assert one.activations == pytest.approx(other.activations, rel=0.02)
    assert isinstance(between[0], LayerPrice)
