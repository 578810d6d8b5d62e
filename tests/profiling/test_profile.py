"""The machine at hand is measured: a file that loads, and times of exactly the calls that programs make."""

import pytest

from models import mlp
from superscaler import compiler
from superscaler.errors import ProfileError
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.operator_work import is_view
from superscaler.planner.prices import Prices
from superscaler.planner.profile_database import ProfileDatabase
from superscaler.profiling import profile as profiling
from superscaler.profiling.standard_models import Sizes


@pytest.fixture
def tiny(monkeypatch):
    """Sizes that take no time."""
    monkeypatch.setitem(profiling.SIZES, ("cpu", True), Sizes((8, 16), (2, 8), (2, 4), (1, 4)))
    monkeypatch.setitem(profiling.COLLECTIVE_BYTES, True, (2**10, 2**12))
    monkeypatch.setattr(profiling, "QUICK_SECONDS", 1e-4)


def plan(cluster, how="dp=2"):
    graph = trace(mlp.build("tiny"), mlp.example_inputs("tiny"), optimizer=SGD())
    return compiler.plan(graph, cluster, how)


@pytest.mark.ranks
def test_a_profile_becomes_a_cluster_that_knows_the_calls_of_a_plan(tiny, tmp_path):
    made = profiling.profile(2, "gloo", quick=True, model=plan(Cluster.local(2)))
    made.save(tmp_path / "mine.yaml", tmp_path / "deep" / "profile.json")
    assert not made.not_measured
    cluster = Cluster.parse(str(tmp_path / "mine.yaml"))
    assert cluster == made.cluster
    assert cluster.num_devices == 2
    assert cluster.flops("float32") > 1e6
    assert cluster.transport.name == "gloo"
    mine = plan(cluster)
    prices = Prices(mine.materialized.placed, cluster)
    (device,) = cluster.kinds()
    for operator in mine.graph.operators:
        call = prices.call(operator.name, device.name)
        assert is_view(operator) or prices.operator(operator.name) == cluster.profiled.seconds[call]
    assert mine.verify().simulate()


def test_one_process_is_measured_without_collectives_and_added_to_what_is_known(tiny, tmp_path):
    ProfileDatabase({"a": 1.0}).save(tmp_path / "profile.json")
    made = profiling.profile(1, "gloo", quick=True)
    made.save(tmp_path / "mine.yaml", tmp_path / "profile.json")
    assert made.cluster.transport == Cluster.local(1).transport
    assert {"a", *made.database.seconds} == ProfileDatabase.load(tmp_path / "profile.json").seconds.keys()
    assert "guess" in str(made)


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ProfileError, match="2 GPUs should be measured, there are 1"):
        profiling.profile(2, "nccl")


def test_a_process_that_fails_is_an_error_with_its_words():
    with pytest.raises(ProfileError, match="a process that measures failed"):
        profiling._run(profiling.Task("no such backend", (), 0.1, (), 1), 2)
