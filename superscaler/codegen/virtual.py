"""The virtual cluster: the programs of all rows, executed for all devices in one process.

Every device is a generator with tensors of its own. It pauses where a real rank would wait: in a collective
until the whole group is there, in a receive or an exchange until what it wants is there. Sends never wait,
and messages between two devices keep their order. If nobody can go on, that is a deadlock.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from superscaler.codegen.pieces import (
    Assembled,
    Place,
    assemble,
    micro_batches_of,
    piece,
    relative_difference,
)
from superscaler.codegen.program import (
    LocalValue,
    Program,
    written_into,
)
from superscaler.codegen.virtual_device import Channel, Delivery, Device, Meeting
from superscaler.errors import VerificationError


@dataclass(frozen=True)
class StepResult:
    """What one step of the virtual cluster left behind."""

    outputs: Mapping[str, Tensor]
    """Graph output -> its whole value."""
    state: Mapping[str, Tensor]
    """Stored tensor -> its whole value after the step."""
    watched: Mapping[str, Tensor]
    """Watched tensor -> its whole value."""
    difference: float
    """Largest relative difference between devices that should hold the same."""


def run_step(
    programs: Sequence[Program],
    state: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    step: int,
    watch: Collection[str] = (),
) -> StepResult:
    """Execute one step of all programs on all their devices.

    Args:
        programs: One per row.
        state: A whole tensor per stored tensor; not changed.
        batch: A whole tensor per input, for the global batch.
        step: The number of the step, from 1.
        watch: Names of further tensors whose whole values are wanted, such as gradients.

    Raises:
        VerificationError: A deadlock, an instruction that fails, or a value of another shape than declared.
    """
    cluster = _Cluster(programs, {**state, **batch}, step, frozenset(watch))
    cluster.run()
    return cluster.result()


@dataclass
class _Cluster:
    programs: Sequence[Program]
    given: Mapping[str, Tensor]
    step: int
    watch: frozenset[str]

    def __post_init__(self) -> None:
        self.channels: dict[Channel, deque[Any]] = {}
        stages = {number: mesh for program in self.programs for number, mesh in program.stages.items()}
        meshes = [stages[number] for number in sorted(stages)]
        self.devices: dict[int, Device] = {}
        for program in self.programs:
            for number in program.devices:
                assert number not in self.devices, f"device {number} is in two rows"
                self.devices[number] = Device(program, number, self.step, self.watch, meshes, self._send)
                self._load(self.devices[number])

    def _load(self, device: Device) -> None:
        program = device.program
        written = {name for _, instruction in program.instructions() for name in written_into(instruction)}
        for name in (*program.stored, *program.fed):
            value = program.values[name]
            for micro_batch in range(program.micro_batches if name in program.fed else 1):
                here = device.coordinates(value.layout.mesh, micro_batch)
                shape = [extent.at(value.layout.mesh, here) for extent in value.shape]
                local = piece(self.given[value.tensor], value.layout, here, shape)
                if name in written:
                    local = local.clone()
                if name in program.fed:
                    device.fed[name, micro_batch] = local
                else:
                    device.whole[name] = local

    def _send(self, channel: Channel, value: Any) -> None:
        self.channels.setdefault(channel, deque()).append(value)

    def run(self) -> None:
        """Let every device run as far as it can, until all are done."""
        running = {number: device.run() for number, device in self.devices.items()}
        ready: deque[tuple[int, Any]] = deque((number, None) for number in running)
        waiting: dict[int, Delivery] = {}
        meetings: dict[tuple[Any, ...], dict[int, Any]] = {}
        while ready:
            number, brought = ready.popleft()
            try:
                wait = running[number].send(brought)
            except StopIteration:
                del running[number]
                wait = None
            if isinstance(wait, Meeting):
                meeting = meetings.setdefault(wait.key, {})
                meeting[number] = wait.payload
                if len(meeting) == len(wait.members):
                    ready.extend(wait.finish(meetings.pop(wait.key)).items())
            elif isinstance(wait, Delivery):
                waiting[number] = wait
            for receiver in list(waiting):
                channel = self.channels.get(waiting[receiver].channel)
                if channel:
                    ready.append((receiver, channel.popleft()))
                    del waiting[receiver]
        if running:
            raise VerificationError(
                "deadlock: no device can go on\n" + self._grid(), remedy="look at the order of tasks"
            )
        left = [f"{sender} -> {receiver}" for (_, sender, receiver), queue in self.channels.items() if queue]
        if left:
            raise VerificationError(f"messages nobody received: {', '.join(left)}")

    def _grid(self) -> str:
        return "\n".join(
            f"  device {number:3d} | {device.position}" for number, device in sorted(self.devices.items())
        )

    # what the devices hold at the end

    def result(self) -> StepResult:
        """Whole tensors from all devices' pieces."""
        state, differences = self._state()
        outputs: dict[str, Tensor] = {}
        for program in self.programs:
            for name, value in program.outputs.items():
                found = self._whole(program, program.values[value])
                if name in outputs:
                    differences.append(relative_difference(found.whole, outputs[name]))
                outputs[name] = found.whole
                differences.append(found.difference)
        watched = {}
        for tensor in self.watch:
            found = self._watched(tensor)
            watched[tensor] = found.whole
            differences.append(found.difference)
        return StepResult(outputs, state, watched, max(differences, default=0.0))

    def _state(self) -> tuple[dict[str, Tensor], list[float]]:
        state: dict[str, Tensor] = {}
        differences = []
        for program in self.programs:
            for name in program.stored:
                value = program.values[name]
                found = self._whole(program, value)
                if value.tensor in state:  # held in another stage or layout too
                    differences.append(relative_difference(found.whole, state[value.tensor]))
                state[value.tensor] = found.whole
                differences.append(found.difference)
        return state, differences

    def _whole(self, program: Program, value: LocalValue) -> Assembled:
        pieces: dict[Place, Tensor] = {}
        for number in value.layout.mesh.devices:
            device = self.devices[number]
            for micro_batch in micro_batches_of(value.layout):
                place = number, micro_batch
                if (value.name, micro_batch) in device.recorded:
                    pieces[place] = device.recorded[value.name, micro_batch]
                elif (value.name, micro_batch) in device.fed:
                    pieces[place] = device.fed[value.name, micro_batch]
                elif value.name in device.whole:
                    pieces[place] = device.whole[value.name]
                else:
                    raise VerificationError(f"device {number} never makes {value.name!r}")
        return assemble(pieces, value.layout, program.graph.tensors[value.tensor].shape)

    def _watched(self, tensor: str) -> Assembled:
        """The whole value of a tensor, from a value that needs no summing if there is one."""
        candidates = []
        for program in self.programs:
            recorded = {name for name, _ in self.devices[program.devices[0]].recorded}
            for value in program.values.values():
                if value.tensor == tensor and value.name in recorded:
                    candidates.append((len(value.layout.partial), len(candidates), program, value))
        if not candidates:
            raise VerificationError(f"no device ever makes {tensor!r}")
        _, _, program, value = min(candidates, key=lambda candidate: candidate[:2])
        return self._whole(program, value)
