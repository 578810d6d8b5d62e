"""The command line: what it prints, and what it says when something is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from superscaler.cli import main
from superscaler.errors import TraceError
from superscaler.model_reference import build_model, load_script
from superscaler.planner.recipes import RECIPES
from superscaler.profiling import profile as profiling
from superscaler.profiling.standard_models import Sizes
from tests.command_line_page import documented_keys

ROOT = Path(__file__).parents[1]
GPT = str(ROOT / "models" / "gpt.py")
SCRIPTS = ROOT / "examples"
SMALL = ["--set", "layers=2", "--set", "width=16", "--set", "seq=8", "--set", "vocab=32", "--batch", "4"]


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for word in (
        "compile",
        "check",
        "show",
        "torchrun",
        "local:N",
        "plan script",
        *(f"\n  {row.word} " for row in RECIPES),
    ):
        assert word in text, word


@pytest.mark.parametrize("command", ["compile", "check", "show"])
def test_every_option_of_a_command_is_explained(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "models/gpt.py:tiny" in text
    assert "--plan" in text


def test_words_of_plans_are_left_to_the_help_of_all(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--help"])
    text = capsys.readouterr().out
    assert "--num-prompts" in text
    assert "words of plans" not in text


def test_show_prints_who_computes_what(capsys):
    code, out, err = run(capsys, "show", f"{GPT}:tiny", "--cluster", "local:2", "--plan", "pp=2", *SMALL)
    assert code == 0, err
    assert re.search(r"stage 0: devices x1 on 0\n  computes +wte, wpe, h.0\n", out)
    assert re.search(r"stage 1: devices x1 on 1\n  computes +h.1, ln_f\n", out)
    assert re.search(r"forward +send +stage 0 -> stage 1", out)
    assert "stage 0: F0 B0" in out


def test_show_explains_an_operator(capsys):
    arguments = ["show", f"{GPT}:tiny", "--cluster", "local:2", "--plan", "tp=2", *SMALL]
    code, out, _ = run(capsys, *arguments, "--explain", "h.0.attn.q/linear")
    assert code == 0
    assert "h.0.attn.q/linear = linear" in out
    assert "placed on tp2 on 0,1 by the plan 'tp=2'" in out
    assert "cut along heads(4) over tp by tp=2 in the plan 'tp=2'" in out
    assert "reads h.0.attn.q.weight as" in out


def test_show_prints_the_graph(capsys):
    code, out, _ = run(capsys, "show", f"{GPT}:tiny", "--graph", *SMALL)
    assert code == 0
    assert "h.1.mlp.up/linear" in out
    assert "adamw" in out


def test_a_plan_script_is_named_by_file_and_function(capsys, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "def mine(p):\n"
        "    p.assign(p.everything(), p.mesh([0, 1], dp=2))\n"
        "    p.trans(p.axis('batch'), 'dp')\n"
    )
    arguments = ["show", f"{GPT}:tiny", "--cluster", "local:2", *SMALL]
    code, out, _ = run(capsys, *arguments, "--plan", f"{script}:mine")
    assert code == 0
    assert "plan 'mine'" in out
    assert "dp         cuts batch" in out
    code, out, _ = run(capsys, *arguments, "--plan", f"{script}:mine", "--explain", "h.0.mlp.up/linear")
    assert re.search(r"over dp by \S*mine\.py:3", out)


@pytest.mark.parametrize("script", ["tensor_parallel.py:tensor_parallel", "mixed_layers.py:mixed_layers"])
def test_the_example_scripts_make_plans(capsys, script):
    devices = 3 if "mixed" in script else 2
    plan = f"{SCRIPTS / script.partition(':')[0]}:{script.partition(':')[2]}"
    code, out, err = run(capsys, "show", f"{GPT}:tiny", "--cluster", f"local:{devices}", "--plan", plan)
    assert code == 0, err
    assert f"on {devices} devices of local" in out


def test_overrides_change_the_model(capsys):
    _, small, _ = run(capsys, "show", f"{GPT}:tiny", *SMALL)
    assert "batch: tokens [4, 8], targets [4, 8]" in small
    assert "h.0-1" in small


def test_a_model_may_be_a_function_of_a_file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\n"
        "def perceptron(width=4): return torch.nn.Linear(width, 1)\n"
        "def example_inputs(batch, width=4): return {'input': torch.zeros(batch, width)}\n"
    )
    model, inputs = build_model(f"{file}:perceptron", 3, {"width": 5})
    assert model.in_features == 5
    assert inputs["input"].shape == (3, 5)


BROKEN = {
    "no_build.py": "x = 1\n",
    "no_inputs.py": "def build(name): ...\n",
    "syntax.py": "def build(:\n",
    "import_error.py": "\nimport there_is_no_such_module\n",
    "scripts.py": "def one(p): ...\ndef two(p): ...\nNUMBER = 3\n",
    "wrong_script.py": "def wrong(p):\n    p.assign(p.everything(), [0, 5])\n",
}
TINY = f"{GPT}:tiny"
MISTAKES = [
    (["show", "models/nothing.py:tiny"], "no Python file 'models/nothing.py'"),
    (["show", "tiny"], "no Python file 'tiny'"),
    (["show", f"{GPT}:huge"], "no size 'huge'; there are tiny"),
    (["show", TINY, "--set", "layres=2"], "unexpected keyword argument 'layres'"),
    (["show", TINY, "--set", "layers"], "--set 'layers' is not KEY=VALUE"),
    (["show", TINY, "--batch", "0"], "--batch 0"),
    (["show", TINY, "--cluster", "laptop:2"], "no cluster 'laptop:2'"),
    (["show", TINY, "--plan", "dp=2"], "'dp=2' needs 2 devices"),
    (["show", TINY, "--plan", "dp=two"], "'dp=two'"),
    (["show", TINY, "--explain", "h.0.attn.q"], "no operator 'h.0.attn.q'"),
    (["show", TINY, "--plan", "{dir}/scripts.py"], "which plan script"),
    (["show", TINY, "--plan", "{dir}/scripts.py:three"], "no function 'three'"),
    (["show", TINY, "--plan", "{dir}/nothing.py:three"], "no Python file"),
    (["show", TINY, "--plan", "{dir}/wrong_script.py:wrong"], "wrong_script.py:2"),
    (["show", "{dir}/no_build.py:tiny"], "does not define build(name)"),
    (["show", "{dir}/no_inputs.py:tiny"], "does not define example_inputs(name, batch)"),
    (["show", "{dir}/syntax.py:tiny"], "syntax.py:1"),
    (["show", "{dir}/import_error.py:tiny"], "import_error.py:2"),
    (["show", "{dir}"], "is no build folder: it has no plan.json"),
    (["check", TINY, "--plan", "pp=2"], "'pp=2' needs 2 devices"),
    (["show", TINY, "--inference", "--dynamic", "tokens"], "--dynamic 'tokens' is not INPUT=DIMS"),
    (["show", TINY, "--dynamic", "tokens=batch"], "sizes that vary are for inference"),
    (["show", TINY, "--inputs", "words"], "--inputs words: the model's file gives no 'words'"),
    (["compile", TINY, "--plan", "tp=0", "-o", "{dir}/out"], "a number below 1"),
]


@pytest.mark.parametrize(("arguments", "fault"), MISTAKES, ids=[fault for _, fault in MISTAKES])
def test_a_mistake_is_told_on_stderr_without_a_traceback(capsys, tmp_path, arguments, fault):
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    code, out, err = run(capsys, *(word.replace("{dir}", str(tmp_path)) for word in arguments))
    assert code == 1
    assert out == ""
    assert re.search("^superscaler: error: ", err, re.MULTILINE)
    assert fault in err
    assert "remedy: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [[], ["--json"], ["--html"], ["--graph"], ["--communication"]])
def test_a_folder_of_something_else_is_not_shown_whatever_is_asked(capsys, tmp_path, option):
    for name in ("plan.txt", "report.json", "config.json"):
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, "show", str(tmp_path), *option)
    assert (code, out) == (1, "")
    assert f"{tmp_path} is no build folder: it has no plan.json" in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_script_that_is_not_there_says_which_there_are(tmp_path):
    (tmp_path / "scripts.py").write_text(BROKEN["scripts.py"])
    with pytest.raises(TraceError) as error:
        load_script(f"{tmp_path}/scripts.py:NUMBER")
    assert f"{tmp_path}/scripts.py:one, {tmp_path}/scripts.py:two" in error.value.remedy


def test_check_compares_with_eager(capsys):
    arguments = ["--cluster", "local:2", "--plan", "tp=2", "--dtype", "float64", *SMALL]
    code, out, err = run(capsys, "check", TINY, *arguments)
    assert code == 0, err
    assert "proved complete" in out
    differences = [float(number) for number in re.findall(r"(\d\.\d\de[+-]\d+)", out)]
    assert differences
    assert max(differences) < 1e-10


def test_a_static_check_executes_nothing(capsys):
    code, out, _ = run(capsys, "check", TINY, "--static", "--cluster", "local:2", "--plan", "pp=2", *SMALL)
    assert code == 0
    assert "proved complete" in out
    assert "eager" not in out


def test_compile_writes_a_folder_that_show_prints(capsys, tmp_path):
    folder = tmp_path / "gpt"
    code, out, err = run(
        capsys, "compile", TINY, "--cluster", "local:2", "--plan", "pp=2", "-o", str(folder), *SMALL
    )
    assert code == 0, err
    assert f"torchrun --nproc-per-node 2 {folder}/train.py" in out
    assert len(list(folder.glob("stage*.py"))) == 2
    code, out, _ = run(capsys, "show", str(folder))
    assert code == 0
    assert "plan 'pp=2'" in out
    assert "programs: " in out


def test_show_writes_a_page_of_a_build_or_of_a_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = [TINY, "--cluster", "local:2", "--plan", "pp=2", *SMALL]
    code, _, err = run(capsys, "compile", *plan, "-o", "build/gpt")
    assert code == 0, err
    code, out, err = run(capsys, "show", "--html", "build/gpt")
    assert (code, out) == (0, "build/gpt/report.html: open it in a browser\n"), err
    code, out, err = run(capsys, "show", "--html", *plan, "-o", "page.html")
    assert (code, out) == (0, "page.html: open it in a browser\n"), err
    assert Path("page.html").read_text() == Path("build/gpt/report.html").read_text()
    Path("build/gpt/report.json").unlink()
    code, _, err = run(capsys, "show", "--html", "build/gpt")
    assert code == 1
    assert "compile the build again" in err


def test_compile_for_inference_writes_a_program_that_runs_a_file(capsys, tmp_path):
    folder = tmp_path / "gpt"
    options = ["--inference", "--inputs", "tokens", "--dynamic", "tokens=batch,-", "-o", str(folder), *SMALL]
    code, out, err = run(capsys, "compile", TINY, *options)
    assert code == 0, err
    assert f"torchrun --nproc-per-node 1 {folder}/run.py --out OUTPUTS.safetensors" in out
    assert not (folder / "train.py").exists()
    assert "batch: tokens [batch, 8]" in (folder / "plan.txt").read_text()
    done = subprocess.run(
        [sys.executable, str(folder / "run.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout


def test_the_module_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "superscaler.cli", "show", "nothing.py:tiny"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "superscaler: error: no Python file 'nothing.py'" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_options_reach_the_program(capsys, tmp_path):
    code, _, err = run(
        capsys, "compile", f"{GPT}:tiny", "-o", str(tmp_path / "b"), *SMALL, "--optimizer", "adam",
        "--lr-schedule", "cosine", "--warmup", "2", "--lr-steps", "9", "--clip-norm", "0.5",
    )  # fmt: skip
    assert code == 0, err
    source = (tmp_path / "b" / "stage0.py").read_text()
    assert "lr=ops.cosine_rate(step, peak=0.0003, warmup=2, total=9, floor=0.0)" in source
    assert "ops.adam_(" in source
    assert "max_norm=0.5" in source


def test_float8_is_compiled_and_what_stays_wide_is_told(capsys, tmp_path):
    half = ["--autocast", "bfloat16", "--float8", "--set", "vocab=33"]
    said = re.compile(r"not the call at .*gpt.py:\d+: its 33 outputs are no multiple of 16")
    code, out, err = run(capsys, "compile", f"{GPT}:tiny", "-o", str(tmp_path / "b"), *SMALL, *half)
    assert code == 0, err
    assert "float8: 12 linear layers multiply in float8" in out
    assert said.search(out)
    assert "ops.linear_float8_weight_gradient(" in (tmp_path / "b" / "stage0.py").read_text()
    assert json.loads((tmp_path / "b" / "plan.json").read_text())["float8"] is True
    assert said.search((tmp_path / "b" / "plan.txt").read_text())
    code, out, _ = run(capsys, "show", f"{GPT}:tiny", *SMALL, *half)
    assert code == 0
    assert said.search(out)
    code, out, err = run(capsys, "compile", f"{GPT}:tiny", "-o", str(tmp_path / "b"), *SMALL, *half, "--json")
    assert json.loads(out)["devices"] == 1
    assert said.search(err)
    code, _, err = run(capsys, "compile", f"{GPT}:tiny", "-o", str(tmp_path / "c"), *SMALL, "--float8")
    assert code == 1
    assert "--autocast bfloat16" in err


def test_a_schedule_without_an_end_is_refused(capsys):
    code, _, err = run(capsys, "check", f"{GPT}:tiny", *SMALL, "--lr-schedule", "linear")
    assert code == 1
    assert "--lr-schedule linear needs to know when it ends" in err


def test_simulate_predicts_a_step_and_writes_a_trace(capsys, tmp_path):
    plan = ["--cluster", "local:2", "--plan", "pp=2,schedule=1f1b,micro_batches=4"]
    code, out, _ = run(capsys, "simulate", f"{GPT}:tiny", *SMALL, *plan, "--trace", str(tmp_path / "t.json"))
    assert code == 0
    assert re.search(r"^step [\d.]+ (us|ms|s), MFU [\d.]+%, bubble [\d.]+%$", out, re.MULTILINE)
    assert {event["pid"] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]} == {0, 1}
    code, _, err = run(capsys, "simulate", f"{GPT}:tiny", *SMALL, "--trace", str(tmp_path / "no" / "t.json"))
    assert code == 1
    assert "name a file in a folder that exists" in err


@pytest.mark.ranks
def test_profile_writes_a_cluster_that_other_commands_take(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(profiling.SIZES, ("cpu", True), Sizes((8,), (2, 8), (2,), (1, 4)))
    monkeypatch.setitem(profiling.COLLECTIVE_BYTES, True, (2**10, 2**12))
    monkeypatch.setattr(profiling, "QUICK_SECONDS", 1e-4)
    monkeypatch.setenv("SUPERSCALER_CACHE", str(tmp_path / "cache"))
    model, file = ["--plan", "dp=2", *SMALL], tmp_path / "mine.yaml"
    code, out, err = run(
        capsys, "profile", "--devices", "2", "--quick", "--backend", "gloo", "-o", str(file),
        "--model", f"{GPT}:tiny", *model, "--json",
    )  # fmt: skip
    assert code == 0, err
    measured = json.loads(out)
    assert list(measured) == documented_keys("profile")
    assert measured["cluster"] == str(file)
    assert measured["flops_per_second"]["float32"] > 0
    assert (tmp_path / "cache" / "profile.json").is_file()
    code, out, err = run(capsys, "simulate", f"{GPT}:tiny", "--cluster", str(file), *model)
    assert code == 0, err
    assert "2 devices of profile of" in out


@pytest.mark.parametrize("arguments", [["--devices", "0", "-o", "mine.yaml"], ["-o", "mine.json"]])
def test_a_profile_that_cannot_be_is_refused(capsys, arguments):
    code, _, err = run(capsys, "profile", *arguments)
    assert code == 1
    assert "superscaler profile --devices 2 -o mine.yaml" in err
