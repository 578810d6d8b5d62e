"""Layer runs: the instructions of a body, layer by layer, for passes that move what a layer reads."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from superscaler.codegen.modules import modules_of
from superscaler.codegen.program import Free, Instruction, Program


@dataclass(frozen=True)
class LayerRun:
    """Instructions of a body that follow each other and belong to one layer, or to none."""

    layer: str
    instructions: tuple[Instruction, ...]


def layer_runs(program: Program, body: Sequence[Instruction], layers: Collection[str]) -> list[LayerRun]:
    """The runs of a body, without its frees.

    Args:
        program: Of the body.
        body: Any.
        layers: Module paths of layers.
    """
    body = [instruction for instruction in body if not isinstance(instruction, Free)]
    found = [_layer(module, layers) for module in modules_of(program, body)]
    runs = groupby(zip(found, body, strict=True), lambda pair: pair[0])
    return [LayerRun(layer, tuple(instruction for _, instruction in run)) for layer, run in runs]


def _layer(module: str, layers: Collection[str]) -> str:
    """The layer a module lies in; empty where it lies in none."""
    while module and module not in layers:
        module = module.rpartition(".")[0]
    return module
