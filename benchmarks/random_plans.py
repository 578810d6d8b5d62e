"""Random plans as the text of plan scripts: any cuts, places and orders a user could write, sensible or not.

A plan follows from its seed alone. Most scripts begin with places that could be meant (a recipe, stages on groups of
devices, stages that share devices) and go on with decisions that nobody has thought of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from math import prod
from random import Random
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from superscaler.ir.axes import Axes
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner import recipes, schedules
from superscaler.planner.cluster import Cluster
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.planner import Planner

BATCH = 8
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"layers": 4, "width": 16, "heads": 4, "seq": 8, "vocab": 24},
    "llama": {"layers": 3, "width": 16, "heads": 4, "kv_heads": 2, "inner": 24, "seq": 8, "vocab": 24},
    "moe": {
        "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "inner": 12, "experts": 4, "choices": 2, "seq": 8,
        "vocab": 24,
    },
    "mbart": {"layers": 2, "width": 16, "heads": 4, "inner": 24, "seq": 6, "vocab": 24},
    "swin": {"image": 16, "window": 2, "channels": 8, "depths": (1, 1), "heads": (2, 2), "classes": 6},
    "alphafold2": {"blocks": 1, "recycles": 1, "sequences": 4, "residues": 4},
}  # fmt: skip
"""The models, smaller than their smallest size."""
OFTEN = {"gpt": 6, "llama": 4, "moe": 3, "mbart": 4, "swin": 2, "alphafold2": 1}
"""How often each is drawn; the larger a graph, the more it costs."""

OFFLOADED = (
    "optimizer", "activations", "parameters", "optimizer+activations", "optimizer+parameters",
    "optimizer+activations+parameters",
)  # fmt: skip

SCRIPT_NAMES = MappingProxyType(
    {
        "Task": schedules.Task,
        "F": Phase.FORWARD,
        "B": Phase.BACKWARD,
        "W": Phase.WEIGHT,
        "schedules": schedules,
        "recipes": recipes,
    }
)
"""What a script may name besides ``p``."""


@dataclass(frozen=True)
class Subject:
    """A model with its inputs and its traced step."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    graph: Graph
    axes: Axes


@cache
def subject(name: str) -> Subject:
    """A tiny model in float64, far from its start, so that no part of it is near zero; traced once."""
    torch.manual_seed(0)
    module = import_module(f"models.{name}")
    model = module.build("tiny", **SIZES[name]).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = {
        key: value.double() if value.is_floating_point() else value
        for key, value in module.example_inputs("tiny", batch=BATCH, **SIZES[name]).items()
    }
    graph = trace(model, inputs, optimizer=AdamW())
    return Subject(model, inputs, graph, Planner(graph, Cluster.local(1)).axes)


@dataclass(frozen=True, slots=True)
class RandomPlan:
    """A plan script, and what it is for."""

    seed: int
    model: str
    devices: int
    text: str

    def __call__(self, p: Planner) -> None:
        """Say everything to a planner."""
        exec(compile(self.text, f"plan-{self.seed}.py", "exec"), {**SCRIPT_NAMES, "p": p})


def random_plan(seed: int, model: str = "") -> RandomPlan:
    """The plan of a seed, for a model if one is given."""
    random = Random(seed)
    drawn = random.choices(list(OFTEN), list(OFTEN.values()))[0]
    model = model or drawn
    return _Author(random, seed, model, subject(model)).write()


@dataclass
class _Author:
    """Writes one script, line by line."""

    random: Random
    seed: int
    model: str
    subject: Subject

    def __post_init__(self) -> None:
        self.devices = self.random.choice(
            (2, 2, 3, 4, 4, 4, 5, 6, 8, 8, 12, 16) if self.chance(0.97) else (1,)
        )
        self.lines: list[str] = []
        self.mesh_axes: list[str] = []
        self.stages = 1
        self.micro_batches = self.random.choice((1, 1, 2, 2, 4, 4) if self.devices <= 6 else (1, 1, 2, 2, 4))
        if self.chance(0.04):
            self.micro_batches = self.random.choice((3, 8, 8, 8))
        self.has_schedule = False
        operators = self.subject.graph.operators
        paths = {".".join(o.module.split(".")[:end]) for o in operators for end in range(1, 6)}
        self.modules = sorted(path for path in paths if path)
        layers = {
            o.module[: o.module.index(part) + len(part)]
            for o in operators
            for part in o.module.split(".")
            if part.isdecimal()
        }
        self.layers = sorted(layers)
        self.free_axes: list[str] = []
        self.suits = "chain"
        self.most_stages = max(2, len(find_layers(self.subject.graph, self.subject.axes, 16)))

    def write(self) -> RandomPlan:
        """The whole script."""
        places = self.random.choices(
            (self.by_recipe, self.by_pipeline, self.on_one_mesh, self.on_groups, self.on_shared, self.on_anything,
             self.interlaced, self.both_ways),
            (6, 4, 4, 5, 4, 3, 1, 1),
        )[0]  # fmt: skip
        places()
        most = len(self.free_axes) + self.random.choice((0, 0, 1, 2))
        for _ in range(self.random.randint(0, most)):
            self.further()
        if not self.has_schedule and self.random.random() < 0.85:
            self.schedule()
        for _ in range(self.random.choice((0, 0, 0, 0, 1, 2))):
            self.order()
        return RandomPlan(self.seed, self.model, self.devices, "\n".join(self.lines) + "\n")

    def say(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    # places

    def by_recipe(self) -> None:
        """A plan string, alone or as a beginning."""
        sizes = {"dp": 1, "tp": 1, "pp": 1, "cp": 1, "ep": 1}
        names = [name for name in sizes if name != "ep" or self.model == "moe"]
        names = [name for name in names if name != "cp" or self.model != "swin"]
        for _ in range(self.random.choice((1, 1, 2, 2, 3))):
            sizes[self.random.choice(names)] *= self.random.choice((2, 2, 2, 3, 4))
        if sizes["pp"] > self.most_stages and self.chance(0.8):
            sizes["pp"] = self.most_stages
        while prod(sizes.values()) > 16:
            largest = max(sizes, key=sizes.__getitem__)
            sizes[largest] = max(1, sizes[largest] // 2)
        self.devices = prod(sizes.values())
        self.stages = sizes["pp"]
        words = [f"{name}={size}" for name, size in sizes.items() if size > 1]
        if self.chance(0.4 if sizes["dp"] > 1 else 0.02):
            words.append(f"zero={self.random.choice((1, 2, 3))}")
        if self.chance(0.4 if sizes["tp"] > 1 else 0.02):
            words.append("sp")
        if self.chance(0.3):
            kinds = ("recompute", "recompute=selective", "recompute=layers", "recompute=full")
            words.append(self.random.choice(kinds))
        if self.chance(0.1):
            words.append("co_shard=2")
        if self.chance(0.15):
            words.append(f"offload={self.random.choice(OFFLOADED)}")
        if self.chance(0.7 if sizes["pp"] > 1 else 0.1):
            names = [name for name in schedules.NAMED if name != "solved" or self.chance(0.3)]
            name = self.random.choice(names)
            words.append(f"schedule={name}")
            if name == "interleaved" and self.chance(0.4):
                words.append(f"virtual={self.random.choice((1, 2, 3))}")
        if self.micro_batches > 1:
            words.append(f"micro_batches={self.micro_batches}")
        self.has_schedule = True
        self.mesh_axes = [name for name, size in sizes.items() if size > 1 and name != "pp"] or ["x"]
        self.say(f"recipes.recipe({','.join(words)!r})(p)")

    def by_pipeline(self) -> None:
        """The stages a named schedule is for, not cut yet."""
        name = self.random.choice([name for name in schedules.NAMED if name != "solved" or self.chance(0.3)])
        per_row = {"interleaved": 2, "zb-v": 2}.get(name, 1)
        rows = self.random.randint(2, max(2, min(4, self.devices, self.most_stages // per_row)))
        each = max(1, self.devices // rows)
        axes = self.factors(each)
        self.devices, self.stages = rows * prod(axes.values()), rows * per_row
        self.mesh_axes, self.free_axes = list(axes), list(axes)
        words = "".join(f", {axis}={size}" for axis, size in axes.items())
        self.say(f"recipes.scheduled_pipeline(p, {name!r}, {rows}, {self.micro_batches}{words})")
        self.has_schedule = True

    def on_one_mesh(self) -> None:
        """Everything on all devices."""
        self.say(f"p.assign(p.everything(), {self.mesh(self.shuffled(range(self.devices)))})")
        self.stages = 1

    def on_groups(self) -> None:
        """Runs of layers on groups of devices of their own, of one shape or of several."""
        self.stages = min(
            self.random.randint(2, max(2, min(4, self.devices))), self.most_stages, self.devices
        )
        devices = self.shuffled(range(self.devices))
        if self.chance(0.6):
            each = max(1, self.devices // self.stages)
            axes = self.factors(each)
            meshes = [self.mesh(devices[i * each : (i + 1) * each], axes) for i in range(self.stages)]
        else:
            ends = sorted(self.random.sample(range(1, self.devices), min(self.stages, self.devices) - 1))
            bounds = [0, *ends, self.devices]
            meshes = [self.mesh(devices[a:b]) for a, b in pairwise(bounds)]
        self.assign_stages(meshes)

    def on_shared(self) -> None:
        """More runs of layers than groups of devices."""
        rows = self.random.choice((1, 2, 2, 3))
        self.stages = rows * self.random.choice((2, 2, 3)) if self.chance(0.7) else self.random.randint(2, 6)
        self.stages = min(self.stages, self.most_stages)
        each = max(1, self.devices // rows)
        devices = self.shuffled(range(self.devices))
        axes = self.factors(each)
        meshes = [self.mesh(devices[i * each : (i + 1) * each], axes) for i in range(min(rows, self.devices))]
        turn = self.random.choice(("round", "back", "any"))
        self.suits = turn
        chosen = []
        for number in range(self.stages):
            row = number % len(meshes)
            if turn == "back" and (number // len(meshes)) % 2:
                row = len(meshes) - 1 - row
            if turn == "any":
                row = self.random.randrange(len(meshes))
            chosen.append(meshes[row])
        chunks = self.chance(0.9)
        self.assign_stages(
            chosen,
            [number // len(meshes) if turn != "any" else number for number in range(self.stages)]
            if chunks
            else None,
        )

    def on_anything(self) -> None:
        """Any modules on any devices, also such as share some."""
        if self.chance(0.6):
            self.on_one_mesh()
        for _ in range(self.random.randint(1, 5)):
            some = self.random.sample(range(self.devices), self.random.randint(1, self.devices))
            chunk = f", chunk={self.random.randint(0, 2)}" if self.chance(0.3) else ""
            self.say(f"p.assign({self.selection()}, {self.mesh(some)}{chunk})")
        self.stages = self.random.randint(2, 4)
        self.suits = "any"

    def interlaced(self) -> None:
        """Runs of layers on groups of devices, and what reads the vocabulary on all of them."""
        self.on_groups()
        self.suits = "wide"
        table = "shared" if self.model == "mbart" else "wte"
        everywhere = self.mesh(self.shuffled(range(self.devices)), {"wide": self.devices})
        self.say(f"p.assign(p.select({table!r}), {everywhere})")
        if self.chance(0.7):
            self.say('p.trans(p.axis("vocab"), "wide")')
        if self.chance(0.6):
            self.say(f"p.order(schedules.interlaced({self.micro_batches}))")
            self.has_schedule = True

    def both_ways(self) -> None:
        """Two lanes from both ends."""
        self.devices = 2 * self.random.choice((1, 2, 2, 4))
        rows = self.random.choice([n for n in (2, 4) if n <= min(self.devices, self.most_stages)])
        self.suits = "both ways"
        self.stages = rows
        each = self.devices // rows
        groups = [list(range(i * each, (i + 1) * each)) for i in range(rows)]
        axes = self.factors(each)
        meshes = [self.mesh(groups[i] + groups[rows - 1 - i], {"lane": 2, **axes}) for i in range(rows)]
        self.assign_stages(meshes)
        if self.chance(0.8):
            self.say('recipes.data_parallel(p, "lane")')
        if self.chance(0.7):
            self.say(f"p.order(schedules.bidirectional({self.micro_batches}))")
            self.has_schedule = True

    def assign_stages(self, meshes: Sequence[str], chunks: Sequence[int] | None = None) -> None:
        """Runs of layers on meshes, in order or not; now and then nonsense."""
        self.stages = len(meshes)
        order = list(range(len(meshes)))
        if self.chance(0.15):
            self.random.shuffle(order)
        if self.chance(0.2):
            for number, mesh in zip(order, meshes, strict=True):
                chunk = f", chunk={chunks[number]}" if chunks else ""
                self.say(f"p.assign({self.selection()}, {mesh}{chunk})")
            return
        self.say(f"stages = p.split_layers({len(meshes)})")
        for place, (number, mesh) in enumerate(zip(order, meshes, strict=True)):
            chunk = f", chunk={chunks[place]}" if chunks else ""
            self.say(f"p.assign(stages[{number}], {mesh}{chunk})")

    # what else a script says

    def further(self) -> None:
        """One more decision."""
        self.random.choices(
            (self.cut_axis, self.cut_in_modules, self.cut_letter, self.use_recipe, self.recompute, self.co_shard,
             self.shard, self.move, self.offload),
            (5, 4, 3, 4, 2, 1, 1, 1, 2),
        )[0]()  # fmt: skip

    def cut_axis(self) -> None:
        """An axis everywhere, or within some operators."""
        names = ["batch", "batch", "seq", "heads", "vocab", self.axis_name(), self.axis_name()]
        name = self.random.choice(names)
        options = self.pieces(name)
        if self.chance(0.25):
            options += f", within={self.selection()}"
        self.say(f"p.trans(p.axis({name!r}), {self.over()!r}{options})")

    def cut_in_modules(self) -> None:
        """An axis of some modules."""
        letters = self.subject.axes.letters[self.operator().name]
        name = self.random.choice(["out", "in", "batch", "n", "k", self.axis_name(), *letters])
        self.say(f"p.trans({self.selection()}.axis({name!r}), {self.over()!r}{self.pieces(name)})")

    def cut_letter(self) -> None:
        """A single operator by a letter of its rule."""
        operator = self.operator()
        letters = list(self.subject.axes.letters[operator.name])
        if letters:
            letter = self.random.choice(letters)
            self.say(f"p.trans(p.select({operator.name!r}), {self.over()!r}, letter={letter!r})")

    def use_recipe(self) -> None:
        """A recipe over a mesh axis."""
        name = self.random.choice(
            ("data_parallel", "data_parallel", "tensor_parallel", "tensor_parallel", "sequence_parallel",
             "context_parallel", "optimizer_sharding", "gradient_sharding", "parameter_sharding",
             *["expert_parallel"] * (3 if self.model == "moe" else 0))
        )  # fmt: skip
        self.say(f"recipes.{name}(p, {self.over()!r})")

    def recompute(self) -> None:
        """Blocks that are computed again."""
        if self.chance(0.4):
            name = self.random.choice(("recompute_layers", "recompute_attention", "recompute_stages"))
            self.say(f"recipes.{name}(p)")
        else:
            self.say(f"p.recompute({self.selection()})")

    def co_shard(self) -> None:
        """Blocks that run piece after piece."""
        axis = f", {self.random.choice(('heads', self.axis_name()))!r}" if self.chance(0.4) else ""
        self.say(f"p.co_shard({self.selection()}{axis}, pieces={self.random.choice((2, 2, 2, 3, 4))})")

    def shard(self) -> None:
        """Gradients or parameters held as updated."""
        what = self.random.choice(("keep_as_updated", "store_as_updated"))
        self.say(f"p.{what}({self.selection() if self.chance(0.5) else 'p.everything()'})")

    def offload(self) -> None:
        """States, activations or parameters that wait in host memory."""
        what = self.random.choice(("offload", "offload_activations", "offload_parameters"))
        self.say(f"p.{what}({self.selection() if self.chance(0.6) else 'p.everything()'})")

    def move(self) -> None:
        """Some operators, or one phase of some, on other devices."""
        some = self.random.sample(range(self.devices), self.random.randint(1, self.devices))
        self.say(f"p.assign({self.selection()}, {self.mesh(some)})")

    # time

    def schedule(self) -> None:
        """A schedule that suits the stages, or does not."""
        count = self.micro_batches
        suitable = {
            "chain": ("one_f_one_b", "one_f_one_b", "gpipe", "zb_h1", "zb_h2", "grid", "grid", "solved"),
            "round": ("interleaved", "interleaved", "gpipe", "three_f_one_b", "solved"),
            "back": ("zb_v", "zb_v", "gpipe", "solved"),
            "wide": ("interlaced", "interlaced_ahead", "gpipe", "solved"),
            "both ways": ("bidirectional", "gpipe", "solved"),
            "any": ("gpipe", "gpipe", "one_f_one_b", "solved"),
        }
        anyone = [kind for kinds in suitable.values() for kind in kinds]
        kind = self.random.choice(suitable[self.suits] if self.chance(0.85) else anyone)
        if kind == "grid":
            self.grid()
        elif kind == "solved":
            self.say(f"p.order(schedules.solved({count}, seconds=1.0))")
        else:
            per_row = f", per_row={self.random.choice((1, 2, 3))}" if kind == "interleaved" else ""
            self.say(f"p.order(schedules.{kind}({count}{per_row}))")
        self.has_schedule = True

    def grid(self) -> None:
        """A schedule written out: one stage per row, each row in one random order, or in one of its own."""
        splits = self.chance(0.3)
        same = self.chance(0.5)
        rows = []
        for _ in range(self.stages):
            if not rows or not same:
                tasks = [
                    (phase, i) for i in range(self.micro_batches) for phase in ("FBW" if splits else "FB")
                ]
                rows.append(self.linear_extension(tasks, same))
            else:
                rows.append(rows[0])
        if self.chance(0.1):
            rows[0] = rows[0][:-1]
        text = "\n".join(" ".join(f"{phase}{i}" for phase, i in row) for row in rows)
        self.say(f"p.order(schedules.parse_schedule({text!r}))")

    def linear_extension(self, tasks: list[tuple[str, int]], forwards_first: bool) -> list[tuple[str, int]]:
        """The tasks in a random order that keeps the phases of a micro-batch in order."""
        if forwards_first:
            order = self.shuffled(range(self.micro_batches))
            phases = dict.fromkeys(phase for phase, _ in tasks)
            return [(phase, i) for phase in phases for i in order]
        waiting: dict[int, list[tuple[str, int]]] = {}
        for phase, i in tasks:
            waiting.setdefault(i, []).append((phase, i))
        result = []
        while waiting:
            i = self.random.choice(list(waiting))
            result.append(waiting[i].pop(0))
            if not waiting[i]:
                del waiting[i]
        return result

    def order(self) -> None:
        """Two tasks, or two operators, in an order."""
        if self.chance(0.6):
            stage, other = self.random.randrange(self.stages), self.random.randrange(self.stages)
            other = stage if self.chance(0.7) else other
            first, then = (
                f"Task({where}, {self.random.choice('FFFFBBBBW')}, {self.random.randrange(max(1, self.micro_batches))})"
                for where in (stage, other)
            )
            self.say(f"p.order({first}, {then})")
        else:
            first = self.operator()
            alike = [
                o for o in self.subject.graph.operators if (o.phase, o.module) == (first.phase, first.module)
            ]
            then = self.random.choice(alike) if self.chance(0.9) else self.operator()
            self.say(f"p.order(p.select({first.name!r}), p.select({then.name!r}))")

    # parts of lines

    def chance(self, part: float) -> bool:
        """True with this probability."""
        return self.random.random() < part

    def shuffled(self, items: Sequence[int]) -> list[int]:
        """In the given order, mostly; else in any."""
        items = list(items)
        if self.chance(0.35):
            self.random.shuffle(items)
        return items

    def factors(self, count: int) -> dict[str, int]:
        """A number of devices as the axes of an array."""
        names = self.random.sample(("dp", "tp", "a", "b"), 4)
        axes: dict[str, int] = {}
        while count > 1 and len(axes) < 3:
            divisors = [n for n in range(2, count + 1) if count % n == 0]
            size = count if len(axes) == 2 else self.random.choice(divisors)
            axes[names[len(axes)]] = size
            count //= size
        if self.chance(0.05):
            axes[names[3]] = 1
        return axes

    def mesh(self, devices: Sequence[int], axes: dict[str, int] | None = None) -> str:
        """An array of devices."""
        axes = self.factors(len(devices)) if axes is None else axes
        fresh = [name for name in axes if name not in self.mesh_axes]
        self.mesh_axes += fresh
        self.free_axes += fresh
        words = "".join(f", {name}={size}" for name, size in axes.items())
        return f"p.mesh({list(devices)}{words})"

    def over(self) -> str:
        """A mesh axis."""
        if self.free_axes and self.chance(0.8):
            return self.free_axes.pop(self.random.randrange(len(self.free_axes)))
        return self.random.choice(self.mesh_axes or ["x"]) if self.chance(0.98) else "none"

    def operator(self) -> Operator:
        """Any operator."""
        return self.random.choice(self.subject.graph.operators)

    def selection(self) -> str:
        """Some modules or layers, or one operator; sometimes of one phase."""
        if self.chance(0.5):
            pattern = self.random.choice(self.layers)
        elif self.chance(0.8):
            pattern = self.random.choice(self.modules)
        else:
            pattern = self.operator().name
        if self.chance(0.2):
            pattern = ".".join("*" if part.isdecimal() else part for part in pattern.split("."))
        phase = f", {self.random.choice('FFBU')!r}" if self.chance(0.12) else ""
        return f"p.select({pattern!r}{phase})"

    def axis_name(self) -> str:
        """The name of any axis."""
        letters = self.subject.axes.letters[self.operator().name]
        parts = [axis.name for axes in letters.values() for axis in axes]
        return self.random.choice(parts) if parts else "batch"

    def pieces(self, name: str) -> str:
        """Now and then, the sizes of pieces."""
        if not self.chance(0.12):
            return ""
        sizes = {
            axis.size for axes in self.subject.axes.letters.values() for parts in axes.values() for axis in parts
            if axis.name == name
        }  # fmt: skip
        total, count = self.random.choice(sorted(sizes) or [8]), self.random.choice((2, 2, 3, 4))
        ends = sorted(self.random.choices(range(1, max(2, total)), k=count - 1))
        return f", pieces={[b - a for a, b in zip([0, *ends], [*ends, total], strict=True)]}"
