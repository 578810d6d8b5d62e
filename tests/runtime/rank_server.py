"""Where ranks of tests are forked: a process that has imported what they need, and has no threads.

A process that has run tests has threads (of OpenMP, of readers of data), whose locks a fork may find taken.
"""

import multiprocessing
from multiprocessing.context import ForkServerContext


def rank_server() -> ForkServerContext:
    """Start ranks with this; what they run must be pickled, so that it is a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["superscaler.runtime.launch", "tests.runtime.ranks"])
    return context
