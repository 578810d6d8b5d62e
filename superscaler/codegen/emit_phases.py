"""Prepare, forward and backward as functions: blocks first, then the function that calls them."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.codegen.blocks import Block, Call
from superscaler.codegen.function import Function
from superscaler.codegen.loops import Bodies, Loop, Signature, find_bodies, item_reads
from superscaler.codegen.stage import Stage
from superscaler.ir.graph import Phase

ORDER = ("batch", "saved", "p", "state", "grads", "kept", "at", "key", "step", "mb", "rt")
"""Order of the arguments every function may have, behind the values it is given."""
NAMES = {
    Phase.PREPARE: "prepare",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.UPDATE: "update",
}
_FREE_FROM = 8
"""Values of at least this fraction of the largest are deleted before a loop begins."""


@dataclass(frozen=True)
class Emitted:
    """The source of one function, and how it is called."""

    name: str
    parameters: tuple[str, ...]
    lines: tuple[str, ...]
    uses: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Phases:
    """The functions of all phases but the update."""

    functions: tuple[Emitted, ...]
    """In the order in which they stand in the file."""
    by_phase: dict[Phase, Emitted]
    prepared: tuple[str, ...]
    """Names of the values ``prepare`` returns."""
    prepared_values: tuple[str, ...]
    returns_saved: bool
    returned: tuple[str, ...]
    """Graph outputs that ``forward`` returns; for inference."""


def emit_phases(stage: Stage) -> Phases:
    """Write the functions of a stage but for its update."""
    return _Writer(stage).write()


class _Writer:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.bodies: Bodies = find_bodies(stage)
        self.emitted: dict[int, tuple[Emitted, Function]] = {}
        written = stage.written_in
        self.prepared = tuple(
            name
            for name, phase in written.items()
            if phase is Phase.PREPARE
            and name not in stage.kept
            and any(by is not Phase.PREPARE for by, _ in stage.readers.get(name, ()))
        )
        self.prepared_names: dict[str, str] = {}
        self.crossing_names: list[str] = []
        sizes = [
            stage.num_bytes(name)
            for name, phase in written.items()
            if phase in (Phase.FORWARD, Phase.BACKWARD)
        ]
        self.least_bytes = max(sizes, default=0) // _FREE_FROM

    def write(self) -> Phases:
        stage, functions, by_phase = self.stage, [], {}
        if stage.bodies[Phase.PREPARE]:
            by_phase[Phase.PREPARE] = self._prepare()
            functions.append(by_phase[Phase.PREPARE])
        for phase in (Phase.FORWARD, Phase.BACKWARD):
            for block in self.bodies.blocks[phase]:
                self.emitted[id(block)] = self._block(block)
                functions.append(self.emitted[id(block)][0])
            if self.bodies.steps[phase]:
                by_phase[phase] = self._forward() if phase is Phase.FORWARD else self._backward()
                functions.append(by_phase[phase])
        outputs = tuple(name for name, value in stage.program.outputs.items() if self._is_returned(value))
        return Phases(
            tuple(functions),
            by_phase,
            tuple(self.prepared_names[name] for name in self.prepared),
            self.prepared,
            self._saves,
            outputs,
        )

    @property
    def _saves(self) -> bool:
        return bool(self.bodies.crossing or self._saved_dicts())

    def _is_returned(self, value: str) -> bool:
        return self.stage.written_in.get(value) is Phase.FORWARD and value not in self.stage.kept

    # functions

    def _prepare(self) -> Emitted:
        function = Function(self.stage, "prepare")
        function.run(self.stage.bodies[Phase.PREPARE], self.prepared)
        self.prepared_names = {name: function.scope.names[name] for name in self.prepared}
        parameters = [name for name in ORDER if name in function.needs]
        result = _tuple([self.prepared_names[name] for name in self.prepared])
        docstring = "Compute what sums over the whole batch, before the first micro-batch."
        return Emitted("prepare", tuple(parameters), tuple(function.source(parameters, docstring, result)))

    def _block(self, block: Block) -> tuple[Emitted, Function]:
        call, signature = block.calls[0], self.bodies.signature(block)
        numbers = call.numbers if len({c.numbers[:1] for c in block.calls}) > 1 else ()
        function = Function(self.stage, block.name, call.prefix, numbers)
        arguments = [function.argument(call.outside[number]) for number in signature.arguments(call)]
        if signature.partner is not None and signature.unpacked:
            function.use("saved")
            function.unpack(self._unpacked(function, call, signature), "saved")
        outputs = [call.inside[number] for number in signature.outputs]
        saved = [call.at(place) for place in signature.saved]
        function.run(call.instructions, {*outputs, *saved})
        results = [str(function.read(name)) for name in outputs]
        if saved:
            results.append(_tuple([str(function.read(name)) for name in saved], brackets=True))
        parameters = arguments + [name for name in ORDER if name in function.needs]
        where = f"`{block.pattern}`"
        what = "Forward of" if block.phase is Phase.FORWARD else "Backward of"
        ending = "; also returns what its backward reads" if saved else ""
        if block.phase is Phase.BACKWARD and any(map(self.stage.is_again, call.instructions)):
            ending += ", which runs its forward again"
        docstring = f"{what} {where}{ending}."
        lines = function.source(parameters, docstring, ", ".join(results))
        return Emitted(block.name, tuple(parameters), tuple(lines), frozenset(function.needs)), function

    def _unpacked(self, function: Function, call: Call, signature: Signature) -> list[str]:
        """Names for what the forward block saved, by preference its own."""
        assert signature.partner is not None
        forward = self.emitted[id(signature.partner)][1].scope.names
        places = {place: number for number, place in signature.unpacked.items()}
        names = []
        for place, source in enumerate(self.bodies.signature(signature.partner).saved):
            own = forward.get(signature.partner.calls[0].at(source), "")
            names.append(function.argument(call.outside[places[place]], own) if place in places else "_")
        return names

    def _forward(self) -> Emitted:
        function = self._start(Phase.FORWARD)
        blocks = self._saved_dicts()
        for name in blocks:
            function.add(f"{name} = {{}}")
        returned = [value for value in self.stage.program.outputs.values() if self._is_returned(value)]
        self._run(function, Phase.FORWARD, {*self.bodies.crossing, *returned})
        parts = [str(function.read(name)) for name in returned]
        if self._saves:
            names = [function.scope.names[name] for name in self.bodies.crossing]
            self.crossing_names = names
            parts.append(_tuple([*names, *blocks], brackets=bool(parts)))
        text = ", ".join(parts) if parts else ""
        return self._finish(function, Phase.FORWARD, "Forward of one micro-batch.", text)

    def _backward(self) -> Emitted:
        function = self._start(Phase.BACKWARD)
        blocks = self._saved_dicts()
        if self._saves:
            pairs = zip(self.bodies.crossing, self.crossing_names, strict=True)
            names = [function.argument(value, name) for value, name in pairs]
            function.use("saved")
            function.unpack([*names, *blocks], "saved")
            function.add("del saved")
        for name, (call, block, place) in self.bodies.inside_saved.items():
            function.special[name] = f'{self._dict_name(block)}["{call.prefix}"][{place}]'
        self._run(function, Phase.BACKWARD, set())
        return self._finish(function, Phase.BACKWARD, "Backward of one micro-batch.", "")

    def _start(self, phase: Phase) -> Function:
        function = Function(self.stage, NAMES[phase])
        for value, name in self.prepared_names.items():
            if any(by is phase for by, _ in self.stage.readers[value]):
                function.scope.bind(value, name)
                function.use(name)
        return function

    def _finish(self, function: Function, phase: Phase, docstring: str, result: str) -> Emitted:
        parameters = [name for name in ORDER if name in function.needs]
        parameters += [name for name in self.prepared_names.values() if name in function.used]
        lines = function.source(parameters, docstring, result)
        return Emitted(NAMES[phase], tuple(parameters), tuple(lines), frozenset(function.needs))

    # loops

    def _run(self, function: Function, phase: Phase, outputs: set[str]) -> None:
        steps = self.bodies.steps[phase]
        function.run(steps, outputs, self._reads, lambda step: self._loop(function, step))

    def _reads(self, step: object) -> Sequence[str]:
        """What a step reads by name; a backward block's saved values come in its tuple."""
        if not isinstance(step, Loop):
            return item_reads(step)  # type: ignore[arg-type]
        signature = self.bodies.signature(step.block)
        made = {name for call in step.calls for name in call.inside}
        names = (call.outside[number] for call in step.calls for number in signature.arguments(call))
        return tuple(dict.fromkeys(name for name in names if name not in made))

    def _loop(self, function: Function, loop: Loop) -> None:
        signature, first, last = self.bodies.signature(loop.block), loop.calls[0], loop.calls[-1]
        function.free_before_loop(self.least_bytes)
        arguments = []
        for number in signature.arguments(first):
            value = first.outside[number]
            arguments.append(str(function.read(value)))
            if number in loop.carried:
                own = function.scope.names.get(value)
                is_ours = own is not None and not function.is_read_later(value)
                if not is_ours:
                    name = function.bind(first.inside[loop.carried[number]])
                    function.add(f"{name} = {arguments[-1]}")
                    arguments[-1] = name
                else:
                    function.scope.release(value)
        carried = {
            output: argument
            for argument, number in zip(arguments, signature.arguments(first), strict=True)
            for output in [loop.carried.get(number)]
            if output is not None
        }
        targets = []
        for output in signature.outputs:
            value = last.inside[output]
            if output in carried:
                name = carried[output]
                function.scope.owner.pop(name, None)
                function.scope.bind(value, name)
            else:
                name = function.bind(value)
            targets.append(name)
        self._call_lines(function, loop, arguments, targets)

    def _call_lines(self, function: Function, loop: Loop, arguments: list[str], targets: list[str]) -> None:
        emitted, _block_function = self.emitted[id(loop.block)]
        signature, is_loop = self.bodies.signature(loop.block), len(loop.calls) > 1
        numbers = loop.numbers
        stem = loop.calls[0].prefix.rpartition(".")[0]
        at = "at" if is_loop else f'"{loop.calls[0].prefix}"'
        wants_at = "at" in emitted.uses or signature.saved or signature.unpacked
        if is_loop:
            low, high = min(numbers), max(numbers) + 1
            span = f"range({low}, {high})" if low else f"range({high})"
            function.add(f"for layer in {span if numbers[0] == low else f'reversed({span})'}:")
            function.indent += 1
            if wants_at:
                function.add(f'at = f"{stem}.{{layer}}"')
        for name in ORDER:
            if name in emitted.uses:
                arguments.append(self._passed(function, loop, name, at))
                if name not in ("at", "saved", "key"):
                    function.use(name)
        if signature.saved:
            targets = [*targets, f"{self._dict_name(loop.block)}[{at}]"]
        result = f"{', '.join(targets)} = " if targets else ""
        function.add(f"{result}{emitted.name}({', '.join(arguments)})")
        if is_loop:
            function.indent -= 1

    def _passed(self, function: Function, loop: Loop, name: str, at: str) -> str:
        """The text of a common argument in the call of a block."""
        if name == "at":
            return at
        if name == "key":
            return _affine(loop.numbers, [call.numbers[0] for call in loop.calls])
        if name == "saved":
            partner = self.bodies.signature(loop.block).partner
            assert partner is not None
            users = [
                b for b in self.bodies.blocks[Phase.BACKWARD] if self.bodies.signature(b).partner is partner
            ]
            stays = self.bodies.signature(partner).keep_saved or len(users) > 1
            return f"{self._dict_name(partner)}[{at}]" if stays else f"{self._dict_name(partner)}.pop({at})"
        return name

    def _dict_name(self, block: Block) -> str:
        return block.name.removesuffix("_forward") + "s"

    def _saved_dicts(self) -> list[str]:
        """Names of the dicts that hold what blocks saved."""
        return [
            self._dict_name(block)
            for block in self.bodies.blocks[Phase.FORWARD]
            if self.bodies.signature(block).saved
        ]


def _affine(layers: Sequence[int], numbers: Sequence[int]) -> str:
    """A number that grows with the layer, as a text."""
    if len(layers) == 1:
        return str(numbers[0])
    slope = (numbers[1] - numbers[0]) // (layers[1] - layers[0])
    offset = numbers[0] - slope * layers[0]
    return f"{slope} * layer {'+' if offset >= 0 else '-'} {abs(offset)}" if slope else str(offset)


def _tuple(names: Sequence[str], *, brackets: bool = False) -> str:
    text = ", ".join(names) + ("," if len(names) == 1 else "")
    return f"({text})" if brackets else text
