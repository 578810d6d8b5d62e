"""Offloading: what waits in host memory until it is used."""

from superscaler.planner.planner import Planner
from superscaler.planner.recipes.blocks import forward_of_layers, selected


def offload_optimizer(p: Planner) -> None:
    """Keep optimizer states in host memory, on the device a few at a time (as ZeRO-Offload, arXiv 2101.06840).

    The update still runs on the device: it fetches the states of a few parameters, and stows them before the next.

    Raises:
        PlanError: The optimizer has no states.
    """
    p.offload(p.everything())


def offload_activations(p: Planner) -> None:
    """Let what layers leave for their backward wait in host memory (as ZeRO-Infinity, arXiv 2104.07857).

    A layer's activations leave behind its forward and are fetched for its backward, so that one layer's are on the
    device at a time. With recomputation, they are the layers' inputs alone.

    Raises:
        PlanError: The model has no layers that leave anything for a backward.
    """
    operators = [operator for layer in forward_of_layers(p) for operator in layer]
    p.offload_activations(selected(p, operators, f"layers of {p.graph.name!r}"))


def offload_optimizer_and_activations(p: Planner) -> None:
    """Keep optimizer states and layers' activations in host memory (as ZeRO-Infinity, arXiv 2104.07857).

    Raises:
        PlanError: One of the two does not exist.
    """
    offload_optimizer(p)
    offload_activations(p)


def offload_parameters(p: Planner) -> None:
    """Keep parameters in host memory, a layer's on the device while it is next or runs (as FlexGen, arXiv 2303.06865).

    The embeddings and the head count as layers. An inference build whose parameters do not fit on the device runs
    by this, and so does serving; caches stay on the device. In training every layer's are fetched again for its
    backward, and for the update; with ZeRO it must be ZeRO-3, whose updates change what each device stores.

    Raises:
        PlanError: The model has no parameters.
    """
    p.offload_parameters(p.everything())


def offload_optimizer_and_parameters(p: Planner) -> None:
    """Keep optimizer states and parameters in host memory (as ZeRO-Infinity, arXiv 2104.07857).

    Raises:
        PlanError: One of the two does not exist.
    """
    offload_optimizer(p)
    offload_parameters(p)


def offload_everything(p: Planner) -> None:
    """Keep optimizer states, layers' activations and parameters in host memory (as ZeRO-Infinity, arXiv 2104.07857).

    Raises:
        PlanError: One of the three does not exist.
    """
    offload_optimizer_and_activations(p)
    offload_parameters(p)
