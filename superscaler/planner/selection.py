"""Selection: some operators of the graph, by module path and phase; what a plan script names things with."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis
from superscaler.ir.graph import PIECE, Graph, Operator, Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.layers import even_runs, layers, module_work


@dataclass(frozen=True)
class AxisSelection:
    """Some axes of the graph, as a plan script asked for them."""

    axes: tuple[Axis, ...]
    description: str

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)


@dataclass(frozen=True)
class Selection:
    """Some operators, in graph order."""

    graph: Graph
    all_axes: Axes
    operators: tuple[Operator, ...]
    description: str

    def __iter__(self) -> Iterator[Operator]:
        return iter(self.operators)

    def __len__(self) -> int:
        return len(self.operators)

    def only(self, phase: str | Phase) -> "Selection":
        """The operators of one phase: ``"F"``, ``"B"`` or ``"U"``.

        Raises:
            PlanError: There is no such phase, or no operator of it here.
        """
        chosen = tuple(operator for operator in self.operators if operator.phase == phase)
        if not chosen:
            phases = dict.fromkeys(operator.phase for operator in self.operators)
            raise PlanError(
                f"{self.description} has no operator of phase {str(phase)!r}",
                where=user_line(),
                remedy=f"its phases are {', '.join(phases)}",
            )
        return Selection(self.graph, self.all_axes, chosen, f"{self.description} phase {phase}")

    def axis(self, name: str) -> AxisSelection:
        """The axes of these operators called `name`.

        Looked for first among the names of axes (``heads``, ``vocab``, ``batch``, ``h.0.mlp.up.out``), then
        among the letters of the operators' rules (``n``: the columns of a linear), then as the last part of a
        name (``out``).

        Raises:
            PlanError: No operator here has such an axis.
        """
        mine = self._named_axes()
        found = (
            [axis for axis in mine if axis.name == name]
            or self._by_letter(name)
            or [axis for axis in mine if axis.name.rpartition(".")[2] == name]
        )
        if not found:
            known = sorted({axis.name for axis in mine})
            raise PlanError(
                f"{self.description} has no axis {name!r}",
                where=user_line(),
                remedy=f"its axes are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}",
            )
        return AxisSelection(tuple(dict.fromkeys(found)), f"{self.description} axis {name!r}")

    def _named_axes(self) -> list[Axis]:
        letters = self.all_axes.letters
        return list(
            dict.fromkeys(
                axis
                for operator in self.operators
                for parts in letters[operator.name].values()
                for axis in parts
            )
        )

    def _by_letter(self, name: str) -> list[Axis]:
        letters = self.all_axes.letters
        return [
            letters[operator.name][name][0] for operator in self.operators if letters[operator.name].get(name)
        ]


def select(graph: Graph, axes: Axes, pattern: str, phase: str | None = None, said_by: str = "") -> Selection:
    """Operators whose module path, or own name, matches a glob; ``h.3`` also takes what lies below it.

    `said_by` is who asks: a line of a script, or a word of a plan string.

    Raises:
        PlanError: Nothing matches.
    """
    matching = tuple(operator for operator in graph.operators if _matches(operator, pattern))
    chosen = tuple(operator for operator in matching if phase is None or operator.phase == phase)
    if not chosen:
        modules = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", operator.module) for operator in graph.operators})
        phases = ", ".join(dict.fromkeys(operator.phase for operator in matching))
        raise PlanError(
            f"no operator matches {pattern!r}" + (f" in phase {phase!r}" if matching else ""),
            where=said_by,
            remedy=f"those that match are of the phases {phases}"
            if matching
            else f"module paths are {', '.join(filter(None, modules[:16]))}",
        )
    return Selection(graph, axes, chosen, f"selection {pattern!r}")


def _matches(operator: Operator, pattern: str) -> bool:
    path, name = operator.module, re.sub(rf"{PIECE}\d+(?=/|$)", "", operator.name)
    return fnmatchcase(name, pattern) or fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def split(graph: Graph, axes: Axes, pattern: str, count: int, said_by: str = "") -> tuple[Selection, ...]:
    """The modules matching `pattern`, in order of use, as `count` runs of nearly equal work.

    Raises:
        PlanError: Nothing matches, or there are fewer modules than parts.
    """
    depth = pattern.count(".") + 1
    select(graph, axes, pattern, said_by=said_by)
    work: dict[str, float] = {}
    for path, amount in module_work(graph, axes).items():
        name = ".".join(path.split(".")[:depth])
        if name and fnmatchcase(name, pattern):
            work[name] = work.get(name, 0.0) + amount
    return _runs(graph, axes, work, count, f"modules that match {pattern!r}", said_by)


def split_layers(
    graph: Graph, axes: Axes, count: int, counts: Sequence[int] = (), said_by: str = ""
) -> tuple[Selection, ...]:
    """All layers of a model, in order of use, as `count` runs of nearly equal work, or of so many layers each.

    Raises:
        PlanError: The model has no numbered modules, fewer than parts, or not as many as are counted.
    """
    if counts:
        return _counted_runs(graph, axes, count, counts, said_by)
    work = layers(graph, axes, count) if count > 0 else {}
    if count > 0 and not work:
        raise PlanError(
            f"the model {graph.name!r} has no numbered modules (a ModuleList) to make stages of",
            where=said_by,
            remedy="write a plan script that assigns modules to devices with p.assign",
        )
    return _runs(graph, axes, work, count, f"layers of {graph.name!r}", said_by)


def _counted_runs(
    graph: Graph, axes: Axes, count: int, counts: Sequence[int], said_by: str
) -> tuple[Selection, ...]:
    names = list(layers(graph, axes, len(graph.operators)))
    if len(counts) != count or sum(counts) != len(names):
        raise PlanError(
            f"{'+'.join(map(str, counts))} layers for the {count} stages of {graph.name!r}, which has {len(names)}",
            where=said_by,
            remedy=f"give {count} numbers whose sum is {len(names)}",
        )
    stops = list(accumulate(counts))
    return tuple(
        _union(graph, axes, names[stop - own : stop]) for stop, own in zip(stops, counts, strict=True)
    )


def _runs(
    graph: Graph, axes: Axes, work: Mapping[str, float], count: int, what: str, said_by: str
) -> tuple[Selection, ...]:
    if not 1 <= count <= len(work):
        raise PlanError(
            f"the {len(work)} {what} cannot make {count} parts",
            where=said_by,
            remedy=f"ask for 1 to {len(work)} parts",
        )
    names = list(work)
    runs = even_runs(list(work.values()), count)
    return tuple(_union(graph, axes, names[start:stop]) for start, stop in runs)


def _union(graph: Graph, axes: Axes, modules: Iterable[str]) -> Selection:
    wanted = tuple(modules)
    prefixes = tuple(f"{name}." for name in wanted)
    chosen = tuple(
        operator
        for operator in graph.operators
        if operator.module in wanted or operator.module.startswith(prefixes)
    )
    return Selection(graph, axes, chosen, f"modules {wanted[0]} … {wanted[-1]}")
