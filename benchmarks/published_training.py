"""Published training measurements as plans: the model, the cluster and the plan of each row of the table.

What the table does not say is in `SAMPLES`, `VIRTUAL` and `UNCUT_STAGES`, from the sources' own scripts where there are
any. Parameters are in half precision with float32 copies and states, 16 bytes per parameter with the gradient, as both
systems have them; torchtitan sums gradients in float32, which here are summed in half precision.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import gpt, llama
from superscaler import compiler
from superscaler.compiler import CompiledPlan
from superscaler.ir.deferred import deferred_init
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import (
    context_parallel,
    data_parallel,
    optimizer_sharding,
    place_stages,
    recipe,
    sequence_parallel,
    tensor_parallel,
)
from superscaler.planner.schedules import interleaved
from superscaler.planner.selection import Selection

TABLE = Path(__file__).parent / "published" / "training_throughput.csv"
PRESETS = {"A100-80GB": "dgx-a100", "H100-96GB-500W": "h100-96gb-500w", "H100-80GB": "dgx-h100"}
SAMPLES = {
    # Megatron-LM, examples/sc21/run_table_1.sh
    "m21-1.7b": 16, "m21-3.6b": 16, "m21-7.5b": 16, "m21-18b": 8, "m21-39b": 4, "m21-76b": 2, "m21-145b": 2,
    # torchtitan cuts the local batch into as many micro-batches as there are rows, unless told otherwise
    "t24-405b-1f1b": 4, "t24-405b-int": 4, "t24-8b": 2, "t25-70b-tp8": 16, "t25-8b-tp8": 12,
}  # fmt: skip
"""Id of a row, or what it begins with -> samples of a micro-batch, where it is not one."""
VIRTUAL = {"m21-76b": 3, "m21-530b": 3, "l3": 8}
"""Id of a row, or what it begins with -> stages per row of devices, where they are not two."""
UNCUT_STAGES = ("m21-39b", "m21-1t")
"""Rows whose script, in Megatron-LM's examples/sc21, asks for one stage per row of devices."""
SAVED = ("attn.q", "attn.v", "mlp.gate", "mlp.down")
"""Every other product of a layer: torchtitan's selective checkpointing saves them, and attention."""


@dataclass(frozen=True)
class Row:
    """A published measurement and its configuration."""

    id: str
    split: str
    """``fit`` or ``test``."""
    source: str
    model: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn_hidden: int
    vocab: int
    seq: int
    gpu: str
    gpus: int
    tp: int
    pp: int
    dp: int
    cp: int
    zero: int
    schedule: str
    recompute: str
    dtype: str
    compile: str
    batch: int
    metric: str
    value: float

    @property
    def samples(self) -> int:
        """Of a micro-batch."""
        return _of(SAMPLES, self.id, 1)

    @property
    def micro_batches(self) -> int:
        """How many a step has."""
        return self.batch // self.dp // self.samples

    @property
    def plan(self) -> str:
        """The plan string, without what recomputes operator by operator."""
        words = [f"{key}={value}" for key, value in self._numbers.items() if value > 1]
        words += ["sp"] * (self.tp > 1 and self.source != "M21")
        words += [f"zero={self._zero}"] * (self._zero > 0)
        if self.pp > 1:
            is_cut = self.schedule == "interleaved" and self.id not in UNCUT_STAGES
            virtual = _of(VIRTUAL, self.id, 2)
            words += [f"schedule=interleaved,virtual={virtual}" if is_cut else "schedule=1f1b"]
        words += ["recompute=layers"] * (self.recompute == "full")
        return ",".join(words)

    @property
    def _zero(self) -> int:
        """FSDP does not gather again per micro-batch where there is a pipeline, and sums gradients once."""
        return min(self.zero, 1) if self.pp > 1 else self.zero

    @property
    def _numbers(self) -> dict[str, int]:
        sizes = {"dp": self.dp, "cp": self.cp, "tp": self.tp, "pp": self.pp}
        return {**sizes, "micro_batches": self.micro_batches}

    @property
    def is_per_operator(self) -> bool:
        """Whether every other product of a layer, and what is no product, runs again in the backward."""
        return "selective" in self.recompute

    @property
    def configuration(self) -> tuple[object, ...]:
        """What the plan depends on: rows that agree in it are planned once."""
        return (self.model, self.layers, self.hidden, self.gpu, self.gpus, self.seq, self.batch, self.plan)

    @cached_property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.seq

    def value_of(self, step_seconds: float, peak_bytes: float) -> float:
        """The row's metric."""
        match self.metric:
            case "tokens_per_s_per_gpu":
                return self.tokens / step_seconds / self.gpus
            case "peak_memory_gib":
                return peak_bytes / 2**30
            case "tflops_per_gpu" if self.source == "M21":
                return self.megatron_flops / step_seconds / self.gpus / 1e12
            case _:
                return self.model_flops / step_seconds / self.gpus / 1e12

    def teraflops(self, value: float) -> float:
        """Per second and device, of a throughput in the row's metric: what rows of all models have in common."""
        if self.metric != "tokens_per_s_per_gpu":
            return value
        return value * self.model_flops / self.tokens / 1e12

    @property
    def megatron_flops(self) -> float:
        """Equation 3 of the paper: with recomputation, and all scores."""
        per_layer = 96 * self.tokens * self.hidden**2
        beside = 1 + self.seq / (6 * self.hidden) + self.vocab / (16 * self.layers * self.hidden)
        return per_layer * self.layers * beside

    @property
    def model_flops(self) -> float:
        """Of the products with weights, and of the scores that a causal mask leaves."""
        kv = self.hidden * self.kv_heads // self.heads
        weights = 2 * self.hidden * (self.hidden + kv) + 3 * self.hidden * self.ffn_hidden
        scores = 6 * self.hidden * self.seq
        return self.tokens * (6 * (self.layers * weights + self.vocab * self.hidden) + self.layers * scores)

    def cluster(self) -> Cluster:
        """The preset it ran on."""
        return Cluster.preset(PRESETS[self.gpu], -(-self.gpus // 8))

    def trace(self) -> Graph:
        """A step in half precision; parameters, gradients and states as 16 bytes per parameter, in float32 copies."""
        dtype = torch.float16 if self.dtype == "fp16" else torch.bfloat16
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with deferred_init():
                model = SinglePrecisionLoss(self._build())
        finally:
            torch.set_default_dtype(before)
        tokens = torch.empty((self.batch, self.seq), dtype=torch.int64, device="meta")
        return trace(model, (tokens, tokens), optimizer=AdamW(master_weights=True))

    def _build(self) -> nn.Module:
        sizes = {"layers": self.layers, "width": self.hidden, "heads": self.heads}
        sizes |= {"seq": self.seq, "vocab": self.vocab}
        if self.model == "gpt":
            return gpt.build("tiny", **sizes, dropout=0.1)
        return llama.build("tiny", **sizes, kv_heads=self.kv_heads, inner=self.ffn_hidden)

    def planned(self) -> CompiledPlan:
        """The plan of the row for its cluster."""
        how = self.plan
        if self.is_per_operator:
            how = per_operator(self)
        if self.source == "L3":
            how = layer_per_stage(self)
        return compiler.plan(self.trace(), self.cluster(), how)


def read_rows(path: Path = TABLE) -> list[Row]:
    """All rows of the table."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    types = Row.__annotations__
    return [Row(**{key: types[key](value) for key, value in line.items()}) for line in csv.DictReader(lines)]


def layer_per_stage(row: Row) -> Callable[[Planner], None]:
    """The interleaved plan of Llama 3: a layer per stage, and a stage each for the embedding and the head."""

    def script(p: Planner) -> None:
        layers = p.split_layers(row.layers, (1,) * row.layers)
        stages = (p.select("model.embed"), *layers, p.select("model.head"))
        rows = tuple(((stage % row.pp,),) for stage in range(len(stages)))
        place_stages(p, stages, p.cluster.groups(row.pp), rows, dp=row.dp, cp=row.cp, tp=row.tp)
        p.order(interleaved(row.micro_batches, len(stages) // row.pp))
        data_parallel(p)
        if row.cp > 1:
            context_parallel(p)
        tensor_parallel(p)
        sequence_parallel(p)
        optimizer_sharding(p)

    return script


def per_operator(row: Row) -> Callable[[Planner], None]:
    """A plan whose layers store every other product, and their attention; the rest runs again in the backward."""

    def script(p: Planner) -> None:
        recipe(row.plan)(p)
        layers: dict[str, list[Operator]] = {}
        for operator in p.graph.operators:
            if operator.phase is Phase.FORWARD and ".layers." in f".{operator.module}":
                layer = operator.module.partition("layers.")[2].partition(".")[0]
                layers.setdefault(layer, []).append(operator)
        for layer, operators in layers.items():
            block = Selection(p.graph, p.axes, tuple(operators), f"layer {layer}")
            p.recompute(block, storing=filter(_is_saved, operators))

    return script


def _is_saved(operator: Operator) -> bool:
    return operator.kind == "attention" or (operator.kind == "linear" and operator.module.endswith(SAVED))


class SinglePrecisionLoss(nn.Module):
    """A language model whose loss is computed from logits in float32, as Megatron-LM and torchtitan do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of [batch, seq]."""
        return F.cross_entropy(self.model(tokens).flatten(0, 1).float(), targets.flatten())


def _of(table: dict[str, int], key: str, otherwise: int) -> int:
    return next((value for prefix, value in table.items() if key.startswith(prefix)), otherwise)


def by_configuration(rows: Iterable[Row]) -> dict[tuple[object, ...], list[Row]]:
    """Rows that share a plan."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.configuration, []).append(row)
    return found
