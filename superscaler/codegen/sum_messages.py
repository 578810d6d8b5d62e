"""Sum messages: which started sums travel together, and where each message sets out.

`superscaler.runtime.started` decides this while a program runs; here the same is followed on the program, for its
memory and for its time. What bodies start and what micro-batches add up are queues that know nothing of each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from superscaler.codegen.program import Await, Collective, Instruction, Keep, Part, Program
from superscaler.ir.bucket import JOINED_BYTES, has_room, travels_alone
from superscaler.ir.graph import Phase
from superscaler.planner.steps import StepKind

_UPDATE = Part(Phase.UPDATE)


@dataclass(frozen=True, slots=True)
class SumMessage:
    """One message for one started sum or several."""

    sums: tuple[Collective, ...]
    is_bucket: bool
    """Whether its sums lie in one piece of memory from the first until the update."""
    is_accumulated: bool
    """Whether it sums what micro-batches have added up: then it sets out in the last task of its part."""
    part: Part
    place: int
    """With which instruction of the part's body it sets out; with an Await before that waits.

    A bucket does so with its last sum. That it is the last is not known in the first step, in which the bucket waits
    until there is no room for another sum, or somebody waits for it.
    """


def sum_messages(program: Program, joined_bytes: int = JOINED_BYTES["cuda"]) -> tuple[SumMessage, ...]:
    """The messages of a row's started sums; those of one part in the order in which they set out.

    Args:
        program: Of the row.
        joined_bytes: Up to how many bytes sums that scatter are joined.
    """
    repeated = [part for part in program.bodies if part.phase.is_repeated]
    of_bodies = [message for part in repeated for message in _of_body(program, part, joined_bytes)]
    found = (*of_bodies, *_of_micro_batches(program, joined_bytes))
    return tuple(sorted(found, key=lambda message: message.place))


def _of_body(program: Program, part: Part, joined_bytes: int) -> tuple[SumMessage, ...]:
    queue = _Queue(program, joined_bytes)
    for place, instruction in enumerate(program.bodies[part]):
        queue.now = part, place
        if isinstance(instruction, Await):
            queue.wait(instruction.leaving)
        elif isinstance(instruction, Collective) and instruction.is_started:
            queue.put(instruction)
            queue.start(instruction)
    return queue.messages(is_accumulated=False)


def _of_micro_batches(program: Program, joined_bytes: int) -> tuple[SumMessage, ...]:
    """Of what micro-batches add up: the first task of a part puts its sums into buckets, the last completes them.

    A bucket into which several stages put sums sets out with the last of all.
    """
    update = program.bodies.get(_UPDATE, ())
    summed = {i.read: i for i in update if isinstance(i, Collective) and i.is_started}
    queue = _Queue(program, joined_bytes)
    parts = [Part(task.phase, task.stage) for task in program.tasks]
    first = {part: place for place, part in reversed(list(enumerate(parts)))}
    last = {part: place for place, part in enumerate(parts)}
    sums = {part: _kept_among(summed, program.bodies[part]) for part in first}
    for number, part in enumerate(parts):
        for place, collective in sums[part] if number in (first[part], last[part]) else ():
            queue.now = part, place
            if number == first[part]:
                queue.put(collective)
            if number == last[part]:
                queue.start(collective)
                queue.close_bucket(collective)
    for place in (place for place, instruction in enumerate(update) if isinstance(instruction, Await)):
        queue.now = _UPDATE, place
        queue.wait()
    return queue.messages(is_accumulated=True)


def _kept_among(
    summed: Mapping[str, Collective], body: Sequence[Instruction]
) -> tuple[tuple[int, Collective], ...]:
    """The places in a body where sums add up, in order."""
    keeps = ((place, i.write) for place, i in enumerate(body) if isinstance(i, Keep))
    return tuple((place, summed[write]) for place, write in keeps if write in summed)


_Kind = tuple[str, tuple[int, ...], bool, str]
"""What sums that travel together have in common: mesh axis, devices along it, whether all is kept, dtype."""


@dataclass
class _Message:
    kind: _Kind
    is_bucket: bool
    sums: list[Collective] = field(default_factory=list)
    num_bytes: int = 0
    sets_out: tuple[Part, int] = (_UPDATE, 0)


@dataclass
class _Queue:
    """`superscaler.runtime.started.Reductions`, on paper."""

    program: Program
    joined_bytes: int
    now: tuple[Part, int] = (_UPDATE, 0)
    order: list[Collective] = field(default_factory=list)
    """What has been started and not waited for."""
    message_of: dict[str, _Message] = field(default_factory=dict)
    """Value that a sum writes -> the message it travels in."""
    open: dict[_Kind, _Message] = field(default_factory=dict)
    """The message that others of a kind may still join."""

    def put(self, collective: Collective) -> None:
        """Give a sum its place in a bucket, or where it is; one that scatters needs none."""
        if not _is_whole(collective):
            return
        kind, num_bytes = self._kind(collective), self._num_bytes(collective)
        if travels_alone(num_bytes):
            self._join(collective, _Message(kind, is_bucket=False))
            return
        bucket = self.open.get(kind)
        if bucket is None or not has_room(bucket.num_bytes, num_bytes):
            bucket = self.open[kind] = _Message(kind, is_bucket=True)
        self._join(collective, bucket)

    def start(self, collective: Collective) -> None:
        """Let a sum set out, at once or with what it travels with."""
        self.order.append(collective)
        if not _is_whole(collective):
            self._scatter(collective)
        self.message_of[collective.write].sets_out = self.now

    def close_bucket(self, collective: Collective) -> None:
        """Let nothing more join a bucket of which a sum has been completed."""
        if self.message_of[collective.write].is_bucket:
            self._close(self.message_of[collective.write])

    def wait(self, leaving: int = 0) -> None:
        """Wait for all but the last few; what has not set out does so now."""
        done = self.order[: max(0, len(self.order) - leaving)]
        del self.order[: len(done)]
        for collective in done:
            message = self.message_of[collective.write]
            if self.open.get(message.kind) is message and not message.is_bucket:
                message.sets_out = self.now
            self._close(message)

    def messages(self, *, is_accumulated: bool) -> tuple[SumMessage, ...]:
        """Those that were made."""
        made = {id(message): message for message in self.message_of.values()}.values()
        return tuple(
            SumMessage(tuple(one.sums), one.is_bucket, is_accumulated, *one.sets_out) for one in made
        )

    def _scatter(self, collective: Collective) -> None:
        kind, num_bytes = self._kind(collective), self._num_bytes(collective)
        if num_bytes >= self.joined_bytes:
            self._join(collective, _Message(kind, is_bucket=False))
            return
        message = self.open.setdefault(kind, _Message(kind, is_bucket=False))
        self._join(collective, message)
        if message.num_bytes >= self.joined_bytes:
            self._close(message)

    def _close(self, message: _Message) -> None:
        """Let nothing more join a message."""
        if self.open.get(message.kind) is message:
            del self.open[message.kind]

    def _join(self, collective: Collective, message: _Message) -> None:
        message.sums.append(collective)
        message.num_bytes += self._num_bytes(collective)
        self.message_of[collective.write] = message

    def _num_bytes(self, collective: Collective) -> int:
        return self.program.values[collective.read].num_bytes

    def _kind(self, collective: Collective) -> _Kind:
        is_whole, axis = _is_whole(collective), collective.step.axis
        devices = self.program.mesh_of(collective).group(axis, self.program.devices[0])
        dtype = self.program.values[collective.read].dtype
        return axis, tuple(sorted(devices)) if is_whole else devices, is_whole, dtype


def _is_whole(collective: Collective) -> bool:
    """Whether each device keeps all of a sum."""
    return collective.step.kind is StepKind.ALL_REDUCE
