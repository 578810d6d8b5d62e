"""Planner: what a plan script talks to: the graph, the cluster, and the primitives trans, assign and order.

A script states decisions; it need not mention every operator. `superscaler.planner.complete` derives the rest
from what was said, and keeps the reason for each operator.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis, find_axes
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.size import Size
from superscaler.ir.source_line import user_line
from superscaler.ir.tensor import Role
from superscaler.planner.cluster import Cluster
from superscaler.planner.co_shard import CoShard, runs_in_pieces
from superscaler.planner.cut import Cut, cut_of_axis, cut_of_operator
from superscaler.planner.order import Order
from superscaler.planner.pipeline import ScheduleMaker
from superscaler.planner.recompute import operators_to_repeat
from superscaler.planner.schedule import Schedule, Task
from superscaler.planner.schedules import Given
from superscaler.planner.selection import AxisSelection, Selection, select, split, split_layers
from superscaler.planner.weight_axes import weight_axes

Devices = Mesh | Sequence[int]


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
    schedule_said_by: str = ""
    """Who chose the schedule: a line of the script, or a word of a plan string."""
    task_orders: list[Order[Task]] = field(default_factory=list)
    operator_orders: list[Order[str]] = field(default_factory=list)
    repeated: list[tuple[str, ...]] = field(default_factory=list)
    """Per block to recompute, its forward operators."""
    stored_in_blocks: set[str] = field(default_factory=set)
    """Operators of these blocks whose results are stored all the same."""
    kept_as_updated: set[str] = field(default_factory=set)
    """Gradients that are kept in the layout their update reads."""
    stored_as_updated: set[str] = field(default_factory=set)
    """Parameters that are stored in the layout their update reads."""
    on_host: set[str] = field(default_factory=set)
    """Optimizer states and parameters that are kept in host memory, and activations that wait there."""
    parameters_on_host: dict[str, str] = field(default_factory=dict)
    """Those of them that are parameters -> who said so."""
    co_sharded: list[CoShard] = field(default_factory=list)
    """Axes of blocks that run piece after piece."""
    is_rewritten: bool = False
    """Whether the graph is the one that this script's calls of `recompute` and `co_shard` led to."""
    said_by: str = ""
    """Who speaks, where it is not a line of the user's: a word of a plan string."""
    known_axes: Axes | None = None
    """The axes of the graph, where they have been found before."""

    def __post_init__(self) -> None:
        self.axes = self.known_axes or find_axes(self.graph)

    # what a script names

    def select(self, pattern: str, phase: str | None = None) -> Selection:
        """Operators by module path (``h.*.attn``) or name, forward and backward, or of one phase."""
        return select(self.graph, self.axes, pattern, phase, self.speaker)

    def split(self, pattern: str, count: int) -> tuple[Selection, ...]:
        """The modules matching `pattern` as `count` runs of nearly equal work."""
        return split(self.graph, self.axes, pattern, count, self.speaker)

    def split_layers(self, count: int, layers: Sequence[int] = ()) -> tuple[Selection, ...]:
        """All layers of the model as `count` runs: the stages of a pipeline.

        Args:
            count: How many.
            layers: Of each run, counted as finely as can be; empty: such that their work is nearly equal.

        Raises:
            PlanError: There are not as many layers.
        """
        return split_layers(self.graph, self.axes, count, layers, self.speaker)

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
        if TIME in sizes:
            raise PlanError(
                f"{TIME!r} names the micro-batches, which run in time: a mesh axis cannot be called so",
                where=self.speaker,
                remedy="give the mesh axis another name; p.order(schedule) makes micro-batches",
            )
        count = prod(sizes.values())
        if count != len(devices) or min(sizes.values()) < 1:
            product = " x ".join(f"{name}={size}" for name, size in sizes.items())
            raise PlanError(
                f"a mesh of {product} is {count} devices, not the {len(devices)} given",
                where=self.speaker,
                remedy="make the product of the mesh axes equal the number of devices, at least one",
            )
        self._check_devices(devices)
        return Mesh(devices, tuple(sizes.items()))

    def _check_devices(self, devices: Sequence[int]) -> None:
        outside = [device for device in devices if not 0 <= device < self.cluster.num_devices]
        if outside or len(set(devices)) != len(devices):
            fault = "not in the cluster" if outside else "not all different: a device is named twice"
            raise PlanError(
                f"devices {outside or list(devices)} are {fault}; {self.cluster.name!r} has devices "
                f"0 to {self.cluster.num_devices - 1}",
                where=self.speaker,
                remedy="name devices of the cluster, each at most once, or plan for a larger one "
                "(--cluster local:N)",
            )

    # the three primitives

    def assign(self, what: Selection | Operator, devices: Devices, *, chunk: int = 0) -> None:
        """Place operators on devices: a mesh, or device numbers (a mesh of one axis named ``x``).

        Operators on one mesh are one stage, whose forward is one task. Several stages may run on the same
        devices, with different chunks: the virtual stages of an interleaved pipeline, say.

        Raises:
            PlanError: A device is not in the cluster.
        """
        mesh = devices if isinstance(devices, Mesh) else self.mesh(devices)
        mesh = replace(mesh, chunk=chunk) if chunk else mesh
        self._check_devices(mesh.devices)
        line = self.speaker
        for operator in _operators(what):
            self.places[operator.name] = mesh
            others = [note for note in self.notes.get(operator.name, ()) if not note.startswith("placed on")]
            self.notes[operator.name] = [f"placed on {mesh} by {line}", *others]

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
            letter: With operators: the letter of their rules (`superscaler.ir.kinds`) to cut in them alone.
            within: With axes: cut them in these operators alone.
            pieces: Sizes of the pieces, if not as even as can be.

        Raises:
            PlanError: An operator forbids the cut, the sizes do not add up, or arguments do not go together.
        """
        line = self.speaker
        over = self._mesh_axis(over, line)
        if isinstance(what, Selection | Operator):
            if within is not None:
                raise PlanError(
                    "trans was given operators and within=",
                    where=line,
                    remedy="within= goes with axes; drop it",
                )
            self.cuts += [
                cut_of_operator(self.axes, operator, letter, over, pieces, line)
                for operator in _operators(what)
            ]
            return
        if letter is not None:
            raise PlanError(
                f"trans was given axes and letter={letter!r}",
                where=line,
                remedy="letter= goes with operators; to cut an axis in some operators alone use within=",
            )
        where = None if within is None else frozenset(operator.name for operator in within)
        self.cuts += [
            cut_of_axis(self.graph, self.axes, axis, over, where, pieces, line)
            for axis in ([what] if isinstance(what, Axis) else what)
        ]

    def _mesh_axis(self, over: str | Devices, line: str) -> str:
        if isinstance(over, str):
            return over
        if isinstance(over, Mesh) and len(over.names) != 1:
            raise PlanError(
                f"the mesh {over} has {len(over.names)} axes: over which of them to cut is not said",
                where=line,
                remedy=f"name one: {', '.join(map(repr, over.names))}",
            )
        return over.names[0] if isinstance(over, Mesh) else "x"

    @property
    def speaker(self) -> str:
        """Who decides now: a word of a plan string, or the line of the user's script."""
        return self.said_by or user_line()

    # what the backward does not find stored

    def recompute(self, what: Selection, *, storing: Iterable[Operator] = ()) -> None:
        """Run the forward of a block again in its backward, and store only what enters and leaves it.

        Each call makes one block: one per layer, mostly. Its communication runs again too, where its result
        is needed.

        Args:
            what: The block.
            storing: Operators of it whose results are stored all the same: products, for example, which take long.

        Raises:
            PlanError: The block stores nothing that could be computed again, or overlaps another.
        """
        if self.is_rewritten:
            return
        block = tuple(operator.name for operator in what if operator.phase is Phase.FORWARD)
        taken = {name for other in self.repeated for name in other}
        if taken & set(block):
            raise PlanError(
                f"{what.description} overlaps another block that is computed again: {min(taken & set(block))!r}",
                where=self.speaker,
                remedy="give every operator to one block at most",
            )
        stored = {operator.name for operator in storing}
        if not operators_to_repeat(self.graph, dict.fromkeys(block), stored):
            raise PlanError(
                f"{what.description} stores nothing for a backward that could be computed again",
                where=self.speaker,
                remedy="choose whole layers of a model that is trained",
            )
        self.repeated.append(block)
        self.stored_in_blocks |= stored

    def co_shard(
        self, what: Selection, axis: str | Axis | AxisSelection | None = None, *, pieces: int
    ) -> None:
        """Run the operators of a block that have an axis piece after piece, on their devices.

        Each piece runs forward again right before its backward, so that of what lies inside a block one piece
        exists at a time, without communication (SuperScaler, arXiv 2301.08984). Operators of the block without
        the axis run whole; `recompute` of a block repeats those alone.

        Args:
            what: The block: a layer, or a part of one.
            axis: ``"heads"``, or ``p.select("h.0.mlp.up").axis("out")``; None: every axis of the block's weights
                that all operators can cut: attention heads, feed-forward hidden units.
            pieces: How many; they are of equal size.

        Raises:
            PlanError: No operator of the block can run on a piece of the axis, or the axis has no such pieces.
        """
        line = self.speaker
        if self.is_rewritten:
            for operator in what:
                if operator.is_piece and not operator.is_again:
                    self.notes.setdefault(operator.name, []).append(f"one of {pieces} pieces by {line}")
            return
        block = tuple(operator.name for operator in what if operator.phase is Phase.FORWARD)
        for one in self._axes_to_co_shard(what, axis, line):
            if pieces < 2 or isinstance(one.size, Size) or one.size % pieces:
                fault = (
                    "fewer than two are none" if pieces < 2
                    else "its size varies from run to run" if isinstance(one.size, Size)
                    else "they would not be equal"
                )  # fmt: skip
                raise PlanError(
                    f"{one} of {what.description} cannot run in {pieces} pieces: {fault}",
                    where=line,
                    remedy="use a number of pieces, from 2, that divides the axis; or name another axis",
                )
            self.co_sharded.append(CoShard(block, one, pieces, line))

    def _axes_to_co_shard(
        self, what: Selection, axis: str | Axis | AxisSelection | None, line: str
    ) -> list[Axis]:
        named = what.axis(axis) if isinstance(axis, str) else axis
        forward = [operator for operator in what if operator.phase is Phase.FORWARD]
        candidates = (
            [named]
            if isinstance(named, Axis)
            else list(weight_axes(self.graph, self.axes) if named is None else named)
        )
        found = [
            one for one in candidates if any(runs_in_pieces(self.axes, operator, one) for operator in forward)
        ]
        if not found:
            about = f"axis {axis!r}" if isinstance(axis, str) else str(axis or "axis of a weight")
            raise PlanError(
                f"{what.description} has no {about} that it could run on piece after piece: each operator needs "
                "it whole",
                where=line,
                remedy="choose a block with the matrix products on both sides, such as a layer's attention or "
                "feed-forward part, or name another axis",
            )
        return found

    # what is held in pieces

    def keep_as_updated(self, what: Selection) -> None:
        """Keep gradients as their updates read them: a micro-batch's summands are brought there at once.

        Where an update is cut, only its piece of the gradient is kept: the summands are reduce-scattered in
        every backward instead of once per step.

        Args:
            what: Operators, among which the updates of parameters count.

        Raises:
            PlanError: No parameter is updated among them.
        """
        self.kept_as_updated |= {self.graph.gradients[name] for name in self._updated(what)}

    def store_as_updated(self, what: Selection) -> None:
        """Store parameters as their updates read them, and bring them together wherever an operator reads them.

        Where an update is cut, only its piece of the parameter is stored. What is brought together for the
        forward is forgotten, and brought together again for the backward.

        Args:
            what: Operators, among which the updates of parameters count.

        Raises:
            PlanError: No parameter is updated among them.
        """
        self.stored_as_updated |= self._updated(what)

    def offload(self, what: Selection) -> None:
        """Keep the optimizer states of these updates in host memory: each is fetched for its update, and stowed.

        Args:
            what: Operators, among which the updates of parameters count.

        Raises:
            PlanError: Their updates have no states.
        """
        updates = [operator for operator in what if operator.phase is Phase.UPDATE]
        self._keep_on_host(
            {operator.name: self._states_of(operator) for operator in updates},
            "its states are",
            f"{what.description} updates no optimizer state that could be kept in host memory",
            "choose the operators of a model that is trained with an optimizer that has states, such as AdamW()",
        )

    def offload_parameters(self, what: Selection) -> None:
        """Keep the parameters that these operators read in host memory, from which each layer's are fetched for it.

        They travel while the layer before runs, and leave the device behind the layer. An update fetches and stows
        those it changes.

        Args:
            what: Layers, or any operators; for inference or for training.

        Raises:
            PlanError: They read no parameter; or, when the plan is complete, an update changes pieces of one that is
                stored whole.
        """
        read = {
            operator.name: {
                name for name in operator.reads if self.graph.tensors[name].role is Role.PARAMETER
            }
            for operator in what
        }
        found = self._keep_on_host(
            read,
            "{names} waits",
            f"{what.description} reads no parameter that could be kept in host memory",
            "choose operators that read parameters, such as layers or p.everything()",
        )
        self.parameters_on_host |= dict.fromkeys(sorted(found), self.speaker)

    def offload_activations(self, what: Selection) -> None:
        """Let what the backward of these operators reads of the forward wait for it in host memory.

        It leaves the device behind the forward of its layer, and each layer that reads it in the backward fetches it.
        Of what is computed again, that is what the repetition begins with.

        Args:
            what: Layers, or any operators: backward ones count, and those that forward ones gave rise to.

        Raises:
            PlanError: Their backward reads nothing that the forward made.
        """
        calls = {operator.origin for operator in what if operator.phase is Phase.FORWARD} - {-1}
        chosen = {operator.name for operator in what}
        saved = {
            operator.name: {name for name in operator.reads if self._is_made_in_forward(name)}
            for operator in self.graph.operators
            if operator.phase is Phase.BACKWARD and (operator.name in chosen or operator.origin in calls)
        }
        self._keep_on_host(
            saved,
            "what the forward left for it is",
            f"{what.description} leaves nothing for a backward that could wait in host memory",
            "choose layers of a model that is trained, which are not computed again from its inputs alone",
        )

    def _keep_on_host(self, wanted: Mapping[str, set[str]], note: str, fault: str, remedy: str) -> set[str]:
        """Keep what operators want in host memory there, and note it at each of them; returns all of it.

        Args:
            wanted: Operator -> its tensors; none is a `fault`.
            note: What is in host memory, as a user is told; may have `{names}`.
            fault: What a user is told otherwise.
            remedy: And what to do.
        """
        line = self.speaker
        found = set().union(*wanted.values())
        if not found:
            raise PlanError(fault, where=line, remedy=remedy)
        self.on_host |= found
        for operator, names in wanted.items():
            if names:
                told = note.format(names=", ".join(sorted(names)))
                self.notes.setdefault(operator, []).append(f"{told} in host memory by {line}")
        return found

    def _is_made_in_forward(self, name: str) -> bool:
        return name in self.graph.writer and self.graph.writer[name].phase is Phase.FORWARD

    def _states_of(self, update: Operator) -> set[str]:
        return {name for name in update.reads if self.graph.tensors[name].role is Role.STATE}

    def _updated(self, what: Selection) -> set[str]:
        """The parameters that operators update."""
        updates = [operator for operator in what if operator.phase is Phase.UPDATE]
        found = {name for operator in updates for name in operator.reads} & self.graph.gradients.keys()
        if not found:
            raise PlanError(
                f"{what.description} updates no parameter",
                where=self.speaker,
                remedy="choose the operators of a model that is trained, with their updates",
            )
        return found

    # time

    def order(
        self,
        first: ScheduleMaker | Schedule | Task | Selection | Operator,
        then: Task | Selection | Operator | None = None,
    ) -> None:
        """Order in time: a whole schedule (``p.order(schedules.one_f_one_b(8))``), or `first` before `then`.

        Raises:
            PlanError: A task is ordered against an operator, or there is a schedule already.
        """
        line = self.speaker
        if then is None and (callable(first) or isinstance(first, Schedule)):
            if self.schedule is not None:
                raise PlanError(
                    f"a schedule was chosen already, by {self.schedule_said_by}",
                    where=line,
                    remedy="choose one schedule; single tasks are ordered by p.order(first, then)",
                )
            self.schedule = Given(first) if isinstance(first, Schedule) else first
            self.schedule_said_by = line
        elif isinstance(first, Task) and isinstance(then, Task):
            self.task_orders.append(Order(first, then, line))
        elif isinstance(first, Selection | Operator) and isinstance(then, Selection | Operator):
            self.operator_orders += [
                Order(a.name, b.name, line) for a in _operators(first) for b in _operators(then)
            ]
        else:
            raise PlanError(
                "order takes a schedule, two tasks, or two sets of operators",
                where=line,
                remedy="write p.order(ss.schedules.gpipe(4)), or p.order(first, then)",
            )


def _operators(what: Selection | Operator) -> Sequence[Operator]:
    return [what] if isinstance(what, Operator) else what.operators
