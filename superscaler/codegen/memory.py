"""Memory: values are freed after their last use, and the most a program ever holds is known."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from superscaler.codegen.instruction_text import describe
from superscaler.codegen.offload import Move, moved_together, overwritten_in_fetched
from superscaler.codegen.overlap import arriving, coming
from superscaler.codegen.program import (
    Compute,
    Free,
    FromHost,
    Instruction,
    Keep,
    Part,
    Program,
    Send,
    Store,
    ToHost,
    reads_of,
    writes_of,
)
from superscaler.codegen.shared_memory import add_views
from superscaler.codegen.stream import streamed_groups
from superscaler.codegen.sum_messages import sum_messages
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import OPTIMIZERS
from superscaler.ir.tensor import Role
from superscaler.planner.schedule import Task
from superscaler.planner.steps import StepKind, uses_time


def free_values(program: Program) -> Program:
    """Insert a Free behind the last use of every value; stored values, inputs and outputs stay.

    What the forward of a micro-batch leaves for its backward is freed there; what was prepared or kept for
    the whole step is freed in the update.
    """
    bodies = {part: [i for i in body if not isinstance(i, Free)] for part, body in program.bodies.items()}
    staying = {*program.stored, *program.fed, *program.outputs.values()}
    place: dict[str, tuple[Part, int]] = {}
    whole: set[str] = set()
    for part, body in bodies.items():
        arrived = arriving(body)
        for index, instruction in enumerate(body):
            for name in (*reads_of(instruction), *writes_of(instruction), *arrived.get(index, ())):
                place[name] = part, index
            if isinstance(instruction, Keep) or not part.phase.is_repeated:
                whole.update(writes_of(instruction))
    freed: dict[tuple[Part, int], list[str]] = {}
    for name, (part, index) in place.items():
        if name in staying or name not in program.values:
            continue
        if name in whole and part.phase.is_repeated:
            part, index = Part(Phase.UPDATE), -1
        freed.setdefault((part, index), []).append(name)
    return replace(program, bodies={part: _with_frees(part, body, freed) for part, body in bodies.items()})


def _with_frees(
    part: Part, body: Sequence[Instruction], freed: Mapping[tuple[Part, int], list[str]]
) -> tuple[Instruction, ...]:
    result: list[Instruction] = []
    if (part, -1) in freed:
        result.append(Free(tuple(freed[part, -1])))
    for index, instruction in enumerate(body):
        result.append(instruction)
        if (part, index) in freed:
            result.append(Free(tuple(freed[part, index])))
    return tuple(result)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What the fullest device of a row holds at its fullest moment, in bytes."""

    title: str
    """Of the program."""
    parameters: int
    """Parameters and buffers."""
    states: int
    """Optimizer states."""
    gradients: int
    activations: int
    """Inputs, and what forwards keep for backwards, of all micro-batches in flight."""
    temporary: int
    host: int
    """The most in host memory at any moment, which is apart from the device's."""
    moment: str
    """The task and instruction."""

    @property
    def total(self) -> int:
        """All of it on the device."""
        return self.parameters + self.states + self.gradients + self.activations + self.temporary

    def __str__(self) -> str:
        """Print the parts that are not 0, in MiB."""
        parts = ("parameters", "states", "gradients", "activations", "temporary")
        shown = ", ".join(
            f"{name} {getattr(self, name) / 2**20:.1f}" for name in parts if getattr(self, name)
        )
        beside = f", {self.host / 2**20:.1f} MiB in host memory" if self.host else ""
        return f"{self.title}: {self.total / 2**20:.1f} MiB ({shown}) in {self.moment}{beside}"


@dataclass(frozen=True, slots=True)
class TaskMemory:
    """What the fullest device of a row holds in the course of one task."""

    task: Task
    most: MemoryUse
    """At the fullest moment of the task."""
    after: MemoryUse
    """When the task is done."""


def peak_memory(program: Program) -> MemoryUse:
    """The largest memory over the whole step, by exact liveness over the row's order of tasks.

    A value counts from its write to its Free; views share their operand's memory; updates of stored values
    are in place. Where pieces are uneven the largest counts; sizes that vary are those of the example. Scratch
    memory within an operator is not known.
    """
    held = list(_Account(program).over_tasks())
    fullest = max(held, key=lambda one: _on_device(one.most))
    most = _use(program, fullest.most, fullest.moment)
    return replace(most, host=max(one.most_host for one in held))


def memory_over_tasks(program: Program) -> tuple[TaskMemory, ...]:
    """What is held in the course of the step, of which `peak_memory` is the most; P first, U last."""
    return tuple(
        TaskMemory(
            held.task,
            replace(_use(program, held.most, held.moment), host=held.most_host),
            _use(program, held.after, f"after {_name(held.task)}"),
        )
        for held in _Account(program).over_tasks()
    )


def _use(program: Program, total: Counter[str], moment: str) -> MemoryUse:
    parts = ("parameters", "states", "gradients", "activations", "temporary", "host")
    return MemoryUse(program.title, **{name: total[name] for name in parts}, moment=moment)


def _name(task: Task) -> str:
    return str(task if task.phase.is_repeated else task.phase)


@dataclass
class _Held:
    """What is held in the course of one task, by category."""

    task: Task
    most: Counter[str]
    most_host: int
    moment: str
    after: Counter[str]


@dataclass
class _Walk:
    """One body: its fullest moment beyond what is held anyway, and what it leaves behind."""

    most: Counter[str]
    most_host: int
    moment: str
    left: tuple[str, ...]
    left_bytes: Counter[str]
    kept_bytes: Counter[str]
    handed: Mapping[int, Counter[str]]
    """What it hands to other stages on the same devices."""


@dataclass
class _Account:
    program: Program
    root: dict[str, str] = field(default_factory=dict)
    """Value -> the value whose memory it shares."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of a value's memory, where they are not those of its elements."""
    saved: set[str] = field(default_factory=set)
    """What the forward makes and the backward reads."""
    streamed: set[str] = field(default_factory=set)
    """Parameters on the device for a while."""

    def __post_init__(self) -> None:
        program = self.program
        self.gradients = set(program.graph.gradients.values())
        self.kept = {i.write for _, i in program.instructions() if isinstance(i, Keep)}
        self.resident = {*program.stored, *program.fed}
        made = {name: part for part, i in program.instructions() for name in writes_of(i)}
        self.saved = {
            name
            for part, i in program.instructions()
            for name in reads_of(i)
            if part.phase.is_repeated and name in made and made[name].phase.is_repeated and made[name] != part
        }
        for part, i in program.instructions():
            is_streamed = isinstance(i, FromHost) and i.group >= 0
            if part.phase.is_repeated and isinstance(i, ToHost | FromHost) and not is_streamed:
                self.saved.add(i.read if isinstance(i, ToHost) else i.write)
        self._find_roots()
        self._find_buckets()
        self.saved = set(map(self._root, self.saved))
        self.base: Counter[str] = self._bytes(self.resident)

    def over_tasks(self) -> Iterator[_Held]:
        """Walk the tasks in order, from P to U."""
        prepared = self._walk(Part(Phase.PREPARE), (), True)
        before = self.base
        self.base = before + prepared.left_bytes
        yield self._held(Task(-1, Phase.PREPARE, 0), before, prepared, self.base)
        held: Counter[str] = Counter()
        waiting: dict[tuple[int, int], _Walk] = {}
        handed: dict[Task, Counter[str]] = {}
        walks: dict[tuple[Part, bool], _Walk] = {}
        for task in self.program.tasks:
            part = Part(task.phase, task.stage)
            key = part, (part, True) not in walks
            start = waiting.pop((task.stage, task.micro_batch), None)
            held.subtract(start.left_bytes if start else ())
            held.subtract(handed.pop(task, ()))
            if key not in walks:
                walks[key] = self._walk(part, start.left if start else (), key[1])
            walk = walks[key]
            before = self.base + held
            if key[1]:
                self.base += walk.kept_bytes
            if walk.left:
                waiting[task.stage, task.micro_batch] = walk
                held.update(walk.left_bytes)
            for stage, size in walk.handed.items():
                other = Task(stage, task.phase, task.micro_batch)
                handed.setdefault(other, Counter()).update(size)
                held.update(size)
            yield self._held(task, before, walk, self.base + held)
        self.base.update(held)
        standing = (*prepared.left, *self.kept)
        self.base -= self._bytes(self._roots(standing))
        updated = self._walk(Part(Phase.UPDATE), standing, False)
        yield self._held(Task(-1, Phase.UPDATE, 0), self.base, updated, self._bytes(self.resident))

    def _held(self, task: Task, before: Counter[str], walk: _Walk, after: Counter[str]) -> _Held:
        """What is held in a task, by what is held anyway and what the task adds."""
        most_host, moment = before["host"] + walk.most_host, f"{_name(task)}: {walk.moment}"
        return _Held(task, before + walk.most, most_host, moment, after)

    def _walk(self, part: Part, start: Iterable[str], first: bool) -> _Walk:
        """Execute one body on paper; the `first` time, kept values take over the memory of what they keep."""
        alive = dict.fromkeys(start)
        users = Counter(self._root(name) for name in alive)
        over: dict[str, str] = {}  # kept value -> the storage it took over
        now = self._bytes(self._roots(alive))
        most, most_host, moment = now.copy(), now["host"], "start"
        handed: dict[int, Counter[str]] = {}
        body = self.program.bodies.get(part, ())
        ahead = coming(body)
        for place, instruction in enumerate(body):
            added = ahead.get(place, [])
            if isinstance(instruction, Send) and instruction.stage in self.program.stages:
                handed.setdefault(instruction.stage, Counter()).update(
                    self._bytes(self._roots([instruction.read]))
                )
            if isinstance(instruction, Keep):
                if first:
                    over[instruction.write] = self._root(instruction.read)
                    added.append(instruction.write)
            elif not isinstance(instruction, Store):
                added = [*added, *writes_of(instruction)]
            for name in added:
                if name in alive:  # on its way since the group before
                    continue
                root = over.get(name) or self._root(name)
                alive[name] = None
                users[root] += 1
                if users[root] == 1 and root not in self.resident:
                    now += self._bytes([root])
            if isinstance(instruction, Free):
                for name in instruction.values:
                    root = over.get(name) or self._root(name)
                    if name in alive:
                        del alive[name]
                        users[root] -= 1
                        if not users[root] and root not in self.resident:
                            now.subtract(self._bytes([root]))
            most_host = max(most_host, now["host"])
            if _on_device(now) > _on_device(most):
                most, moment = now.copy(), describe(instruction)
        left = tuple(name for name in alive if name not in self.kept)
        kept = [name for name in alive if name in self.kept]
        return _Walk(most, most_host, moment, left, self._bytes(self._roots(left)), self._bytes(kept), handed)

    # storage

    def _root(self, name: str) -> str:
        while self.root.get(name, name) != name:
            name = self.root[name]
        return name

    def _roots(self, names: Iterable[str]) -> set[str]:
        return {self._root(name) for name in names} - self.resident

    def _bytes(self, roots: Iterable[str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for name in roots:
            value = self.program.values[name]
            times = self.program.micro_batches if name in self.program.fed and uses_time(value.layout) else 1
            total[self._category(name)] += times * self._size(name)
        return total

    def _size(self, name: str) -> int:
        """Bytes of the largest piece of a value."""
        return self.sizes[name] if name in self.sizes else self.program.values[name].num_bytes

    def _category(self, name: str) -> str:
        if self.program.values[name].host:
            return "host"
        tensor = self.program.graph.tensors[self.program.values[name].tensor]
        if name in self.streamed:
            return "parameters"
        if name in self.program.stored:
            return "states" if tensor.role is Role.STATE else "parameters"
        if name in self.kept or tensor.name in self.gradients:
            return "gradients"
        return "activations" if name in self.saved or name in self.program.fed else "temporary"

    def _find_roots(self) -> None:
        stores = {i.read: i.write for _, i in self.program.instructions() if isinstance(i, Store)}
        self.root |= {name: home for name, home in stores.items() if self.program.values[name].host}
        stores |= overwritten_in_fetched(self.program.bodies.get(Part(Phase.UPDATE), ()))
        for _, instruction in self.program.instructions():
            if isinstance(instruction, Compute) and instruction.kind in OPTIMIZERS:
                for name in instruction.writes:
                    home = stores.get(name)
                    if home and self.program.values[home].shape == self.program.values[name].shape:
                        self.root[name] = home
        add_views(self.program, self.root)
        for part, body in self.program.bodies.items():
            if part.phase.is_repeated:
                for kind in (ToHost, FromHost):
                    for group in moved_together(body, kind):
                        self._share_moved(group)
                for group in streamed_groups(body):
                    self._join_streamed(group)

    def _find_buckets(self) -> None:
        """Sums that are started lie in a bucket together, or alone where they were made.

        What micro-batches add up lies there already.
        """
        for message in sum_messages(self.program):
            first = message.sums[0]
            if message.is_bucket:
                self.sizes[first.write] = sum(self._size(i.write) for i in message.sums)
                self.root |= {i.write: first.write for i in message.sums}
            elif first.step.kind is StepKind.ALL_REDUCE:
                self.root[first.write] = self._root(first.read)
            if message.is_bucket and message.is_accumulated:
                self.root |= {i.read: first.write for i in message.sums}

    def _join_streamed(self, group: Sequence[FromHost]) -> None:
        """A group of parameters lies in one piece of memory, which stays until the last of them is freed."""
        first = group[0].write
        self.streamed.add(first)
        self.sizes[first] = sum(self._size(i.write) for i in group)
        self.root |= {i.write: first for i in group}

    def _share_moved(self, group: Sequence[Move]) -> None:
        """Values moved together share memory where they did before, if moving all of that is less than each alone."""
        sharing: dict[str, list[Move]] = {}
        for move in group:
            sharing.setdefault(self._root(move.read), []).append(move)
        for root, moves in sharing.items():
            whole = self._size(root)
            if whole <= sum(self._size(move.write) for move in moves):
                self.sizes[moves[0].write] = whole
                self.root |= {move.write: moves[0].write for move in moves}


def _on_device(total: Counter[str]) -> int:
    return total.total() - total["host"]
