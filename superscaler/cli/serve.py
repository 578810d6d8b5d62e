"""``superscaler serve``: a model behind the OpenAI API."""

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from superscaler.cli.language_model import (
    add_language_model,
    check_engine_arguments,
    compile_language_model,
    is_build,
    tokenizer_of,
    weights_of,
)
from superscaler.errors import BuildError, ServingError
from superscaler.runtime.option_values import positive
from superscaler.runtime.serving.engine_options import add_engine_options, engine_words

_SUMMARY = "compile a model for serving, and answer HTTP requests as the OpenAI API has them"
_EPILOG = """\
examples:
  superscaler serve models/llama.py:tiny
  superscaler serve ~/qwen --cluster local:2 --plan tp=2 --port 9000 --api-key-file keys.txt
  superscaler serve ~/qwen -o build/qwen --cache-tokens 65536 --compile-only
  superscaler serve build/qwen --weights ~/qwen --tokenizer ~/qwen
  superscaler serve ~/qwen --speculate build/draft --speculate ngram
"""
_KEYS = "SUPERSCALER_API_KEYS"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "serve",
        usage="superscaler serve MODEL [options] [-- ARGUMENTS OF ITS serve.py]",
        help=_SUMMARY,
        description=_SUMMARY,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "a folder of Hugging Face, FILE.py:NAME such as models/llama.py:tiny, or a build folder of this command"
    parser.add_argument("model", help=what)
    group = parser.add_argument_group("the model and its plan")
    add_language_model(group)
    group.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="keep the build folder there")
    group.add_argument("--compile-only", action="store_true", help="write the build folder, and do not serve")
    _add_engine(parser.add_argument_group("the engine"))
    _add_server(parser.add_argument_group("the server"))
    parser.set_defaults(run=run)


def _add_engine(group: Any) -> None:
    add_engine_options(group)
    add = group.add_argument
    add("--torch-compile", action="store_true", help="let what layers compute go through torch.compile")
    add("--max-restarts", type=int, default=3, metavar="N", help="new engines after deaths (default 3)")
    add("--start-seconds", type=float, default=600.0, metavar="S", help="until it is ready (default 600)")


def port_number(text: str) -> int:
    """A port to listen on, or 0, as an option's value."""
    value = int(text)
    if not 0 <= value < 1 << 16:  # the system would take a part of it
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to {(1 << 16) - 1}")
    return value


def _add_server(group: Any) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    add("--port", type=port_number, default=8000, help="(default 8000; 0: any that is free)")
    add("--served-model-name", metavar="NAME", help="in requests (default: as the model is given)")
    add("--generation-config", choices=("auto", "none"), default="auto",
        help="auto: how tokens are drawn where a request does not say is what the model's generation_config.json "
        "says; none: what the OpenAI API does (default auto)")  # fmt: skip
    add("--api-key", action="append", default=[], metavar="KEY",
        help=f"which calls must bring; repeated, or in {_KEYS}, joined by commas")  # fmt: skip
    add("--api-key-file", type=Path, metavar="FILE", help="of keys, one a line")
    add("--max-body-bytes", type=positive, default=8 << 20, metavar="N", help="of a request (default 8 MiB)")
    add("--max-prompt-tokens", type=positive, metavar="N", help="(default: as many as fit)")
    add("--max-waiting", type=positive, default=1024, metavar="N",
        help="requests without a token yet; more are answered with 429 (default 1024)")  # fmt: skip
    add("--request-seconds", type=float, default=600.0, metavar="S", help="for an answer (default 600)")
    add("--drain-seconds", type=float, default=30.0, metavar="S",
        help="that answers are given to end after SIGTERM (default 30)")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Compile and serve; `options.arguments` are for the engine's script."""
    from tempfile import TemporaryDirectory

    check_engine_arguments([*engine_words(options), *options.arguments])
    source = Path(options.model)
    with ExitStack() as stack:
        if is_build(source):
            folder = source
        else:
            _check_output(options)
            parent = (
                None if options.output else stack.enter_context(TemporaryDirectory(prefix="superscaler-"))
            )
            folder = compile_language_model(options, options.output or Path(parent or "") / "build")
        if options.compile_only:
            print(f"{folder}: serve it with\n  superscaler serve {folder}")
            return
        _serve(options, folder)


def _check_output(options: argparse.Namespace) -> None:
    if options.compile_only and not options.output:
        raise BuildError("--compile-only keeps nothing without a folder", remedy="add -o FOLDER")


def _serve(options: argparse.Namespace, folder: Path) -> None:
    from superscaler.runtime.build import read_build
    from superscaler.runtime.serving.generation import sampling_defaults
    from superscaler.runtime.serving.sampling_params import SamplingParams
    from superscaler.runtime.serving.server.engine_process import torchrun

    try:
        from superscaler.runtime.serving.server.application import ServerLimits
        from superscaler.runtime.serving.server.serving_process import ServingOptions, run
    except ImportError as error:
        raise ServingError(f"HTTP needs {error.name}", remedy="pip install 'superscaler[serve]'") from error
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    build = read_build(folder)
    tokenizer, weights = tokenizer_of(options), weights_of(options)
    knows_ends = build.described.get("serving", {}).get("end_tokens")
    ends = sorted(tokenizer.end_tokens) if tokenizer and not knows_ends else []
    limits = ServerLimits(
        body_bytes=options.max_body_bytes,
        prompt_tokens=options.max_prompt_tokens,
        waiting=options.max_waiting,
        request_seconds=options.request_seconds,
    )
    how = ServingOptions(
        model=options.served_model_name or options.model,
        host=options.host,
        port=options.port,
        limits=limits,
        api_keys=_api_keys(options),
        defaults=sampling_defaults(build) if options.generation_config == "auto" else SamplingParams(),
        max_restarts=options.max_restarts,
        start_seconds=options.start_seconds,
        drain_seconds=options.drain_seconds,
    )
    place = tokenizer and (options.tokenizer or options.model)
    run(torchrun(folder, build.world_size, _engine_arguments(options, weights, place, ends)), how, tokenizer)


def _engine_arguments(
    options: argparse.Namespace, weights: Any, tokenizer: Any, ends: Sequence[int]
) -> list[str]:
    arguments = [] if weights is None else ["--weights", str(weights)]
    arguments += [] if tokenizer is None else ["--tokenizer", str(tokenizer)]
    arguments += ["--compile"] if options.torch_compile else []
    for token in ends:
        arguments += ["--end-token", str(token)]
    return [*arguments, *engine_words(options), *options.arguments]


def _api_keys(options: argparse.Namespace) -> tuple[str, ...]:
    keys = [*options.api_key, *os.environ.get(_KEYS, "").split(",")]
    if options.api_key_file:
        try:
            keys += options.api_key_file.read_text("utf-8").splitlines()
        except OSError as error:
            raise ServingError(f"cannot read the keys: {error}", remedy="name a file of keys") from error
        if not any(map(str.strip, keys)):
            raise ServingError(f"{options.api_key_file} holds no key", remedy="write one into it")
    return tuple(key.strip() for key in keys if key.strip())
