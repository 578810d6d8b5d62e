"""Every word of plan strings is in the documentation, and among the plans that are measured."""

from pathlib import Path

import pytest

from benchmarks.plan_cases import CASES
from superscaler.planner.recipes import RECIPES
from superscaler.planner.recipes.table import LISTS, NUMBERS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("row", RECIPES, ids=lambda row: row.word)
def test_a_recipe_is_on_the_page_of_plans_and_is_measured(row):
    page = (ROOT / "docs" / "plans.md").read_text()
    assert f"| `{row.word}` | `{row.script.__name__}` | {row.about} | {row.source} |" in page
    assert any(row.word_said(case.options) for case in CASES if case.options)


def test_every_plan_that_is_measured_is_on_the_page():
    page = (ROOT / "docs" / "plans.md").read_text()
    for case in CASES:
        assert f"| {case.title} | {case.model} | `{case.name}` |" in page
        assert case.about in page


def test_the_readme_lists_every_word():
    text = (ROOT / "README.md").read_text()
    for key in [*(row.key for row in RECIPES), *NUMBERS, *LISTS]:
        assert f"`{key}=" in text or f"`{key}`" in text, key
