"""Sequences: the dim of positions, followed from the inputs through the graph, and cut operator by operator.

Where positions meet positions, as queries meet keys, one of two dims can be cut: that which the operator's reads are
cut along already. What depends on no parameter (positions, masks, targets) is computed in the pieces its readers want.
"""

from collections.abc import Mapping

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.rules import Term
from superscaler.ir.tensor import Role
from superscaler.planner.placement import letters_to_choose, passes_summands
from superscaler.planner.planner import Planner
from superscaler.planner.selection import Selection

Letter = tuple[str, Axis]
"""A letter of an operator's rule, and which of its axes is meant."""
Choice = dict[str, Letter]
"""Operator -> where it is cut."""

MOVERS = ("reshape", "repeat", "aten.expand", "aten.t", "aten.transpose.int", "aten.permute")
"""Kinds that only move elements, or repeat them."""


def sequence_axes(p: Planner, word: str) -> tuple[Axis, ...]:
    """The axes of the second dim of every input.

    Raises:
        PlanError: No input has a second dim; `word` is what to drop from the plan.
    """
    found = tuple(dict.fromkeys(axis for name in p.graph.inputs for axis in p.axes.fine(name)[1:2]))
    if not found:
        raise PlanError(
            f"the model {p.graph.name!r} has no sequence to cut: no input has a second dim",
            where=p.speaker,
            remedy=f"drop {word}",
        )
    return found


def learned(graph: Graph) -> frozenset[str]:
    """The operators that depend on a parameter."""
    depends = {tensor.name for tensor in graph.of_role(Role.PARAMETER)}
    found = set()
    for operator in graph.operators:
        if not depends.isdisjoint(operator.reads):
            found.add(operator.name)
            depends.update(operator.writes)
    return frozenset(found)


def follow(p: Planner, sequence: tuple[Axis, ...]) -> Choice:
    """Where each operator is cut so that the sequence is cut everywhere: its reads' dim, if the rule allows it."""
    depending = learned(p.graph)
    lies = {name: 1 for name in p.graph.inputs if len(p.axes.fine(name)) > 1}
    summands: set[str] = set()
    choice: Choice = {}
    for operator in p.graph.operators:
        if operator.phase is Phase.UPDATE or operator.name not in depending:
            continue
        if summands.issuperset(operator.reads) and passes_summands(operator, p.graph):
            summands.update(operator.writes)  # summed later, once, when they may be fewer
            continue
        letter = _best(p.axes, operator, sequence, lies)
        if letter is not None:
            choice[operator.name] = letter
            places = _places(p.axes, operator, letter)
            lies |= {name: place for name, place in places.items() if place >= 0}
            summands.update(name for name in operator.writes if places[name] < 0)
    return _joined_while_few(p.graph, p.axes, choice)


def as_read(p: Planner, choice: Choice, sequence: tuple[Axis, ...]) -> Choice:
    """`choice`, and with it what depends on no parameter, cut where all its readers are."""
    depending, result = learned(p.graph), dict(choice)
    for operator in reversed(p.graph.operators):
        if operator.phase is Phase.UPDATE or operator.name in depending:
            continue
        for letter in _letters(p.axes, operator, sequence):
            places = _places(p.axes, operator, letter)
            if all(_is_read_at(p.graph, p.axes, result, name, places[name]) for name in operator.writes):
                result[operator.name] = letter
                break
    return result


def cut(p: Planner, choice: Choice, over: str) -> None:
    """Say so to the planner."""
    plain: dict[Axis, list[Operator]] = {}
    for operator in p.graph.operators:
        if operator.name not in choice:
            continue
        letter, axis = choice[operator.name]
        if axis not in p.axes.shared[operator.name]:
            plain.setdefault(axis, []).append(operator)
        elif p.axes.letters[operator.name][letter][0] == axis:
            p.trans(operator, over, letter=letter)
    for axis, operators in plain.items():
        p.trans(axis, over, within=Selection(p.graph, p.axes, tuple(operators), str(axis)))


def _joined_while_few(graph: Graph, axes: Axes, choice: Choice) -> Choice:
    """`choice` without what only repeats elements for readers that want all: they are joined before, while few."""
    could: set[str] = set()
    for operator in reversed(graph.operators):
        readers = [reader for name in operator.writes for reader in graph.readers[name]]
        if operator.kind not in MOVERS or operator.name not in choice or not readers:
            continue
        if all(reader.name in could or _wants_all(axes, choice, reader, operator) for reader in readers):
            could.add(operator.name)
    large: set[str] = set()
    for operator in graph.operators:
        writers = {graph.writer[name].name for name in operator.reads if name in graph.writer}
        stretches = _elements(graph, operator.writes) > _elements(graph, operator.reads)
        if operator.name in could and (stretches or writers & large):
            large.add(operator.name)
    return {name: letter for name, letter in choice.items() if name not in large}


def _wants_all(axes: Axes, choice: Choice, reader: Operator, writer: Operator) -> bool:
    places = _places(axes, reader, choice[reader.name]) if reader.name in choice else {}
    return all(places.get(name, -1) < 0 for name in writer.writes if name in reader.reads)


def _elements(graph: Graph, names: tuple[str, ...]) -> int:
    return sum(int(graph.tensors[name].num_elements) for name in names)


def _best(
    axes: Axes, operator: Operator, sequence: tuple[Axis, ...], lies: Mapping[str, int]
) -> Letter | None:
    """The letter most reads are cut along already; of equals one that stays cut in the result, the first."""
    written = axes.rules[operator.name].writes[0].letters

    def rank(letter: Letter) -> tuple[int, bool]:
        places = _places(axes, operator, letter)
        met = sum(place >= 0 and lies.get(name) == place for name, place in places.items())
        return met, letter[0] in written

    return max(_letters(axes, operator, sequence), key=rank, default=None)


def _letters(axes: Axes, operator: Operator, sequence: tuple[Axis, ...]) -> list[Letter]:
    found = [(letter, axis) for axis in sequence for letter in letters_to_choose(axes, operator, axis)]
    written = axes.rules[operator.name].writes[0].letters if operator.writes else ()
    return sorted(found, key=lambda one: written.index(one[0]) if one[0] in written else len(written))


def _places(axes: Axes, operator: Operator, letter: Letter) -> dict[str, int]:
    """Per tensor the fine dim a letter cuts; -1 where it cuts none."""
    rule = axes.rules[operator.name]
    names = operator.reads + operator.writes
    terms: tuple[Term, ...] = rule.reads + rule.writes
    places = {}
    for name, term in zip(names, terms, strict=True):
        slots = axes.slots(operator.name, term)
        places[name] = slots.index(letter) if letter in slots else -1
    return places


def _is_read_at(graph: Graph, axes: Axes, choice: Choice, name: str, place: int) -> bool:
    """Whether all readers of a tensor are cut, and along one of its dims."""
    return place >= 0 and all(
        reader.name in choice and _places(axes, reader, choice[reader.name])[name] == place
        for reader in graph.readers[name]
    )
