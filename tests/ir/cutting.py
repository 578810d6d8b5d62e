"""Run an operator whole and in pieces, as its rule says pieces relate to the whole."""

from dataclasses import replace
from math import prod

import torch

from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.interpret import run_operator
from superscaler.ir.kinds import KINDS, output_labels, rule_of
from superscaler.ir.tensor import Role, Tensor

REDUCERS = {
    "sum": lambda stacked: stacked.sum(0, dtype=stacked.dtype),
    "max": lambda stacked: stacked.amax(0),
    "logsumexp": lambda stacked: stacked.logsumexp(0),
}


class Call:
    """One call of an operator on tensors: the operator, its graph, what it reads and writes."""

    def __init__(self, kind, *arguments, **keywords):
        self.values = []
        refs = self._refs(arguments)
        bare = Operator("call", kind, (), (), refs, tuple(keywords.items()))
        self.results = self._run_any(bare)
        reads = tuple(f"read{i}" for i in range(len(self.values)))
        labels = output_labels(kind, len(self.results))
        writes = tuple(f"write{i}.{label}" for i, label in enumerate(labels))
        self.operator = replace(bare, reads=reads, writes=writes)
        tensors = {
            name: Tensor(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), Role.ACTIVATION)
            for name, value in zip(reads + writes, [*self.values, *self.results], strict=True)
        }
        self.graph = Graph("call", tensors, (self.operator,), (), writes)
        self.rule, self.sizes = rule_of(self.operator, self.graph)

    def _refs(self, value):
        if isinstance(value, torch.Tensor):
            self.values.append(value)
            return Ref(len(self.values) - 1)
        if isinstance(value, (tuple, list)):
            return type(value)(self._refs(item) for item in value)
        return value

    def _run_any(self, bare):
        for count in range(1, 9):
            try:
                return run_operator(replace(bare, writes=("",) * count), self.values)
            except AssertionError:
                continue
        raise AssertionError(f"{bare.kind} gives no results")

    def run(self, reads):
        """The results for other values of what it reads."""
        return run_operator(self.operator, reads)

    def cuttable(self):
        """The letters a plan may cut."""
        return [letter for letter, size in self.sizes.items() if size > 1 and letter not in self.rule.fixed]

    def in_pieces(self, letter, pieces):
        """The results put together again after `letter` is cut into pieces of these sizes."""
        assert sum(pieces) == self.sizes[letter]
        parts = [self._piece(letter, sum(pieces[:i]), sum(pieces[: i + 1])) for i in range(len(pieces))]
        return [
            self._join(term, letter, [part[i] for part in parts], whole)
            for i, (term, whole) in enumerate(zip(self.rule.writes, self.results, strict=True))
        ]

    def _piece(self, letter, start, stop):
        kind, local = KINDS[self.operator.kind], {**self.sizes, letter: stop - start}
        partial = any(letter not in term.letters for term in self.rule.writes)
        reads = []
        for value, term in zip(self.values, self.rule.reads, strict=True):
            piece = self._narrow(value, term, letter, start, stop)
            masked = term.additive and partial and start > 0
            reads.append(torch.zeros_like(piece) if masked else piece)
        keywords = dict(self.operator.keywords)
        keywords |= {key: start for key, told in (kind.starts or {}).items() if told == letter}
        keywords |= {key: stop - start for key, told in (kind.lengths or {}).items() if told == letter}
        if kind.boxed:
            keywords["starts"] = [start if dim == (letter,) else 0 for dim in self.rule.reads[0].dims]
            keywords["whole"] = list(self.values[0].shape)
        arguments = list(self.operator.arguments)
        if kind.shape_argument is not None:
            arguments[kind.shape_argument] = self._shape(self.rule.writes[0], local)
        operator = replace(self.operator, arguments=tuple(arguments), keywords=tuple(keywords.items()))
        results = run_operator(operator, reads)
        for result, term in zip(results, self.rule.writes, strict=True):
            assert list(result.shape) == self._shape(term, local), (self.operator.kind, letter)
        return results

    def _shape(self, term, sizes):
        return [prod(sizes[letter] for letter in dim) for dim in term.dims]

    def _fine(self, value, term, sizes):
        return value.reshape([sizes[letter] for letter in term.letters])

    def _narrow(self, value, term, letter, start, stop):
        if letter not in term.letters:
            return value
        fine = self._fine(value, term, self.sizes).narrow(term.letters.index(letter), start, stop - start)
        # As a rank holds it: torch's layer_norm_backward misreads statistics that are a strided view.
        return fine.reshape(self._shape(term, {**self.sizes, letter: stop - start})).contiguous()

    def _join(self, term, letter, parts, whole):
        if letter not in term.letters:
            return REDUCERS[term.reducer](torch.stack(parts))
        dim = term.letters.index(letter)
        others = prod(
            size for name, size in ((name, self.sizes[name]) for name in term.letters) if name != letter
        )
        fine = [self._fine(part, term, {**self.sizes, letter: part.numel() // others}) for part in parts]
        return torch.cat(fine, dim).reshape(whole.shape)
