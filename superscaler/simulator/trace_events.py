"""Trace events: a simulated step in the format of Chrome's and Perfetto's trace viewers.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from typing import Any

from superscaler.ir.mesh import format_devices
from superscaler.simulator.replay import Span, Stream
from superscaler.simulator.simulation import Simulation

_MICROSECONDS = 1e6
_THREADS = {stream: number for number, stream in enumerate(Stream)}


def trace_events(simulation: Simulation) -> dict[str, Any]:
    """The JSON document: a process per row, a thread per stream, an event per span."""
    events: list[dict[str, Any]] = []
    for number, row in enumerate(simulation.rows):
        name = f"{row.title}: devices {format_devices(row.devices)}"
        events.append({"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}})
        events += [
            {"ph": "M", "name": "thread_name", "pid": number, "tid": thread, "args": {"name": str(stream)}}
            for stream, thread in _THREADS.items()
        ]
    events += [_event(span) for row in simulation.rows for span in row.spans]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(span: Span) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name or str(span.task),
        "cat": str(span.stream),
        "pid": span.row,
        "tid": _THREADS[span.stream],
        "ts": span.start * _MICROSECONDS,
        "dur": (span.end - span.start) * _MICROSECONDS,
        "args": {"task": str(span.task), "stage": span.task.stage, "micro_batch": span.task.micro_batch},
    }
