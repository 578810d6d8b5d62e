"""An engine under torchrun, as a server would start it, for benchmarks that speak to it without HTTP."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from superscaler.runtime.serving.link import KEY, Progress, Ready, Refused, Stop, Submit
from superscaler.runtime.serving.output import Load
from superscaler.runtime.serving.request import Request

ROOT = Path(__file__).parents[1]


class Served:
    """A build that is served: a context in which requests can be sent.

    Args:
        folder: What was compiled for serving.
        options: Of its ``serve.py``.
        ranks: Processes.
        threads: Of each.
    """

    def __init__(
        self, folder: Path, options: Sequence[object] = (), ranks: int = 1, threads: int = 1
    ) -> None:
        self._home = tempfile.TemporaryDirectory()
        socket = Path(self._home.name) / "engine"
        key = secrets.token_bytes(16)
        self._listener = Listener(str(socket), family="AF_UNIX", authkey=key)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
            str(folder / "serve.py"), "--connect", str(socket), "--threads", str(threads), *map(str, options),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), KEY: key.hex(), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, env=environment)
        self.loads: list[Load] = []
        """How busy it was after each step."""
        self.cached = 0
        """Tokens of prompts that were in the cache when their request came."""

    def __enter__(self) -> Self:
        self._connection = self._listener.accept()
        message = self._connection.recv()
        assert isinstance(message, Ready), message
        self.ready = message
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._connection.send(Stop())
                self._process.wait(60)
        finally:
            self._process.kill()
            self._listener.close()
            self._home.cleanup()

    def answers(self, requests: Iterable[Request]) -> Mapping[str, tuple[int, ...]]:
        """The tokens that follow each prompt, of its first continuation, by the request's id."""
        found: dict[str, list[int]] = {}
        for request in requests:
            found[request.id] = []
            self._connection.send(Submit(request))
        going = set(found)
        while going:
            message: Any = self._connection.recv()
            if isinstance(message, Refused):
                raise RuntimeError(f"{message.request_id}: {message.reason}")
            assert isinstance(message, Progress)
            self.loads.append(message.load)
            for output in message.outputs:
                if output.index == 0:
                    found[output.request_id] += output.tokens
                    if output.finish_reason:
                        going.remove(output.request_id)
                        self.cached += output.cached
        return {name: tuple(tokens) for name, tokens in found.items()}


def ranks_below(server: int) -> list[int]:
    """The processes below the server that run ``serve.py``."""
    found, new = [], [server]
    while new:
        parent = new.pop()
        children = Path(f"/proc/{parent}/task/{parent}/children")
        for child in children.read_text().split() if children.exists() else ():
            new.append(int(child))
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"serve.py") for word in words) and b"--nproc-per-node" not in words:
                found.append(int(child))
    return found
