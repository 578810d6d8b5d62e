"""Grammar: the form that an answer must have, as a value that requests carry."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from superscaler.errors import RequestError

Kind = Literal["json", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """All texts that an answer may be.

    It is made by one of its functions, such as ``Grammar.json(schema)``.
    """

    kind: Kind
    text: str
    """A JSON schema, a regular expression, a JSON list of texts, or rules in the language of Lark."""

    @classmethod
    def json(cls, schema: Mapping[str, Any] | str | bool) -> "Grammar":
        """JSON that a schema allows.

        Args:
            schema: A JSON schema, or its text.

        Raises:
            RequestError: The text is no JSON, or what it holds no schema.
        """
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(found)  # names stay in their order, which is that of the answer
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the schema is no JSON: {error}", remedy="give a JSON schema") from error
        if not isinstance(found, Mapping | bool):
            raise RequestError(
                f"the schema is {text[:40]}", remedy='give an object, such as {"type": "object"}'
            )
        return cls("json", text)

    @classmethod
    def json_object(cls) -> "Grammar":
        """Any JSON object."""
        return cls.json({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Texts that a regular expression matches from their first character to their last."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Grammar":
        """One of some texts.

        Raises:
            RequestError: There are none, or one is empty.
        """
        if not texts or "" in texts:
            raise RequestError(
                f"the choice is {json.dumps(list(texts))[:40]}",
                remedy="give one text or more, none of them empty",
            )
        return cls("choice", json.dumps(list(texts)))

    @classmethod
    def lark(cls, rules: str) -> "Grammar":
        """Texts that rules in the language of Lark derive from ``start``."""
        return cls("lark", rules)
