"""Step report: what is told of a training step, measured where the loss is known."""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from superscaler.runtime.build import Build
from superscaler.runtime.ops.learning_rate import learning_rate
from superscaler.runtime.training_run import TrainingRun


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step, and how fast the steps since the report before were."""

    step: int
    """Of the run, from 1."""
    loss: float
    grad_norm: float | None
    """Of all gradients before clipping; None where the program does not compute it."""
    lr: float | list[float] | None
    """Of this step; a list where groups of parameters differ, None where the build does not say."""
    tokens_per_second: float
    """Elements of the first input, over all ranks."""
    seconds: float
    """Per step, on average since the report before."""
    memory_bytes: int
    """The most that the process that reports has held: on a GPU in tensors, else in all."""
    mfu: float | None
    """The part of the devices' peak that the model's products reach (2204.02311); None where the peak is not known."""


class StepWriter(Protocol):
    """Shows or keeps reports."""

    def write(self, report: StepReport) -> None:
        """Take a report."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class StepReports:
    """Tells writers of every so many steps. Only then the loss is waited for.

    Args:
        build: Says how much a step computes.
        device: Whose memory is reported.
        steps: Of the whole run; its last is always reported.
        every: Steps from one report to the next.
        writers: Who is told.
        peak_flops: Per second and device, as measured; by default that of the cluster the build is for.
    """

    def __init__(
        self, build: Build, device: torch.device, steps: int, every: int, writers: Sequence[StepWriter],
        peak_flops: float | None = None,
    ) -> None:  # fmt: skip
        self._device, self._steps, self._every, self._writers = device, steps, every, writers
        self._tokens = torch.Size(next(iter(build.inputs.values()))[1]).numel()
        self._rates = build.learning_rates
        self._work = build.work
        self._peak = peak_flops * build.world_size if peak_flops else build.work.peak_flops
        self._since, self._unreported = time.perf_counter(), 0

    def after_step(self, run: TrainingRun, outputs: Mapping[str, Tensor]) -> None:
        """Report the step, if it is time to."""
        self._unreported += 1
        if run.steps % self._every and run.steps != self._steps:
            return
        loss = float(run.losses[-1])
        now = time.perf_counter()
        seconds = (now - self._since) / self._unreported
        self._since, self._unreported = now, 0
        report = StepReport(
            step=run.steps,
            loss=loss,
            grad_norm=float(outputs["grad_norm"]) if "grad_norm" in outputs else None,
            lr=self._learning_rate(run.step),
            tokens_per_second=self._tokens / seconds,
            seconds=seconds,
            memory_bytes=self._memory(),
            mfu=self._work.model_flops / (seconds * self._peak)
            if self._work.model_flops and self._peak
            else None,
        )
        for writer in self._writers:
            writer.write(report)

    def close(self) -> None:
        """Close the writers."""
        for writer in self._writers:
            writer.close()

    def _learning_rate(self, step: int) -> float | list[float] | None:
        rates = [learning_rate(rate, step) for rate in self._rates]
        if len(rates) > 1:
            return rates
        return rates[0] if rates else None

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
