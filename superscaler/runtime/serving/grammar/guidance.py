"""Grammars by llguidance, which reads the bytes of tokens from a tokenizer's file."""

import json
from collections import OrderedDict
from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar

_MOST_COMPILED = 128
"""Grammars that are kept: compiling a large one takes a tenth of a second and more."""
_NAMES = {"json": "JSON schema", "regex": "regular expression", "choice": "choice", "lark": "grammar"}


@lru_cache(maxsize=_MOST_COMPILED)
def check_grammar(grammar: Grammar) -> None:
    """See whether a grammar makes sense, whatever the tokenizer.

    Raises:
        RequestError: It does not, or llguidance is not there; the message has llguidance's own words.
    """
    is_wrong, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(_source(grammar))
    if is_wrong:
        raise _refusal(grammar, "; ".join(messages))


class GuidanceGrammars:
    """Matches the tokens of one tokenizer.

    Args:
        folder: With the tokenizer's ``tokenizer.json``, which is read when the first grammar comes.
        vocab: How many tokens the model has.
        end_tokens: Those with which it ends a text.
    """

    def __init__(self, folder: Path | str, vocab: int, end_tokens: frozenset[int]) -> None:
        self._file, self._vocab, self._end_tokens = Path(folder) / "tokenizer.json", vocab, end_tokens
        self._tokenizer: Any = None
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    def begin(self, grammar: Grammar, end_tokens: Iterable[int]) -> "GuidanceMatcher":
        """The place before the first token.

        Raises:
            RequestError: The grammar makes no sense, no token can begin any of its texts, or the tokenizer cannot
                be used.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load()
        if grammar not in self._compiled:
            self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > _MOST_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        first = self._compiled[grammar].deep_copy()
        matcher = GuidanceMatcher(first, self._vocab, self._tokenizer.eos_token, frozenset(end_tokens))
        if matcher.is_over:
            raise _refusal(grammar, "no token of the model begins a text that it allows")
        return matcher

    def _compile(self, grammar: Grammar) -> Any:
        matcher = _llguidance().LLMatcher(self._tokenizer, _source(grammar), log_level=0)
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        return matcher

    def _load(self) -> Any:
        """The tokens' bytes.

        An end token has to be known: llguidance tells by its bit where a text may end.
        """
        if not self._end_tokens:
            raise RequestError(
                "a grammar needs to know the model's end token",
                remedy="compile a model whose configuration names one, or give --end-token, Settings(end_tokens=...)",
            )
        if not self._file.is_file():
            raise RequestError(
                f"there is no {self._file}, from which a grammar learns the texts of tokens",
                remedy="let transformers write it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
            )
        from tokenizers import Tokenizer

        llguidance = _llguidance()
        text = self._file.read_text("utf-8")
        width = max(self._vocab, Tokenizer.from_str(text).get_vocab_size())
        try:
            return llguidance.LLTokenizer(text, n_vocab=width, eos_token=min(self._end_tokens))
        except ValueError as error:
            raise RequestError(
                f"grammars cannot be used with the tokenizer {self._file}: {error}",
                remedy="leave out the grammar: only tokenizers of bytes, or that fall back to bytes, are known",
            ) from error


class GuidanceMatcher:
    """A place in a grammar.

    Args:
        inner: llguidance's, which moves on with this one.
        vocab: How many tokens the model has.
        end_bit: The token by whose bit the inner one says that the text may end.
        end_tokens: Those that end the sequence.
    """

    def __init__(self, inner: Any, vocab: int, end_bit: int, end_tokens: frozenset[int]) -> None:
        self._inner, self._vocab, self._end_bit, self._end_tokens = inner, vocab, end_bit, end_tokens
        self._look()

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        return self._is_over

    @property
    def is_complete(self) -> bool:
        """Whether what was taken, but for an end token, is a text of the grammar."""
        return self._may_end

    def allowed(self) -> Tensor:
        """The tokens that may follow, as bits: uint8 [vocab / 8, rounded up]."""
        return self._bits

    def take(self, token: int) -> None:
        """Move on by a token that is allowed."""
        if token in self._end_tokens:  # whether the text may end here, or it is a stop token amid the text
            self._is_over = True
            return
        self._inner.consume_token(token)
        self._look()

    def copy(self) -> "GuidanceMatcher":
        """Another at the same place, where what may follow is known already."""
        other = copy(self)
        other._inner = self._inner.deep_copy()
        return other

    def _look(self) -> None:
        """See what may follow. An inner matcher that has failed allows the end alone: that is no end of a text."""
        packed = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little").astype(bool)
        self._may_end = bool(bits[self._end_bit]) and not self._inner.is_error()
        bits[self._end_bit] = False
        bits = bits[: self._vocab]
        self._is_over = not bits.any()
        if self._may_end:
            bits[sorted(token for token in self._end_tokens if token < self._vocab)] = True
        self._bits = torch.from_numpy(np.packbits(bits, bitorder="little"))


def _source(grammar: Grammar) -> str:
    """What llguidance makes of it."""
    matcher = _llguidance().LLMatcher
    if grammar.kind == "json":
        try:
            return matcher.grammar_from_json_schema(grammar.text)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
    if grammar.kind == "regex":
        return matcher.grammar_from_regex(grammar.text)
    if grammar.kind == "choice":
        texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.text))
        return f"start: {' | '.join(texts)}"
    return grammar.text


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RequestError("grammars need llguidance", remedy="pip install 'superscaler[serve]'") from error
    return llguidance


def _refusal(grammar: Grammar, why: str) -> RequestError:
    return RequestError(f"the {_NAMES[grammar.kind]} cannot be used: {why}", remedy="change it")
