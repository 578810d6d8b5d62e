"""Planner: what a plan script talks to: the graph, the cluster, and the primitives trans, assign and order.

A script states decisions; it need not mention every operator. `superscaler.planner.complete` derives the rest
from what was said, and keeps the reason for each operator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis, find_axes
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.source_line import user_line
from superscaler.planner.cluster import Cluster
from superscaler.planner.placement import letters_of
from superscaler.planner.schedules import ScheduleMaker, Task
from superscaler.planner.selection import AxisSelection, Selection, select, split

Devices = Mesh | Sequence[int]


@dataclass(frozen=True, slots=True)
class Cut:
    """One decision of a script: an axis, or a letter of single operators, is cut over a mesh axis."""

    axis: Axis
    over: str
    operators: frozenset[str] | None
    """Where it holds; None: wherever the axis runs."""
    letter: str | None
    pieces: tuple[int, ...] | None
    where: str
    """The script's line."""


@dataclass
class Planner:
    """Collects the decisions of one plan script."""

    graph: Graph
    cluster: Cluster
    axes: Axes = field(init=False)
    cuts: list[Cut] = field(default_factory=list)
    places: dict[str, Mesh] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    schedule: ScheduleMaker | None = None
    task_orders: list[tuple[Task, Task]] = field(default_factory=list)
    operator_orders: list[tuple[str, str]] = field(default_factory=list)
    said_by: str = ""
    """Who speaks, where it is not a line of the user's: a word of a plan string."""

    def __post_init__(self) -> None:
        self.axes = find_axes(self.graph)

    # what a script names

    def select(self, pattern: str, phase: str | None = None) -> Selection:
        """Operators by module path (``h.*.attn``) or name, forward and backward, or of one phase."""
        return select(self.graph, self.axes, pattern, phase)

    def split(self, pattern: str, count: int) -> tuple[Selection, ...]:
        """The modules matching `pattern` as `count` runs: the stages of a pipeline."""
        return split(self.graph, self.axes, pattern, count)

    def everything(self) -> Selection:
        """All operators."""
        return Selection(self.graph, self.axes, self.graph.operators, "the graph")

    def axis(self, name: str) -> AxisSelection:
        """All axes called `name`: ``batch``, ``heads``, ``vocab``."""
        return self.everything().axis(name)

    def mesh(self, devices: Sequence[int], **axes: int) -> Mesh:
        """Devices as an array with named axes, major to minor: ``p.mesh(range(4), dp=2, tp=2)``.

        Raises:
            PlanError: The sizes do not multiply to the number of devices, or a device is not in the cluster.
        """
        devices = tuple(devices)
        sizes = axes or {"x": len(devices)}
        count = 1
        for size in sizes.values():
            count *= size
        if count != len(devices) or TIME in sizes:
            product = " x ".join(f"{name}={size}" for name, size in sizes.items())
            raise PlanError(
                f"{product} is {count} devices, not the {len(devices)} given",
                where=self._speaker(),
                remedy="make the product of the mesh axes equal the number of devices",
            )
        outside = [device for device in devices if not 0 <= device < self.cluster.num_devices]
        if outside or len(set(devices)) != len(devices):
            raise PlanError(
                f"devices {outside or list(devices)} are not {len(devices)} different devices of {self.cluster.name}, "
                f"which has 0 to {self.cluster.num_devices - 1}",
                where=self._speaker(),
                remedy="name each device of the cluster at most once",
            )
        return Mesh(devices, tuple(sizes.items()))

    # the three primitives

    def assign(self, what: Selection | Operator, devices: Devices) -> None:
        """Place operators on devices: a mesh, or device numbers (a mesh of one axis named ``x``)."""
        mesh = devices if isinstance(devices, Mesh) else self.mesh(devices)
        operators = [what] if isinstance(what, Operator) else what
        line = user_line()
        for operator in operators:
            self.places[operator.name] = mesh
            self.notes.setdefault(operator.name, []).append(f"placed on {mesh} by {line}")

    def trans(
        self,
        what: AxisSelection | Axis | Selection | Operator,
        over: str | Devices = "x",
        *,
        letter: str | None = None,
        within: Selection | None = None,
        pieces: Sequence[int] | None = None,
    ) -> None:
        """Cut an axis over a mesh axis: every operator it runs through, forward, backward and update.

        Args:
            what: Axes (``p.axis("heads")``, ``selection.axis("out")``), or operators with ``letter``.
            over: Name of the mesh axis; devices of a mesh of one axis mean that axis.
            letter: With operators: the letter of their rule (``superscaler show --rules``) to cut in them alone.
            within: With axes: cut them in these operators alone.
            pieces: Sizes of the pieces, if not as even as can be.

        Raises:
            PlanError: An operator forbids the cut, or the sizes do not add up.
        """
        over = over if isinstance(over, str) else "x" if not isinstance(over, Mesh) else over.names[0]
        line = self._speaker()
        if isinstance(what, Selection | Operator):
            operators = [what] if isinstance(what, Operator) else list(what)
            for operator in operators:
                self._cut_operator(operator, letter, over, pieces, line)
            return
        for axis in [what] if isinstance(what, Axis) else what:
            self._check_pieces(axis, pieces, line)
            if not any(letters_of(self.axes, operator, axis) for operator in self.graph.operators):
                raise PlanError(
                    f"the axis {axis} cannot be cut: every operator it runs through needs it whole",
                    where=line,
                    remedy="cut another axis; p.explain shows an operator's rule",
                )
            where = None if within is None else frozenset(operator.name for operator in within)
            self.cuts.append(Cut(axis, over, where, None, tuple(pieces) if pieces else None, line))

    def _speaker(self) -> str:
        return self.said_by or user_line()

    def _cut_operator(
        self, operator: Operator, letter: str | None, over: str, pieces: Sequence[int] | None, line: str
    ) -> None:
        parts = self.axes.letters[operator.name].get(letter or "")
        if letter is None or parts is None:
            raise PlanError(
                f"{operator.name!r} has no letter {letter!r} to cut",
                where=line,
                remedy=f"its rule has the letters {', '.join(self.axes.letters[operator.name])}",
            )
        if not parts or not self.axes.cuttable(operator.name, letter, parts[0]):
            raise PlanError(
                f"{operator.name!r} ({operator.kind}) cannot be cut along {letter!r}: "
                + ("it needs the whole of it" if parts else "it has one element"),
                where=line,
                remedy="cut it along one of "
                + ", ".join(
                    other
                    for other in self.axes.letters[operator.name]
                    if letters_cuttable(self.axes, operator, other)
                ),
            )
        self._check_pieces(parts[0], pieces, line)
        names = frozenset({operator.name})
        self.cuts.append(Cut(parts[0], over, names, letter, tuple(pieces) if pieces else None, line))

    def _check_pieces(self, axis: Axis, pieces: Sequence[int] | None, line: str) -> None:
        if pieces is not None and (sum(pieces) != axis.size or min(pieces) < 1):
            raise PlanError(
                f"pieces {list(pieces)} do not make up the axis {axis}",
                where=line,
                remedy=f"give positive sizes that add up to {axis.size}",
            )

    def order(
        self,
        first: ScheduleMaker | Task | Selection | Operator,
        then: Task | Selection | Operator | None = None,
    ) -> None:
        """Order in time: a whole schedule (``p.order(ss.schedules.one_f_one_b(8))``), or `first` before `then`.

        Raises:
            PlanError: A task is ordered against an operator.
        """
        if then is None and callable(first):
            self.schedule = first
        elif isinstance(first, Task) and isinstance(then, Task):
            self.task_orders.append((first, then))
        elif isinstance(first, Selection | Operator) and isinstance(then, Selection | Operator):
            pairs = [(a.name, b.name) for a in _operators(first) for b in _operators(then)]
            self.operator_orders.extend(pairs)
        else:
            raise PlanError(
                "order takes a schedule, two tasks, or two sets of operators",
                where=self._speaker(),
                remedy="write p.order(ss.schedules.gpipe(4)), or p.order(first, then)",
            )


def letters_cuttable(axes: Axes, operator: Operator, letter: str) -> bool:
    """Whether the first axis of a letter may be cut in an operator."""
    parts = axes.letters[operator.name][letter]
    return bool(parts) and axes.cuttable(operator.name, letter, parts[0])


def _operators(what: Selection | Operator) -> Sequence[Operator]:
    return [what] if isinstance(what, Operator) else what.operators
