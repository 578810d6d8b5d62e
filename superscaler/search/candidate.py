"""Candidates: the plans a search chooses from, each a plan string once its stages are cut."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from superscaler.errors import PlanError
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan, said_words
from superscaler.search.layer_prices import Way

VARIED = ("dp", "tp", "pp", "sp", "zero", "recompute", "co_shard", "schedule", "micro_batches")
"""Words of plan strings that a search chooses."""


@dataclass(frozen=True, slots=True)
class Space:
    """Which plans a search may choose."""

    schedules: tuple[str, ...] = ("1f1b", "interleaved", "zb-h1", "zb-v")
    """Names of pipeline schedules."""
    zero: tuple[int, ...] = (0, 1, 2, 3)
    keeps: tuple[tuple[str, int], ...] = (
        ("", 1), ("selective", 1), ("layers", 1), ("", 2), ("", 4), ("", 8),
    )  # fmt: skip
    """What layers keep for their backward: a word for recomputation, and the pieces of co-shard. The first is tried
    first: it takes the least time."""
    most_tp: int = 8
    most_pp: int = 64
    most_samples: int = 16
    """Of a micro-batch."""
    sp: tuple[bool, ...] = (True, False)
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
    space = replace(space, most_tp=max(space.most_tp, said.get("tp", 1)))
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

    def __str__(self) -> str:
        """The plan string."""
        words = [f"dp={self.dp}"] * (self.dp > 1) + list(self.way.words)
        words += [f"zero={self.zero}"] * (self.zero > 0)
        if self.pp > 1:
            words += [f"pp={self.pp}", f"schedule={self.schedule}"]
            words += [f"layers={'+'.join(map(str, self.layers))}"] * bool(self.layers)
        words += [f"micro_batches={self.micro_batches}"] * (self.micro_batches > 1)
        return ",".join(words) or "none"


FILLED_BY = {"zb-h1": 1, "zb-h2": 2, "zb-v": 2}
"""Micro-batches per row of devices from which on a schedule's bubble is the published one."""


def stages_per_row(schedule: str) -> int:
    """Stages that share a row of devices."""
    return 2 if schedule in ("interleaved", "zb-v") else 1


def ways(space: Space, cluster: Cluster, keeps: tuple[str, int]) -> Iterator[Way]:
    """Every way to cut layers that keeps this; tensor parallelism stays within a node."""
    recompute, co_shard = keeps
    for tp in _divisors(min(nodes.devices_per_node for nodes in cluster.nodes), space.most_tp):
        if cluster.num_devices % tp == 0:
            for sp in space.sp if tp > 1 else (False,):
                yield Way(tp, sp, recompute=recompute, co_shard=co_shard)


def candidates(
    space: Space, cluster: Cluster, way: Way, batch: int, samples: int, layers: int
) -> Iterator[Candidate]:
    """Every plan with layers cut in a way, and micro-batches of so many samples."""
    groups = cluster.num_devices // way.num_devices
    for pp in _divisors(groups, min(space.most_pp, layers)):
        dp = groups // pp
        if batch % (dp * samples):
            continue
        micro_batches = batch // (dp * samples)
        for zero in space.zero if dp > 1 else (0,):
            for schedule in space.schedules if pp > 1 else ("gpipe",):
                candidate = Candidate(way, dp, pp, micro_batches, zero, schedule)
                if candidate.stages <= layers and _suits(candidate) and space.admits(candidate):
                    yield candidate


def sample_counts(space: Space, batch: int) -> list[int]:
    """Sizes of micro-batches to try: powers of two that divide the batch, and the batch itself where it is small."""
    counts = [2**i for i in range(batch.bit_length()) if batch % 2**i == 0 and 2**i <= space.most_samples]
    return counts + [batch] * (batch not in counts and batch <= space.most_samples)


def _suits(candidate: Candidate) -> bool:
    """Whether a schedule is for so many micro-batches: those without a bubble need enough to fill it."""
    if candidate.schedule == "interleaved":
        return candidate.micro_batches % candidate.pp == 0
    return candidate.micro_batches >= FILLED_BY.get(candidate.schedule, 0) * candidate.pp


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]
