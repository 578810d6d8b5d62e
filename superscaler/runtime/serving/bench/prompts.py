"""What a benchmark asks: prompts of shapes that are known from practice, made of random tokens or read from files."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from superscaler.errors import ServingError

_BLOCK = 512
"""Tokens that a number of a trace's ``hash_ids`` stands for."""
_MOST_TURNS = 8

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    prompt: Tokens | str
    output_tokens: int
    at: float | None = None
    """Seconds after the beginning, where the data says when."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of prompts and answers; each data set uses those that it knows."""

    requests: int
    vocab: int
    """Tokens are drawn from so many."""
    input_tokens: int = 256
    output_tokens: int = 64
    spread: float = 0.0
    """Lengths lie so far around these, as a part of them, evenly."""
    prefixes: int = 8
    """Of prefix_repetition: how many prompts begin in different ways."""
    prefix_tokens: int = 256
    seed: int = 0


def random_prompts(shape: Shape) -> Iterator[Ask]:
    """Prompts that have nothing in common."""
    generator = np.random.default_rng(shape.seed)
    for _ in range(shape.requests):
        tokens = _length(generator, shape.input_tokens, shape.spread)
        yield Ask(_draw(generator, shape, tokens), _length(generator, shape.output_tokens, shape.spread))


def repeated_prefixes(shape: Shape) -> Iterator[Ask]:
    """Prompts of which many begin with the same tokens, in a random order."""
    generator = np.random.default_rng(shape.seed)
    prefixes = [_draw(generator, shape, shape.prefix_tokens) for _ in range(shape.prefixes)]
    for number in generator.permutation(shape.requests):
        tokens = _length(generator, shape.input_tokens, shape.spread)
        output = _length(generator, shape.output_tokens, shape.spread)
        yield Ask(prefixes[int(number) % len(prefixes)] + _draw(generator, shape, tokens), output)


def conversations(shape: Shape) -> Iterator[Ask]:
    """Turns of conversations that take turns: each prompt is all that was said before, and some more.

    Lengths are spread as those of people are: most are short, a few long. What the assistant has said is made up
    beforehand, so that a turn need not wait for the one before.
    """
    generator = np.random.default_rng(shape.seed)
    going: list[tuple[Tokens, int]] = []
    for _ in range(shape.requests):
        if not going or generator.random() < 0.2:
            going.append(((), int(generator.integers(1, _MOST_TURNS + 1))))
        said, turns = going.pop(int(generator.integers(len(going))))
        prompt = said + _draw(generator, shape, _long_tailed(generator, shape.input_tokens))
        output = _long_tailed(generator, shape.output_tokens)
        if turns > 1:
            going.append((prompt + _draw(generator, shape, output), turns - 1))
        yield Ask(prompt, output)


DATASETS: Mapping[str, Callable[[Shape], Iterator[Ask]]] = {
    "random": random_prompts,
    "prefix_repetition": repeated_prefixes,
    "conversation": conversations,
}
"""Those that need no file."""


def read_prompts(path: Path, shape: Shape) -> Iterator[Ask]:
    """Lines of JSON with a ``prompt``, and ``output_tokens`` where these differ.

    Raises:
        ServingError: The file is another.
    """
    for found in _lines(path, {"prompt": str}, shape.requests):
        yield Ask(found["prompt"], int(found.get("output_tokens", shape.output_tokens)))


def read_trace(path: Path, shape: Shape, speed: float = 1.0) -> Iterator[Ask]:
    """Lines of JSON with ``timestamp`` in ms, ``input_length``, ``output_length``, and ``hash_ids``.

    Each of these numbers stands for 512 tokens, so that prompts with the same first numbers begin alike.

    Args:
        path: The file.
        shape: How many of the lines, and of what tokens.
        speed: 2: in half the time.

    Raises:
        ServingError: The file is another.
    """
    wanted = {"timestamp": (int, float), "input_length": int, "output_length": int}
    for number, found in enumerate(_lines(path, wanted, shape.requests)):
        blocks = found.get("hash_ids") or [-1 - number]
        needed = -(-found["input_length"] // _BLOCK)
        blocks = (blocks + [-1 - number] * needed)[:needed]  # what has no number is its own
        tokens = tuple(token for place, block in enumerate(blocks) for token in _block(shape, block, place))
        yield Ask(tokens[: found["input_length"]], found["output_length"], found["timestamp"] / 1000 / speed)


def _block(shape: Shape, number: int, place: int) -> Tokens:
    generator = np.random.default_rng([shape.seed, number & 0xFFFFFFFF, place if number < 0 else 0])
    return _draw(generator, shape, _BLOCK)


def _draw(generator: np.random.Generator, shape: Shape, tokens: int) -> Tokens:
    return tuple(generator.integers(shape.vocab, size=tokens).tolist())


def _length(generator: np.random.Generator, mean: int, spread: float) -> int:
    least, most = round(mean * (1 - spread)), round(mean * (1 + spread))
    return int(generator.integers(max(1, least), max(1, most) + 1))


def _long_tailed(generator: np.random.Generator, mean: int) -> int:
    """A length whose logarithm is normal, so that its mean is `mean`; never more than eight times that."""
    width = 0.8
    return int(np.clip(generator.lognormal(np.log(mean) - width**2 / 2, width), 1, 8 * mean))


def _lines(path: Path, wanted: Mapping[str, Any], most: int) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ServingError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines[:most], 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ServingError("a line is no JSON", where=f"{path}:{number}") from error
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), kind) for name, kind in wanted.items()
        ):
            raise ServingError(f"a line lacks one of {', '.join(wanted)}", where=f"{path}:{number}")
        yield found
