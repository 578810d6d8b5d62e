"""Engine: requests come in, steps are run, tokens go out."""

import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from superscaler.errors import RequestError
from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.grammar.matcher import Grammars, Matcher
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.output import Load, Output
from superscaler.runtime.serving.request import FinishReason, Request, Sequence
from superscaler.runtime.serving.sampling import Logprobs, Row
from superscaler.runtime.serving.scheduler import Scheduler
from superscaler.runtime.serving.speculation.step import Proposal, Verified, verify
from superscaler.runtime.serving.step import Sampled, Step

_NOTHING = Proposal()


@dataclass(frozen=True, slots=True)
class Decoding:
    """A sequence of which one token is to be computed next."""

    row: Row
    """What precedes the token after that."""
    room: int
    """Most tokens that it may still get: a tree that follows it has fewer levels."""


class Drafting(Protocol):
    """What proposes tokens for sequences that decode."""

    def propose(self, sequences: Mapping[str, Decoding], prompt_tokens: int) -> Mapping[str, Proposal]:
        """A proposal for each sequence for which one pays, by its id.

        Args:
            sequences: Those that decode next.
            prompt_tokens: How many tokens of prompts the step is likely to have beside theirs.
        """
        ...

    def verified(self, step: Step, accepted: Mapping[str, tuple[int, ...]], seconds: float) -> None:
        """What became of proposals.

        Args:
            step: What was run.
            accepted: Of each sequence whose tree took part, the accepted nodes from the first level down.
            seconds: From after the proposals until all tokens were known.
        """
        ...

    def forget(self, sequence: str) -> None:
        """The sequence has ended."""
        ...


@dataclass(frozen=True, slots=True)
class _Open:
    """What is known of a request while it is served."""

    seed: int
    """Its own, or one drawn for it."""
    end_tokens: tuple[int, ...]
    """Those with which its sequences end."""
    going: dict[int, Sequence]
    """Its sequences that go on, by their index."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that was started."""

    step: Step
    logits: Callable[[], Tensor]
    """Waits for them."""
    proposed: list[Proposal]
    """What each of its samples is to verify."""
    rows: list[Row]
    """What precedes the tokens of each: also of one that ends meanwhile."""
    began: float


class Engine:
    """Serves requests, a step at a time, of which several may be under way.

    Args:
        scheduler: Decides what goes into a step.
        cache: Whose pages it gives to sequences.
        start: Starts a batch; what it returns waits for its logits [wanted, vocab].
        clock: Seconds.
        drafting: Proposes tokens that one step checks; None: each step gives a sequence one token.
        end_tokens: Those with which the model ends a text.
        grammars: What matches tokens with grammars; None: a request that brings one is refused.
        vocab: How many tokens the model knows: a request with another one is refused.
        steps: How many are to be under way at once.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cache: KvCache,
        start: Callable[[Batch], Callable[[], Tensor]],
        clock: Callable[[], float],
        drafting: Drafting | None = None,
        end_tokens: frozenset[int] = frozenset(),
        grammars: Grammars | None = None,
        vocab: int | None = None,
        steps: int = 1,
    ) -> None:
        self.scheduler = scheduler
        self._cache = cache
        self._start, self._clock, self._drafting = start, clock, drafting
        self._steps = steps
        self._under_way: deque[_UnderWay] = deque()
        self._end_tokens, self._grammars, self._vocab = end_tokens, grammars, vocab
        self._open: dict[str, _Open] = {}
        """Requests that are served."""
        self._matchers: dict[str, Matcher] = {}
        """Of sequences that are held to a grammar, by their id."""
        self._came: dict[str, float] = {}
        """When requests came that have had no part in a step."""
        self._queued: dict[str, float] = {}
        """Of the others: seconds until they had."""

        self._step_tokens = self._preemptions = self._drafts = self._draft_tokens = 0
        self._accepted: list[int] = []
        """Drafted tokens that were accepted, by level."""

    @property
    def load(self) -> Load:
        """How busy it is."""
        cache, scheduler = self._cache, self.scheduler
        going = sum(sequence.preemptions for sequence in (*scheduler.running, *scheduler.waiting))
        return Load(
            len(scheduler.running),
            len(scheduler.waiting),
            cache.pages,
            cache.pages - cache.free,
            self._step_tokens,
            self._preemptions + going,
            self._drafts,
            self._draft_tokens,
            sum(self._accepted),
            tuple(self._accepted),
        )

    @property
    def is_idle(self) -> bool:
        """Whether no sequence wants another token, and no step is under way."""
        return not (self.scheduler.running or self.scheduler.waiting or self._under_way)

    def add(self, request: Request) -> None:
        """Take in a request.

        Raises:
            RequestError: It can never be served, its grammar makes no sense, or one of its name is served already.
        """
        params = request.params
        self._check_tokens(request)
        ends = tuple(sorted(params.stop_token_ids | (frozenset() if params.ignore_eos else self._end_tokens)))
        matcher = self._matcher(request, ends)
        sequences = self.scheduler.add(request)
        self._open[request.id] = _Open(
            secrets.randbits(63) if params.seed is None else params.seed,
            ends,
            {sequence.index: sequence for sequence in sequences},
        )
        if matcher is not None:
            self._matchers |= {sequence.id: matcher.copy() for sequence in sequences}
        self._came[request.id] = self._clock()

    def _check_tokens(self, request: Request) -> None:
        """One that the model does not know would end a step, and on a GPU the process."""
        for tokens in (request.prompt, request.params.logit_bias, request.params.stop_token_ids):
            if self._vocab is None or not tokens or 0 <= min(tokens) <= max(tokens) < self._vocab:
                continue
            strange = next(token for token in tokens if not 0 <= token < self._vocab)
            raise RequestError(
                f"request {request.id} has the token {strange}",
                remedy=f"the model has {self._vocab}, counted from 0",
            )

    def _matcher(self, request: Request, end_tokens: tuple[int, ...]) -> Matcher | None:
        """Where the answer goes on in the request's grammar, if it has one."""
        grammar = request.params.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            raise RequestError(
                f"request {request.id} has a grammar, but the engine does not know the texts of tokens",
                remedy="name the folder of the model's tokenizer: --tokenizer, or Settings(tokenizer=...)",
            )
        matcher = self._grammars.begin(grammar, end_tokens)
        for token in request.prompt[len(request.prompt) - request.answered :]:
            matcher.take(token)
        return matcher

    def end(self, request_id: str, index: int | None = None, reason: FinishReason = "abort") -> list[Output]:
        """End a request, or one of its sequences, for a reason that its tokens do not show.

        Returns:
            What ends with this: nothing of a request that has ended already, or never came.
        """
        going = self._open[request_id].going if request_id in self._open else {}
        chosen = [going[number] for number in sorted(going, reverse=True) if index in (None, number)]
        for sequence in chosen:  # the first, from which others may have to begin, last
            self.scheduler.end(sequence, reason)
        return [self._output(sequence, len(sequence.generated), ()) for sequence in chosen]

    def step(self) -> list[Output]:
        """Start as many steps as may be under way, and wait for the first; what it gave, none where there is none."""
        try:
            while len(self._under_way) < self._steps and (begun := self._begin()) is not None:
                self._under_way.append(begun)
            if not self._under_way:
                return []
            first = self._under_way.popleft()
            verified = verify(first.logits(), first.proposed, first.rows)
        except BaseException:
            self._under_way.clear()
            for sequence in self.scheduler.fail():
                self._forget(sequence)
            raise
        return self._take(first, verified)

    def _begin(self) -> _UnderWay | None:
        """Make a step and start it; None if there is nothing to do."""
        proposals = self._proposals()
        began = self._clock()
        trees = {sequence: proposal.tree for sequence, proposal in proposals.items() if len(proposal.tree)}
        step = self.scheduler.schedule(trees)
        if step is None:
            return None
        started = self._clock()
        for part in step.parts:
            if (came := self._came.pop(part.sequence.request.id, None)) is not None:
                self._queued[part.sequence.request.id] = started - came
        proposed = [
            _NOTHING if sample.tree is None else proposals[sample.sequence.id] for sample in step.samples
        ]
        rows = [self._row(sample.sequence) for sample in step.samples]
        return _UnderWay(step, self._start(step.batch), proposed, rows, began)

    def _take(self, begun: _UnderWay, verified: list[Verified]) -> list[Output]:
        """What a step gave."""
        step = begun.step
        before = {sample.sequence.id: len(sample.sequence.generated) for sample in step.samples}
        logprobs = {
            sample.sequence.id: one.logprobs for sample, one in zip(step.samples, verified, strict=True)
        }
        sampled = [
            Sampled(one.tokens, one.nodes, self._taken(sample.sequence, one.tokens))
            for sample, one in zip(step.samples, verified, strict=True)
        ]
        changed = self.scheduler.update(step, sampled)
        self._account(step, verified, self._clock() - begun.began)
        return [self._output(one, before[one.id], logprobs[one.id]) for one in changed]

    def _taken(self, sequence: Sequence, tokens: tuple[int, ...]) -> FinishReason | None:
        """Let the sequence's grammar, if it has one, take new tokens; why the sequence ends, if that says so."""
        matcher = self._matchers.get(sequence.id)
        if matcher is None:
            return None
        for token in tokens:
            matcher.take(token)
        if not matcher.is_over:
            return None
        return "stop" if matcher.is_complete else "error"

    def _account(self, step: Step, verified: list[Verified], seconds: float) -> None:
        self._step_tokens = len(step.batch.tokens)
        accepted: dict[str, tuple[int, ...]] = {}
        for sample, one in zip(step.samples, verified, strict=True):
            if sample.tree is not None:
                accepted[sample.sequence.id] = one.nodes
                self._drafts += 1
                self._draft_tokens += len(sample.tree.tokens)
                self._accepted += [0] * (len(one.nodes) - len(self._accepted))
                for level in range(len(one.nodes)):
                    self._accepted[level] += 1
        if self._drafting is not None:
            self._drafting.verified(step, accepted, seconds)

    def _proposals(self) -> Mapping[str, Proposal]:
        if self._drafting is None:
            return {}
        decoding = {
            sequence.id: Decoding(self._row(sequence), sequence.room) for sequence in self.scheduler.decoding
        }
        running = self.scheduler.running
        prompt_tokens = sum(each.uncomputed for each in running if each.id not in decoding)
        return self._drafting.propose(decoding, prompt_tokens)

    def _row(self, sequence: Sequence) -> Row:
        request = sequence.request
        known = self._open[request.id]
        return Row(
            request.params,
            known.seed,
            request.prompt,
            sequence.generated,
            sequence=sequence.index,
            end_tokens=known.end_tokens,
            matcher=self._matchers.get(sequence.id),
        )

    def _output(self, sequence: Sequence, known: int, logprobs: tuple[Logprobs | None, ...]) -> Output:
        tokens, request_id = tuple(sequence.generated[known:]), sequence.request.id
        queued = self._queued.get(request_id, 0.0)
        ends = self._open[request_id].end_tokens
        by_end_token = sequence.finish_reason == "stop" and bool(tokens) and tokens[-1] in ends
        if sequence.finish_reason is not None:
            self._forget(sequence)
        return Output(
            request_id,
            sequence.index,
            tokens,
            logprobs[: len(tokens)],
            sequence.finish_reason,
            sequence.cached or 0,
            queued,
            by_end_token,
        )

    def _forget(self, sequence: Sequence) -> None:
        self._preemptions += sequence.preemptions
        going = self._open[sequence.request.id].going
        del going[sequence.index]
        self._matchers.pop(sequence.id, None)
        if not going:
            del self._open[sequence.request.id]
            self._came.pop(sequence.request.id, None)
            self._queued.pop(sequence.request.id, None)
        if self._drafting is not None:
            self._drafting.forget(sequence.id)
