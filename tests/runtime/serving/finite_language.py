"""Grammars by brute force: a language is a set of token sequences, and what may follow is read off its members."""

import json

import torch

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar


class FiniteMatcher:
    def __init__(self, words, vocab, end_tokens, taken=()):
        self.words, self.vocab, self.end_tokens, self.taken = words, vocab, end_tokens, taken
        self.has_ended = False

    def more(self):
        """What goes on with a word."""
        place = len(self.taken)
        return {word[place] for word in self.words if word[:place] == self.taken and len(word) > place}

    def next_tokens(self):
        """What may follow, end tokens included."""
        return self.more() | (set(self.end_tokens) if self.taken in self.words else set())

    @property
    def is_over(self):
        return self.has_ended or not self.more()

    @property
    def is_complete(self):
        return self.taken in self.words

    def allowed(self):
        assert not self.is_over, "nobody asks what may follow the end"
        bits = torch.zeros(-(-self.vocab // 8) * 8, dtype=torch.uint8)
        bits[sorted(self.next_tokens())] = 1
        return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)

    def take(self, token):
        assert not self.has_ended
        assert token in self.next_tokens(), f"{token} may not follow {self.taken}"
        if token in self.end_tokens:
            self.has_ended = True
        else:
            self.taken = (*self.taken, token)

    def copy(self):
        return FiniteMatcher(self.words, self.vocab, self.end_tokens, self.taken)


class FiniteGrammars:
    """Grammars named by the text of a Lark grammar.

    Args:
        languages: The token sequences of each.
        vocab: How many tokens there are.
    """

    def __init__(self, languages, vocab):
        self._languages, self._vocab = languages, vocab
        self.begun = 0

    def begin(self, grammar, end_tokens):
        if grammar.text not in self._languages:
            raise RequestError(f"{grammar.text} is no grammar", remedy="another")
        self.begun += 1
        return FiniteMatcher(frozenset(self._languages[grammar.text]), self._vocab, tuple(end_tokens))


class ChoiceGrammars:
    """Grammars of choices, where a token is a byte.

    Args:
        vocab: How many tokens there are.
    """

    def __init__(self, vocab):
        self._vocab = vocab

    def begin(self, grammar, end_tokens):
        assert grammar.kind == "choice"
        words = frozenset(tuple(text.encode()) for text in json.loads(grammar.text))
        return FiniteMatcher(words, self._vocab, tuple(end_tokens))


def named(name):
    return Grammar.lark(name)
