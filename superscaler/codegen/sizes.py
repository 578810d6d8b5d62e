"""Sizes and offsets that depend on the device, as variables at the top of a generated function."""

from collections.abc import Callable, Iterable, Mapping

from superscaler.codegen.names import identifier
from superscaler.codegen.program import Offset, Program
from superscaler.ir.axes import Axes
from superscaler.ir.layout import Extent
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.size import Size, as_python, symbols_in

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

    def __init__(
        self,
        mesh: Mesh,
        cuts: Mapping[Cut, str],
        symbols: Mapping[str, str] | None = None,
        named: Callable[[Mesh, str], tuple[str, str]] | None = None,
    ) -> None:
        self.mesh, self.cuts, self.symbols = mesh, cuts, symbols or {}
        self.named = named or (lambda mesh, axis: (axis, f'rt.axis("{axis}")'))
        self.used_axes: dict[str, str] = {}
        self.used_symbols: set[str] = set()
        self._variables: dict[tuple, tuple[str, str]] = {}

    @property
    def uses_micro_batch(self) -> bool:
        """Whether something depends on the number of the micro-batch."""
        return TIME in self.used_axes

    def axis(self, name: str) -> str:
        """The variable of a mesh axis."""
        variable, lookup = (TIME, "") if name == TIME else self.named(self.mesh, name)
        self.used_axes[variable] = lookup
        return variable

    def coordinate(self, name: str) -> str:
        """Where this device, or the running micro-batch, lies along an axis."""
        return self.axis(name) if name == TIME else f"{self.axis(name)}.coordinate"

    @property
    def needs_runtime(self) -> bool:
        """Whether something depends on the device, or on sizes that vary."""
        return bool(self.used_axes.keys() - {TIME} or self.used_symbols)

    def lines(self) -> list[str]:
        """The variables, to stand at the top of the function."""
        order = {name: number for number, name in enumerate(self.mesh.names)}
        wanted = sorted(self.used_axes.keys() - {TIME}, key=lambda name: (order.get(name, len(order)), name))
        lines = (
            [f"{', '.join(wanted)} = {', '.join(map(self.used_axes.__getitem__, wanted))}"] if wanted else []
        )
        symbols = [name for name in self.symbols if name in self.used_symbols]
        if symbols:
            variables = ", ".join(self.symbols[name] for name in symbols)
            lines.append(f'{variables} = {", ".join(f"""rt.size("{name}")""" for name in symbols)}')
        return lines + [f"{name} = {text}" for name, text in self._variables.values()]

    def number(self, size: int) -> str:
        """The text of a number, which may vary from run to run."""
        if not isinstance(size, Size):
            return str(size)
        self.used_symbols.update(symbols_in(str(size)))
        return as_python(size, self.symbols.__getitem__)

    def factor(self, size: int) -> str:
        """The text of a number beside an operator."""
        text = self.number(size)
        return f"({text})" if " " in text else text

    def extent(self, extent: Extent) -> str:
        """The text of a size."""
        factors = [self._variable("size", cut, 1) for cut in extent.tables]
        if not factors:
            return self.number(extent.constant)
        if extent.constant != 1:
            factors.insert(0, self.factor(extent.constant))
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
        key = (what, cut, scale, *(self.axis(name) for name in cut[0]))
        if key not in self._variables:
            base = self.cuts.get(cut, "piece")
            base = f"{base}_start" if what == "start" else f"{base}_size"
            taken = {name for name, _ in self._variables.values()} | set(self.symbols.values())
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
            step = self.factor(scale * pieces[0])
            return f"({index}) * {step}" if len(axes) > 1 else f"{index} * {step}"
        starts = [scale * sum(pieces[:i]) for i in range(len(pieces))]
        return f"({', '.join(map(self.number, starts if what == 'start' else pieces))})[{index}]"
