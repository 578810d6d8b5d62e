"""A stream: samples that come one after another, from an iterable."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.data.dataset_source import shape_in
from superscaler.runtime.data.feed import Feed
from superscaler.runtime.data.piece import Piece
from superscaler.runtime.data.samples import stack_pieces
from superscaler.runtime.data.source import Inputs, check_rows
from superscaler.runtime.data.users_code import users_error


class Stream(Feed):
    """The samples of an iterable, again and again.

    Each rank that needs input iterates over all samples and keeps its own, so the iterable must give the same ones
    on each. It is begun anew for each epoch, after ``set_epoch(epoch)`` where it has that.

    Args:
        begin: Gives the iterable of an epoch: the same one each time, or a new one.
        name: As messages say it.
        inputs: The inputs of the model.
        is_once: Whether there is but one iterator, which nothing can begin anew.
        keeps_place: Whether the iterable's own ``state_dict``, where it has one, brings back exactly its place.
    """

    def __init__(
        self,
        begin: Callable[[], Any],
        name: str,
        inputs: Inputs,
        *,
        is_once: bool = False,
        keeps_place: bool = True,
    ) -> None:
        self.name, self._begin, self._names = name, begin, tuple(inputs)
        self._is_once, self._keeps_place = is_once, keeps_place
        self.samples: int | None = None
        self._iterable: Any = None
        self._iterator: Iterator[Any] | None = None
        self._ahead: list[Any] = []
        """The next sample, where it has been looked at."""
        self._number, self._epoch, self._in_epoch = 0, 0, 0
        self._has_gone = False

    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where the inputs are not one row per sample."""
        check_rows(inputs, self.name)

    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an input in the next sample, which is looked at."""
        return shape_in(self._ahead[0], name, self._names) if self._look_ahead() else None

    def read(self, pieces: Sequence[Piece], numbers: range) -> list[Tensor]:
        """The pieces; afterwards the stream stands behind the last of `numbers`."""
        wanted = {number for piece in pieces for number in piece.samples}
        self._seek(numbers.start)
        samples = {}
        for number in numbers:
            sample = self._next()
            if number in wanted:
                samples[number] = sample
        return stack_pieces(samples, pieces, self._names, self.name)

    def is_over(self, number: int) -> bool:
        """Whether sample `number`, the next one, belongs to a second epoch; the stream looks one sample ahead."""
        assert number == self._number, "asked for another sample than the next"
        if self.samples is None and not self._look_ahead():
            self.samples = self._in_epoch
        return self.samples is not None and number >= self.samples

    def place(self) -> dict[str, Any] | None:
        """What comes next, and the state of the iterable where it keeps one."""
        assert not self._ahead, "the iterable stands one sample further"
        has_state = self._keeps_place and hasattr(self._iterable, "state_dict")
        state = copy.deepcopy(self._iterable.state_dict()) if has_state else None
        return {"number": self._number, "epoch": self._epoch, "in_epoch": self._in_epoch, "iterable": state}

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place: by the iterable's own state, else by its epoch, else from the start.

        From there samples are read and left out: from the start, as an iterable without ``set_epoch`` may
        give other samples each time.
        """
        self._start(0)
        number, epoch, state = place["number"], place["epoch"], place["iterable"]
        if state is not None and self._keeps_place and hasattr(self._iterable, "load_state_dict"):
            self._start(epoch, copy.deepcopy(state))
            self._number, self._in_epoch, self._has_gone = number, place["in_epoch"], True
        elif hasattr(self._iterable, "set_epoch"):
            self._start(epoch)
            self._number = number - place["in_epoch"]

    def _seek(self, number: int) -> None:
        """Go to a sample, from the start where it has passed."""
        if self._iterator is None or number < self._number:
            assert not self._has_gone, "a stream that was sent to a place goes on from there"
            self._start(0)
        while self._number < number:
            self._next()

    def _start(self, epoch: int, state: Any = None) -> None:
        """Begin an epoch; sample 0 of it comes next, or what follows on `state`."""
        if self._is_once and self._iterator is not None and self._number:
            raise BuildError(
                f"{self.name} ended after {self._number} samples and cannot be begun again",
                remedy="give an object that `iter` begins anew, or the function that makes it",
            )
        try:
            self._iterable = self._begin()
            if hasattr(self._iterable, "set_epoch"):
                self._iterable.set_epoch(epoch)
            if state is not None:
                self._iterable.load_state_dict(state)
            self._iterator = iter(self._iterable)
        except Exception as error:
            raise users_error(error, f"{self.name} cannot be begun") from error
        self._ahead.clear()
        self._epoch, self._in_epoch = epoch, 0
        if epoch == 0:
            self._number = 0

    def _next(self) -> Any:
        """The next sample, of the next epoch where this one is over."""
        if not self._look_ahead():
            self._end_epoch()
            if not self._look_ahead():
                raise BuildError(f"{self.name} has no samples", remedy="give an iterable that yields some")
        self._number += 1
        self._in_epoch += 1
        return self._ahead.pop()

    def _look_ahead(self) -> bool:
        """Whether this epoch has another sample, which is then in `_ahead`."""
        if self._ahead:
            return True
        if self._iterator is None:
            self._start(0)
        assert self._iterator is not None
        try:
            self._ahead.append(next(self._iterator))
        except StopIteration:
            return False
        except Exception as error:
            raise users_error(error, f"sample {self._number} of {self.name} cannot be read") from error
        return True

    def _end_epoch(self) -> None:
        if self._in_epoch < (expected := _length(self._iterable)):
            raise BuildError(
                f"{self.name} ended after {self._in_epoch} of the {expected} samples it has by `len`",
                remedy="correct its __len__, or give the samples that are missing",
            )
        if self._epoch == 0:
            self.samples = self._in_epoch
        self._start(self._epoch + 1)


def _length(iterable: Any) -> int:
    """How many samples an iterable says it has; 0 where it does not say."""
    try:
        return len(iterable)
    except TypeError:
        return 0
