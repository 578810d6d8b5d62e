"""An independent check of a materialized graph: a value is there when it is read, in the layout asked for."""

from superscaler.ir.graph import Phase
from superscaler.planner.materialize import PHASES, Keep, MaterializedGraph, Run, Store, Transfer
from superscaler.planner.steps import apply, plain

LASTING = (Phase.PREPARE, Phase.UPDATE)


def assert_dependencies_hold(materialized: MaterializedGraph) -> None:
    """Recompute every step's result, and follow every value from where it is made to where it is read."""
    placed, values = materialized.placed, materialized.values
    made = dict.fromkeys((*materialized.stored, *materialized.fed), Phase.PREPARE)

    def read(name: str, phase: Phase) -> None:
        assert name in made, f"{name} is read before it is made"
        lives = phase in (Phase.FORWARD, Phase.BACKWARD) or made[name] in LASTING
        assert lives, f"{name} of one micro-batch is read in {phase}"

    run = []
    for phase in PHASES:
        for event in materialized.events[phase]:
            match event:
                case Run(operator=name, reads=reads, writes=writes):
                    operator = placed.graph.by_name[name]
                    run.append(name)
                    for tensor, value, layout in zip(
                        operator.reads, reads, placed.reads(operator), strict=True
                    ):
                        if layout is None:
                            continue
                        read(value, phase)
                        assert values[value].tensor == tensor
                        assert same(values[value].layout, layout), (name, tensor)
                    for value, layout in zip(writes, placed.writes(operator), strict=True):
                        assert same(values[value].layout, layout)
                    made.update(dict.fromkeys(writes, phase))
                case Transfer(step=step, read=source, write=target):
                    read(source, phase)
                    pieces = step.after.pieces[step.dim] if step.dim >= 0 and step.after.pieces else None
                    after = apply(
                        step.kind,
                        step.before,
                        step.axis,
                        step.dim,
                        step.from_dim,
                        pieces=pieces,
                        target=step.after,
                    )
                    assert after == step.after, f"{step} is no legal step"
                    assert same(values[source].layout, step.before)
                    assert same(values[target].layout, step.after)
                    made[target] = phase
                case Keep(read=source, write=target):
                    read(source, phase)
                    made[target] = Phase.UPDATE
                case Store(read=source, write=target):
                    read(source, phase)
                    assert same(values[source].layout, values[target].layout)
                    assert target in materialized.stored
    assert sorted(run) == sorted(placed.graph.by_name)
    for value in materialized.outputs.values():
        assert value in made


def same(one, other) -> bool:
    """Whether two layouts place values equally, whatever the number of micro-batches."""
    one, other = plain(one), plain(other)
    meshes = [(layout.mesh.devices, layout.mesh.axes) for layout in (one, other)]
    return meshes[0] == meshes[1] and (one.sizes, one.cuts, one.partial, one.reducer, one.pieces) == (
        other.sizes,
        other.cuts,
        other.partial,
        other.reducer,
        other.pieces,
    )
