"""Bytes each device sends per training step, counted in our plans and by the formulas of the textbooks.

The formulas know the sizes of the model and the number of devices, not the plan: an all-reduce of S bytes over n
devices sends 2 (n - 1) / n S from each, an all-gather or reduce-scatter (n - 1) / n S, an all-to-all (n - 1) / n of the
own piece.
Goal: equal, kind by kind, for every plan, model and number of devices.

Beside what each formula is known for stand the few bytes that come with it: the loss and the number of its tokens, and
three numbers per token where the vocabulary is cut (the largest logit, the sum of exponents, the logit of the target).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from benchmarks.report import finish, parse_arguments
from models import gpt, llama, moe
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import make_plan
from superscaler.planner.recipes import parse_plan, recipe

ELEMENT = 4
"""Bytes of a float32."""
COUNT = 8
"""Bytes of the number of tokens that count, an int64."""
MODELS = {"gpt": gpt, "llama": llama, "moe": moe}
QUICK = {
    "gpt": {"layers": 2, "width": 64, "heads": 4, "seq": 32, "vocab": 128},
    "llama": {"layers": 2, "width": 64, "heads": 8, "kv_heads": 4, "inner": 96, "seq": 32, "vocab": 128},
    "moe": {
        "layers": 2, "width": 32, "heads": 4, "kv_heads": 4, "inner": 48, "experts": 8, "choices": 2, "seq": 16,
        "vocab": 64, "room": 1.25,
    },
}  # fmt: skip
FULL = {
    "gpt": {"layers": 8, "width": 512, "heads": 8, "seq": 256, "vocab": 8192},
    "llama": {"layers": 8, "width": 512, "heads": 16, "kv_heads": 8, "inner": 1408, "seq": 256, "vocab": 8192},
    "moe": {
        "layers": 4, "width": 256, "heads": 8, "kv_heads": 8, "inner": 512, "experts": 8, "choices": 2, "seq": 128,
        "vocab": 8192, "room": 1.25,
    },
}  # fmt: skip
BATCH, MICRO_BATCHES = 16, 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the formulas know of a model."""

    layers: int
    width: int
    seq: int
    vocab: int
    kv_width: int
    parameters: int
    read_backward: int
    """Parameters whose values the backward needs: those of products and normalisations."""
    beside_products: int
    """Parameters that tensor parallelism leaves whole and sequence parallelism uses in pieces of the sequence."""
    experts: int = 0
    """Parameters of all experts."""
    places: int = 0
    """Tokens of one sequence that all experts together have room for."""
    losses: int = 1
    """Numbers that are added up over all tokens."""

    @property
    def activation(self) -> int:
        """Bytes of the residual stream of the whole batch."""
        return ELEMENT * BATCH * self.seq * self.width


def sizes_of(name: str, row: Mapping[str, Any]) -> Sizes:
    """Count a model's parameters from its row of sizes."""
    layers, width, seq, vocab = (row[key] for key in ("layers", "width", "seq", "vocab"))
    table = vocab * width
    if name == "gpt":
        norms, biases, positions = (2 * layers + 1) * 2 * width, layers * 8 * width, seq * width
        read = table + layers * 12 * width**2 + norms
        return Sizes(layers, width, seq, vocab, width, read + biases + positions, read, norms + positions)
    kv_width = width // row["heads"] * row["kv_heads"]
    norms = (2 * layers + 1) * width
    attention = 2 * width**2 + 2 * width * kv_width
    if name == "llama":
        read = table + layers * (attention + 3 * width * row["inner"]) + norms
        return Sizes(layers, width, seq, vocab, kv_width, read + table, read, norms)
    count = row["experts"]
    experts = layers * 3 * count * width * row["inner"]
    read = table + layers * (attention + count * width) + norms + experts
    room = -(-int(seq * row["room"] * row["choices"]) // count)
    return Sizes(layers, width, seq, vocab, kv_width, read + table, read, norms, experts, count * room, 2)


Bytes = dict[str, Fraction]
"""Kind of move -> bytes of one device per step."""


def _ring(count: int, size: float) -> Fraction:
    return Fraction(count - 1, count) * Fraction(size)


def data_parallel(m: Sizes, n: int) -> Bytes:
    """Gradients are all-reduced."""
    return {"all_reduce": 2 * _ring(n, ELEMENT * m.parameters) + _scalars(m, n)}


def zero_1(m: Sizes, n: int) -> Bytes:
    """Gradients are reduce-scattered, updated parameters all-gathered."""
    once = _ring(n, ELEMENT * m.parameters)
    return {"reduce_scatter": once, "all_gather": once, "all_reduce": _scalars(m, n)}


def zero_2(m: Sizes, n: int) -> Bytes:
    """Gradients are reduce-scattered in every micro-batch."""
    once = _ring(n, ELEMENT * m.parameters)
    return {"reduce_scatter": _scattered(m, n), "all_gather": once, "all_reduce": _scalars(m, n)}


def zero_3(m: Sizes, n: int) -> Bytes:
    """Parameters are all-gathered for the forward, and for the backward where it reads them, in every micro-batch."""
    gathered = _ring(n, ELEMENT * (m.parameters + m.read_backward))
    return {
        "reduce_scatter": _scattered(m, n),
        "all_gather": MICRO_BATCHES * gathered,
        "all_reduce": _scalars(m, n),
    }


def tensor_parallel(m: Sizes, n: int) -> Bytes:
    """Megatron: per layer two all-reduces of activations forward and two backward; embedding and head one each."""
    return {"all_reduce": (4 * m.layers + 2) * 2 * _ring(n, m.activation) + _cut_vocabulary(m, n)}


def sequence_parallel(m: Sizes, n: int) -> Bytes:
    """Each of those all-reduces is a reduce-scatter and an all-gather; what works on pieces sums its gradients."""
    half = (4 * m.layers + 2) * _ring(n, m.activation)
    beside = 2 * _ring(n, ELEMENT * m.beside_products)
    return {"reduce_scatter": half, "all_gather": half, "all_reduce": beside + _cut_vocabulary(m, n)}


def context_parallel(m: Sizes, n: int) -> Bytes:
    """Keys and values are all-gathered, their gradients reduce-scattered, all parameters' gradients all-reduced."""
    keys_and_values = _ring(n, 2 * m.layers * ELEMENT * BATCH * m.seq * m.kv_width)
    reduced = 2 * _ring(n, ELEMENT * (m.parameters + m.losses))
    return {"reduce_scatter": keys_and_values, "all_gather": keys_and_values, "all_reduce": reduced}


def expert_parallel(m: Sizes, n: int) -> Bytes:
    """Tokens go to their experts and back by all-to-alls, forward and backward; other parameters are data parallel."""
    piece = ELEMENT * BATCH // n * m.places * m.width
    reduced = 2 * _ring(n, ELEMENT * (m.parameters - m.experts)) + _scalars(m, n)
    return {"all_to_all": 4 * m.layers * _ring(n, piece), "all_reduce": reduced}


def pipeline(m: Sizes, n: int) -> Bytes:
    """Every stage but the last sends activations, every one but the first their gradients; the busiest does both."""
    return {"send": Fraction((2 if n > 2 else 1) * m.activation)}


def _scattered(m: Sizes, n: int) -> Fraction:
    return _ring(n, ELEMENT * MICRO_BATCHES * m.parameters)


def _scalars(m: Sizes, n: int) -> Fraction:
    return 2 * _ring(n, ELEMENT * m.losses + COUNT)


def _cut_vocabulary(m: Sizes, n: int) -> Fraction:
    return 3 * 2 * _ring(n, ELEMENT * BATCH * m.seq)


PLANS: dict[str, tuple[str, Callable[[Sizes, int], Bytes], tuple[str, ...]]] = {
    "data parallel": ("dp={n}", data_parallel, ("gpt", "llama", "moe")),
    "ZeRO-1": ("dp={n},zero=1", zero_1, ("gpt", "llama")),
    "ZeRO-2": (f"dp={{n}},zero=2,micro_batches={MICRO_BATCHES}", zero_2, ("gpt", "llama")),
    "ZeRO-3": (f"dp={{n}},zero=3,micro_batches={MICRO_BATCHES}", zero_3, ("gpt", "llama")),
    "tensor parallel": ("tp={n}", tensor_parallel, ("gpt", "llama")),
    "tensor and sequence parallel": ("tp={n},sp", sequence_parallel, ("gpt", "llama")),
    "context parallel": ("cp={n}", context_parallel, ("gpt", "llama")),
    "expert parallel": ("ep={n}", expert_parallel, ("moe",)),
    "pipeline": (f"pp={{n}},micro_batches={MICRO_BATCHES}", pipeline, ("llama",)),
}
"""Plan -> its string, its formula, and the models it is for."""


def main() -> None:
    """Fill the table."""
    options = parse_arguments(__doc__ or "")
    sizes, counts = (QUICK, (2,)) if options.quick else (FULL, (2, 4, 8))
    rows = [
        row(title, name, sizes[name], count)
        for title, (_, _, names) in PLANS.items()
        for name in names
        for count in counts
    ]
    unequal = [one for one in rows if not one["equal"]]
    finish("communication_bytes", not unequal, rows, options.quick, compared=len(rows), unequal=len(unequal))


def row(title: str, name: str, sizes: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """One line of the table: what the device that sends most sends, and what the formula says."""
    text, formula, _ = PLANS[title]
    text = text.format(n=devices)
    graph = _graph(name, tuple(sizes.items()))
    plan = make_plan(graph, Cluster.local(parse_plan(text).num_devices), recipe(text), text)
    sent = max(plan.communication().bytes_sent.values(), key=lambda kinds: sum(kinds.values()))
    found = {str(kind): size for kind, size in sorted(sent.items())}
    expected = dict(sorted(formula(sizes_of(name, sizes), devices).items()))
    return {
        "plan": title,
        "string": text,
        "model": name,
        "devices": devices,
        "moves": ", ".join(f"{kind} {float(size):.0f}" for kind, size in found.items()),
        "bytes": round(sum(found.values())),
        "formula": round(sum(expected.values())),
        "equal": found == expected,
    }


@cache
def _graph(name: str, sizes: tuple[tuple[str, Any], ...]) -> Graph:
    model = MODELS[name].build("tiny", **dict(sizes))
    return trace(model, MODELS[name].example_inputs("tiny", batch=BATCH, **dict(sizes)), optimizer=AdamW())


if __name__ == "__main__":
    main()
