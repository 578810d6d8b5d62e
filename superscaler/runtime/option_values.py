"""Option values: texts of a command line as numbers, for argparse, which tells the user what is wrong with one."""

import argparse


def natural(text: str) -> int:
    """A whole number from 0, as an option's value."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive(text: str) -> int:
    """A whole number from 1, as an option's value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
