"""Emit: one program as a Python file that `torchrun` can run and a person can read."""

import re
from collections.abc import Mapping, Sequence

from superscaler.codegen.emit_phases import Phases, emit_phases
from superscaler.codegen.emit_update import emit_update
from superscaler.codegen.emitted import Emitted
from superscaler.codegen.group import fold_updates
from superscaler.codegen.loops import REPEATED
from superscaler.codegen.name_tables import NameTables
from superscaler.codegen.operator_files import defined_by
from superscaler.codegen.plan_file import entry_name
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import Compute, Exchange, Part, Program, Send
from superscaler.codegen.shared_casts import share_casts
from superscaler.codegen.source_lines import INDENT, WIDTH, statement
from superscaler.ir.graph import Phase
from superscaler.ir.mesh import TIME, format_devices
from superscaler.planner.plan import Plan
from superscaler.planner.schedule import Task
from superscaler.planner.show import axes_cut

_ACCUMULATE = '''def accumulate(sums, name, value):
    """Add the value of one more micro-batch."""
    sums[name] = sums[name].add_(value) if name in sums else value
'''


def emit(plan: Plan, program: Program) -> str:
    """The source of one row's program."""
    printed, tables = PrintedProgram(plan, share_casts(fold_updates(program))), NameTables()
    phases = emit_phases(printed, tables)
    functions, returned = list(phases.functions), ()
    update = None
    if printed.bodies[Part(Phase.UPDATE)]:
        prepared = dict(zip(phases.prepared_values, phases.prepared, strict=True))
        update, returned = emit_update(printed, tables, prepared)
        functions.append(update)
    functions.append(_step(printed, phases, update, returned))
    parts = ["\n".join(function.lines) + "\n" for function in functions]
    if any("accumulate" in function.uses for function in functions):
        parts.insert(0, _ACCUMULATE)
    constants = [*tables.lines, *_schedule_table(printed)]
    body = "\n\n".join(parts)
    head = _docstring(printed) + "\n" + _imports(body, _definitions(printed))
    if constants:
        head += "\n" + "\n".join(constants) + "\n"
    return f"{head}\n\n{body}"


def _definitions(printed: PrintedProgram) -> list[str]:
    """A line per operator of the user's that the program calls: where it is defined."""
    kinds = {i.kind for body in printed.bodies.values() for i in body if isinstance(i, Compute)}
    table = defined_by(printed.graph)
    return [f'define("{kind}", by="{table[kind]}", beside=__file__)' for kind in sorted(kinds & table.keys())]


def _imports(body: str, definitions: Sequence[str]) -> str:
    lines = ["import torch"]
    if re.search(r"\bF\.\w", body):
        lines.append("import torch.nn.functional as F")
    own = ["from superscaler.runtime import ops"] if re.search(r"(?<!torch\.)\bops\.\w", body) else []
    if "@compilable\n" in body:
        own.append("from superscaler.runtime.compiled import compilable")
    if definitions:
        own.append("from superscaler.runtime.custom_operators import define")
    lines += ["", *own] if own else []
    lines += ["", *definitions] if definitions else []
    return "\n".join(lines) + "\n"


def _docstring(printed: PrintedProgram) -> str:
    """Which model, plan and devices; what is cut over which mesh axis; how to run and read it."""
    program, plan = printed.program, printed.plan
    count = len(plan.materialized.stages)
    ranks = f"rank{'s' if len(program.devices) > 1 else ''} {format_devices(program.devices)}"
    numbers = ", ".join(map(str, program.stages))
    part = f", stage{'s' if len(program.stages) > 1 else ''} {numbers} of {count}" if count > 1 else ""
    lines = [
        f'"""{printed.graph.name} under the plan {plan.name}{part}: what {ranks} run{"s" * (ranks[4] != "s")}.',
        "",
    ]
    lines += [f"{INDENT}torchrun --nproc-per-node {plan.num_devices} {entry_name(plan)}", ""]
    for text in _cuts(printed):
        lines += _wrapped(text)
    if printed.micro_batches > 1:
        lines += _wrapped(f"{TIME}: {printed.micro_batches} micro-batches, one after another, cut the batch.")
    lines += _wrapped(
        "p, state and grads map names to this rank's pieces; comments show local shapes, and why ranks communicate."
    )
    return "\n".join([*lines, '"""', ""])


def _cuts(printed: PrintedProgram) -> list[str]:
    """A sentence per mesh axis: what it cuts in the stages that are here."""
    placed = printed.plan.placed.placements
    cuts: dict[tuple[str, int], dict[str, None]] = {}
    for mesh in printed.program.stages.values():
        here = [o for o in printed.graph.operators if placed[o.name].mesh == mesh]
        for name, size in mesh.axes:
            cut = [re.sub(r" \(\d+ operators\)$", "", text) for text in axes_cut(printed.plan, here, name)]
            cuts.setdefault((printed.axis_variable(mesh, name), size), {}).update(dict.fromkeys(cut))
    return [
        f"{name}: {size} devices, cuts {', '.join(cut) or 'nothing: replicas'}."
        for (name, size), cut in cuts.items()
    ]


def _wrapped(text: str) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) + 1 > WIDTH:
            lines.append(line)
            line = INDENT + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _schedule_table(printed: PrintedProgram) -> list[str]:
    if not _needs_table(printed):
        return []
    words = " ".join(_word(printed, task) for task in printed.program.tasks)
    if len(words) + 20 <= WIDTH:
        return [f'SCHEDULE = "{words}"']
    lines = [f'{INDENT}"{line} "' for line in _lines_of(words, WIDTH - 10)]
    return ["SCHEDULE = (", *lines, ")"]


def _lines_of(words: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in words.split():
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _word(printed: PrintedProgram, task: Task) -> str:
    """A task as the table writes it: ``F3``, or ``2F3`` where there are several stages."""
    return f"{task.stage}{task}" if printed.hosts_several else str(task)


def _needs_table(printed: PrintedProgram) -> bool:
    phases = {task.phase for task in printed.program.tasks}
    is_several = printed.hosts_several or Phase.WEIGHT in phases
    return is_several or (len(printed.program.tasks) > 2 and Phase.BACKWARD in phases)


def _step(
    printed: PrintedProgram, phases: Phases, update: Emitted | None, returned: Sequence[str]
) -> Emitted:
    """``train_step`` or ``infer_step``: the phases in the order of the schedule."""
    is_training = printed.graph.is_training
    emitted = [*phases.by_part.values(), *([update] if update else [])]
    uses = {name for function in emitted for name in function.parameters}
    lines = ["@torch.no_grad()"]
    if is_training:
        lines.append("def train_step(p, state, micro_batches, step, rt):")
        lines.append(
            f'{INDENT}"""Train one step: updates `p` and `state` in place; returns the loss where it is known."""'
        )
    else:
        lines.append("def infer_step(p, micro_batches, rt):")
        lines.append(
            f'{INDENT}"""Compute the outputs of all micro-batches; empty where other stages have them."""'
        )
    dicts = [name for name in ("grads", "kept") if name in uses]
    if dicts:
        lines += statement(f"{', '.join(dicts)} = {', '.join(['{}'] * len(dicts))}")
    prepare = phases.by_part.get(Part(Phase.PREPARE))
    if prepare is not None:
        targets = ", ".join(phases.prepared) + ("," if len(phases.prepared) == 1 else "")
        lines += statement(f"{targets} = {_call(prepare, 'micro_batches[0]')}")
    lines += _tasks(printed, phases)
    if update is not None:
        target = f"{_results(returned)} = " if returned else ""
        lines += statement(f"{target}{_call(update)}")
    if any(isinstance(i, (Send, Exchange)) for body in printed.bodies.values() for i in body):
        lines += statement("rt.finish()", "all that was sent has left")
    lines += statement(f"return {{{', '.join(_outputs(printed, phases, returned))}}}")
    return Emitted("train_step" if is_training else "infer_step", (), tuple(lines))


def _call(
    function: Emitted, batch: str = "batch", saved: str = "saved", mb: str = "mb", last: int = 0
) -> str:
    words = {"batch": batch, "saved": saved, "mb": mb, "is_last": f"mb == {last}"}
    return f"{function.name}({', '.join(words.get(name, name) for name in function.parameters)})"


def _tasks(printed: PrintedProgram, phases: Phases) -> list[str]:
    """Tasks of micro-batches: in a line, in a loop, or by the table."""
    parts = {part: function for part, function in phases.by_part.items() if part.phase.is_repeated}
    if not parts:
        return []
    if _needs_table(printed):
        return _table_loop(printed, phases, parts)
    forward = next((f for part, f in parts.items() if part.phase is Phase.FORWARD), None)
    backward = next((f for part, f in parts.items() if part.phase is Phase.BACKWARD), None)
    lines: list[str] = []
    if printed.micro_batches == 1:
        lines += statement("batch = micro_batches[0]") if _uses_batch(forward, backward) else []
        if forward is not None:
            call = _call(forward, mb="0")
            target = "results = " if phases.returned else ""
            lines += statement(f"saved = [{call}]" if phases.saving else f"{target}{call}")
        if backward is not None:
            lines += statement(_call(backward, saved="saved.pop()", mb="0"))
        return lines
    assert forward is not None
    lines += ["    results = []"] if phases.returned else []
    lines += statement(
        "for mb, batch in enumerate(micro_batches):"
        if "mb" in forward.parameters
        else "for batch in micro_batches:"
    )
    call = _call(forward)
    return lines + statement(f"results.append({call})" if phases.returned else call, indent=2)


def _uses_batch(*functions: Emitted | None) -> bool:
    return any(function is not None and "batch" in function.parameters for function in functions)


def _table_loop(printed: PrintedProgram, phases: Phases, parts: Mapping[Part, Emitted]) -> list[str]:
    lines = [f"{INDENT}saved = {{}}"] if phases.saving else []
    lines += [f"{INDENT}{_results_of(phases, part)} = []" for part in phases.returned]
    lines.append(f"{INDENT}for task in SCHEDULE.split():")
    if printed.hosts_several:
        lines += [
            f'{INDENT * 2}what = task.rstrip("0123456789")',
            f"{INDENT * 2}mb = int(task.removeprefix(what))",
        ]
    else:
        lines.append(f"{INDENT * 2}phase, mb = task[0], int(task[1:])")
    word = "if"
    for part in sorted(parts, key=lambda part: (part.stage, REPEATED.index(part.phase))):
        key = f"{part.stage}, mb" if printed.hosts_several else "mb"
        popped = f"({key})" if printed.hosts_several else key
        last = [t for t in printed.program.tasks if Part(t.phase, t.stage) == part][-1].micro_batch
        call = _call(parts[part], "micro_batches[mb]", f"saved.pop({popped})", last=last)
        if part in phases.saving:
            call = f"saved[{key}] = {call}"
        elif part in phases.returned:
            call = f"{_results_of(phases, part)}.append({call})"
        name = f"{part.stage}{part.phase}" if printed.hosts_several else str(part.phase)
        lines.append(f'{INDENT * 2}{word} {"what" if printed.hosts_several else "phase"} == "{name}":')
        lines += statement(call, indent=3)
        word = "elif"
    return lines


def _results_of(phases: Phases, part: Part) -> str:
    """The list of what a forward returned for each micro-batch."""
    return "results" if len(phases.returned) == 1 else f"results_{part.stage}"


def _results(names: Sequence[str]) -> str:
    return ", ".join(f"output_{number}" for number in range(len(names))) if len(names) > 1 else "output"


def _outputs(printed: PrintedProgram, phases: Phases, returned: Sequence[str]) -> list[str]:
    """The entries of the dict a step returns."""
    entries = []
    owner = {name: part for part, names in phases.returned.items() for name in names}
    for number, (name, value) in enumerate(printed.program.outputs.items()):
        key = "loss" if printed.graph.is_training and number == 0 else name
        if value in printed.kept:
            place, entry = printed.kept[value]
            text = f'{place}["{entry}"]'
        elif name in returned:
            index = list(returned).index(name)
            text = "output" if len(returned) == 1 else f"output_{index}"
        elif name in owner:
            names = phases.returned[owner[name]]
            text = _gathered(printed, value, names.index(name), len(names))
            text = re.sub(r"\bresults\b", _results_of(phases, owner[name]), text)
        else:
            continue
        entries.append(f'"{key}": {text}')
    return entries


def _gathered(printed: PrintedProgram, value: str, index: int, count: int) -> str:
    """An output of all micro-batches."""
    item = "result" if count == 1 else f"result[{index}]"
    if printed.micro_batches == 1:
        return item.replace("result", "results[0]" if _needs_table(printed) else "results")
    layout, position = printed.value(value).layout, 0
    for dim, parts in enumerate(printed.plan.placed.axes.dims[printed.value(value).tensor]):
        if any(TIME in layout.cuts[position + i] for i in range(len(parts))):
            return f"torch.cat([{item} for result in results], {dim})"
        position += len(parts)
    return item.replace("result", "results[-1]", 1)
