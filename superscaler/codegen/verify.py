"""Static proof that programs compute what the graph says.

Every body is executed once on paper, all rows side by side (`superscaler.codegen.row_proof`); then the
schedule is run on the messages alone, and memory is added up. Nothing is done per device or per micro-batch.
"""

from collections.abc import Sequence

from superscaler.codegen.memory import free_values, peak_memory
from superscaler.codegen.program import Compute, Free, Part, Program, written_into
from superscaler.codegen.row_proof import BY_LOWERING, Channels, Meetings, RowProof
from superscaler.codegen.verify_calls import placement_fault
from superscaler.codegen.verify_schedule import verify_schedule
from superscaler.errors import VerificationError
from superscaler.ir.graph import Phase
from superscaler.ir.mesh import format_devices
from superscaler.planner.materialize import PHASES
from superscaler.planner.plan import Plan


def verify_programs(plan: Plan, programs: Sequence[Program]) -> None:
    """Prove that the programs of all rows compute one step of the plan's graph, end, and fit in memory.

    Raises:
        VerificationError: They do not. The message shows the instructions around the fault, what is held and
            what was wanted, and the user's line; or the schedule with an arrow; or the memory by kind.
    """
    rows = _rows(plan, programs)
    for phase in PHASES:
        _run_bodies(rows, phase)
    _check_operators(plan, rows)
    for program in programs:
        check_written(program)
    _check_results(plan, rows)
    verify_schedule(programs, [row.neighbours.messages for row in rows])
    for program in programs:
        _check_memory(plan, program)


def _rows(plan: Plan, programs: Sequence[Program]) -> list[RowProof]:
    devices = [device for program in programs for device in program.devices]
    used = {device for mesh in plan.materialized.stages for device in mesh.devices}
    if len(set(devices)) != len(devices) or set(devices) != used:
        raise VerificationError(
            "every device must run one program: " + "; ".join(format_devices(p.devices) for p in programs),
            remedy=BY_LOWERING,
        )
    for number, program in enumerate(programs):
        here = {
            stage: mesh
            for stage, mesh in enumerate(plan.materialized.stages)
            if not set(program.devices).isdisjoint(mesh.devices)
        }
        whole = all(set(program.devices) <= set(mesh.devices) for mesh in here.values())
        if program.row != number or program.stages != here or not whole:
            raise VerificationError(
                f"program {number} is of row {program.row}, stages {list(program.stages)}", remedy=BY_LOWERING
            )
    for operator in plan.graph.operators:
        fault = placement_fault(plan.placed, operator)
        if fault:
            raise VerificationError(
                f"the operator {operator.name!r} ({operator.kind}) {fault}",
                where=operator.source,
                remedy="cut it along another letter of its rule",
            )
    return [RowProof(plan, program, programs) for program in programs]


def check_written(program: Program) -> None:
    """What a call writes into must be the stored value itself: of a copy the next step would know nothing.

    Raises:
        VerificationError: It is another.
    """
    for _, instruction in program.instructions():
        for name in written_into(instruction):
            if name not in program.stored:
                assert isinstance(instruction, Compute)
                operator = program.graph.by_name[instruction.operator]
                raise VerificationError(
                    f"{operator.name!r} ({operator.kind}) writes into {name!r}, which is not stored as it is read",
                    where=operator.source,
                    remedy="store the tensor cut and placed as the operator that writes into it",
                )


def _run_bodies(rows: Sequence[RowProof], phase: Phase) -> None:
    """Execute one phase of all rows side by side, as far as their messages let them."""
    channels: Channels = {}
    meetings: Meetings = {}
    running = {
        (row.program.row, part): row.run(part, channels, meetings)
        for row in rows
        for part in row.program.parts(phase)
    }
    at: dict[tuple[int, Part], int] = {}
    moved = True
    while running and moved:
        moved = False
        for key in list(running):
            try:
                while next(running[key]):
                    moved = True
                at[key] = rows[key[0]].index
            except StopIteration:
                del running[key]
                moved = True
    for key in running:
        row = rows[key[0]]
        row.part, row.index = key[1], at[key]
        row.fault(
            "waits for what no other stage sends in this phase", remedy="a task or stage may be missing"
        )
    for name, meeting in meetings.items():
        mesh = next(iter(meeting.values()))[0].step.after.mesh
        if not any(set(row.program.devices) <= set(mesh.devices) and name in row.taken for row in rows):
            raise VerificationError(
                f"the exchange {name!r} of phase {phase} is sent but never received", remedy=BY_LOWERING
            )
    for (sender, receiver, *_), queue in channels.items():
        if queue:
            raise VerificationError(
                f"phase {phase}: stage {sender} sends to stage {receiver}, which never receives {queue[0]}",
                remedy=BY_LOWERING,
            )


def _check_operators(plan: Plan, rows: Sequence[RowProof]) -> None:
    """Every row of an operator's mesh runs it once."""
    for operator in plan.graph.operators:
        mesh = plan.placed.placements[operator.name].mesh
        for row in rows:
            wanted = int(not set(row.program.devices).isdisjoint(mesh.devices))
            if row.ran[operator.name] != wanted:
                raise VerificationError(
                    f"{row.program.title} runs the operator {operator.name!r} {row.ran[operator.name]} times",
                    where=operator.source,
                    remedy=BY_LOWERING,
                )


def _check_results(plan: Plan, rows: Sequence[RowProof]) -> None:
    """Every stored tensor with an update got it in every home, every output is whole somewhere."""
    graph = plan.graph
    homes: set[str] = set()
    for row in rows:
        for name in row.program.stored:
            tensor = row.program.values[name].tensor
            homes.add(tensor)
            if tensor in graph.updates and name not in row.stored:
                raise VerificationError(
                    f"{row.program.title} never stores the new value of {name!r}", remedy=BY_LOWERING
                )
    missing = [name for name in graph.updates if name not in homes]
    if missing:
        raise VerificationError(f"no row holds {missing[0]!r}", remedy=BY_LOWERING)
    given: set[str] = set()
    for row in rows:
        for output, name in row.program.outputs.items():
            held = row.whole.get(name) or row.among.get(name) or row.kept.get(name)
            if held is None or held.tensor != output or held.layout.partial or held.fine:
                raise VerificationError(
                    f"{row.program.title} returns {name!r} as the output {output!r}; "
                    f"it is {held or 'not there'}",
                    remedy=BY_LOWERING,
                )
            given.add(output)
    absent = [name for name in graph.outputs if name not in given]
    if absent:
        raise VerificationError(f"no row returns the output {absent[0]!r}", remedy=BY_LOWERING)


def _check_memory(plan: Plan, program: Program) -> None:
    if not any(isinstance(instruction, Free) for _, instruction in program.instructions()):
        program = free_values(program)
    use, limit = peak_memory(program), plan.cluster.memory_of(program.devices)
    if use.total > limit:
        raise VerificationError(
            f"{program.title} needs {use.total / 2**30:.2f} GiB per device, {plan.cluster.name} has "
            f"{limit / 2**30:.2f} GiB ({(use.total - limit) / 2**30:.2f} GiB too much):\n  {use}",
            remedy=_memory_remedy(use.activations, use.states, use.parameters),
        )


def _memory_remedy(activations: int, states: int, parameters: int) -> str:
    if activations >= max(states, parameters):
        return (
            "use more micro_batches with schedule=1f1b, or more dp or tp, to keep fewer activations at once, "
            "or offload=activations to keep them in host memory"
        )
    if states >= parameters:
        return (
            "use zero=1 with dp to cut optimizer states, offload=optimizer to keep them in host memory, "
            "or more tp or pp"
        )
    return (
        "use zero=3 with dp to cut the parameters of training, offload=parameters to keep them in host memory, "
        "or more tp or pp"
    )
