"""Functional: a captured graph in which nothing is overwritten, whatever the model did (``x += 1``)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from superscaler.errors import TraceError
from superscaler.ir.provenance import note_of


def without_mutations(captured: GraphModule, inputs: Sequence[Any]) -> GraphModule:
    """The same graph with every in-place operator as its functional twin; the notes of its nodes are kept.

    Args:
        captured: A traced graph whose first input is the list of stored tensors.
        inputs: The fake inputs it was traced on.

    Raises:
        TraceError: The model overwrites one of its own parameters or buffers.
    """
    if not any(_mutates(node) for node in captured.graph.nodes):
        return captured

    def run(*values: Any) -> Any:
        with fx_traceback.preserve_node_meta():
            return torch.fx.Interpreter(captured).run(*values)

    functional = torch.func.functionalize(run, remove="mutations")
    with torch.no_grad():
        result = make_fx(functional, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    _forget_copies_back(result, len(inputs[0]))
    return result


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _forget_copies_back(functional: GraphModule, num_stored: int) -> None:
    """Remove what would write into the caller's inputs: a graph has no effects but its results."""
    stored = [node for node in functional.graph.nodes if node.op == "placeholder"][:num_stored]
    for node in [node for node in functional.graph.nodes if _mutates(node)]:
        target, value = node.args[:2]
        if target in stored:
            raise TraceError(
                "the model overwrites one of its own parameters or buffers, such as a running mean",
                where=note_of(value.meta).get("source", ""),
                remedy="call model.eval() first where that stops it, or keep the tensor outside of the model",
            )
        functional.graph.erase_node(node)
    functional.recompile()
