"""models/text.py writes samples in which every target is the byte that follows its token."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import text


def test_targets_are_the_next_bytes_of_a_stream_that_reads_back(tmp_path):
    path = tmp_path / "data" / "text.safetensors"
    samples = text.write_dataset(path, seq=128)
    data = load_file(path)
    tokens, targets = data["tokens"], data["targets"]
    assert tokens.shape == targets.shape == (samples, 128)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens.flatten()[1:], targets.flatten()[:-1])
    source = text.read_topics()
    assert bytes(tokens.flatten().tolist()) == source[: samples * 128]
    assert samples * 128 + 1 <= len(source) < (samples + 1) * 128 + 1
    assert b"statement" in source


def test_bytes_beyond_the_vocabulary_become_question_marks(tmp_path):
    text.write_dataset(tmp_path / "t.safetensors", seq=3, vocab=128, text="aéb!".encode())
    assert load_file(tmp_path / "t.safetensors")["tokens"].tolist() == [[*b"a??"]]


@pytest.mark.parametrize(("content", "seq"), [(b"", 4), (b"abcd", 4), (b"abcd", 0)])
def test_text_shorter_than_a_sample_is_refused(tmp_path, content, seq):
    with pytest.raises(ValueError, match=r"too few|at least"):
        text.write_dataset(tmp_path / "t.safetensors", seq=seq, text=content)


def test_the_command_writes_a_file_from_a_text_of_the_users(tmp_path):
    source = tmp_path / "poem.txt"
    source.write_text("roses are red, violets are blue")
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-m", "models.text", str(out), "--seq", "8", "--text", str(source)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "3 samples of 8 bytes" in done.stdout
    assert bytes(load_file(out)["tokens"][0].tolist()) == b"roses ar"


def test_a_python_without_topics_is_told_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(SystemExit):
        text.main([str(tmp_path / "t.safetensors")])
    assert "--text FILE" in capsys.readouterr().err
