"""Trace: an ordinary ``nn.Module`` and example inputs become one joint Graph.

The model runs once on fake tensors: nothing is computed, nothing is allocated, and the device may be one
that is not there. Forward and backward are captured as one FX graph of ATen operators; the optimizer's
update is appended, one operator per parameter.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from superscaler.errors import TraceError
from superscaler.ir import deferred
from superscaler.ir.autocast import autocast as autocast_to
from superscaler.ir.checkpointing import unrolled_checkpoints
from superscaler.ir.dynamic import Dynamic, Symbols
from superscaler.ir.float8 import with_float8
from superscaler.ir.functional import without_mutations
from superscaler.ir.give_rules import give_rules
from superscaler.ir.graph import Graph
from superscaler.ir.import_fx import import_fx, kind_of
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import Optimizer
from superscaler.ir.provenance import Provenance, note_of, noting
from superscaler.ir.source_line import failing_line, user_line
from superscaler.ir.update import SCALE, STEP, append_updates
from superscaler.ir.verify import verify_graph
from superscaler.ir.whole import Capture


def trace(
    model: torch.nn.Module,
    args: Sequence[Any] | Mapping[str, Any],
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: Optimizer | None = None,
    initialisers: Mapping[str, Any] | None = None,
    name: str | None = None,
    autocast: str = "",
    float8: bool = False,
    loss_scale: LossScale | str | None = None,
    dynamic: Dynamic | None = None,
) -> Graph:
    """Capture `model` on example inputs as one graph.

    Args:
        model: Any module; it may live on the meta device.
        args: Example inputs of the whole global batch: positional in a tuple, or by name in a dict. Values of
            tensors do not matter, shapes and dtypes do; dim 0 of every input is the batch.
        kwargs: Further inputs by name.
        loss: Maps the model's output to the scalar to minimise; without it the output (or its field
            ``loss``, or its first item) is the loss.
        optimizer: One of `superscaler.ir.optimizers`, such as ``AdamW(lr=3e-4)``; with it the graph is a
            training step, without it inference.
        initialisers: How parameters are filled before the first step (`superscaler.ir.deferred`), for a
            model on the meta device.
        name: The graph's name; by default the model's class, in lower case.
        autocast: ``"bfloat16"`` or ``"float16"``: the forward pass computes as under ``torch.autocast``, and
            parameters stay as precise as they are.
        float8: Whether linear layers that compute in bfloat16 multiply in float8, forward and backward, with a scale
            per row (`superscaler.runtime.ops.float8`), where their sizes are multiples of 16.
        loss_scale: A `LossScale`, or ``"dynamic"`` for its defaults: gradients are those of the loss times a
            number that shrinks when they overflow; such a step is skipped.
        dynamic: For inference: which dims of which inputs vary from run to run, and a name for each such size:
            ``{"tokens": {0: "batch", 1: "seq"}}`` or ``{"tokens": ("batch", "seq")}``. Dims of one name agree.
            The example has at least 2 of each.

    Raises:
        TraceError: The model branches on the values of tensors, its loss is no scalar, it holds an
            operator that cannot be captured, or it fixes a size that should vary; no layer can multiply in float8.
    """
    bound = _bind(model, args, kwargs or {})
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    scaling = LossScale.of(loss_scale) if optimizer else None
    trainable = [key for key, value in parameters.items() if value.requires_grad] if optimizer else []
    names = _input_names(bound, {*parameters, *buffers, STEP})
    symbols = _symbols(dynamic, names, bound, is_training=optimizer is not None)
    captured, overwritten = _capture(
        model,
        bound,
        names,
        {**parameters, **buffers},
        loss,
        trainable,
        autocast,
        is_scaled=scaling is not None,
        symbols=symbols,
    )
    _check_overwritten(overwritten, parameters, captured, is_training=optimizer is not None)
    graph = import_fx(
        captured,
        name or type(model).__name__.lower(),
        parameters=list(parameters),
        buffers=list(buffers),
        inputs=names,
        trainable=trainable,
        overwritten=overwritten,
        step=STEP,
        scale=SCALE if scaling else "",
        symbols=symbols,
    )
    if optimizer:
        graph = append_updates(graph, optimizer, trainable, scaling)
    stored = {**parameters, **buffers}
    recorded = deferred.recorded(model)
    values = {key: value.detach() for key, value in stored.items() if not value.is_meta} | recorded.values
    if initialisers is None:
        initialisers = recorded.steps
    graph = replace(
        graph,
        autocast=autocast,
        values={**graph.values, **values},
        initialisers={key: tuple(tuple(step) for step in steps) for key, steps in initialisers.items()},
        saved_as={**_saved_as(model, stored), **dict.fromkeys(graph.values, ())},
    )
    graph = give_rules(with_float8(graph) if float8 else graph)
    verify_graph(graph)
    return graph


def _saved_as(model: torch.nn.Module, stored: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, ...]]:
    """The names each stored tensor has in the model's ``state_dict``, where that is not its own name alone."""
    names: dict[int, list[str]] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(key)
    by_tensor = {key: names.get(id(value), []) for key, value in stored.items()}
    return {key: tuple(found) for key, found in by_tensor.items() if found != [key]}


def _symbols(
    dynamic: Dynamic | None, names: Sequence[str], bound: inspect.BoundArguments, *, is_training: bool
) -> Symbols | None:
    """The sizes that vary; None where none do."""
    if not dynamic:
        return None
    if is_training:
        raise TraceError(
            "sizes that vary are for inference: a training step divides by the size of its whole batch",
            where=user_line(),
            remedy="leave out dynamic=..., or the optimizer",
        )
    leaves = (leaf for leaf in pytree.tree_leaves(dict(bound.arguments)) if isinstance(leaf, torch.Tensor))
    return Symbols(dynamic, dict(zip(names, leaves, strict=True)))


def _bind(model: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    """The inputs by the names of ``forward``'s parameters: all of them, and none left over."""
    if isinstance(args, torch.Tensor):
        args = (args,)
    positional, named = ((), {**args, **kwargs}) if isinstance(args, Mapping) else (tuple(args), dict(kwargs))
    try:
        return inspect.signature(model.forward).bind(*positional, **named)
    except TypeError as error:
        raise TraceError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}",
            where=user_line(),
            remedy=f"its parameters are {inspect.signature(model.forward)}",
        ) from None


def _input_names(bound: inspect.BoundArguments, taken: set[str]) -> list[str]:
    """A readable name per tensor among the inputs, different from the names in `taken`."""
    spread = {name for name, item in bound.signature.parameters.items() if item.kind is item.VAR_KEYWORD}
    names: list[str] = []
    for path, leaf in pytree.tree_flatten_with_path(dict(bound.arguments))[0]:
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        name = "_".join(keys[1:] if keys[0] in spread else keys)
        while isinstance(leaf, torch.Tensor) and name in taken:
            name += "_input"
        if isinstance(leaf, torch.Tensor):
            taken.add(name)
            names.append(name)
    return names


def _capture(
    model: torch.nn.Module,
    bound: inspect.BoundArguments,
    names: Sequence[str],
    stored: Mapping[str, torch.Tensor],
    loss: Callable[[Any], torch.Tensor] | None,
    trainable: list[str],
    autocast: str,
    is_scaled: bool,
    symbols: Symbols | None,
) -> tuple[torch.fx.GraphModule, tuple[str, ...]]:
    """The joint graph, and the names of the stored tensors it overwrites: their new values are its last results."""
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=symbols.environment if symbols else None)
    leaves, structure = pytree.tree_flatten(dict(bound.arguments))
    given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    mode = "symbolic" if symbols else "fake"
    with fake:
        stored_fakes = [_fake(value, key in trainable) for key, value in stored.items()]
        leaf_fakes = [
            torch.empty(symbols.shape(name, leaf), dtype=leaf.dtype) if symbols else _fake(leaf, False)
            for name, leaf in zip(names, given, strict=True)
        ]
        step = torch.empty((), dtype=torch.int64)
        scale = [torch.empty(())] if is_scaled else []

    def joint(stored_values: list[Any], inputs: list[Any], step_value: Any, scales: list[Any]) -> list[Any]:
        provenance = Provenance(Capture(step_value))
        fed = iter(inputs)
        rebuilt = [next(fed) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        values = dict(zip(stored, stored_values, strict=True))
        with provenance, provenance.watching(model), autocast_to(autocast):
            call = inspect.BoundArguments(bound.signature, pytree.tree_unflatten(rebuilt, structure))
            output = torch.func.functional_call(model, values, call.args, call.kwargs)
            target = _scalar(output, loss, model) if trainable else None
        if target is None:
            return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        with noting({"call": -1, "module": "", "source": "", "phase": "B"}):
            seed = scales[0].to(target.dtype).reshape(target.shape) if scales else None
            wanted = [values[key] for key in trainable]
            gradients = torch.autograd.grad(target, wanted, seed, allow_unused=True)
        return [target, *gradients]

    try:
        grad_mode = torch.enable_grad() if trainable else torch.no_grad()
        with unrolled_checkpoints(), grad_mode, _varying(symbols):
            captured = make_fx(joint, tracing_mode=mode, _allow_non_fake_inputs=True)(
                stored_fakes, leaf_fakes, step, scale
            )
            functional, overwritten = without_mutations(
                captured, (stored_fakes, leaf_fakes, step, scale), mode
            )
    except (DataDependentOutputException, GuardOnDataDependentSymNode) as error:
        raise TraceError(
            f"{type(model).__name__} decides by the value of a tensor, and so is not one graph ({error})",
            where=failing_line(error),
            remedy="replace the branch by torch.where, or move the decision out of the model",
        ) from None
    except UnsupportedOperatorException as error:
        raise TraceError(
            f"{type(model).__name__} calls {error.func}, which does not tell the shapes of its results",
            where=failing_line(error),
            remedy=f"declare them: torch.library.register_fake({kind_of(error.func).replace('.', '::')!r})",
        ) from None
    return functional, tuple(list(stored)[number] for number in overwritten)


def _check_overwritten(
    names: Sequence[str], parameters: Mapping[str, Any], captured: torch.fx.GraphModule, *, is_training: bool
) -> None:
    """Buffers may change in a training step, such as running means; nothing else may."""
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    for name, value in zip(names, output.args[0][-len(names) :] if names else (), strict=True):
        if name in parameters or not is_training:
            what = "parameter" if name in parameters else "buffer"
            raise TraceError(
                f"the model overwrites its own {what} {name!r}"
                + ("" if name in parameters else ", and would answer differently the next time"),
                where=note_of(value.meta).get("source", ""),
                remedy="let the optimizer change parameters"
                if name in parameters
                else "call model.eval() first where that stops it, or keep the tensor outside of the model",
            )


def _varying(symbols: Symbols | None) -> AbstractContextManager[None]:
    return symbols.tracing() if symbols else nullcontext()


def _fake(value: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """A stand-in of the same shape and dtype; called inside a fake tensor mode."""
    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device="cpu", requires_grad=requires_grad
    )


def _scalar(output: Any, loss: Callable[[Any], torch.Tensor] | None, model: torch.nn.Module) -> torch.Tensor:
    """The loss in the model's output."""
    value = loss(output) if loss else getattr(output, "loss", None)
    if value is None:
        value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TraceError(
            f"the loss of {type(model).__name__} is {shape}, not one number that depends on its parameters",
            where=user_line(),
            remedy="pass loss=..., a function from the model's output to a scalar tensor",
        )
    return value
