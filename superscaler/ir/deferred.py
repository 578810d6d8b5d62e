"""Deferred initialisation: build a model without memory, and record how its tensors would have been filled.

    with deferred_init():
        model = GPT(...)                # on the meta device
    initialisers(model)                 # {"wte.weight": (("normal_", 0.0, 0.02),), ...}

The steps of a tensor are in-place methods, the first of which fills it; a generated program replays them on
the piece it holds. What is known about a tensor hangs on its storage, so views, ``detach``,
`torch.nn.Parameter` and tied weights share it, and it goes when the storage goes.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from superscaler.errors import TraceError
from superscaler.ir.provenance import user_line

Steps = tuple[tuple[Any, ...], ...]
"""Names of in-place methods with their arguments, all numbers."""

_MARK = "superscaler_filling"
"""The attribute of a storage that holds its `_Filling`."""

_EMPTY = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_CONSTANTS = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "zero_": 0.0,
              "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}  # fmt: skip
_FULL = {"full": "fill_value", "full_like": "fill_value", "new_full": "fill_value",
         "fill_": "value", "scalar_tensor": "s"}  # fmt: skip
_UNIFORM = {"rand", "rand_like", "uniform_"}
_NORMAL = {"randn", "randn_like", "normal_"}
_COPIES = {"clone", "_to_copy", "copy_"}
_VALUE_FREE = {"detach_", "requires_grad_", "set_requires_grad"}
_UNARY = {"abs", "ceil", "cos", "erf", "erfinv", "exp", "expm1", "floor", "log", "log1p", "neg", "reciprocal",
          "round", "rsqrt", "sigmoid", "sin", "sqrt", "square", "tan", "tanh"}  # fmt: skip


@contextmanager
def deferred_init() -> Iterator[None]:
    """Make tensors on the meta device, and record on each how it would have been filled.

    A tensor made with an explicit ``device="cpu"``, or inside ``with torch.device("cpu")``, is real, and its
    values belong to the model.
    """
    original = nn.init._no_grad_trunc_normal_

    def trunc_normal_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_truncated_normal if tensor.is_meta else original)(tensor, *args, **kwargs)

    # Recent versions of torch skip meta tensors here, and sample by rejection otherwise: nothing to record.
    nn.init._no_grad_trunc_normal_ = trunc_normal_
    try:
        with torch.device("meta"), _Undispatched(), _Recorder():
            yield
    finally:
        nn.init._no_grad_trunc_normal_ = original


def initialisers(model: nn.Module) -> dict[str, Steps]:
    """How each parameter and buffer on the meta device is filled, by name; real tensors are left out.

    A tensor with two names appears once, under the name `torch.nn.Module.named_parameters` gives it.

    Raises:
        TraceError: The filling of a tensor could not be recorded, it has none, or its random values are also
            those of another tensor.
    """
    stored = [("parameter", *item) for item in model.named_parameters()]
    stored += [("buffer", *item) for item in model.named_buffers()]
    steps: dict[str, Steps] = {}
    drawn: dict[object, str] = {}
    for role, name, tensor in stored:
        if not tensor.is_meta:
            continue
        filling = _read(tensor)
        if filling.fault:
            raise TraceError(
                f"the {role} {name!r} cannot be filled later: {filling.fault}",
                where=filling.where,
                remedy=filling.remedy,
            )
        if filling.draw in drawn:
            raise TraceError(
                f"the {role} {name!r} is a copy of the random values of {drawn[filling.draw]!r}, "
                "which deferred initialisation would draw anew",
                remedy="tie the two (one tensor under both names), or fill each on its own",
            )
        if filling.draw is not None:
            drawn[filling.draw] = name
        steps[name] = filling.steps
    return steps


@dataclass(frozen=True, slots=True)
class _Filling:
    """What is known about the values of one storage."""

    steps: Steps = ()
    draw: object | None = None
    """Identifies the random draw, for random values; None for constants."""
    fault: str = ""
    """Why the steps are not known."""
    where: str = ""
    remedy: str = ""


def _fault(reason: str, remedy: str = "") -> _Filling:
    usual = (
        "fill it whole with functions of torch.nn.init such as normal_, uniform_ and constant_, "
        'or make it inside `with torch.device("cpu"):` so that the model brings its values'
    )
    return _Filling(fault=reason, where=user_line(), remedy=remedy or usual)


def _random(*step: Any) -> _Filling:
    return _Filling((step,), draw=object())


def _constant(value: float) -> _Filling:
    return _Filling((("fill_", value),))


class _Recorder(TorchDispatchMode):
    """Writes on every meta storage what each operator leaves in it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = function._schema
        bound = {argument.name: argument.default_value for argument in schema.arguments}
        bound.update(zip((argument.name for argument in schema.arguments), args, strict=False))
        bound.update(kwargs)
        name = schema.name.removeprefix("aten::")
        if not schema.is_mutable:
            result = function(*args, **kwargs)
            for tensor in _tensors(result):
                if tensor.is_meta and not hasattr(tensor.untyped_storage(), _MARK):
                    _mark(tensor, _filling_by(name, bound, tensor))
            return result
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write and name not in _VALUE_FREE:
                for tensor in _tensors(bound[argument.name]):
                    _overwrite(tensor, _filling_by(name, bound, tensor), name)
        return function(*args, **kwargs)


class _Undispatched(TorchFunctionMode):
    """Catches what never reaches the dispatcher: numbers made into tensors, and fillings that torch skips."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in (torch.tensor, torch.as_tensor) and args and isinstance(args[0], (bool, int, float)):
            return torch.full((), *args, **(kwargs or {}))
        # Python code of torch.nn.init that asks this is about to skip the tensor.
        if function == torch.Tensor.is_meta.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__") == "torch.nn.init" and function(*args):
                _mark(args[0], _fault(f"torch.nn.init.{caller.f_code.co_name} is no elementwise filling"))
        return function(*args, **(kwargs or {}))


def _filling_by(name: str, bound: Mapping[str, Any], target: Tensor) -> _Filling:
    """What `target` holds after operator `name` made or overwrote it with these arguments."""
    if name in _EMPTY:
        return _fault("nothing has filled it yet")
    if name in _CONSTANTS:
        return _constant(_CONSTANTS[name])
    if name in _FULL and isinstance(bound[_FULL[name]], (bool, int, float)):
        return _constant(bound[_FULL[name]])
    if name in _UNIFORM:
        return _random("uniform_", float(bound.get("from", 0.0)), float(bound.get("to", 1.0)))
    if name in _NORMAL:
        return _random("normal_", float(bound.get("mean", 0.0)), float(bound.get("std", 1.0)))
    source = bound.get("src") if name == "copy_" else bound.get("self")
    more = () if name in _COPIES else _pointwise(name.removesuffix("_"), bound)
    if more is None or not isinstance(source, Tensor) or not source.is_meta:
        return _fault(f"it depends on the result of `{name}`, which is not recorded")
    return _continued(source, more, target)


def _continued(source: Tensor, more: Steps, target: Tensor) -> _Filling:
    """What `target` holds when it was computed from `source`, element by element."""
    before = _read(source)
    if before.fault:
        return before
    if before.draw is not None and source.numel() != target.numel():
        return _fault("it repeats random values")
    if source.dtype != target.dtype and not (source.is_floating_point() and target.is_floating_point()):
        return _fault(f"it is converted from {source.dtype} to {target.dtype}")
    return _Filling((*before.steps, *more), before.draw)


def _pointwise(name: str, bound: Mapping[str, Any]) -> Steps | None:
    """Operator `name` on a tensor and numbers, as in-place steps; None where it is something else."""
    rest = {key: value for key, value in bound.items() if key not in ("self", "out")}
    if any(isinstance(value, (Tensor, complex, str)) for value in rest.values()):
        return None
    if name in _UNARY:
        return ((f"{name}_",),) if not rest.get("decimals") else None
    if name in ("mul", "div"):
        return ((f"{name}_", rest["other"]),)
    if name in ("add", "sub"):
        return ((f"{name}_", rest["other"] * rest.get("alpha", 1)),)
    if name == "rsub":
        return (("mul_", -rest.get("alpha", 1)), ("add_", rest["other"]))
    if name == "pow" and "exponent" in rest:
        return (("pow_", rest["exponent"]),)
    if name in ("clamp", "clamp_min", "clamp_max"):
        return (("clamp_", rest.get("min"), rest.get("max")),)
    return None


def _overwrite(tensor: Tensor, filling: _Filling, name: str) -> None:
    """Note that operator `name` left `filling` in `tensor`, which may be a view of a larger storage."""
    if not tensor.is_meta:
        return
    if filling.fault or _covers_storage(tensor) or _read(tensor) == filling:
        _mark(tensor, filling)
    else:
        _mark(tensor, _fault(f"`{name}` overwrites a part of it, such as the row of a padding index"))


def _read(tensor: Tensor) -> _Filling:
    """What `tensor` holds."""
    filling = getattr(tensor.untyped_storage(), _MARK, None)
    if filling is None:
        return _Filling(
            fault="it was made from Python numbers, or outside `with deferred_init():`",
            remedy="make the whole model inside, conversions of dtype included; "
            'make tables of numbers inside `with torch.device("cpu"):`',
        )
    if filling.draw is not None and not _covers_storage(tensor):
        return _Filling(
            fault="it is a part of a larger random tensor",
            where=user_line(),
            remedy="draw each tensor on its own",
        )
    return filling


def _covers_storage(tensor: Tensor) -> bool:
    """Whether every element of the storage is one element of `tensor`."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    overlaps = any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return whole and not overlaps


def _mark(tensor: Tensor, filling: _Filling) -> None:
    setattr(tensor.untyped_storage(), _MARK, filling)


def _tensors(value: Any) -> list[Tensor]:
    items = value if isinstance(value, (tuple, list)) else [value]
    return [item for item in items if isinstance(item, Tensor)]


@torch.no_grad()
def _truncated_normal(
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None
) -> Tensor:
    """Fill with a normal distribution cut off at `a` and `b`: the inverse of its cumulative function."""
    low, high = ((1 + math.erf((bound - mean) / (std * math.sqrt(2)))) / 2 for bound in (a, b))
    tensor.uniform_(2 * low - 1, 2 * high - 1, generator=generator)
    return tensor.erfinv_().mul_(std * math.sqrt(2)).add_(mean).clamp_(a, b)
