"""Stream: parameters that wait in host memory come to the device layer by layer, each while the one before runs.

A pass over the bodies that run once per micro-batch. What a layer reads is a group: one copy in one piece of memory,
there from the layer's first reader to its last. What belongs to no layer, as the embeddings before the layers and the
head behind them, is a group as well. A parameter that several layers read is fetched for each, so that two groups are
on the device at most: the one that is used, and the one on its way.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from superscaler.codegen.layer_runs import LayerRun, layer_runs
from superscaler.codegen.program import FromHost, Instruction, LocalValue, Program, reads_of, with_reads
from superscaler.codegen.stow import declare_fetched
from superscaler.ir.mesh import Mesh


def stream(program: Program, homes: Collection[str], layers: Collection[str]) -> Program:
    """Fetch parameters in groups ahead of the layers that read them.

    Args:
        program: Any.
        homes: Stored values, in host memory.
        layers: Module paths of layers; of a model without any, every module is one.
    """
    layers = layers or {operator.module for operator in program.graph.operators}
    order = {name: place for place, name in enumerate(program.stored)}
    values, bodies = dict(program.values), dict(program.bodies)
    for part in (part for part in bodies if part.phase.is_repeated):
        number, body = 0, []
        for run in layer_runs(program, bodies[part], layers):
            read = {name for i in run.instructions for name in reads_of(i) if name in homes}
            body += _fetching(
                run, sorted(read, key=order.__getitem__), number, values, program.stages[part.stage]
            )
            number += bool(read)
        bodies[part] = tuple(body)
    return replace(program, values=values, bodies=bodies)


def _fetching(
    run: LayerRun, names: Sequence[str], number: int, values: dict[str, LocalValue], mesh: Mesh
) -> list[Instruction]:
    """A run whose first reader of these parameters comes behind the fetch of them all.

    They are held at the home of the stage's `mesh`, but fetched for this stage alone.
    """
    fetched = {name: declare_fetched(values, name) for name in names}
    for name in fetched.values():
        if values[name].layout.mesh == mesh.home:
            values[name] = replace(values[name], layout=values[name].layout.on(mesh))
    place = next((n for n, i in enumerate(run.instructions) if not fetched.keys().isdisjoint(reads_of(i))), 0)
    body: list[Instruction] = [with_reads(instruction, fetched) for instruction in run.instructions]
    body[place:place] = [FromHost(name, fetched[name], number) for name in names]
    return body


def streamed_groups(body: Sequence[Instruction]) -> list[list[FromHost]]:
    """The groups of parameters that a body fetches, in order."""
    groups: dict[int, list[FromHost]] = {}
    for instruction in body:
        if isinstance(instruction, FromHost) and instruction.group >= 0:
            groups.setdefault(instruction.group, []).append(instruction)
    return list(groups.values())
