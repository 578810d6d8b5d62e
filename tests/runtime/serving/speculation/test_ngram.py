"""The index finds what a search of the whole text finds; proposals read the text on from there."""

from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.serving.speculation.ngram import NgramIndex, NgramSpeculator
from superscaler.runtime.serving.speculation.step import Wish
from superscaler.runtime.serving.speculation.token_tree import depths, expansion
from tests.runtime.serving.sampling_rows import row

TEXTS = st.lists(st.integers(0, 3), max_size=40)


def searched(text, shortest, longest):
    """Every place, by comparing it with the end of the text."""
    found = []
    for length in range(longest, shortest - 1, -1):
        for place in range(len(text) - 1, length - 1, -1):
            if text[place - length : place] == text[len(text) - length :] and place not in found:
                found.append(place)
    return found


def indexed(text, shortest, longest):
    index = NgramIndex(shortest, longest)
    for token in text:
        index.append(token)
    return index


@given(TEXTS, st.integers(1, 3), st.integers(0, 3), st.integers(1, 5))
def test_matches_are_those_of_a_search(text, shortest, more, count):
    found = indexed(text, shortest, shortest + more).matches(count)
    assert found == searched(text, shortest, shortest + more)[:count]


@given(TEXTS.filter(bool), st.data())
def test_a_continuation_that_reaches_the_end_starts_over(text, data):
    place = data.draw(st.integers(0, len(text) - 1))
    index = indexed(text, 1, 2)
    loop = text[place:]
    assert index.continuation(place, 50) == [loop[number % len(loop)] for number in range(50)]


@given(TEXTS)
def test_a_token_costs_a_bounded_number_of_entries(text):
    index = indexed(text, 2, 4)
    assert sum(map(len, index._followers.values())) <= 3 * len(text)


def proposed(speculator, prompt, output=(), shape=None, sequence=0):
    shape = expansion(1, 1, 1) if shape is None else shape
    return speculator.propose([Wish(sequence, row(prompt=prompt, output=output), shape)])[0].tree


def test_text_that_repeats_is_continued():
    assert proposed(NgramSpeculator(), [5, 6, 7, 8, 9, 5, 6]).tokens == (7, 8, 9)
    assert proposed(NgramSpeculator(), [1, 2, 1, 2]).tokens == (1, 2, 1)


def test_new_text_and_no_wish_give_nothing():
    assert len(proposed(NgramSpeculator(), [1, 2, 3, 4])) == 0
    assert len(proposed(NgramSpeculator(), [])) == 0
    assert len(proposed(NgramSpeculator(), [1, 2, 1, 2], shape=())) == 0


def test_several_matches_make_a_tree_latest_first():
    tree = proposed(
        NgramSpeculator(), [1, 2, 3, 4, 0, 1, 2, 5, 6, 0, 1, 2, 3, 7, 0, 1, 2], shape=expansion(3, 2)
    )
    assert tree.path(0) == (3,)  # preceded by 0 1 2, which is longer than 1 2, and the latest such
    assert {tree.path(node) for node in range(len(tree))} == {(3,), (3, 7), (5,), (5, 6), (3, 4)}


@given(TEXTS, st.lists(st.integers(1, 3), max_size=4))
def test_a_proposal_is_not_larger_than_wished(text, widths):
    shape = expansion(*widths)
    tree = proposed(NgramSpeculator(shortest=1), text, shape=shape)
    assert len(tree) <= len(shape)
    assert max(depths(tree.parents), default=0) <= len(widths)


@given(TEXTS, TEXTS, st.integers(0, 40))
def test_growing_text_is_indexed_as_if_it_came_at_once(prompt, output, seen):
    shape, grown = expansion(2, 1, 1), NgramSpeculator()
    proposed(grown, prompt, output[:seen], shape)
    assert proposed(grown, prompt, output, shape) == proposed(NgramSpeculator(), prompt, output, shape)


def test_sequences_are_apart_and_can_be_forgotten():
    speculator = NgramSpeculator()
    proposed(speculator, [1, 2, 3, 1, 2], sequence="a")
    assert proposed(speculator, [1, 2, 4, 1, 2], sequence="b").tokens[0] == 4
    speculator.forget("a")
    speculator.forget("a")
    assert proposed(speculator, [1, 2, 5, 1, 2], sequence="a").tokens[0] == 5
