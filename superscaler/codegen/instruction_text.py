"""One line per instruction, as messages and the virtual cluster's grids show programs."""

from collections.abc import Sequence

from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    Free,
    FromHost,
    Instruction,
    Keep,
    Mask,
    Receive,
    Send,
    Slice,
    Store,
    ToHost,
)


def describe(instruction: Instruction) -> str:
    """Print as ``y = linear(x, w)  # h.0.mlp.up/linear`` or ``y = all_reduce(x) over tp``."""
    match instruction:
        case Compute(operator=operator, kind=kind, reads=reads, writes=writes):
            return f"{', '.join(writes)} = {kind}({', '.join(reads)})" + (
                f"  # {operator}" if operator else ""
            )
        case Collective(
            step=step, read=read, write=write, dim=dim, from_dim=from_dim, is_started=is_started, group=group
        ):
            dims = f", dim {from_dim} -> {dim}" if from_dim >= 0 else f", dim {dim}" if dim >= 0 else ""
            how = "start " if is_started else f"group {group}: " if group >= 0 else ""
            return f"{write} = {how}{step.kind}({read}{dims}) over {step.axis}"
        case Await(leaving=leaving):
            return f"wait, leaving {leaving}" if leaving else "wait"
        case Slice(step=step, read=read, write=write, dim=dim):
            return f"{write} = slice({read}, dim {dim}) over {step.axis}"
        case Mask(step=step, read=read, write=write):
            return f"{write} = mask({read}) over {step.axis}"
        case Send(read=read, stage=stage):
            return f"send({read}) to stage {stage}"
        case Receive(write=write, stage=stage):
            return f"{write} = receive() from stage {stage}"
        case Exchange(name=name, read=read, write=write):
            return f"{write or '_'} = exchange({read or '_'})  # {name}"
        case Keep(read=read, write=write, add=add):
            return f"{write} {'+=' if add else '='} keep({read})"
        case Store(read=read, write=write):
            return f"{write} <- store({read})"
        case ToHost(read=read, write=write):
            return f"{write} = to_host({read})"
        case FromHost(read=read, write=write, group=group):
            return f"{write} = {f'group {group}: ' if group >= 0 else ''}to_device({read})"
        case Free(values=values):
            return f"free({', '.join(values)})"


def neighbourhood(body: Sequence[Instruction], index: int, around: int = 4) -> str:
    """The lines around one instruction, with an arrow at it; an index behind the end points at the end."""
    first = max(0, index - around)
    lines = [
        f"{'-->' if number == index else '   '} {number:4d}  {describe(body[number])}"
        for number in range(first, min(len(body), index + around + 1))
    ]
    if index >= len(body):
        lines.append(f"--> {len(body):4d}  (end)")
    return "\n".join(lines)
