"""Layers: the numbered modules of a model in order of use, and runs of them with nearly equal work."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from superscaler.ir.axes import Axes
from superscaler.ir.graph import Graph, Phase
from superscaler.planner.arithmetic import arithmetic

NEARLY_ALL = 0.9
"""Which part of a module's work its numbered modules do, if it is but a list of them."""


def layers(graph: Graph, axes: Axes, count: int) -> dict[str, float]:
    """The modules to make `count` stages of, in order of use, and the work of each.

    They are the outermost numbered modules, of all lists there are: an encoder's layers, then a decoder's.
    One that does more than half of a stage's share is opened if it is but a list of numbered modules in turn,
    which do nearly all its work: the four stages of a Swin Transformer become their blocks, while a block with
    a numbered perceptron beside its attention stays whole.
    """
    work = module_work(graph, axes)
    found = _numbered(work, "")
    share = sum(found.values()) / count
    pending = list(found.items())[::-1]
    chosen: dict[str, float] = {}
    while pending:
        module, amount = pending.pop()
        inside = _numbered(work, f"{module}.") if amount > share / 2 else {}
        if sum(inside.values()) >= NEARLY_ALL * amount:
            pending += list(inside.items())[::-1]
        else:
            chosen[module] = amount
    return chosen


def module_work(graph: Graph, axes: Axes) -> dict[str, float]:
    """The arithmetic of one forward pass by module path, modules in order of use."""
    work: dict[str, float] = {}
    for operator in graph.operators:
        if operator.phase is Phase.FORWARD:
            work[operator.module] = work.get(operator.module, 0.0) + arithmetic(axes, operator)
    return work


def even_runs(work: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Cut a sequence into `count` runs, none empty, whose sums have the least squares; (start, stop) of each.

    >>> even_runs([1, 1, 1, 1, 4], 2)
    [(0, 4), (4, 5)]
    """
    before = [0.0, *accumulate(work)]
    # per end, the least squares of the runs so far, and where the last of them starts
    best = [[(total**2, 0) for total in before]]
    for number in range(1, count):
        row = [(float("inf"), 0)] * (number + 1)
        for stop in range(number + 1, len(before)):
            row.append(
                min(
                    (best[-1][start][0] + (before[stop] - before[start]) ** 2, start)
                    for start in range(number, stop)
                )
            )
        best.append(row)
    runs: list[tuple[int, int]] = []
    stop = len(work)
    for row in reversed(best):
        start = row[stop][1]
        runs.append((start, stop))
        stop = start
    return runs[::-1]


def outermost_layer(module: str) -> str:
    """The outermost numbered module that a module lies in, or is; empty: none."""
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def _numbered(work: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The outermost numbered modules below a prefix, with all that lies in them."""
    found: dict[str, float] = {}
    for path, amount in work.items():
        if not path.startswith(prefix):
            continue
        parts = path.split(".")
        for end in range(prefix.count(".") + 1, len(parts) + 1):
            if parts[end - 1].isdecimal():
                module = ".".join(parts[:end])
                found[module] = found.get(module, 0.0) + amount
                break
    return found
