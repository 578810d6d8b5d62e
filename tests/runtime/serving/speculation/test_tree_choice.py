"""On simulated engines the choice is close to the best fixed tree, and never later than plain decoding by 2 %."""

import random
from dataclasses import dataclass

import pytest

from superscaler.runtime.serving.speculation.best_trees import best_trees
from superscaler.runtime.serving.speculation.token_tree import ROOT, depths, ranks
from superscaler.runtime.serving.speculation.tree_choice import SpeculationStep, TreeChoice


@dataclass(frozen=True)
class Engine:
    """Seconds and acceptance as functions; noise as real steps have."""

    chances: tuple[float, ...]
    free_tokens: int
    """So many tokens take no longer than one: what memory bandwidth leaves."""
    draft_level: float
    """Seconds of a level, where a step takes one."""
    noise: float = 0.05

    def seconds(self, tokens):
        return max(1.0, tokens / self.free_tokens)

    def step(self, generator, batch, shape, other_tokens=0):
        trees = [(shape, self.walk(generator, shape)) for _ in range(batch)] if shape else []
        levels = max(depths(shape), default=0)
        noise = generator.uniform(1 - self.noise, 1 + self.noise)
        seconds = self.seconds(batch * (1 + len(shape)) + other_tokens) * noise
        return SpeculationStep(batch, other_tokens, trees, seconds, self.draft_level * levels)

    def walk(self, generator, shape):
        path, node = [], ROOT
        rank = ranks(shape)
        while True:
            children = [child for child, parent in enumerate(shape) if parent == node]
            drawn = generator.random()
            for child in children:
                drawn -= self.chances[rank[child]] if rank[child] < len(self.chances) else 0
                if drawn < 0:
                    path.append(child)
                    node = child
                    break
            else:
                return path

    def best_rate(self, batch):
        """Tokens per second of the best fixed tree, or of none."""
        rates = [batch / self.seconds(batch)]
        for levels in range(1, 9):
            trees = best_trees(self.chances, levels, 64)
            for size, (expected, deepest) in enumerate(zip(trees.expected, trees.levels, strict=True), 1):
                seconds = self.seconds(batch * (1 + size)) + self.draft_level * deepest
                rates.append(batch * expected / seconds)
        return max(rates)


def run(choice, engine, batch, steps, seed=0, prompts=0):
    """Tokens per second, and the shapes used; beside the sequences go so many tokens of prompts."""
    generator = random.Random(seed)
    tokens = seconds = 0.0
    shapes = []
    for _ in range(steps):
        shapes.append(choice.choose(batch, prompts))
        step = engine.step(generator, batch, shapes[-1], prompts)
        choice.observe(step)
        tokens += batch + sum(len(path) for _, path in step.trees)
        seconds += step.seconds + step.draft_seconds
    return tokens / seconds, shapes


BAD = {
    "nothing is accepted": Engine((0.02, 0.01), free_tokens=8, draft_level=0.2),
    "the device is busy": Engine((0.5, 0.2, 0.1), free_tokens=1, draft_level=0.1),
    "drafting is slow": Engine((0.6, 0.2), free_tokens=64, draft_level=1.5),
    "nearly pays": Engine((0.3, 0.1), free_tokens=64, draft_level=0.35),
}


@pytest.mark.parametrize("batch", [1, 4, 32])
@pytest.mark.parametrize("name", BAD)
def test_never_two_percent_slower_than_plain_where_speculation_is_bad(name, batch):
    engine = BAD[name]
    found, _ = run(TreeChoice(), engine, batch, 2500)
    assert found > 0.98 * batch / engine.seconds(batch)


@pytest.mark.parametrize("batch", [1, 15])
@pytest.mark.parametrize("name", BAD)
def test_nor_is_it_where_every_step_has_tokens_of_prompts_too(name, batch):
    engine = BAD[name]
    found, _ = run(TreeChoice(), engine, batch, 1500, prompts=60)
    assert found > 0.98 * batch / engine.seconds(batch + 60)


GOOD = {
    "sure": Engine((0.9, 0.05, 0.02), free_tokens=64, draft_level=0.05),
    "doubtful": Engine((0.5, 0.25, 0.12, 0.06), free_tokens=64, draft_level=0.1),
    "free drafts": Engine((0.6, 0.1), free_tokens=32, draft_level=0.0),
}


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("name", GOOD)
def test_close_to_the_best_fixed_tree_where_speculation_is_good(name, batch):
    engine = GOOD[name]
    found, _ = run(TreeChoice(), engine, batch, 1500)
    assert found > 0.9 * engine.best_rate(batch)
    assert found > 0.98 * batch / engine.seconds(batch)


def test_deep_trees_that_pay_are_found_within_a_few_steps():
    _, shapes = run(TreeChoice(), GOOD["sure"], 1, 20)
    assert all(max(depths(shape), default=0) >= 5 for shape in shapes[-5:])


def test_small_batches_get_larger_trees():
    choice, engine = TreeChoice(), GOOD["doubtful"]
    sizes = {}
    for batch in (1, 8, 40):
        _, shapes = run(choice, engine, batch, 600)
        sizes[batch] = sum(map(len, shapes[-200:])) / 200
    assert sizes[1] > sizes[8] > sizes[40]


def test_a_change_is_noticed_in_both_directions():
    bad = Engine((0.02, 0.01), free_tokens=64, draft_level=0.2)
    good = Engine((0.85, 0.05), free_tokens=64, draft_level=0.1)
    choice = TreeChoice()
    run(choice, bad, 4, 1000)
    _, shapes = run(choice, good, 4, 1000)
    assert sum(map(bool, shapes[-300:])) > 280
    found, shapes = run(choice, bad, 4, 1000)
    assert sum(map(bool, shapes[-300:])) < 30
    assert found > 0.97 * 4 / bad.seconds(4)


def test_tries_go_on_where_speculation_does_not_pay():
    _, shapes = run(TreeChoice(), BAD["nothing is accepted"], 4, 3000)
    assert 0 < sum(map(bool, shapes[2000:])) < 60


def test_plain_steps_are_measured_again_where_it_does():
    _, shapes = run(TreeChoice(), GOOD["sure"], 4, 1000)
    assert 5 <= sum(not shape for shape in shapes[500:]) <= 15


def test_prompts_beside_the_batch_leave_less_for_speculation():
    engine, generator = GOOD["doubtful"], random.Random(3)
    sizes = {}
    for other_tokens in (0, 64):
        choice, used = TreeChoice(), []
        for _ in range(600):
            used.append(choice.choose(4, other_tokens))
            choice.observe(engine.step(generator, 4, used[-1], other_tokens))
        sizes[other_tokens] = sum(map(len, used[-100:])) / 100
    assert sizes[64] < sizes[0]


def test_the_same_steps_give_the_same_choices():
    first, second = (run(TreeChoice(), GOOD["doubtful"], 4, 200)[1] for _ in range(2))
    assert first == second


def test_nothing_is_risked_before_anything_is_known():
    choice = TreeChoice()
    assert choice.choose(4) == ()
    choice.observe(SpeculationStep(4, 0, [], 1.0))
    assert choice.choose(4) == (ROOT,)  # twice the tokens at most, and one level


def test_a_step_that_stalls_does_not_end_speculation_for_long():
    choice, engine = TreeChoice(), GOOD["sure"]
    run(choice, engine, 4, 300)
    shape = choice.choose(4)
    choice.observe(SpeculationStep(4, 0, [(shape, [])] * 4, 500.0, 0.0))
    _, shapes = run(choice, engine, 4, 2500)
    assert sum(map(bool, shapes[-500:])) > 450


def test_a_speculator_that_searches_long_and_finds_nothing_is_rarely_asked():
    choice, seconds = TreeChoice(), 0.0
    for _ in range(2500):
        asked = bool(choice.choose(4))
        step = SpeculationStep(4, 0, [], 1.0, 0.5 if asked else 0.0)
        choice.observe(step)
        seconds += step.seconds + step.draft_seconds
    assert 2500 / seconds > 0.98


def test_batches_that_come_and_go_are_each_bounded():
    engine, generator = BAD["the device is busy"], random.Random(4)
    choice = TreeChoice()
    seconds = plain = 0.0
    for _ in range(4000):
        batch = generator.randint(1, 40)
        step = engine.step(generator, batch, choice.choose(batch))
        choice.observe(step)
        seconds += step.seconds + step.draft_seconds
        plain += engine.seconds(batch) * (1 + sum(len(path) for _, path in step.trees) / batch)
    assert plain / seconds > 0.98
