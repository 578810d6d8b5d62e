"""Context parallelism: the sequence cut everywhere, in attention as well."""

from superscaler.planner.planner import Planner
from superscaler.planner.recipes import sequence


def context_parallel(p: Planner, over: str = "cp") -> None:
    """Cut the sequence; queries stay where they are, keys and values are joined (Llama 3, arXiv 2407.21783).

    Per layer the forward all-gathers keys and values, the backward reduce-scatters their gradients; activations are
    cut by the number of devices, parameters are not. Pieces are contiguous: of a causal attention the last device
    computes nearly twice the mean.

    Raises:
        PlanError: No input has a second dim.
    """
    axes = sequence.sequence_axes(p, f"{over}=N")
    sequence.cut(p, sequence.as_read(p, sequence.follow(p, axes), axes), over)
