"""Tokenizer: text to tokens and back, and conversations to text, as a model's own folder says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from superscaler.errors import BuildError, RequestError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
)


class Tokenizer:
    """A tokenizer of `transformers`.

    Args:
        loaded: The tokenizer.
        end_tokens: Those with which the model ends a text.
    """

    def __init__(self, loaded: Any, end_tokens: frozenset[int] = frozenset()) -> None:
        self._loaded, self.end_tokens = loaded, end_tokens
        # without the layer above it, it may be used by several threads at once, and costs a tenth
        self._fast: Any = getattr(loaded, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()

    @property
    def chat_template(self) -> str | None:
        """The template of conversations; None where the model has none."""
        template = self._loaded.chat_template
        return template.get("default") if isinstance(template, Mapping) else template

    def encode(self, text: str, special: bool = True) -> tuple[int, ...]:
        """Token ids of a text.

        Args:
            text: Any text that is Unicode.
            special: Whether the model's first token and the like are added.

        Raises:
            RequestError: It has half of a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is no Unicode at character {error.start}") from error
        if self._fast is not None:
            return tuple(self._fast.encode(text, add_special_tokens=special).ids)
        return tuple(self._loaded.encode(text, add_special_tokens=special))

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """The text of token ids, with or without the special ones; of ids that the tokenizer has not, nothing."""
        if self._fast is not None:
            return self._fast.decode(tokens, skip_special_tokens=not special)
        return self._loaded.decode(
            tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What the vocabulary calls each token, which need not be text, such as ``Ġword``."""
        return self._loaded.convert_ids_to_tokens(list(tokens))

    def token_text(self, token: int) -> str:
        """What one token looks like by itself, special or not."""
        if self._fast is not None:
            return self._fast.decode([token], skip_special_tokens=False)
        return self._loaded.decode([token], clean_up_tokenization_spaces=False)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        special: bool = False,
    ) -> tuple[int, ...]:
        """Token ids of a conversation, up to where the model is to answer, unless the options say otherwise.

        Args:
            messages: As the OpenAI API has them.
            tools: Likewise.
            options: Further variables of the template.
            special: Whether the model's first token and the like are added, which templates mostly write themselves.

        Raises:
            RequestError: The model has no template, or its template refuses the conversation.
        """
        from jinja2 import TemplateError

        if self.chat_template is None:
            raise RequestError(
                "the model has no chat template", remedy="send the prompt to /v1/completions instead"
            )
        try:
            given = {"add_generation_prompt": True, **(options or {})}
            text = self._loaded.apply_chat_template(list(messages), tools=tools, tokenize=False, **given)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RequestError(f"the model's chat template refuses the messages: {error}") from error
        return self.encode(text, special)


def load_tokenizer(folder: Path | str) -> Tokenizer | None:
    """The tokenizer that a model's folder holds; None where it holds none. No code in the folder is run.

    Raises:
        BuildError: It holds one that cannot be read.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise BuildError(
            "a tokenizer needs transformers", remedy="pip install 'superscaler[models]'"
        ) from error
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it parses several formats, each with errors of its own
        raise BuildError(f"the tokenizer in {folder} cannot be read: {error}") from error
    return Tokenizer(loaded, _end_tokens(folder, loaded))


def _end_tokens(folder: Path, loaded: Any) -> frozenset[int]:
    """What the files say ends a text; the tokenizer's own end token where they say nothing."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text("utf-8")).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    return frozenset() if loaded.eos_token_id is None else frozenset([loaded.eos_token_id])
