"""Tables and lists of facts, as HTML in the page's style."""

from collections.abc import Container, Iterable, Sequence
from html import escape


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    name: str = "",
    numbers: Container[int] = (),
    *,
    caption: str = "",
    heading: int = -1,
) -> str:
    """A table; columns of numbers are aligned at the right.

    Args:
        titles: Of the columns, as text.
        rows: Their cells, which are HTML already.
        name: Class of the table.
        numbers: The columns that hold numbers.
        caption: What the table shows, as text.
        heading: The column that says what its row is about, if there is one.
    """
    classes = [' class="number"' if column in numbers else "" for column in range(len(titles))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(title)}</th>' for kind, title in zip(classes, titles, strict=True)
    )

    def cell(column: int, html: str) -> str:
        return f'<th scope="row">{html}</th>' if column == heading else f"<td{classes[column]}>{html}</td>"

    body = "".join(f"<tr>{''.join(map(cell, range(len(titles)), row))}</tr>\n" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    text = f'<table class="{name}">{above}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="wide">{text}</div>'


def facts(found: Iterable[Sequence[str]]) -> str:
    """Words and what is known of them, both as text."""
    entries = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(text)}</dd></div>" for what, text in found)
    return f'<dl class="facts">{entries}</dl>\n'
