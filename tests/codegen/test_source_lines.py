"""Statements keep their meaning where they are broken."""

import ast

import pytest

from superscaler.codegen.source_lines import statement

LONG = ", ".join(f"name_{number}" for number in range(30))


@pytest.mark.parametrize(
    "text",
    [
        f'x = (*(f"{{a}}.{{b}}" for b in [{LONG}]),)',
        f"x = ([{LONG}],)",
        f"x = ({LONG})",
        f"x = f({LONG})[0]",
        f"x = sum(i for i in ({LONG}))",
        f"({LONG}) = saved",
    ],
)
def test_a_broken_statement_is_the_same_statement(text):
    lines = statement(text, indent=0)
    assert len(lines) > 1
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(text))
