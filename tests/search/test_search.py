"""The search against brute force: over estimates, with random prices; over simulated steps, with real plans."""

from functools import cache
from itertools import combinations, pairwise
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import superscaler as ss
from models import gpt
from superscaler.errors import PlanError
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.search.auto import find_plan
from superscaler.search.candidate import Candidate, Space, auto_space, candidates
from superscaler.search.estimate import LayerCost, layer_costs, least_seconds, step_seconds
from superscaler.search.layer_prices import LayerPrice, Way
from superscaler.search.search import Search
from superscaler.search.stage_cuts import MIB, find_cuts, row_bytes, rows_of

SIZES = {"layers": 4, "width": 32, "heads": 2, "seq": 16, "vocab": 64}


@cache
def graph(batch=8, **sizes):
    torch.manual_seed(0)
    sizes = {**SIZES, **sizes}
    model = gpt.build("tiny", **sizes)
    return ss.trace(model, gpt.example_inputs("tiny", batch=batch, **sizes), optimizer=ss.AdamW())


def all_cuts(layers, stages):
    for inner in combinations(range(1, layers), stages - 1):
        ends = (0, *inner, layers)
        yield tuple(b - a for a, b in pairwise(ends))


def brute_force(candidate, costs, memory_bytes):
    """The least estimate over all cuts that fit."""
    best = inf
    for cuts in all_cuts(len(costs), candidate.stages):
        starts = [sum(cuts[:i]) for i in range(len(cuts))]
        stages = [costs[a : a + n] for a, n in zip(starts, cuts, strict=True)]
        rows = [[cost for i in hosted for cost in stages[i]] for hosted in rows_of(candidate)]
        most = max(cost.temporary for cost in costs)
        if any(
            row_bytes(candidate, number, row) - max(c.temporary for c in row) + most > memory_bytes
            for number, row in enumerate(rows)
        ):
            continue
        pace = [sum(cost.task for cost in stage) for stage in stages]
        tasks = [len(hosted) * max(pace[i] for i in hosted) for hosted in rows_of(candidate)]
        steps = [sum(cost.step for cost in row) for row in rows]
        best = min(best, step_seconds(candidate, tasks, steps, max(c.hand_on for c in costs)))
    return best


costs_of_layers = st.lists(
    st.builds(
        LayerCost,
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
    costs=costs_of_layers,
    pp=st.sampled_from([1, 2]),
    schedule=st.sampled_from(["1f1b", "interleaved", "zb-h1", "zb-v"]),
    memory=st.integers(20, 400),
)
@settings(deadline=None, max_examples=60)
def test_cuts_are_the_best_of_all_that_fit_and_bounds_are_bounds(costs, pp, schedule, memory):
    candidate = Candidate(Way(), 1, pp, 4, 0, schedule if pp > 1 else "gpipe")
    best = brute_force(candidate, costs, memory * MIB)
    cuts = find_cuts(candidate, costs, memory * MIB, 10.0)
    if cuts is None:
        assert best == inf
        return
    assert cuts.seconds == pytest.approx(best, rel=2e-3)
    assert cuts.bound <= best * (1 + 1e-3)
    assert least_seconds(candidate, costs) <= best * (1 + 1e-9)


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
                    prices = search.prices(way, samples)
                    for candidate in candidates(space, search.cluster, way, 8, samples, 4):
                        costs = layer_costs(candidate, prices, search.cluster)
                        best = min(best, brute_force(candidate, costs, memory_mib * MIB))
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
    with pytest.raises(PlanError, match="fixes 'offload', which the search does not vary"):
        auto_space("auto,offload=optimizer")


def test_what_does_not_fit_is_refused_with_the_least_that_would():
    with pytest.raises(PlanError, match=r"memory per device is .* the least that any plan needs is about"):
        ss.plan(graph(), Cluster.local(2).with_memory(MIB // 4), "auto")


def test_a_search_that_has_no_time_does_not_say_that_nothing_fits():
    with pytest.raises(PlanError, match=r"was found in 0 s, though there may be some"):
        find_plan(graph(), Cluster.local(2), time_limit=0.0)


def test_stages_that_are_not_decided_in_time_bound_the_rest(monkeypatch):
    def undecided(*_):
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
    between, exact = search.prices(Way(), 4), search._exact(Way(), 4)
    for one, other in zip(between, exact, strict=True):
        for name in ("forward", "backward", "update"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=0.05)
        assert one.activations == pytest.approx(other.activations, rel=0.02)
    assert isinstance(between[0], LayerPrice)
