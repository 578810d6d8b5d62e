"""Loops: calls of one block in a row become a loop over layers; and what goes in, comes out and is saved."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from superscaler.codegen.blocks import Block, Call, Item, Repeat, find_blocks
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import Instruction, Part, reads_of
from superscaler.ir.graph import Phase

REPEATED = (Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT)
"""The phases a micro-batch goes through, in order."""
_WORDS = {Phase.FORWARD: "forward", Phase.BACKWARD: "backward", Phase.WEIGHT: "weight"}
Place = tuple[str, int]
"""A value of a call: ``("inside", 3)``, ``("outside", 0)``, or ``("passed", 2)``: of the tuple its partner saved."""


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
    """What a block saves for that of a later phase."""
    unpacked: dict[int, int] = field(default_factory=dict)
    """Of a block of a later phase: number of a value from outside -> its place in the saved tuple."""
    partner: Block | None = None
    """The block of the phase before whose saved tuple it unpacks."""
    kept_saved: set[tuple[int, str]] = field(default_factory=set)
    """Calls whose saved tuple is read outside the partner block too, and must stay."""

    def arguments(self, call: Call) -> list[int]:
        """Numbers of the values from outside that are passed one by one."""
        return [number for number in range(len(call.outside)) if number not in self.unpacked]


@dataclass
class Bodies:
    """The bodies of all stages as steps, with everything that passes between the phases of a micro-batch."""

    steps: dict[Part, list[Step]]
    blocks: dict[Phase, list[Block]]
    signatures: dict[int, Signature]
    """By ``id`` of the block."""
    crossing: dict[Part, list[str]]
    """Values a body, or one of a later phase, needs one by one of the phases before."""
    inside_saved: dict[Part, dict[str, tuple[Call, Block, int]]]
    """Values a body reads out of the tuple a block of a phase before saved."""

    def signature(self, block: Block) -> Signature:
        """What a block takes and gives."""
        return self.signatures[id(block)]

    def value(self, call: Call, block: Block, place: Place) -> str:
        """The value of a call at a place."""
        if place[0] != "passed":
            return call.at(place)
        partner = self.signature(block).partner
        assert partner is not None
        source = next(other for other in partner.calls if other.key == call.key)
        return self.value(source, partner, self.signature(partner).saved[place[1]])

    def saving(self, part: Part) -> list[Block]:
        """The blocks called in a body that save something."""
        return [
            block
            for block in self.blocks[part.phase]
            if self.signature(block).saved and any(call.stage == part.stage for call in block.calls)
        ]

    def saved_for(self, part: Part) -> list[Block]:
        """The blocks of earlier phases of whose saved tuples a body, or one of a later phase, reads."""
        found: dict[int, Block] = {}
        for phase in REPEATED[REPEATED.index(part.phase) :]:
            later = Part(phase, part.stage)
            partners = [self.signature(b).partner for b in self.blocks[phase] if _is_called_in(b, later)]
            direct = [block for _, block, _ in self.inside_saved.get(later, {}).values()]
            for block in (*partners, *direct):
                if block is not None and REPEATED.index(block.phase) < REPEATED.index(part.phase):
                    found[id(block)] = block
        return sorted(found.values(), key=lambda block: block.name)


def _is_called_in(block: Block, part: Part) -> bool:
    return any(call.stage == part.stage for call in block.calls)


def find_bodies(printed: PrintedProgram) -> Bodies:
    """Find the blocks of every phase, pair them, and make loops of their calls."""
    items: dict[Part, list[Item]] = {}
    blocks: dict[Phase, list[Block]] = {}
    for phase in REPEATED:
        found, blocks[phase] = _unambiguous(*find_blocks(printed, phase))
        items |= found
    bodies = Bodies({}, blocks, {id(b): Signature() for found in blocks.values() for b in found}, {}, {})
    _name(blocks)
    for part in items:
        _find_outputs(printed, items[part], bodies)
    for before, phase in itertools.pairwise(REPEATED):
        for block in blocks[phase]:
            _pair(printed, block, before, bodies)
    _name_partners(bodies)
    for part in items:
        _find_crossing(printed, part, items, bodies)
    _sort_saved(printed, bodies)
    for part in items:
        bodies.steps[part] = list(_loops(printed, part, items[part], bodies))
    return bodies


def _unambiguous(
    items: dict[Part, list[Item]], blocks: list[Block]
) -> tuple[dict[Part, list[Item]], list[Block]]:
    """Give up blocks that one module calls twice in a stage: their saved values would share a key."""
    good = [block for block in blocks if len({call.key for call in block.calls}) == len(block.calls)]
    kept: dict[Part, list[Item]] = {part: [] for part in items}
    for part, found in items.items():
        for item in found:
            if isinstance(item, Repeat) and item.block not in good:
                kept[part] += item.call.instructions
            else:
                kept[part].append(item)
    return kept, good


def _name(blocks: Mapping[Phase, list[Block]]) -> None:
    for phase, suffix in _WORDS.items():
        for number, block in enumerate(blocks[phase], 1):
            block.name = f"block_{suffix}" if len(blocks[phase]) == 1 else f"block{number}_{suffix}"


def _name_partners(bodies: Bodies) -> None:
    """Call a block of a later phase like its partner, where that is one to one."""
    for before, phase in itertools.pairwise(REPEATED):
        partners = [bodies.signature(block).partner for block in bodies.blocks[phase]]
        if len({id(partner) for partner in partners}) == len(partners) and None not in partners:
            for block, partner in zip(bodies.blocks[phase], partners, strict=True):
                assert partner is not None
                block.name = partner.name.replace(f"_{_WORDS[before]}", f"_{_WORDS[phase]}")


def _find_outputs(printed: PrintedProgram, items: Sequence[Item], bodies: Bodies) -> None:
    outputs = set(printed.program.outputs.values())
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


def _pair(printed: PrintedProgram, block: Block, before: Phase, bodies: Bodies) -> None:
    """Find what each call of a block reads of the call of the phase before that has the same prefix."""
    signature = bodies.signature(block)
    for partner in bodies.blocks[before]:
        calls = {call.key: call for call in partner.calls}
        if any(call.key not in calls for call in block.calls):
            continue
        for number in range(len(block.calls[0].outside)):
            names = {call.key: call.outside[number] for call in block.calls}
            written = {
                printed.written_in[name].phase for name in names.values() if name in printed.written_in
            }
            places = {_find(calls[key], partner, name, bodies) for key, name in names.items()}
            place = next(iter(places))
            if len(places) != 1 or place is None or written & {Phase.PREPARE, Phase.UPDATE}:
                continue
            if signature.partner not in (None, partner):
                continue
            signature.partner = partner
            signature.unpacked[number] = _saved_place(bodies.signature(partner), place)
    # a tuple may serve several blocks: each unpacks all of it


def _find(call: Call, block: Block, name: str, bodies: Bodies) -> Place | None:
    """Where a call holds a value: its own, or one it can pass on from what its partner saved."""
    place, partner = call.find(name), bodies.signature(block).partner
    if place is not None or partner is None:
        return place
    source = next((other for other in partner.calls if other.key == call.key), None)
    found = source.find(name) if source is not None else None
    return None if found is None else ("passed", _saved_place(bodies.signature(partner), found))


def _saved_place(signature: Signature, place: Place) -> int:
    if place not in signature.saved:
        signature.saved.append(place)
    return signature.saved.index(place)


def _find_crossing(
    printed: PrintedProgram, part: Part, items: Mapping[Part, list[Item]], bodies: Bodies
) -> None:
    """What a body reads of earlier phases, other than by unpacking what blocks saved."""
    wanted: dict[str, None] = {}
    for item in items[part]:
        unpacked = bodies.signature(item.block).unpacked if isinstance(item, Repeat) else {}
        for number, name in enumerate(item_reads(item)):
            made = printed.written_in.get(name)
            if (
                number not in unpacked
                and made
                and made.phase.is_repeated
                and made != part
                and name not in printed.kept
            ):
                wanted[name] = None
    for name in wanted:
        made = printed.written_in[name]
        repeats = [item for item in items[made] if isinstance(item, Repeat)]
        owner = next((repeat for repeat in repeats if name in repeat.call.inside), None)
        last = {id(repeat.block): repeat.call for repeat in repeats}
        place = owner.call.find(name) if owner is not None else None
        if owner is None or (
            last[id(owner.block)] is owner.call
            and place
            and place[1] in bodies.signature(owner.block).outputs
        ):
            # every body on the way hands it on
            for phase in REPEATED[REPEATED.index(made.phase) + 1 : REPEATED.index(part.phase) + 1]:
                names = bodies.crossing.setdefault(Part(phase, part.stage), [])
                names += [name] if name not in names else []
            continue
        assert place is not None
        signature = bodies.signature(owner.block)
        saved = bodies.inside_saved.setdefault(part, {})
        saved[name] = owner.call, owner.block, _saved_place(signature, place)
        signature.kept_saved.add(owner.call.key)


def _sort_saved(printed: PrintedProgram, bodies: Bodies) -> None:
    """Bring what is saved into the order in which it is made."""
    order = {name: number for number, name in enumerate(printed.written_in)}
    for names in bodies.crossing.values():
        names.sort(key=order.__getitem__)
    rank = {"outside": 0, "inside": 1, "passed": 2}
    for block in (*bodies.blocks[Phase.FORWARD], *bodies.blocks[Phase.BACKWARD]):
        signature = bodies.signature(block)
        old = signature.saved
        new = sorted(old, key=lambda place: (rank[place[0]], place[1]))
        moved = {number: new.index(place) for number, place in enumerate(old)}
        signature.saved = new
        for other in (*bodies.blocks[Phase.BACKWARD], *bodies.blocks[Phase.WEIGHT]):
            theirs = bodies.signature(other)
            if theirs.partner is block:
                theirs.unpacked.update({number: moved[place] for number, place in theirs.unpacked.items()})
                theirs.saved = [
                    ("passed", moved[place]) if kind == "passed" else (kind, place)
                    for kind, place in theirs.saved
                ]
        for found in bodies.inside_saved.values():
            for name, (call, owner, place) in found.items():
                if owner is block:
                    found[name] = call, owner, moved[place]


def _loops(printed: PrintedProgram, part: Part, items: Sequence[Item], bodies: Bodies) -> Iterator[Step]:
    readers: dict[str, list[Item]] = {}
    for item in items:
        for name in item_reads(item):
            readers.setdefault(name, []).append(item)
    loop: Loop | None = None
    for item in items:
        if isinstance(item, Repeat):
            if loop is not None and _extend(printed, part, loop, item, bodies, readers):
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
    printed: PrintedProgram,
    part: Part,
    loop: Loop,
    item: Repeat,
    bodies: Bodies,
    readers: Mapping[str, list[Item]],
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
    crossing = {
        name for later, names in bodies.crossing.items() if later.stage == part.stage for name in names
    }
    for number in signature.outputs:
        name = before.inside[number]
        users = [user for user in readers.get(name, ()) if user is not item]
        is_needed = name in crossing or name in printed.program.outputs.values()
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
