"""A lesson says what the model finds likely; a draft that has learned it agrees with the model more than before."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import llama
from models.text import read_topics
from superscaler.distill import training as training_module
from superscaler.distill.lesson import LessonRecipe, Teacher, write_lesson
from superscaler.distill.objective import agreement
from superscaler.distill.training import TrainingRecipe, distill
from superscaler.errors import ServingError
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize

pytestmark = [pytest.mark.slow, pytest.mark.ranks]
LESSON = LessonRecipe(samples=40, prompt_tokens=10, answer_tokens=14, likely=5)
TRAINING = TrainingRecipe(steps=60, batch=8, rate=1e-2, checkpoint_every=25)
TEXT = np.frombuffer(read_topics()[:5000], np.uint8)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def model(seed, layers=1):
    torch.manual_seed(seed)
    built = llama.build("tiny", layers=layers, width=32, heads=2, kv_heads=1, inner=64, vocab=256, seq=64)
    with torch.no_grad():  # what comes next is mostly a matter of the last token, as a small draft can learn
        built.embed.weight.mul_(20)
        built.head.weight.mul_(20)
    return built.double()


@pytest.fixture(scope="module")
def target():
    return model(0, layers=2)


def served(target, folder, plan="none", devices=1):
    compiled = compile_serving(target, Cluster.local(devices), plan, cache=CacheSize(pages=64), longest=64)
    return Teacher(compiled.save(folder), arguments=("--threads", "1"))


@pytest.fixture(scope="module")
def teacher(target, tmp_path_factory):
    return served(target, tmp_path_factory.mktemp("teacher") / "build")


@pytest.fixture(scope="module")
def work(teacher, tmp_path_factory):
    """With a lesson, and how often it was told of a sample."""
    folder, told = tmp_path_factory.mktemp("work"), []
    assert write_lesson(folder / "lesson.safetensors", teacher, TEXT, LESSON, told.append)
    assert told == list(range(1, LESSON.samples + 1))
    return folder


def test_a_lesson_has_the_models_likeliest_tokens_and_their_chances(target, work):
    found = load_file(work / "lesson.safetensors")
    before = LESSON.prompt_tokens - 1
    with torch.no_grad():
        chances = target(found["tokens"])[:, before:].softmax(-1)
    wanted, tokens = chances.topk(LESSON.likely)
    assert torch.equal(found["likely"][:, before:], tokens)
    wanted = (wanted / wanted.sum(-1, keepdim=True)).float()
    torch.testing.assert_close(found["shares"][:, before:], wanted, rtol=1e-5, atol=1e-6)


def test_of_the_prompts_it_has_the_text(work):
    found = load_file(work / "lesson.safetensors")
    text, before = TEXT.tobytes(), LESSON.prompt_tokens - 1
    for tokens, likely, shares in zip(found["tokens"], found["likely"], found["shares"], strict=True):
        assert bytes(tokens[: before + 1].tolist()) in text
        assert torch.equal(likely[:before, 0], tokens[1 : before + 1])
        assert (shares[:before, 0] == 1).all()


def test_half_of_the_answers_are_the_models_likeliest_and_half_are_drawn(work):
    found = load_file(work / "lesson.safetensors")
    before = LESSON.prompt_tokens - 1
    is_likeliest = found["tokens"][:, before + 1 :] == found["likely"][:, before:-1, 0]
    assert is_likeliest[::2].all()
    assert not is_likeliest[1::2].all()


def test_a_lesson_that_is_there_is_not_written_again_and_another_one_is(teacher, work, tmp_path):
    path = shutil.copy(work / "lesson.safetensors", tmp_path)
    path = tmp_path / "lesson.safetensors"
    before = path.read_bytes()
    assert not write_lesson(path, teacher, TEXT, LESSON, lambda done: None)
    assert write_lesson(path, teacher, TEXT[1:], LESSON, lambda done: None)
    assert path.read_bytes() != before


def test_a_teacher_on_two_devices_writes_the_same(target, work, tmp_path):
    teacher = served(target, tmp_path / "build", "tp=2", devices=2)
    write_lesson(tmp_path / "lesson.safetensors", teacher, TEXT, LESSON, lambda done: None)
    found, wanted = (load_file(folder / "lesson.safetensors") for folder in (tmp_path, work))
    assert torch.equal(found["tokens"], wanted["tokens"])
    torch.testing.assert_close(found["shares"], wanted["shares"])


def test_a_draft_agrees_more_than_before_and_speculates_without_changing_an_answer(
    target, teacher, work, tmp_path
):
    draft = model(1)
    held_out = {name: values[::20] for name, values in load_file(work / "lesson.safetensors").items()}
    before = agreement(draft, held_out["tokens"], held_out["likely"], LESSON.prompt_tokens - 1)
    found = distill(teacher, draft, TEXT, LESSON, TRAINING, work)
    assert found.samples == 38
    assert found.agreement > before + 0.1
    after = agreement(draft, held_out["tokens"], held_out["likely"], LESSON.prompt_tokens - 1)
    assert found.agreement == after
    build = compile_serving(draft, Cluster.local(1), cache=CacheSize(pages=64)).save(tmp_path / "draft")
    prompts = LESSON.prompts(TEXT)[:6]
    params = SamplingParams(temperature=0.0, max_tokens=12)
    plain = generate(load_engine(teacher.folder), prompts, params)
    engine = load_engine(teacher.folder, Settings(speculate=(str(build),), tree="1,1,2"))
    assert [one.tokens for (one,) in generate(engine, prompts, params)] == [one.tokens for (one,) in plain]
    assert engine.load.accepted_tokens > 0


def test_training_that_was_interrupted_goes_on_from_its_checkpoint_to_the_same_weights(
    teacher, work, tmp_path, monkeypatch
):
    shutil.copy(work / "lesson.safetensors", tmp_path)
    whole, told = model(2), []
    distill(teacher, whole, TEXT, LESSON, TRAINING, tmp_path, told.append)
    assert any("training for 60 steps" in line for line in told)
    (run,) = tmp_path.glob("training-*")
    unfinished = {name: 0 * value for name, value in load_file(run / "weights.safetensors").items()}
    save_file(unfinished, run / "weights.safetensors", {"step": "25"})  # as a run saves it that is stopped
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    again = model(2)
    distill(teacher, again, TEXT, LESSON, TRAINING, tmp_path)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name

    def no_training(*arguments, **named):
        raise AssertionError("it was trained already")

    monkeypatch.setattr(training_module, "compile", no_training)
    third = model(2)
    distill(teacher, third, TEXT, LESSON, TRAINING, tmp_path)
    assert torch.equal(third.head.weight, whole.head.weight)


def test_training_that_ends_early_is_no_training(teacher, work, tmp_path, monkeypatch):
    shutil.copy(work / "lesson.safetensors", tmp_path)
    monkeypatch.setattr(training_module, "_run", lambda command: 0)
    with pytest.raises(ServingError, match="after 0 of 60 steps"):
        distill(teacher, model(2), TEXT, LESSON, TRAINING, tmp_path)


INTERRUPTED = """
import signal, sys, time
def end(*_):
    time.sleep(2)
    open(sys.argv[1], "w").close()
    sys.exit(0)
signal.signal(signal.SIGINT, end)
print("begun", flush=True)
time.sleep(600)
"""


def test_what_is_interrupted_is_left_the_time_to_write_its_checkpoint(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "checkpoint")]
    code = f"from superscaler.distill.training import _run; _run({command!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == b"begun\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.returncode != 0
    assert (tmp_path / "checkpoint").is_file()


def test_a_draft_of_another_vocabulary_is_refused_before_anything_is_written(teacher, tmp_path):
    draft = llama.build("tiny", layers=1, width=32, heads=2, kv_heads=1, inner=64, vocab=255, seq=64)
    with pytest.raises(ServingError, match=r"the draft has 255 tokens.* has 256"):
        distill(teacher, draft, TEXT, LESSON, TRAINING, tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_little_text_is_refused(teacher, tmp_path):
    with pytest.raises(
        ServingError, match=r"the text has 9 tokens, and a prompt takes 10[\s\S]*--prompt-tokens"
    ):
        write_lesson(tmp_path / "lesson", teacher, TEXT[:9], LESSON, lambda done: None)


def test_samples_longer_than_the_model_are_refused(teacher, tmp_path):
    long = LessonRecipe(samples=4, prompt_tokens=40, answer_tokens=40)
    with pytest.raises(ServingError, match=r"a sample has 80 tokens, and the model is for 64"):
        write_lesson(tmp_path / "lesson", teacher, TEXT, long, lambda done: None)
