"""Profiles: what ranks do when, measured, beside what the plan's simulation foretold; a file for Perfetto.

torch's profiler measures. The functions of the program and every communication are marked, so that they are spans of
their own; their seconds are compared with those that the build's ``report.json`` has of the simulated step.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from superscaler.errors import BuildError
from superscaler.ir.mesh import format_devices
from superscaler.runtime.build import Build
from superscaler.runtime.ranks import meet
from superscaler.runtime.waits import Waits

BEFORE = 2
"""Steps before the first that is measured; the last of them already runs under the profiler."""
REPORT = "report.json"
PHASES = {"P": "prepare", "F": "forward", "B": "backward", "W": "weight", "U": "update"}
"""Letter of a task -> how the functions for it are called in programs."""
OTHERS = "waiting for others"
_OVER = " over "
"""In the names of communications."""
Event = dict[str, Any]


class Profile:
    """A profile of some steps of one rank; every rank makes one.

    Args:
        folder: Where traces are written, on a file system all ranks share.
        build: What runs, under this plan.
        rank: This process.
        module: The program; its functions are marked.
        waits: Told of every communication; these are marked, too.
        steps: How many are measured.
        run_steps: How many the run has.

    Raises:
        BuildError: The run has too few, or the build does not say what was foretold.
    """

    def __init__(
        self, folder: Path, build: Build, rank: int, module: Any, waits: Waits, steps: int, run_steps: int
    ) -> None:
        if run_steps < BEFORE + steps:
            raise BuildError(
                f"--profile measures {steps} steps after the first {BEFORE}, and the run has {run_steps}",
                remedy=f"train for at least {BEFORE + steps} (--steps), or measure fewer (--profile-steps)",
            )
        self._folder, self._build, self._rank, self._steps = folder, build, rank, steps
        self._foretold = _foretold(build)
        folder.mkdir(parents=True, exist_ok=True)
        self._file(rank).unlink(missing_ok=True)
        _mark_functions(module)
        waits.is_marked = True
        self._is_on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._is_on_gpu
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=BEFORE - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=lambda measured: measured.export_chrome_trace(str(self._file(rank))),
        )
        self._profiler.start()

    def after_step(self) -> None:
        """A step is over."""
        self._profiler.step()

    def close(self) -> None:
        """Write what was measured; the first rank puts all together, and prints what was foretold beside it."""
        self._profiler.stop()
        meet()
        if self._rank == 0 and not self._file(0).exists():
            print("note: the run was stopped before a profile was measured", flush=True)  # noqa: T201
        elif self._rank == 0:
            traces = {rank: _events(self._file(rank)) for rank in range(self._build.world_size)}
            self._write(traces)
            print(self._table(traces[0]), flush=True)  # noqa: T201
        meet()

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank{rank:05}.json"

    def _write(self, traces: Mapping[int, Sequence[Event]]) -> None:
        starts = [event["ts"] for event in traces[0] if _is_step(event)]
        events = [event for rank, own in traces.items() for event in _of_rank(rank, own)]
        events += _foretold_events(self._foretold, starts)
        (self._folder / "trace.json").write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))

    def _table(self, events: Sequence[Event]) -> str:
        measured = _measured_seconds(events, self._steps, self._is_on_gpu)
        foretold = _foretold_seconds(self._foretold, self._build.program_of(self._rank).devices)
        lines = [f"{'profile of rank 0, per step':28}{'measured':>12}{'foretold':>12}"]
        for name in dict.fromkeys((*measured, *foretold)):
            columns = (f"{1e3 * own.get(name, 0.0):9.2f} ms" for own in (measured, foretold))
            lines.append(f"  {name:26}{''.join(columns)}")
        return "\n".join([*lines, f"  {self._folder / 'trace.json'}: open it with ui.perfetto.dev"])


def _mark_functions(module: Any) -> None:
    """Make spans of the functions that a step calls."""
    for name in unwrap(module.train_step).__code__.co_names:
        function = getattr(module, name, None)
        if callable(function) and name.partition("_")[0] in PHASES.values():
            setattr(module, name, _marked(name, function))


def _marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with record_function(name):
            return function(*arguments)

    return call


def _events(path: Path) -> list[Event]:
    return json.loads(path.read_text())["traceEvents"]


def _is_step(event: Event) -> bool:
    return event.get("cat") == "user_annotation" and event["name"].startswith("ProfilerStep")


def _of_rank(rank: int, events: Sequence[Event]) -> Iterator[Event]:
    """The events of a rank, as those of processes that no other rank has."""
    numbers: dict[Any, int] = {}
    names: dict[Any, str] = {}
    for event in events:
        number = numbers.setdefault(event.get("pid"), 1000 * (rank + 1) + len(numbers))
        if event["ph"] == "M" and event["name"] == "process_labels":
            names[event["pid"]] = event["args"]["labels"]
        if event["ph"] != "M" or event["name"] == "thread_name":
            yield {**event, "pid": number}
    for pid, number in numbers.items():
        yield _process(number, f"rank {rank}, measured: {names.get(pid, pid)}")


def _process(number: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}


def _foretold(build: Build) -> dict[str, Any]:
    """What was foretold when the plan was compiled."""
    path = build.folder / REPORT
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise BuildError(
            f"{path} cannot be read: {error.strerror}", remedy="compile the build again"
        ) from error


def _foretold_events(foretold: Mapping[str, Any], starts: Sequence[float]) -> Iterator[Event]:
    """The simulated step, from the start of each that was measured; a process per row of devices."""
    for number, row in enumerate(foretold["rows"]):
        yield _process(number, f"foretold, {row['title']}: devices {row['devices']}")
        for thread, (stream, spans) in enumerate(row["streams"].items()):
            yield {"ph": "M", "name": "thread_name", "pid": number, "tid": thread, "args": {"name": stream}}
            for first, _, name, start, end, *_ in spans:
                phase, stage, micro_batch = foretold["tasks"][first]
                title = foretold["names"][name].partition("|")[0] or f"{PHASES[phase]} {max(micro_batch, 0)}"
                for begun in starts:
                    yield {
                        "ph": "X", "name": title, "cat": stream, "pid": number, "tid": thread,
                        "ts": begun + start / 1e3, "dur": (end - start) / 1e3, "args": {"stage": stage},
                    }  # fmt: skip


def _measured_seconds(events: Sequence[Event], steps: int, is_on_gpu: bool) -> dict[str, float]:
    """Seconds of a step by what the rank does: in functions, without the communication in them, and in that."""
    found: dict[str, float] = {"step": sum(e["dur"] for e in events if _is_step(e)) / steps / 1e6}
    category = "gpu_user_annotation" if is_on_gpu else "user_annotation"
    spans = [e for e in events if e.get("cat") == category]
    communications = [e for e in spans if _OVER in e["name"]]
    by_phase: defaultdict[str, float] = defaultdict(float)
    for event in spans:
        phase = event["name"].partition("_")[0]
        if phase in PHASES.values():
            end = event["ts"] + event["dur"]
            inside = sum(c["dur"] for c in communications if event["ts"] <= c["ts"] < end)
            by_phase[phase] += event["dur"] - inside
    found |= {name: by_phase[name] / steps / 1e6 for name in PHASES.values() if name in by_phase}
    return found | {OTHERS: sum(e["dur"] for e in communications) / steps / 1e6}


def _foretold_seconds(foretold: Mapping[str, Any], devices: Sequence[int]) -> dict[str, float]:
    """Seconds of a simulated step by what the row of these devices does."""
    row = next(row for row in foretold["rows"] if row["devices"] == format_devices(tuple(devices)))
    by_phase = Counter[str]()
    for first, *_, busy in row["streams"]["compute"]:
        by_phase[PHASES[foretold["tasks"][first][0]]] += busy
    found = {"step": foretold["step"] / 1e9}
    found |= {name: by_phase[name] / 1e9 for name in PHASES.values() if name in by_phase}
    return found | {OTHERS: row["exposed"] + row["waiting"]}
