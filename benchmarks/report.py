"""What every benchmark prints and keeps: a table, raw results with the machine and versions, and a RESULT line."""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def parse_arguments(description: str) -> argparse.Namespace:
    """The one option all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run that ends within 60 s on 2 cores")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys as aligned columns."""
    if not rows:
        return
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(name: str, ok: bool, rows: Sequence[Mapping[str, Any]], quick: bool, **figures: Any) -> None:
    """Print the table, keep the raw results, and print the RESULT line last."""
    print_table(rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'-quick' if quick else ''}.json"
    document = {
        "name": name,
        "quick": quick,
        "ok": ok,
        "machine": machine(),
        "figures": figures,
        "rows": list(rows),
    }
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    words = " ".join(f"{key}={_text(value)}" for key, value in figures.items())
    print(f"RESULT name={name} ok={str(ok).lower()} {words}", flush=True)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
