"""A speculator without weights: what followed the last time the text ended as it does now."""

from collections.abc import Hashable, Sequence

from superscaler.runtime.serving.speculation.step import Proposal, Wish
from superscaler.runtime.serving.speculation.token_tree import depths, from_paths


class NgramIndex:
    """Finds earlier places in a growing text that are preceded by the same tokens as its end.

    Every run of `shortest` to `longest` tokens that something follows is kept with the places that follow it, so
    that a token costs `longest - shortest + 1` entries whatever the length of the text.
    """

    def __init__(self, shortest: int = 2, longest: int = 4) -> None:
        assert 1 <= shortest <= longest, f"runs of {shortest} to {longest} tokens"
        self.tokens: list[int] = []
        self._lengths = range(longest, shortest - 1, -1)
        self._followers: dict[tuple[int, ...], list[int]] = {}

    def append(self, token: int) -> None:
        """The text goes on with `token`."""
        for run in self._last_runs():
            self._followers.setdefault(run, []).append(len(self.tokens))
        self.tokens.append(token)

    def matches(self, count: int) -> list[int]:
        """At most `count` places whose preceding tokens are the text's last: longest runs first, then latest first."""
        found: dict[int, None] = {}
        for run in self._last_runs():
            for place in reversed(self._followers.get(run, ())):
                if len(found) == count:
                    return list(found)
                found[place] = None
        return list(found)

    def continuation(self, place: int, length: int) -> list[int]:
        """`length` tokens from `place` on; at the end of the text they go on as from `place`, so a loop stays one."""
        known = self.tokens[place : place + length]
        while len(known) < length:
            known += known[: length - len(known)]
        return known

    def _last_runs(self) -> list[tuple[int, ...]]:
        return [tuple(self.tokens[-length:]) for length in self._lengths if length <= len(self.tokens)]


class NgramSpeculator:
    """Proposes what followed earlier in the prompt or output; several places that match make a tree.

    Nothing is drawn at random, so a token is accepted if it is what the model itself would have taken.
    """

    def __init__(
        self, speculator: int = 0, shortest: int = 2, longest: int = 4, most_matches: int = 8
    ) -> None:
        self._speculator = speculator
        self._lengths = (shortest, longest)
        self._most_matches = most_matches
        self._indexes: dict[Hashable, NgramIndex] = {}

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """One proposal for each, empty where its text is new."""
        return [self._propose(wish) for wish in wishes]

    def forget(self, sequence: Hashable) -> None:
        """The sequence has ended, or will go on elsewhere; unknown ones are ignored."""
        self._indexes.pop(sequence, None)

    def _propose(self, wish: Wish) -> Proposal:
        index = self._indexes.setdefault(wish.sequence, NgramIndex(*self._lengths))
        for token in wish.row.certain(len(index.tokens)):
            index.append(token)
        depth = max(depths(wish.shape), default=0)
        paths = [index.continuation(place, depth) for place in index.matches(self._most_matches)]
        return Proposal(from_paths(paths, self._speculator, len(wish.shape)))
