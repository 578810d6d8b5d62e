"""Prepare, forward and backward as functions: blocks first, then the function that calls them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from superscaler.codegen.blocks import Block, Call
from superscaler.codegen.emit_calls import saved_name, write_calls
from superscaler.codegen.emitted import ORDER, Emitted
from superscaler.codegen.function import Function, tuple_of
from superscaler.codegen.loops import REPEATED, Bodies, Loop, find_bodies, item_reads
from superscaler.codegen.name_tables import NameTables
from superscaler.codegen.offload import Move, moved_together
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import Collective, FromHost, Instruction, Part, ToHost
from superscaler.codegen.stream import streamed_groups
from superscaler.ir.graph import Phase

NAMES = {
    Phase.PREPARE: "prepare",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.WEIGHT: "weight",
    Phase.UPDATE: "update",
}
_WHAT = {
    Phase.FORWARD: "Forward",
    Phase.BACKWARD: "Backward",
    Phase.WEIGHT: "Gradients of the weights",
}
_LATER = {Phase.FORWARD: "backward reads", Phase.BACKWARD: "weight gradients read"}


@dataclass(frozen=True)
class Phases:
    """The functions of all phases but the update."""

    functions: tuple[Emitted, ...]
    """In the order in which they stand in the file."""
    by_part: dict[Part, Emitted]
    prepared: tuple[str, ...]
    """Names of the values ``prepare`` returns."""
    prepared_values: tuple[str, ...]
    saving: frozenset[Part]
    """Those whose functions return what the next phase of their stage takes as ``saved``."""
    returned: dict[Part, tuple[str, ...]]
    """Graph outputs that a function returns; for inference."""


def emit_phases(printed: PrintedProgram, tables: NameTables) -> Phases:
    """Write the functions of a program but for its update."""
    return _Writer(printed, tables).write()


class _Writer:
    def __init__(self, printed: PrintedProgram, tables: NameTables) -> None:
        self.printed, self.tables = printed, tables
        self.bodies: Bodies = find_bodies(printed)
        self.emitted: dict[int, tuple[Emitted, Function]] = {}
        written = printed.written_in
        self.prepared = tuple(
            name
            for name, part in written.items()
            if part.phase is Phase.PREPARE
            and name not in printed.kept
            and any(by.phase is not Phase.PREPARE for by, _ in printed.readers.get(name, ()))
        )
        self.prepared_names: dict[str, str] = {}
        self.names: dict[str, str] = {}
        """What the function that makes a value calls it, for those that take it up."""

    def write(self) -> Phases:
        printed, functions, by_part = self.printed, [], {}
        whole = Part(Phase.PREPARE)
        if printed.bodies[whole]:
            by_part[whole] = self._prepare()
            functions.append(by_part[whole])
        for phase in REPEATED:
            for block in self.bodies.blocks[phase]:
                self.emitted[id(block)] = self._block(block)
                functions.append(self.emitted[id(block)][0])
            for part in printed.parts(phase):
                if self.bodies.steps[part]:
                    by_part[part] = self._body(part)
                    functions.append(by_part[part])
        returned = {part: self._returned(part) for part in by_part if part.phase is Phase.FORWARD}
        return Phases(
            tuple(functions),
            by_part,
            tuple(self.prepared_names[name] for name in self.prepared),
            self.prepared,
            frozenset(part for part in by_part if self._next(part) and any(self._saved(self._next(part)))),
            {
                part: tuple(name for name, value in printed.program.outputs.items() if value in values)
                for part, values in returned.items()
                if values
            },
        )

    def _returned(self, part: Part) -> list[str]:
        """The values a forward returns as outputs."""
        return [
            value
            for value in self.printed.program.outputs.values()
            if self.printed.written_in.get(value) == part and value not in self.printed.kept
        ]

    def _next(self, part: Part) -> Part | None:
        """The next phase of the same stage that has something to do."""
        later = REPEATED[REPEATED.index(part.phase) + 1 :] if part.phase.is_repeated else ()
        parts = (Part(phase, part.stage) for phase in later)
        return next((other for other in parts if self.bodies.steps.get(other)), None)

    def _saved(self, part: Part | None) -> tuple[list[str], list[str]]:
        """What a body takes as ``saved``: values, and names of the dicts that hold what blocks saved."""
        if part is None:
            return [], []
        return self.bodies.crossing.get(part, []), list(map(saved_name, self.bodies.saved_for(part)))

    # functions

    def _prepare(self) -> Emitted:
        mesh = next(iter(self.printed.program.stages.values()))
        function = Function(self.printed, mesh, "prepare")
        function.run(self.printed.bodies[Part(Phase.PREPARE)], self.prepared)
        self.prepared_names = {name: function.scope.names[name] for name in self.prepared}
        parameters = [name for name in ORDER if name in function.needs]
        result = tuple_of([self.prepared_names[name] for name in self.prepared])[1:-1]
        docstring = "Compute what sums over the whole batch, before the first micro-batch."
        return Emitted("prepare", tuple(parameters), tuple(function.source(parameters, docstring, result)))

    def _block(self, block: Block) -> tuple[Emitted, Function]:
        call, signature = block.calls[0], self.bodies.signature(block)
        numbers = call.numbers if len({c.numbers[:1] for c in block.calls}) > 1 else ()
        mesh = self.printed.program.stages[call.stage]
        function = Function(self.printed, mesh, block.name, call.prefix, numbers)
        arguments = [function.argument(call.outside[number]) for number in signature.arguments(call)]
        instructions, outputs = call.instructions, [call.inside[number] for number in signature.outputs]
        saved = [self.bodies.value(call, block, place) for place in signature.saved]
        if signature.partner is not None and signature.unpacked:
            function.use("saved")
            fetched = self._fetched_whole(call, block)
            if fetched:
                self._fetch(function, block, fetched)
                instructions = instructions[len(fetched) :]
            else:
                function.unpack(self._unpacked(function, call, block), "saved")
        stowed = _stowed_last(instructions, saved)
        later = [i.read for i in stowed] or saved
        function.run(instructions[: len(instructions) - len(stowed)], {*outputs, *later})
        results = [str(function.read(name)) for name in outputs]
        if saved:
            names = [str(function.read(name)) for name in later]
            results.append(f"{function.use('rt')}.stow({', '.join(names)})" if stowed else tuple_of(names))
        parameters = arguments + [name for name in ORDER if name in function.needs]
        docstring = f"{_WHAT[block.phase]} of `{block.pattern}`"
        if saved:
            docstring += f"; also returns what its {_LATER[block.phase]}"
        if block.phase is Phase.BACKWARD and any(map(self.printed.is_again, call.instructions)):
            docstring += ", which runs its forward again"
        lines = ["@compilable", *function.source(parameters, f"{docstring}.", ", ".join(results))]
        return Emitted(block.name, tuple(parameters), tuple(lines), frozenset(function.needs)), function

    def _fetched_whole(self, call: Call, block: Block) -> list[Move]:
        """The moves a call begins with, if they fetch all that its partner saved, which is first; it passes none on."""
        partner = self.bodies.signature(block).partner
        assert partner is not None
        source = next(other for other in partner.calls if other.key == call.key)
        kept = [self.bodies.value(source, partner, place) for place in self.bodies.signature(partner).saved]
        passed = {self.bodies.value(call, block, place) for place in self.bodies.signature(block).saved}
        first = call.instructions[0]
        begins = isinstance(first, FromHost) and first.group < 0
        moves = {i.read: i for i in moved_together(call.instructions, FromHost)[0]} if begins else {}
        is_whole = moves.keys() >= set(kept) and passed.isdisjoint(moves)
        return [moves[name] for name in dict.fromkeys((*kept, *moves))] if is_whole else []

    def _fetch(self, function: Function, block: Block, moves: Sequence[Move]) -> None:
        """Append the statement that fetches what the partner stowed, named as there, and what others did."""
        partner = self.bodies.signature(block).partner
        assert partner is not None
        theirs, first = self.emitted[id(partner)][1].scope.names, partner.calls[0]
        stowed = {i.write: i.read for i in first.instructions if isinstance(i, ToHost)}
        kept = [self.bodies.value(first, partner, place) for place in self.bodies.signature(partner).saved]
        others = moves[len(kept) :]
        texts = ["*saved", *(str(function.read(move.read)) for move in others)]
        names = [theirs.get(stowed.get(name, ""), "") for name in kept] + [""] * len(others)
        bound = [function.argument(move.write, name) for move, name in zip(moves, names, strict=True)]
        function.use("rt")
        function.unpack(bound, f"rt.fetch({', '.join(texts)})")

    def _unpacked(self, function: Function, call: Call, block: Block) -> list[str]:
        """Names for what the partner saved, by preference its own."""
        signature = self.bodies.signature(block)
        partner = signature.partner
        assert partner is not None
        theirs = self.emitted[id(partner)][1].scope.names
        places = {place: number for number, place in signature.unpacked.items()}
        passed = {place for kind, place in signature.saved if kind == "passed"}
        source = next(other for other in partner.calls if other.key == call.key)
        first = partner.calls[0]
        names = []
        for place, kept in enumerate(self.bodies.signature(partner).saved):
            own = theirs.get(self.bodies.value(first, partner, kept), "")
            if place in places:
                names.append(function.argument(call.outside[places[place]], own))
            elif place in passed:
                names.append(function.argument(self.bodies.value(source, partner, kept), own))
            else:
                names.append("_")
        return names

    def _body(self, part: Part) -> Emitted:
        """The function of one phase of one stage."""
        function = self._start(part)
        values, dicts = self._saved(part)
        if values or dicts:
            names = [function.argument(value, self.names.get(value, "")) for value in values]
            function.use("saved")
            function.unpack([*names, *dicts], "saved")
            if part.phase is not Phase.FORWARD:
                function.add("del saved")
        for name in map(saved_name, self.bodies.saving(part)):
            function.add(f"{name} = {{}}")
        self._gather_ahead(function, part)
        self._fetch_ahead(function, part)
        for name, (call, block, place) in self.bodies.inside_saved.get(part, {}).items():
            function.special[name] = f'{saved_name(block)}["{call.prefix}"][{place}]'
        returned = self._returned(part) if part.phase is Phase.FORWARD else []
        later, later_dicts = self._saved(self._next(part))
        self._run(function, part, {*later, *returned})
        results = [str(function.read(name)) for name in returned]
        if later or later_dicts:
            own = [str(function.read(value)) for value in later]
            self.names |= {
                value: function.scope.names[value] for value in later if value in function.scope.names
            }
            names = [*own, *later_dicts]
            results.append(tuple_of(names) if results else tuple_of(names)[1:-1])
        whose = f" in stage {part.stage}" if self.printed.hosts_several else ""
        docstring = f"{_WHAT[part.phase]} of one micro-batch{whose}."
        parameters = [name for name in ORDER if name in function.needs - {"gathered", "fetched"}]
        parameters += [name for name in self.prepared_names.values() if name in function.used]
        lines = function.source(parameters, docstring, ", ".join(results))
        if not any(isinstance(step, Loop) for step in self.bodies.steps[part]):
            lines.insert(0, "@compilable")
        return Emitted(function.name, tuple(parameters), tuple(lines), frozenset(function.needs))

    def _gather_ahead(self, function: Function, part: Part) -> None:
        """Append where the parameters come from that travel ahead of their use."""
        gathers = [i for i in self.printed.bodies[part] if isinstance(i, Collective) and i.group >= 0]
        if not gathers:
            return
        groups = [[i.read for i in group] for _, group in groupby(gathers, lambda i: i.group)]
        table = self.tables.groups(groups, f"GATHERED_{part.phase.name}")
        dims = {i.dim: [other.read for other in gathers if other.dim == i.dim] for i in gathers if i.dim}
        along = "".join(f", {dim}: {self.tables.iterable(names, 'GATHERED')}" for dim, names in dims.items())
        along = f", {{{along[2:]}}}" if along else ""
        function.use("rt")
        axis = function.sizes.axis(gathers[0].step.axis)
        function.add(
            f"gathered = rt.gather_ahead({function.use('p')}, {table}, {axis}{along})",
            "each while what came before it is used",
        )

    def _fetch_ahead(self, function: Function, part: Part) -> None:
        """Append where the parameters come from that travel from host memory ahead of their use."""
        groups = [[i.read for i in group] for group in streamed_groups(self.printed.bodies[part])]
        if not groups:
            return
        table = self.tables.groups(groups, f"FETCHED_{part.phase.name}")
        function.use("rt")
        function.add(
            f"fetched = rt.fetch_ahead({function.use('p')}, {table})",
            "each while what came before it is used",
        )

    def _start(self, part: Part) -> Function:
        suffix = f"_{part.stage}" if self.printed.hosts_several else ""
        function = Function(self.printed, self.printed.program.stages[part.stage], NAMES[part.phase] + suffix)
        for value, name in self.prepared_names.items():
            if any(by == part for by, _ in self.printed.readers[value]):
                function.scope.bind(value, name)
                function.use(name)
        return function

    # loops

    def _run(self, function: Function, part: Part, outputs: set[str]) -> None:
        steps = self.bodies.steps[part]
        function.run(
            steps,
            outputs,
            self._reads,
            lambda loop: write_calls(function, self.bodies, self.emitted[id(loop.block)][0], loop),
        )

    def _reads(self, step: object) -> Sequence[str]:
        """What a step reads by name; a backward block's saved values come in its tuple."""
        if not isinstance(step, Loop):
            return item_reads(step)  # type: ignore[arg-type]
        signature = self.bodies.signature(step.block)
        made = {name for call in step.calls for name in call.inside}
        names = (call.outside[number] for call in step.calls for number in signature.arguments(call))
        return tuple(dict.fromkeys(name for name in names if name not in made))


def _stowed_last(instructions: Sequence[Instruction], saved: Sequence[str]) -> list[Move]:
    """The moves a call ends with, in the order of what it saves, if they make all of that."""
    ends = bool(instructions) and isinstance(instructions[-1], ToHost)
    moves = {i.write: i for i in moved_together(instructions, ToHost)[-1]} if ends else {}
    return [moves[name] for name in saved] if moves.keys() == set(saved) else []
