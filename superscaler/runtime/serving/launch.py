"""What ``torchrun serve.py`` does: every rank loads its program, the first takes requests from a server."""

import argparse
import gc
import os
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path

import torch

from superscaler.errors import BuildError, RequestError
from superscaler.runtime.build import Build
from superscaler.runtime.loaded import load
from superscaler.runtime.option_values import natural, positive
from superscaler.runtime.ranks import relative
from superscaler.runtime.serving.engine import Engine
from superscaler.runtime.serving.engine_options import add_engine_options
from superscaler.runtime.serving.link import KEY, End, Progress, Ready, Refused, Stop, Submit, ToEngine
from superscaler.runtime.serving.orders import Orders
from superscaler.runtime.serving.ranks import Leader, follow
from superscaler.runtime.serving.settings import Settings, make_engine
from superscaler.runtime.serving.worker import Worker
from superscaler.runtime.session import reporting_failures


def main(file: str, arguments: Sequence[str] | None = None) -> None:
    """Serve the build folder `file` lies in; its ``serve.py`` calls this with its own ``__file__``."""
    entry = Path(file).resolve()
    options = parser(relative(entry)).parse_args(arguments)
    with reporting_failures(entry):
        _serve(entry.parent, options)


def _serve(folder: Path, options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    program = load(
        folder, weights=options.weights, seed=options.seed, timeout=options.timeout,
        allow_edited=options.allow_edited, compile=options.compile,
    )  # fmt: skip
    worker = Worker(program, options.host_pages)
    gc.collect()
    gc.freeze()  # what is there stays: to look through all of it for garbage would hold up a step by 0.2 s
    orders = Orders(program.build.world_size, program.rank, options.timeout)
    if program.rank:
        follow(worker, orders)
    else:
        leader = Leader(worker, orders)
        with _connection(options.connect) as connection:
            settings = _settings(options)
            engine = make_engine(worker, settings, leader.start)
            connection.send(_ready(program.build, worker, settings))
            _lead(engine, leader, connection, options.timeout / 3)
        leader.end()
    program.close()


def _lead(engine: Engine, leader: Leader, connection: Connection, patience: float) -> None:
    """Serve until the server says stop, or is gone."""
    while True:
        if engine.is_idle and not connection.poll(patience):
            leader.beat()
            continue
        try:
            while connection.poll():
                message: ToEngine = connection.recv()
                if isinstance(message, Stop):
                    return
                _take(engine, message, connection)
            outputs = engine.step()
            connection.send(Progress(tuple(outputs), engine.load))
        except (EOFError, ConnectionError):
            return  # nobody is there to be served


def _take(engine: Engine, message: Submit | End, connection: Connection) -> None:
    if isinstance(message, End):
        outputs = engine.end(message.request_id, message.index, message.reason)
        connection.send(Progress(tuple(outputs), engine.load))
        return
    try:
        engine.add(message.request)
    except RequestError as error:
        connection.send(Refused(message.request.id, str(error), error.param))


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        options.step_tokens, options.step_sequences, options.chunk_tokens, options.longest, options.host_pages,
        options.policy, frozenset(options.end_token) or None, tuple(options.speculate), options.tree,
        options.steps_under_way, options.tokenizer,
    )  # fmt: skip


def _connection(address: str) -> Connection:
    """The server's end: a path of a socket, as it gave it to this process, with the key in the environment."""
    key = os.environ.get(KEY)
    if not key:
        raise BuildError(
            f"{KEY} is not set: serve.py takes its requests from a server",
            remedy="start it with `superscaler serve`",
        )
    return Client(address, authkey=bytes.fromhex(key))


def _ready(build: Build, worker: Worker, settings: Settings) -> Ready:
    longest = min(worker.longest, settings.longest or worker.longest)
    return Ready(worker.vocab, longest, worker.pages, worker.page_size, build.plan, build.world_size)


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of a ``serve.py``, whose help and mistakes call it `name`."""
    parser = argparse.ArgumentParser(
        prog=name, description="Serve this build. `superscaler serve` starts it with torchrun."
    )
    add = parser.add_argument
    add("--connect", required=True, metavar="SOCKET", help="where the server takes the engine's connection")
    add("--weights", metavar="PATH", help="safetensors file or folder (default: that of the build)")
    add("--compile", action="store_true", help="let what layers compute go through torch.compile")
    add("--allow-edited", action="store_true", help="run although stage files were edited after compiling")
    add("--longest", type=positive, metavar="TOKENS", help="most tokens of a sequence, prompt and answer")
    add(
        "--end-token",
        type=natural,
        action="append",
        default=[],
        help="token that ends a text; may be repeated (default: those of the build)",
    )
    add("--tokenizer", metavar="FOLDER", help="with the model's tokenizer, which grammars of answers need")
    add_engine_options(parser)
    return parser
