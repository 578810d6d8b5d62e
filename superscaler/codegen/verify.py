"""Static proof that programs compute what the graph says.

Every body is executed once on paper, all stages side by side (`superscaler.codegen.stage_proof`); then the
schedule is run on the messages alone, and memory is added up. Nothing is done per device or per micro-batch.
"""

from collections import Counter
from collections.abc import Sequence

from superscaler.codegen.memory import free_values, peak_memory
from superscaler.codegen.program import Free, Program
from superscaler.codegen.stage_proof import AMONG, BY_LOWERING, Channels, Meetings, StageProof
from superscaler.codegen.verify_calls import placement_fault
from superscaler.codegen.verify_schedule import verify_messages, verify_tasks
from superscaler.errors import VerificationError
from superscaler.ir.graph import Phase
from superscaler.planner.plan import Plan


def verify_programs(plan: Plan, programs: Sequence[Program]) -> None:
    """Prove that the programs of all stages compute one step of the plan's graph, end, and fit in memory.

    Raises:
        VerificationError: They do not. The message shows the instructions around the fault, what is held and
            what was wanted, and the user's line; or the schedule with an arrow; or the memory by kind.
    """
    stages = _stages(plan, programs)
    for phase in (Phase.PREPARE, *AMONG, Phase.UPDATE):
        _run_bodies(stages, phase)
    _check_operators(plan, stages)
    _check_results(plan, stages)
    micro_batches = max(program.mesh.micro_batches for program in programs)
    verify_tasks(programs, micro_batches, plan.graph.is_training)
    verify_messages(programs, [stage.messages for stage in stages])
    for program in programs:
        _check_memory(plan, program)


def _stages(plan: Plan, programs: Sequence[Program]) -> list[StageProof]:
    devices = [device for program in programs for device in program.mesh.devices]
    if len(set(devices)) != len(devices):
        raise VerificationError(
            "a device is in two stages: " + "; ".join(str(program.mesh) for program in programs),
            remedy="give every stage devices of its own, or one mesh to all operators that share devices",
        )
    if [program.stage for program in programs] != list(range(len(programs))):
        raise VerificationError(
            f"the programs are of stages {[p.stage for p in programs]}", remedy=BY_LOWERING
        )
    for operator in plan.graph.operators:
        fault = placement_fault(plan.placed, operator)
        if fault:
            raise VerificationError(
                f"the operator {operator.name!r} ({operator.kind}) {fault}",
                where=operator.source,
                remedy="cut it along another letter of its rule",
            )
    return [StageProof(plan, program, programs) for program in programs]


def _run_bodies(stages: Sequence[StageProof], phase: Phase) -> None:
    """Execute one phase of all stages side by side, as far as their messages let them."""
    channels: Channels = {}
    meetings: Meetings = {}
    running = {stage.program.stage: stage.run(phase, channels, meetings) for stage in stages}
    moved = True
    while running and moved:
        moved = False
        for number in list(running):
            try:
                while next(running[number]):
                    moved = True
            except StopIteration:
                del running[number]
                moved = True
    for number in running:
        stages[number].fault(
            "waits for what no other stage sends in this phase", remedy="a task or stage may be missing"
        )
    for name, meeting in meetings.items():
        if any(
            instruction.step.after.mesh not in {stages[i].program.mesh for i in meeting}
            for instruction, _ in meeting.values()
        ):
            raise VerificationError(
                f"the exchange {name!r} of phase {phase} is sent but never received", remedy=BY_LOWERING
            )
    for (sender, receiver), queue in channels.items():
        if queue:
            raise VerificationError(
                f"phase {phase}: stage {sender} sends to stage {receiver}, which never receives {queue[0]}",
                remedy=BY_LOWERING,
            )


def _check_operators(plan: Plan, stages: Sequence[StageProof]) -> None:
    counts = Counter(name for stage in stages for name in stage.ran)
    for operator in plan.graph.operators:
        count = counts[operator.name]
        if count != 1:
            raise VerificationError(
                f"the operator {operator.name!r} runs {count} times",
                where=operator.source,
                remedy=BY_LOWERING,
            )


def _check_results(plan: Plan, stages: Sequence[StageProof]) -> None:
    """Every stored tensor with an update got it in every home, every output is whole somewhere."""
    graph = plan.graph
    homes: set[str] = set()
    for stage in stages:
        for name in stage.program.stored:
            tensor = stage.program.values[name].tensor
            homes.add(tensor)
            if tensor in graph.updates and name not in stage.stored:
                raise VerificationError(
                    f"stage {stage.program.stage} never stores the new value of {name!r}", remedy=BY_LOWERING
                )
    missing = [name for name in graph.updates if name not in homes]
    if missing:
        raise VerificationError(f"no stage holds {missing[0]!r}", remedy=BY_LOWERING)
    given: set[str] = set()
    for stage in stages:
        for output, name in stage.program.outputs.items():
            held = stage.whole.get(name) or stage.among.get(name) or stage.kept.get(name)
            if held is None or held.tensor != output or held.layout.partial or held.fine:
                raise VerificationError(
                    f"stage {stage.program.stage} returns {name!r} as the output {output!r}; "
                    f"it is {held or 'not there'}",
                    remedy=BY_LOWERING,
                )
            given.add(output)
    absent = [name for name in graph.outputs if name not in given]
    if absent:
        raise VerificationError(f"no stage returns the output {absent[0]!r}", remedy=BY_LOWERING)


def _check_memory(plan: Plan, program: Program) -> None:
    if not any(isinstance(instruction, Free) for _, instruction in program.instructions()):
        program = free_values(program)
    use, limit = peak_memory(program), plan.cluster.memory_bytes
    if use.total > limit:
        raise VerificationError(
            f"stage {program.stage} needs {use.total / 2**30:.2f} GiB per device, {plan.cluster.name} has "
            f"{limit / 2**30:.2f} GiB ({(use.total - limit) / 2**30:.2f} GiB too much):\n  {use}",
            remedy=_memory_remedy(use.activations, use.states, use.parameters),
        )


def _memory_remedy(activations: int, states: int, parameters: int) -> str:
    if activations >= max(states, parameters):
        return (
            "use more micro_batches with schedule=1f1b, or more dp or tp, to keep fewer activations at once"
        )
    if states >= parameters:
        return "use zero=1 with dp to cut optimizer states, or more tp or pp"
    return "use more tp or pp to cut the parameters"
