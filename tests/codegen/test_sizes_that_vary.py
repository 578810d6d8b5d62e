"""One build runs inputs of several sizes, on the virtual cluster, in this process and under torchrun."""

from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import gpt
from superscaler import compiler
from superscaler.errors import PlanError, SizeError
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import data_parallel, parse_plan, tensor_parallel
from superscaler.runtime.build import read_build
from superscaler.runtime.loaded import load
from tests.codegen.test_inference import run
from tests.ir.test_dynamic import FOR_ANY_SIZES, Apply, example

SIZES = {"layers": 2, "width": 32, "heads": 4, "seq": 32, "vocab": 64}


@cache
def model():
    torch.manual_seed(0)
    return gpt.build("tiny", **SIZES).double().eval()


def tokens(batch, seq):
    return {"tokens": torch.randint(SIZES["vocab"], (batch, seq))}


@cache
def graph():
    return trace(model(), tokens(8, 12), dynamic={"tokens": {0: "batch", 1: "seq"}})


def planned(how, devices=0):
    devices = devices or parse_plan(how).num_devices
    return compiler.plan(graph(), Cluster.local(devices), how).verify()


def conditions(plan):
    return [one.condition for one in plan.requirements]


@pytest.mark.parametrize(
    ("how", "asked"),
    [
        ("none", []),
        ("tp=2", []),
        ("pp=2", []),
        ("dp=2", ["batch % 2 == 0"]),
        ("micro_batches=4", ["batch % 4 == 0"]),
        ("tp=2,sp", ["seq % 2 == 0"]),
        ("dp=2,tp=2,pp=2,micro_batches=2", ["batch % 4 == 0"]),
    ],
)
def test_three_sizes_and_more_equal_eager_under_one_plan(how, asked):
    plan = planned(how)
    assert conditions(plan) == asked
    for batch, seq in ((8, 12), (4, 32), (12, 6)):
        assert plan.compare_with_eager(model(), tokens(batch, seq), steps=1).largest < 1e-10
    if how in ("none", "tp=2", "pp=2"):
        for batch, seq in ((1, 1), (1, 32), (3, 1), (5, 7)):
            assert plan.compare_with_eager(model(), tokens(batch, seq), steps=1).largest < 1e-10


def meshes_of_two_shapes(p):
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(2), dp=2))
    p.assign(second, p.mesh(range(2, 6), dp=2, tp=2))
    data_parallel(p)
    tensor_parallel(p)


def three_then_two(p):
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(3), dp=3))
    p.assign(second, p.mesh(range(3, 5), tp=2))
    p.trans(p.axis("batch"), "dp")
    tensor_parallel(p)


@pytest.mark.parametrize(
    ("script", "devices", "example"), [(meshes_of_two_shapes, 6, 8), (three_then_two, 5, 6)]
)
def test_pieces_go_where_they_belong_between_meshes_of_other_shapes(script, devices, example):
    graph_ = trace(model(), tokens(example, 12), dynamic={"tokens": ("batch", "seq")})
    plan = compiler.plan(graph_, Cluster.local(devices), script).verify()
    for batch, seq in ((example, 12), (2 * example, 4), (3 * example, 30)):
        assert plan.compare_with_eager(model(), tokens(batch, seq), steps=1).largest < 1e-10


def test_a_size_the_plan_cannot_cut_is_refused_with_the_cut():
    with pytest.raises(
        SizeError, match=r"needs batch % 4 == 0, but batch is 6(.|\n)*at: the plan, which cuts it"
    ):
        planned("dp=2,tp=2,pp=2,micro_batches=2").compare_with_eager(model(), tokens(6, 8))


def test_uneven_cuts_of_a_size_that_varies_are_refused():
    def chosen(p):
        p.assign(p.everything(), p.mesh(range(2), dp=2))
        p.trans(p.axis("batch"), "dp", pieces=(3, 5))

    with pytest.raises(PlanError, match=r"3 uneven pieces along batch(.|\n)*a multiple of 3"):
        planned("dp=3")
    with pytest.raises(PlanError, match=r"\[3, 5\] are given of the axis batch(.|\n)*varies"):
        planned(chosen, 2)


def test_the_plan_shows_what_varies_and_what_is_asked():
    text = str(planned("dp=2"))
    assert "batch: tokens [batch, seq]" in text
    assert "sizes: batch 8, seq 12 in the example; allowed: batch % 2 == 0" in text


def test_a_loaded_program_runs_any_allowed_size(tmp_path):
    planned("micro_batches=2").save(tmp_path / "b")
    program = load(tmp_path / "b", "cpu")
    for batch, seq in ((8, 12), (2, 1), (6, 32), (8, 12)):
        inputs = tokens(batch, seq)
        (logits,) = program(inputs).values()
        torch.testing.assert_close(logits, model()(**inputs).detach(), rtol=0, atol=1e-10)
    with pytest.raises(SizeError, match=r"the build b of gpt(.|\n)*needs batch % 2 == 0, but batch is 5"):
        program(tokens(5, 8))
    source = (tmp_path / "b" / "stage0.py").read_text()
    assert 'batch_size, seq = rt.size("batch"), rt.size("seq")' in source
    assert ".reshape(batch_size // 2, seq, 4, 8)" in source
    assert "# [batch / 2, seq, 32]" in source


@pytest.mark.parametrize("function", FOR_ANY_SIZES)
def test_the_written_source_computes_any_sizes(function, tmp_path):
    module = Apply(function)
    compiler.compile(
        module, (example(),), cluster=Cluster.local(1), dynamic={"x": ("batch", "seq")}, save=tmp_path / "b"
    )
    program = load(tmp_path / "b", "cpu")
    for batch, seq in ((6, 10), (1, 1), (5, 5), (3, 17)):
        x = example(batch, seq)
        (result,) = program({"x": x}).values()
        torch.testing.assert_close(result, module(x).detach())


def test_a_build_for_other_sizes_differs_in_its_inputs_alone(tmp_path):
    planned("dp=2").save(tmp_path / "b")
    build = read_build(tmp_path / "b")
    other = build.bind({"tokens": (4, 30)})
    assert build.bind({"tokens": (8, 12)}) is build
    assert (build.sizes, other.sizes) == ({"batch": 8, "seq": 12}, {"batch": 4, "seq": 30})
    assert other.programs[0].tensors["tokens"].local_shape(1) == (2, 30)
    assert other.programs[0].tensors["wte.weight"] is build.programs[0].tensors["wte.weight"]


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["tp=2", "dp=2", "pp=2,micro_batches=2", "exchange"])
def test_torchrun_runs_three_sizes_of_one_build(how, tmp_path):
    def exchange(p):
        first, second = p.split("h.*", 2)
        p.assign(first, p.mesh(range(2), dp=2))
        p.assign(second, p.mesh([2], x=1))
        data_parallel(p)

    devices = 3 if how == "exchange" else 2
    planned(exchange if how == "exchange" else how, devices).save(tmp_path / "b")
    for samples, seq, batch in ((8, 12, 8), (7, 5, 4), (9, 32, 6)):
        data = tokens(samples, seq)
        save_file(data, tmp_path / "data.safetensors")
        out = tmp_path / "out.safetensors"
        run(tmp_path / "b", tmp_path / "data.safetensors", out, devices, f"--batch={batch}")
        (logits,) = load_file(out).values()
        torch.testing.assert_close(logits, model()(**data).detach(), rtol=0, atol=1e-10)


def test_samples_of_any_length_are_cut_from_a_file_of_tokens(tmp_path):
    planned("none", 1).save(tmp_path / "b")
    stream = torch.randint(SIZES["vocab"], (71,), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "tokens.npy", stream.numpy().astype(np.uint16))
    out = tmp_path / "out.safetensors"
    run(tmp_path / "b", tmp_path / "tokens.npy", out, 1, "--batch=3", "--sample-tokens=10")
    (logits,) = load_file(out).values()
    torch.testing.assert_close(logits, model()(stream[:70].view(7, 10)).detach(), rtol=0, atol=1e-10)


@cache
def of_transformers(name):
    """A small Llama with grouped heads, or BERT, in double precision, and its graph for many sizes."""
    library = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": SIZES["vocab"], "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    if name == "llama":
        config = library.LlamaConfig(**sizes, num_key_value_heads=2, use_cache=False)
        model = library.LlamaForCausalLM(config)
    else:
        model = library.BertModel(library.BertConfig(**sizes))
    model = model.double().eval()
    inputs = {"input_ids": tokens(8, 12)["tokens"]}
    return model, trace(model, inputs, dynamic={"input_ids": ("batch", "seq")})


@pytest.mark.parametrize("how", ["none", "dp=2", "tp=2", "pp=2"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_models_of_transformers_take_three_sizes(name, how):
    model, graph = of_transformers(name)
    plan = compiler.plan(graph, Cluster.local(parse_plan(how).num_devices), how).verify()
    for batch, seq in ((8, 12), (4, 31), (2, 5)):
        inputs = {"input_ids": tokens(batch, seq)["tokens"]}
        assert plan.compare_with_eager(model, inputs, steps=1).largest < 1e-10


def test_a_limit_inside_transformers_is_told_with_its_line():
    model, graph = of_transformers("bert")
    plan = compiler.plan(graph, Cluster.local(1), "none")
    assert "seq <= 64" in conditions(plan)
    with pytest.raises(SizeError, match=r"needs seq <= 64, but seq is 65(.|\n)*modeling_bert\.py:\d+"):
        plan.compare_with_eager(model, {"input_ids": tokens(4, 65)["tokens"]})
