"""Recipes: the plans everyone knows, as short scripts on the primitives a user has; and plan strings.

A plan string such as ``dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4,zero=1,sp`` is a combination of recipes.
The devices form one array per pipeline stage, data parallel outside tensor parallel; stages are outermost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from superscaler.errors import PlanError
from superscaler.ir.axes import Axis
from superscaler.ir.graph import Operator, Phase
from superscaler.ir.mesh import LANE
from superscaler.planner import sequence
from superscaler.planner.context_parallel import context_parallel
from superscaler.planner.data_parallel import data_parallel
from superscaler.planner.expert_parallel import expert_parallel
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.pipelines import pipeline, scheduled_pipeline
from superscaler.planner.planner import Planner
from superscaler.planner.recompute import operators_to_repeat
from superscaler.planner.schedules import NAMED
from superscaler.planner.selection import Selection
from superscaler.planner.sharding import SHARDING
from superscaler.planner.weight_axes import weight_axes

PlanScript = Callable[[Planner], None]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan string can say."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    zero: int = 0
    sp: bool = False
    recompute: bool = False
    co_shard: int = 1
    """Pieces that each layer's attention and feed-forward parts run in."""
    schedule: str = ""
    micro_batches: int = 1
    virtual: int = 2
    """Stages per row of devices, of an interleaved pipeline."""

    @property
    def num_devices(self) -> int:
        """Devices the plan needs."""
        return self.pp * prod(self.axes.values())

    @property
    def axes(self) -> dict[str, int]:
        """The mesh axes of a stage, major to minor; those of one device too."""
        return {"dp": self.dp, "ep": self.ep, "cp": self.cp, "tp": self.tp}


def parse_plan(text: str) -> PlanOptions:
    """Read a plan string.

    Raises:
        PlanError: A word is unknown, a number is missing or wrong, or options do not go together.
    """
    values: dict[str, int | str | bool] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = word.partition("=")
        if key in values:
            raise PlanError(f"the plan {text!r} says {key} twice", remedy="keep one of them")
        if key in ("sp", "recompute") and not equals:
            values[key] = True
        elif key == "schedule" and value in NAMED:
            values["schedule"] = value
        elif (
            key in ("dp", "tp", "pp", "cp", "ep", "zero", "co_shard", "micro_batches", "virtual")
            and value.isdecimal()
        ):
            values[key] = int(value)
        elif word != "none":
            raise PlanError(
                f"the plan {text!r} has a word that means nothing: {word!r}",
                remedy="words are dp=N, tp=N, pp=N, cp=N, ep=N, zero=1|2|3, sp, recompute, co_shard=N, "
                f"micro_batches=N, virtual=N, schedule={'|'.join(NAMED)}, or none",
            )
    options = PlanOptions(**values)  # type: ignore[arg-type]
    _check(text, options)
    return options


def _check(text: str, options: PlanOptions) -> None:
    if min(*options.axes.values(), options.pp, options.co_shard, options.micro_batches, options.virtual) < 1:
        raise PlanError(f"the plan {text!r} has a number below 1", remedy="use whole numbers from 1")
    if options.zero not in (0, *SHARDING):
        raise PlanError(
            f"the plan {text!r} asks for zero={options.zero}",
            remedy="use zero=1 to cut optimizer states over dp, zero=2 gradients too, zero=3 parameters too",
        )
    if options.zero and options.dp == 1:
        raise PlanError(
            f"the plan {text!r} has zero={options.zero} but no dp to cut over", remedy="add dp=2 or more"
        )
    if "virtual" in text and options.schedule != "interleaved":
        raise PlanError(
            f"the plan {text!r} has virtual stages but no schedule for them",
            remedy="add schedule=interleaved",
        )
    if options.sp and options.tp == 1:
        raise PlanError(f"the plan {text!r} has sp but no tp to cut over", remedy="add tp=2 or more")


def recipe(text: str) -> PlanScript:
    """The plan script a plan string stands for."""
    options = parse_plan(text)

    def script(p: Planner) -> None:
        if p.cluster.num_devices != options.num_devices:
            sizes = {**options.axes, "pp": options.pp}
            product = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "dp 1"
            raise PlanError(
                f"the plan {text!r} needs {options.num_devices} devices ({product}), "
                f"the cluster {p.cluster.name!r} has {p.cluster.num_devices}",
                remedy=f"use {options.num_devices} devices (--cluster local:{options.num_devices}), "
                f"or a plan whose {' x '.join(sizes)} is {p.cluster.num_devices}",
            )
        for word, apply in _words(options):
            p.said_by = f"{word} in the plan {text!r}" if word in text else f"the plan {text!r}"
            apply(p)
        p.said_by = ""

    return script


def _words(options: PlanOptions) -> Iterator[tuple[str, PlanScript]]:
    """The recipe for each word of a plan string."""
    name = options.schedule or ("1f1b" if options.pp > 1 else "gpipe")
    if options.pp > 1:
        rows, count, per_row = options.pp, options.micro_batches, options.virtual
        word = f"schedule={name}" if options.schedule else f"pp={rows}"
        yield word, lambda p: scheduled_pipeline(p, name, rows, count, per_row, **options.axes)
    else:
        yield "pp=1", lambda p: pipeline(p, 1, **options.axes)
    if name == "bidirectional":
        yield f"schedule={name}", lambda p: data_parallel(p, LANE)
    if options.dp > 1:
        yield f"dp={options.dp}", data_parallel
    if options.ep > 1:
        yield f"ep={options.ep}", expert_parallel
    if options.cp > 1:
        yield f"cp={options.cp}", context_parallel
    if options.tp > 1:
        yield f"tp={options.tp}", tensor_parallel
    if options.sp:
        yield "sp", sequence_parallel
    if options.zero:
        yield f"zero={options.zero}", SHARDING[options.zero]
    if options.co_shard > 1:
        yield f"co_shard={options.co_shard}", lambda p: co_shard_layers(p, options.co_shard)
    if options.recompute:
        yield "recompute", recompute_layers
    if options.pp == 1:
        yield f"schedule={name}", lambda p: p.order(NAMED[name].make(options.micro_batches))


def tensor_parallel(p: Planner, over: str = "tp") -> None:
    """Cut every axis of a matrix product's weight that no operator needs whole (Megatron, arXiv 1909.08053).

    So are the rows of tables that the model's inputs look up.

    Raises:
        PlanError: There is no such axis.
    """
    axes = tensor_parallel_axes(p, over)
    if not axes:
        raise PlanError(
            f"the model {p.graph.name!r} has no weight of a matrix product that can be cut over {over!r}",
            where=p.speaker,
            remedy="use data parallelism, or a plan script with p.trans(operator, letter=...)",
        )
    for axis in axes:
        p.trans(axis, over)


def tensor_parallel_axes(p: Planner, over: str = "tp") -> list[Axis]:
    """Axes of matrix products' weights, and rows of tables, that all operators they run through can cut, one each."""
    return weight_axes(p.graph, p.axes, _rows_looked_up(p, over))


def _rows_looked_up(p: Planner, over: str) -> Iterator[Axis]:
    """Rows of the tables that inputs look up; few are not worth a cut, nor are tables of positions."""
    count = max((mesh.size(over) for mesh in p.places.values() if over in mesh.names), default=1)
    given = set(p.graph.inputs)
    for operator in p.graph.operators:
        if not given.isdisjoint(operator.reads):
            given.update(operator.writes)
        if operator.kind == "embedding" and operator.reads[1] in given:
            yield from (axis for axis in p.axes.fine(operator.reads[0])[:1] if axis.size >= count)


def sequence_parallel(p: Planner, over: str = "tp") -> None:
    """Cut the sequence wherever tensor parallelism does not cut (arXiv 2205.05198).

    Raises:
        PlanError: No input has a second dim.
    """
    cut = {axis.index for axis in tensor_parallel_axes(p, over)}
    carries = {
        operator.name: any(
            axis.index in cut for parts in p.axes.letters[operator.name].values() for axis in parts
        )
        for operator in p.graph.operators
    }
    busy = {operator.origin for operator in p.graph.operators if carries[operator.name]}
    axes = sequence.sequence_axes(p, "sp")
    free = {
        name: (letter, axis)
        for name, (letter, axis) in sequence.follow(p, axes).items()
        if p.graph.by_name[name].origin not in busy and p.axes.letters[name][letter][0] == axis
    }
    sequence.cut(p, sequence.as_read(p, free, axes), over)


def recompute_layers(p: Planner) -> None:
    """Run each layer's forward again in its backward, so that of a layer only its input is stored.

    The layers are those stages are made of, as small as may be. The price is about a third more arithmetic
    (Chen et al., arXiv 1604.06174).

    Raises:
        PlanError: The model has no layers that store anything.
    """
    if p.is_rewritten:
        return
    storing = [
        layer
        for layer in _layers(p)
        if operators_to_repeat(p.graph, dict.fromkeys(operator.name for operator in layer))
    ]
    if not storing:
        raise PlanError(
            f"the model {p.graph.name!r} has no layers that store anything for a backward",
            where=p.speaker,
            remedy="train it, or choose blocks in a plan script with p.recompute(selection)",
        )
    for block in storing:
        p.recompute(block)


def co_shard_layers(p: Planner, pieces: int) -> None:
    """Run each layer's attention heads and feed-forward hidden units piece after piece.

    Of what lies inside them one piece exists at a time, on all devices alike, without communication; the price is
    that they run forward twice (SuperScaler, arXiv 2301.08984).

    Raises:
        PlanError: The model has no layers, or one has no axis with as many equal pieces.
    """
    layers = _layers(p)
    if not layers:
        raise PlanError(
            f"the model {p.graph.name!r} has no numbered modules (a ModuleList) to run piece after piece",
            where=p.speaker,
            remedy="choose blocks in a plan script with p.co_shard(selection, axis, pieces=2)",
        )
    for layer in layers:
        p.co_shard(layer, pieces=pieces)


def _layers(p: Planner) -> list[Selection]:
    """The forward of each layer; layers are those stages are made of, as small as may be."""
    blocks: dict[str, list[Operator]] = {
        name: [] for name in find_layers(p.graph, p.axes, len(p.graph.operators))
    }
    for operator in p.graph.operators:
        parts = operator.module.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        for path in paths:
            if path in blocks and operator.phase is Phase.FORWARD:
                blocks[path].append(operator)
    return [
        Selection(p.graph, p.axes, tuple(operators), f"layer {name}") for name, operators in blocks.items()
    ]
