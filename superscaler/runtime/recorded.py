"""Recorded: a training step that is put on record once, and from then on replayed without running its Python.

A record knows its tensors by their place in memory. So what changes from step to step is copied to places of its own:
the batch, and the number of the step, from which the program computes learning rates and random numbers on the device.
Parameters and optimizer states are updated where they lie.

The first steps are not recorded, but run as every step does without a record. In them all is made that stays: states,
communicators, compiled code. The number of the very first is one of Python's, by which optimizers know that their
states are new; the others have it in a tensor, as the recorded one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from superscaler.errors import BuildError, SuperscalerError
from superscaler.runtime.communication import Runtime
from superscaler.runtime.waits import Waits

WARM_UP = 3
"""Steps before the recorded one."""
Outputs = dict[str, Tensor]


class Recording(Protocol):
    """What was recorded of a step."""

    def replay(self) -> None:
        """Do all of it again, from and into the same memory."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Recorder(Protocol):
    """Makes recordings."""

    def warm_up(self, step: Callable[[], Outputs]) -> Outputs:
        """Run a step as it will be recorded, but without a record."""
        ...

    def record(self, step: Callable[[], Outputs]) -> tuple[Outputs, Recording]:
        """Record a step without doing what it does; also returns the outputs, which every replay overwrites.

        Raises:
            RuntimeError: The step reads on the host what the device computes, or does else what has no record.
        """
        ...


class RecordedStep:
    """A program's ``train_step``, called as that is, which is recorded after some steps and then replayed.

    Args:
        train_step: Of the program.
        recorder: Records it.
        waits: Told of every replay.
        ranks: All that take part.
        warm_up: Steps before the recorded one.
    """

    def __init__(
        self, train_step: Callable[..., Outputs], recorder: Recorder, waits: Waits, ranks: Sequence[int],
        warm_up: int = WARM_UP,
    ) -> None:  # fmt: skip
        self._train_step, self._recorder = train_step, recorder
        self._waits, self._ranks = waits, tuple(ranks)
        self._warm_up, self._done = warm_up, 0
        self._inputs: list[dict[str, Tensor]] = []
        self._number: Tensor | None = None
        self._outputs: Outputs = {}
        self._updated: dict[str, Tensor] = {}
        self._recording: Recording | None = None

    def __call__(
        self, p: Mapping[str, Tensor], state: Mapping[str, Tensor], micro_batches: Sequence[Mapping[str, Tensor]],
        step: int, rt: Runtime,
    ) -> Outputs:  # fmt: skip
        """Train one step; see the program.

        Raises:
            BuildError: The step cannot be recorded, or its parameters and states are not those it was recorded with.
        """
        number = self._take(micro_batches, step, rt.device)

        def run() -> Outputs:
            return self._train_step(p, state, self._inputs, number if self._done else step, rt)

        if self._done < self._warm_up:
            outputs = self._recorder.warm_up(run)
        else:
            updated = {**p, **state}
            if self._recording is None:
                self._outputs, self._recording = self._record(run, updated, step)
            self._check_places(updated)
            with self._waits.during("the replay of a recorded step", "all axes", self._ranks):
                self._recording.replay()
            outputs = self._outputs
        self._done += 1
        return {name: x.clone() for name, x in outputs.items()}

    def close(self) -> None:
        """Let go of the record, before the communicators go that it uses."""
        if self._recording is not None:
            self._recording.close()

    def _take(self, micro_batches: Sequence[Mapping[str, Tensor]], step: int, device: torch.device) -> Tensor:
        """Put what is this step's where the record looks for it; the number of the step, int64 []."""
        if self._number is None:
            self._number = torch.empty((), dtype=torch.int64, device=device)
            self._inputs = [{name: torch.empty_like(x) for name, x in one.items()} for one in micro_batches]
        self._number.fill_(step)
        for places, given in zip(self._inputs, micro_batches, strict=True):
            for name, place in places.items():
                place.copy_(given[name], non_blocking=True)
        return self._number

    def _record(
        self, run: Callable[[], Outputs], updated: dict[str, Tensor], step: int
    ) -> tuple[Outputs, Recording]:
        places = {name: x.data_ptr() for name, x in updated.items()}
        try:
            outputs, recording = self._recorder.record(run)
        except (RuntimeError, SuperscalerError) as error:
            raise BuildError(
                f"step {step} cannot be recorded for --cuda-graphs: {str(error).strip().splitlines()[0]}",
                remedy="train without --cuda-graphs, or without what the program does there",
            ).with_traceback(error.__traceback__) from error
        assert {name: x.data_ptr() for name, x in updated.items()} == places, "states are updated in place"
        self._updated = updated
        return outputs, recording

    def _check_places(self, held: Mapping[str, Tensor]) -> None:
        for name, recorded in self._updated.items():
            if held[name] is not recorded:
                raise BuildError(
                    f"{name!r} is another tensor than when the step was recorded, which would not see it",
                    remedy=f"copy into the one that is there: weights[{name!r}].copy_(...)",
                )


def record_program(
    module: Any, recorder: Recorder, waits: Waits, ranks: Sequence[int], warm_up: int = WARM_UP
) -> RecordedStep:
    """Let the ``train_step`` of a program be recorded and replayed; see `RecordedStep`."""
    module.train_step = RecordedStep(module.train_step, recorder, waits, ranks, warm_up)
    return module.train_step
