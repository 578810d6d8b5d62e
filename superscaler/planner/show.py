"""A Plan as text: who computes what, how it is cut, what moves, and in which order."""

import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from superscaler.ir.graph import Operator
from superscaler.ir.tensor import Role
from superscaler.planner.communication import PHASE_NAMES
from superscaler.planner.float8 import describe_float8
from superscaler.planner.materialize import Run
from superscaler.planner.plan import Plan
from superscaler.planner.step_cost import local_elements


def format_plan(plan: Plan) -> str:
    """The whole plan on a page."""
    parts = [_headline(plan), *(_stage(plan, number) for number in range(len(plan.materialized.stages)))]
    return "\n\n".join(
        [*parts, format_communication(plan), f"schedule {plan.schedule.name}\n{_schedule(plan)}"]
    )


def _headline(plan: Plan) -> str:
    graph = plan.graph
    parameters = sum(tensor.num_elements for tensor in graph.of_role(Role.PARAMETER))
    batch = ", ".join(f"{name} {list(graph.tensors[name].shape)}" for name in graph.inputs)
    return (
        f"plan {plan.name!r} for {graph.name}: {format_count(parameters)} parameters on "
        f"{plan.num_devices} devices of {plan.cluster.name}\n"
        f"batch: {batch}, in {plan.schedule.micro_batches} micro-batch(es)"
        + _sizes(plan)
        + "".join(f"\n{line}" for line in describe_float8(plan.graph))
    )


def _sizes(plan: Plan) -> str:
    """The sizes that vary, and what is asked of them."""
    if not plan.graph.sizes:
        return ""
    example = ", ".join(f"{name} {hint}" for name, hint in plan.graph.sizes.items())
    asked = ", ".join(one.condition for one in plan.requirements) or "any"
    return f"\nsizes: {example} in the example; allowed: {asked}"


def _stage(plan: Plan, number: int) -> str:
    lines = (f"  {what:<10} {text}" for what, text in describe_stage(plan, number))
    return "\n".join([f"stage {number}: devices {plan.materialized.stages[number]}", *lines])


def describe_stage(plan: Plan, number: int) -> tuple[tuple[str, str], ...]:
    """What a stage computes and holds, and what each of its mesh axes cuts; the word for each, and the text."""
    mesh = plan.materialized.stages[number]
    placed = plan.placed
    here = [operator for operator in plan.graph.operators if placed.placements[operator.name].mesh == mesh]
    counts = Counter(placed.phases[operator.name] for operator in here)
    phases = [f"{counts[phase]} {name}" for phase, name in PHASE_NAMES.items() if counts[phase]]
    again = sum(operator.is_again for operator in here)
    if again:
        phases.append(f"{again} of the backward repeat the forward")
    pieces = sum(operator.is_piece for operator in here)
    if pieces:
        phases.append(f"{pieces} run piece after piece")
    modules = dict.fromkeys(operator.module for operator in here if operator.module)
    axes = [name for name, size in mesh.axes if size > 1]
    return (
        ("computes", ", ".join(compress_names(modules)) or "what lies outside of modules"),
        ("operators", ", ".join(phases)),
        ("holds", _holdings(plan, number)),
        *((axis, f"cuts {', '.join(axes_cut(plan, here, axis)) or 'nothing: replicas'}") for axis in axes),
    )


def axes_cut(plan: Plan, operators: Iterable[Operator], mesh_axis: str) -> list[str]:
    """Names of the model's axes that a mesh axis cuts, with how many operators each, most first."""
    counts: Counter[str] = Counter()
    for operator in operators:
        letters = plan.placed.axes.letters[operator.name]
        for (letter, index), names in plan.placed.placements[operator.name].cuts:
            if mesh_axis in names:
                counts[next(axis.name for axis in letters[letter] if axis.index == index)] += 1
    merged: Counter[str] = Counter()
    for name, count in counts.items():
        merged[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)] += count
    return [f"{name} ({count} operators)" for name, count in merged.most_common()]


def _holdings(plan: Plan, stage: int) -> str:
    """How many parameters the stage's devices hold for it; of those a stage before it reads too, with them."""
    materialized = plan.materialized
    mesh = materialized.stages[stage]
    readers: dict[str, set[int]] = {}
    for phase, events in materialized.events.items():
        for event in events if phase.is_repeated else ():
            names = event.reads if isinstance(event, Run) else (event.read,)
            number = materialized.stages.index(materialized.meshes_of(event)[0])
            for name in names:
                readers.setdefault(name, set()).add(number)
    held = [materialized.values[name] for name in materialized.stored if stage in readers.get(name, ())]
    held = [value for value in held if plan.graph.tensors[value.tensor].role is Role.PARAMETER]
    total = sum(local_elements(value.layout) for value in held)
    shared = {other for value in held for other in readers[value.name] if other != stage}
    shared = {other for other in shared if materialized.stages[other].home == mesh.home}
    also = f", some of them stage {', '.join(map(str, sorted(shared)))} reads too" if shared else ""
    return f"{format_count(total)} parameters per device{also}"


def format_communication(plan: Plan) -> str:
    """Every kind of movement: how often per step, over which axis, and how many bytes each device sends."""
    rows: dict[tuple[str, str, str], list[Fraction]] = {}
    for movement in plan.communication():
        key = (PHASE_NAMES[movement.phase], str(movement.kind), movement.place)
        row = rows.setdefault(key, [Fraction(0), Fraction(0)])
        row[0] += movement.times
        row[1] += movement.times * movement.most_bytes
    if not rows:
        return "communication per step: none"
    lines = ["communication per step, per device"]
    lines += [
        f"  {phase:<9} {kind:<15} {over:<24} {count!s:>5} x  {format_bytes(float(size)):>10}"
        for (phase, kind, over), (count, size) in rows.items()
    ]
    return "\n".join(lines)


def _schedule(plan: Plan) -> str:
    lines = str(plan.schedule).splitlines()
    return "\n".join(f"  {line if len(line) <= 150 else line[:147] + '...'}" for line in lines)


def compress_names(names: Iterable[str]) -> list[str]:
    """Module paths with runs of numbers folded, and without those inside a module already named.

    >>> compress_names(["wte", "h.0.attn", "h.0", "h.1", "h.2", "ln_f"])
    ['wte', 'h.0-2', 'ln_f']
    """
    tops = dict.fromkeys(re.match(r"^[^.]*(\.\d+)?", name).group() for name in names)  # type: ignore[union-attr]
    folded: dict[str, list[int]] = {}
    for top in tops:
        stem, _, number = top.rpartition(".")
        folded.setdefault(stem if number.isdecimal() and stem else top, []).extend(
            [int(number)] if number.isdecimal() and stem else []
        )
    return [f"{stem}.{_ranges(numbers)}" if numbers else stem for stem, numbers in folded.items()]


def _ranges(numbers: list[int]) -> str:
    first, last = min(numbers), max(numbers)
    if len(numbers) > 1 and sorted(numbers) == list(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(map(str, sorted(numbers)))


def format_count(number: float) -> str:
    """1234567 as ``1.2M``."""
    for unit in ("", "K", "M", "B", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.4g}{unit}" if unit else f"{number:.0f}"
        number /= 1000
    raise AssertionError(number)


def format_bytes(number: float) -> str:
    """Bytes with a binary unit: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            return f"{number:.1f} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1024
    raise AssertionError(number)
