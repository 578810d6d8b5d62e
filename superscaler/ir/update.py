"""The update as operators: per parameter that of the optimizer, and what it must know of all gradients.

Nothing here knows of devices: the norm of a gradient is a sum over its elements, so cutting the parameter leaves
summands, and the sum of all norms passes them on to where they are added up once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from superscaler.ir.graph import Graph, Operator, Phase, Ref
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import MASTER, Optimizer
from superscaler.ir.tensor import DTYPE_BYTES, Role, Tensor

STEP = "step"
"""Name of the tensor that holds the number of the step, from 1."""
NORM = "grad_norm"
"""Name of the output that holds the norm of all gradients, before they are clipped."""


SCALE = "loss_scale"
"""Name of the tensor that holds what the loss is multiplied by in this step."""


def append_updates(
    graph: Graph, optimizer: Optimizer, trainable: Sequence[str], scaling: LossScale | None = None
) -> Graph:
    """Add the optimizer's operator for every parameter that has a gradient, and what it must know of all of them.

    Raises:
        TraceError: An override of the optimizer means no parameter, or no option.
    """
    trained = [key for key in trainable if key in graph.gradients]
    optimizer.check_overrides(trained)
    builder = _Builder(graph)
    scalars: dict[str, str] = {}
    if scaling and trained:
        scalars |= builder.loss_scale(trained, scaling)
    if optimizer.clip_norm is not None and trained:
        scalars["gradient_scale"] = builder.clip(trained, optimizer.clip_norm, is_scaled=bool(scaling))
    elif scaling and trained:
        scalars["gradient_scale"] = builder.number("inverse_scale", "inverse_scale", (SCALE,))
    for key in trained:
        builder.update(key, optimizer.for_parameter(key), scalars)
    return builder.finished()


@dataclass
class _Builder:
    graph: Graph
    tensors: dict[str, Tensor] = field(init=False)
    operators: list[Operator] = field(init=False)
    updates: dict[str, str] = field(init=False)
    outputs: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors, self.operators = dict(self.graph.tensors), list(self.graph.operators)
        self.outputs, self.updates = list(self.graph.outputs), dict(self.graph.updates)

    def finished(self) -> Graph:
        """The graph with what was added."""
        self.tensors.setdefault(STEP, Tensor(STEP, (), "int64", Role.STEP))
        return replace(
            self.graph, tensors=self.tensors, operators=tuple(self.operators), updates=self.updates,
            outputs=tuple(self.outputs),
        )  # fmt: skip

    def loss_scale(self, trained: Sequence[str], scaling: LossScale) -> dict[str, str]:
        """The scale, how it changes, and whether this step is skipped; returns what updates read, by keyword."""
        scale, good_steps, updates = (
            self.state(f"{SCALE}/{name}") for name in ("scale", "good_steps", "updates")
        )
        refs = tuple(Ref(index) for index in range(3))
        init = (("init", scaling.init),)
        self.operators.insert(
            0, Operator(SCALE, "loss_scale", (scale, STEP), (SCALE,), refs[:2], init, Phase.PREPARE)
        )
        count = self.sum_over_gradients(trained, "count_nonfinite")
        overflow = self.number(f"{SCALE}/overflow", "overflows", (count,), dtype="bool")
        self.updates[updates] = self.number(f"{updates}/new", "count_updates", (updates, overflow))
        fresh = (f"{scale}/new", f"{good_steps}/new")
        for old, new in zip((scale, good_steps), fresh, strict=True):
            self.tensors[new] = replace(self.tensors[old], name=new, role=Role.ACTIVATION)
            self.updates[old] = new
        rates = (("growth", scaling.growth), ("backoff", scaling.backoff), ("interval", scaling.interval))
        reads = (SCALE, good_steps, overflow)
        self.operators.append(Operator(fresh[0], "next_loss_scale", reads, fresh, refs, rates, Phase.UPDATE))
        return {"skip": overflow, "count": self.updates[updates]}

    def state(self, name: str) -> str:
        """A stored number, 0 before the first step."""
        self.tensors[name] = Tensor(name, (), "float32", Role.STATE)
        return name

    def clip(self, trained: Sequence[str], max_norm: float, *, is_scaled: bool) -> str:
        """The norm of all gradients as an output, and the number that keeps it within `max_norm`."""
        squares = self.sum_over_gradients(trained, "squared_norm")
        norm = (
            self.number(NORM, "unscaled_norm", (squares, SCALE))
            if is_scaled
            else self.number(NORM, "gradient_norm", (squares,))
        )
        self.outputs.append(norm)
        coefficient = self.number("clip_coefficient", "clip_coefficient", (norm,), max_norm=max_norm)
        return self.number("unscale", "unscale", (coefficient, SCALE)) if is_scaled else coefficient

    def sum_over_gradients(self, trained: Sequence[str], kind: str) -> str:
        """One number: the sum over all gradients of what `kind` makes of each."""
        numbers = [
            self.number(f"{key}/{kind}", kind, (self.graph.gradients[key],), key.rpartition(".")[0])
            for key in trained
        ]
        return self.add_numbers(f"total_{kind}", numbers)

    def add_numbers(self, name: str, numbers: Sequence[str]) -> str:
        """The sum of many numbers."""
        dtype = max((self.tensors[number].dtype for number in numbers), key=DTYPE_BYTES.__getitem__)
        self.tensors[name] = Tensor(name, (), dtype, Role.ACTIVATION)
        refs = tuple(Ref(index) for index in range(len(numbers)))
        self.operators.append(Operator(name, "total", tuple(numbers), (name,), (refs,), phase=Phase.UPDATE))
        return name

    def number(
        self, name: str, kind: str, reads: tuple[str, ...], module: str = "", dtype: str = "", **keywords: Any
    ) -> str:
        """An operator of the update that makes one number, at least as precise as what it reads."""
        dtype = dtype or ("float64" if self.tensors[reads[0]].dtype == "float64" else "float32")
        self.tensors[name] = Tensor(name, (), dtype, Role.ACTIVATION)
        refs = tuple(Ref(index) for index in range(len(reads)))
        self.operators.append(
            Operator(name, kind, reads, (name,), refs, tuple(keywords.items()), Phase.UPDATE, module)
        )
        return name

    def update(self, key: str, optimizer: Optimizer, scalars: dict[str, str]) -> None:
        """The optimizer's operator of one parameter; `scalars` are read as keywords of these names."""
        parameter = self.tensors[key]
        has_master = optimizer.master_weights and DTYPE_BYTES[parameter.dtype] < 4
        dtype = "float32" if has_master else parameter.dtype
        states = [f"{key}/{state}" for state in (*optimizer.kept, *([MASTER] if has_master else []))]
        for name in states:
            self.tensors[name] = Tensor(name, parameter.shape, dtype, Role.STATE)
            self.tensors[f"{name}/new"] = Tensor(f"{name}/new", parameter.shape, dtype, Role.ACTIVATION)
        self.tensors[f"{key}/new"] = Tensor(f"{key}/new", parameter.shape, parameter.dtype, Role.ACTIVATION)
        fresh = [f"{name}/new" for name in (key, *states)]
        self.updates.update(zip((key, *states), fresh, strict=True))
        columns = (key, self.graph.gradients[key], *states, STEP)
        keywords = dict(optimizer.options)
        if has_master:
            keywords["master_weights"] = True
        keywords.update({word: Ref(len(columns) + i) for i, word in enumerate(scalars)})
        self.operators.append(
            Operator(
                f"{key}/{optimizer.kind}",
                optimizer.kind,
                (*columns, *scalars.values()),
                tuple(fresh),
                tuple(Ref(index) for index in range(len(columns))),
                tuple(keywords.items()),
                Phase.UPDATE,
                key.rpartition(".")[0],
            )
        )
