"""Functional: a captured graph in which nothing is overwritten, whatever the model did (``x += 1``)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.fx.traceback as fx_traceback
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx


def without_mutations(
    captured: GraphModule, inputs: Sequence[Any], tracing_mode: Literal["fake", "symbolic"] = "fake"
) -> tuple[GraphModule, tuple[int, ...]]:
    """The same graph with every in-place operator as its functional twin; the notes of its nodes are kept.

    Args:
        captured: A traced graph whose first input is the list of stored tensors.
        inputs: The fake inputs it was traced on.
        tracing_mode: As for ``make_fx``.

    Returns:
        The graph, and the numbers of the stored tensors the model overwrites, whose new values are appended to
        the graph's results in that order.
    """
    if not any(_mutates(node) for node in captured.graph.nodes):
        return captured, ()

    def run(*values: Any) -> Any:
        with fx_traceback.preserve_node_meta():
            return torch.fx.Interpreter(captured).run(*values)

    functional = torch.func.functionalize(run, remove="mutations")
    with torch.no_grad():
        result = make_fx(functional, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(*inputs)
    return result, _return_copies_back(result, len(inputs[0]))


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _return_copies_back(functional: GraphModule, num_stored: int) -> tuple[int, ...]:
    """Turn what would be written into stored tensors into results; what goes into other inputs is forgotten."""
    stored = [node for node in functional.graph.nodes if node.op == "placeholder"][:num_stored]
    fresh: dict[int, Node] = {}
    for node in [node for node in functional.graph.nodes if _mutates(node)]:
        target, value = node.args[:2]
        if target in stored:
            fresh[stored.index(target)] = value
        functional.graph.erase_node(node)
    (output,) = (node for node in functional.graph.nodes if node.op == "output")
    output.args = ([*output.args[0], *fresh.values()],)
    functional.recompile()
    return tuple(fresh)
