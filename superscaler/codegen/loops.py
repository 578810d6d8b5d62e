"""Loops: calls of one block in a row become a loop over layers; and what goes in, comes out and is saved."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from superscaler.codegen.blocks import Block, Call, Item, Repeat, find_blocks
from superscaler.codegen.program import Instruction, reads_of
from superscaler.codegen.stage import Stage
from superscaler.ir.graph import Phase

Place = tuple[str, int]
"""A value of a call: ``("inside", 3)`` or ``("outside", 0)``."""


@dataclass
class Loop:
    """Calls of one block, one after another; a single call is a loop of one."""

    block: Block
    calls: list[Call]
    carried: dict[int, int] = field(default_factory=dict)
    """Number of a value read from outside -> number of the value the call before made."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Values from outside the loop."""
        made = {name for call in self.calls for name in call.inside}
        return tuple(dict.fromkeys(name for call in self.calls for name in call.outside if name not in made))

    @property
    def numbers(self) -> list[int]:
        """The number each call's prefix ends with."""
        return [int(call.prefix.rpartition(".")[2]) for call in self.calls]


Step = Instruction | Loop


@dataclass
class Signature:
    """What a block's function takes and gives, beside weights."""

    outputs: list[int] = field(default_factory=list)
    """Numbers of the values inside that others in the same body read."""
    saved: list[Place] = field(default_factory=list)
    """What a forward block saves for its backward."""
    unpacked: dict[int, int] = field(default_factory=dict)
    """In a backward block: number of a value from outside -> its place in the saved tuple."""
    partner: Block | None = None
    """The forward block whose saved tuple a backward block unpacks."""
    keep_saved: bool = False
    """Whether a saved tuple is read outside the backward block too, and must stay."""

    def arguments(self, call: Call) -> list[int]:
        """Numbers of the values from outside that are passed one by one."""
        return [number for number in range(len(call.outside)) if number not in self.unpacked]


@dataclass
class Bodies:
    """Forward and backward of a stage as steps, with everything that passes between them."""

    steps: dict[Phase, list[Step]]
    blocks: dict[Phase, list[Block]]
    signatures: dict[int, Signature]
    """By ``id`` of the block."""
    crossing: list[str]
    """Values the forward function returns for the backward one."""
    inside_saved: dict[str, tuple[Call, Block, int]]
    """Values the backward function reads out of the tuple a forward block saved."""

    def signature(self, block: Block) -> Signature:
        """What a block takes and gives."""
        return self.signatures[id(block)]


def find_bodies(stage: Stage) -> Bodies:
    """Find blocks in forward and backward, pair them, and make loops of their calls."""
    items: dict[Phase, list[Item]] = {}
    blocks: dict[Phase, list[Block]] = {}
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        items[phase], blocks[phase] = _unambiguous(*find_blocks(stage, phase))
    bodies = Bodies({}, blocks, {id(b): Signature() for found in blocks.values() for b in found}, [], {})
    _name(blocks)
    for phase in items:
        _find_outputs(stage, items[phase], bodies)
    for block in blocks[Phase.BACKWARD]:
        _pair(stage, block, bodies)
    _name_partners(bodies)
    _find_crossing(stage, items, bodies)
    _sort_saved(stage, bodies)
    for phase in items:
        bodies.steps[phase] = list(_loops(stage, items[phase], bodies))
    return bodies


def _unambiguous(items: list[Item], blocks: list[Block]) -> tuple[list[Item], list[Block]]:
    """Give up blocks that one module calls twice: their saved values would share a key."""
    good = [block for block in blocks if len({call.prefix for call in block.calls}) == len(block.calls)]
    kept: list[Item] = []
    for item in items:
        if isinstance(item, Repeat) and item.block not in good:
            kept += item.call.instructions
        else:
            kept.append(item)
    return kept, good


def _name(blocks: Mapping[Phase, list[Block]]) -> None:
    for phase, suffix in ((Phase.FORWARD, "forward"), (Phase.BACKWARD, "backward")):
        for number, block in enumerate(blocks[phase], 1):
            block.name = f"block_{suffix}" if len(blocks[phase]) == 1 else f"block{number}_{suffix}"


def _name_partners(bodies: Bodies) -> None:
    """Call a backward block like its forward block, where that is one to one."""
    partners = [bodies.signature(block).partner for block in bodies.blocks[Phase.BACKWARD]]
    if len({id(partner) for partner in partners}) == len(partners) and None not in partners:
        for block, partner in zip(bodies.blocks[Phase.BACKWARD], partners, strict=True):
            assert partner is not None
            block.name = partner.name.replace("_forward", "_backward")


def _find_outputs(stage: Stage, items: Sequence[Item], bodies: Bodies) -> None:
    outputs = set(stage.program.outputs.values())
    read_by: dict[str, list[Item]] = {}
    for item in items:
        for name in item_reads(item):
            read_by.setdefault(name, []).append(item)
    for item in items:
        if isinstance(item, Repeat):
            signature = bodies.signature(item.block)
            for number, name in enumerate(item.call.inside):
                if (name in read_by or name in outputs) and number not in signature.outputs:
                    signature.outputs.append(number)
                    signature.outputs.sort()


def item_reads(item: Item | Step) -> tuple[str, ...]:
    """The values an item of a body reads from others."""
    if isinstance(item, Repeat):
        return item.call.outside
    return item.reads if isinstance(item, Loop) else reads_of(item)


def _pair(stage: Stage, block: Block, bodies: Bodies) -> None:
    """Find what each call of a backward block reads of the forward call with the same prefix."""
    signature = bodies.signature(block)
    for partner in bodies.blocks[Phase.FORWARD]:
        calls = {call.prefix: call for call in partner.calls}
        if any(call.prefix not in calls for call in block.calls):
            continue
        for number in range(len(block.calls[0].outside)):
            places = {calls[call.prefix].find(call.outside[number]) for call in block.calls}
            written = {stage.written_in.get(call.outside[number]) for call in block.calls}
            place = next(iter(places))
            if len(places) != 1 or place is None or written & {Phase.PREPARE, Phase.UPDATE}:
                continue
            if signature.partner not in (None, partner):
                continue
            signature.partner = partner
            signature.unpacked[number] = _saved_place(bodies.signature(partner), place)
    # a tuple may serve several backward blocks: each unpacks all of it


def _saved_place(signature: Signature, place: Place) -> int:
    if place not in signature.saved:
        signature.saved.append(place)
    return signature.saved.index(place)


def _find_crossing(stage: Stage, items: Mapping[Phase, list[Item]], bodies: Bodies) -> None:
    """What the backward reads of the forward, other than by unpacking what blocks saved."""
    owner: dict[str, Repeat] = {}
    last: dict[int, Call] = {}
    for item in items[Phase.FORWARD]:
        if isinstance(item, Repeat):
            owner.update(dict.fromkeys(item.call.inside, item))
            last[id(item.block)] = item.call
    wanted: dict[str, None] = {}
    for item in items[Phase.BACKWARD]:
        unpacked = bodies.signature(item.block).unpacked if isinstance(item, Repeat) else {}
        for number, name in enumerate(item_reads(item)):
            if (
                number not in unpacked
                and stage.written_in.get(name) is Phase.FORWARD
                and name not in stage.kept
            ):
                wanted[name] = None
    for name in wanted:
        repeat = owner.get(name)
        if repeat is None:
            bodies.crossing.append(name)
            continue
        signature, place = bodies.signature(repeat.block), repeat.call.find(name)
        assert place is not None
        if last[id(repeat.block)] is repeat.call and place[1] in signature.outputs:
            bodies.crossing.append(name)
        else:
            bodies.inside_saved[name] = repeat.call, repeat.block, _saved_place(signature, place)
            signature.keep_saved = True


def _sort_saved(stage: Stage, bodies: Bodies) -> None:
    """Bring what is saved into the order in which it is made."""
    order = {name: number for number, name in enumerate(stage.written_in)}
    bodies.crossing.sort(key=order.__getitem__)
    for block in bodies.blocks[Phase.FORWARD]:
        signature = bodies.signature(block)
        old, new = (
            signature.saved,
            sorted(signature.saved, key=lambda place: (place[0] == "inside", place[1])),
        )
        moved = {number: new.index(place) for number, place in enumerate(old)}
        signature.saved = new
        for other in bodies.blocks[Phase.BACKWARD]:
            if bodies.signature(other).partner is block:
                unpacked = bodies.signature(other).unpacked
                unpacked.update({number: moved[place] for number, place in unpacked.items()})
        for name, (call, owner, place) in bodies.inside_saved.items():
            if owner is block:
                bodies.inside_saved[name] = call, owner, moved[place]


def _loops(stage: Stage, items: Sequence[Item], bodies: Bodies) -> Iterator[Step]:
    readers: dict[str, list[Item]] = {}
    for item in items:
        for name in item_reads(item):
            readers.setdefault(name, []).append(item)
    loop: Loop | None = None
    for item in items:
        if isinstance(item, Repeat):
            if loop is not None and _extend(stage, loop, item, bodies, readers):
                continue
            if loop is not None:
                yield loop
            loop = Loop(item.block, [item.call])
            continue
        if loop is not None:
            yield loop
            loop = None
        yield item
    if loop is not None:
        yield loop


def _extend(
    stage: Stage, loop: Loop, item: Repeat, bodies: Bodies, readers: Mapping[str, list[Item]]
) -> bool:
    """Take one more call into a loop, if it goes on regularly."""
    before, call, signature = loop.calls[-1], item.call, bodies.signature(item.block)
    if loop.block is not item.block or not _goes_on(loop.calls, call):
        return False
    carried: dict[int, int] = {}
    for number in signature.arguments(call):
        place = before.find(call.outside[number])
        if place is not None and place[0] == "inside":
            carried[number] = place[1]
        elif call.outside[number] != before.outside[number]:
            return False
    if len(loop.calls) > 1 and carried != loop.carried:
        return False
    outside = {name for number, name in enumerate(call.outside) if number in carried}
    for number in signature.outputs:
        name = before.inside[number]
        users = [user for user in readers.get(name, ()) if user is not item]
        is_needed = name in bodies.crossing or name in stage.program.outputs.values()
        if users or is_needed or (name in item.call.outside and name not in outside):
            return False
    loop.carried = carried
    loop.calls.append(call)
    return True


def _goes_on(calls: Sequence[Call], call: Call) -> bool:
    """Whether prefixes and numbers continue by the same difference."""
    stems = {re.sub(r"\d+$", "", c.prefix) for c in (calls[-1], call)}
    series = [int(c.prefix.rpartition(".")[2]) for c in (*calls[-2:], call)]
    counts = [c.numbers[0] if c.numbers else 0 for c in (*calls[-2:], call)]
    steps = [{b - a for a, b in itertools.pairwise(row)} for row in (series, counts)]
    return len(stems) == 1 and steps[0] <= {1, -1} and all(len(step) == 1 for step in steps)
