"""A graph printed and parsed is the same graph; what cannot be read is shown."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import gpt
from superscaler.errors import BuildError
from superscaler.ir.deferred import deferred_init, initialisers
from superscaler.ir.graph import Graph, Operator, Phase, Ref
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import Role, Tensor
from superscaler.ir.text import format_graph, parse_graph
from superscaler.ir.trace import trace
from superscaler.ir.verify import verify_graph


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 3)
        nn.init.normal_(self.up.weight, 0.0, 0.02)

    def forward(self, x, y):
        return F.cross_entropy(self.down(torch.relu(self.up(x))), y)


def mlp(optimizer=None):
    with deferred_init():
        model = MLP()
    inputs = {"x": torch.randn(8, 4), "y": torch.randint(3, (8,))}
    return trace(model, inputs, optimizer=optimizer, initialisers=initialisers(model))


def assert_round_trip(graph):
    text = format_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert format_graph(again) == text
    return again


@pytest.mark.parametrize("optimizer", [None, SGD(), SGD(momentum=0.9), AdamW()])
def test_traced_graphs_round_trip(optimizer):
    assert_round_trip(mlp(optimizer))


def test_gpt_with_dropout_round_trips_and_still_computes_the_same():
    model = gpt.build("tiny", layers=1, dropout=0.1)
    inputs = gpt.example_inputs("tiny", batch=2)
    graph = trace(model, inputs, optimizer=SGD())
    again = assert_round_trip(graph)
    verify_graph(again)
    ours, theirs = (interpret(g, {**graph.values, **inputs, "step": 1}) for g in (graph, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_text_of_a_small_graph(golden):
    text = format_graph(mlp(SGD(momentum=0.9)))
    golden("mlp/graph.txt", "\n".join(line.split("  # ")[0] for line in text.splitlines()) + "\n")


NAMES = st.one_of(st.from_regex(r"[a-z_][a-z0-9_./]{0,8}", fullmatch=True), st.text(min_size=1, max_size=6))
NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))


def arguments_over(count):
    leaves = st.one_of(NUMBERS, st.integers(0, count - 1).map(Ref)) if count else NUMBERS
    nested = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
        max_leaves=5,
    )
    return st.lists(nested, max_size=4).map(tuple)


TENSORS = st.tuples(
    st.lists(st.integers(0, 99), max_size=3).map(tuple),
    st.sampled_from(["float32", "int64", "bool"]),
    st.sampled_from(list(Role)),
)


@st.composite
def graphs(draw):
    names = draw(st.lists(NAMES, min_size=4, max_size=10, unique=True))
    tensors = {name: Tensor(name, *draw(TENSORS)) for name in names}
    split = draw(st.integers(1, len(names)))
    fresh, operators = names[split:], []
    for number, name in enumerate(fresh):
        reads = draw(st.permutations(names[:split]).map(lambda all_: tuple(all_[:3])))
        arguments = draw(arguments_over(len(reads)))
        # Every tensor that is read is mentioned, as in any call.
        arguments += tuple(Ref(index) for index in range(len(reads)))
        keywords = draw(
            st.dictionaries(
                st.from_regex(r"[a-z]\w{0,4}", fullmatch=True).filter(str.isascii), NUMBERS, max_size=2
            )
        )
        operators.append(
            Operator(
                draw(st.sampled_from([name, f"call{number}"])),
                draw(st.sampled_from(["linear", "aten.add.Tensor"])),
                reads, (name,), arguments, tuple(keywords.items()), draw(st.sampled_from(list(Phase))),
                draw(st.sampled_from(["", "h.0.attn"])), draw(st.sampled_from(["", "models/a b.py:3"])),
                draw(st.integers(-1, 99)),
            )
        )  # fmt: skip
    inputs = tuple(name for name in names[:split] if tensors[name].role is Role.INPUT)
    stored = {name: ((("fill_", 1.0), ("mul_", -0.5)) if draw(st.booleans()) else ())
              for name in names[:split] if tensors[name].role.is_stored and draw(st.booleans())}  # fmt: skip
    saved_as = {name: tuple(draw(st.lists(NAMES, max_size=2)))
                for name in names[:split] if tensors[name].role.is_stored and draw(st.booleans())}  # fmt: skip
    pairs = st.dictionaries(st.sampled_from(names), st.sampled_from(names), max_size=3)
    return Graph(
        draw(NAMES), tensors, tuple(operators), inputs,
        tuple(draw(st.lists(st.sampled_from(names), max_size=2))),
        draw(pairs), draw(pairs), initialisers=stored, saved_as=saved_as,
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_any_graph_round_trips(graph):
    assert_round_trip(graph)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("F y: float32[2 = linear(x)", r"line 2 .*expected \], found = linear"),
        ("F y: float32[2] = linear(x", r"line 2 .*expected \), found the end of the line"),
        ("F y: float32[2] = linear(x) # nonsense", "line 2 .*expected `# MODULE LINE call NUMBER`"),
        ("Q y: float32[2] = linear(x)", "line 2 .*'Q' is not a valid Role"),
        ("update w = y z", "line 2 .*something is left over"),
        ("parameter w: float32[2] init normal_(x)", "line 2 .*an initialiser takes numbers, not x"),
    ],
)
def test_a_line_that_cannot_be_read_is_shown(line, message):
    with pytest.raises(BuildError, match=message) as caught:
        parse_graph(f"graph g(x: float32[2]) -> y\n{line}\n")
    assert caught.value.where == line


def test_a_text_without_a_graph_is_refused():
    with pytest.raises(BuildError, match="holds no graph"):
        parse_graph("\n")
