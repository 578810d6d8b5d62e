"""A model whose next token depends on every token before it, as it reads them through pages; and an engine loop."""

import random
from dataclasses import dataclass

from superscaler.runtime.serving.batch import verify_batch
from superscaler.runtime.serving.step import Sampled

VOCABULARY = 6


def next_token(tokens, index):
    """What follows; `index`, of the continuation, stands for what the sampler draws."""
    return hash((*tokens, -7, index)) % VOCABULARY


def continue_alone(request, index, most_tokens, end_tokens=frozenset()):
    """The tokens of a continuation, one at a time and without a cache."""
    tokens = list(request.prompt)
    while len(tokens) < most_tokens:
        tokens.append(next_token(tokens, index))
        generated = len(tokens) - len(request.prompt)
        if tokens[-1] in end_tokens and generated >= request.params.min_tokens:
            break
    return tokens[len(request.prompt) :]


class ToyModel:
    """Caches hold, for each key, its token, its position and a digest of all that it saw.

    A key that is missing, stale, out of its place or computed after another beginning is noticed at once.
    """

    def __init__(self, page_size):
        self.page_size = page_size
        self.device, self.host = {}, {}
        self.computed = 0
        """Tokens that went through it."""

    def run(self, batch):
        """For each wanted row, the tokens it sees, in order."""
        verify_batch(batch, self.page_size)
        self.computed += len(batch.tokens)
        self._transfer(batch)
        for slot, token, position in zip(batch.slots, batch.tokens, batch.positions, strict=True):
            self.device[slot] = (token, position, None)
        seen = []
        for number, (start, stop) in enumerate(zip(batch.starts, batch.starts[1:], strict=False)):
            seen += [self._see(batch, number, start, row, stop) for row in range(start, stop)]
        return [seen[row] for row in batch.wanted]

    def _transfer(self, batch):
        for page, host_page in batch.swaps_out:
            self.host[host_page] = [self.device.get(slot) for slot in self._slots(page)]
        for host_page, page in batch.swaps_in:
            self.device.update(zip(self._slots(page), self.host[host_page], strict=True))
        for source, target in batch.moves:
            self.device[target] = self.device[source]
        for source, target in batch.copies:
            for old, new in zip(self._slots(source), self._slots(target), strict=True):
                self.device[new] = self.device.get(old)

    def _slots(self, page):
        return range(page * self.page_size, (page + 1) * self.page_size)

    def _see(self, batch, number, start, row, stop):
        pages, earlier = batch.pages[number], batch.lengths[number] - (stop - start)
        is_told = batch.visible and stop - start <= len(batch.visible[row])
        sees = batch.visible[row] if is_told else [new <= row - start for new in range(stop - start)]
        assert not any(sees[stop - start :])
        numbers = [*range(earlier), *(earlier + new for new in range(stop - start) if sees[new])]
        slots = [pages[key // self.page_size] * self.page_size + key % self.page_size for key in numbers]
        keys = [self.device[slot] for slot in slots]
        assert [position for _, position, _ in keys] == list(range(batch.positions[row] + 1))
        tokens = [token for token, _, _ in keys]
        assert slots[-1] == batch.slots[row]
        self.device[slots[-1]] = (*keys[-1][:2], hash(tuple(tokens)))
        for length, slot in enumerate(slots, start=1):
            assert self.device[slot][2] == hash(tuple(tokens[:length])), "a key of another beginning"
        return tokens


@dataclass(frozen=True)
class Tree:
    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def path(self, node):
        return [] if node < 0 else [*self.path(self.parents[node]), self.tokens[node]]


def random_tree(choice: random.Random, sequence, most_nodes, right=0.6):
    """Nodes anywhere below the root, of which the given part continue their path as the model would."""
    tree, depths = Tree((), ()), {-1: 0}
    for node in range(choice.randint(0, most_nodes)):
        parents = [each for each, depth in depths.items() if depth < sequence.room - 1]
        if not parents:
            break
        parent = choice.choice(parents)
        token = next_token([*sequence.tokens, *tree.path(parent)], sequence.index)
        if choice.random() > right:
            token = choice.randrange(VOCABULARY)
        depths[node] = depths[parent] + 1
        tree = Tree((*tree.tokens, token), (*tree.parents, parent))
    return tree


def sample(step, seen):
    """What a greedy sampler answers, given what each wanted row sees."""
    results = []
    for each in step.samples:
        rows, index, tree = seen[each.wanted.start : each.wanted.stop], each.sequence.index, each.tree
        tokens, nodes, node = [next_token(rows[0], index)], [], -1
        while tree is not None:
            children = [child for child, parent in enumerate(tree.parents) if parent == node]
            node = next((child for child in children if tree.tokens[child] == tokens[-1]), None)
            if node is None:
                break
            nodes.append(node)
            tokens.append(next_token(rows[node + 1], index))
        results.append(Sampled(tuple(tokens), tuple(nodes)))
    return results


def run_step(scheduler, model, drafts=None):
    """One step; None if there is nothing to do."""
    step = scheduler.schedule(drafts or {})
    scheduler.check_integrity()
    if step is not None:
        scheduler.update(step, sample(step, model.run(step.batch)))
        scheduler.check_integrity()
    return step


def run_all(scheduler, model, most_steps=500):
    """Steps until there is nothing to do."""
    steps = []
    while (step := run_step(scheduler, model)) is not None:
        steps.append(step)
        assert len(steps) < most_steps, "it goes on and on"
    return steps
