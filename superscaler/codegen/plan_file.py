"""The plan file: what the runtime must know of a build, as JSON: stages, programs, pieces of tensors, exchanges."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from superscaler.codegen.lower import fine_shape, local_shape
from superscaler.codegen.program import Exchange, Program, Send
from superscaler.ir.graph import Graph
from superscaler.ir.layout import Extent, Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.size import Size
from superscaler.ir.tensor import Role
from superscaler.ir.text import format_graph
from superscaler.planner.exchange import exchange_moves
from superscaler.planner.micro_batches import batch_axes
from superscaler.planner.plan import Plan
from superscaler.planner.steps import space_partial

FORMAT = 2
"""Version of the file's format; `superscaler.runtime.build` reads it."""


def describe_build(
    plan: Plan, programs: Sequence[Program], files: Mapping[str, str], reference: str
) -> dict[str, Any]:
    """The contents of ``plan.json``.

    Args:
        plan: What was compiled.
        programs: One per row.
        files: Name -> sha256 of each other file of the build.
        reference: How the user named the model, or empty.
    """
    graph = plan.graph
    described: dict[str, Any] = {
        "format": FORMAT,
        "name": graph.name,
        "model": reference,
        "plan": plan.name,
        "entry": entry_name(plan),
        "world_size": plan.num_devices,
        "micro_batches": plan.schedule.micro_batches,
        "superscaler": _version("superscaler"),
        "torch": _version("torch"),
        "files": dict(files),
        "inputs": {
            name: {"dtype": graph.tensors[name].dtype, "shape": list(graph.tensors[name].shape)}
            for name in graph.inputs
        },
        "stages": [_mesh(mesh) for mesh in plan.materialized.stages],
        "programs": [_program(plan, program) for program in programs],
        "loss_row": next((p.row for p in programs if graph.outputs and graph.outputs[0] in p.outputs), 0),
        "messages": _messages(plan, programs),
        "unread": _unread(graph, programs),
        "learning_rates": _learning_rates(graph),
        "initialisers": {name: [list(step) for step in steps] for name, steps in graph.initialisers.items()},
        "exchanges": _exchanges(plan, programs),
    }
    if graph.float8:
        described["float8"] = True
    if graph.sizes:
        described["sizes"] = dict(graph.sizes)
        described["requirements"] = [[one.condition, one.reason] for one in plan.requirements]
    text = format_graph(graph) + repr(
        (plan.name, described["stages"], described["programs"], [str(p.tasks) for p in programs])
    )
    described["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    return _with_sizes_as_text(described)


def _with_sizes_as_text(value: Any) -> Any:
    """Sizes that vary as ``{"size": "batch / 2"}``, wherever they are."""
    if isinstance(value, Size):
        return {"size": str(value)}
    if isinstance(value, dict):
        return {key: _with_sizes_as_text(item) for key, item in value.items()}
    return [_with_sizes_as_text(item) for item in value] if isinstance(value, (list, tuple)) else value


def entry_name(plan: Plan) -> str:
    """The script that torchrun starts."""
    if plan.graph.is_served:
        return "serve.py"
    return "train.py" if plan.graph.is_training else "run.py"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def module_name(program: Program) -> str:
    """The file of a program, without ``.py``."""
    return f"stage{program.row}"


def _learning_rates(graph: Graph) -> list[Any]:
    """Those of the updates, each once: a number, or the name of a schedule and its numbers."""
    return list(dict.fromkeys(rate for o in graph.operators if (rate := o.keyword("lr")) is not None))


def _mesh(mesh: Mesh) -> dict[str, Any]:
    return {"devices": list(mesh.devices), "axes": [list(axis) for axis in mesh.axes], "chunk": mesh.chunk}


def _program(plan: Plan, program: Program) -> dict[str, Any]:
    described: dict[str, Any] = {
        "module": module_name(program),
        "devices": list(program.devices),
        "stages": list(program.stages),
        "tensors": {name: _tensor(plan, program, name) for name in (*program.stored, *program.fed)},
    }
    if not plan.graph.is_training:
        described["outputs"] = {
            name: {**_tensor(plan, program, value), "rows_per_sample": _rows_per_sample(plan, name)}
            for name, value in program.outputs.items()
        }
    return described


def _rows_per_sample(plan: Plan, output: str) -> int:
    """Rows of an output's first dim per sample of the batch; 0 where that dim is not the batch."""
    dims = plan.placed.axes.dims[output]
    batch = batch_axes(plan.graph, plan.placed.axes)
    if not dims or dims[0][:1] not in [(axis,) for axis in batch]:
        return 0
    return plan.graph.tensors[output].shape[0] // dims[0][0].size


def _unread(graph: Graph, programs: Sequence[Program]) -> dict[str, Any]:
    """What a checkpoint holds and no program reads."""
    held = {program.values[name].tensor for program in programs for name in program.stored}
    return {
        tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "saved_as": list(names)}
        for tensor in (*graph.of_role(Role.PARAMETER), *graph.of_role(Role.BUFFER))
        if tensor.name not in held and (names := graph.saved_as.get(tensor.name, (tensor.name,)))
    }


def _tensor(plan: Plan, program: Program, name: str) -> dict[str, Any]:
    value = program.values[name]
    tensor, layout = plan.graph.tensors[value.tensor], value.layout
    saved_as = plan.graph.saved_as.get(tensor.name)
    return {
        "role": str(tensor.role),
        "source": tensor.name,
        "stage": next(number for number, mesh in program.stages.items() if mesh.home == layout.mesh.home),
        **({} if saved_as is None else {"saved_as": list(saved_as)}),
        **({"host": True} if value.host else {}),
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "fine": [[axis.size for axis in dim] for dim in plan.placed.axes.dims[tensor.name]],
        "cuts": [list(cut) for cut in layout.cuts],
        "pieces": [
            list(pieces) if pieces else None for pieces in layout.pieces or (None,) * len(layout.sizes)
        ],
    }


def _messages(plan: Plan, programs: Sequence[Program]) -> list[list[int]]:
    """The pairs of stages between which messages travel, the one that sends first."""
    sends = {
        (plan.materialized.stages.index(instruction.step.before.mesh), instruction.stage)
        for program in programs
        for _, instruction in program.instructions()
        if isinstance(instruction, Send)
    }
    return [list(pair) for pair in sorted(sends)]


def _exchanges(plan: Plan, programs: Sequence[Program]) -> dict[str, Any]:
    """Every irregular redistribution once, though all stages that take part name it."""
    tables: dict[str, Any] = {}
    for program in programs:
        for _, instruction in program.instructions():
            if isinstance(instruction, Exchange) and instruction.name not in tables:
                tables[instruction.name] = _exchange(plan, program, instruction)
    return tables


def _exchange(plan: Plan, program: Program, instruction: Exchange) -> dict[str, Any]:
    step, held = instruction.step, program.values[instruction.read or instruction.write]
    target = local_shape(plan.placed.axes, held.tensor, step.after)
    return {
        "dtype": plan.graph.tensors[held.tensor].dtype,
        "source_view": _shapes(step.before, fine_shape(step.before)),
        "target_view": _shapes(step.after, fine_shape(step.after)),
        "target_shape": _shapes(step.after, target),
        "sum": bool(space_partial(step.before)) and not space_partial(step.after),
        "crosses": step.before.mesh != step.after.mesh,
        "moves": [
            [move.source, move.target, _box(move.source_box), _box(move.target_box)]
            for move in exchange_moves(step)
        ],
    }


def _shapes(layout: Layout, shape: Sequence[Extent]) -> dict[str, list[int]]:
    mesh = layout.mesh
    return {
        str(device): [extent.at(mesh, {**mesh.coordinates(device), TIME: 0}) for extent in shape]
        for device in mesh.devices
    }


def _box(box: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [list(interval) for interval in box]
