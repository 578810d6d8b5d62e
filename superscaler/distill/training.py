"""Train a draft on a lesson, by a program compiled for it, and see how often it is right."""

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from superscaler.compiler import compile
from superscaler.distill.lesson import LessonRecipe, Teacher, write_lesson
from superscaler.distill.objective import Distillation, agreement
from superscaler.errors import ServingError
from superscaler.ir.learning_rates import Cosine
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.runtime.build import read_build
from superscaler.runtime.launcher import launcher
from superscaler.serve.language_model import trace_language_model

_HELD_OUT = 20
"""One sample of so many is not trained on."""
_TOLD = 20
"""How often it is told how far the lesson is."""


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How the draft is trained."""

    steps: int = 2000
    batch: int = 16
    """Samples of a step."""
    rate: float = 1e-3
    """The peak learning rate: it rises over the first twentieth of the steps, and falls as a cosine to a twentieth."""
    autocast: str = ""
    """dtype of the forward pass, where it is not that of the parameters."""
    cluster: str = "local:1"
    plan: str = "none"
    seed: int = 0
    """Of the order of samples."""
    checkpoint_every: int = 500
    """Steps."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of it; the draft has its weights."""

    agreement: float
    """Share of the model's held-out tokens that are the draft's likeliest ones."""
    samples: int
    """It was trained on."""


def distill(
    teacher: Teacher,
    draft: nn.Module,
    text: np.ndarray,
    lesson: LessonRecipe,
    training: TrainingRecipe,
    work: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> Distilled:
    """Train a draft in place for a model that is served.

    What is in the folder `work` from an earlier call with the same arguments is used again: the lesson, and the
    newest checkpoint of the training.

    Args:
        teacher: The model to draft for.
        draft: Maps tokens [batch, seq] to logits [batch, seq, vocab]; one of `transformers`, or any module whose
            first argument is the tokens.
        text: Tokens [count] of what users will ask for.
        lesson: What the model writes about it.
        training: How the draft learns it.
        work: A folder for the lesson, the training program and its checkpoints.
        tell: Told what goes on.

    Raises:
        ServingError: The model cannot write the lesson, or the training program failed.
        PlanError: The draft cannot be trained under the plan.
    """
    _check_vocab(draft, teacher)
    if lesson.samples - -(-lesson.samples // _HELD_OUT) < training.batch:
        raise ServingError(
            f"{lesson.samples} samples are too few for steps of {training.batch}, and some that are held out",
            remedy="have more of them written: --samples",
        )
    path = work / "lesson.safetensors"
    is_new = write_lesson(
        path, teacher, text, lesson, lambda done: _tell_progress(done, lesson.samples, tell)
    )
    tell(f"{path}: {'written' if is_new else 'used again'}")
    samples = load_file(path)
    is_held_out = torch.arange(lesson.samples) % _HELD_OUT == 0
    seen, held_out = (
        {name: values[chosen] for name, values in samples.items()} for chosen in (~is_held_out, is_held_out)
    )
    _train(draft, seen, training, work, tell)
    found = agreement(draft, held_out["tokens"], held_out["likely"], lesson.prompt_tokens - 1)
    return Distilled(found, len(seen["tokens"]))


def _tell_progress(done: int, samples: int, tell: Callable[[str], None]) -> None:
    """Now and then."""
    if done * _TOLD // samples > (done - 1) * _TOLD // samples:
        tell(f"the model has written {done} of {samples} samples")


def _check_vocab(draft: nn.Module, teacher: Teacher) -> None:
    logits = trace_language_model(draft)
    own = logits.tensors[logits.outputs[0]].shape[-1]
    if own != teacher.vocab:
        raise ServingError(
            f"the draft has {own} tokens, and the model that it is to draft for has {teacher.vocab}",
            remedy="give it a vocabulary of the same size: --draft-set vocab=N, or vocab_size in its config.json",
        )


def _train(
    draft: nn.Module, samples: dict[str, Tensor], recipe: TrainingRecipe, work: Path, tell: Callable[[str], None]
) -> None:  # fmt: skip
    """Run the training program, from its newest checkpoint where it was interrupted; `draft` gets the weights."""
    learner = Distillation(draft.train())
    run = work / f"training-{_fingerprint(learner, samples, recipe)}"
    weights, data = run / "weights.safetensors", run / "samples.safetensors"
    if _steps_of(weights) != recipe.steps:
        rate = Cosine(
            recipe.rate, warmup=recipe.steps // 20 + 1, total=recipe.steps + 1, floor=recipe.rate / 20
        )
        folder = run / "build"
        compile(
            learner,
            {name: values[: recipe.batch] for name, values in samples.items()},
            cluster=Cluster.parse(recipe.cluster),
            plan=recipe.plan,
            optimizer=AdamW(lr=rate, clip_norm=1.0),
            autocast=recipe.autocast,
            save=folder,
        )
        save_file(samples, data)
        options = {
            "--steps": recipe.steps, "--data-seed": recipe.seed, "--data": data, "--save": weights,
            "--checkpoint": run / "checkpoints", "--checkpoint-every": recipe.checkpoint_every, "--keep": 1,
        }  # fmt: skip
        words = [str(word) for pair in options.items() for word in pair]
        ranks = read_build(folder).world_size
        tell(f"training for {recipe.steps} steps of {recipe.batch} samples")
        command = [*launcher(ranks), str(folder / "train.py"), *words, "--shuffle", "--resume"]
        if code := _run(command):
            raise ServingError(
                f"training the draft ended with exit code {code}",
                remedy="mend what its message says; the same command goes on from the newest checkpoint",
            )
        if (done := _steps_of(weights)) != recipe.steps:
            raise ServingError(
                f"training the draft was ended after {done} of {recipe.steps} steps",
                remedy="the same command goes on from there",
            )
    load_model(learner, weights)
    tell(f"{weights}: trained")


def _steps_of(weights: Path) -> int:
    """How many steps saved weights have seen, 0 where there are none; a run that is stopped saves what it has."""
    if not weights.is_file():
        return 0
    with safe_open(weights, "pt") as saved:
        return int(saved.metadata()["step"])


def _run(command: Sequence[str]) -> int:
    """The exit code. Ctrl-C reaches the command too, which is left the time to write its checkpoint."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def _fingerprint(learner: nn.Module, samples: dict[str, Tensor], recipe: TrainingRecipe) -> str:
    """Of all that the weights depend on."""
    found = hashlib.sha256(repr(recipe).encode())
    for name, values in (*learner.state_dict().items(), *samples.items()):
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]
