"""What llguidance says in bits is read as the grammar means it: against a matcher that reads off the words."""

from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.runtime.serving.grammar.guidance import GuidanceMatcher
from tests.runtime.serving.finite_language import FiniteMatcher


class Inner:
    """Speaks as LLMatcher does, of a finite language: bits by 32-bit words, and the end's bit alone after an error."""

    def __init__(self, words, width, end, taken=(), failed=False):
        self.words, self.width, self.end, self.taken, self.failed = words, width, end, taken, failed

    def compute_bitmask(self):
        end = 1 << self.end
        if self.failed:
            bits = end
        else:
            more = FiniteMatcher(self.words, self.width, (), self.taken).more()
            bits = sum(1 << token for token in more) | (end if self.taken in self.words else 0)
        return bits.to_bytes(-(-self.width // 32) * 4, "little")

    def is_error(self):
        return self.failed

    def consume_token(self, token):
        self.failed = self.failed or token == 0  # this one it trips over
        self.taken = (*self.taken, token)

    def deep_copy(self):
        return Inner(self.words, self.width, self.end, self.taken, self.failed)


@settings(deadline=None)
@given(st.data(), st.integers(9, 70), st.integers(0, 9))
def test_bits_are_read_as_the_language_means_them(data, vocab, padding):
    end = data.draw(st.integers(1, vocab - 1))
    tokens = st.integers(0, vocab - 1).filter(lambda token: token != end)
    words = data.draw(st.sets(st.lists(tokens, max_size=5).map(tuple), min_size=1, max_size=6))
    ends = data.draw(st.sets(st.integers(0, vocab - 1), max_size=2))
    expected = FiniteMatcher(words, vocab, tuple(ends))
    found = GuidanceMatcher(Inner(words, vocab + padding, end), vocab, end, frozenset(ends))
    while True:
        assert found.is_over == expected.is_over
        assert found.is_complete == expected.is_complete
        if found.is_over:
            break
        assert found.allowed().tolist() == expected.allowed().tolist()
        token = data.draw(st.sampled_from(sorted(expected.next_tokens())))
        before = found.allowed().tolist()
        copy = found.copy()
        copy.take(token)
        assert found.allowed().tolist() == before
        found.take(token)
        expected.take(token)
        if token == 0 and 0 not in ends:
            assert found.is_over
            assert not found.is_complete
            break


def test_tokens_that_the_model_has_no_logits_for_are_not_allowed():
    words = {(3,), (12,)}
    matcher = GuidanceMatcher(Inner(words, 16, 1), 10, 1, frozenset())
    assert matcher.allowed().tolist() == [1 << 3, 0]
    assert GuidanceMatcher(Inner({(12,)}, 16, 1), 10, 1, frozenset()).is_over
