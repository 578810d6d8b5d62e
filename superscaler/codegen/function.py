"""Function: the source of one generated function, written instruction by instruction."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from superscaler.codegen.expressions import Text, call, results_wanted, without_unread
from superscaler.codegen.inline import inline
from superscaler.codegen.lifetimes import Lifetimes
from superscaler.codegen.names import Scope
from superscaler.codegen.offload import Move
from superscaler.codegen.ownership import Ownership, is_view
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    FromHost,
    Instruction,
    Keep,
    Mask,
    Receive,
    Send,
    Slice,
    ToHost,
    reads_of,
)
from superscaler.codegen.sizes import Sizes
from superscaler.codegen.source_lines import INDENT, WIDTH, statement
from superscaler.codegen.transfers import accumulated_sum, made_together, started_sum, transfer
from superscaler.ir.float8 import LINEAR
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import Role
from superscaler.planner.steps import StepKind

RESERVED = (
    "p", "at", "rt", "ops", "torch", "F", "batch", "grads", "kept", "state", "saved", "mb", "step", "key", "layer",
    "blocks", "name", "accumulate", "pieces", "gathered", "fetched",
)  # fmt: skip


class Function:
    """One function under construction.

    Args:
        printed: The program it is part of.
        mesh: In whose coordinates it counts; of a function for several stages, of any.
        name: Of the function.
        prefix: For a block: the part of parameters' names that is the argument ``at``.
        numbers: For a block whose calls count: the first call's numbers, relative to which ``key`` counts.
    """

    def __init__(
        self, printed: PrintedProgram, mesh: Mesh, name: str, prefix: str = "", numbers: Sequence[int] = ()
    ) -> None:
        self.printed, self.name, self.prefix, self.numbers = printed, name, prefix, numbers
        symbols = name_symbols(printed)
        self.sizes = Sizes(mesh, printed.cuts, symbols, printed.named_axis)
        self.scope = Scope((*RESERVED, *printed.axis_variables, *symbols.values()))
        self.lines: list[str] = []
        self.used: set[str] = set()
        self.special: dict[str, str] = {}
        self.targets: dict[str, str] = {}
        self.indent = 1
        self.lifetimes = Lifetimes()
        self._ownership = Ownership(printed, self.lifetimes)
        self._inline: dict[str, Text] = {}
        self._together: dict[str, Sequence[Collective | Move]] = {}
        """Value -> the instructions that one statement makes, the value's own among them."""
        self._fetched: dict[str, list[str]] = {}
        """Parameter fetched from host memory -> those that came with it."""

    # values

    def argument(self, value: str, name: str = "") -> str:
        """Bind a value that is passed in, by preference as `name`; returns its name."""
        return self.scope.bind(value, name or self.printed.hint(value))

    def unpack(self, names: Sequence[str], source: str, comment: str = "") -> None:
        """Append ``a, b = source``."""
        text = ", ".join(names) + ("," if len(names) == 1 else "")
        is_long = len(INDENT + text + source) + 3 > WIDTH and len(names) > 1
        self.add(f"({text}) = {source}" if is_long else f"{text} = {source}", comment)

    def key(self, name: str) -> str:
        """A dict key, relative to ``at`` in a block."""
        if self.prefix and name.startswith((f"{self.prefix}.", f"{self.prefix}/", f"{self.prefix}|")):
            self.used.add("at")
            return f'f"{{at}}{name[len(self.prefix) :]}"'
        return f'"{name}"'

    def read(self, value: str) -> Text:
        """The text of a value."""
        program = self.printed.program
        if value in self._inline:
            return self._inline.pop(value)
        if value in self.scope.names:
            return Text(self.scope.names[value])
        if value in self.special:
            return Text(self.special[value])
        if value in self.printed.kept:
            place, key = self.printed.kept[value]
            return Text(f"{self.use(place)}[{self.key(key)}]")
        if value in program.stored:
            is_state = self.printed.graph.tensors[self.printed.value(value).tensor].role is Role.STATE
            return Text(f"{self.use('state' if is_state else 'p')}[{self.key(value)}]")
        if value in program.fed:
            return Text(f'{self.use("batch")}["{value}"]')
        assert value not in program.values, f"{self.name} reads {value}, which it does not hold"
        return Text(self.use("step"))

    def use(self, argument: str) -> str:
        """Note that the function needs an argument."""
        self.used.add(argument)
        return argument

    # statements

    def add(self, text: str, comment: str = "") -> None:
        """Append a statement."""
        self.lines += statement(text, comment, self.indent)

    def run(
        self,
        items: Sequence[Any],
        outputs: Collection[str],
        reads: Callable[[Any], Collection[str]] = reads_of,
        other: Callable[[Any], None] | None = None,
    ) -> None:
        """Append instructions.

        Args:
            items: Instructions, or other things that `other` writes.
            outputs: Values needed after them.
            reads: What an item reads.
            other: Writes an item that is no instruction.
        """
        self.lifetimes.begin(items, outputs, reads)
        self._together = made_together(items)
        is_again = False
        for position, item in enumerate(items):
            self.lifetimes.here = position
            if isinstance(item, Instruction) and self._takes_memory(item):
                self.forget()
            if isinstance(item, Instruction) and is_again != self.printed.is_again(item):
                is_again = not is_again
                note = "forward again: its results were not stored" if is_again else "backward"
                self.lines.append(f"{INDENT * self.indent}# {note}")
            following = next((i for i in items[position + 1 :] if not isinstance(i, Keep)), None)
            if isinstance(item, Instruction):
                self.write(item, following)
            elif other is not None:
                other(item)

    def dead(self) -> frozenset[str]:
        """Named values nobody reads after the current item."""
        return frozenset(name for name in self.scope.names if not self.lifetimes.is_read_later(name))

    def bind(self, value: str) -> str:
        """Name a new value."""
        return self.scope.bind(value, self.printed.hint(value), self.dead())

    def bind_apart(self, value: str) -> str:
        """Name a new value, by no name of what the current item reads."""
        dead = {name for name in self.scope.names if not self.lifetimes.is_read_from_here(name)}
        return self.scope.bind(value, self.printed.hint(value), frozenset(dead))

    def _takes_memory(self, instruction: Instruction) -> bool:
        """Whether an instruction makes new memory on the device."""
        if isinstance(instruction, FromHost):
            return instruction is self._together[instruction.write][0]
        return not (
            isinstance(instruction, Keep | ToHost)
            or (isinstance(instruction, Compute) and is_view(instruction))
        )

    def forget(self) -> None:
        """Append ``del`` of values nobody needs any more, once they are worth it together.

        Parameters fetched together lie in one piece of memory, and are worth it once nobody needs any of them.
        """
        if self._inline:  # an expression that reads some of them is still to be written
            return
        program = self.printed.program
        held = {*program.stored, *program.fed}
        gone = [
            value
            for value in self.scope.names
            if value in program.values
            and not self.lifetimes.is_read_from_here(value)
            and self._ownership.root(value) not in held
        ]
        used = {name for name in self._fetched if name in self.scope.names} - set(gone)
        gone = [value for value in gone if used.isdisjoint(self._fetched.get(value, ()))]
        if self.lifetimes.is_at_end:  # what is left goes with the function
            gone = [value for value in gone if value not in self._fetched]
        size = sum(map(self.printed.num_bytes, gone))
        if not gone or (size < self.printed.large_bytes and self._fetched.keys().isdisjoint(gone)):
            return
        names = ", ".join(self.scope.names[value] for value in gone)
        self.add(f"del ({names})" if len(names) + len(INDENT) * self.indent + 4 > WIDTH else f"del {names}")
        for value in gone:
            self.scope.release(value)
            self._fetched.pop(value, None)

    # instructions

    def write(self, instruction: Instruction, following: Any) -> None:
        """Append one instruction; `following` is the next one, where it may be joined with it."""
        if isinstance(instruction, Await):
            self.use("rt")
            if instruction.leaving:
                self.add(f"rt.wait(leaving={instruction.leaving})", "the sums of the layers before are there")
            else:
                self.add("rt.wait()", "all sums are there")
            return
        self.sizes.mesh = self.printed.program.mesh_of(instruction)
        match instruction:
            case Compute():
                self._compute(instruction, following)
            case Collective(is_started=True):
                self._start(instruction)
            case Collective(group=group) | FromHost(group=group) if group >= 0:
                self._take_group(instruction)
            case Send(read=read) | Exchange(read=read, write=""):
                self.use("rt")
                self.add(*transfer(self.printed, self.sizes, instruction, str(self.read(read))))
            case Receive() | Exchange() | Collective():
                self._take(instruction)
            case Slice(read=read, write=write):
                self._ownership.share(write, read)
                text = self.read(read).atom + self.piece(instruction)
                self._assign(write, text, f"own piece along {instruction.step.axis} {self.shape(write)}")
            case Mask():
                self._mask(instruction, following)
            case ToHost() | FromHost():
                self._move(instruction)
            case Keep():
                self._keep(instruction)
            case _:
                raise AssertionError(instruction)

    def _move(self, instruction: Move) -> None:
        """What moves to or from host memory together, in one statement."""
        self.use("rt")
        is_stowed = isinstance(instruction, ToHost)
        if not self.printed.written_in[instruction.write].phase.is_repeated:
            text = f"rt.{'to_host' if is_stowed else 'to_device'}({self.read(instruction.read)})"
            self._assign(instruction.write, text, self.shape(instruction.write))
            return
        group = self._together[instruction.write]
        if instruction is not group[0]:
            return
        texts = [str(self.read(i.read)) for i in group]
        self.unpack(
            [self.bind(i.write) for i in group],
            f"rt.{'stow' if is_stowed else 'fetch'}({', '.join(texts)})",
        )

    def _take(self, instruction: Receive | Exchange | Collective) -> None:
        """What comes from other devices, and is waited for."""
        self.use("rt")
        read = "" if isinstance(instruction, Receive) else instruction.read
        if isinstance(instruction, Collective) and instruction.step.kind is StepKind.ALL_REDUCE:
            operand = self._overwritten(read)
            self._ownership.share(instruction.write, read)
        else:
            operand = str(self.read(read)) if read else ""
            self._ownership.make(instruction.write)
        self._assign(instruction.write, *transfer(self.printed, self.sizes, instruction, operand))

    def _overwritten(self, value: str, by: Instruction | None = None) -> str:
        """The text of a value that `by` overwrites: of a copy, where something else needs what it is now."""
        text = self.read(value)
        return str(text) if self._ownership.may_overwrite(value, by) else f"{text.atom}.clone()"

    def piece(self, instruction: Slice) -> str:
        """The method call that takes one's own piece of a tensor."""
        start, dim, axis = instruction.start, instruction.dim, instruction.step.axis
        if start.axes == (axis,) and len(set(start.pieces)) == 1:
            place = f", {dim}" if dim else ""
            return f".chunk({len(start.pieces)}{place})[{self.sizes.coordinate(axis)}]"
        return f".narrow({dim}, {self.sizes.offset(start)}, {self.sizes.extent(instruction.length)})"

    def _compute(self, instruction: Compute, following: Any) -> None:
        texts = [self.read(name) for name in instruction.reads]
        if instruction.kind in ("full", "aten.arange", "aten.arange.start", "aten.arange.start_step"):
            self.use("rt")
        write = instruction.writes[0]
        own_shape = ("local", list(self.printed.value(write).shape))
        keywords = tuple(keyword for keyword in instruction.keywords if keyword != own_shape)
        text = self._add_in_place(instruction, texts) or call(
            replace(instruction, keywords=keywords), texts, self.sizes, self._counted
        )
        self._ownership.compute(instruction)
        mask = results_wanted(instruction)
        if mask:
            self._assign_all(instruction.writes, str(text), mask)
            return
        inlined = inline(self.printed, instruction, text, following)
        if inlined is not None and not self.lifetimes.is_read_after(write, self.lifetimes.here + 1):
            self._inline[write] = inlined
            return
        self._assign_all(instruction.writes, str(text))

    def _add_in_place(self, instruction: Compute, texts: Sequence[Text]) -> Text | None:
        """A sum written over one of its operands whose memory nobody needs any more."""
        mine = self._ownership.overwritten_operand(instruction)
        return None if mine is None else Text(f"{texts[mine].atom}.add_({texts[1 - mine]})")

    def _counted(self, keyword: tuple[str, Any]) -> str:
        """The text of an integer that differs from call to call of a block."""
        key, value = keyword
        if key != "key" or not self.numbers or not isinstance(value, int):
            return ""
        self.use("key")
        return (
            "key"
            if value == self.numbers[0]
            else f"key {'+' if value > self.numbers[0] else '-'} " + str(abs(value - self.numbers[0]))
        )

    def _start(self, instruction: Collective) -> None:
        """A reduction that is under way while the program computes; its result goes where it is kept."""
        step, read = instruction.step, instruction.read
        keep = self.printed.keeps[instruction.write]
        place, key = self.printed.kept[keep.write]
        self.use("rt")
        is_sum = step.kind is StepKind.ALL_REDUCE
        operand = self._overwritten(read, instruction) if is_sum else str(self.read(read))
        self._ownership.keep(read)
        call, what = started_sum(self.sizes, instruction, operand, f"{self.use(place)}, {self.key(key)}")
        self.add(call, f"{what} {self.shape(instruction.write)}")

    def _take_group(self, instruction: Collective | FromHost) -> None:
        """Parameters that were joined or fetched while those before them were used."""
        group = self._together[instruction.write]
        if instruction is not group[0]:
            return
        names = [self.bind(i.write) for i in group]
        self._ownership.make(*(i.write for i in group))
        if isinstance(instruction, Collective):
            self.unpack(names, f"next({self.use('gathered')})", f"joined over {instruction.step.axis}")
        else:
            self._fetched.update((i.write, [i.write for i in group]) for i in group)
            self.unpack(names, f"next({self.use('fetched')})", "from host memory")

    def _mask(self, instruction: Mask, following: Any) -> None:
        read, write, axis = instruction.read, instruction.write, instruction.step.axis
        text = self.read(read)
        condition = f"{self.sizes.coordinate(axis)} == 0"
        is_bias = isinstance(following, Compute) and following.kind in LINEAR
        readers = self.printed.readers.get(write, [])
        if is_bias and len(readers) == 1 and readers[0][1] is following and following.reads[2:] == (write,):
            self._assign(write, f"{text} if {condition} else None", f"added once along {axis}", hint="bias")
            return
        self._ownership.share(write, read)
        self._assign(
            write, f"{text} if {condition} else torch.zeros_like({text})", f"counts once along {axis}"
        )

    def _keep(self, keep: Keep) -> None:
        if len(self.printed.readers.get(keep.read, ())) > 1:  # else written in place of the value's own name
            self._put(keep, str(self.read(keep.read)))

    def _put(self, keep: Keep, text: str, comment: str = "") -> None:
        """Keep a value, as a copy where something else shares its memory: what is kept is overwritten later."""
        place, key = self.printed.kept[keep.write]
        self.use(place)
        others = len(self.printed.readers[keep.read]) > 1
        is_read_later = others and self.lifetimes.is_read_later(keep.read)
        is_shared = is_read_later and keep.add and self.printed.micro_batches > 1
        if is_shared or not self._ownership.is_free(keep.read):
            text = f"({text}).clone()" if " " in text else f"{text}.clone()"
        self._ownership.keep(keep.read)
        if keep.write in self.printed.summed:
            self.use("rt")
            self.use("is_last")
            total = self.printed.summed[keep.write]
            self.add(accumulated_sum(self.sizes, total, text, f"{place}, {self.key(key)}"), comment)
        elif keep.add and self.printed.micro_batches > 1:
            self.use("accumulate")
            self.add(f"accumulate({place}, {self.key(key)}, {text})", comment)
        else:
            self.add(f"{place}[{self.key(key)}] = {text}", comment)

    def _assign(self, write: str, text: str, comment: str, hint: str = "") -> None:
        keep = self._sole_keep(write)
        if keep is not None:
            self._put(keep, text, comment)
            return
        if write in self.targets:
            self.add(f"{self.targets[write]} = {text}", comment)
            return
        name = self.scope.bind(write, hint, self.dead()) if hint else self.bind(write)
        self.add(f"{name} = {text}", comment)

    def _assign_all(self, writes: Sequence[str], text: str, mask: Sequence[bool] = ()) -> None:
        if len(writes) == 1 and not mask:
            self._assign(writes[0], text, self.shape(writes[0]))
            return
        targets, later = [], []
        for write in writes:
            keep = self._sole_keep(write)
            if keep is not None and not (keep.add and self.printed.micro_batches > 1):
                place, key = self.printed.kept[keep.write]
                targets.append(f"{self.use(place)}[{self.key(key)}]")
            elif (
                keep is None
                and not self.printed.readers.get(write)
                and not self.lifetimes.is_read_later(write)
            ):
                targets.append("_")
            else:
                targets.append(self.targets.get(write) or self.bind(write))
                if keep is not None:
                    later.append((keep, targets[-1]))
        if mask:
            wanted = iter(targets)
            targets = [next(wanted) if is_wanted else "_" for is_wanted in mask]
        else:
            targets, text = without_unread(targets, text)
        self.add(f"{', '.join(targets)} = {text}", self.shape(writes[0]))
        for keep, name in later:
            self._put(keep, name)

    def _sole_keep(self, value: str) -> Keep | None:
        """The Keep that is the only reader of a value."""
        keep = self.printed.keeps.get(value)
        return keep if keep is not None and len(self.printed.readers[value]) == 1 else None

    def shape(self, value: str) -> str:
        """A value's local shape, as comments show it."""
        return self.sizes.shown(self.printed.value(value).shape)

    # the whole

    def source(self, parameters: Sequence[str], docstring: str, result: str = "") -> list[str]:
        """The function as lines: the parameters it uses, in this order, then its variables and statements."""
        head = f"def {self.name}({', '.join(parameters)}):"
        lines = statement(head, indent=0)
        lines.append(f'{INDENT}"""{docstring}"""')
        lines += [INDENT + line for line in self.sizes.lines() if line]
        lines += self.lines
        if result:
            lines += statement(f"return {result}", indent=1)
        return lines

    @property
    def needs(self) -> set[str]:
        """Arguments it uses, beyond values passed in."""
        extra = set()
        if self.sizes.needs_runtime:
            extra.add("rt")
        if self.sizes.uses_micro_batch:
            extra.add("mb")
        return self.used | extra


def tuple_of(names: Sequence[str]) -> str:
    """A tuple, with brackets."""
    return f"({', '.join(names)}{',' * (len(names) == 1)})"


def name_symbols(printed: PrintedProgram) -> dict[str, str]:
    """The variable of each size that varies: named like it, or ``batch_size`` where that name means something else."""
    taken = {*RESERVED, *printed.axis_variables}
    return {name: f"{name}_size" if name in taken else name for name in printed.graph.sizes}
