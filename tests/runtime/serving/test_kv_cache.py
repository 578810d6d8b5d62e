"""Pages of the KV cache, beside a model that simply keeps what every sequence and every page should hold."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from superscaler.errors import ServingError
from superscaler.runtime.serving.kv_cache import KvCache

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class CacheMachine(RuleBasedStateMachine):
    """Keeps the tokens of each sequence and what was put into each slot; reads sequences back through pages."""

    sequences = Bundle("sequences")

    @initialize(pages=st.integers(1, 12), page_size=st.integers(1, 4), host_pages=st.integers(0, 8))
    def start(self, pages, page_size, host_pages):
        self.cache = KvCache(pages, page_size, host_pages)
        self.tokens, self.salts, self.swapped = {}, {}, set()
        self.findable = set()
        """(Salt, beginning) of all that was ever committed."""
        self.device, self.host = {}, {}
        self.count = 0

    def put(self, slots, tokens):
        self.device.update(zip(slots, tokens, strict=True))

    def page(self, number):
        return [self.device.get(number * self.cache.page_size + each) for each in range(self.cache.page_size)]

    def put_page(self, number, tokens):
        self.put(range(number * self.cache.page_size, (number + 1) * self.cache.page_size), tokens)

    @rule(target=sequences, tokens=TOKENS, salt=st.sampled_from(["", "other"]))
    def open(self, tokens, salt):
        name = f"s{self.count}"
        self.count += 1
        found = self.cache.open(name, tokens, salt)
        size = self.cache.page_size
        beginnings = [
            length
            for length in range(0, len(tokens), size)
            if (salt, tuple(tokens[:length])) in self.findable
        ]
        assert found in (0, *beginnings)
        alive = [self.tokens[each] for each in self.tokens.keys() - self.swapped if self.salts[each] == salt]
        held = [length for length in beginnings if any(each[:length] == tokens[:length] for each in alive)]
        assert found >= max(held, default=0), "what a running sequence has is found"
        self.tokens[name], self.salts[name] = tokens[:found], salt
        return name

    @rule(name=sequences, tokens=TOKENS, unused=st.integers(0, 3))
    def extend(self, name, tokens, unused):
        if name in self.swapped or name not in self.tokens:
            return
        cache, before = self.cache, len(self.tokens[name])
        state = (cache.pages_of(name), cache.free)
        after = before + len(tokens)
        copies = cache.reserve(name, before, after + unused)
        if copies is None:
            assert (cache.pages_of(name), cache.free) == state, "all or nothing"
            assert cache.free <= cache.needed(after + unused) - len(state[0])
            return
        for source, target in copies:
            self.put_page(target, self.page(source))
        others = {page for each in self.tokens if each != name for page in cache.pages_of(each)}
        slots = cache.slots(name, range(before, after + unused))
        assert others.isdisjoint(slot // cache.page_size for slot in slots), "others see what it writes"
        self.put(slots[: len(tokens)], tokens)
        self.tokens[name] = self.tokens[name] + tokens
        cache.truncate(name, after)
        assert cache.held(name) == cache.needed(after)
        cache.commit(name, self.tokens[name], after)
        for length in range(0, after + 1, cache.page_size):
            self.findable.add((self.salts[name], tuple(self.tokens[name][:length])))

    @rule(name=sequences, keys=st.integers(0, 9))
    def truncate(self, name, keys):
        if name in self.tokens and name not in self.swapped:
            self.tokens[name] = self.tokens[name][:keys]
            self.cache.truncate(name, len(self.tokens[name]))

    @rule(target=sequences, name=sequences, keys=st.integers(0, 9))
    def fork(self, name, keys):
        child = f"s{self.count}"
        self.count += 1
        if name in self.tokens and name not in self.swapped:
            free = self.cache.free
            self.tokens[child], self.salts[child] = self.tokens[name][:keys], self.salts[name]
            self.cache.fork(name, child, len(self.tokens[child]))
            assert self.cache.free == free
        return child

    @rule(name=consumes(sequences))
    def close(self, name):
        if name in self.tokens:
            self.cache.close(name)
            self.swapped.discard(name)
            del self.tokens[name]

    @rule(name=sequences)
    def swap(self, name):
        if name not in self.tokens:
            return
        cache, tokens = self.cache, self.tokens[name]
        free, host_free, held = cache.free, cache.host_free, cache.held(name)
        if name in self.swapped:
            pairs = cache.swap_in(name, tokens, len(tokens))
            if pairs is None:
                assert (cache.free, cache.host_free) == (free, host_free)
                assert free < cache.needed(len(tokens))
                return
            self.swapped.remove(name)
            for host_page, page in pairs:
                self.put_page(page, self.host[host_page])
        else:
            pairs = cache.swap_out(name)
            if pairs is None:
                assert (cache.free, cache.host_free) == (free, host_free)
                assert host_free < held
                return
            self.swapped.add(name)
            self.host.update((host_page, self.page(page)) for page, host_page in pairs)

    @rule()
    def settle(self):
        self.cache.settle()
        held = {page for name in self.tokens for page in self.cache.pages_of(name)}
        assert self.cache.free == self.cache.pages - len(held)
        some = sorted(self.tokens)[::2]
        others = {page for name in self.tokens.keys() - set(some) for page in self.cache.pages_of(name)}
        assert self.cache.held_only_by(some) == len(held - others)

    @rule()
    def forget(self):
        if not self.tokens:
            self.cache.settle()
            self.cache.forget()
            self.findable.clear()

    @invariant()
    def every_sequence_reads_its_own_tokens(self):
        self.cache.check_integrity()
        for name in self.tokens.keys() - self.swapped:
            slots = self.cache.slots(name, range(len(self.tokens[name])))
            assert [self.device[slot] for slot in slots] == self.tokens[name]


TestCache = CacheMachine.TestCase
TestCache.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def compute(cache, name, tokens, salt=""):
    """Open a sequence, have all its tokens computed; return how many were found."""
    found = cache.open(name, tokens, salt)
    assert cache.reserve(name, found, len(tokens)) == ()
    cache.commit(name, tokens, len(tokens))
    return found


def test_a_beginning_is_found_page_by_page_but_for_the_last_token():
    cache = KvCache(16, 2)
    assert compute(cache, "first", [1, 2, 3, 4, 5]) == 0
    assert compute(cache, "same", [1, 2, 3, 4, 5]) == 4
    assert compute(cache, "whole pages", [1, 2, 3, 4]) == 2
    assert compute(cache, "other end", [1, 2, 9, 9, 9]) == 2
    assert compute(cache, "same end", [9, 9, 3, 4, 5]) == 0


def test_salts_keep_tenants_apart():
    cache = KvCache(16, 2)
    compute(cache, "mine", [1, 2, 3, 4, 5], salt="me")
    assert compute(cache, "yours", [1, 2, 3, 4, 5], salt="you") == 0
    assert compute(cache, "mine again", [1, 2, 3, 4, 5], salt="me") == 4


def test_equal_hashes_are_not_taken_for_equal_tokens():
    assert hash((-1, 1)) == hash((-2, 1))
    cache = KvCache(16, 2)
    compute(cache, "first", [-1, 1, 5])
    assert compute(cache, "second", [-2, 1, 5]) == 0


def test_what_was_unused_longest_is_lost_first_and_ends_before_beginnings():
    cache = KvCache(5, 1)
    for name, tokens in (("old", [1, 2]), ("new", [3, 4, 5])):
        compute(cache, name, tokens)
        cache.close(name)
    assert cache.free == 5
    compute(cache, "needs one", [9])
    assert cache.open("old", [1, 2, 0]) == 1
    cache.close("old")
    assert cache.open("new", [3, 4, 5, 0]) == 3


def test_a_page_that_is_to_be_copied_is_not_given_away_before_the_step():
    cache = KvCache(3, 2)
    compute(cache, "parent", [1])
    cache.fork("parent", "child", 1)
    assert cache.reserve("child", 1, 2) == ((0, 1),)
    cache.close("parent")
    assert cache.free == 1, "page 0 is free but still to be read"
    cache.settle()
    assert cache.free == 2


def test_a_host_page_that_is_to_be_read_is_not_given_away_before_the_step():
    cache = KvCache(2, 1, host_pages=1)
    compute(cache, "a", [1])
    assert cache.swap_out("a") == ((0, 0),)
    compute(cache, "b", [2, 3])  # takes both pages, so that nothing of a is left on the device
    cache.close("b")
    assert cache.swap_in("a", [1], 1) == ((0, 0),)
    assert cache.host_free == 0
    cache.settle()
    assert cache.host_free == 1


def test_what_the_device_still_has_is_not_copied_back():
    cache = KvCache(4, 1, host_pages=4)
    compute(cache, "a", [1, 2, 3])
    assert len(cache.swap_out("a")) == 3
    compute(cache, "b", [7, 8])
    cache.close("b")
    assert len(cache.swap_in("a", [1, 2, 3], 3)) == 1, "b took the last of its pages"


@pytest.mark.parametrize(("pages", "page_size", "host_pages"), [(0, 16, 0), (4, 0, 0), (4, 16, -1)])
def test_a_cache_without_room_is_refused(pages, page_size, host_pages):
    with pytest.raises(ServingError, match="at least one page of at least one key"):
        KvCache(pages, page_size, host_pages)
