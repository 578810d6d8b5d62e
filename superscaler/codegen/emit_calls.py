"""Calls of a block, as statements: one, or a loop over layers that hands on what each call gives the next."""

from collections.abc import Sequence

from superscaler.codegen.blocks import Block
from superscaler.codegen.emitted import ORDER, Emitted
from superscaler.codegen.function import Function
from superscaler.codegen.loops import Bodies, Loop
from superscaler.ir.graph import Phase

_SAVED = {
    Phase.FORWARD: ("_forward", "s"),
    Phase.BACKWARD: ("_backward", "s_weight"),
    Phase.WEIGHT: ("_weight", ""),
}
"""Per phase what the name of a block ends with, and of the dict that holds what its calls saved."""


def write_calls(function: Function, bodies: Bodies, block: Emitted, loop: Loop) -> None:
    """Append the calls of a block.

    Args:
        function: The one that calls.
        bodies: Tells what blocks take, give and save.
        block: The block as it was written.
        loop: Its calls.
    """
    function.forget()
    signature, first = bodies.signature(loop.block), loop.calls[0]
    arguments = _arguments(function, bodies, loop)
    carried = {
        output: argument
        for argument, number in zip(arguments, signature.arguments(first), strict=True)
        for output in [loop.carried.get(number)]
        if output is not None
    }
    targets = []
    for output in signature.outputs:
        value = loop.calls[-1].inside[output]
        if output in carried:
            name = carried[output]
            function.scope.release(function.scope.owner.get(name, ""))
            function.scope.bind(value, name)
        else:
            name = function.bind_apart(value) if len(loop.calls) > 1 else function.bind(value)
        targets.append(name)
    _write_lines(function, bodies, block, loop, arguments, targets)


def _arguments(function: Function, bodies: Bodies, loop: Loop) -> list[str]:
    """What is passed value by value; what calls hand on is in a variable that the loop may set anew."""
    first, arguments = loop.calls[0], []
    for number in bodies.signature(loop.block).arguments(first):
        value = first.outside[number]
        arguments.append(str(function.read(value)))
        if number in loop.carried:
            own = function.scope.names.get(value)
            is_ours = own is not None and not function.lifetimes.is_read_later(value)
            if not is_ours:
                name = function.bind_apart(first.inside[loop.carried[number]])
                function.add(f"{name} = {arguments[-1]}")
                arguments[-1] = name
            else:
                function.scope.release(value)
    return arguments


def _write_lines(
    function: Function,
    bodies: Bodies,
    block: Emitted,
    loop: Loop,
    arguments: Sequence[str],
    targets: Sequence[str],
) -> None:
    signature, is_loop = bodies.signature(loop.block), len(loop.calls) > 1
    numbers = loop.numbers
    stem = loop.calls[0].prefix.rpartition(".")[0]
    at = "at" if is_loop else f'"{loop.calls[0].prefix}"'
    wants_at = "at" in block.uses or signature.saved or signature.unpacked
    if is_loop:
        low, high = min(numbers), max(numbers) + 1
        span = f"range({low}, {high})" if low else f"range({high})"
        function.add(f"for layer in {span if numbers[0] == low else f'reversed({span})'}:")
        function.indent += 1
        if wants_at:
            function.add(f'at = f"{stem}.{{layer}}"')
    common = [name for name in ORDER if name in block.uses]
    for name in common:
        if name not in ("at", "saved", "key"):
            function.use(name)
    passed = ", ".join([*arguments, *(_passed(bodies, loop, name, at) for name in common)])
    if signature.saved:
        targets = [*targets, f"{saved_name(loop.block)}[{at}]"]
    result = f"{', '.join(targets)} = " if targets else ""
    function.add(f"{result}{block.name}({passed})")
    if is_loop:
        function.indent -= 1


def _passed(bodies: Bodies, loop: Loop, name: str, at: str) -> str:
    """The text of a common argument in the call of a block."""
    if name == "at":
        return at
    if name == "key":
        return _affine(loop.numbers, [call.numbers[0] for call in loop.calls])
    if name == "saved":
        partner = bodies.signature(loop.block).partner
        assert partner is not None
        users = [b for b in bodies.blocks[loop.block.phase] if bodies.signature(b).partner is partner]
        kept = bodies.signature(partner).kept_saved
        stays = any(call.key in kept for call in loop.calls) or len(users) > 1
        return f"{saved_name(partner)}[{at}]" if stays else f"{saved_name(partner)}.pop({at})"
    return name


def saved_name(block: Block) -> str:
    """The dict that holds what the calls of a block saved."""
    ending, plural = _SAVED[block.phase]
    return block.name.removesuffix(ending) + plural


def _affine(layers: Sequence[int], numbers: Sequence[int]) -> str:
    """A number that grows with the layer, as a text."""
    if len(layers) == 1:
        return str(numbers[0])
    slope = (numbers[1] - numbers[0]) // (layers[1] - layers[0])
    offset = numbers[0] - slope * layers[0]
    return f"{slope} * layer {'+' if offset >= 0 else '-'} {abs(offset)}" if slope else str(offset)
