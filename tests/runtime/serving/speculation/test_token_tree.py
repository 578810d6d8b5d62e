"""A token tree is the union of its paths; nothing that was proposed is lost in a merge."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.serving.speculation.token_tree import (
    Attempt,
    TokenTree,
    depths,
    expansion,
    from_paths,
    is_level_order,
    merge,
    ranks,
    visible,
)

PATHS = st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), max_size=8)


def prefixes(paths):
    """Every sequence that can be read from the root, and how many paths pass there."""
    return Counter(path[:length] for path in paths for length in range(1, len(path) + 1))


def read(tree):
    return {tree.path(node): tree.attempts[node] for node in range(len(tree))}


@given(PATHS)
def test_a_tree_of_paths_has_their_prefixes_and_an_attempt_for_each(paths):
    found = read(from_paths(paths))
    assert {path: len(attempts) for path, attempts in found.items()} == prefixes(paths)


@given(PATHS)
def test_draws_after_a_node_are_the_paths_own_in_their_order(paths):
    tree = from_paths(paths, speculator=3)
    for node in range(-1, len(tree)):
        above = tree.path(node)
        following = [p[len(above)] for p in paths if p[: len(above)] == above and len(p) > len(above)]
        assert tree.draws(node) == ({3: tuple(following)} if following else {})


@given(st.lists(PATHS, max_size=3))
def test_a_merge_is_the_union_and_keeps_every_attempt(several):
    trees = [from_paths(paths, speculator) for speculator, paths in enumerate(several)]
    merged, places = merge(trees)
    expected = {}
    for tree in trees:
        for path, attempts in read(tree).items():
            expected[path] = expected.get(path, ()) + attempts
    assert read(merged) == expected
    for tree, place in zip(trees, places, strict=True):
        assert [merged.path(node) for node in place] == [tree.path(node) for node in range(len(tree))]
        for node, new in enumerate(place):
            assert tree.draws(node).items() <= merged.draws(new).items()


@given(PATHS)
def test_rows_see_themselves_and_what_is_above(paths):
    tree = from_paths(paths)
    rows = [(), *(tree.path(node) for node in range(len(tree)))]
    expected = tuple(tuple(path[: len(other)] == other for other in rows) for path in rows)
    assert visible(tree.parents) == expected
    assert depths(tree.parents) == tuple(map(len, rows[1:]))


@given(PATHS, st.integers(0, 10))
def test_a_tree_with_too_many_nodes_keeps_the_first_paths(paths, size):
    whole, cut = from_paths(paths), from_paths(paths, size=size)
    assert len(cut) == min(size, len(whole))
    assert read(cut).keys() <= read(whole).keys()
    first = from_paths(paths[:1])
    assert read(first).keys() <= read(from_paths(paths, size=max(size, len(first)))).keys()


def test_equal_draws_are_one_node_with_two_attempts():
    tree = from_paths([(7, 1), (7, 2), (8, 1)])
    assert tree.tokens == (7, 8, 1, 2, 1)
    assert tree.parents == (-1, -1, 0, 0, 1)
    assert tree.attempts[0] == (Attempt(0, 0), Attempt(0, 1))
    assert tree.draws(-1) == {0: (7, 7, 8)}


def test_expansion_of_the_paper():
    assert expansion(2, 2, 1) == (-1, -1, 0, 0, 1, 1, 2, 3, 4, 5)
    assert len(expansion(1, 1, 3, 1, 1, 1, 1, 1)) == 20
    assert expansion() == ()


@given(st.lists(st.integers(1, 3), max_size=4))
def test_expansions_are_in_level_order_and_ranks_count_siblings(widths):
    parents = expansion(*widths)
    assert is_level_order(parents)
    assert all(rank < widths[depth - 1] for rank, depth in zip(ranks(parents), depths(parents), strict=True))
    assert len({*zip(parents, ranks(parents), strict=True)}) == len(parents)


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ((1, 2), (-1, 1), "level by level"),
        ((1, 2, 3), (-1, 0, -1), "level by level"),
        ((1, 1), (-1, -1), "equal siblings"),
        ((1,), (-1, -1), "each"),
    ],
)
def test_what_is_no_tree_is_refused(tokens, parents, message):
    with pytest.raises(AssertionError, match=message):
        TokenTree(tokens, parents, ((Attempt(0, 0),),) * len(tokens))


def test_trees_of_one_speculator_do_not_merge():
    with pytest.raises(AssertionError, match="different speculators"):
        merge([from_paths([(1,)]), from_paths([(2,)])])
