"""Deferred initialisation: build a model without memory, and record how its tensors would have been filled.

    with deferred_init():
        model = GPT(...)                # on the meta device
    initialisers(model)                 # {"wte.weight": (("normal_", 0.0, 0.02),), ...}

The steps of a tensor are in-place methods, the first of which fills it; a generated program replays them on
the piece it holds. A tensor that is computed without a random number (a table of frequencies, a mask) has no
steps but values, which are computed beside the model on the CPU and belong to it. What is known about a tensor
hangs on its storage, so views, ``detach``, `torch.nn.Parameter` and tied weights share it, and it goes when the
storage goes.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is known of a model's tensors on the meta device; real ones are left out.

    A tensor with two names appears once, under the name `torch.nn.Module.named_parameters` gives it.
    """

    steps: dict[str, Steps]
    """How a tensor is filled, by name."""
    values: dict[str, Tensor]
    """Values of what depends on no random number, and is no mere constant, on the CPU."""
    faults: dict[str, TraceError]
    """Why the rest cannot be filled: a weights file must give them."""


def recorded(model: nn.Module) -> Recorded:
    """How each parameter and buffer on the meta device is filled."""
    stored = [("parameter", *item) for item in model.named_parameters()]
    stored += [("buffer", *item) for item in model.named_buffers()]
    found = Recorded({}, {}, {})
    drawn: dict[object, str] = {}
    for role, name, tensor in stored:
        if not tensor.is_meta:
            continue
        filling = _read(tensor)
        values = _values(tensor) if filling.values is not None else None
        if values is not None:
            found.values[name] = values
        elif filling.fault:
            found.faults[name] = TraceError(
                f"the {role} {name!r} cannot be filled later: {filling.fault}",
                where=filling.where,
                remedy=filling.remedy,
            )
        elif filling.draw in drawn:
            found.faults[name] = TraceError(
                f"the {role} {name!r} is a copy of the random values of {drawn[filling.draw]!r}, "
                "which deferred initialisation would draw anew",
                remedy="tie the two (one tensor under both names), or fill each on its own",
            )
        else:
            found.steps[name] = filling.steps
        if filling.draw is not None:
            drawn.setdefault(filling.draw, name)
    return found


def initialisers(model: nn.Module) -> dict[str, Steps]:
    """How each parameter and buffer on the meta device that is no table of values is filled, by name.

    Raises:
        TraceError: The filling of a tensor could not be recorded, it has none, or its random values are also
            those of another tensor.
    """
    found = recorded(model)
    for fault in found.faults.values():
        raise fault
    return found.steps


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
    values: Tensor | None = field(default=None, compare=False, repr=False)
    """Without steps: the elements of the storage, on the CPU, where they depend on nothing unknown."""


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
        name = _name(function)
        if schema.is_mutable:
            return self._mutate(function, name, bound, args, kwargs)
        if name == "_local_scalar_dense":
            known = _values(args[0])
            return function(args[0] if known is None else known)
        result = function(*args, **kwargs)
        fresh = [
            (i, tensor)
            for i, tensor in enumerate(_tensors(result))
            if tensor.is_meta and not hasattr(tensor.untyped_storage(), _MARK)
        ]
        made = {i: _filling_by(name, bound, tensor) for i, tensor in fresh}
        computed = _computed(function, args, kwargs) if any(item.fault for item in made.values()) else None
        for i, tensor in fresh:
            _mark(tensor, made[i] if computed is None else _with_values(made[i], tensor, computed[i]))
        return result

    def _mutate(self, function: Any, name: str, bound: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
        written = [
            tensor
            for argument in function._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write and name not in _VALUE_FREE
            for tensor in _tensors(bound[argument.name])
        ]
        fillings = [_filling_after(name, bound, tensor) for tensor in written]
        computed = None
        if len(written) == 1 and written[0].is_meta and fillings[0].fault:
            is_replaced = name == "copy_" or function._overloadname.endswith("out")
            whole = is_replaced and _covers_storage(written[0])
            computed = _computed(function, args, kwargs, written[0] if whole else None)
        for tensor, filling in zip(written, fillings, strict=True):
            if tensor.is_meta:
                _mark(tensor, filling if computed is None else _with_values(filling, tensor, computed[0]))
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
        if function in (torch.tensor, torch.as_tensor) and args and isinstance(args[0], (list, tuple)):
            result = function(*args, **(kwargs or {}))
            if result.is_meta and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[0])):
                given = function(*args, **{**(kwargs or {}), "device": "cpu"})
                _mark(result, _with_values(_fault("it is a table of numbers"), result, given))
            return result
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
        return replace(before, values=None)
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


def _filling_after(name: str, bound: Mapping[str, Any], tensor: Tensor) -> _Filling:
    """What is in the storage once operator `name` has overwritten `tensor`, which may be a view of a part."""
    filling = _filling_by(name, bound, tensor)
    if not tensor.is_meta or filling.fault or _covers_storage(tensor) or _read(tensor) == filling:
        return filling
    return _fault(f"`{name}` overwrites a part of it, such as the row of a padding index")


def _computed(
    function: Any, args: Any, kwargs: Mapping[str, Any], overwritten: Tensor | None = None
) -> list[Tensor] | None:
    """What an operator gives for the values of its tensors; None where one is not known, or it draws some.

    An operator that writes into a tensor does so in the values kept for it; those of `overwritten`, which it
    replaces whole, need not be known.
    """
    if torch.Tag.nondeterministic_seeded in function.tags or _name(function) in _EMPTY:
        return None
    unknown: list[Tensor] = []

    def on_cpu(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if not isinstance(leaf, Tensor):
            return leaf
        values = _values(leaf)
        if values is None and leaf is overwritten:
            return torch.empty(leaf.shape, dtype=leaf.dtype, device="cpu")
        unknown.extend([leaf] if values is None else [])
        return values

    cpu_args, cpu_kwargs = tree_map(on_cpu, (args, dict(kwargs)))
    return None if unknown else _tensors(function(*cpu_args, **cpu_kwargs))


def _with_values(filling: _Filling, tensor: Tensor, values: Tensor) -> _Filling:
    """A filling that no steps describe, with the elements of the whole storage; `tensor` has these values."""
    if not filling.fault:
        return filling
    elements = _elements(tensor)
    if elements is None:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        elements = torch.empty(size, dtype=tensor.dtype, device="cpu")
    _view(elements, tensor).copy_(values)
    return replace(filling, values=elements)


def _values(tensor: Tensor) -> Tensor | None:
    """The values of a tensor, on the CPU, where they are known: a view of those kept for its storage."""
    if not tensor.is_meta:
        return tensor
    elements = _elements(tensor)
    return None if elements is None else _view(elements, tensor)


def _elements(tensor: Tensor) -> Tensor | None:
    """All elements of the storage of a tensor on the meta device, where they are known."""
    filling = getattr(tensor.untyped_storage(), _MARK, None)
    if filling is None or filling.draw is not None:
        return None
    if filling.fault:
        return filling.values if filling.values is not None and filling.values.dtype == tensor.dtype else None
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    elements = torch.empty(size, dtype=torch.float64, device="cpu")
    for method, *arguments in filling.steps:
        getattr(elements, method)(*arguments)
    return elements.to(tensor.dtype)


def _view(elements: Tensor, tensor: Tensor) -> Tensor:
    return elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _name(function: Any) -> str:
    return function._schema.name.removeprefix("aten::")


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
