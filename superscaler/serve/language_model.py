"""A language model is traced on tokens alone; what is none is told from one that cannot be traced, and refused."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils import _pytree as pytree

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph
from superscaler.ir.source_line import failing_line
from superscaler.ir.trace import trace

_EXAMPLE = (2, 16)
"""Sequences and tokens of the example a model is traced with; both vary."""
_WANTED = "a servable model maps tokens, int64 [batch, seq], alone to logits, float [batch, seq, vocab]"
_REMEDY = (
    "serve a causal language model, such as models/llama.py:tiny; for other models, `superscaler compile --inference` "
    "writes a program that runs whole batches"
)
_FOR_TRACE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What any model may meet where there are no values; `trace` says more of it."""
_STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary positions of `transformers` whose factor says for how many times as many tokens they are."""
_SPREAD = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def trace_language_model(model: torch.nn.Module) -> Graph:
    """The graph of a language model on tokens alone, whose batch and length vary.

    Raises:
        TraceError: It is no language model, and the message says what it does, or it cannot be traced.
    """
    model = model.eval()
    name, options = _call(model)
    tokens = torch.zeros(_EXAMPLE, dtype=torch.int64)
    try:
        graph = trace(model, {name: tokens, **options}, dynamic={name: ("batch", "seq")})
    except Exception:
        _verify_takes_tokens(
            model, name, options
        )  # where tokens are nothing to it, the fault found is none of its own
        raise
    logits = graph.tensors[graph.outputs[0]] if graph.outputs else None
    wanted = graph.tensors[graph.inputs[0]].shape
    if logits is None or len(logits.shape) != 3 or logits.shape[:2] != wanted or "float" not in logits.dtype:
        raise _refusal(model, f"returns {logits}")
    return graph


def next_logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """What a language model says of the token after each: logits [batch, seq, vocab] of tokens [batch, seq]."""
    if is_of_transformers(model):
        return model(input_ids=tokens, use_cache=False).logits
    return model(tokens)


def configured_length(model: torch.nn.Module) -> int | None:
    """Tokens of the longest sequence that a model of `transformers` is for; None where it does not say.

    Rotary positions are computed for any number of tokens, but beyond those that the model was trained for, or that
    its positions are stretched to, what it says means nothing.
    """
    if not is_of_transformers(model):
        return None
    config: Any = model.config
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) or {}
    if positions is None or rotary.get("rope_type") not in _STRETCHED:
        return positions
    stretched = (rotary.get("original_max_position_embeddings") or positions) * rotary.get("factor", 1.0)
    return max(positions, int(stretched))


def is_of_transformers(model: torch.nn.Module) -> bool:
    """Whether a model is one of that library, and so has its kind of configuration."""
    return hasattr(model, "generate") and hasattr(model, "config")


def _call(model: torch.nn.Module) -> tuple[str, dict[str, Any]]:
    """The parameter of ``forward`` that takes the tokens, and what else is said to it."""
    if is_of_transformers(model):
        return "input_ids", {"use_cache": False}
    parameters = inspect.signature(model.forward).parameters.values()
    named = [one for one in parameters if one.kind not in _SPREAD]
    needed = [one.name for one in named if one.default is one.empty]
    if len(needed) > 1:
        raise _refusal(model, f"needs {', '.join(needed)}")
    if not named:
        raise _refusal(model, "names no input")
    return named[0].name, {}


def _verify_takes_tokens(model: torch.nn.Module, name: str, options: dict[str, Any]) -> None:
    """Run a model that could not be traced once on tokens, without values: can it be run, and makes it logits?"""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _without_log():
            stored = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            values = {
                key: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                for key, value in stored.items()
            }
            tokens = torch.zeros(_EXAMPLE, dtype=torch.int64)
            output = torch.func.functional_call(model, values, (), {name: tokens, **options})
    except _FOR_TRACE:
        return
    except Exception as error:  # whatever a model raises at what it is not for
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refusal(model, f"cannot be run on tokens: {reason}", failing_line(error)) from None
    first = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)), None)
    if first is None or first.dim() != 3 or first.shape[:2] != _EXAMPLE or not first.is_floating_point():
        found = "no tensor" if first is None else f"{first.dtype} {list(first.shape)}".removeprefix("torch.")
        raise _refusal(model, f"makes {found} of {list(_EXAMPLE)} tokens")


@contextmanager
def _without_log() -> Iterator[None]:
    """Without torch's log of an operator that refuses its arguments: the error says it in a line."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _refusal(model: torch.nn.Module, does: str, where: str = "") -> TraceError:
    name = type(model).__name__
    return TraceError(f"{name} cannot be served: {_WANTED}, and this one {does}", where=where, remedy=_REMEDY)
