"""Graph to text and back, exact inverses; initialisers of stored tensors are part of it, values are not.

    graph mlp(x: float32[8, 4]) -> sum
    parameter up.weight: float32[16, 4] saved as up.weight, head.weight init normal_(0.0, 0.02)
    buffer frequencies: float32[8] unsaved
    F up/linear: float32[8, 16] = linear(x, up.weight, None)  # up models/mlp.py:12 call 3
    F [cross_entropy] cross_entropy.lse: float32[8], cross_entropy.picked: float32[8] = cross_entropy(...)
    gradient up.weight = up/linear_weight_gradient
    update up.weight = up.weight/new

An operator's name stands in brackets where it is not that of the first tensor it writes. One with a rule of its own
has it behind its arguments: ``mylib.scale(x, w) by "a b, b -> a b"``; ``shape 1``: the shape is argument 1.
Sizes that vary are declared first, with what they are in the example and what is required of them, and stand in braces
in arguments:

    size batch = 4
    size seq = 8
    require seq <= 32  # mlp.py:12
    graph mlp(x: float32[batch, seq]) -> sum
    F reshape: float32[batch * seq] = reshape(x, [{batch * seq}])
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from superscaler.errors import BuildError
from superscaler.ir.graph import Graph, Operator, Phase, Ref, iterate_refs, map_refs
from superscaler.ir.size import Requirement, Size, evaluate, symbol
from superscaler.ir.tensor import Role, Tensor

_CONSTANTS = {"None": None, "True": True, "False": False, "inf": float("inf"), "nan": float("nan")}
_BARE = re.compile(r"[A-Za-z_][\w./]*\Z", re.ASCII)
_TOKEN = re.compile(
    r"""\s*(?: (?P<quoted>@?"(?:[^"\\]|\\.)*")
             | (?P<number>-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|nan)(?![\w./]))
             | (?P<word>[A-Za-z_][\w./]*)
             | (?P<size>\{[^}]*\})
             | (?P<sign>->|[()\[\],:=#]) )""",
    re.VERBOSE | re.ASCII,
)

_SIZES = re.compile(r"[\w\s+*/%(),-]*", re.ASCII)


def format_graph(graph: Graph) -> str:
    """The text of a graph, a line per operator; `parse_graph` reads it back."""
    inputs = ", ".join(_format_tensor(graph.tensors[name]) for name in graph.inputs)
    lines = [f"size {name} = {hint}" for name, hint in graph.sizes.items()]
    lines += [f"require {one.condition}  # {one.reason}" for one in graph.requirements]
    lines.append(f"graph {_name(graph.name)}({inputs}) -> {', '.join(map(_name, graph.outputs))}".rstrip())
    lines += [f"autocast {graph.autocast}"] if graph.autocast else []
    lines += ["float8"] if graph.float8 else []
    for tensor in graph.tensors.values():
        if tensor.name in graph.writer or tensor.name in graph.inputs:
            continue
        lines.append(_format_declaration(graph, tensor))
    lines += [_format_operator(graph, operator) for operator in graph.operators]
    lines += [f"gradient {_name(key)} = {_name(value)}" for key, value in graph.gradients.items()]
    lines += [f"update {_name(key)} = {_name(value)}" for key, value in graph.updates.items()]
    return "\n".join(lines) + "\n"


def parse_graph(text: str) -> Graph:
    """The graph that `format_graph` printed as `text`; its stored tensors have no values.

    Raises:
        BuildError: A line is not as `format_graph` would print it.
    """
    builder = _Builder()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            builder.read(_Reader(line))
        except (_Unreadable, ValueError, KeyError) as error:
            raise BuildError(
                f"line {number} of the graph cannot be read: {error}",
                where=line.strip(),
                remedy="print it anew with format_graph (`superscaler show`)",
            ) from None
    if builder.name is None:
        raise BuildError(
            "the text holds no graph", remedy="its first line is `graph NAME(INPUTS) -> OUTPUTS`"
        )
    return Graph(
        builder.name, builder.tensors, tuple(builder.operators), builder.inputs, builder.outputs,
        builder.updates, builder.gradients, initialisers=builder.initialisers, saved_as=builder.saved_as,
        autocast=builder.autocast, float8=builder.float8,
        sizes={name: int(size) for name, size in builder.sizes.items()},
        requirements=tuple(builder.requirements),
    )  # fmt: skip


def _name(name: str) -> str:
    """A tensor's or graph's name: bare where nothing else could be meant."""
    return name if _BARE.match(name) and name not in _CONSTANTS else f"@{json.dumps(name)}"


def _format_tensor(tensor: Tensor) -> str:
    return f"{_name(tensor.name)}: {tensor.dtype}{list(tensor.shape)}"


def _format_declaration(graph: Graph, tensor: Tensor) -> str:
    line = f"{tensor.role} {_format_tensor(tensor)}"
    if tensor.name in graph.saved_as:
        names = graph.saved_as[tensor.name]
        line += f" saved as {', '.join(map(_name, names))}" if names else " unsaved"
    steps = graph.initialisers.get(tensor.name)
    return line if steps is None else f"{line} init {', '.join(map(_format_step, steps))}".rstrip()


def _format_operator(graph: Graph, operator: Operator) -> str:
    def value(item: Any) -> str:
        return _format_value(item, lambda ref: _name(operator.reads[ref.index]))

    writes = []
    for name in operator.writes:
        role = graph.tensors[name].role
        tensor = _format_tensor(graph.tensors[name])
        writes.append(tensor if role is Role.ACTIVATION else f"{role} {tensor}")
    title = "" if operator.writes and operator.name == operator.writes[0] else f"[{_name(operator.name)}] "
    arguments = [value(item) for item in operator.arguments]
    arguments += [f"{key}={value(item)}" for key, item in operator.keywords]
    line = f"{operator.phase} {title}{', '.join(writes)} = {operator.kind}({', '.join(arguments)})"
    if not _in_order_of_mention(operator):
        line += f" reading {', '.join(map(_name, operator.reads))}"
    if operator.rule:
        line += f" by {json.dumps(operator.rule)}"
    if operator.shape_argument is not None:
        line += f" shape {operator.shape_argument}"
    if (operator.module, operator.source, operator.origin) == ("", "", -1):
        return line
    return f"{line}  # {operator.module or '-'} {operator.source or '-'} call {operator.origin}"


def _in_order_of_mention(operator: Operator) -> bool:
    refs = iterate_refs((*operator.arguments, *(value for _, value in operator.keywords)))
    return [ref.index for ref in refs] == list(range(len(operator.reads)))


def _format_step(step: Sequence[Any]) -> str:
    method, *arguments = step
    return f"{method}({', '.join(_format_value(item, _no_tensor) for item in arguments)})"


def _no_tensor(ref: Ref) -> str:
    raise AssertionError(f"an initialiser takes numbers, not {ref}")


def _format_value(value: Any, name_of: Callable[[Ref], str]) -> str:
    if isinstance(value, Ref):
        return name_of(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Size):
        return f"{{{value}}}"
    if isinstance(value, (list, tuple)):
        items = ", ".join(_format_value(item, name_of) for item in value)
        if isinstance(value, list):
            return f"[{items}]"
        return f"({items},)" if len(value) == 1 else f"({items})"
    assert value is None or isinstance(value, (bool, int, float)), (
        f"an argument without a text form: {value!r}"
    )
    return repr(value)


class _Unreadable(Exception):
    """A line says something else than expected."""


class _Reader:
    """One line, token by token."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.position = 0

    def _match(self) -> re.Match[str] | None:
        return _TOKEN.match(self.line, self.position)

    def peek(self) -> str:
        """The next token, without taking it; empty at the end."""
        match = self._match()
        return match.group().strip() if match else ""

    def take(self, wanted: str = "") -> str:
        """The next token, which is `wanted` where that is given."""
        match = self._match()
        token = match.group().strip() if match else ""
        if match is None or (wanted and token != wanted):
            found = self.line[self.position :].strip() or "the end of the line"
            raise _Unreadable(f"expected {wanted or 'more'}, found {found}")
        self.position = match.end()
        return token

    def accept(self, wanted: str) -> bool:
        """Take the next token if it is `wanted`."""
        if self.peek() != wanted:
            return False
        self.take()
        return True

    def rest(self) -> str:
        """Everything up to the end of the line."""
        text, self.position = self.line[self.position :], len(self.line)
        return text.strip()

    def name(self) -> str:
        """A name, bare or quoted."""
        token = self.take()
        if token.startswith("@"):
            return json.loads(token[1:])
        if not _BARE.match(token):
            raise _Unreadable(f"expected a name, found {token}")
        return token

    def listed(self, item: Callable[[], Any], end: str) -> list[Any]:
        """Items between commas up to and with the token `end`; without it, up to the last comma."""
        items: list[Any] = []
        while self.peek() not in (end, ""):
            items.append(item())
            if not self.accept(","):
                break
        if end:
            self.take(end)
        return items

    def shape(self, sizes: Mapping[str, Size]) -> tuple[int, ...]:
        """Sizes between brackets."""
        self.take("[")
        match = _SIZES.match(self.line, self.position)
        assert match is not None
        self.position = match.end()
        self.take("]")
        return evaluate(f"({match.group()},)", sizes) if match.group().strip() else ()

    def value(self, refer: Callable[[str], Ref], sizes: Mapping[str, Size]) -> Any:
        """An argument; `refer` makes a Ref of a tensor's name."""
        token = self.peek()
        if token.startswith("{"):
            return evaluate(self.take()[1:-1], sizes)
        if token in _CONSTANTS:
            return _CONSTANTS[self.take()]
        if token in ("(", "["):
            self.take()
            items = self.listed(lambda: self.value(refer, sizes), ")" if token == "(" else "]")
            return tuple(items) if token == "(" else items
        if token.startswith('"'):
            return json.loads(self.take())
        if token.startswith("@") or _BARE.match(token):
            return refer(self.name())
        self.take()
        return int(token) if re.fullmatch(r"-?\d+", token) else float(token)


class _Builder:
    """The graph read so far."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.inputs: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self.updates: dict[str, str] = {}
        self.gradients: dict[str, str] = {}
        self.initialisers: dict[str, tuple[tuple[Any, ...], ...]] = {}
        self.saved_as: dict[str, tuple[str, ...]] = {}
        self.autocast = ""
        self.float8 = False
        self.sizes: dict[str, Size] = {}
        self.requirements: list[Requirement] = []

    def read(self, reader: _Reader) -> None:
        """Add what one line says."""
        word = reader.take()
        if word == "graph":
            self.name = reader.name()
            reader.take("(")
            self.inputs = tuple(reader.listed(lambda: self._tensor(reader, Role.INPUT), ")"))
            reader.take("->")
            self.outputs = tuple(reader.listed(reader.name, ""))
        elif word == "autocast":
            self.autocast = reader.take()
        elif word == "float8":
            self.float8 = True
        elif word == "size":
            name = reader.name()
            reader.take("=")
            self.sizes[name] = symbol(name, int(reader.take()))
        elif word == "require":
            condition, _, reason = reader.rest().partition("  # ")
            self.requirements.append(Requirement(condition, reason))
        elif word in set(Phase):
            self._operator(reader, Phase(word))
        else:
            self._declaration(reader, word)
        if reader.rest():
            raise _Unreadable("something is left over at its end")

    def _declaration(self, reader: _Reader, word: str) -> None:
        name = reader.name()
        if word in ("update", "gradient") and reader.accept("="):
            table = self.updates if word == "update" else self.gradients
            table[name] = reader.name()
            return
        self._tensor(reader, Role(word), name)
        if reader.accept("unsaved"):
            self.saved_as[name] = ()
        elif reader.accept("saved"):
            reader.take("as")
            self.saved_as[name] = tuple(reader.listed(reader.name, ""))
        if reader.accept("init"):
            self.initialisers[name] = tuple(reader.listed(lambda: _read_step(reader), ""))

    def _tensor(self, reader: _Reader, role: Role, name: str = "") -> str:
        name = name or reader.name()
        reader.take(":")
        dtype = reader.take()
        self.tensors[name] = Tensor(name, reader.shape(self.sizes), dtype, role)
        return name

    def _written(self, reader: _Reader) -> str:
        after = reader.line[reader.position :]
        given = re.match(rf"\s*({'|'.join(Role)}) (?=[@A-Za-z_])", after)
        return self._tensor(reader, Role(reader.take()) if given else Role.ACTIVATION)

    def _operator(self, reader: _Reader, phase: Phase) -> None:
        name = ""
        if reader.accept("["):
            name = reader.name()
            reader.take("]")
        writes = tuple(reader.listed(lambda: self._written(reader), "="))
        kind, reads = reader.take(), []

        def refer(tensor: str) -> Ref:
            reads.append(tensor)
            return Ref(len(reads) - 1)

        arguments, keywords = _read_arguments(reader, refer, self.sizes)
        if reader.accept("reading"):
            mentioned, reads = reads, reader.listed(reader.name, "")
            arguments = map_refs(arguments, lambda ref: Ref(reads.index(mentioned[ref.index])))
            keywords = map_refs(keywords, lambda ref: Ref(reads.index(mentioned[ref.index])))
        rule = json.loads(reader.take()) if reader.accept("by") else ""
        shape_argument = int(reader.take()) if reader.accept("shape") else None
        note = re.fullmatch(r"#\s*(\S+) (.*) call (-?\d+)", reader.rest() or "# - - call -1")
        if not note:
            raise _Unreadable("expected `# MODULE LINE call NUMBER` at its end")
        module, source, origin = ("" if part == "-" else part for part in note.groups())
        self.operators.append(
            Operator(
                name or writes[0],
                kind,
                tuple(reads),
                writes,
                arguments,
                keywords,
                phase,
                module,
                source,
                int(origin),
                rule,
                shape_argument,
            )
        )


def _read_arguments(
    reader: _Reader, refer: Callable[[str], Ref], sizes: Mapping[str, Size]
) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    arguments: list[Any] = []
    keywords: list[tuple[str, Any]] = []

    def argument() -> None:
        if re.match(r"\s*[A-Za-z_]\w*=", reader.line[reader.position :]):
            key = reader.take()
            reader.take("=")
            keywords.append((key, reader.value(refer, sizes)))
        else:
            arguments.append(reader.value(refer, sizes))

    reader.take("(")
    reader.listed(argument, ")")
    return tuple(arguments), tuple(keywords)


def _read_step(reader: _Reader) -> tuple[Any, ...]:
    def no_tensor(name: str) -> Ref:
        raise _Unreadable(f"an initialiser takes numbers, not {name}")

    return (reader.take(), *_read_arguments(reader, no_tensor, {})[0])
