"""Sharding: optimizer states, gradients and parameters cut over data-parallel devices (ZeRO, arXiv 1910.02054)."""

from collections.abc import Mapping
from math import prod

from superscaler.errors import PlanError
from superscaler.ir.axes import Axis
from superscaler.ir.graph import Operator, Phase
from superscaler.ir.mesh import Mesh
from superscaler.planner.cut import Cut
from superscaler.planner.placement import letters_of
from superscaler.planner.planner import Planner
from superscaler.planner.selection import Selection


def optimizer_sharding(p: Planner, over: str = "dp") -> None:
    """Cut every optimizer update along the first axis of its parameter that comes out even (ZeRO-1, arXiv 1910.02054).

    Gradients are reduce-scattered and parameters all-gathered once per step: the bytes of an all-reduce.

    A parameter without such an axis is updated whole on every device; `Plan.explain` says so.

    Raises:
        PlanError: No operator is placed on a mesh with the axis `over`.
    """
    home = next((mesh for mesh in p.places.values() if over in mesh.names), None)
    if home is None:
        raise PlanError(
            f"there is no mesh axis {over!r} to cut the optimizer over",
            where=p.speaker,
            remedy=f"place operators on p.mesh(devices, {over}=2) first",
        )
    cuts: dict[int, list[Cut]] = {}
    for cut in p.cuts:
        cuts.setdefault(cut.axis.index, []).append(cut)
    for operator in p.graph.operators:
        mesh = p.places.get(operator.name, home)
        if operator.phase is not Phase.UPDATE or over not in mesh.names:
            continue
        axis = _even_axis(p, operator, mesh, over, cuts)
        if axis is None:
            shape = list(p.graph.tensors[operator.reads[0]].shape)
            reason = f"not cut over {over}: no dim of {shape} that {over} does not cut yet comes out even"
            p.notes.setdefault(operator.name, []).append(reason)
        else:
            p.trans(axis, over, within=Selection(p.graph, p.axes, (operator,), operator.name))


def gradient_sharding(p: Planner, over: str = "dp") -> None:
    """As ZeRO-1, and of the gradients only the own piece is kept (ZeRO-2, arXiv 1910.02054).

    Gradients are reduce-scattered in every micro-batch, and parameters all-gathered once per step.
    """
    optimizer_sharding(p, over)
    p.keep_as_updated(p.everything())


def parameter_sharding(p: Planner, over: str = "dp") -> None:
    """As ZeRO-2, and of the parameters only the own piece is stored (ZeRO-3, arXiv 1910.02054; as FSDP).

    Every micro-batch all-gathers a parameter where its forward reads it, and again in the backward. What the
    forward makes of parameters alone, such as copies in low precision, is cut likewise.
    """
    gradient_sharding(p, over)
    p.store_as_updated(p.everything())
    axes = {o.reads[0]: cut.axis for cut in p.cuts if cut.over == over for o in _updates_cut_by(p, cut)}
    for operator in p.graph.operators:
        if operator.phase is not Phase.FORWARD or not axes.keys() >= {*operator.reads} or not operator.reads:
            continue
        axis = axes[operator.reads[0]]
        if letters_of(p.axes, operator, axis):
            p.trans(axis, over, within=Selection(p.graph, p.axes, (operator,), operator.name))
            axes |= dict.fromkeys(operator.writes, axis)


def _updates_cut_by(p: Planner, cut: Cut) -> list[Operator]:
    """The updates a cut was made for alone."""
    operators = [p.graph.by_name[name] for name in cut.operators or ()]
    return [operator for operator in operators if operator.phase is Phase.UPDATE]


def _even_axis(
    p: Planner, operator: Operator, mesh: Mesh, over: str, cuts: Mapping[int, list[Cut]]
) -> Axis | None:
    """The axis of a parameter that `over` cuts evenly, on top of other cuts; leading axes of dims first."""
    dims = p.axes.dims[operator.reads[0]]
    candidates = [dim[0] for dim in dims if dim] + [axis for dim in dims for axis in dim[1:]]
    held = {
        axis: {
            cut.over
            for cut in cuts.get(axis.index, ())
            if cut.over in mesh.names and (cut.operators is None or operator.name in cut.operators)
        }
        for axis in candidates
    }
    if any(over in names for names in held.values()):
        return None
    for axis in candidates:
        pieces = mesh.size(over) * prod(mesh.size(name) for name in held[axis])
        if axis.size % pieces == 0 and letters_of(p.axes, operator, axis):
            return axis
    return None
