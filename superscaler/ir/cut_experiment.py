"""The cut experiment: run an operator whole and in pieces, and put the pieces together as a rule says.

A rule tells the truth about a call if, along every letter it allows to cut and for every way to cut it, the pieces
make the whole. The experiment proves the rows of the operator table, checks the rules users declare, and finds
the rules of operators that have none (`superscaler.ir.find_rule`).

>>> import torch
>>> call = CutExperiment("aten.mm", torch.ones(2, 4), torch.ones(4, 3))
>>> call.cuttable()
['m', 'k', 'n']
>>> bool((call.in_pieces("k", (1, 3))[0] == call.results[0]).all())
True
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from superscaler.ir.graph import Operator, Ref
from superscaler.ir.interpret import call_operator, run_operator
from superscaler.ir.kinds import KINDS, Kind, bind_row, output_labels
from superscaler.ir.rules import Rule, Term

REDUCERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda stacked: stacked.sum(0, dtype=stacked.dtype),
    "max": lambda stacked: stacked.amax(0),
    "logsumexp": lambda stacked: stacked.logsumexp(0),
}
"""How pieces of a result that lacks the cut letter are combined, given stacked along dim 0."""


class CutExperiment:
    """One call of an operator on plain tensors, and its rule.

    Args:
        kind: The operator's kind.
        arguments: Its arguments, with tensors (also inside lists) where an `Operator` has a `Ref`.
        keywords: Its keyword arguments, without tensors.

    Attributes:
        operator: The call, as a graph would hold it.
        values: The tensors it reads, in order.
        results: The tensors it writes, whole.
        row: What is known, or supposed, of the operator's kind.
        rule: The rule, bound to the shapes of this call.
        sizes: Letter -> its number of elements.
    """

    def __init__(self, kind: str, *arguments: Any, **keywords: Any) -> None:
        values: list[torch.Tensor] = []
        refs = _as_refs(arguments, values)
        bare = Operator("call", kind, (), (), refs, tuple(keywords.items()))
        operator, results = _named(bare, values)
        shapes = [[tuple(value.shape) for value in side] for side in (values, results)]
        self._set(operator, values, results, KINDS[kind], *bind_row(KINDS[kind], operator, *shapes))

    @classmethod
    def under(
        cls,
        operator: Operator,
        values: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        row: Kind,
        rule: Rule,
        sizes: Mapping[str, int],
    ) -> "CutExperiment":
        """The experiment on a call that has run, under a rule that is only supposed."""
        experiment = cls.__new__(cls)
        experiment._set(operator, values, results, row, rule, sizes)
        return experiment

    def _set(
        self,
        operator: Operator,
        values: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        row: Kind,
        rule: Rule,
        sizes: Mapping[str, int],
    ) -> None:
        self.operator, self.values, self.results, self.row = operator, values, results, row
        self.rule, self.sizes = rule, sizes

    def run(self, reads: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The results for other values of what it reads."""
        return run_operator(self.operator, reads)

    def cuttable(self) -> list[str]:
        """The letters a plan may cut."""
        return [letter for letter, size in self.sizes.items() if size > 1 and letter not in self.rule.fixed]

    def in_pieces(self, letter: str, pieces: Sequence[int]) -> list[torch.Tensor]:
        """The results put together again after `letter` is cut into pieces of these sizes."""
        parts = self.pieces(letter, pieces)
        return [
            self.join(number, letter, [part[number] for part in parts], term.reducer)
            for number, term in enumerate(self.rule.writes)
        ]

    def pieces(self, letter: str, pieces: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """The results of each piece, after `letter` is cut into pieces of these sizes."""
        assert sum(pieces) == self.sizes[letter]
        return [self._piece(letter, sum(pieces[:i]), sum(pieces[: i + 1])) for i in range(len(pieces))]

    def join(self, number: int, letter: str, parts: Sequence[torch.Tensor], reducer: str) -> torch.Tensor:
        """Result `number` put together again: along the letter, or combined by `reducer` where it lacks it."""
        term = self.rule.writes[number]
        if letter not in term.letters:
            return REDUCERS[reducer](torch.stack(tuple(parts)))
        others = prod(self.sizes[name] for name in term.letters if name != letter)
        fine = [_fine(part, term, {**self.sizes, letter: part.numel() // others}) for part in parts]
        return torch.cat(fine, term.letters.index(letter)).reshape(self.results[number].shape)

    def _piece(self, letter: str, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        local = {**self.sizes, letter: stop - start}
        partial = any(letter not in term.letters for term in self.rule.writes)
        reads = []
        for value, term in zip(self.values, self.rule.reads, strict=True):
            piece = self._narrow(value, term, letter, start, stop)
            masked = term.additive and partial and start > 0
            reads.append(torch.zeros_like(piece) if masked else piece)
        results = run_operator(self._local_call(letter, start, stop), reads)
        for result, term in zip(results, self.rule.writes, strict=True):
            assert list(result.shape) == _shape(term, local), (self.operator.kind, letter)
        return results

    def _local_call(self, letter: str, start: int, stop: int) -> Operator:
        """The operator with the arguments and keywords of a piece."""
        row, local = self.row, {**self.sizes, letter: stop - start}
        keywords = dict(self.operator.keywords)
        starts = (row.starts or {}) if letter in self.rule.indexed else {}
        keywords |= {key: start for key, told in starts.items() if told == letter}
        keywords |= {key: stop - start for key, told in (row.lengths or {}).items() if told == letter}
        if row.boxed:
            keywords["starts"] = [start if dim == (letter,) else 0 for dim in self.rule.reads[0].dims]
            keywords["whole"] = list(self.values[0].shape)
        arguments = list(self.operator.arguments)
        if row.shape_argument is not None:
            arguments[row.shape_argument] = _shape(self.rule.writes[0], local)
        return replace(self.operator, arguments=tuple(arguments), keywords=tuple(keywords.items()))

    def _narrow(self, value: torch.Tensor, term: Term, letter: str, start: int, stop: int) -> torch.Tensor:
        if letter not in term.letters:
            return value
        fine = _fine(value, term, self.sizes).narrow(term.letters.index(letter), start, stop - start)
        # As a rank holds it: torch's layer_norm_backward misreads statistics that are a strided view.
        return fine.reshape(_shape(term, {**self.sizes, letter: stop - start})).contiguous()


def _named(bare: Operator, values: Sequence[torch.Tensor]) -> tuple[Operator, tuple[torch.Tensor, ...]]:
    """A call that names no tensors yet, with names for what it reads and writes; and its results."""
    results = call_operator(bare, values)
    reads = tuple(f"read{i}" for i in range(len(values)))
    labels = output_labels(bare.kind, len(results))
    writes = tuple(f"write{i}.{label}" for i, label in enumerate(labels))
    return replace(bare, reads=reads, writes=writes), results


def _as_refs(value: Any, values: list[torch.Tensor]) -> Any:
    """Nested arguments with a Ref per tensor; the tensors are appended to `values`."""
    if isinstance(value, torch.Tensor):
        values.append(value)
        return Ref(len(values) - 1)
    if isinstance(value, (tuple, list)):
        return type(value)(_as_refs(item, values) for item in value)
    return value


def _shape(term: Term, sizes: Mapping[str, int]) -> list[int]:
    return [prod(sizes[letter] for letter in dim) for dim in term.dims]


def _fine(value: torch.Tensor, term: Term, sizes: Mapping[str, int]) -> torch.Tensor:
    return value.reshape([sizes[letter] for letter in term.letters])
