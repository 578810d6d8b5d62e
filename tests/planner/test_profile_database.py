from dataclasses import replace

import pytest

from superscaler.errors import PlanError
from superscaler.ir.graph import Operator, Ref
from superscaler.planner.cluster import Cluster
from superscaler.planner.prices import Prices
from superscaler.planner.profile_database import ProfileDatabase, call_text
from tests.codegen.plans import planned, tiny_gpt


def prices(how, database=None):
    plan = planned(tiny_gpt()[2], how)
    cluster = replace(plan.cluster, profiled=database or ProfileDatabase())
    return Prices(plan.materialized.placed, cluster)


def test_what_was_measured_counts_and_the_curve_everywhere_else():
    curves = prices("tp=2")
    device = curves.cluster.kinds()[0].name
    one = next(operator for operator in curves.placed.graph.operators if operator.kind == "linear")
    call = curves.call(one.name, device)
    measured = prices("tp=2", ProfileDatabase({call: 42.0}))
    for operator in measured.placed.graph.operators:
        same = measured.call(operator.name, device) == call
        assert measured.operator(operator.name) == (42.0 if same else curves.operator(operator.name))
    uncut = prices("none", measured.cluster.profiled)
    assert 42.0 not in [uncut.operator(operator.name) for operator in uncut.placed.graph.operators]


def test_a_call_names_all_that_its_time_depends_on():
    operator = Operator("dropout", "dropout", ("x", "s"), ("y",), (Ref(0), Ref(1)), (("p", 0.5), ("key", 7)))
    text = call_text(operator, ["float32[2, 3]", "int64[]"], ["float32[2, 3]"], "cpu")
    assert text == "dropout(float32[2, 3], int64[]) -> float32[2, 3] on cpu"
    joined = Operator("c", "aten.cat", ("x", "y"), ("z",), ((Ref(0), Ref(1)), 1))
    text = call_text(joined, ["int8[2]", "int8[2]"], ["int8[4]"], "H200-141GB")
    assert text == "aten.cat((int8[2], int8[2]), 1) -> int8[4] on H200-141GB"


def test_databases_are_shared_as_files(tmp_path):
    path = tmp_path / "deep" / "profile.json"
    ProfileDatabase({"a": 1.0, "b": 2.0}).merged(ProfileDatabase({"b": 3.0})).save(path)
    assert ProfileDatabase.load(path).seconds == {"a": 1.0, "b": 3.0}
    assert [file.name for file in path.parent.iterdir()] == ["profile.json"]


def test_a_cluster_file_names_its_database(tmp_path):
    ProfileDatabase({"a": 1.0}).save(tmp_path / "profile.json")
    Cluster.local(2).save(tmp_path / "mine.yaml", "profile.json")
    cluster = Cluster.load(tmp_path / "mine.yaml")
    assert cluster.profiled.seconds == {"a": 1.0}
    assert cluster == Cluster.local(2)
    mixed = "groups: [{preset: dgx-2}, {preset: h200}]\nprofiled: profile.json"
    (tmp_path / "mixed.yaml").write_text(mixed)
    assert Cluster.load(tmp_path / "mixed.yaml").profiled == cluster.profiled


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 9, "seconds": {}}', '{"format": 1, "seconds": {"a": "b"}}']
)
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(PlanError, match="superscaler profile"):
        ProfileDatabase.load(path)
