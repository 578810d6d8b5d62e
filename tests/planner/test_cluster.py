import pytest

from superscaler.errors import PlanError
from superscaler.planner.cluster import PRESETS, Cluster


def test_a_preset_is_repeated_node_by_node():
    cluster = Cluster.preset("dgx-a100", nodes=8)
    assert (cluster.num_devices, cluster.devices_per_node) == (64, 8)
    assert cluster.same_node((0, 7))
    assert not cluster.same_node((7, 8))


def test_groups_are_equal_and_consecutive():
    assert Cluster.local(4).groups(2) == ((0, 1), (2, 3))
    with pytest.raises(PlanError, match="cannot form 3 equal groups"):
        Cluster.local(4).groups(3)


def test_a_ring_across_nodes_uses_the_links_of_all_its_members():
    cluster = Cluster.preset("dgx-a100", nodes=2)
    assert cluster.bandwidth((0, 1)) == 300e9
    assert cluster.bandwidth((0, 8)) == 25e9
    assert cluster.bandwidth((0, 1, 8, 9)) == 50e9
    assert cluster.latency((0, 1)) < cluster.latency((0, 8))


def test_the_speed_of_a_dtype_comes_from_its_class():
    cluster = Cluster.preset("dgx-a100")
    assert cluster.flops("bfloat16") == cluster.flops("float16") == 312e12
    assert cluster.flops("int64") == cluster.flops("float32") == 19.5e12


def test_the_command_line_names_local_devices_presets_and_files(tmp_path):
    assert Cluster.parse("local:4") == Cluster.local(4)
    assert Cluster.parse("dgx-a100:8") == Cluster.preset("dgx-a100", 8)
    assert Cluster.parse("h200") == Cluster.preset("h200")
    path = tmp_path / "mine.yaml"
    path.write_text("preset: dgx-2\nnodes: 2\nname: mine\ninter_node_bandwidth: 1e10\nmemory_bytes: 16e9\n")
    cluster = Cluster.parse(str(path))
    assert (cluster.name, cluster.num_devices, cluster.inter_node_bandwidth) == ("mine", 32, 1e10)
    assert cluster.memory_bytes == 16 * 10**9


@pytest.mark.parametrize("text", ["", "dgx-b300", "local:0", "local:four", "dgx-a100:-1"])
def test_an_unknown_cluster_is_answered_with_those_there_are(text):
    with pytest.raises(PlanError) as error:
        Cluster.parse(text)
    assert all(name in str(error.value) for name in ("local", *PRESETS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: dgx-2\nspeed: 3", "unknown fields"),
        ("name: mine", "fields missing"),
        ("[1, 2]", "no mapping"),
        ("a: [", "cannot read"),
        ("preset: dgx-2\nmemory_bytes: lots", "could not convert"),
        ("preset: dgx-2\nmemory_bytes: 0", "memory_bytes is 0"),
        ("preset: dgx-2\nnum_devices: 17", "do not fill nodes of 16"),
    ],
)
def test_a_faulty_file_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        Cluster.load(path)


def test_a_missing_file_is_a_plan_error(tmp_path):
    with pytest.raises(PlanError, match="cannot read cluster file"):
        Cluster.load(tmp_path / "none.yaml")
