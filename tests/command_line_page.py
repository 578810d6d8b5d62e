"""What docs/command_line.md promises."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "command_line.md"


def documented_keys(command: str) -> list[str]:
    """The keys of a command's result, in order."""
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{command}` |")]
    return [key.strip(" `") for key in line.split("|")[2].split(",")]
