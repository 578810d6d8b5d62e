"""KV cache: which page of the caches of keys and values belongs to whom. The tensors are elsewhere."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from superscaler.errors import ServingError
from superscaler.runtime.serving.batch import Pairs
from superscaler.runtime.serving.prefix_tree import PrefixNode, PrefixTree


@dataclass(slots=True)
class _Table:
    """The pages of one sequence."""

    salt: str
    last: PrefixNode
    """The beginning that ends with the last of the pages that others may find."""
    committed: int = 0
    """How many of its pages, from the first, others may find."""
    pages: list[int] = field(default_factory=list)
    """On the device, in order; none while it is swapped out."""
    host_pages: list[int] = field(default_factory=list)


class KvCache:
    """Pages on the device and the host: free, in use by one or more sequences, or kept for whoever comes next.

    A page that nobody uses keeps its keys and values until it is needed, the longest unused first; a sequence
    that begins with the same tokens takes it as its own. Full pages are shared and never written again; a page
    in which a sequence goes on is copied first if others use it.

    What a step copies from, and the caches change only when it runs: pages that it reads stay as they are until
    `settle` is called, after the step's batch is made.

    Args:
        pages: On the device.
        page_size: Keys in a page.
        host_pages: Where sequences are swapped out to.
    """

    def __init__(self, pages: int, page_size: int, host_pages: int = 0) -> None:
        if pages < 1 or page_size < 1 or host_pages < 0:
            raise ServingError(
                f"a cache of {pages} pages of {page_size} keys and {host_pages} pages on the host",
                remedy="at least one page of at least one key",
            )
        self.pages, self.page_size, self.host_pages = pages, page_size, host_pages
        self._tables: dict[str, _Table] = {}
        self._tree = PrefixTree()
        self._users = [0] * pages
        self._nodes: list[PrefixNode | None] = [None] * pages
        self._empty = list(range(pages - 1, -1, -1))
        """Pages with nothing in them, the next to be used last."""
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Pages that nobody uses but somebody may find, the longest unused first."""
        self._read: set[int] = set()
        """Pages that the coming step copies from."""
        self._late: list[int] = []
        """Those of them that nobody uses any more."""
        self._host_free = list(range(host_pages - 1, -1, -1))
        self._host_late: list[int] = []
        """Host pages that the coming step copies to the device."""

    @property
    def free(self) -> int:
        """Pages on the device that could be given to a sequence now."""
        return len(self._empty) + len(self._kept)

    @property
    def host_free(self) -> int:
        """Pages on the host that could be given to a sequence now."""
        return len(self._host_free)

    def needed(self, keys: int) -> int:
        """Pages for so many keys."""
        return -(-keys // self.page_size)

    def pages_of(self, sequence: str) -> tuple[int, ...]:
        """The sequence's pages on the device, in order."""
        return tuple(self._tables[sequence].pages)

    def held(self, sequence: str) -> int:
        """How many pages the sequence has on the device."""
        return len(self._tables[sequence].pages)

    def slots(self, sequence: str, keys: Iterable[int]) -> tuple[int, ...]:
        """Where keys with these numbers lie: page * page_size + offset."""
        pages, size = self._tables[sequence].pages, self.page_size
        return tuple(pages[key // size] * size + key % size for key in keys)

    def held_only_by(self, sequences: Iterable[str]) -> int:
        """How many pages would be free if these sequences had none."""
        held = Counter(page for sequence in sequences for page in self._tables[sequence].pages)
        return sum(self._users[page] == count and page not in self._read for page, count in held.items())

    # -- the life of a sequence

    def open(self, sequence: str, tokens: Sequence[int], salt: str = "") -> int:
        """Begin a sequence with the pages in the cache that hold its first tokens; return how many keys that is.

        The last token is left to be computed: what comes after it is not in the cache.
        """
        assert sequence not in self._tables
        table = self._tables[sequence] = _Table(salt, self._tree.hold(self._tree.root(salt)))
        self._share_prefix(table, tokens, (len(tokens) - 1) // self.page_size)
        return len(table.pages) * self.page_size

    def reserve(self, sequence: str, start: int, stop: int) -> Pairs | None:
        """Make keys `start` to `stop` the sequence's own to write; None, and nothing changed, if pages lack.

        Returns:
            Pages to copy before they are written, (from, to).
        """
        table = self._tables[sequence]
        place, written = start // self.page_size, self._copied_first(table, start)
        if self.lacks(sequence, start, stop) > self.free:
            return None
        table.pages += [self._take() for _ in range(self.needed(stop) - len(table.pages))]
        if written is None:
            return ()
        own = table.pages[place] = self._take()
        self._read.add(written)
        self._drop(written)
        return ((written, own),)

    def lacks(self, sequence: str, start: int, stop: int) -> int:
        """How many pages `reserve` takes for these keys."""
        table = self._tables[sequence]
        copied = self._copied_first(table, start) is not None
        return max(0, self.needed(stop) - len(table.pages)) + copied

    def commit(self, sequence: str, tokens: Sequence[int], keys: int) -> None:
        """Let others find the full pages among the first `keys` keys, which those of `tokens` are.

        Where somebody else has computed the same meanwhile, the sequence takes that page and gives back its own.
        """
        table = self._tables[sequence]
        for number in range(table.committed, keys // self.page_size):
            node = self._step_down(table, tokens, number)
            page = table.pages[number]
            if node.page is None:
                node.page, self._nodes[page] = page, node
            elif node.page != page:
                table.pages[number] = self._share(node.page)
                self._drop(page)

    def truncate(self, sequence: str, keys: int) -> None:
        """Give back the pages after the first `keys` keys."""
        table = self._tables[sequence]
        while len(table.pages) > self.needed(keys):
            self._drop(table.pages.pop())
        while table.committed > keys // self.page_size:
            parent = table.last.parent
            assert parent is not None
            self._set_last(table, parent, table.committed - 1)

    def fork(self, sequence: str, child: str, keys: int) -> None:
        """Begin a sequence that shares the first `keys` keys of another; it takes no page."""
        assert child not in self._tables
        table = self._tables[sequence]
        pages = table.pages[: self.needed(keys)]
        for page in pages:
            self._users[page] += 1
        self._tables[child] = _Table(table.salt, self._tree.hold(table.last), table.committed, pages)
        self.truncate(child, keys)

    def close(self, sequence: str) -> None:
        """End a sequence; what it has computed stays to be found while there is room."""
        table = self._tables.pop(sequence)
        self._drop_all(table)
        self._host_free += table.host_pages[::-1]
        self._tree.let_go(table.last)

    # -- the host

    def swap_out(self, sequence: str) -> Pairs | None:
        """Move a sequence's pages to the host; None, and nothing changed, if pages lack there.

        Returns:
            What is to be copied, (device page, host page).
        """
        table = self._tables[sequence]
        assert not table.host_pages
        if len(table.pages) > len(self._host_free):
            return None
        pairs = tuple((page, self._host_free.pop()) for page in table.pages)
        table.host_pages = [page for _, page in pairs]
        self._drop_all(table)
        self._set_last(table, self._tree.root(table.salt), 0)
        return pairs

    def swap_in(self, sequence: str, tokens: Sequence[int], keys: int) -> Pairs | None:
        """Move a sequence's pages back; None, and nothing changed, if pages lack on the device.

        Those that the device still has are taken as they are; `tokens` and `keys` say what they hold.

        Returns:
            What is to be copied, (host page, device page).
        """
        table = self._tables[sequence]
        assert not table.pages
        count = len(table.host_pages)
        self._share_prefix(table, tokens, keys // self.page_size)
        found = len(table.pages)
        if count - found > self.free:
            self._drop_all(table)
            self._set_last(table, self._tree.root(table.salt), 0)
            return None
        table.pages += [self._take() for _ in range(count - found)]
        pairs = tuple(zip(table.host_pages[found:], table.pages[found:], strict=True))
        self._host_late += [page for page, _ in pairs]
        self._host_free += table.host_pages[:found]
        table.host_pages = []
        return pairs

    # -- the whole cache

    def settle(self) -> None:
        """The batch that copies what was asked for is made: what it reads may be overwritten after it."""
        self._read.clear()
        self._free(self._late)
        self._host_free += self._host_late
        self._late, self._host_late = [], []

    def forget(self) -> None:
        """Let nobody find what was computed until now."""
        assert not self._tables, "sequences go on to use it"
        for page in self._kept:
            self._forget_page(page)
        self._empty += self._kept
        self._kept.clear()

    def check_integrity(self) -> None:
        """Assert that every page is where exactly one of the lists says, and used as often as tables say."""
        users = Counter(page for table in self._tables.values() for page in table.pages)
        assert self._users == [users[page] for page in range(self.pages)]
        unused = [*self._empty, *self._kept, *self._late]
        assert sorted([*unused, *users]) == list(range(self.pages)), "a page is lost, or in two places"
        assert self._read.issuperset(self._late)
        assert all(self._nodes[page] is not None for page in self._kept)
        assert all(self._nodes[page] is None for page in self._empty)
        host = [page for table in self._tables.values() for page in table.host_pages]
        assert sorted([*host, *self._host_free, *self._host_late]) == list(range(self.host_pages))
        nodes = list(self._tree)
        assert all(self._nodes[node.page] is node for node in nodes if node.page is not None)
        assert sum(node.page is not None for node in nodes) == sum(node is not None for node in self._nodes)
        assert all(node.holders or node.children or node.page is not None for node in nodes)
        holders = Counter(id(table.last) for table in self._tables.values())
        assert all(node.holders == holders[id(node)] for node in nodes)
        for table in self._tables.values():
            assert not (table.pages and table.host_pages)
            assert len(set(table.pages)) == len(table.pages), "a page is twice in one sequence"
            assert _pages_to(table.last) == table.pages[: table.committed], "others do not find what it has"

    # -- pages

    def _copied_first(self, table: _Table, start: int) -> int | None:
        """The page that a sequence goes on in with key `start`, where others use or may find it."""
        place = start // self.page_size
        assert place <= len(table.pages), "keys before these have no page"
        if not start % self.page_size or place == len(table.pages):
            return None
        written = table.pages[place]
        return written if self._users[written] > 1 or self._nodes[written] is not None else None

    def _share_prefix(self, table: _Table, tokens: Sequence[int], most: int) -> None:
        """Take the pages in the cache that hold the first tokens, at most so many."""
        for number in range(most):
            name = tuple(tokens[number * self.page_size : (number + 1) * self.page_size])
            node = table.last.children.get(name)
            if node is None or node.page is None:
                return
            table.pages.append(self._share(node.page))
            self._set_last(table, node, number + 1)

    def _step_down(self, table: _Table, tokens: Sequence[int], number: int) -> PrefixNode:
        name = tuple(tokens[number * self.page_size : (number + 1) * self.page_size])
        assert len(name) == self.page_size, "a page that is not full"
        node = self._tree.child(table.last, name)
        self._set_last(table, node, number + 1)
        return node

    def _set_last(self, table: _Table, node: PrefixNode, committed: int) -> None:
        before, table.last, table.committed = table.last, self._tree.hold(node), committed
        self._tree.let_go(before)

    def _share(self, page: int) -> int:
        """The page, for one user more."""
        if page in self._late:
            self._late.remove(page)
        self._kept.pop(page, None)
        self._users[page] += 1
        return page

    def _take(self) -> int:
        """A page to write, for one user."""
        if self._empty:
            page = self._empty.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            self._forget_page(page)
        self._users[page] = 1
        return page

    def _drop(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        if page in self._read:
            self._late.append(page)
        else:
            self._free([page])

    def _drop_all(self, table: _Table) -> None:
        """The last page first: without those before it, it would be of no use to anybody."""
        while table.pages:
            self._drop(table.pages.pop())

    def _free(self, pages: Iterable[int]) -> None:
        for page in pages:
            if self._nodes[page] is None:
                self._empty.append(page)
            else:
                self._kept[page] = None

    def _forget_page(self, page: int) -> None:
        node = self._nodes[page]
        assert node is not None
        node.page, self._nodes[page] = None, None
        self._tree.prune(node)


def _pages_to(node: PrefixNode) -> list[int | None]:
    """The pages of a beginning, in order; the root of a salt and the top above it have none."""
    pages: list[int | None] = []
    while node.parent is not None and node.parent.parent is not None:
        pages.append(node.page)
        node = node.parent
    return pages[::-1]
