"""The page: one HTML file that needs no network, made of a description and the source of its programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from superscaler.errors import BuildError
from superscaler.planner.show import format_bytes
from superscaler.report.describe import FORMAT
from superscaler.report.python_source import source_html
from superscaler.report.search_section import search_section
from superscaler.report.table import facts, table

DESCRIPTION = "report.json"
"""The file of a build that holds the description."""
_HERE = Path(__file__).parent
_PHASES = {"P": "prepare", "F": "forward", "B": "backward", "W": "weight gradients", "U": "update"}


def page_of_build(folder: Path) -> str:
    """The page of a build folder, with its source as it is now.

    Raises:
        BuildError: The folder lacks a description that this version reads, or a program.
    """
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']} instead of {FORMAT}")
        sources = {name: (folder / name).read_text(encoding="utf-8") for name, _ in described["sources"]}
        return make_page(described, sources)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BuildError(
            f"cannot read {folder / DESCRIPTION}, of which its page is made: {type(error).__name__}: {error}",
            remedy="compile the build again with the installed version",
        ) from error


def make_page(described: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The page.

    Args:
        described: By `superscaler.report.describe`.
        sources: Text of each program by file name.
    """
    sections = dict(_sections(described, sources))
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    script = {key: described[key] for key in ("step", "rows", "parts", "tasks", "names")}
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{described['title']}: {described['plan']}"),
        model=escape(described["title"]),
        plan=escape(described["plan"]),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "charts.js").read_text(encoding="utf-8"),
        navigation=" ".join(f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor in anchors.items()),
        sections="\n".join(
            f'<section id="{anchors[title]}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'
            for title, body in sections.items()
        ),
        data=json.dumps(script, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _sections(described: Mapping[str, Any], sources: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    yield "Summary", _summary(described)
    if described["search"]:
        yield "Search", search_section(described["search"])
    yield "Who computes what and when", (_HERE / "charts.html").read_text(encoding="utf-8")
    yield "Layers", _stages(described) + _layers(described)
    yield "Communication", _communication(described["communication"])
    yield "Source", "\n".join(_source(name, title, sources[name]) for name, title in described["sources"])
    yield (
        "Plan as text",
        f"<details><summary>all of it</summary><pre>{escape(described['text'])}</pre></details>",
    )


def _summary(described: Mapping[str, Any]) -> str:
    rows = (_row(row, described["step"] / 1e9) for row in described["rows"])
    titles = ("row", "devices", "", "computing", "exposed communication", "waiting", "peak memory", "of")
    return facts(described["facts"]) + table(titles, rows, numbers=range(3, 8))


def _row(row: Mapping[str, Any], step: float) -> list[str]:
    """Where the time of a row goes, as a bar and in figures, and its memory."""
    shares = {what: row[what] / step if step else 0.0 for what in ("computing", "exposed", "waiting")}
    bar = "".join(f'<i class="{what}" style="width:{share:.2%}"></i>' for what, share in shares.items())
    peak = f'<span title="{escape(row["moment"])}">{format_bytes(row["peak"])}</span>'
    host = f" + {format_bytes(row['host'])} on the host" if row["host"] else ""
    time = [f'<span class="bar">{bar}</span>', *(f"{share:.1%}" for share in shares.values())]
    return [escape(row["title"]), escape(row["devices"]), *time, peak + host, format_bytes(row["limit"])]


def _stages(described: Mapping[str, Any]) -> str:
    boxes = []
    for number, (mesh, lines) in enumerate(described["stages"]):
        entries = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in lines)
        boxes.append(f"<div><h3>stage {number}: {escape(mesh)}</h3><dl>{entries}</dl></div>")
    return f'<div class="stages">{"".join(boxes)}</div>'


def _layers(described: Mapping[str, Any]) -> str:
    stages = range(len(described["stages"]))
    rows = (
        [escape(layer) or "outside of modules", *map(_operators, counts)]
        for layer, counts in described["layers"]
    )
    note = (
        "<p>Operators of each layer by phase: " + ", ".join(f"{k} {v}" for k, v in _PHASES.items()) + ".</p>"
    )
    return note + table(("layer", *(f"stage {number}" for number in stages)), rows, "layers")


def _operators(counts: Mapping[str, int]) -> str:
    words = (
        f'<span class="phase {phase}">{phase} {counts[phase]}</span>' for phase in _PHASES if phase in counts
    )
    return " ".join(words)


def _communication(moves: Sequence[Sequence[Any]]) -> str:
    if not moves:
        return "<p>Nothing is sent.</p>"
    rows = (
        [
            *map(escape, (phase, what, devices)), f"{times:,}", format_bytes(size), format_bytes(times * size),
            escape(reason),
        ]
        for phase, what, devices, times, size, reason in moves
    )  # fmt: skip
    titles = ("phase", "what", "devices", "times per step", "sends each time", "per step", "reason")
    note = "<p>Sizes are what one device sends; of devices with unlike pieces, the one that sends most.</p>"
    return note + table(titles, rows, numbers=range(3, 6))


def _source(name: str, title: str, text: str) -> str:
    lines = text.count("\n")
    return (
        f"<details><summary><code>{escape(name)}</code> {escape(title)}, {lines} lines</summary>"
        f'<pre class="source">{source_html(text)}</pre></details>'
    )
