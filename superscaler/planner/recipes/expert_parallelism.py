"""Expert parallelism: experts cut over the devices that samples are cut over; tokens travel to their experts."""

from superscaler.errors import PlanError
from superscaler.ir.axes import Axis
from superscaler.ir.graph import Operator, Phase
from superscaler.ir.kind_tables.products import PRODUCTS
from superscaler.ir.tensor import Role
from superscaler.planner.placement import letters_of
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.data_parallelism import data_parallel
from superscaler.planner.recipes.sequence import MOVERS
from superscaler.planner.selection import Selection


def expert_parallel(p: Planner, over: str = "ep") -> None:
    """Cut the batch, and in what experts compute the experts instead (GShard, arXiv 2006.16668).

    Tokens reach their experts by an all-to-all and come back by another, and so do their gradients. Every expert has
    room for as many tokens as the model says, so the bytes are known. Of a parameter of the experts each device
    holds the own ones; its gradient is summed over data-parallel devices alone.

    Raises:
        PlanError: The model has no experts that can be cut.
    """
    axes = expert_axes(p)
    if not axes:
        raise PlanError(
            f"the model {p.graph.name!r} has no experts to cut over {over!r}: no product has a matrix for each of them "
            "and room for a fixed number of tokens",
            where=p.speaker,
            remedy=f"drop {over}; experts are stacked in one parameter [experts, in, out] as in models/moe.py",
        )
    cut: set[str] = set()
    for axis in axes:
        operators = computed_by_experts(p, axis)
        cut.update(operator.name for operator in operators)
        p.trans(axis, over, within=Selection(p.graph, p.axes, operators, f"experts along {axis}"))
    data_parallel(p, over, without=cut)


def expert_axes(p: Planner) -> list[Axis]:
    """The axes that count the matrices of a parameter: its products keep them, and multiply one by one."""
    return list(dict.fromkeys(axis for axis, _ in _stacks(p)))


def computed_by_experts(p: Planner, axis: Axis) -> tuple[Operator, ...]:
    """The products of the experts along `axis`, what depends on nothing else between them, and their updates.

    What only moves elements belongs to those that read it: so that a tensor travels once for all its readers.
    """
    inside = {name for counted, name in _stacks(p) if counted == axis}
    found: set[str] = set()
    for operator in p.graph.operators:
        carrying = [name for name in operator.reads if axis in p.axes.fine(name)]
        own = [name for name in carrying if name in inside]
        if operator.kind in PRODUCTS:
            joins = axis in _counted(p, operator)
        else:
            joins = own == carrying or operator.phase is Phase.UPDATE
        if own and joins and letters_of(p.axes, operator, axis):
            found.add(operator.name)
            inside.update(name for name in operator.writes if axis in p.axes.fine(name))
    for operator in reversed(p.graph.operators):
        readers = [reader.name for name in operator.writes for reader in p.graph.readers[name]]
        if operator.kind in MOVERS and readers and letters_of(p.axes, operator, axis):
            (found.add if found.issuperset(readers) else found.discard)(operator.name)
    return tuple(operator for operator in p.graph.operators if operator.name in found)


def _stacks(p: Planner) -> list[tuple[Axis, str]]:
    """Per parameter that is a stack of matrices: the axis that counts them, and its name."""
    roots = {tensor.name: tensor.name for tensor in p.graph.of_role(Role.PARAMETER)}
    found: dict[tuple[Axis, str], None] = {}
    for operator in p.graph.operators:
        if operator.kind in (*MOVERS, "aten._to_copy") and operator.reads[0] in roots:
            roots |= dict.fromkeys(operator.writes, roots[operator.reads[0]])
        stored = [roots[name] for name in operator.reads if name in roots]
        if operator.kind in PRODUCTS and stored:
            found |= dict.fromkeys((axis, name) for axis in _counted(p, operator) for name in stored)
    return list(found)


def _counted(p: Planner, operator: Operator) -> list[Axis]:
    """The axes of a product's letters that all it reads and writes have, and that may be cut."""
    rule, letters = p.axes.rules[operator.name], p.axes.letters[operator.name]
    kept = [
        letter for letter in rule.letters if all(letter in term.letters for term in rule.reads + rule.writes)
    ]
    return [axis for letter in kept for axis in letters[letter][:1] if letters_of(p.axes, operator, axis)]
