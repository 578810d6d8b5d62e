"""Eager: training as one writes it in plain PyTorch, which is what plans are compared with."""

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from superscaler.codegen.eager_float8 import Float8Linears
from superscaler.ir.autocast import autocast
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.kinds import resolve
from superscaler.ir.optimizers import MASTER, OPTIMIZERS
from superscaler.ir.update import NORM

_OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Eager:
    """The model itself, with autograd, torch's clipping and an optimizer of torch.

    Args:
        graph: What was traced: the options of the update are read from it.
        model: The module; a copy of it is trained.
        loss: Maps the model's output to a scalar, as given to ``trace``.
    """

    def __init__(self, graph: Graph, model: torch.nn.Module, loss: Callable[[Any], Tensor] | None) -> None:
        self.graph, self.loss = graph, loss
        self.model = copy.deepcopy(model)
        self.parameters = {name: p for name, p in self.model.named_parameters() if name in graph.updates}
        self.updates = {name: graph.writer[graph.updates[name]] for name in self.parameters}
        self.update = _Update(self.updates, self.parameters)
        kinds = {operator.kind: operator for operator in graph.operators}
        self.clip_norm = (
            kinds["clip_coefficient"].keyword("max_norm") if "clip_coefficient" in kinds else None
        )
        self.scaler = _scaler(kinds)

    def step(
        self, call: inspect.BoundArguments, batch: Mapping[str, Tensor], step: int
    ) -> dict[str, dict[str, Tensor]]:
        """Train one step: the loss, every gradient as it was before clipping, and all stored tensors after it."""
        if not self.graph.is_training:
            return self._infer(call)
        for parameter in self.parameters.values():
            parameter.grad = None
        with autocast(self.graph.autocast), Float8Linears() if self.graph.float8 else nullcontext():
            target = self._loss(call)
        self.scaler.scale(target).backward()
        gradients = {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}
        outputs = {self.graph.outputs[0]: target.detach()}
        self.update.begin(step)
        self.scaler.unscale_(self.update.optimizer)
        if self.clip_norm is not None:
            targets = self.update.targets
            outputs[NORM] = torch.nn.utils.clip_grad_norm_(targets, self.clip_norm, foreach=False)
        self.scaler.step(self.update.optimizer)
        self.scaler.update()
        self.update.end()
        stored = (*self.model.named_parameters(), *self.model.named_buffers())
        readers = self.graph.readers
        state = {name: value.detach().clone() for name, value in stored if readers.get(name)}
        state.update((name, value.clone()) for name, value in self.update.states().items())
        return {"loss": outputs, "gradients": gradients, "parameters": state}

    def _loss(self, call: inspect.BoundArguments) -> Tensor:
        output = self.model(*call.args, **call.kwargs)
        target = self.loss(output) if self.loss else getattr(output, "loss", None)
        if target is None:
            target = output[0] if isinstance(output, tuple | list) else output
        return target

    def _infer(self, call: inspect.BoundArguments) -> dict[str, dict[str, Tensor]]:
        with torch.no_grad():
            leaves = pytree.tree_leaves(self.model(*call.args, **call.kwargs))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        named = dict(zip(self.graph.outputs, outputs, strict=True))
        return {"loss": named, "gradients": {}, "parameters": {}}


def _scaler(kinds: Mapping[str, Operator]) -> torch.amp.GradScaler:
    """Torch's loss scaling with the graph's numbers; where there is none, a scaler that does nothing."""
    if "next_loss_scale" not in kinds:
        return torch.amp.GradScaler("cpu", enabled=False)
    rates = kinds["next_loss_scale"]
    return torch.amp.GradScaler(
        "cpu", kinds["loss_scale"].keyword("init"), rates.keyword("growth"), rates.keyword("backoff"),
        rates.keyword("interval"),
    )  # fmt: skip


class _Update:
    """The optimizer of torch that update operators stand for; for one torch has not, their own rule."""

    def __init__(self, updates: Mapping[str, Operator], parameters: Mapping[str, Tensor]) -> None:
        self.updates, self.parameters = updates, parameters
        self.masters = {
            name: parameters[name].detach().float()
            for name, update in updates.items()
            if update.keyword("master_weights")
        }
        kind = next(iter(updates.values())).kind if updates else ""
        make = _OPTIMIZERS.get(kind)
        if not updates:
            self.optimizer: Any = None
        else:
            self.optimizer = make(self._groups(), foreach=False) if make else _ByRule(self._groups(), kind)

    @property
    def targets(self) -> list[Tensor]:
        """What the optimizer updates: parameters, or their copies in float32."""
        return [self.masters.get(name, parameter) for name, parameter in self.parameters.items()]

    def _groups(self) -> list[dict[str, Any]]:
        groups = []
        for target, update in zip(self.targets, self.updates.values(), strict=True):
            own = ("master_weights", "gradient_scale", "skip", "count", "lr")
            options = {key: value for key, value in update.keywords if key not in own}
            if "eps" in options:
                options["betas"] = (options.pop("beta1"), options.pop("beta2"))
            groups.append({"params": [target], **options})
        return groups

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Set the learning rates of a step, and the gradients of float32 copies."""
        for group, update in zip(self.optimizer.param_groups, self.updates.values(), strict=True):
            rate = update.keyword("lr")
            if isinstance(rate, tuple):
                rate = resolve(f"ops.{rate[0]}_rate")(step, *rate[1:])
            group["lr"] = rate
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad
            master.grad = None if gradient is None else gradient.to(master.dtype)

    @torch.no_grad()
    def end(self) -> None:
        """Round the float32 copies to parameters."""
        for name, master in self.masters.items():
            self.parameters[name].copy_(master)

    def states(self) -> dict[str, Tensor]:
        """The optimizer's states by the names the graph has for them."""
        found = {f"{name}/{MASTER}": master for name, master in self.masters.items()}
        for (name, update), target in zip(self.updates.items(), self.targets, strict=True):
            for key, value in self.optimizer.state[target].items():
                if f"{name}/{key}" in update.reads and isinstance(value, Tensor):
                    found[f"{name}/{key}"] = value
        return found


class _ByRule(torch.optim.Optimizer):
    """An optimizer torch has not, by the rule of its operator."""

    def __init__(self, groups: list[dict[str, Any]], kind: str) -> None:
        super().__init__(groups, {})
        self.rule, self.names = resolve(f"ops.{kind}"), OPTIMIZERS[kind].states

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter."""
        for group in self.param_groups:
            (parameter,) = group["params"]
            state = self.state[parameter] or {"step": 0} | {
                name: torch.zeros_like(parameter) for name in self.names
            }
            options = {key: value for key, value in group.items() if key != "params"}
            held = [state[name] for name in self.names]
            new = self.rule(parameter, parameter.grad, *held, state["step"] + 1, **options)
            parameter.copy_(new[0])
            self.state[parameter] = {"step": state["step"] + 1, **dict(zip(self.names, new[1:], strict=True))}
