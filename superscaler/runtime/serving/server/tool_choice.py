"""Tool choice: the functions that a chat offers, and the form of an answer that must be a call of one.

An answer is forced by a grammar, written as `tool_calls` reads it: one call between its marks, whatever the model's
template teaches. Its arguments are what the function's JSON schema allows, spaced as ``json.dumps`` spaces them, which
is how models have seen calls.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.server.api_error import ApiError
from superscaler.runtime.serving.server.fields import Fields
from superscaler.runtime.serving.server.tool_calls import CLOSE, OPEN

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As llguidance takes it, within a schema."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a chat says of tools."""

    offered: tuple[Mapping[str, Any], ...] = ()
    """Those that the model is told of, as the OpenAI API has them."""
    form: Grammar | None = None
    """Of an answer that must be a call; None: it may be any."""
    is_named: bool = False
    """Whether the chat says which one is to be called."""


def parse_tools(fields: Fields) -> Tools:
    """What the fields ``tools``, ``tool_choice`` and ``parallel_tool_calls`` say.

    Raises:
        ApiError: One of them is wrong, or asks for what is not offered.
    """
    tools = fields.list("tools")
    functions = {
        function["name"]: function
        for function in (_function(tool, f"tools[{place}]") for place, tool in enumerate(tools))
    }
    choice, several = fields.get("tool_choice", "auto"), fields.flag("parallel_tool_calls", True)
    if choice == "none":
        return Tools()
    if choice == "auto":
        if tools and not several:
            raise fields.refuse(
                "parallel_tool_calls", "leave it out, or force a call by tool_choice: one may not be all"
            )
        return Tools(tuple(tools))
    if choice != "required":
        name = _named(fields)
        if name not in functions:
            raise fields.wrong("tool_choice", "one of tools")
        functions = {name: functions[name]}
    if not functions:
        raise fields.wrong("tool_choice", "auto or none where there are no tools")
    return Tools(tuple(tools), _form(list(functions.values())), choice != "required")


def _function(tool: Any, path: str) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(f"{path} is no function with a name", param=path)
    if not isinstance(function.get("parameters") or {}, dict):
        raise Fields(function, f"{path}.function.").wrong("parameters", "a JSON schema of an object")
    return function


def _named(fields: Fields) -> str:
    """The function that ``tool_choice`` names."""
    choice = fields.get("tool_choice")
    wanted = 'auto, none, required or {"type": "function", "function": {"name": ...}}'
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict) or choice.get("type", "function") != "function":
        raise fields.wrong("tool_choice", wanted)
    if not isinstance(function.get("name"), str):
        raise fields.wrong("tool_choice", wanted)
    return function["name"]


def _form(functions: Sequence[Mapping[str, Any]]) -> Grammar:
    """All texts that are a call of one of them; each schema is one of its own, so that references in it hold."""
    calls = " | ".join(f"call_{place}" for place in range(len(functions)))
    before, after = _text(OPEN + "\n"), _text("\n" + CLOSE)
    rules = [f"start: {before} ({calls}) {after}"]
    for place, function in enumerate(functions):
        head = _text(f'{{"name": {_text(function["name"])}, "arguments": ')
        rules.append(f'call_{place}: {head} arguments_{place} "}}"')
        rules.append(f"arguments_{place}: %json {json.dumps(_schema(function.get('parameters')))}")
    return Grammar.lark("\n".join(rules))


def _schema(parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Of the arguments, which are an object; where the function takes none, an empty one."""
    if not parameters:
        parameters = {"properties": {}, "additionalProperties": False}
    return {"type": "object", "x-guidance": _SPACING, **parameters}


def _text(text: str) -> str:
    """In quotes, as JSON and the language of Lark have it."""
    return json.dumps(text, ensure_ascii=False)
