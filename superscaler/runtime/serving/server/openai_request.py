"""Requests of the OpenAI API, and what vLLM adds to it, as bodies say them.

Fields fall into four groups: those that are honoured; those that change no token, and are ignored; those that would
change what comes but are not offered here, and are refused where they ask for something; and all others, which are
ignored with a line in the log, as vLLM does.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server import answer_form
from superscaler.runtime.serving.server.answer_form import parse_form
from superscaler.runtime.serving.server.api_error import ApiError
from superscaler.runtime.serving.server.fields import Fields, parse_body
from superscaler.runtime.serving.server.tool_choice import Tools, parse_tools

MOST_LOGPROBS = 20
"""Likeliest tokens that may be asked for."""
DEFAULT_COMPLETION_TOKENS = 16
"""Of /v1/completions, where the body does not say, as in the OpenAI API; a model's own default is for chats."""
_MOST_STOPS = 64
_NO_DEFAULTS, _NO_TOOLS = SamplingParams(), Tools()

log = logging.getLogger("superscaler.serving")

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answering:
    """How a call wants to be answered, whatever it asks."""

    model: str | None
    params: SamplingParams
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with how many tokens there were."""
    keep_stop: bool = False
    """Whether what ends a text is part of it."""
    token_ids: bool = False
    """Whether token ids are said besides the text."""
    priority: int = 0
    cache_salt: str = ""
    form_field: str = ""
    """The field that prescribes the form of the answer, if one does."""


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """A body of /v1/completions."""

    answering: Answering
    prompts: tuple[Prompt, ...]
    echo: bool = False
    """Whether the prompt is part of the text."""


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A body of /v1/chat/completions."""

    answering: Answering
    messages: tuple[Mapping[str, Any], ...]
    tools: Tools = _NO_TOOLS
    template_options: Mapping[str, Any] | None = None
    """Further variables of the chat template."""


_SHARED = frozenset({
    "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "seed", "n", "max_tokens", "min_tokens",
    "stop", "stop_token_ids", "ignore_eos", "logprobs", "include_stop_str_in_output", "return_token_ids",
    "priority", "cache_salt",
}) | answer_form.NAMES  # fmt: skip
_COMPLETION = _SHARED | {"prompt", "echo", "best_of", "suffix"}
_CHAT = _SHARED | frozenset({
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "chat_template_kwargs",
})  # fmt: skip
_WITHOUT_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "request_id", "verbosity",
})  # fmt: skip
_REFUSED: Mapping[str, Any] = dict.fromkeys([
    "functions", "function_call", "audio", "web_search_options", "prediction", "reasoning_effort",
    "use_beam_search", "length_penalty", "prompt_logprobs", "allowed_token_ids", "bad_words",
    "truncate_prompt_tokens", "logits_processors", "documents", "chat_template", "prompt_embeds", "echo",
    "continue_final_message", "add_generation_prompt", "add_special_tokens", "skip_special_tokens",
    "logprob_token_ids", "spaces_between_special_tokens", "kv_transfer_params", "mm_processor_kwargs",
    "thinking_token_budget", "modalities",
]) | {
    "add_generation_prompt": True, "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "use_beam_search": False, "echo": False, "continue_final_message": False, "length_penalty": 1.0,
    "modalities": ["text"],
}  # fmt: skip
"""What is not offered, and the value that asks for nothing."""


def parse_completion(fields: Fields, defaults: SamplingParams = _NO_DEFAULTS) -> CompletionCall:
    """What a body of /v1/completions says.

    Args:
        fields: Of the body.
        defaults: How tokens are drawn where it does not say.

    Raises:
        RequestError: A field is wrong, or asks for what is not offered.
    """
    _check_known(fields, _COMPLETION)
    if fields.get("suffix") not in (None, ""):
        raise fields.refuse("suffix", "the model goes on after a prompt; it does not fill gaps")
    echo, logprobs, n = fields.flag("echo"), fields.integer("logprobs"), fields.integer("n", 1)
    if fields.integer("best_of", n) != n:
        raise fields.refuse("best_of", "leave it out: every continuation is returned")
    if echo and logprobs is not None:
        raise fields.refuse("logprobs", "without echo: probabilities of the prompt are not kept")
    answering = _answering(fields, logprobs, fields.integer("max_tokens"), defaults)
    return CompletionCall(answering, _prompts(fields), echo)


def parse_chat(fields: Fields, defaults: SamplingParams = _NO_DEFAULTS) -> ChatCall:
    """What a body of /v1/chat/completions says.

    Args:
        fields: Of the body.
        defaults: How tokens are drawn where it does not say.

    Raises:
        RequestError: A field is wrong, or asks for what is not offered.
    """
    _check_known(fields, _CHAT)
    wanted, likeliest = fields.flag("logprobs"), fields.integer("top_logprobs")
    if likeliest is not None and not wanted:
        raise fields.wrong("top_logprobs", "absent without logprobs: true")
    most_name = "max_completion_tokens" if "max_completion_tokens" in fields.names else "max_tokens"
    most = fields.integer(most_name)
    if most is not None and most < 1:
        raise fields.wrong(most_name, "at least 1")
    options, tools = fields.object("chat_template_kwargs"), parse_tools(fields)
    return ChatCall(
        _answering(fields, (likeliest or 0) if wanted else None, most, defaults, tools.form),
        parse_messages(fields),
        tools,
        None if options is None else options.values(),
    )


def _check_known(fields: Fields, honoured: frozenset[str]) -> None:
    others = fields.names - honoured - _WITHOUT_EFFECT
    for name in sorted(others & _REFUSED.keys()):
        if fields.get(name) != _REFUSED[name]:
            raise fields.refuse(name, "leave it out")
    unknown = sorted(others - _REFUSED.keys())
    if unknown:
        log.warning("a request has fields that are ignored: %.200s", ", ".join(unknown[:8]))


def _answering(
    fields: Fields,
    logprobs: int | None,
    max_tokens: int | None,
    defaults: SamplingParams,
    call: Grammar | None = None,
) -> Answering:
    name = "logprobs" if isinstance(fields.get("logprobs"), int) else "top_logprobs"
    if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
        raise fields.wrong(name, f"from 0 to {MOST_LOGPROBS}")
    stream, stream_options = fields.flag("stream"), fields.object("stream_options")
    if stream_options is not None:
        if not stream:
            raise fields.wrong("stream_options", "absent without stream: true")
        for name in sorted(stream_options.names - {"include_usage", "include_obfuscation"}):
            if stream_options.get(name) is not False:
                raise stream_options.refuse(name, "leave it out")
    grammar, form_field = parse_form(fields, call)
    return Answering(
        fields.text("model"),
        _params(fields, logprobs, max_tokens, grammar, defaults),
        stream,
        stream_options is not None and stream_options.flag("include_usage"),
        fields.flag("include_stop_str_in_output"),
        fields.flag("return_token_ids"),
        fields.integer("priority", 0),
        fields.text("cache_salt", ""),
        form_field,
    )


def _params(
    fields: Fields,
    logprobs: int | None,
    max_tokens: int | None,
    grammar: Grammar | None,
    defaults: SamplingParams,
) -> SamplingParams:
    top_k = fields.integer("top_k", defaults.top_k)
    return SamplingParams(
        temperature=fields.number("temperature", defaults.temperature),
        top_k=0 if top_k == -1 else top_k,  # vLLM's word for all
        top_p=fields.number("top_p", defaults.top_p),
        min_p=fields.number("min_p", defaults.min_p),
        presence_penalty=fields.number("presence_penalty", 0.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0),
        repetition_penalty=fields.number("repetition_penalty", defaults.repetition_penalty),
        logit_bias=_logit_bias(fields),
        seed=fields.integer("seed"),
        n=fields.integer("n", 1),
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens", 0),
        stop=_stops(fields),
        stop_token_ids=frozenset(parse_token_ids(fields, "stop_token_ids", fields.list("stop_token_ids"))),
        ignore_eos=fields.flag("ignore_eos"),
        logprobs=logprobs,
        grammar=grammar,
    )


def _logit_bias(fields: Fields) -> dict[int, float]:
    bias = fields.object("logit_bias")
    if bias is None:
        return {}
    if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in bias.values()):
        raise fields.wrong("logit_bias", "numbers by token id")
    return {int(name): bias.number(name, 0.0) for name in bias.values()}


def _stops(fields: Fields) -> tuple[str, ...]:
    found = fields.get("stop", [])
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise fields.wrong("stop", "a text or a list of texts")
    if len(stops) > _MOST_STOPS:
        raise fields.wrong("stop", f"at most {_MOST_STOPS} texts")
    return tuple(stops)


def parse_token_ids(fields: Fields, name: str, found: Any) -> tuple[int, ...]:
    """What was found of a field that holds token ids.

    Raises:
        ApiError: It is no list of them.
    """
    if not isinstance(found, list) or not all(type(token) is int and token >= 0 for token in found):
        raise fields.wrong(name, "a list of token ids")
    return tuple(found)


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    found = fields.get("prompt")
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, list) or not found:
        raise fields.wrong("prompt", "a text, token ids, or a list of such")
    if type(found[0]) is int:
        return (parse_token_ids(fields, "prompt", found),)
    return tuple(
        prompt if isinstance(prompt, str) else parse_token_ids(fields, "prompt", prompt) for prompt in found
    )


# -- conversations


def parse_messages(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    """The messages of a conversation, each with one text.

    Raises:
        ApiError: There are none, or one is no message.
    """
    found = fields.list("messages")
    if not found:
        raise fields.wrong("messages", "a list of messages, at least one")
    return tuple(_message(message, f"messages[{place}].") for place, message in enumerate(found))


def _message(found: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise ApiError(f"{path[:-1]} is no object", param=path[:-1])
    fields = Fields(found, path)
    if not fields.text("role"):
        raise fields.wrong("role", "system, user, assistant, tool or another that the model knows")
    content = fields.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{path}content[{place}].") for place, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise fields.wrong("content", "a text or a list of parts")
    calls = [
        _called(call, f"{path}tool_calls[{place}]") for place, call in enumerate(fields.list("tool_calls"))
    ]
    return found | {"content": content} | ({"tool_calls": calls} if calls else {})


def _part(found: Any, path: str) -> str:
    if not isinstance(found, dict) or found.get("type") != "text" or not isinstance(found.get("text"), str):
        raise ApiError(f"{path[:-1]} is no text", param=path[:-1], remedy="only texts can be sent")
    return found["text"]


def _called(found: Any, path: str) -> dict[str, Any]:
    """A call of a tool, whose arguments templates want as an object rather than as its text."""
    function = found.get("function") if isinstance(found, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(f"{path} calls no function", param=path)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = parse_body(arguments.encode("utf-8", "surrogatepass")).values()
    return found | {"function": function | {"arguments": arguments}}
