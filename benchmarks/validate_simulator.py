"""The simulator beside published measurements of training: throughput and memory of 24 configurations.

Of every row of `published/training_throughput.csv` the model is traced, planned for its cluster and simulated, with
the constants of the presets. These are fitted to the rows marked ``fit``: the run fits them again and prints them.
Rows marked ``test`` judge: the goal is a mean absolute error of 10 %, and that of two measurements of one comparison
that are 10 % apart the prediction has the larger one larger, too. `published_training` says which plan a row is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, log
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.published_prices import prices_of, with_curves
from benchmarks.published_training import Row, by_configuration, read_rows
from benchmarks.report import finish, parse_arguments, print_table
from superscaler.compiler import CompiledPlan
from superscaler.planner.cluster import Cluster
from superscaler.planner.efficiency import OperatorClass
from superscaler.simulator.simulation import Simulation, simulate

GOAL, APART, AGREED = 0.10, 1.10, 0.03
QUICK = ("m21-1.7b", "m21-3.6b", "t24-8b-8", "t24-8b-8c", "t24-8b-8-mem", "t24-8b-8c-mem")
RESERVED = 1.46
"""What torch's allocator reserves, as a multiple of what tensors need at the fullest moment: fitted."""


@dataclass(frozen=True)
class Constant:
    """What is fitted: a factor on what one kind of device reaches of its peaks."""

    device: str
    classes: tuple[OperatorClass, ...]
    part: str
    """Field of a `Curve`."""

    def __str__(self) -> str:
        return f"{self.device}: {self.part} of {', '.join(self.classes)}"

    def value(self, cluster: Cluster) -> float:
        """That of the first class."""
        return getattr(cluster.nodes[0].device.efficiency.curve(self.classes[0]), self.part)

    def times(self, factor: float, cluster: Cluster) -> Cluster:
        """The cluster with the constant multiplied, where it has such devices."""
        return with_curves(cluster, self.classes, self.part, factor, self.device)


CONSTANTS = (
    Constant("A100-80GB", (OperatorClass.MATMUL,), "arithmetic"),
    Constant("A100-80GB", (OperatorClass.POINTWISE,), "memory"),
    Constant("H100-96GB-500W", (OperatorClass.MATMUL, OperatorClass.ATTENTION), "arithmetic"),
)
Factors = Mapping[Constant, float]


@dataclass
class Measured:
    """A row, and its plan while it is needed."""

    row: Row
    plan: CompiledPlan = field(repr=False)

    def simulate(self, factors: Factors) -> Simulation:
        """With some constants multiplied."""
        cluster = self.plan.cluster
        for constant, factor in factors.items():
            cluster = constant.times(factor, cluster)
        return simulate(self.plan, self.plan.programs, prices_of(self.row, self.plan, cluster))

    def predict(self, factors: Factors) -> float:
        """The row's metric."""
        simulation = self.simulate(factors)
        peak = RESERVED * max(row.memory.total for row in simulation.rows)
        return self.row.value_of(simulation.step_seconds, peak)


def main() -> None:
    """Predict every row, fit the constants again, and judge."""
    options = parse_arguments(__doc__ or "")
    rows = [row for row in read_rows() if not options.quick or row.id in QUICK]
    predicted: dict[str, float] = {}
    fitting: list[Measured] = []
    for group in by_configuration(rows).values():
        plan = group[0].planned()
        for row in group:
            measured = Measured(row, plan)
            predicted[row.id] = measured.predict({})
            if row.split == "fit" and not options.quick:
                fitting.append(measured)
            print(f"{row.id}: {predicted[row.id]:.4g}, published {row.value:g}", flush=True)
    factors = fit(fitting)
    errors = {row.id: predicted[row.id] / row.value - 1 for row in rows}
    table = [_line(row, predicted[row.id]) for row in rows]
    orders = [_order(name, group, predicted) for name, group in comparisons(rows).items()]
    print_table(orders)
    print_table(
        [
            {
                "constant": str(one),
                "preset": one.value(_cluster(one)),
                "fitted": one.value(_cluster(one)) * factor,
            }
            for one, factor in factors.items()
        ]
    )
    tested = [abs(errors[row.id]) for row in rows if row.split == "test"]
    mean_error, disordered = fmean(tested), sum(order["disordered"] for order in orders)
    agreed = all(abs(factor - 1) <= AGREED for factor in factors.values())
    finish(
        "validate_simulator",
        mean_error <= GOAL and not disordered and agreed,
        table,
        options.quick,
        mean_error_test=mean_error,
        worst_error_test=max(tested),
        mean_error_fit=fmean(abs(errors[row.id]) for row in rows if row.split == "fit"),
        rank=spearman(*_throughputs(rows, predicted)),
        rank_within=fmean(order["rank"] for order in orders),
        disordered=disordered,
        predicted=len(rows),
    )


def _cluster(constant: Constant) -> Cluster:
    return next(row.cluster() for row in read_rows() if row.gpu == constant.device)


def _line(row: Row, predicted: float) -> dict[str, Any]:
    return {
        "row": row.id,
        "split": row.split,
        "devices": row.gpus,
        "plan": row.plan + (", every other product stored" if row.is_per_operator else ""),
        "samples": row.samples,
        "metric": row.metric,
        "published": row.value,
        "predicted": predicted,
        "error": f"{predicted / row.value - 1:+.1%}",
    }


def fit(measured: Sequence[Measured]) -> dict[Constant, float]:
    """Factors on the constants that make the squares of relative errors least (Gauss-Newton on logarithms)."""
    factors: dict[Constant, float] = {}
    for device in dict.fromkeys(constant.device for constant in CONSTANTS):
        free = [constant for constant in CONSTANTS if constant.device == device]
        rows = [one for one in measured if one.row.gpu == device and one.row.metric != "peak_memory_gib"]
        if len(rows) >= len(free):
            factors |= dict(zip(free, _least_squares(free, rows), strict=True))
    return factors


def _least_squares(free: Sequence[Constant], rows: Sequence[Measured], rounds: int = 3) -> list[float]:
    at, step = np.zeros(len(free)), 0.03

    def residuals(logs: Any) -> Any:
        factors = {constant: exp(number) for constant, number in zip(free, logs, strict=True)}
        return np.array([log(one.predict(factors) / one.row.value) for one in rows])

    for _ in range(rounds):
        here = residuals(at)
        slopes = np.stack([(residuals(at + step * unit) - here) / step for unit in np.eye(len(free))], axis=1)
        at = at - np.linalg.lstsq(slopes, here, rcond=None)[0]
    return [exp(number) for number in at]


def comparisons(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that a source compares: of one metric, and where that depends on the model, of one model."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        size = f" {row.layers} layers" if row.metric == "tokens_per_s_per_gpu" else ""
        found.setdefault(f"{row.source}{size}, {row.metric}", []).append(row)
    return {name: group for name, group in found.items() if len(group) > 1}


def _throughputs(rows: Sequence[Row], predicted: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Of all models, published and predicted, in one unit."""
    measured = [row for row in rows if row.metric != "peak_memory_gib"]
    return (
        [row.teraflops(row.value) for row in measured],
        [row.teraflops(predicted[row.id]) for row in measured],
    )


def _order(name: str, rows: Sequence[Row], predicted: Mapping[str, float]) -> dict[str, Any]:
    apart = [
        sorted(pair, key=lambda row: row.value)
        for pair in combinations(rows, 2)
        if max(row.value for row in pair) >= APART * min(row.value for row in pair)
    ]
    wrong = [f"{low.id} > {high.id}" for low, high in apart if predicted[low.id] >= predicted[high.id]]
    rank = spearman([row.value for row in rows], [predicted[row.id] for row in rows])
    return {
        "comparison": name, "rows": len(rows), "rank": rank, "pairs": len(apart), "disordered": len(wrong),
        "which": ", ".join(wrong),
    }  # fmt: skip


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks; values that are equal share theirs, and have none with others if all are."""
    if min(len(set(one)), len(set(other))) < 2:
        return 0.0
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


if __name__ == "__main__":
    main()
