"""Eager: training as one writes it in plain PyTorch, which is what plans are compared with."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from superscaler.ir.graph import Graph, Operator
from superscaler.ir.interpret import run_operator
from superscaler.ir.kinds import resolve
from superscaler.ir.optimizers import MASTER
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
        bounds = [o.keyword("max_norm") for o in graph.operators if o.kind == "clip_coefficient"]
        self.clip_norm = bounds[0] if bounds else None

    def step(
        self, call: inspect.BoundArguments, batch: Mapping[str, Tensor], step: int
    ) -> dict[str, dict[str, Tensor]]:
        """Train one step: the loss, every gradient as it was before clipping, and all stored tensors after it."""
        if not self.graph.is_training:
            return self._infer(call)
        for parameter in self.parameters.values():
            parameter.grad = None
        target = self._loss(call)
        target.backward()
        gradients = {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}
        outputs = {self.graph.outputs[0]: target.detach()}
        if self.clip_norm is not None:
            parameters = list(self.parameters.values())
            outputs[NORM] = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm, foreach=False)
        self.update.step(step)
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


class _Update:
    """The optimizer of torch that update operators stand for; for one torch has not, their own rule."""

    def __init__(self, updates: Mapping[str, Operator], parameters: Mapping[str, Tensor]) -> None:
        self.updates, self.parameters = updates, parameters
        self.masters = {
            name: parameters[name].detach().float()
            for name, update in updates.items()
            if update.keyword("master_weights")
        }
        self.own_states: dict[str, Tensor] = {}
        kind = next(iter(updates.values())).kind if updates else ""
        self.optimizer = _OPTIMIZERS[kind](self._groups(), foreach=False) if kind in _OPTIMIZERS else None

    def _groups(self) -> list[dict[str, Any]]:
        groups = []
        for name, update in self.updates.items():
            own = ("master_weights", "gradient_scale", "skip", "count", "lr")
            options = {key: value for key, value in update.keywords if key not in own}
            if "beta1" in options:
                options["betas"] = (options.pop("beta1"), options.pop("beta2"))
            groups.append({"params": [self.masters.get(name, self.parameters[name])], **options})
        return groups

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Update every parameter by its gradient."""
        if self.optimizer is None:
            self._by_rule(step)
            return
        for group, update in zip(self.optimizer.param_groups, self.updates.values(), strict=True):
            rate = update.keyword("lr")
            if isinstance(rate, tuple):
                rate = resolve(f"ops.{rate[0]}_rate")(step, *rate[1:])
            group["lr"] = rate
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad
            master.grad = None if gradient is None else gradient.to(master.dtype)
        self.optimizer.step()
        for name, master in self.masters.items():
            self.parameters[name].copy_(master)

    def _by_rule(self, step: int) -> None:
        for name, update in self.updates.items():
            parameter = self.parameters[name]
            count = len(update.writes) + 1
            names = update.reads[2:count]
            states = [self.own_states.get(state, torch.zeros_like(parameter)) for state in names]
            scaled = {"gradient_scale", "skip", "count"}
            keywords = tuple(item for item in update.keywords if item[0] not in scaled)
            bare = Operator(name, update.kind, (), update.writes, update.arguments, keywords)
            new = run_operator(bare, [parameter, parameter.grad, *states, step])
            parameter.copy_(new[0])
            self.own_states.update(zip(names, new[1:], strict=True))

    def states(self) -> dict[str, Tensor]:
        """The optimizer's states by the names the graph has for them."""
        if self.optimizer is None:
            return self.own_states
        found = {f"{name}/{MASTER}": master for name, master in self.masters.items()}
        for name, update in self.updates.items():
            kept = self.optimizer.state[self.masters.get(name, self.parameters[name])]
            for key, value in kept.items():
                if f"{name}/{key}" in update.reads and isinstance(value, Tensor):
                    found[f"{name}/{key}"] = value
        return found
