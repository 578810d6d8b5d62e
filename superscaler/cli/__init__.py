"""The command line, a file per command."""

from superscaler.cli.command_line import main

__all__ = ["main"]
