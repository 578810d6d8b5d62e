"""Source lines: a statement with its comment, broken where it is too long."""

WIDTH = 110
INDENT = "    "


def statement(text: str, comment: str = "", indent: int = 1) -> list[str]:
    """One statement as lines of at most `WIDTH` characters.

    A long statement is broken after the commas of its outermost brackets. The comment stands behind the statement.
    """
    margin = INDENT * indent
    comment = f"  # {comment}" if comment else ""
    if len(margin + text + comment) <= WIDTH:
        return [margin + text + comment]
    lines = _broken(text, margin)
    lines[-1] += comment
    return lines


def _broken(text: str, margin: str) -> list[str]:
    start, stop = _outermost(text)
    if start < 0:
        target, equals, value = text.partition(" = ")
        if not equals:
            return [margin + text]
        text = f"{target} = ({value})"
        start, stop = len(target) + 3, len(text) - 1
    head, inside, tail = text[: start + 1], text[start + 1 : stop], text[stop:]
    parts = split_commas(inside)
    lines, line = [], ""
    for number, part in enumerate(parts):
        piece = part + ("," if number + 1 < len(parts) else "")
        if line and len(margin + INDENT + line + " " + piece) > WIDTH:
            lines.append(margin + INDENT + line)
            line = piece
        else:
            line = f"{line} {piece}" if line else piece
    lines.append(margin + INDENT + line)
    if len(parts) == 1 and inside.endswith(","):
        lines[-1] += ","  # a tuple of one
    if len(parts) > 1 and not parts[-1].startswith("*") and not inside.endswith(","):
        lines[-1] += "," if len(lines) > 1 and not _is_comprehension(inside) else ""
    return [*_first(head, margin), *lines, *_last(tail, margin)]


def _first(head: str, margin: str) -> list[str]:
    """What stands before the bracket that is broken, itself broken where it is too long."""
    if len(margin + head) <= WIDTH or _outermost(head[:-1])[0] < 0:
        return [margin + head]
    *lines, line = _broken(head[:-1], margin)
    return [*lines, line + head[-1]]


def _last(tail: str, margin: str) -> list[str]:
    """What stands behind it, likewise."""
    if len(margin + tail) <= WIDTH or _outermost(tail[1:])[0] < 0:
        return [margin + tail]
    line, *lines = _broken(tail[1:], "")
    return [margin + tail[0] + line, *(margin + line for line in lines)]


def _is_comprehension(text: str) -> bool:
    return len(split_commas(text)) == 1


def _outermost(text: str) -> tuple[int, int]:
    """The longest pair of brackets that is inside no other."""
    depth, best, start = 0, (-1, -1), -1
    for position, character, _ in _outside_strings(text):
        if character in "([{":
            if depth == 0:
                start = position
            depth += 1
        elif character in ")]}":
            depth -= 1
            is_subscript = character == "]" and start > 0 and text[start - 1] not in " ("
            if depth == 0 and not is_subscript and position - start > best[1] - best[0]:
                best = start, position
    return best


def split_commas(text: str) -> list[str]:
    """The parts between commas outside brackets and strings.

    >>> split_commas('a, f(b, c), "d, e"')
    ['a', 'f(b, c)', '"d, e"']
    """
    parts, depth, start = [], 0, 0
    for position, character, _ in _outside_strings(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    rest = text[start:].strip()
    return [*parts, rest] if rest else parts


def _outside_strings(text: str):
    inside = False
    for position, character in enumerate(text):
        if character == '"':
            inside = not inside
        elif not inside:
            yield position, character, inside
