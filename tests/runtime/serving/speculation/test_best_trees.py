"""Best-first expansion finds the trees that dynamic programming over all trees does."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.serving.speculation.best_trees import best_trees
from superscaler.runtime.serving.speculation.token_tree import ROOT, depths, expansion, is_level_order, ranks

CHANCES = st.lists(st.floats(0.01, 0.95), min_size=1, max_size=4).map(
    lambda found: sorted(found, reverse=True)
)


def sequoia(chances, levels, size):
    """Most tokens expected of a tree of `size` nodes besides the root, by the recurrence of arXiv 2402.12374."""

    @cache
    def best(nodes, below, children):
        """Of a root with exactly so many children and `nodes` nodes, itself included."""
        if children == 0:
            return 1.0 if nodes == 1 else float("-inf")
        if below == 0:
            return float("-inf")
        chance = chances[children - 1]
        return max(
            (
                best(nodes - last, below, children - 1) + chance * any_children(last, below - 1)
                for last in range(1, nodes)
            ),
            default=float("-inf"),
        )

    @cache
    def any_children(nodes, below):
        return max(best(nodes, below, children) for children in range(len(chances) + 1))

    return any_children(size + 1, levels)


def expected_tokens(parents, chances):
    reached = {ROOT: 1.0}
    for node, (parent, rank) in enumerate(zip(parents, ranks(parents), strict=True)):
        reached[node] = reached[parent] * chances[rank]
    return sum(reached.values())


@given(CHANCES, st.integers(1, 4), st.integers(1, 12))
def test_every_size_is_as_good_as_dynamic_programming(chances, levels, size):
    trees = best_trees(chances, levels, size)
    for number, expected in enumerate(trees.expected, 1):
        assert expected == pytest.approx(sequoia(tuple(chances), levels, number))


@given(CHANCES, st.integers(1, 4), st.integers(1, 12))
def test_shapes_are_trees_of_what_is_said_of_them(chances, levels, size):
    trees = best_trees(chances, levels, size)
    for number in range(1, len(trees.nodes) + 1):
        parents = trees.shape(number)
        assert len(parents) == number
        assert is_level_order(parents)
        assert max(depths(parents)) == trees.levels[number - 1] <= levels
        assert expected_tokens(parents, chances) == pytest.approx(trees.expected[number - 1])


def test_where_there_is_no_room_there_are_fewer_nodes():
    assert len(best_trees((0.5, 0.2), 2, 100).nodes) == len(expansion(2, 2))
    assert best_trees((0.5,), 3, 100).shape(3) == expansion(1, 1, 1)


def test_a_sure_first_child_makes_a_chain_and_a_doubtful_one_a_bush():
    assert best_trees((0.95, 0.03, 0.01), 4, 4).shape(4) == expansion(1, 1, 1, 1)
    assert best_trees((0.35, 0.34, 0.3), 4, 3).shape(3) == expansion(3)
