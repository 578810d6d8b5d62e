"""Compiled: the functions of a program that compute most, through `torch.compile`.

These are the functions that run once per layer, and phases whose layers are not functions of their own. What layers do
differs in names only: ``p[f"{at}.mlp.up.weight"]``. So their function is called under one name for all of them, with
the tensors of the layer under that name, and is compiled once.

What moves tensors between ranks is not compiled. A sum that is only started waits for the end of the function, or for
the next communication that is waited for, so that it does not part what `torch.compile` can join.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from superscaler.runtime import ops
from superscaler.runtime.communication import Runtime
from superscaler.runtime.groups import Axis

LAYER = "layer"
"""The name of every layer in a compiled function."""
_OPAQUE = ("dropout", "dropout_backward")
"""Operators that are not compiled: numbers they are given are others in every step."""


def compilable(function: FunctionType) -> FunctionType:
    """Mark a function of a program as one that may be compiled; ``at`` is the name of the layer it runs for, if any."""
    function.__dict__["is_compilable"] = True
    return function


def compile_program(module: Any, runtime: Runtime, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let the functions of a program that are marked go through `torch.compile`, each when it is first called.

    Args:
        module: The program. Its functions are replaced.
        runtime: What it communicates with.
        backend: Of `torch.compile`.
    """
    for name in _OPAQUE:
        setattr(ops, name, torch.compiler.disable(getattr(ops, name)))
    found = {name: own for name, own in vars(module).items() if getattr(own, "is_compilable", False)}
    shared = _RuntimeOfCompiled(runtime)
    for name, function in found.items():
        setattr(module, name, _Compiled(function, shared, backend))


class _Compiled:
    """A function, compiled once for all layers it runs for."""

    def __init__(
        self, function: FunctionType, runtime: "_RuntimeOfCompiled", backend: str | Callable[..., Any]
    ) -> None:
        self._parameters = list(signature(function).parameters)
        named = [constant for constant in function.__code__.co_consts if isinstance(constant, str)]
        self._keys = [LAYER + name if name.startswith(".") else name for name in named]
        self._function = torch.compile(function, backend=backend)
        self._runtime = runtime

    def __call__(self, *arguments: Any) -> Any:
        given = dict(zip(self._parameters, arguments, strict=True))
        at = given.get("at", LAYER)
        dicts = {name: value for name, value in given.items() if isinstance(value, dict) and "at" in given}
        before = {name: self._of_layer(tensors, at) for name, tensors in dicts.items()}
        after = {name: tensors.copy() for name, tensors in before.items()}
        replaced: dict[str, Any] = {**after, "at": LAYER, "rt": self._runtime}
        for ahead in ("gathered", "fetched"):
            if ahead in given:
                replaced[ahead] = _Ahead(given[ahead])
        self._runtime.begin(at, [(after[name], tensors) for name, tensors in dicts.items()])
        result = self._function(*(replaced.get(name, value) for name, value in given.items()))
        self._runtime.launch()
        for name, tensors in dicts.items():
            changed = [key for key, value in after[name].items() if value is not before[name].get(key)]
            tensors |= {_key_of(at, key): after[name][key] for key in changed}
        return result

    def _of_layer(self, tensors: Mapping[str, Tensor], at: str) -> dict[str, Tensor]:
        """Those whose keys the function names; those of the layer as it names them for every layer."""
        return {key: tensors[own] for key in self._keys if (own := _key_of(at, key)) in tensors}


def _key_of(at: str, key: str) -> str:
    """What a layer calls what a compiled function calls `key`."""
    return at + key.removeprefix(LAYER) if key.startswith(f"{LAYER}.") else key


class _Ahead:
    """Parameters that travel ahead of their use."""

    def __init__(self, groups: Iterator[list[Tensor]]) -> None:
        self._next: Any = torch.compiler.disable(lambda: next(groups))

    def __next__(self) -> list[Tensor]:
        return self._next()


class _Start(NamedTuple):
    """A sum that waits to be started."""

    x: Tensor
    axis: Axis
    dim: int | None
    into: dict[str, Tensor]
    name: str
    is_last: bool | None = None
    """None: it is not accumulated."""


_WAITING = (
    "all_gather", "all_reduce", "all_to_all", "exchange", "fetch", "give", "receive", "reduce_scatter", "send", "size",
    "stow", "take", "to_device", "to_host", "wait", "wait_accumulated",
)  # fmt: skip
"""What is not compiled."""


class _RuntimeOfCompiled:
    """What compiled functions communicate with: a `Runtime`, of which `torch.compile` sees no more than the axes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.rank, self.device = runtime.rank, runtime.device
        self._axes = dict(runtime.axes)
        self._starts: list[_Start] = []
        self._at: str = LAYER
        self._dicts: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]] = ()
        for name in _WAITING:
            setattr(self, name, self._waiting(getattr(runtime, name)))
        self.gather_ahead = self._waiting(
            lambda *given, **named: _Ahead(runtime.gather_ahead(*given, **named))
        )
        self.fetch_ahead = self._waiting(lambda *given: _Ahead(runtime.fetch_ahead(*given)))

    def axis(self, name: str, stage: int | None = None) -> Axis:
        return self._axes[name, stage]

    def start_all_reduce(self, x: Tensor, axis: Axis, into: dict[str, Tensor], name: str) -> None:
        self._starts.append(_Start(x, axis, None, into, name))

    def start_reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, into: dict[str, Tensor], name: str
    ) -> None:
        self._starts.append(_Start(x, axis, dim, into, name))

    def accumulate(
        self, x: Tensor, axis: Axis, into: dict[str, Tensor], name: str, is_last: bool, dim: int | None = None
    ) -> None:
        self._starts.append(_Start(x, axis, dim, into, name, is_last))

    def begin(self, at: str, dicts: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
        """A layer begins; per dict of it, what it is a part of."""
        self._at, self._dicts = at, dicts

    def launch(self) -> None:
        """Start the sums that wait."""
        starts, self._starts = self._starts, []
        for start in starts:
            into = next((whole for own, whole in self._dicts if own is start.into), start.into)
            name = _key_of(self._at, start.name)
            if start.is_last is not None:
                self._runtime.accumulate(start.x, start.axis, into, name, start.is_last, start.dim)
            elif start.dim is None:
                self._runtime.start_all_reduce(start.x, start.axis, into, name)
            else:
                self._runtime.start_reduce_scatter(start.x, start.axis, start.dim, into, name)

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the runtime, before which what waits is started."""

        @torch.compiler.disable
        def call(*arguments: Any, **options: Any) -> Any:
            self.launch()
            return method(*arguments, **options)

        return call
