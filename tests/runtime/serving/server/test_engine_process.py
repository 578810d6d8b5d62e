"""The engine's process: what it says is heard, how it ends is told, and nothing of it is left."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from superscaler.errors import ServingError
from superscaler.runtime.serving.server.engine_client import EngineClient
from superscaler.runtime.serving.server.engine_process import EngineProcess
from tests.runtime.serving.server.fake_engine import READY
from tests.runtime.serving.server.test_engine_client import ask, make_params, undisturbed

FAKE = Path(__file__).with_name("fake_engine.py")


def command(*arguments):
    script = [sys.executable, "-P", "-c"]
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parents[4])]}; import runpy; "
    code += f"sys.argv[:1] = [{str(FAKE)!r}]; runpy.run_path({str(FAKE)!r}, run_name='__main__')"
    return lambda address: [*script, code, "--connect", address, *arguments]


async def launch_once(*arguments, hear=lambda engine, message: None, seconds=60.0):
    return await EngineProcess.start(command(*arguments), hear, seconds=seconds)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_answer_goes_on_in_the_next_process_when_one_dies():
    async def scenario():
        started = []

        async def launch(hear):
            more = () if started else ("--dies-after", "10")
            engine, ready = await launch_once(*more, hear=hear)
            started.append(engine)
            assert ready == READY
            return engine, ready

        client = EngineClient(launch)
        await client.start()
        assert await ask(client, make_params()) == undisturbed(make_params())
        assert len(started) == 2
        assert "out of memory" in str(started[0].death("it died"))
        await client.stop()
        assert not any(is_alive(engine._process.pid) for engine in started)

    asyncio.run(scenario())


def test_an_engine_that_cannot_start_says_why():
    async def scenario():
        with pytest.raises(ServingError, match=r"(?s)ended before it was ready.*loading\n.*no such weights"):
            await launch_once("--fails")

    asyncio.run(scenario())


def test_an_engine_that_is_not_ready_in_time_is_ended():
    async def scenario():
        with pytest.raises(ServingError, match="not ready after 6 s"):
            await launch_once("--hangs", seconds=6.0)

    asyncio.run(scenario())


def test_a_command_that_is_none_says_so():
    async def scenario():
        with pytest.raises(ServingError, match=r"(?s)ended before it was ready.*can't open file"):
            await EngineProcess.start(
                lambda address: [sys.executable, "/nowhere.py"], lambda engine, message: None, seconds=60.0
            )

    asyncio.run(scenario())
