from dataclasses import replace

import pytest

from superscaler.errors import PlanError
from superscaler.planner.cluster import Cluster
from superscaler.planner.cluster_presets import PRESETS


def test_a_preset_is_repeated_node_by_node():
    cluster = Cluster.preset("dgx-a100", nodes=8)
    assert (cluster.num_devices, cluster.devices_per_node) == (64, 8)
    assert cluster.same_node((0, 7))
    assert not cluster.same_node((7, 8))


def test_groups_are_equal_and_consecutive():
    assert Cluster.local(4).groups(2) == ((0, 1), (2, 3))
    with pytest.raises(PlanError, match="cannot form 3 equal groups"):
        Cluster.local(4).groups(3)


def test_the_speed_of_a_dtype_comes_from_its_class():
    cluster = Cluster.preset("dgx-a100")
    assert cluster.flops("bfloat16") == cluster.flops("float16") == 312e12
    assert cluster.flops("int64") == cluster.flops("float32") == 19.5e12


def test_float8_is_of_devices_that_have_it(tmp_path):
    """Twice as fast as half precision from Ada and Hopper on; a file has it where it says so."""
    for name, cluster in PRESETS.items():
        (device,) = cluster.kinds()
        is_old = "v100" in name or "dgx-2" in name or "a100" in name or "a6000" in name
        assert device.has_float8 is not is_old
        assert is_old or device.flops("float8") == pytest.approx(2 * device.flops("bfloat16"), rel=1e-3)
    path = tmp_path / "mine.yaml"
    for speed in (None, 3e15):
        figures = {"float32": 5e13, "half": 1e15} | ({"float8": speed} if speed else {})
        path.write_text(f"preset: dgx-h100\nname: mine\nflops_per_second: {figures}\n")
        (device,) = Cluster.load(path).kinds()
        assert dict(device.flops_per_second).get("float8") == speed


def test_the_command_line_names_local_devices_presets_and_files(tmp_path):
    assert Cluster.parse("local:4") == Cluster.local(4)
    assert Cluster.parse("dgx-a100:8") == Cluster.preset("dgx-a100", 8)
    assert Cluster.parse("h200") == Cluster.preset("h200")
    path = tmp_path / "mine.yaml"
    path.write_text("preset: dgx-2\nnodes: 2\nname: mine\ninter_node_bandwidth: 1e10\nmemory_bytes: 16e9\n")
    cluster = Cluster.parse(str(path))
    assert (cluster.name, cluster.num_devices) == ("mine", 32)
    assert cluster.nodes_of(31).network.bandwidth * 8 == 16 * 1e10, "of each of 8 cards, for 16 devices"
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
        ("preset: dgx-2\nnodes: two", "invalid literal"),
        ("preset: dgx-2\nnetwork_cards: 0", "network_cards is 0"),
        ("preset: dgx-2\nmemory_bandwidth: .nan", "memory_bandwidth is nan"),
        ("preset: dgx-2\nintra_node_efficiency: 2", "efficiency is 2"),
        ("preset: dgx-2\nefficiency: 5", "int"),
        ("preset: dgx-2\nefficiency: {matmul: {arithmetic: 0, memory: 1, half_seconds: 0}}", "no curve"),
        ("preset: dgx-2\ntransport: {protocols: []}", "0 protocols"),
        ("preset: dgx-2\nprofiled: none.json", "cannot read the profile database"),
        ("groups: []", "no groups"),
        ("groups: [3]", "int"),
        ("groups: [{preset: dgx-2, profiled: profile.json}]", "misplaced fields"),
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


def mixed():
    return Cluster("mixed", (*Cluster.preset("dgx-a100", 2).nodes, *Cluster.preset("dgx-2", 3).nodes))


def test_nodes_of_several_kinds_are_numbered_one_after_another():
    cluster = mixed()
    assert cluster.num_devices == 2 * 8 + 3 * 16
    assert [cluster.node(device) for device in (0, 7, 8, 15, 16, 31, 32, 63)] == [0, 0, 1, 1, 2, 2, 3, 4]
    assert [kind.name for kind in cluster.kinds((15, 16))] == ["A100-80GB", "V100-32GB"]
    assert cluster.devices_per_node == 8


def test_of_several_kinds_the_slowest_and_smallest_count():
    cluster = mixed()
    assert cluster.flops("float16") == cluster.flops("float16", (0, 16)) == 125e12
    assert cluster.flops("float16", (0, 8)) == 312e12
    assert cluster.memory_bytes == cluster.memory_of((0, 63)) == 32 * 2**30


def test_what_is_stored_does_not_grow_with_the_devices():
    small, large = (Cluster.preset("dgx-a100", nodes) for nodes in (1, 512))
    assert len(repr(large)) - len(repr(small)) == len("512") - len("1")


@pytest.mark.parametrize(
    "cluster",
    [*PRESETS.values(), Cluster.local(3), mixed(), Cluster.preset("h200", 512)],
    ids=lambda c: c.name,
)
def test_a_file_says_all_there_is_to_say(tmp_path, cluster):
    cluster.save(tmp_path / "mine.yaml")
    assert Cluster.load(tmp_path / "mine.yaml") == cluster


def test_a_file_may_name_groups_of_presets(tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text("name: mixed\ngroups:\n- {preset: dgx-a100, nodes: 2}\n- {preset: dgx-2, nodes: 3}\n")
    assert Cluster.load(path) == replace(mixed(), transport=Cluster.preset("dgx-a100").transport)


def test_the_first_devices_of_a_cluster_are_where_they_were():
    big = Cluster.preset("dgx-a100", nodes=3)
    mixed = replace(big, nodes=(*big.nodes, *Cluster.preset("dgx-1-v100", nodes=2).nodes))
    for count in (1, 7, 8, 9, 16, 24, 25, 32, 33, 40):
        first = mixed.first(count)
        assert first.num_devices == count
        for device in range(count):
            assert first.node(device) == mixed.node(device)
            assert first.nodes_of(device).device == mixed.nodes_of(device).device
    assert Cluster.parse("dgx-a100:2[:12]") == Cluster.preset("dgx-a100", nodes=2).first(12)
    with pytest.raises(PlanError, match="ask for 1 to 4"):
        Cluster.parse("local:4[:5]")
