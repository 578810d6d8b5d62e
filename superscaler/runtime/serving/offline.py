"""Offline: continue prompts in a script or a notebook, without a server."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path

import torch

from superscaler.errors import RequestError
from superscaler.runtime.loaded import load
from superscaler.runtime.serving.engine import Engine
from superscaler.runtime.serving.request import FinishReason, Request
from superscaler.runtime.serving.sampling import Logprobs
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings, make_engine
from superscaler.runtime.serving.worker import Worker

_DEFAULT_SETTINGS = Settings()
_DEFAULT_PARAMS = SamplingParams()


@dataclass(frozen=True, slots=True)
class Continuation:
    """What follows a prompt."""

    tokens: tuple[int, ...]
    logprobs: tuple[Logprobs | None, ...]
    """Of each token; None where they were not asked for."""
    finish_reason: FinishReason


def load_engine(
    folder: Path | str,
    settings: Settings = _DEFAULT_SETTINGS,
    *,
    weights: Path | str | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    compile: bool = False,
) -> Engine:
    """An engine in this process, over a build for one device.

    Args:
        folder: A build that `superscaler.serve` compiled.
        settings: How to serve.
        weights: A safetensors file or folder; by default those of the build, else its initialisers.
        device: Where it runs; by default the GPU where there is one.
        seed: Of the initialisers.
        compile: Let what layers compute go through `torch.compile`.

    Raises:
        BuildError: The folder is no such build, or one for several devices.
    """
    program = load(folder, device, weights, seed, compile=compile)
    return make_engine(Worker(program, settings.host_pages), settings)


def generate(
    engine: Engine, prompts: Iterable[Sequence[int]], params: SamplingParams = _DEFAULT_PARAMS
) -> list[list[Continuation]]:
    """Continue prompts of token ids; for each its `n` continuations. Whatever ends this leaves the engine idle.

    Raises:
        RequestError: A prompt is none, or can never be served.
    """
    if params.stop:
        raise RequestError(
            f"stop is {params.stop}, and generate knows tokens, not texts", remedy="give stop_token_ids"
        )
    requests = [
        Request(f"offline-{number}", _tokens(number, prompt), params) for number, prompt in enumerate(prompts)
    ]
    found = {request.id: [_Growing() for _ in range(params.n)] for request in requests}
    try:
        for request in requests:
            engine.add(request)
        while not engine.is_idle:
            for output in engine.step():
                found[output.request_id][output.index].add(
                    output.tokens, output.logprobs, output.finish_reason
                )
    except BaseException:
        for request in requests:
            engine.end(request.id)
        raise
    return [[one.whole() for one in each] for each in found.values()]


def _tokens(number: int, prompt: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(map(index, prompt))
    except TypeError as error:
        raise RequestError(
            f"prompt {number} is {prompt!r:.60}",
            remedy="a prompt is a list of token ids; the model's tokenizer makes them of a text",
        ) from error


class _Growing:
    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._logprobs: list[Logprobs | None] = []
        self._reason: FinishReason | None = None

    def add(
        self, tokens: Iterable[int], logprobs: Iterable[Logprobs | None], reason: FinishReason | None
    ) -> None:
        self._tokens += tokens
        self._logprobs += logprobs
        self._reason = reason

    def whole(self) -> Continuation:
        assert self._reason is not None, "an engine that is idle has ended all of its sequences"
        return Continuation(tuple(self._tokens), tuple(self._logprobs), self._reason)
