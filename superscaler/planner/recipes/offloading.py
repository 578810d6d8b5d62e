"""Offloading: what waits in host memory until it is used."""

from superscaler.planner.planner import Planner


def offload_optimizer(p: Planner) -> None:
    """Keep optimizer states in host memory, on the device a few at a time (as ZeRO-Offload, arXiv 2101.06840).

    The update still runs on the device: it fetches the states of a few parameters, and stows them before the next.

    Raises:
        PlanError: The optimizer has no states.
    """
    p.offload(p.everything())
