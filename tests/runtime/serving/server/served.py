"""A server for tests: over fake engines, in the loop of the test, on a port of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import tokenizers
import transformers
from openai import AsyncOpenAI
from transformers.convert_slow_tokenizer import bytes_to_unicode

from superscaler.errors import ServingError
from superscaler.runtime.serving.server.application import Server
from superscaler.runtime.serving.server.engine_client import EngineClient
from superscaler.runtime.serving.server.metrics import Metrics
from superscaler.runtime.serving.server.serving_process import _Http
from superscaler.runtime.serving.server.tokenizer import Tokenizer
from tests.runtime.serving.server.fake_engine import END, READY, FakeEngine

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if tools %}<tool_call>{% endif %}[assistant]"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """Token 0 to 255 is the byte of that number, 256 begins a text, 257 ends it."""
    letters = bytes_to_unicode()
    vocabulary = {letters[byte]: byte for byte in range(256)}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens(["<s>", "</s>"])
    loaded = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return Tokenizer(loaded, frozenset([END]))


@dataclass
class Served:
    """What a test has of a server."""

    server: Server
    client: EngineClient
    url: str
    openai: AsyncOpenAI
    engines: list[FakeEngine] = field(default_factory=list)
    """All that were started."""

    @property
    def engine(self) -> FakeEngine:
        """The one that runs."""
        return self.engines[-1]

    async def idle(self) -> None:
        """Wait until nothing is in flight, and see that nothing is left in the engine."""
        while self.client.in_flight or not self.engine.engine.is_idle:
            await asyncio.sleep(0.01)
        scheduler = self.engine.engine.scheduler
        scheduler.check_integrity()
        assert self.engine.engine.load.pages_used == 0


@asynccontextmanager
async def served(
    *deaths: int | None, max_restarts: int = 3, tokenizer: Tokenizer | None = None, key: str = "none",
    engine: dict[str, Any] | None = None, **options: Any,
) -> AsyncIterator[Served]:  # fmt: skip
    """A server whose first engines die after so many tokens; -1: before they are ready."""
    metrics, engines, to_die = Metrics("table"), [], list(deaths)

    async def launch(hear):
        dies_after = to_die.pop(0) if to_die else None
        if dies_after == -1:
            raise ServingError("cannot start")
        engines.append(FakeEngine(hear, dies_after=dies_after, **(engine or {})))
        return engines[-1], READY

    client = EngineClient(launch, max_restarts, metrics.observe_load)
    await client.start()
    server = Server(client, metrics, "table", tokenizer or byte_tokenizer(), **options)
    import uvicorn

    http = _Http(uvicorn.Config(server.app(), port=0, log_level="error", lifespan="off", ws="none"))
    serving = asyncio.ensure_future(http.serve())
    while not http.started:
        await asyncio.sleep(0.005)
    url = f"http://127.0.0.1:{http.port}"
    try:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as openai:
            yield Served(server, client, url, openai, engines)
    finally:
        await client.stop()
        http.should_exit = True
        await serving
