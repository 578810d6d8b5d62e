"""Drafting asks for trees that fit, merges what it is given, and reports what became of them."""

import pytest

from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.engine import Decoding
from superscaler.runtime.serving.request import Request, Sequence
from superscaler.runtime.serving.speculation.step import Proposal
from superscaler.runtime.serving.speculation.token_tree import (
    Attempt,
    TokenTree,
    expansion,
    from_paths,
    merge,
)
from superscaler.runtime.serving.speculation.tree_choice import SpeculationStep
from superscaler.runtime.serving.speculation.tree_drafting import (
    FixedShape,
    TreeDrafting,
    choices,
    top_levels,
)
from superscaler.runtime.serving.step import Part, Sample, Step
from tests.runtime.serving.sampling_rows import row


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


class Says:
    """Proposes the same paths always, as far as the shape has levels, and takes its time."""

    def __init__(self, clock, number, *paths):
        self.clock, self.number, self.paths = clock, number, paths
        self.wishes, self.forgotten = [], []

    def propose(self, wishes):
        self.clock.seconds += 0.25
        self.wishes.append({wish.sequence: wish.shape for wish in wishes})
        levels = [len(wish.shape) for wish in wishes]
        return [Proposal(from_paths([path[:most] for path in self.paths], self.number)) for most in levels]

    def forget(self, sequence):
        self.forgotten.append(sequence)


class Recording(FixedShape):
    def __init__(self, parents):
        super().__init__(parents)
        self.asked, self.steps = [], []

    def choose(self, batch, other_tokens=0):
        self.asked.append((batch, other_tokens))
        return super().choose(batch, other_tokens)

    def observe(self, step):
        self.steps.append(step)


def step_of(trees, prompt_tokens=0):
    """A step of these sequences with trees or none, and of a prompt that is not done with it."""
    parts, samples = [], []
    for name, tree in trees.items():
        sequence = Sequence(Request(name, (1,)), 0, 10)
        parts.append(Part(sequence, 0, 1 + (len(tree) if tree else 0), tree))
        samples.append(Sample(sequence, range(1), tree))
    tokens = (0,) * (sum(part.new for part in parts) + prompt_tokens)
    return Step(Batch(tokens, tokens, tokens, (), (), (), ()), tuple(parts), tuple(samples))


def test_a_tree_is_asked_for_as_deep_as_there_is_room_and_none_where_there_is_none():
    clock = Clock()
    speculator = Says(clock, 0, (1, 2, 3, 4))
    drafting = TreeDrafting([speculator], FixedShape(expansion(1, 1, 1)), clock)
    rooms = {"a": 9, "b": 3, "c": 2, "d": 1}
    found = drafting.propose({name: Decoding(row(), room) for name, room in rooms.items()}, 0)
    assert speculator.wishes == [{"a": (-1, 0, 1), "b": (-1, 0), "c": (-1,)}]
    assert {name: len(proposal.tree) for name, proposal in found.items()} == {"a": 3, "b": 2, "c": 1}
    assert top_levels(expansion(2, 1, 2), 2) == expansion(2, 1)


def test_a_step_is_reported_with_the_seconds_of_drafting():
    clock = Clock()
    shapes = Recording(expansion(1, 1))
    drafting = TreeDrafting([Says(clock, 0, (5, 6)), Says(clock, 1, (5, 7), (8,))], shapes, clock)
    assert drafting.propose({}, 3) == {}
    found = drafting.propose({"a/0": Decoding(row(), 9), "b/0": Decoding(row(), 9)}, 3)
    tree = found["a/0"].tree
    assert (tree.tokens, tree.parents) == ((5, 8, 6, 7), (-1, -1, 0, 0))
    drafting.verified(step_of({"a": tree, "b": None}, prompt_tokens=3), {"a/0": (0, 3)}, 2.0)
    expected = SpeculationStep(2, 3, [(tree.parents, (0, 3))], 2.0, 0.5, [(0, 1, 0, 0)])
    assert (shapes.asked, shapes.steps) == ([(2, 3)], [expected])
    drafting.propose({"a/0": Decoding(row(), 1)}, 0)
    drafting.verified(step_of({"a": None, "c": None}), {}, 1.0)
    assert shapes.steps[1:] == [SpeculationStep(1, 1, [], 1.0, 0.0, [])]  # c's prompt ended with it


def test_a_step_that_gave_nobody_a_token_teaches_nothing_and_its_drafts_are_charged_to_the_next():
    clock = Clock()
    shapes = Recording((-1,))
    drafting = TreeDrafting([Says(clock, 0, (5,))], shapes, clock)
    drafting.propose({"a/0": Decoding(row(), 9)}, 0)
    drafting.verified(step_of({}, prompt_tokens=4), {}, 1.0)
    drafting.propose({"a/0": Decoding(row(), 9)}, 0)
    drafting.verified(step_of({"a": None}), {}, 1.0)
    assert [step.draft_seconds for step in shapes.steps] == [0.5]


def test_all_speculators_forget():
    speculators = [Says(Clock(), number) for number in range(2)]
    TreeDrafting(speculators, FixedShape(()), Clock()).forget("a")
    assert [speculator.forgotten for speculator in speculators] == [["a"], ["a"]]


@pytest.mark.parametrize(
    ("trees", "expected"),
    [
        ([TokenTree()], ()),
        ([from_paths([(1, 2), (3,)])], (0, 1, 0)),
        ([from_paths([(1,), (1,), (3,)])], (0, 1)),  # said twice, it is one choice
        ([from_paths([(1,), (3,)], 0), from_paths([(3,), (4,)], 1)], (0, 0, 1)),
        ([TokenTree((7, 8), (-1, -1), ((Attempt(0, 1),), (Attempt(0, 0),)))], (1, 0)),
    ],
)
def test_a_choice_is_that_of_whoever_would_rather_have_it(trees, expected):
    assert choices(merge(trees)[0]) == expected
