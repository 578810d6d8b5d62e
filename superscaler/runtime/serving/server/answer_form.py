"""The form that a call prescribes for its answer: OpenAI's ``response_format``, or vLLM's ``structured_outputs``.

vLLM's older names, ``guided_json`` and so on, mean the same.
"""

from collections.abc import Callable, Iterator, Mapping

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.server.api_error import ApiError
from superscaler.runtime.serving.server.fields import Fields

NAMES = frozenset({
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
})  # fmt: skip
"""The fields that are read here."""


def parse_form(fields: Fields, call: Grammar | None = None) -> tuple[Grammar | None, str]:
    """The form of the answer, None where any will do, and the field that prescribes it.

    Args:
        fields: Of the body.
        call: What ``tool_choice`` prescribes, if it does.

    Raises:
        RequestError: A field is wrong, or two of them prescribe a form.
    """
    found = [*_response_format(fields), *_structured_outputs(fields), *_guided(fields)]
    if call is not None:
        found.append(("tool_choice", call))
    if not found:
        return None, ""
    if len(found) > 1:
        names = [name for name, _ in found]
        raise ApiError(
            f"{' and '.join(names)} both prescribe a form", param=names[1], remedy="give one of them"
        )
    ((name, grammar),) = found
    return grammar, name


_Found = Iterator[tuple[str, Grammar]]
"""Field and form."""


def _response_format(fields: Fields) -> _Found:
    form = fields.object("response_format")
    if form is None:
        return
    kind = form.text("type")
    if kind == "json_object":
        yield "response_format", Grammar.json_object()
    elif kind == "json_schema":
        inner = form.object("json_schema")
        if inner is None or inner.get("schema") is None:
            raise form.wrong("json_schema", "an object with a schema")
        yield "response_format", _json(inner, "schema")
    elif kind != "text":
        raise form.wrong("type", "text, json_object or json_schema")


def _structured_outputs(fields: Fields) -> _Found:
    form = fields.object("structured_outputs")
    if form is None:
        return
    for name in sorted(form.names - _KINDS.keys() - {"json_object"}):
        if form.get(name) is not False:
            raise form.refuse(name, f"give one of {', '.join(_KINDS)}")
    wanted = sorted(form.names & _KINDS.keys())
    if form.flag("json_object"):
        wanted.append("json_object")
    if len(wanted) != 1:
        raise fields.wrong("structured_outputs", f"an object with one of {', '.join(_KINDS)}")
    make = _KINDS.get(wanted[0])
    yield "structured_outputs", Grammar.json_object() if make is None else make(form, wanted[0])


def _guided(fields: Fields) -> _Found:
    for kind, make in _KINDS.items():
        name = f"guided_{kind}"
        if name in fields.names:
            yield name, make(fields, name)


def _json(fields: Fields, name: str) -> Grammar:
    schema = fields.get(name)
    if not isinstance(schema, dict | str | bool):
        raise fields.wrong(name, "a JSON schema")
    return _made(fields, name, lambda: Grammar.json(schema), "a JSON schema")


def _regex(fields: Fields, name: str) -> Grammar:
    return Grammar.regex(fields.text(name))


def _choice(fields: Fields, name: str) -> Grammar:
    texts, wanted = fields.list(name), "a list of texts, none of them empty"
    if not all(isinstance(text, str) for text in texts):
        raise fields.wrong(name, wanted)
    return _made(fields, name, lambda: Grammar.choice(texts), wanted)


def _lark(fields: Fields, name: str) -> Grammar:
    return Grammar.lark(fields.text(name))


def _made(fields: Fields, name: str, make: Callable[[], Grammar], wanted: str) -> Grammar:
    try:
        return make()
    except RequestError as error:
        raise fields.wrong(name, wanted) from error


_KINDS: Mapping[str, Callable[[Fields, str], Grammar]] = {
    "json": _json, "regex": _regex, "choice": _choice, "grammar": _lark,
}  # fmt: skip
