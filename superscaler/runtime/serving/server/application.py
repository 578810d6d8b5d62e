"""Server: the routes of the OpenAI API over an engine."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar
from superscaler.runtime.serving.grammar.guidance import check_grammar
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.answers import (
    Answers,
    Question,
    check_fits,
    make_request,
    with_default_tokens,
)
from superscaler.runtime.serving.server.api_error import ApiError, as_api_error
from superscaler.runtime.serving.server.engine_client import EngineClient
from superscaler.runtime.serving.server.event_stream import (
    DONE,
    ClientGone,
    EventStream,
    event,
    while_connected,
)
from superscaler.runtime.serving.server.fields import Fields, parse_body
from superscaler.runtime.serving.server.metrics import Metrics
from superscaler.runtime.serving.server.openai_request import (
    DEFAULT_COMPLETION_TOKENS,
    Answering,
    Prompt,
    parse_chat,
    parse_completion,
)
from superscaler.runtime.serving.server.openai_response import ChatShape, Choice, CompletionShape, Usage
from superscaler.runtime.serving.server.tokenizer import Tokenizer
from superscaler.runtime.serving.server.tokenizing import detokenized, tokenized
from superscaler.runtime.serving.server.tool_calls import are_known

_RETRY_SECONDS = 5
_ENCODED_AT_ONCE = 4096
"""Characters of a text that is so short that another thread costs more than it gains."""

log = logging.getLogger("superscaler.serving")

Shape = CompletionShape | ChatShape
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How much a server takes in."""

    body_bytes: int = 8 << 20
    prompt_tokens: int | None = None
    """Of one prompt; None: as many as the model takes."""
    prompts: int = 256
    """In one call."""
    waiting: int = 1024
    """Requests that have no token yet."""
    request_seconds: float = 600.0
    """Until an answer is complete."""


class Server:
    """Answers HTTP requests.

    Args:
        client: The engine's, started.
        metrics: What ``/metrics`` tells.
        model: The name under which the model is served.
        tokenizer: None: prompts are token ids, and so are answers.
        limits: How much it takes in.
        api_keys: One of which every call that concerns the model must bring, if there are any.
        check_grammar: Raises a `RequestError` where the form of an answer makes no sense.
        defaults: How tokens are drawn, and of a chat how many, where a call does not say.
    """

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        model: str,
        tokenizer: Tokenizer | None = None,
        limits: ServerLimits | None = None,
        api_keys: Sequence[str] = (),
        check_grammar: Callable[[Grammar], None] = check_grammar,
        defaults: SamplingParams | None = None,
    ) -> None:
        self._client, self._metrics, self._model, self._tokenizer = client, metrics, model, tokenizer
        self._answers = Answers(client, metrics, tokenizer)
        self._limits = limits or ServerLimits()
        self._keys = tuple(key.encode() for key in api_keys)
        self._check_grammar = check_grammar
        self._defaults = defaults or SamplingParams()
        self._created = int(time.time())
        self.is_draining = False
        """Whether new requests are turned away, because the server is about to end."""

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/completions", self._api(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", self._api(self._chat), methods=["POST"]),
            Route("/v1/models", self._api(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._api(self._one_model), methods=["GET"]),
            Route("/tokenize", self._api(self._tokenize), methods=["POST"]),
            Route("/detokenize", self._api(self._detokenize), methods=["POST"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/ping", self._health, methods=["GET", "POST"]),  # so SageMaker asks
            Route("/version", self._version, methods=["GET"]),
            Route("/metrics", self._scrape, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    # -- what is asked of the server itself

    async def _health(self, request: Request) -> Response:
        if self._client.is_ready and not self.is_draining:
            return JSONResponse({"status": "ok"})
        status = "draining" if self.is_draining else "failed" if self._client.failure else "starting"
        return JSONResponse({"status": status}, 503)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": version("superscaler")})

    async def _scrape(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def _one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_card())

    def _model_card(self) -> dict[str, object]:
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "superscaler",
            "root": self._model,
            "parent": None,
            "max_model_len": self._client.facts.longest,
            "vocab_size": self._client.facts.vocab,
        }

    async def _tokenize(self, request: Request) -> Response:
        fields = await self._fields(request)
        self._check_model(fields.text("model"))
        tokenizer, longest = self._known_tokenizer(), self._client.facts.longest
        return JSONResponse(await asyncio.to_thread(tokenized, fields, tokenizer, longest))

    async def _detokenize(self, request: Request) -> Response:
        fields = await self._fields(request)
        self._check_model(fields.text("model"))
        tokenizer, vocab = self._known_tokenizer(), self._client.facts.vocab
        return JSONResponse(await asyncio.to_thread(detokenized, fields, tokenizer, vocab))

    # -- what is asked of the model

    async def _completions(self, request: Request) -> Response:
        call = parse_completion(await self._fields(request), self._defaults)
        self._check_can_serve(call.answering, len(call.prompts))
        await self._check_form(call.answering)
        if call.echo and self._tokenizer is None:
            raise ApiError("a model without a tokenizer cannot echo", param="echo")
        prompts = [await self._encoded(prompt) for prompt in call.prompts]
        room, default = self._client.facts.room, DEFAULT_COMPLETION_TOKENS
        answerings = [with_default_tokens(call.answering, prompt, room, default) for prompt in prompts]
        echoes = [self._text_of(prompt) if call.echo else "" for prompt in call.prompts]
        name = f"cmpl-{uuid.uuid4().hex}"
        shape = CompletionShape(
            name, self._model, self._told(call.answering), self._token_text, echoes, prompts
        )
        questions = [
            self._question(f"{name}-{place}", *each)
            for place, each in enumerate(zip(prompts, answerings, strict=True))
        ]
        return await self._respond(request, questions, call.answering, shape)

    async def _chat(self, request: Request) -> Response:
        call = parse_chat(await self._fields(request), self._defaults)
        self._check_can_serve(call.answering, 1)
        await self._check_form(call.answering)
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise ApiError(
                "a model without a tokenizer does not chat", remedy="send token ids to /v1/completions"
            )
        prompt = await asyncio.to_thread(
            tokenizer.chat, call.messages, call.tools.offered or None, call.template_options
        )
        name = f"chatcmpl-{uuid.uuid4().hex}"
        tools = call.tools
        reads_calls = tools.form is not None or (bool(tools.offered) and are_known(tokenizer.chat_template))
        ending = "stop" if tools.is_named else "tool_calls"
        shape = ChatShape(name, self._model, call.answering, self._token_text, prompt, reads_calls, ending)
        room, default = self._client.facts.room, self._defaults.max_tokens
        answering = with_default_tokens(call.answering, prompt, room, default)
        question = self._question(f"{name}-0", prompt, answering)
        return await self._respond(request, [question], answering, shape)

    def _question(self, name: str, prompt: tuple[int, ...], answering: Answering) -> Question:
        facts, most = self._client.facts, self._limits.prompt_tokens
        if most is not None and len(prompt) > most:
            raise ApiError(
                f"the prompt has {len(prompt)} tokens, but the server takes at most {most}",
                code="context_length_exceeded",
                remedy="shorten it",
            )
        check_fits(prompt, answering.params, facts.vocab, facts.longest)
        return Question(make_request(name, prompt, answering), answering.keep_stop)

    async def _respond(
        self, request: Request, questions: Sequence[Question], answering: Answering, shape: Shape
    ) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.request_seconds
        if not answering.stream:
            async with asyncio.timeout_at(deadline):
                return await while_connected(request.receive, self._whole(questions, answering, shape))
        events = self._events(questions, answering, shape)
        try:  # an error before the first token still has a status of its own
            async with asyncio.timeout_at(deadline):
                first = await while_connected(request.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        return EventStream(_with_first(first, events), deadline)

    async def _whole(self, questions: Sequence[Question], answering: Answering, shape: Shape) -> Response:
        choices = [Choice() for _ in range(len(questions) * answering.params.n)]
        usage = Usage(sum(len(question.request.prompt) for question in questions))
        async with aclosing(self._answers.answer_all(questions)) as pieces:
            cached: dict[int, int] = {}
            async for number, piece in pieces:
                choices[number * answering.params.n + piece.index].add(piece)
                usage.generated += len(piece.tokens)
                cached.setdefault(number, piece.cached)
        usage.cached = sum(cached.values())
        return JSONResponse(shape.whole(choices, usage))

    async def _events(
        self, questions: Sequence[Question], answering: Answering, shape: Shape
    ) -> AsyncGenerator[bytes, None]:
        usage = Usage(sum(len(question.request.prompt) for question in questions))
        cached: dict[int, int] = {}
        async with aclosing(self._answers.answer_all(questions)) as pieces:
            async for number, piece in pieces:
                usage.generated += len(piece.tokens)
                cached.setdefault(number, piece.cached)
                for chunk in shape.chunks(number, piece):
                    yield event(chunk)
        if answering.include_usage:
            usage.cached = sum(cached.values())
            yield event(shape.usage_chunk(usage))
        yield DONE

    # -- checks

    def _check_can_serve(self, answering: Answering, prompts: int) -> None:
        self._check_model(answering.model)
        if self._tokenizer is None and answering.params.stop:
            raise ApiError(
                "a model without a tokenizer knows no texts", param="stop", remedy="stop_token_ids"
            )
        if prompts > self._limits.prompts:
            raise ApiError(f"there are {prompts} prompts", remedy=f"at most {self._limits.prompts} in a call")
        if self._client.not_begun + prompts > self._limits.waiting:
            raise ApiError(
                "too many requests wait already", status=429, code="queue_full", retry_seconds=_RETRY_SECONDS
            )

    async def _check_form(self, answering: Answering) -> None:
        """Refuse a form that makes no sense, before the engine hears of it."""
        grammar, field = answering.params.grammar, answering.form_field
        if grammar is None:
            return
        if self._tokenizer is None:
            raise ApiError("a model without a tokenizer knows no texts", param=field, remedy="leave it out")
        try:
            await asyncio.to_thread(self._check_grammar, grammar)
        except RequestError as error:
            raise ApiError(error.what, param=field, remedy=error.remedy) from error

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._model):
            raise ApiError(
                f"there is no model {name!r}",
                status=404, param="model", code="model_not_found", remedy=f"use {self._model!r}",
            )  # fmt: skip

    def _api(self, handler: Handler) -> Handler:
        """A handler with what all that concern the model have in common: keys, the server's end, the form of errors."""

        async def handle(request: Request) -> Response:
            try:
                self._check_key(request)
                if self.is_draining and request.method == "POST":
                    raise ApiError("the server is about to end", status=503, retry_seconds=_RETRY_SECONDS)
                return await handler(request)
            except (ClientGone, ClientDisconnect):
                return Response(status_code=499)  # which nobody sees
            except Exception as error:
                told = as_api_error(error)
                if told.code == "internal_error":
                    log.exception("%s %s failed", request.method, request.url.path)
                return _error(told)

        return handle

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # every key is compared, so that the time taken tells nothing
        matches = [hmac.compare_digest(given.encode(), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError("the API key is missing or wrong", status=401, code="invalid_api_key")

    async def _fields(self, request: Request) -> Fields:
        most, body = self._limits.body_bytes, bytearray()
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) <= most:
            async with asyncio.timeout(self._limits.request_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        break
                else:
                    return parse_body(bytes(body))
        raise ApiError(
            "the body is too long", status=413, code="body_too_long", remedy=f"at most {most} bytes"
        )

    # -- text

    def _known_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ApiError("a model without a tokenizer knows no texts", remedy="serve it with --tokenizer")
        return self._tokenizer

    async def _encoded(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return prompt
        if self._tokenizer is None:
            raise ApiError(
                "a model without a tokenizer knows no texts",
                param="prompt",
                remedy="send a list of token ids",
            )
        if len(prompt) <= _ENCODED_AT_ONCE:
            return self._tokenizer.encode(prompt)
        return await asyncio.to_thread(self._tokenizer.encode, prompt)

    def _text_of(self, prompt: Prompt) -> str:
        if isinstance(prompt, str) or self._tokenizer is None:
            return str(prompt)
        return self._tokenizer.decode(prompt)

    def _token_text(self, token: int) -> str:
        return f"token_id:{token}" if self._tokenizer is None else self._tokenizer.token_text(token)

    def _told(self, answering: Answering) -> Answering:
        """Without a tokenizer, token ids are said at any rate."""
        return answering if self._tokenizer is not None else replace(answering, token_ids=True)


async def _with_first(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        yield first
        async for each in events:
            yield each


def _error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router says itself: there is no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    return JSONResponse(
        ApiError(error.detail, status=error.status_code, code=code).body(),
        error.status_code,
        headers=error.headers,
    )
