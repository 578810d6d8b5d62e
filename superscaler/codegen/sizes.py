"""Sizes and offsets that depend on the device, as variables at the top of a generated function."""

from collections.abc import Iterable, Mapping

from superscaler.codegen.names import identifier
from superscaler.codegen.program import Offset, Program
from superscaler.ir.axes import Axes
from superscaler.ir.layout import Extent
from superscaler.ir.mesh import TIME, Mesh

Cut = tuple[tuple[str, ...], tuple[int, ...]]
"""The mesh axes that cut a dim, and the sizes of the pieces."""


def name_cuts(program: Program, axes: Axes) -> dict[Cut, str]:
    """A name for every cut of a dim in a program, after the axis of the model that is cut."""
    names: dict[Cut, str] = {}
    for value in program.values.values():
        fine = axes.fine(value.tensor)
        for dim, cut in enumerate(value.layout.cuts):
            if cut and len(fine) == len(value.layout.cuts):
                key = (cut, value.layout.piece_sizes(dim))
                names.setdefault(key, identifier(fine[dim].name.rpartition(".")[2]))
    return names


class Sizes:
    """Writes sizes and offsets within one function, and remembers the variables it needs."""

    def __init__(self, mesh: Mesh, cuts: Mapping[Cut, str]) -> None:
        self.mesh, self.cuts = mesh, cuts
        self.used_axes: set[str] = set()
        self._variables: dict[tuple, tuple[str, str]] = {}

    @property
    def uses_micro_batch(self) -> bool:
        """Whether something depends on the number of the micro-batch."""
        return TIME in self.used_axes

    def axis(self, name: str) -> str:
        """The variable of a mesh axis."""
        self.used_axes.add(name)
        return name

    def coordinate(self, name: str) -> str:
        """Where this device, or the running micro-batch, lies along an axis."""
        return self.axis(name) if name == TIME else f"{self.axis(name)}.coordinate"

    def lines(self, loaded: Iterable[str] = ()) -> list[str]:
        """The variables, to stand at the top of the function."""
        wanted = [name for name in self.mesh.names if name in self.used_axes and name not in loaded]
        lines = (
            [f'{", ".join(wanted)} = {", ".join(f"""rt.axis("{name}")""" for name in wanted)}']
            if wanted
            else []
        )
        return lines + [f"{name} = {text}" for name, text in self._variables.values()]

    def extent(self, extent: Extent) -> str:
        """The text of a size."""
        factors = [self._variable("size", cut, 1) for cut in extent.tables]
        if extent.constant != 1 or not factors:
            factors.insert(0, str(extent.constant))
        return " * ".join(factors)

    def shape(self, shape: Iterable[Extent]) -> str:
        """Sizes, separated by commas."""
        return ", ".join(self.extent(extent) for extent in shape)

    def shown(self, shape: Iterable[Extent]) -> str:
        """A shape as a comment shows it: largest sizes where devices differ."""
        sizes = []
        for extent in shape:
            size = extent.constant
            for _, pieces in extent.tables:
                size *= max(pieces)
            sizes.append(f"<={size}" if extent.tables else str(size))
        return f"[{', '.join(sizes)}]"

    def offset(self, offset: Offset) -> str:
        """The text of an offset."""
        if not offset.axes:
            return "0"
        return self._variable("start", (offset.axes, offset.pieces), offset.scale)

    def _variable(self, what: str, cut: Cut, scale: int) -> str:
        key = (what, cut, scale)
        if key not in self._variables:
            base = self.cuts.get(cut, "piece")
            base = f"{base}_start" if what == "start" else f"{base}_size"
            taken = {name for name, _ in self._variables.values()}
            name = next(
                n for n in (base, *(f"{base}_{i}" for i in range(2, len(taken) + 3))) if n not in taken
            )
            self._variables[key] = name, self._text(what, cut, scale)
        return self._variables[key][0]

    def _text(self, what: str, cut: Cut, scale: int) -> str:
        axes, pieces = cut
        index = self.coordinate(axes[0])
        for name in axes[1:]:
            index = f"{index} * {self.mesh.size(name)} + {self.coordinate(name)}"
            index = f"({index})" if name != axes[-1] else index
        if what == "start" and len(set(pieces)) == 1:
            return f"({index}) * {scale * pieces[0]}" if len(axes) > 1 else f"{index} * {scale * pieces[0]}"
        starts = [scale * sum(pieces[:i]) for i in range(len(pieces))]
        return f"({', '.join(map(str, starts if what == 'start' else pieces))})[{index}]"
