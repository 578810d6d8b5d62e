"""``superscaler distill``: from a folder of Hugging Face and some text to a draft that the model speculates with."""

import json
import re

import numpy as np
import pytest

from superscaler import cli
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings
from tests.pretrained import TEXT, llama_config, write_llama

QUICK = ["--samples", "20", "--prompt-tokens", "4", "--answer-tokens", "8", "--steps", "8", "--batch", "8"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


def distill(capsys, *arguments):
    """Exit code, standard output and standard error."""
    code = cli.main(["distill", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.mark.slow
@pytest.mark.ranks
def test_a_draft_for_a_folder_is_a_build_to_speculate_with(folder, tmp_path, capsys):
    llama_config(layers=1).save_pretrained(tmp_path / "small")
    (tmp_path / "a.txt").write_text(f"{TEXT}. " * 10)
    (tmp_path / "b.txt").write_text("that is not the question")
    output = tmp_path / "draft"
    texts = ["--text", tmp_path / "a.txt", tmp_path / "b.txt"]
    code, out, err = distill(
        capsys, folder, "--draft", tmp_path / "small", *texts, "-o", output, *QUICK, "--json"
    )
    assert code == 0, err
    result = json.loads(out[out.index("{") :])
    assert result["folder"] == str(output)
    assert result["samples"] == 19
    assert result["steps"] == 8
    assert 0 <= result["agreement"] <= 1
    target = output.with_name("draft-training") / "model"
    prompts, params = [(5, 6, 7), (8, 9)], SamplingParams(temperature=0.0, max_tokens=10)
    plain = generate(load_engine(target, weights=folder), prompts, params)
    engine = load_engine(target, Settings(speculate=(str(output),), tree="1,2"), weights=folder)
    assert [one.tokens for (one,) in generate(engine, prompts, params)] == [one.tokens for (one,) in plain]
    assert engine.load.drafts > 0


def test_it_says_what_is_missing(folder, tmp_path, capsys):
    llama_config(layers=1).save_pretrained(tmp_path / "small")
    llama_config(layers=1, vocab=99).save_pretrained(tmp_path / "other")
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.arange(50, dtype=np.uint16))
    output = ["-o", tmp_path / "draft"]
    cases = [
        ([folder, "--draft", tmp_path / "small"], r"give --text FILE \.\.\., or --tokens"),
        (
            ["models/llama.py:tiny", "--draft", tmp_path / "small", "--text", "README.md"],
            "--tokenizer FOLDER",
        ),
        ([folder, "--draft", tmp_path / "small", "--text", tmp_path / "none.txt"], "none.txt cannot be read"),
        (["ORGANISATION/MODEL", "--draft", tmp_path / "small", "--tokens", tokens], "no such folder or file"),
        ([folder, "--draft", tmp_path / "elsewhere", "--tokens", tokens], "no such folder or file"),
        ([folder, "--draft", tmp_path / "small", "--tokens", tmp_path / "no.npy"], "no file .*no.npy"),
        (
            [folder, "--draft", tmp_path / "other", "--tokens", tokens],
            r"the draft has 99 tokens.*has 280[\s\S]*config.json",
        ),
        (
            [folder, "--draft", tmp_path / "small", "--tokens", tokens, "--samples", "8"],
            r"8 samples are too few for steps of 16[\s\S]*--samples",
        ),
    ]
    for arguments, message in cases:
        code, _, err = distill(capsys, *arguments, *output)
        assert code == 1
        assert re.search(message, err), err


def test_a_folder_that_would_not_be_replaced_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    output = tmp_path / "draft"
    output.mkdir()
    (output / "precious").touch()
    code, _, err = distill(capsys, folder, "--draft", folder, "--text", "README.md", "-o", output, *QUICK)
    assert code == 1
    assert "is no build of superscaler" in err
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
