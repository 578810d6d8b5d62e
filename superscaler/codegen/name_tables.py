"""Name tables: constants at the top of a generated file that list names of parameters, written shortly."""

import re
from collections.abc import Sequence

from superscaler.codegen.source_lines import statement

_FEW = 4
"""Names written in place rather than as a constant."""


class NameTables:
    """The tables of one file."""

    def __init__(self) -> None:
        self._tables: dict[str, tuple[str, ...]] = {}
        self._lines: dict[str, list[str]] = {}

    def iterable(self, keys: Sequence[str], suggestion: str) -> str:
        """An expression for these names, in this order: a constant, a constant and a few more, or a tuple."""
        keys = tuple(keys)
        for name, table in self._tables.items():
            if table == keys:
                return name
        if len(keys) <= _FEW:
            return f"({', '.join(map(_quoted, keys))}{',' if len(keys) == 1 else ''})"
        for name, table in self._tables.items():
            if keys[: len(table)] == table and len(keys) - len(table) <= _FEW:
                return f"(*{name}, {', '.join(map(_quoted, keys[len(table) :]))})"
        self.define(suggestion, keys)
        return self.iterable(keys, suggestion)

    def groups(self, groups: Sequence[Sequence[str]], suggestion: str) -> str:
        """The name of a constant with a tuple of names per group; groups alike but for a number share a line."""
        parts: list[str] = []
        position = 0
        while position < len(groups):
            stem, first, suffixes = _numbered(groups[position])
            numbers = [first]
            while suffixes and _numbered(_at(groups, position + len(numbers))) in (
                (stem, numbers[-1] + step, suffixes)
                for step in ({numbers[1] - first} if len(numbers) > 1 else {1, -1})
            ):
                numbers.append(_numbered(groups[position + len(numbers)])[1])
            if len(numbers) > 1:
                names = self.iterable(suffixes, "LAYER_PARAMETERS")
                low, high = min(numbers), max(numbers) + 1
                span = f"range({low}, {high})" if low else f"range({high})"
                span = span if numbers[0] == low else f"reversed({span})"
                parts.append(
                    f'*(tuple(f"{stem}.{{layer}}.{{name}}" for name in {names}) for layer in {span})'
                )
            else:
                names = ", ".join(map(_quoted, groups[position]))
                parts.append(f"({names}{',' if len(groups[position]) == 1 else ''})")
            position += len(numbers)
        name = self._unused(suggestion)
        lines = statement(f"{name} = ({', '.join(parts)}{',' if len(parts) == 1 else ''})", indent=0)
        self._tables[name], self._lines[name] = (), lines
        return name

    def _unused(self, suggestion: str) -> str:
        name, number = suggestion, 1
        while name in self._tables:
            number += 1
            name = f"{suggestion}_{number}"
        return name

    def define(self, suggestion: str, keys: Sequence[str]) -> None:
        """Add a constant, as the difference from another where that is short."""
        name, keys = self._unused(suggestion), tuple(keys)
        for other, table in self._tables.items():
            missing = [key for key in table if key not in set(keys)]
            extra = keys[len(table) - len(missing) :]
            if (
                len(missing) <= _FEW
                and len(extra) <= _FEW
                and keys == (*(k for k in table if k in set(keys)), *extra)
            ):
                condition = (
                    f'name != "{missing[0]}"'
                    if len(missing) == 1
                    else f"name not in ({', '.join(map(_quoted, missing))})"
                )
                inside = f"name for name in {other} if {condition}"
                text = (
                    f"({', '.join([f'*({inside})', *map(_quoted, extra)])})" if extra else f"tuple({inside})"
                )
                self._lines[name] = statement(f"{name} = {text}", indent=0)
                break
        else:
            self._lines[name] = self._literal(name, keys)
        self._tables[name] = keys

    @property
    def lines(self) -> list[str]:
        """The constants' source."""
        return [line for lines in self._lines.values() for line in lines]

    def _literal(self, name: str, keys: tuple[str, ...]) -> list[str]:
        """Runs of names that repeat under a number become a generator over a tuple of suffixes."""
        parts: list[str] = []
        before: list[str] = []
        position = 0
        while position < len(keys):
            count, stem, first, suffixes = _repeat(keys, position)
            if count < 2:
                parts.append(_quoted(keys[position]))
                position += 1
                continue
            known = next((table for table, names in self._tables.items() if names == tuple(suffixes)), "")
            block = f"{name}_PER_LAYER" if not before else f"{name}_PER_LAYER_{len(before) + 1}"
            block = block.replace("PARAMETERS_PER_LAYER", "LAYER_PARAMETERS")
            if known:
                block = known
            else:
                before += statement(f"{block} = ({', '.join(map(_quoted, suffixes))})", indent=0)
            span = f"range({first}, {first + count})" if first else f"range({count})"
            parts.append(f'*(f"{stem}.{{layer}}.{{name}}" for layer in {span} for name in {block})')
            position += count * len(suffixes)
        text = ", ".join(parts) + ("," if len(parts) == 1 else "")
        return [*before, *statement(f"{name} = ({text})", indent=0)]


def _at(groups: Sequence[Sequence[str]], position: int) -> Sequence[str]:
    return groups[position] if position < len(groups) else ()


def _numbered(names: Sequence[str]) -> tuple[str, int, tuple[str, ...]]:
    """What names that lie in one numbered module have in common, its number, and what follows in each."""
    matches = [re.match(r"(.*?)\.(\d+)\.(.+)$", name) for name in names]
    found = {(match[1], int(match[2])) if match else None for match in matches}
    if len(found) != 1 or None in found:
        return "", -1, ()
    ((stem, number),) = found  # type: ignore[misc]
    return stem, number, tuple(match[3] for match in matches if match)


def _quoted(text: str) -> str:
    return f'"{text}"'


def _repeat(keys: Sequence[str], position: int) -> tuple[int, str, int, list[str]]:
    """How often the names from `position` on repeat under numbers that go up by one: count, stem, first, suffixes."""
    match = re.match(r"(.*?)\.(\d+)\.(.+)$", keys[position])
    if match is None:
        return 0, "", 0, []
    stem, first = match[1], int(match[2])
    suffixes = []
    for key in keys[position:]:
        if not key.startswith(f"{stem}.{first}."):
            break
        suffixes.append(key.removeprefix(f"{stem}.{first}."))
    count = 1
    while True:
        start = position + count * len(suffixes)
        wanted = [f"{stem}.{first + count}.{suffix}" for suffix in suffixes]
        if list(keys[start : start + len(suffixes)]) != wanted:
            return count, stem, first, suffixes
        count += 1
