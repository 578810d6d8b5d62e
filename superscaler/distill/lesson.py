"""The lesson: what a served model writes after pieces of a text, and which tokens it found likeliest with each.

Of the prompts themselves the draft learns the text; of the answers, what the model found likely. Some answers are the
model's likeliest, some are drawn: a draft has to know both kinds of ways that a text may go on.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from superscaler.errors import ServingError
from superscaler.runtime.build import read_build
from superscaler.runtime.serving.output import Output
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling import Logprobs
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.engine_client import EngineClient
from superscaler.runtime.serving.server.engine_process import EngineProcess, torchrun

_AT_ONCE = 256
"""Requests that the engine is given before one has ended."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """The model that is to be drafted for."""

    folder: Path
    """A build that `superscaler.serve` compiled."""
    weights: Path | None = None
    """A safetensors file or folder; None: those of the build, else its initialisers."""
    arguments: tuple[str, ...] = ()
    """Further ones for its ``serve.py``."""

    @property
    def vocab(self) -> int:
        """How many tokens it knows."""
        return read_build(self.folder).described["serving"]["vocab"]


@dataclass(frozen=True, slots=True)
class LessonRecipe:
    """What the model is to write.

    Raises:
        ServingError: There would be nothing to learn.
    """

    samples: int = 2000
    prompt_tokens: int = 64
    answer_tokens: int = 128
    likely: int = 16
    """So many of the likeliest tokens are written down with each."""
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """Of the answers, in turn."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "prompt_tokens", "answer_tokens", "likely"):
            if getattr(self, name) < 1:
                raise ServingError(f"a lesson of {getattr(self, name)} {name}", remedy="give at least 1")

    @property
    def length(self) -> int:
        """Tokens of a sample; the last one of an answer has nothing after it."""
        return self.prompt_tokens + self.answer_tokens - 1

    def prompts(self, text: np.ndarray) -> list[tuple[int, ...]]:
        """Pieces from anywhere in a text.

        Args:
            text: Tokens [count].

        Raises:
            ServingError: It is shorter than a prompt.
        """
        places = len(text) - self.prompt_tokens + 1
        if places < 1:
            raise ServingError(
                f"the text has {len(text)} tokens, and a prompt takes {self.prompt_tokens}",
                remedy="give more text, or shorter prompts: --prompt-tokens",
            )
        starts = np.random.default_rng(self.seed).integers(places, size=self.samples)
        return [tuple(text[start : start + self.prompt_tokens].tolist()) for start in starts]


def write_lesson(
    path: Path, teacher: Teacher, text: np.ndarray, recipe: LessonRecipe, tell: Callable[[int], None]
) -> bool:
    """Have a lesson written to a .safetensors file, with the inputs of `objective.Distillation`.

    Args:
        path: The file; where it holds this very lesson already, nothing is done.
        teacher: Who writes.
        text: Tokens [count] that prompts are taken from.
        recipe: What.
        tell: Told with each sample how many there are.

    Returns:
        Whether it had to be written.

    Raises:
        ServingError: The model cannot write it.
    """
    name = _fingerprint(teacher, text, recipe)
    if path.is_file():
        with safe_open(path, "numpy") as kept:
            if (kept.metadata() or {}).get("lesson") == name:
                return False
    answers = asyncio.run(_answers(teacher, recipe.prompts(text), recipe, tell))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(_sample_arrays(answers, recipe), unfinished, {"lesson": name})
    unfinished.replace(path)
    return True


def _fingerprint(teacher: Teacher, text: np.ndarray, recipe: LessonRecipe) -> str:
    """Of all that the lesson depends on."""
    weights = teacher.weights
    files = sorted(weights.glob("*.safetensors")) if weights and weights.is_dir() else [weights]
    known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file]
    build = read_build(teacher.folder).fingerprint
    found = hashlib.sha256(json.dumps([asdict(recipe), build, known, teacher.arguments]).encode())
    found.update(np.ascontiguousarray(text).tobytes())
    return found.hexdigest()


@dataclass(slots=True)
class _Answer:
    prompt: tuple[int, ...]
    tokens: list[int]
    logprobs: list[Logprobs]


async def _answers(
    teacher: Teacher, prompts: Sequence[tuple[int, ...]], recipe: LessonRecipe, tell: Callable[[int], None]
) -> list[_Answer]:
    """What the model writes after each prompt."""
    weights = ["--weights", str(teacher.weights)] if teacher.weights else []
    ranks = read_build(teacher.folder).world_size
    command = torchrun(teacher.folder, ranks, [*weights, *teacher.arguments])

    async def launch(hear):
        return await EngineProcess.start(command, hear, seconds=600.0)

    client = EngineClient(launch, max_restarts=1)
    room = asyncio.Semaphore(_AT_ONCE)
    done = 0

    async def answer(number: int, prompt: tuple[int, ...]) -> _Answer:
        nonlocal done
        params = SamplingParams(
            temperature=recipe.temperatures[number % len(recipe.temperatures)],
            max_tokens=recipe.answer_tokens,
            ignore_eos=True,  # samples are of one length
            logprobs=recipe.likely,
            seed=recipe.seed + number,
        )
        found = _Answer(prompt, [], [])
        async with room:
            with client.answer(Request(f"lesson-{number}", prompt, params)) as outputs:
                async for output in outputs:
                    _take(found, output)
        done += 1
        tell(done)
        return found

    await client.start()
    try:
        if client.facts.longest < recipe.length + 1:
            raise ServingError(
                f"a sample has {recipe.length + 1} tokens, and the model is for {client.facts.longest}",
                remedy="shorten prompts and answers: --prompt-tokens, --answer-tokens",
            )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(*each)) for each in enumerate(prompts)]
    except* ServingError as errors:
        raise errors.exceptions[0] from None
    finally:
        await client.stop()
    return [task.result() for task in tasks]


def _take(found: _Answer, output: Output) -> None:
    found.tokens += output.tokens
    found.logprobs += [each for each in output.logprobs if each is not None]


def _sample_arrays(answers: Sequence[_Answer], recipe: LessonRecipe) -> dict[str, np.ndarray]:
    """`tokens` [samples, seq], `likely` and `shares` [samples, seq, likely]."""
    shape = (len(answers), recipe.length)
    tokens = np.zeros(shape, np.int64)
    likely = np.zeros((*shape, recipe.likely), np.int64)
    shares = np.zeros((*shape, recipe.likely), np.float32)
    before = recipe.prompt_tokens - 1
    for number, answer in enumerate(answers):
        tokens[number] = [*answer.prompt, *answer.tokens][:-1]
        likely[number, :before, 0] = answer.prompt[1:]
        shares[number, :before, 0] = 1.0
        for place, found in enumerate(answer.logprobs, before):
            named = found.likeliest[: recipe.likely]
            likely[number, place, : len(named)] = [token for token, _ in named]
            shares[number, place, : len(named)] = [exp(logarithm) for _, logarithm in named]
    shares /= shares.sum(-1, keepdims=True)
    return {"tokens": tokens, "likely": likely, "shares": shares}
