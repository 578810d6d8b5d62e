"""Candidates: the plans a search chooses from, each a plan string once its stages are cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

from superscaler.errors import PlanError
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan, said_words
from superscaler.search.way import Form, Way

VARIED = ("dp", "ep", "cp", "tp", "pp", "sp", "zero", "recompute", "co_shard", "schedule", "micro_batches")
"""Words of plan strings that a search chooses."""


@dataclass(frozen=True, slots=True)
class Space:
    """Which plans a search may choose."""

    schedules: tuple[str, ...] = (
        "1f1b", "interleaved", "zb-h1", "zb-v", "3f1b", "interlaced", "interlaced-ahead",
    )  # fmt: skip
    """Names of pipeline schedules; of a model that goes through its layers several times, only 3F1B."""
    zero: tuple[int, ...] = (0, 1, 2, 3)
    keeps: tuple[tuple[str, int], ...] = (
        ("", 1), ("selective", 1), ("layers", 1), ("", 2), ("", 4), ("", 8),
    )  # fmt: skip
    """What layers keep for their backward: a word for recomputation, and the pieces of co-shard. The first is tried
    first: it takes the least time."""
    most_tp: int = 8
    most_ep: int = 8
    """Of a model with experts."""
    cp: tuple[int, ...] = (1,)
    least_pp: int = 1
    most_pp: int = 64
    most_samples: int = 16
    """Of a micro-batch."""
    sp: tuple[bool, ...] = (True, False)
    even: bool = False
    """Whether all stages have as many layers, whatever these take."""
    fixed: tuple[tuple[str, int | str | bool], ...] = ()
    """Words that every plan must say, such as ``("zero", 1)``."""

    def admits(self, candidate: "Candidate") -> bool:
        """Whether a candidate says what it must."""
        if not self.fixed:
            return True
        said = parse_plan(str(candidate))
        return all(getattr(said, word) == value for word, value in self.fixed)


def auto_space(text: str) -> Space:
    """The plans that ``auto,zero=1,tp=4`` leaves to choose from.

    Raises:
        PlanError: A word means nothing, or is none that the search varies.
    """
    said = said_words(text.partition(",")[2])
    unknown = said.keys() - set(VARIED)
    if unknown:
        raise PlanError(
            f"the plan {text!r} fixes {sorted(unknown)[0]!r}, which the search does not vary",
            remedy=f"fix some of {', '.join(VARIED)}, or say the whole plan",
        )
    space = Space(fixed=tuple(said.items()))
    space = replace(
        space,
        most_tp=max(space.most_tp, said.get("tp", 1)),
        most_ep=max(space.most_ep, said.get("ep", 1)),
        cp=(said.get("cp", 1),),
    )
    return replace(space, schedules=(said["schedule"],)) if "schedule" in said else space


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan but for the layers of its stages."""

    way: Way
    dp: int
    pp: int
    micro_batches: int
    zero: int = 0
    schedule: str = "1f1b"
    layers: tuple[int, ...] = field(default=(), compare=False)
    """Of each stage; empty while they are not known, or where there is one stage."""

    @property
    def stages(self) -> int:
        """How many stages its layers are cut into."""
        return self.pp * stages_per_row(self.schedule) if self.pp > 1 else 1

    @property
    def parts_backward(self) -> bool:
        """Whether gradients of weights are computed in tasks of their own, until which activations stay."""
        return self.pp > 1 and self.schedule.startswith("zb-")

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """The stages that each row of devices hosts."""
        p = self.pp
        if self.stages <= p:
            return [(row,) for row in range(p)]
        return [(row, 2 * p - 1 - row if self.schedule == "zb-v" else p + row) for row in range(p)]

    def __str__(self) -> str:
        """The plan string."""
        words = [f"dp={self.dp}"] * (self.dp > 1) + list(self.way.words)
        words += [f"zero={self.zero}"] * (self.zero > 0)
        if self.pp > 1:
            words += [f"pp={self.pp}", f"schedule={self.schedule}"]
            words += [f"layers={'+'.join(map(str, self.layers))}"] * bool(self.layers)
        words += [f"micro_batches={self.micro_batches}"] * (self.micro_batches > 1)
        return ",".join(words) or "none"


FORMS = {"3f1b": Form.PASSES, "interlaced": Form.INTERLACED, "interlaced-ahead": Form.INTERLACED}
"""Schedules of other pipelines than chains of stages."""
FILLED_BY = {"zb-h1": 1, "zb-h2": 2, "zb-v": 2}
"""Micro-batches per row of devices from which on a schedule's bubble is the published one."""


def stages_per_row(schedule: str) -> int:
    """Stages that share a row of devices."""
    return 2 if schedule in ("interleaved", "zb-v") else 1


def ways(
    space: Space, cluster: Cluster, keeps: tuple[str, int], form: Form = Form.CHAIN, has_experts: bool = False
) -> Iterator[Way]:
    """Every way to cut layers that keeps this; the devices of one replica of a stage are in one node."""
    recompute, co_shard = keeps
    per_node = gcd(*(nodes.devices_per_node for nodes in cluster.nodes))
    for cp in space.cp:
        for ep in _divisors(per_node // cp, space.most_ep if has_experts else 1):
            for tp in _divisors(per_node // (cp * ep), space.most_tp):
                for sp in space.sp if tp > 1 else (False,):
                    yield Way(tp, sp, recompute, co_shard, form, ep, cp)


def candidates(
    space: Space, cluster: Cluster, way: Way, batch: int, samples: int, layers: int
) -> Iterator[Candidate]:
    """Every plan with layers cut in a way, and micro-batches of so many samples on each device that has its own."""
    groups = cluster.num_devices // way.num_devices
    for pp in _divisors(groups, min(space.most_pp, layers)):
        dp = groups // pp
        replicas = dp * way.ep
        if pp < space.least_pp or batch % (replicas * samples):
            continue
        micro_batches = batch // (replicas * samples)
        for zero in space.zero if dp > 1 else (0,):
            for schedule in _schedules(space, way.form, pp):
                candidate = Candidate(way, dp, pp, micro_batches, zero, schedule)
                is_cut = candidate.stages <= layers and not (space.even and layers % candidate.stages)
                if is_cut and _suits(candidate) and space.admits(candidate):
                    yield candidate


def sample_counts(space: Space, way: Way, batch: int) -> list[int]:
    """Sizes of micro-batches to try: powers of two that divide the batch, and the batch itself where it is small."""
    batch //= way.ep
    counts = [2**i for i in range(batch.bit_length()) if batch % 2**i == 0 and 2**i <= space.most_samples]
    return counts + [batch] * (batch not in counts and batch <= space.most_samples)


def _schedules(space: Space, form: Form, pp: int) -> Sequence[str]:
    if pp == 1:
        return () if form is Form.INTERLACED else ("1f1b",)
    return [schedule for schedule in space.schedules if FORMS.get(schedule, Form.CHAIN) is form]


def _suits(candidate: Candidate) -> bool:
    """Whether a schedule is for so many micro-batches: those without a bubble need enough to fill it."""
    if candidate.schedule == "interleaved":
        return candidate.micro_batches % candidate.pp == 0
    return candidate.micro_batches >= FILLED_BY.get(candidate.schedule, 0) * candidate.pp


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]
