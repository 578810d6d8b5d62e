"""Scheduler: which sequences go on in the next step, and with how many tokens."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from superscaler.errors import RequestError
from superscaler.runtime.serving.batch import Pairs
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits, most_tokens
from superscaler.runtime.serving.policies import Policy, Rank
from superscaler.runtime.serving.request import FinishReason, Request, Sequence, State
from superscaler.runtime.serving.step import (
    DraftTree,
    Part,
    Sampled,
    Step,
    StepPlan,
    accepted_moves,
    tree_depth,
)

_NO_DRAFTS: Mapping[str, DraftTree] = MappingProxyType({})


class Scheduler:
    """Makes steps of the tokens of many sequences: those that decode first, then prompts, piece by piece.

    Sequences that run keep their pages from step to step. When there are too few, whoever ranks last makes room
    and comes back later. Whoever waits is admitted in the order of ranks and never overtakes; under a policy that
    preempts, also in place of those who run and rank after it.

    Several steps may be under way, as the stages of a pipeline run them. Those who take part in one can neither take
    part in another nor make room until it is updated, so each gets its share of them. Whatever a step gives back may be
    given to a later one, for all ranks run them in order.

    Args:
        cache: Whose pages the sequences are given.
        policy: Ranks them.
        limits: Bound a step.
        clock: Seconds, for the policy.
        end_tokens: Those with which the model ends a text.
        steps: How many are to be under way at once.
    """

    def __init__(
        self, cache: KvCache, policy: Policy, limits: Limits, clock: Callable[[], float],
        end_tokens: Iterable[int] = (), steps: int = 1,
    ) -> None:  # fmt: skip
        self._cache, self._policy, self._limits, self._clock = cache, policy, limits, clock
        self._end_tokens, self._steps = frozenset(end_tokens), steps
        self._chunk = limits.chunk_tokens or limits.step_tokens
        self._watermark = math.ceil(limits.watermark * cache.pages)
        self._arrivals = 0
        self._numbers: dict[str, int] = {}
        """Of requests, in the order in which they came."""
        self._sequences: dict[str, tuple[Sequence, ...]] = {}
        """Of each request of which some are not finished."""
        self._unforked: dict[str, tuple[Sequence, ...]] = {}
        """Of each request whose prompt is not computed yet: those that begin after it."""
        self._waiting: list[Sequence] = []
        """Also those that are swapped out."""
        self._running: list[Sequence] = []
        self._moves: dict[str, Pairs] = {}
        """Of running sequences: keys to be moved before the next step, (from, to)."""
        self._ranks: dict[str, Rank] = {}
        self._under_way: deque[tuple[Step, float]] = deque()
        """Steps that are made and not yet updated, and when they were made."""
        self._taking_part: set[str] = set()
        """Sequences with a part in one of them."""

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Sequences that hold no pages on the device."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences that hold some."""
        return tuple(self._running)

    @property
    def decoding(self) -> tuple[Sequence, ...]:
        """Sequences of which one token is to be computed next: a tree may be drafted to follow it."""
        return tuple(sequence for sequence in self._at_hand() if self._decodes(sequence))

    def add(self, request: Request) -> tuple[Sequence, ...]:
        """Take in a request; return its n sequences.

        Raises:
            RequestError: It could never be served, or its id is in use.
        """
        if request.id in self._sequences:
            raise RequestError(f"a request with id {request.id} is being served", remedy="choose another id")
        most = most_tokens(request, self._limits, self._cache)
        sequences = tuple(Sequence(request, index, most) for index in range(request.params.n))
        self._sequences[request.id] = sequences
        self._numbers[request.id] = self._arrivals
        self._arrivals += 1
        self._waiting.append(sequences[0])
        if sequences[1:]:
            self._unforked[request.id] = sequences[1:]
        self._policy.arrived(request, self._clock())
        return sequences

    def cancel(self, request_id: str, reason: FinishReason = "abort") -> None:
        """End all sequences of a request that are not finished, also while a step with them runs."""
        for sequence in reversed(
            self._sequences.get(request_id, ())
        ):  # the first, that others fork from, last
            self.end(sequence, reason)

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """End one sequence, for a reason that its tokens do not show."""
        if sequence.state is State.FINISHED:
            return
        request, forks = sequence.request, self._unforked.get(sequence.request.id, ())
        if sequence in forks:
            self._unforked[request.id] = tuple(fork for fork in forks if fork is not sequence)
        else:
            assert sequence.index or not forks, "others are to fork from it"
            (self._running if sequence.state is State.RUNNING else self._waiting).remove(sequence)
        if sequence.state is not State.WAITING:
            self._cache.close(sequence.id)
        self._moves.pop(sequence.id, None)
        sequence.state, sequence.finish_reason = State.FINISHED, reason
        if all(each.state is State.FINISHED for each in self._sequences[request.id]):
            del self._sequences[request.id], self._numbers[request.id]
            self._unforked.pop(request.id, None)
            self._policy.ended(request, self._clock())

    def schedule(self, drafts: Mapping[str, DraftTree] = _NO_DRAFTS) -> Step | None:
        """Make the next step; None if there is nothing to do.

        Args:
            drafts: By the ids of sequences that decode: what may follow. A tree is left out where there is no
                room for all of it; none is deeper than its sequence has room for, less the one token that
                follows whatever is accepted.
        """
        assert len(self._under_way) < self._steps, "an earlier step has not been updated"
        now = self._clock()
        everybody = (*self._running, *self._waiting)
        self._ranks = {sequence.id: self._policy.rank(sequence, now) for sequence in everybody}
        plan = StepPlan(self._limits.step_tokens, self._share())
        if self._policy.preempts:
            self._displace(plan)
        self._plan_running(plan, drafts)
        if not plan.short:
            self._plan_waiting(plan)
        if not plan.parts:
            assert self._under_way or not everybody, "nobody can go on"
            assert not any((plan.copies, plan.swaps_out, plan.swaps_in)), "made room for nobody"
            return None
        self._plan_moves(plan)
        step = plan.make(self._cache)
        self._cache.settle()
        self._under_way.append((step, now))
        self._taking_part |= plan.parts.keys()
        return step

    def update(self, step: Step, sampled: Iterable[Sampled]) -> list[Sequence]:
        """Take in what a step computed; return the sequences that got tokens, which may have finished with them.

        Args:
            step: The first of those under way.
            sampled: For each of its samples, also of sequences that have ended meanwhile.
        """
        first, started = self._under_way.popleft()
        assert step is first, "steps are updated in the order in which they are made"
        self._taking_part -= {part.sequence.id for part in step.parts}
        now = self._clock()
        for part in step.parts:
            if part.sequence.state is not State.FINISHED:
                self._take_computed(part)
                self._policy.served(part.sequence, part.new, now - started, now)
        changed: list[Sequence] = []
        for sample, result in zip(step.samples, sampled, strict=True):
            if sample.sequence.state is not State.FINISHED:
                self._take_sampled(sample.sequence, sample.tree, result)
                changed.append(sample.sequence)
        return changed

    def fail(self) -> list[Sequence]:
        """A step was not run to its end: nobody knows what the caches hold now.

        Returns:
            The sequences that had something there, which end with an error. Those that wait go on.
        """
        self._under_way.clear()
        self._taking_part.clear()
        held = [each for each in (*self._running, *self._waiting) if each.state is not State.WAITING]
        ended = [sequence for each in held for sequence in (*self._forks(each), each)]
        for sequence in ended:
            self.end(sequence, "error")
        self._cache.forget()
        return ended

    def check_integrity(self) -> None:
        """Assert that every sequence is in the one place that its state says, and the cache is sound."""
        self._cache.check_integrity()
        assert all(sequence.state is State.RUNNING for sequence in self._running)
        assert all(sequence.state in (State.WAITING, State.SWAPPED) for sequence in self._waiting)
        placed = [
            *self._running,
            *self._waiting,
            *(each for forks in self._unforked.values() for each in forks),
        ]
        alive = [
            each for group in self._sequences.values() for each in group if each.state is not State.FINISHED
        ]
        assert sorted(each.id for each in placed) == sorted(each.id for each in alive)
        assert self._moves.keys() <= {sequence.id for sequence in self._running}
        assert sum(map(self._width, self._running)) <= self._limits.step_sequences
        assert all(sequence.uncomputed > 0 for sequence in alive)

    # -- admission

    def _displace(self, plan: StepPlan) -> None:
        """Admit those who rank before some that run, in place of these where there is no room for both."""
        for sequence in sorted(self._waiting, key=self._order):
            after = [
                each
                for each in self._at_hand()
                if self._ranks[each.id] > self._ranks[sequence.id] and each.id not in plan.admitted
            ]
            after.sort(key=self._order, reverse=True)
            if not after or not self._admit(plan, sequence, after):
                return

    def _plan_waiting(self, plan: StepPlan) -> None:
        """Admit in order while there is room; nobody overtakes, so nobody waits for ever behind small ones."""
        for sequence in sorted(self._waiting, key=self._order):
            if not plan.has_room or sequence.id in plan.displaced or not self._admit(plan, sequence, []):
                return
            self._plan_next(plan, sequence)

    def _admit(self, plan: StepPlan, sequence: Sequence, after: list[Sequence]) -> bool:
        """Let a waiting sequence run, in place of the first few of `after`; False if not even all are enough."""
        cache, swapped = self._cache, sequence.state is State.SWAPPED
        found = 0 if swapped else cache.open(sequence.id, sequence.tokens, sequence.request.cache_salt)
        wanted = cache.needed(len(sequence.tokens)) - cache.needed(found)
        victims = bisect_left(
            range(len(after) + 1), True, key=lambda count: self._has_room(sequence, wanted, after[:count])
        )
        if victims > len(after):
            if not swapped:
                cache.close(sequence.id)
            return False
        for victim in after[:victims]:
            self._preempt(plan, victim)
        if swapped:
            pairs = cache.swap_in(sequence.id, sequence.tokens, sequence.computed)
            assert pairs is not None, "there was room"
            plan.swaps_in += pairs
        else:
            sequence.computed = found
        if sequence.cached is None:
            sequence.cached = found
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.state = State.RUNNING
        plan.admitted.add(sequence.id)
        # at once, so that what others gave up for it is not taken by those who run
        room = self._reserve(plan, sequence, min(sequence.uncomputed, self._chunk))
        assert room, "there was room"
        return True

    def _has_room(self, sequence: Sequence, pages: int, victims: list[Sequence]) -> bool:
        """Whether a sequence that takes so many pages may run if the victims do not."""
        cache = self._cache
        others = [each for each in self._running if each not in victims]
        if sum(map(self._width, others)) + self._width(sequence) > self._limits.step_sequences:
            return False
        if others:  # alone, it goes on at any rate
            forks = self._width(sequence) - 1  # each copies the page in which the prompt ends
            promised = (cache.needed(len(each.tokens)) - cache.held(each.id) for each in others)
            pages += self._watermark + forks + sum(max(0, count) for count in promised)
        return pages <= cache.free + cache.held_only_by(victim.id for victim in victims)

    def _width(self, sequence: Sequence) -> int:
        """How many sequences it is, or soon will be."""
        return 1 + len(self._forks(sequence))

    # -- those who run

    def _plan_running(self, plan: StepPlan, drafts: Mapping[str, DraftTree]) -> None:
        """Whoever decodes has a token, and a tree if there is room; then prompts go on."""
        turns = sorted(self._at_hand(), key=lambda each: (each.uncomputed > 1, self._order(each)))
        decodes_left = sum(each.uncomputed == 1 for each in turns)
        for sequence in turns:
            if not plan.has_room:
                return
            if sequence.state is not State.RUNNING:  # it has just made room
                continue
            decodes_left -= sequence.uncomputed == 1
            tree = drafts.get(sequence.id)
            if tree is None or not self._plan_tree(plan, sequence, tree, decodes_left):
                self._plan_next(plan, sequence)

    def _plan_next(self, plan: StepPlan, sequence: Sequence) -> None:
        """Let the sequence go on with its next tokens, if there is room in the step and the cache."""
        new = min(sequence.uncomputed, self._chunk, plan.budget)
        if new and self._reserve(plan, sequence, new):
            forks = self._forks(sequence) if new == sequence.uncomputed else ()
            plan.add(Part(sequence, sequence.computed, new, forks=forks))

    def _plan_tree(self, plan: StepPlan, sequence: Sequence, tree: DraftTree, decodes_left: int) -> bool:
        """Let the sequence go on with its last token and a tree, if that takes nothing from those who still decode."""
        new = 1 + len(tree.tokens)
        if new == 1 or new > plan.budget - decodes_left or not self._decodes(sequence):
            return False
        assert tree_depth(tree) < sequence.room, "a tree goes on after the sequence's last token"
        cache, stop = self._cache, sequence.computed + new
        if cache.needed(stop) - cache.held(sequence.id) > cache.free - decodes_left:
            return False
        copies = cache.reserve(sequence.id, sequence.computed, stop)
        if copies is None:
            return False
        plan.copies += copies
        plan.add(Part(sequence, sequence.computed, new, tree))
        return True

    def _reserve(self, plan: StepPlan, sequence: Sequence, new: int) -> bool:
        """Give the sequence pages for its next tokens; while they lack, whoever ranks last makes room."""
        start = sequence.computed
        while (copies := self._cache.reserve(sequence.id, start, start + new)) is None:
            plan.short = True
            fixed = plan.parts.keys() | plan.admitted  # the step already counts on their pages
            after = [each for each in self._at_hand() if each.id not in fixed]
            if self._under_way and not self._frees_enough(sequence, new, after):
                return False  # those who take part in other steps hold what lacks
            victim = max(after, key=self._order, default=sequence)
            if self._order(victim) <= self._order(sequence):
                return False  # it keeps its pages, and goes on when those who have a part in the step give some back
            self._preempt(plan, victim)
        plan.copies += copies
        return True

    def _frees_enough(self, sequence: Sequence, new: int, others: Iterable[Sequence]) -> bool:
        """Whether there were pages for a sequence's next tokens if all others that rank after it had none."""
        cache, start = self._cache, sequence.computed
        after = [each.id for each in others if self._order(each) > self._order(sequence)]
        return cache.lacks(sequence.id, start, start + new) <= cache.free + cache.held_only_by(after)

    def _preempt(self, plan: StepPlan, sequence: Sequence) -> None:
        """Take a sequence's pages on the device."""
        cache = self._cache
        self._running.remove(sequence)
        self._waiting.append(sequence)
        plan.displaced.add(sequence.id)
        sequence.preemptions += 1
        moves = self._moves.pop(sequence.id, ())
        if moves:  # swaps come before moves: what is not in its place yet is computed again
            sequence.computed = moves[0][1]
        cache.truncate(sequence.id, sequence.computed)
        pairs = cache.swap_out(sequence.id) if self._limits.preemption == "swap" else None
        if pairs:
            plan.swaps_out += pairs
            sequence.state = State.SWAPPED
        else:
            cache.close(sequence.id)
            sequence.computed, sequence.state = 0, State.WAITING

    def _plan_moves(self, plan: StepPlan) -> None:
        """Put the paths accepted in the step before in a row; only then is what they leave free."""
        for sequence in self._running:
            pairs = self._moves.pop(sequence.id, ())
            if not pairs:
                continue
            sources, targets = (self._cache.slots(sequence.id, keys) for keys in zip(*pairs, strict=True))
            plan.moves += zip(sources, targets, strict=True)
            self._cache.commit(sequence.id, sequence.tokens, sequence.computed)
            part = plan.parts.get(sequence.id)
            self._cache.truncate(sequence.id, sequence.computed + (part.new if part else 0))

    # -- results

    def _take_computed(self, part: Part) -> None:
        sequence, cache = part.sequence, self._cache
        if part.tree is not None:
            return  # how much of it counts is known from what was accepted
        sequence.computed += part.new
        cache.commit(sequence.id, sequence.tokens, sequence.computed)
        for fork in self._unforked.pop(sequence.request.id) if part.forks else ():
            cache.fork(sequence.id, fork.id, sequence.computed)
            fork.computed, fork.cached, fork.state = sequence.computed, sequence.cached, State.RUNNING
            self._running.append(fork)

    def _take_sampled(self, sequence: Sequence, tree: DraftTree | None, result: Sampled) -> None:
        assert len(result.tokens) == len(result.nodes) + 1, "one token follows what is accepted"
        moves: Pairs = ()
        if tree is not None:
            assert _is_path(tree, result), "what is accepted is not a path from the root"
            moves = accepted_moves(sequence.computed, result.nodes)
            sequence.computed += 1 + len(result.nodes)
        reason = sequence.extend(result.tokens, self._end_tokens)
        if reason is None or result.ends == "stop":
            reason = result.ends or reason
        if tree is not None:
            in_place = moves[0][1] if moves else sequence.computed
            self._cache.commit(sequence.id, sequence.tokens, min(in_place, len(sequence.tokens)))
        if reason is not None:
            self.end(sequence, reason)
        elif moves:
            self._moves[sequence.id] = moves
        elif tree is not None:
            self._cache.truncate(sequence.id, sequence.computed)

    # -- questions

    def _at_hand(self) -> list[Sequence]:
        """Those who run, and take part in no step that is under way."""
        return [each for each in self._running if each.id not in self._taking_part]

    def _share(self) -> int:
        """How many sequences a step takes at most, so that there are as many for each of those under way."""
        everybody = min(len(self._running) + len(self._waiting), self._limits.step_sequences)
        return max(1, -(-everybody // self._steps))

    def _decodes(self, sequence: Sequence) -> bool:
        return sequence.uncomputed == 1 and not self._forks(sequence)

    def _forks(self, sequence: Sequence) -> tuple[Sequence, ...]:
        """Those that begin when its prompt is computed."""
        return self._unforked.get(sequence.request.id, ()) if sequence.index == 0 else ()

    def _order(self, sequence: Sequence) -> tuple[Rank, int, int]:
        """Lower goes first; no two are equal."""
        return (self._ranks[sequence.id], self._numbers[sequence.request.id], sequence.index)


def _is_path(tree: DraftTree, result: Sampled) -> bool:
    parents = (-1, *result.nodes[:-1])
    follows = all(tree.parents[node] == parent for node, parent in zip(result.nodes, parents, strict=False))
    return follows and tuple(tree.tokens[node] for node in result.nodes) == tuple(result.tokens[:-1])
