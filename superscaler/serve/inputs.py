"""Inputs of a lowered graph: what one step of serving tells the program, beside the tokens.

All are whole numbers of 64 bits but `VISIBLE`, which is Boolean. Sizes: *tokens* go through the model in one step, of
*sequences*; the longest sequence lies on *pages* pages; *tree* is the most new tokens a token tree has.
"""

from typing import TypeVar

from superscaler.ir.graph import Graph
from superscaler.ir.size import Size, at_sizes, symbol
from superscaler.ir.tensor import Role, Tensor

T = TypeVar("T")

TOKENS = symbol("tokens", 16)
SEQUENCES = symbol("sequences", 4)
PAGES = symbol("pages", 8)
TREE = symbol("tree", 4)
WANTED = symbol("wanted", 6)
_SYMBOLS: dict[str, int] = {str(size): size for size in (TOKENS, SEQUENCES, PAGES, TREE, WANTED)}

POSITIONS = "positions"
"""[tokens] The place of each token in its own sequence."""
SLOTS = "slots"
"""[tokens] Where its keys and values go in the caches."""
STARTS = "starts"
"""[sequences + 1] Sequence s has tokens ``starts[s]`` up to ``starts[s + 1]``."""
LENGTHS = "lengths"
"""[sequences] Keys it has in the caches after this step."""
PAGE_TABLE = "page_table"
"""[sequences, pages] The pages they lie on, in order."""
VISIBLE = "visible"
"""[tokens, tree] Which new tokens of its own sequence a token sees; with one column: causally those before it."""
WANTED_ROWS = "wanted"
"""[wanted] The tokens whose logits are wanted."""

ATTENTION_INPUTS = (SLOTS, STARTS, LENGTHS, PAGE_TABLE, POSITIONS, VISIBLE)
"""What a paged attention reads beside queries, keys, values and caches, in order."""

_SHAPES: dict[str, tuple[int, ...]] = {
    POSITIONS: (TOKENS,), SLOTS: (TOKENS,), STARTS: (SEQUENCES + 1,), LENGTHS: (SEQUENCES,),
    PAGE_TABLE: (SEQUENCES, PAGES), VISIBLE: (TOKENS, TREE), WANTED_ROWS: (WANTED,),
}  # fmt: skip


def declared_inputs() -> dict[str, Tensor]:
    """The inputs beside the tokens, by name."""
    return {
        name: Tensor(name, shape, "bool" if name == VISIBLE else "int64", Role.INPUT)
        for name, shape in _SHAPES.items()
    }


def sizes() -> dict[str, int]:
    """Symbol -> an example of it."""
    return {name: int(size) for name, size in _SYMBOLS.items()}


def for_tokens(value: T, tokens: int) -> T:
    """A shape, tensor, operator or graph with another size, or a number, in place of *tokens*."""
    return at_sizes(value, {**_SYMBOLS, str(TOKENS): tokens})


def token_input(graph: Graph) -> str:
    """The input that holds the tokens: of one sequence [1, tokens] once the graph is lowered."""
    return graph.inputs[0]


def has_tokens(shape: tuple[int, ...]) -> bool:
    """Whether a dim of a shape varies with the number of tokens."""
    return any(isinstance(size, Size) for size in shape)
