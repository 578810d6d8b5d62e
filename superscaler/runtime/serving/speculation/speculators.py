"""Speculators by the words in which users ask for them, and the drafting that puts them together."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from superscaler.errors import BuildError, ServingError
from superscaler.runtime.loaded import load_alone
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.speculation.draft_model import DraftModel
from superscaler.runtime.serving.speculation.ngram import NgramSpeculator
from superscaler.runtime.serving.speculation.step import Speculator
from superscaler.runtime.serving.speculation.token_tree import expansion
from superscaler.runtime.serving.speculation.tree_choice import TreeChoice
from superscaler.runtime.serving.speculation.tree_drafting import FixedShape, Shapes, TreeDrafting
from superscaler.runtime.serving.worker import Worker

NGRAM = "ngram"
"""The speculator that looks into the text so far."""
AUTO, OFF = "auto", "off"
"""Trees as measurements say they pay, and no trees."""
MOST_NODES = 1024
"""Of a tree that a user asks for: more is a slip of the pen."""


def make_drafting(
    words: Sequence[str],
    tree: str,
    vocab: int,
    clock: Callable[[], float],
    device: torch.device | str | None = None,
) -> TreeDrafting | None:
    """Drafting as a user asks for it; None where there is to be none.

    Args:
        words: Each ``ngram``, or a build of a small model, ``FOLDER`` or ``FOLDER:WEIGHTS``.
        tree: ``auto``, ``off``, or how many children the nodes of each level have: ``1,1,3,1``.
        vocab: Of the model that decides.
        clock: Seconds.
        device: Where small models run; by default a GPU where there is one.

    Raises:
        ServingError: A word or the tree makes no sense.
        BuildError: A build is missing, not for serving on one device, or of a model with another vocabulary.
    """
    shapes = _shapes(tree, len(words))
    if shapes is None or not words:
        return None
    speculators = [make_speculator(word, number, vocab, device) for number, word in enumerate(words)]
    return TreeDrafting(speculators, shapes, clock)


def _shapes(tree: str, speculators: int) -> Shapes | None:
    if tree == OFF:
        return None
    if tree == AUTO:
        return TreeChoice(speculators=max(1, speculators))
    words = tree.split(",")
    remedy = f"say {AUTO}, {OFF}, or how many children the nodes of each level have, as in 1,1,3,1"
    if not all(word.isdecimal() and int(word) for word in words):
        raise ServingError(f"{tree!r} is no tree", remedy=remedy)
    nodes, leaves = 0, 1
    for word in words:
        leaves *= int(word)
        nodes += leaves
        if nodes > MOST_NODES:
            raise ServingError(f"the tree {tree} has more than {MOST_NODES} nodes", remedy=remedy)
    return FixedShape(expansion(*map(int, words)))


def make_speculator(word: str, number: int, vocab: int, device: torch.device | str | None) -> Speculator:
    """The speculator that a word means.

    Args:
        word: See `make_drafting`.
        number: Its own, among those whose proposals are merged.
        vocab: Of the model that decides.
        device: Where it runs; by default a GPU where there is one.

    Raises:
        BuildError: There is no such build, or it cannot be used.
    """
    if word == NGRAM:
        return NgramSpeculator(number)
    folder, _, weights = (word, "", "") if Path(word).is_dir() else word.rpartition(":")
    if not folder:
        raise BuildError(
            f"there is no folder {word} to speculate with",
            remedy=f"give {NGRAM}, or a build that `superscaler serve` compiled, as FOLDER or FOLDER:WEIGHTS",
        )
    worker = Worker(load_alone(folder, device, weights or None))
    if worker.vocab != vocab:
        raise BuildError(
            f"the model in {folder} has {worker.vocab} tokens, and the one that it is to speculate for has {vocab}",
            remedy="speculate with a model of the same tokenizer",
        )
    return DraftModel(worker.run, KvCache(worker.pages, worker.page_size), worker.longest, number)
