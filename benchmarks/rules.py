"""Do experiments find the rules that were written by hand? Every kind of the operator table, probed without its row.

A kind is rediscovered if, for each sample call, every cut its row allows is a cut of the rule found, with pieces of
results combined alike. What is found beyond the row is no fault: each cut was proved by running it. Left out are
letters whose pieces must be told where they start or how long they are (`starts`, `lengths`, `boxed`): an operator
without a row has no keywords for that. The samples of a kind are those that prove its row (tests/ir); --quick takes
every fifth kind.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.report import finish, parse_arguments
from superscaler.ir.cut_experiment import CutExperiment
from superscaler.ir.find_rule import find_rule, ways_to_cut
from superscaler.ir.isolated import Crashed
from superscaler.ir.kinds import KINDS
from superscaler.ir.rules import Rule, bind
from superscaler.ir.sample_call import CallShape, NotRepeatable, NotRunnable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.ir.rule_cases import CASES

GOAL = 0.95
Cut = tuple[frozenset[tuple[str, int, int, int]], int, tuple[str, ...]]
"""Places (side, tensor, dim, stride), size, and how each result without the letter combines."""


def main() -> None:
    """Probe, compare, print."""
    quick = parse_arguments(__doc__ or "").quick
    missed, kinds, told, experiments, proofs, more = [], 0, [], 0, 0, 0
    began = perf_counter()
    for kind in list(CASES)[:: 5 if quick else 1]:
        calls = list(samples(kind))
        wanted = [cuts(call.rule, call.sizes, told_letters(call)) for call in calls]
        if not any(wanted) and any(told_letters(call) for call in calls):
            told.append(kind)
            continue
        kinds += 1
        proofs += sum(len(ways_to_cut(call.sizes[letter])) for call in calls for letter in call.cuttable())
        found = [probe(call) for call in calls]
        experiments += sum(count for _, _, count in found)
        lacking = [
            why or f"not found: {describe(want - have)}"
            for want, (have, why, _) in zip(wanted, found, strict=True)
            if why or want - have
        ]
        more += any(have - want for want, (have, _, _) in zip(wanted, found, strict=True))
        if lacking:
            missed.append({"kind": kind, "samples": f"{len(lacking)} of {len(calls)}", "why": lacking[0]})
    rediscovered = kinds - len(missed)
    print(f"rules in the table                 {len(KINDS)}")
    print(f"  compared                         {kinds}")
    print(f"  only cut where told the start    {len(told)}: {', '.join(told)}")
    print(
        f"rediscovered                       {rediscovered} of {kinds} ({100 * rediscovered / kinds:.1f} %)"
    )
    print(f"  with cuts the row does not allow {more}")
    print(f"cuts made to find them             {experiments}")
    print(f"cuts that prove the rows           {proofs}")
    print(f"seconds                            {perf_counter() - began:.0f}\n")
    finish(
        "rules", rediscovered >= GOAL * kinds, missed, quick,
        rules=len(KINDS), compared=kinds, experiments=experiments + proofs, rediscovered=rediscovered,
    )  # fmt: skip


def samples(kind: str) -> Iterator[CutExperiment]:
    """Sample calls of a kind."""
    torch.manual_seed(0)
    for case in CASES[kind]:
        yield case.call(kind)


def told_letters(call: CutExperiment) -> set[str]:
    """Letters whose pieces the operator is told about, other than by its shape."""
    row = call.row
    letters = {*call.rule.indexed, *(row.starts or {}).values(), *(row.lengths or {}).values()}
    return letters | set(call.sizes) if row.boxed else letters


def cuts(rule: Rule, sizes: Mapping[str, int], without: set[str] = frozenset()) -> set[Cut]:  # type: ignore[assignment]
    """What a rule allows to cut, whatever its letters are called."""
    found = set()
    for letter, size in sizes.items():
        if size == 1 or letter in rule.fixed or letter in without:
            continue
        places = set()
        for side, terms in (("read", rule.reads), ("written", rule.writes)):
            for tensor, term in enumerate(terms):
                for dim, letters in enumerate(term.dims):
                    if letter in letters:
                        behind = letters[letters.index(letter) + 1 :]
                        stride = torch.Size([sizes[other] for other in behind]).numel()
                        places.add((side, tensor, dim, stride))
        reducers = tuple(
            "" if letter in term.letters else term.reducer for term in rule.writes
        )  # fmt: skip
        found.add((frozenset(places), size, reducers))
    return found


def probe(call: CutExperiment) -> tuple[set[Cut], str, int]:
    """The cuts experiments find for a call, or why they find none; and how many there were."""
    reads, writes = ([tuple(value.shape) for value in side] for side in (call.values, call.results))
    shape = CallShape(call.operator, tuple(reads), tuple(v.dtype for v in call.values), tuple(writes))
    try:
        found = find_rule(shape)
    except (Crashed, NotRepeatable, NotRunnable) as error:
        return set(), f"{type(error).__name__}: {error}", 0
    return cuts(*bind(found.rule.text, reads, writes)), "", found.experiments


def describe(missing: set[Cut]) -> str:
    """Cuts as a person would say them."""

    def words(cut: Cut) -> Any:
        places = sorted(f"{side} {tensor} dim {dim}" for side, tensor, dim, _ in cut[0])
        return f"{', '.join(places)} ({cut[1]})"

    return "; ".join(sorted(map(words, missing)))


if __name__ == "__main__":
    main()
