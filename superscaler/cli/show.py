"""``superscaler show``: a build's plan, or a model's, as text, as a page or for a program."""

import argparse
import json
from pathlib import Path
from typing import Any

from superscaler.cli.language_model import is_build
from superscaler.cli.model_options import add_model, make_graph, make_plan
from superscaler.cli.terminal import print_json, write_text
from superscaler.errors import BuildError

_SUMMARY = "print a build folder's plan, or the plan of a model"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("show", help=_SUMMARY, description=_SUMMARY)
    add_model(parser, "target")
    add = parser.add_argument
    add("--graph", action="store_true", help="print the traced graph instead")
    add("--communication", action="store_true", help="print every move with its bytes instead")
    add("--explain", metavar="OPERATOR", help="why one operator is cut and placed as it is")
    add("--html", action="store_true", help="write a page that shows who computes what and when instead")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default report.html, in the build folder if it is one)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    folder = _build_folder(options.target)
    options.model = options.target
    _check_shown(options, folder is not None)
    if options.html:
        _show_page(options, folder)
    elif options.json:
        _show_json(options, folder)
    elif folder is not None:
        print(_note(folder, "plan.txt").rstrip())
        print("\nprograms: " + ", ".join(str(path) for path in sorted(folder.glob("stage*.py"))))
    elif options.graph:
        from superscaler.ir.text import format_graph

        print(format_graph(make_graph(options, deferred=True)))
    else:
        plan = make_plan(options, deferred=True)
        if options.communication:
            print(plan.communication())
        else:
            print(plan.explain(options.explain) if options.explain else plan)


def _build_folder(target: str) -> Path | None:
    """The build that is named; None: it is a model.

    Raises:
        BuildError: It is some other folder.
    """
    folder = Path(target)
    if is_build(folder):
        return folder
    if folder.is_dir():
        raise BuildError(
            f"{folder} is no build folder: it has no plan.json",
            remedy="name one that `superscaler compile ... -o FOLDER` has made, or a model and its plan, as in "
            "superscaler show models/gpt.py:tiny --plan tp=2",
        )
    return None


def _check_shown(options: argparse.Namespace, of_build: bool) -> None:
    """Refuse what would be ignored."""
    for name in ("graph", "communication", "explain"):
        if of_build and getattr(options, name):
            raise BuildError(
                f"--{name} needs the model, which a build does not keep",
                remedy=f"name the model and the plan, as in superscaler show models/gpt.py:tiny --plan tp=2 --{name}",
            )
    if options.output and not options.html:
        raise BuildError("-o names the page that --html writes", remedy="add --html, or leave out -o")


def _show_page(options: argparse.Namespace, folder: Path | None) -> None:
    from superscaler.report.page import page_of_build

    page = make_plan(options, deferred=True).page() if folder is None else page_of_build(folder)
    file = options.output or (folder or Path()) / "report.html"
    write_text(file, page)
    if options.json:
        print_json({"page": str(file)})
    else:
        print(f"{file}: open it in a browser")


def _show_json(options: argparse.Namespace, folder: Path | None) -> None:
    """What is printed for people, and the facts a program can ask for."""
    if options.graph or options.explain:
        raise BuildError(
            "--graph and --explain print text, which --json has no keys for",
            remedy="leave out --json, or leave out --graph and --explain",
        )
    if folder is not None:
        described = json.loads(_note(folder, "report.json"))
    else:
        described = make_plan(options, deferred=True).described
    print_json(
        {
            "title": described["title"],
            "plan": described["plan"],
            "step_seconds": described["step"] / 1e9,
            "rows": [
                {"title": row["title"], "devices": row["devices"], "memory_bytes": row["peak"]}
                for row in described["rows"]
            ],
            "stages": [{"mesh": mesh, "does": lines} for mesh, lines in described["stages"]],
            "communication": [
                dict(zip(("phase", "what", "devices", "times", "bytes", "reason"), row, strict=True))
                for row in described["communication"]
            ],
            "text": described["text"],
        }
    )


def _note(folder: Path, name: str) -> str:
    """A file of a build that is there for people."""
    path = folder / name
    if not path.is_file():
        raise BuildError(
            f"the build {folder} has no {name}", remedy="copy the whole folder, or compile it again"
        )
    return path.read_text(encoding="utf-8")
