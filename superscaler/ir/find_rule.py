"""Find the rule of an operator by experiment.

The operator runs on random values. Slices of what it reads are changed one by one: a letter may run through a dim
read and a dim written only where a change at one place stays at that place (`superscaler.ir.influence`). What
could be a letter is cut (`superscaler.ir.cut_experiment`), and is one if the pieces make the whole: evenly and
unevenly cut, for several draws of values. Dims read that no result has may be contracted: pieces are then added,
or combined by their largest or by log-sum-exp. All that stands no test is whole.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, cycle, islice, product

import torch

from superscaler.ir.cut_experiment import REDUCERS, CutExperiment
from superscaler.ir.influence import Influence, divisors, do_not_interact, observe, places
from superscaler.ir.isolated import Steps, isolated
from superscaler.ir.kinds import Kind
from superscaler.ir.letters import Letter, Place, RuleText, make_rule, rule_text
from superscaler.ir.rules import Rule, RuleMismatch, bind
from superscaler.ir.sample_call import CallShape, NotRunnable, SampleCall, Sampler, sample_calls

_MOST_SUPPOSITIONS = 400
"""Letters tried per operator."""
_MOST_COMBINATIONS = 24
"""Letters tried per place they start from."""
_DRAWS = 6
"""Draws of values a letter is tested with."""
_LARGEST_CONFIRMED = 1 << 18
"""Elements up to which a rule found at other sizes is tried at those of the call."""
_SLOW = 0.005
"""Seconds a call may take before fewer slices are looked at."""


@dataclass(frozen=True, slots=True)
class FoundRule:
    """A rule, and how many cuts were made to find it."""

    rule: RuleText
    cuttable: int
    """How many letters may be cut."""
    experiments: int

    def line(self) -> str:
        """What a user pastes to declare the rule."""
        told = "" if self.rule.shape_argument is None else f", shape_argument={self.rule.shape_argument}"
        return f'@ss.rule("{self.rule.text}"{told})'

    def row(self, kind: str) -> str:
        """What a row of the operator table says."""
        told = "" if self.rule.shape_argument is None else f", shape_argument={self.rule.shape_argument}"
        return f'"{kind}": Kind("{self.rule.text}", "torch.ops.{kind}"{told}),'


def find_rule(call: CallShape) -> FoundRule:
    """The rule of one call: the cuts that are right for it, all else whole.

    Raises:
        Crashed: Running the operator ends the process.
        NotRunnable: The operator cannot be run on this machine.
        NotRepeatable: It gives other results for the same values.
    """
    return isolated(lambda steps: _find(call, steps))


def _find(call: CallShape, steps: Steps) -> FoundRule:
    if 0 in {size for shape in call.reads + call.writes for size in shape}:
        raise NotRunnable("a tensor without elements shows nothing")
    best: FoundRule | None = None
    experiments = 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for sampler in sample_calls(call):
            for argument in _shape_arguments(sampler.call):
                search = _Search(sampler, argument, steps)
                text = search.rule_for(call)
                experiments += search.experiments
                better = best is None or len(search.letters) > best.cuttable
                if text is not None and better and _is_confirmed(call, text, search, steps):
                    best = FoundRule(text, len(search.letters), experiments)
            if best is not None and best.cuttable:
                break
    if best is None:
        raise NotRunnable(
            "it computes something else at other sizes, and is too large to be tried at its own"
        )
    return replace(best, experiments=experiments)


def _is_confirmed(call: CallShape, text: RuleText, search: "_Search", steps: Steps) -> bool:
    """Whether a rule found at other sizes holds at those of the call, where they are not too large to try."""
    if search.sampler.call is call or call.num_elements > _LARGEST_CONFIRMED:
        return True
    own = _Search(replace(search.sampler, call=call), text.shape_argument, steps, draws=1)
    rule, sizes = bind(text.text, call.reads, call.writes)
    letters = [letter for letter, size in sizes.items() if size > 1 and letter not in rule.fixed]
    return all(own.holds(rule, sizes, letter) for letter in letters)


def why_false(call: CallShape, rule: RuleText) -> str:
    """Why a declared rule is false for a call; empty where every cut it allows is right.

    Raises:
        Crashed: Running the operator ends the process.
        NotRunnable: The operator cannot be run on this machine.
        NotRepeatable: It gives other results for the same values.
        RuleMismatch: The rule does not fit the call.
    """
    bind(rule.text, call.reads, call.writes)
    return isolated(lambda steps: _why_false(call, rule, steps))


def _why_false(call: CallShape, rule: RuleText, steps: Steps) -> str:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for sampler in sample_calls(call):
            try:
                bound, sizes = bind(rule.text, sampler.call.reads, sampler.call.writes)
            except RuleMismatch:
                continue
            search = _Search(sampler, rule.shape_argument, steps)
            cuttable = [letter for letter, size in sizes.items() if size > 1 and letter not in bound.fixed]
            wrong = next((letter for letter in cuttable if not search.holds(bound, sizes, letter)), None)
            return f"pieces cut along {wrong!r} do not make the whole" if wrong else ""
    raise NotRunnable("its rule does not fit any sizes it was tried with")


def ways_to_cut(size: int) -> list[tuple[int, ...]]:
    """Even and uneven, in two and three pieces."""
    ways = [(size - size // 2, size // 2), (1, size - 1), (size - 1, 1)]
    if size > 2:
        ways += [(1, 1, size - 2), (1, size - 2, 1)]
    return list(dict.fromkeys(ways))


def _shape_arguments(call: CallShape) -> list[int | None]:
    """Positions of arguments that may be the shape of the result, and none."""

    def fits(argument: object) -> bool:
        shape = call.writes[0] if call.writes else ()
        return (
            isinstance(argument, (list, tuple))
            and len(argument) == len(shape) > 0
            and all(
                isinstance(given, int) and given in (-1, size)
                for given, size in zip(argument, shape, strict=True)
            )
        )

    return [i for i, argument in enumerate(call.operator.arguments) if fits(argument)] + [None]


class _Search:
    """The search for the letters of one call at some shapes and dtypes."""

    def __init__(
        self, sampler: Sampler, shape_argument: int | None, steps: Steps, draws: int = _DRAWS
    ) -> None:
        self.steps = steps
        self.sampler = sampler
        self.row = Kind("", shape_argument=shape_argument)
        self.shapes = sampler.call.reads, sampler.call.writes
        self.experiments = 0
        self.suppositions = 0
        self.letters: list[Letter] = []
        self.whole: list[Letter] = []  # what could be a letter and may not be cut
        self.apart: dict[tuple[Place, Place, int], bool] = {}
        self.samples = self._draw(draws)

    def _draw(self, count: int) -> list[SampleCall]:
        """Calls of several styles; the integers of the first are valid indices into any piece of two elements."""
        styles, highest = self.sampler.styles(), self.sampler.highest()
        return [
            self.sampler.sample(seed, styles[seed % len(styles)], highest if seed else 2)
            for seed in range(count)
        ]

    def rule_for(self, call: CallShape) -> RuleText | None:
        """The rule of all letters found, as text that binds to the shapes of `call`."""
        began = time.perf_counter()
        self.samples[0].run(self.samples[0].values)
        slow = time.perf_counter() - began > _SLOW
        seen = observe(self.samples[0], 3 if slow else 12)
        for letter in self._spread_letters(seen):
            self._try(letter)
        for letter in self._contracted_letters():
            self._try(letter)
        while True:
            for whole in ([], self._shared()):
                text = self._text(whole, call)
                if text is not None:
                    return RuleText(text, self.row.shape_argument)
            if not self.letters:
                return None
            self.letters.pop()

    def _text(self, whole: Sequence[Letter], call: CallShape) -> str | None:
        """The rule of the letters found, and of `whole` ones; None where the sizes of its letters are not clear."""
        try:
            rule, sizes = make_rule(self.letters, *self.shapes, whole=whole)
            text = rule_text(rule, sizes, *self.shapes)
            bind(text, call.reads, call.writes)
        except RuleMismatch:
            return None
        return text

    def _shared(self) -> list[Letter]:
        """Fixed letters of several tensors: they tell the sizes of the parts of a dim (the groups of channels)."""
        shared: list[Letter] = []
        for letter in self.whole:
            try:
                make_rule(self.letters, *self.shapes, whole=[*shared, letter])
            except RuleMismatch:
                continue
            shared.append(letter)
        return shared

    # what could be a letter

    def _spread_letters(self, seen: Influence) -> Iterator[Letter]:
        """Letters of results, from those of whole dims to those of parts of dims."""
        starts = [
            (size, written, place)
            for written, shape in enumerate(self.shapes[1])
            for dim, whole in enumerate(shape)
            for size in divisors(whole)[:-1]
            for place in places(written, shape, size)
            if place.dim == dim
        ]
        starts.sort(key=lambda start: (-start[0], start[1], start[2].dim))
        for size, written, place in starts:
            if self._is_taken("writes", place, size):
                continue
            before = len(self.letters)
            for letter in islice(self._through(seen, size, written, place), _MOST_COMBINATIONS):
                yield letter
                if len(self.letters) > before:
                    break

    def _through(self, seen: Influence, size: int, written: int, place: Place) -> Iterator[Letter]:
        """Letters that lie at one place of one result."""
        reads = range(len(self.shapes[0]))
        linked = [
            [p for p in seen.places(written, place, size, read) if not self._is_taken("reads", p, size)]
            for read in reads
        ]
        whole = self.shapes[1][written][place.dim]
        idle = [
            [p for p in places(read, self.shapes[0][read], size)
             if not linked[read] and self.shapes[0][read][p.dim] in (size, whole) and p.stride in (1, place.stride)
             and not seen.changes(p, written) and not self._is_taken("reads", p, size)]
            for read in reads
        ]  # fmt: skip
        if not any(linked) and self.row.shape_argument is None and not any(idle):
            return
        options = [linked[read] or [*idle[read], None] for read in reads]
        for chosen in product(*options):
            parts = tuple(p for p in chosen if p is not None)
            for others in product(
                *(self._also_in(seen, size, parts, w, written, place) for w in range(len(self.shapes[1])))
            ):
                yield Letter(size, parts, tuple(p for p in others if p is not None))

    def _also_in(
        self, seen: Influence, size: int, reads: Sequence[Place], written: int, seed: int, at: Place
    ) -> list[Place | None]:
        """Where the letter may lie in a result, given where it lies in what is read and in the result `seed`."""
        if written == seed:
            return [at]
        fitting = [
            place
            for place in places(written, self.shapes[1][written], size)
            if reads and not self._is_taken("writes", place, size)
            and all(seen.is_linked(r, written, place, size) or not seen.changes(r, written) for r in reads)
        ]  # fmt: skip
        is_there = any(seen.is_linked(r, written, place, size) for r in reads for place in fitting)
        return [*fitting] if is_there else [*fitting, None]

    def _contracted_letters(self) -> Iterator[Letter]:
        """Letters of no result: dims read of one size that do not interact across places, most of them first."""
        sizes = {n for shape in self.shapes[0] for whole in shape for n in divisors(whole)[:-1]}
        for size in sorted(sizes, reverse=True):
            options = [
                [
                    place
                    for place in places(read, shape, size)
                    if not self._is_taken("reads", place, size) and self._is_apart(place, place, size)
                ]
                for read, shape in enumerate(self.shapes[0])
            ]
            carriers = [read for read, found in enumerate(options) if found]
            for count in range(len(carriers), 0, -1):
                for chosen in combinations(carriers, count):
                    for parts in islice(product(*(options[read] for read in chosen)), _MOST_COMBINATIONS):
                        free = not any(self._is_taken("reads", part, size) for part in parts)
                        if free and all(self._is_apart(*pair, size) for pair in combinations(parts, 2)):
                            yield Letter(size, parts, ())

    def _is_apart(self, first: Place, second: Place, size: int) -> bool:
        """Whether the results are sums (or log-sum-exps) of what different pieces of these dims contribute."""
        key = (first, second, size)
        if key not in self.apart:
            sample = self.samples[0]
            self.apart[key] = do_not_interact(sample, first, second, size)
        return self.apart[key]

    def _is_taken(self, side: str, place: Place, size: int) -> bool:
        """Whether a letter found before lies there."""
        low, high = place.stride, place.stride * size
        return any(
            (other.tensor, other.dim) == (place.tensor, place.dim)
            and low < other.stride * letter.size
            and other.stride < high
            for letter in self.letters
            for other in getattr(letter, side)
        )

    # whether it is one

    def _try(self, letter: Letter) -> None:
        """Add the letter if it stands all tests and fits the others."""
        if self.suppositions >= _MOST_SUPPOSITIONS:
            return
        self.suppositions += 1
        is_one = False
        if self.steps.enter():
            is_one = self._test(letter)
            self.steps.leave(is_one)
        if not is_one and letter.reads and letter.writes:
            self.whole.append(letter)

    def _test(self, letter: Letter) -> bool:
        for complete in self._completed(letter):
            try:
                make_rule([*self.letters, complete], *self.shapes)
            except RuleMismatch:
                continue
            rule, sizes = make_rule([complete], *self.shapes)
            if self._stands(rule, sizes, "l0"):
                self.letters.append(complete)
                return True
        return False

    def _completed(self, letter: Letter) -> Iterator[Letter]:
        """The letter with a reducer for every result that lacks it, as one cut shows; none if it is wrong."""
        lacking = [w for w in range(len(self.shapes[1])) if all(p.tensor != w for p in letter.writes)]
        carriers = {place.tensor for place in letter.reads}
        others = [read for read in range(len(self.shapes[0])) if read not in carriers]
        masks = [()] if not lacking else [(), *combinations(others, 1), *combinations(others, 2)]
        for additive in masks:
            supposed = replace(letter, additive=additive, reducers=tuple((w, "sum") for w in lacking))
            reducers = self._reducers(supposed)
            if reducers is not None:
                yield replace(supposed, reducers=reducers)
                return

    def _reducers(self, letter: Letter) -> tuple[tuple[int, str], ...] | None:
        """How the pieces of one even cut make the whole."""
        sample = self.samples[0]
        rule, sizes = make_rule([letter], *self.shapes)
        experiment = CutExperiment.under(
            sample.operator, sample.values, sample.results, self.row, rule, sizes
        )
        pieces = ways_to_cut(letter.size)[0]
        parts = self._pieces(experiment, "l0", pieces)
        if parts is None:
            return None
        found = []
        for written, whole in enumerate(sample.results):
            names = REDUCERS if any(w == written for w, _ in letter.reducers) else ("",)
            fitting = (
                name for name in names
                if self._agrees(sample, experiment, written, "l0", parts, name, whole)
            )  # fmt: skip
            name = next(fitting, None)
            if name is None:
                return None
            if name:
                found.append((written, name))
        return tuple(found)

    def _agrees(
        self, sample: SampleCall, experiment: CutExperiment, written: int, letter: str,
        parts: Sequence[Sequence[torch.Tensor]], reducer: str, whole: torch.Tensor,
    ) -> bool:  # fmt: skip
        if reducer and not _can_combine(reducer, sample, whole, [part[written] for part in parts]):
            return False
        joined = experiment.join(written, letter, [part[written] for part in parts], reducer)
        return sample.agrees(joined, whole)

    def _pieces(
        self, experiment: CutExperiment, letter: str, pieces: Sequence[int]
    ) -> list[tuple[torch.Tensor, ...]] | None:
        self.experiments += 1
        try:
            return experiment.pieces(letter, pieces)
        except Exception:  # whatever the operator says of pieces it cannot take
            return None

    def holds(self, rule: Rule, sizes: dict[str, int], letter: str) -> bool:
        """Whether a letter of a given rule stands the tests; False where they crash."""
        if not self.steps.enter():
            return False
        held = self._stands(rule, sizes, letter)
        self.steps.leave(held)
        return held

    def _stands(self, rule: Rule, sizes: dict[str, int], letter: str) -> bool:
        """Whether pieces along a letter make the whole, each way to cut for another draw of values."""
        for way, sample in zip(cycle(ways_to_cut(sizes[letter])), self.samples, strict=False):
            experiment = CutExperiment.under(
                sample.operator, sample.values, sample.results, self.row, rule, sizes
            )
            parts = self._pieces(experiment, letter, way)
            if parts is None:
                return False
            for written, whole in enumerate(sample.results):
                term = rule.writes[written]
                reducer = "" if letter in term.letters else term.reducer
                if not self._agrees(sample, experiment, written, letter, parts, reducer, whole):
                    return False
        return True


def _can_combine(
    reducer: str, sample: SampleCall, whole: torch.Tensor, parts: Sequence[torch.Tensor]
) -> bool:
    """Whether a reducer is for values of this dtype; and the largest of equal pieces says nothing of a cut."""
    if whole.dtype.is_complex and reducer != "sum":
        return False
    if reducer == "logsumexp":
        return whole.dtype.is_floating_point
    if reducer == "max":
        return not all(sample.agrees(part, whole) for part in parts)
    return whole.dtype != torch.bool
