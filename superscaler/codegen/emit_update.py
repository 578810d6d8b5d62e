"""The update as a function: one call on lists per group of gradients, parameters and optimizer states."""

from collections.abc import Sequence
from functools import cached_property

from superscaler.codegen.emitted import ORDER, Emitted
from superscaler.codegen.expressions import literal
from superscaler.codegen.function import Function
from superscaler.codegen.group import LISTED, Group, group_update, operands_of
from superscaler.codegen.name_tables import NameTables
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Instruction,
    Part,
    Slice,
    Store,
    reads_of,
    writes_of,
)
from superscaler.codegen.source_lines import INDENT, statement
from superscaler.ir.graph import Phase, Ref
from superscaler.ir.learning_rates import rate_call
from superscaler.ir.optimizers import OPTIMIZERS
from superscaler.ir.tensor import Role
from superscaler.planner.steps import StepKind

Place = tuple[str, str]
"""A dict and a key."""
_FEW = 2
"""Up to this many members a group is printed without a table."""


def emit_update(
    printed: PrintedProgram, tables: NameTables, prepared: dict[str, str]
) -> tuple[Emitted, tuple[str, ...]]:
    """Write ``update``.

    Args:
        printed: What it is part of.
        tables: The file's constants; those it needs are added.
        prepared: What ``prepare`` returned: value -> name.

    Returns:
        The function, and the graph outputs it returns.
    """
    return _Writer(printed, tables, prepared).write()


class _Writer:
    def __init__(self, printed: PrintedProgram, tables: NameTables, prepared: dict[str, str]) -> None:
        self.printed, self.tables, self.prepared = printed, tables, prepared
        self.update = group_update(printed)
        self.function = Function(printed, next(iter(printed.program.stages.values())), "update")
        self.places: dict[str, Place] = {}
        self.skipped: set[int] = set()
        self.lists: dict[tuple[str, ...], str] = {}
        self.suggestion = "NAMES"
        self.order = {name: number for number, name in enumerate(printed.program.stored)}
        self.parameters = [
            name for name in printed.program.stored if self._is_parameter(name) and self._is_updated(name)
        ]

    def write(self) -> tuple[Emitted, tuple[str, ...]]:
        """The function, and the graph outputs it returns."""
        printed, function = self.printed, self.function
        if len(self.parameters) > _FEW:
            self.tables.define("PARAMETERS", self.parameters)
        for value, name in self.prepared.items():
            if any(by.phase is Phase.UPDATE for by, _ in printed.readers[value]):
                function.scope.bind(value, name)
                function.use(name)
        outputs = {
            name: value
            for name, value in printed.program.outputs.items()
            if printed.written_in[value].phase is Phase.UPDATE
        }
        function.run(self.update.groups, set(outputs.values()), self._reads, self._group)
        results = [str(function.read(value)) for value in outputs.values()]
        parameters = [name for name in ORDER if name in function.needs]
        parameters += [name for name in self.prepared.values() if name in function.used]
        docstring = "Bring gradients together and update parameters and optimizer states in place."
        lines = function.source(parameters, docstring, ", ".join(results))
        return Emitted("update", tuple(parameters), tuple(lines), frozenset(function.needs)), tuple(outputs)

    def _is_parameter(self, name: str) -> bool:
        return self.printed.graph.tensors[self.printed.value(name).tensor].role is not Role.STATE

    def _is_updated(self, name: str) -> bool:
        """Whether an optimizer here computes the parameter (and not only stores what another stage computed)."""
        return name in self._updated

    @cached_property
    def _updated(self) -> frozenset[str]:
        """The stored values an optimizer works on, whole or as a slice."""
        sources = {i.write: i.read for i in self.printed.bodies[Part(Phase.UPDATE)] if isinstance(i, Slice)}
        return frozenset(sources.get(operand, operand) for operand in self.update.in_place.values())

    def _reads(self, group: Group) -> tuple[str, ...]:
        return tuple(name for instruction in group.instructions for name in reads_of(instruction))

    # places

    def _place(self, value: str) -> Place | None:
        """The dict entry that holds a value, if one does."""
        if value in self.places:
            return self.places[value]
        if value in self.printed.kept:
            return self.printed.kept[value]
        if value in self.printed.program.stored:
            return ("p" if self._is_parameter(value) else "state"), value
        return None

    def _put(self, value: str) -> Place | None:
        """Choose the dict entry for a new value: gradients under their parameter, pieces of parameters likewise."""
        tensor = self.printed.value(value).tensor
        if tensor in self.printed.gradient_keys:
            place = ("grads", self.printed.gradient_keys[tensor])
        elif self.printed.graph.tensors[tensor].role.is_stored and tensor in self.order:
            place = ("pieces", tensor)
        else:
            return None
        holders = [v for v, its in {**self.printed.kept, **self.places}.items() if its == place]
        while any(self.function.lifetimes.is_read_later(holder) for holder in holders):
            place = place[0], f"{place[1]}/{self.printed.value(value).layout}"
            holders = [v for v, its in self.places.items() if its == place]
        self._set(value, place)
        return place

    def _set(self, value: str, place: Place) -> None:
        self.places[value] = place
        text = f'{place[0]}["{place[1]}"]'
        self.function.special[value] = text

    def _listing(self, values: Sequence[str], *, ordered: bool = True) -> str:
        """A list of values, over a table where they are many; in their order unless that does not matter."""
        places = [self._place(value) for value in values]
        dicts = {place[0] for place in places if place}
        if len(values) <= _FEW or None in places or len(dicts) != 1:
            return f"[{', '.join(str(self.function.read(value)) for value in values)}]"
        (name,), keys = dicts, [place[1] for place in places if place]
        if name != "pieces":
            self.function.use(name)
        everything = [key for holder, key in self.printed.kept.values() if holder == name]
        if (
            not ordered
            and sorted(keys) == sorted(everything)
            and not any(place[0] == name for place in self.places.values())
        ):
            return f"list({name}.values())"
        iterable, entry = self._names(keys)
        return f"[{name}[{entry}] for name in {iterable}]"

    def _names(self, keys: Sequence[str]) -> tuple[str, str]:
        """An iterable of names, and the key as an expression of ``name``."""
        stems = [key.rpartition("/") for key in keys]
        if len({suffix for _, _, suffix in stems}) == 1 and all(stem for stem, _, _ in stems):
            return self._names_of([stem for stem, _, _ in stems]), f'f"{{name}}/{stems[0][2]}"'
        return self._names_of(keys), "name"

    def _names_of(self, keys: Sequence[str]) -> str:
        return self.tables.iterable(keys, self.suggestion)

    # groups

    def _group(self, group: Group) -> None:
        instructions = [i for i in group.instructions if id(i) not in self.skipped]
        if not instructions:
            return
        instructions.sort(key=self._rank)
        first = instructions[0]
        if isinstance(first, Await):
            self.function.add(
                f"{self.function.use('rt')}.wait_accumulated()", "the sums of all micro-batches are there"
            )
            return
        self.function.sizes.mesh = self.printed.program.mesh_of(first)
        if isinstance(first, Collective):
            words = {StepKind.ALL_REDUCE: "REDUCED", StepKind.REDUCE_SCATTER: "SCATTERED"}
            self.suggestion = words.get(first.step.kind, "GATHERED")
        else:
            self.suggestion = "NAMES"
        match first:
            case Compute(kind=kind) if kind in OPTIMIZERS and first.writes[0] in self.update.in_place:
                self._optimize([i for i in instructions if isinstance(i, Compute)])
            case Compute(kind=kind) if kind in LISTED and len(instructions) > _FEW:
                self._numbers([i for i in instructions if isinstance(i, Compute)])
            case Compute(kind="total"):
                self._total(first)
            case Collective(is_started=True):  # by the micro-batches
                for instruction in instructions:
                    self._set_alias(writes_of(instruction)[0], reads_of(instruction)[0])
            case Collective(step=step) if step.kind is StepKind.ALL_REDUCE:
                self._all_reduce([i for i in instructions if isinstance(i, Collective)])
            case Collective() if len(instructions) > _FEW:
                self._join([i for i in instructions if isinstance(i, Collective)])
            case Slice() if len(instructions) > _FEW:
                self._slices([i for i in instructions if isinstance(i, Slice)])
            case Store():
                self._stores([i for i in instructions if isinstance(i, Store)])
            case _:
                for instruction in instructions:
                    self._single(instruction)

    def _rank(self, instruction: Instruction) -> int:
        """Where the parameter behind an instruction stands among the stored values."""
        for name in (*writes_of(instruction), *reads_of(instruction)):
            tensor = self.printed.value(name).tensor if name in self.printed.program.values else ""
            key = self.printed.gradient_keys.get(tensor, tensor)
            key = key.removesuffix("/new")
            if key in self.order:
                return self.order[key]
        return len(self.order)

    def _single(self, instruction: Instruction) -> None:
        for name in writes_of(instruction):
            place = self._put(name)
            if place and place[0] == "pieces":
                self.places.pop(name)  # a variable of its own
                self.function.special.pop(name)
            elif place:
                self.function.use(place[0])
                self.function.targets[name] = f'{place[0]}["{place[1]}"]'
        self.function.write(instruction, None)

    def _optimize(self, instructions: list[Compute]) -> None:
        function, first = self.function, instructions[0]
        columns = [
            self._listing([i.reads[column] for i in instructions]) for column in range(len(first.writes) + 1)
        ]
        options = ", ".join(f"{key}={self._option(first, value)}" for key, value in first.keywords)
        function.use("step")
        for instruction in instructions:
            for name in instruction.writes:
                operand = self.update.in_place[name]
                self._set_alias(name, operand)
        hosted = any(self.printed.value(name).host for name in operands_of(first))
        lines = [
            *(["ops.update_fetching(", f"{INDENT}ops.{first.kind}_,"] if hosted else [f"ops.{first.kind}_("]),
            *(f"{INDENT}{column}," for column in columns),
            f"{INDENT}step, {options},",
            ")",
        ]
        function.lines += [INDENT + line for line in lines]

    def _option(self, update: Compute, value: object) -> str:
        """An optimizer's option: a constant, a schedule of the learning rate, or a number computed before."""
        if isinstance(value, Ref):
            return str(self.function.read(update.reads[value.index]))
        return rate_call(value) if isinstance(value, tuple) else literal(value, self.function.sizes)

    def _numbers(self, instructions: list[Compute]) -> None:
        """A number per gradient, by one call on the list; what adds up exactly these reads the list."""
        function, kind = self.function, instructions[0].kind
        self.suggestion = "SUMMED"
        text = f"ops.{LISTED[kind]}({self._listing([i.reads[0] for i in instructions])})"
        written = [i.writes[0] for i in instructions]
        readers = [reader for value in written for _, reader in self.printed.readers.get(value, ())]
        if {tuple(sorted(reads_of(reader))) for reader in readers} == {tuple(sorted(written))}:
            self.lists[tuple(sorted(written))] = text
            return
        name = function.scope.bind(kind, LISTED[kind])
        function.add(f"{name} = {text}")
        function.special.update({value: f"{name}[{number}]" for number, value in enumerate(written)})

    def _total(self, total: Compute) -> None:
        text = self.lists.get(tuple(sorted(total.reads)))
        if text is None:
            self._single(total)
        else:
            self.function.add(f"{self.function.bind(total.writes[0])} = ops.total({text})")

    def _set_alias(self, value: str, operand: str) -> None:
        place = self._place(operand)
        if place:
            self.places[value] = place
        self.function.special[value] = str(self.function.read(operand))

    def _all_reduce(self, instructions: list[Collective]) -> None:
        function, step = self.function, instructions[0].step
        alone = [i for i in instructions if len(self.printed.readers[i.read]) == 1]
        for instruction in (i for i in instructions if i not in alone):
            self._single(instruction)
        if not alone:
            return
        reads = [instruction.read for instruction in alone]
        operation = "" if step.before.reducer == "sum" else f', "{step.before.reducer}"'
        function.use("rt")
        text = self._listing(reads, ordered=False) if len(reads) > 1 else str(function.read(reads[0]))
        shape = f" {function.shape(reads[0])}" if len(reads) == 1 else ""
        function.add(
            f"rt.all_reduce({text}, {function.sizes.axis(step.axis)}{operation})",
            f"sum over {step.axis}{shape}",
        )
        for instruction in alone:
            self._set_alias(instruction.write, instruction.read)
            if instruction.read in function.scope.names:
                name = function.scope.names[instruction.read]
                function.special.pop(instruction.write, None)
                function.scope.owner.pop(name)
                function.scope.bind(instruction.write, name)

    def _join(self, instructions: list[Collective]) -> None:
        """Several reduce-scatters or all-gathers in one call."""
        function, step = self.function, instructions[0].step
        axis = function.sizes.axis(step.axis)
        function.use("rt")
        dims = self._dims(instructions)
        reads = self._listing([i.read for i in instructions])
        text = f"rt.{step.kind}({reads}, {axis}, {dims})"
        stores = [self._sole_store(i.write) for i in instructions]
        if all(stores):
            homes = [store.write for store in stores if store]
            self.skipped.update(id(store) for store in stores)
            names = self._names_of(homes)
            function.use("p")
            function.add(f"gathered = {text}", f"join the pieces along {step.axis}")
            function.add(f"for name, whole in zip({names}, gathered, strict=True):")
            function.lines += statement("p[name].copy_(whole)", indent=2)
            return
        places = [self._put(i.write) for i in instructions]
        if {place and place[0] for place in places} == {"grads"}:
            names = self._names_of([place[1] for place in places if place])
            function.use("grads")
            is_sum = step.kind is StepKind.REDUCE_SCATTER
            comment = f"sum over {step.axis}, own pieces" if is_sum else f"join the pieces along {step.axis}"
            function.add(f"{'scattered' if is_sum else 'gathered'} = {text}", comment)
            function.add(f"grads.update(zip({names}, {'scattered' if is_sum else 'gathered'}, strict=True))")
            return
        for instruction in instructions:
            self.places.pop(instruction.write, None)
            self._single(instruction)

    def _sole_store(self, value: str) -> Store | None:
        readers = self.printed.readers.get(value, [])
        if len(readers) == 1 and isinstance(readers[0][1], Store) and self._is_parameter(readers[0][1].write):
            return readers[0][1]
        return None

    def _dims(self, instructions: Sequence[Collective]) -> str:
        dims = [instruction.dim for instruction in instructions]
        places = [self._place(instruction.read) for instruction in instructions]
        if len(set(dims)) == 1 and None not in places:
            names = self._names_of([place[1] for place in places if place])
            return f"[{dims[0]}] * len({names})"
        return str(dims)

    def _slices(self, instructions: list[Slice]) -> None:
        """This device's pieces of parameters or gradients, by one comprehension."""
        function, step = self.function, instructions[0].step
        sources = [self._place(i.read) for i in instructions]
        places = [self._put(i.write) for i in instructions]
        keys = [place[1] for place in places if place]
        regular = len({i.dim for i in instructions}) == 1 and [s and s[1] for s in sources] == keys
        if not regular or len({s and s[0] for s in sources}) != 1 or len({p and p[0] for p in places}) != 1:
            for instruction in instructions:
                self._single(instruction)
            return
        source, target = (side[0][0] for side in (sources, places) if side[0])
        for name in {source, target} - {"pieces"}:
            function.use(name)
        copied = ".contiguous()" if instructions[0].dim else ""
        piece = f"{source}[name]{function.piece(instructions[0])}{copied}"
        text = f"{{name: {piece} for name in {self._names_of(keys)}}}"
        is_new = target == "pieces" and len([p for p in self.places.values() if p[0] == "pieces"]) == len(
            keys
        )
        function.add(
            f"{target} = {text}" if is_new else f"{target}.update({text})", f"own pieces along {step.axis}"
        )

    def _stores(self, instructions: list[Store]) -> None:
        function = self.function
        if len(instructions) > _FEW:
            writes = self._listing([i.write for i in instructions])
            reads = self._listing([i.read for i in instructions])
            function.add(f"torch._foreach_copy_({writes}, {reads})")
            return
        for instruction in instructions:
            target = function.read(instruction.write)
            function.add(f"{target}.copy_({function.read(instruction.read)})")
