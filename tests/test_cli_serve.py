"""``superscaler serve`` of a model of Hugging Face: as transformers generates, over the death of a rank."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Literal

import openai
import pydantic
import pytest
import transformers

from benchmarks.served import ranks_below
from superscaler import cli
from superscaler.runtime.serving.offline import load_engine
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server import serving_process
from tests.pretrained import write_llama

ROOT = Path(__file__).parents[1]
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
PROMPT = "to be or not"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with random weights, and a tokenizer that has learned a few words."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder, TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """Its address, its process, and the client."""
    command = [
        sys.executable,
        "-m",
        "superscaler.cli",
        "serve",
        str(folder),
        "--cluster",
        "local:2",
        "--plan",
        "tp=2",
    ]
    command += ["--speculate", "ngram", "--tree", "1,1"]
    command += ["--port", "0", "--served-model-name", "tiny", "--threads", "1", "--cache-tokens", "1024"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"http://127.0.0.1:\d+", line):
            break
    else:
        pytest.fail("".join(said))
    client = openai.OpenAI(base_url=f"{found[0]}/v1", api_key="none", max_retries=0)
    yield process, found[0], client
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == 0, rest
    client.close()
    process.stdout.close()


def generated(folder, text, count):
    """The text that transformers generates greedily."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(text, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=count, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ]
    return tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.ranks
@pytest.mark.slow
def test_the_text_is_that_of_transformers(folder, server):
    _, address, client = server
    prompt = PROMPT + " to be or not to be"
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=60, temperature=0)
    assert answer.choices[0].text == generated(folder, prompt, 60)
    with urllib.request.urlopen(f"{address}/metrics") as metrics:  # what came before was proposed again
        (drafts,) = re.findall(r"(?m)^vllm:spec_decode_num_drafts_total\S* (\S+)$", metrics.read().decode())
    assert float(drafts) > 0
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": PROMPT}], max_tokens=20, temperature=0
    )
    assert chat.choices[0].message.content == generated(folder, f"user: {PROMPT}\nassistant:", 20)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "last"])
def test_a_stream_goes_on_where_it_was_when_a_rank_is_killed(server, victim):
    process, _, client = server
    ask = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": 200,
        "seed": 3,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**ask).choices[0].text
    said, killed = "", None
    for chunk in client.completions.create(**ask, stream=True):
        said += chunk.choices[0].text
        if killed is None and len(said) > 10:
            killed = sorted(ranks_below(process.pid))[0 if victim == "first" else -1]
            os.kill(killed, signal.SIGKILL)
    assert said == whole
    assert killed not in ranks_below(process.pid)


class Answer(pydantic.BaseModel):
    """What a model is asked for."""

    size: Literal["small", "middling", "large"]
    coast: bool
    digits: list[Literal[0, 1, 2]] = pydantic.Field(min_length=2, max_length=4)


@pytest.mark.ranks
@pytest.mark.slow
def test_an_answer_is_parsed_as_the_model_that_was_asked_for(server):
    _, _, client = server
    for seed in range(4):
        answer = client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": PROMPT}], seed=seed, max_tokens=200,
            response_format=Answer, extra_body={"temperature": 2.0},
        )  # fmt: skip
        if answer.choices[0].finish_reason == "stop":  # between names there may be any white space
            assert isinstance(answer.choices[0].message.parsed, Answer)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="tiny", prompt=PROMPT, extra_body={"structured_outputs": {"regex": "a("}}
        )
    assert caught.value.param == "structured_outputs"


@pytest.mark.ranks
@pytest.mark.slow
def test_a_call_is_forced_of_a_model_that_has_learned_none(server):
    _, _, client = server
    for seed in range(4):
        answer = client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": PROMPT}], seed=seed, max_tokens=200,
            tools=[openai.pydantic_function_tool(Answer)], tool_choice="required", temperature=2.0,
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "tool_calls"
        [call] = answer.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Answer)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_form_is_held_to_when_a_rank_is_killed_amid_the_answer(server):
    process, _, client = server
    form = "[a-z]{80}(-[0-9]{3}){10}"
    ask = {
        "model": "tiny", "prompt": PROMPT, "max_tokens": 200, "seed": 4, "temperature": 2.0,
        "extra_body": {"structured_outputs": {"regex": form}},
    }  # fmt: skip
    whole = client.completions.create(**ask).choices[0].text
    assert re.fullmatch(form, whole)
    said, killed = "", None
    for chunk in client.completions.create(**ask, stream=True):
        said += chunk.choices[0].text
        if killed is None and len(said) > 10:
            killed = sorted(ranks_below(process.pid))[0]
            os.kill(killed, signal.SIGKILL)
    assert said == whole
    assert killed not in ranks_below(process.pid)


@pytest.mark.ranks
@pytest.mark.slow
def test_the_benchmark_measures_it(server, capsys):
    _, url, _ = server
    wanted = ["--num-prompts", "6", "--input-len", "12", "--output-len", "5", "--ignore-eos", "--json"]
    assert cli.main(["bench", "serve", "--url", url, *wanted]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["completed"], report["total_input_tokens"], report["total_output_tokens"]) == (6, 72, 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py:tiny"], "no Python file"),
        (["ORGANISATION/MODEL"], "hf download ORGANISATION/NAME --local-dir FOLDER"),
        (["tests"], "no config.json in it"),
        (["models/llama.py:tiny", "--compile-only"], "add -o FOLDER"),
        (["models/llama.py:tiny", "--set", "layers"], "write --set layers=2"),
    ],
)
def test_mistakes_are_told(arguments, message, capsys):
    assert cli.main(["serve", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "70000 is not from 0 to 65535"),
        (["--policy", "random"], "invalid choice: 'random'"),
        (["--", "--unheard-of"], "unrecognized arguments: --unheard-of"),
    ],
)
def test_what_no_engine_or_server_takes_is_refused_before_anything_is_compiled(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "nowhere.py:tiny", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_options_of_the_engine_are_listed(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "nowhere.py:tiny", "--", "--help"])
    assert end.value.code == 0
    assert "--speculate" in capsys.readouterr().out


@pytest.mark.ranks
def test_an_engine_that_cannot_be_made_is_never_served(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = ["models/llama.py:tiny", "--port", "0", "--", "--speculate", "nowhere"]
    assert cli.main(["serve", *wanted]) == 1
    err = capsys.readouterr().err
    assert "there is no folder nowhere to speculate with\n" in err[err.index("superscaler: error:") :]
    assert "ended before it was ready" in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Of a model's folder that is no longer there, with its own ways of generating."""
    home = tmp_path_factory.mktemp("built")
    write_llama(home / "llama", TEMPLATE)
    said = {"temperature": 0.25, "top_k": 7, "max_new_tokens": 9, "eos_token_id": [1, 5]}
    (home / "llama" / "generation_config.json").write_text(json.dumps(said))
    assert cli.main(["serve", str(home / "llama"), "-o", str(home / "build"), "--compile-only"]) == 0
    shutil.rmtree(home / "llama")
    return home / "build"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], SamplingParams(temperature=0.25, top_k=7, max_tokens=9)),
        (["--generation-config", "auto"], SamplingParams(temperature=0.25, top_k=7, max_tokens=9)),
        (["--generation-config", "none"], SamplingParams()),
    ],
)
def test_a_build_is_served_with_the_ways_of_its_model(build, arguments, expected, monkeypatch):
    found = {}
    monkeypatch.setattr(
        serving_process, "run", lambda command, how, tokenizer: found.update(how=how, command=command("at"))
    )
    assert cli.main(["serve", str(build), *arguments]) == 0
    assert found["how"].defaults == expected
    assert "--end-token" not in found["command"]  # the engine finds them in the build
    assert load_engine(build)._end_tokens == {1, 5}


def test_a_build_is_kept_and_told_how_to_be_served(tmp_path, capsys):
    assert cli.main(["serve", "models/llama.py:tiny", "-o", str(tmp_path / "build"), "--compile-only"]) == 0
    assert f"superscaler serve {tmp_path / 'build'}" in capsys.readouterr().out
    assert (tmp_path / "build" / "serve.py").is_file()
