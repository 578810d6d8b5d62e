"""``superscaler bench serve``: how fast a server answers, as its users would feel it."""

import argparse
import asyncio
import json
from math import inf
from pathlib import Path
from typing import Any

from superscaler.cli.terminal import print_json, write_text
from superscaler.errors import ServingError
from superscaler.runtime.option_values import positive

_SUMMARY = "send requests to a server of the OpenAI API, and measure what comes"
_EPILOG = """\
examples:
  superscaler bench serve --url http://127.0.0.1:8000 --num-prompts 200 --request-rate 10
  superscaler bench serve --dataset prefix_repetition --max-concurrency 8 --goodput ttft:200 tpot:50
  superscaler bench serve --dataset timed_trace --dataset-path trace.jsonl --save-result result.json
"""
_MADE = ("random", "prefix_repetition", "conversation")
_FILES = ("custom", "timed_trace")


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    what = "measurements: bench serve"
    parser = commands.add_parser("bench", help=_SUMMARY, description=what)
    kinds = parser.add_subparsers(required=True, metavar="what")
    serve = kinds.add_parser(
        "serve",
        help=_SUMMARY,
        description=_SUMMARY,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--json", action="store_true", help="print the result for a program to read")
    _add_server(serve.add_argument_group("the server"))
    _add_requests(serve.add_argument_group("what is asked"))
    _add_traffic(serve.add_argument_group("when"))
    _add_result(serve.add_argument_group("the result"))
    serve.set_defaults(run=_run)


def _add_server(group: Any) -> None:
    add = group.add_argument
    add("--url", default="http://127.0.0.1:8000", help="(default http://127.0.0.1:8000)")
    add("--model", help="its name (default: the first that the server has)")
    add("--api-key", default="", metavar="KEY")


def _add_requests(group: Any) -> None:
    add = group.add_argument
    add("--dataset", choices=(*_MADE, *_FILES), default="random", help="(default random)")
    add("--dataset-path", type=Path, metavar="FILE", help="of custom and timed_trace: lines of JSON")
    add("--num-prompts", type=positive, default=100, metavar="N", help="requests (default 100)")
    add("--input-len", type=positive, default=256, metavar="TOKENS", help="of a prompt (default 256)")
    add("--output-len", type=positive, default=64, metavar="TOKENS", help="of an answer (default 64)")
    add("--range-ratio", type=float, default=0.0, metavar="R", help="lengths lie so far around (default 0)")
    add("--num-prefixes", type=positive, default=8, metavar="N", help="of prefix_repetition (default 8)")
    add("--prefix-len", type=positive, default=256, metavar="TOKENS", help="likewise (default 256)")
    add("--vocab", type=positive, metavar="N", help="tokens to draw from (default: as the server says)")
    add("--temperature", type=float, default=0.0, help="(default 0)")
    add("--ignore-eos", action="store_true", help="answers go on after the model's end")
    add("--seed", type=int, default=0, help="of prompts and times (default 0)")


def _add_traffic(group: Any) -> None:
    add = group.add_argument
    add("--request-rate", type=float, default=inf, metavar="R", help="per second (default inf: all at once)")
    add("--burstiness", type=float, default=1.0, metavar="B",
        help="1: Poisson; less comes in bursts, more evenly (default 1)")  # fmt: skip
    add("--max-concurrency", type=positive, metavar="N", help="most that are answered at once")
    add(
        "--speed", type=float, default=1.0, metavar="F", help="of timed_trace: 2 in half the time (default 1)"
    )
    add("--num-warmups", type=int, default=1, metavar="N", help="requests before, not counted (default 1)")


def _add_result(group: Any) -> None:
    add = group.add_argument
    good = "ms within which a request is good: ttft:200 tpot:50 e2el:5000"
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help=good)
    add("--percentiles", default="99", help="joined by commas (default 99)")
    add("--save-result", type=Path, metavar="FILE", help="write all there as JSON")


def _run(options: argparse.Namespace) -> None:
    from superscaler.runtime.serving.bench.report import print_report

    percentiles = _percentiles(options.percentiles)
    report = asyncio.run(_measure(options, percentiles))
    if options.save_result:
        write_text(options.save_result, json.dumps(report, allow_nan=False))
    if options.json:
        print_json(report)
    else:
        print(print_report(report, percentiles))
    errors = [error for error in report["errors"] if error]
    if errors:
        raise ServingError(f"{len(errors)} request(s) failed; the first: {errors[0]}")


async def _measure(options: argparse.Namespace, percentiles: list[float]) -> dict[str, Any]:
    from superscaler.runtime.serving.bench.client import BenchClient
    from superscaler.runtime.serving.bench.report import parse_goodput
    from superscaler.runtime.serving.bench.run import Traffic, look_up, run_benchmark

    goodput = parse_goodput(options.goodput)
    traffic = Traffic(
        options.request_rate, options.burstiness, options.max_concurrency, options.ignore_eos,
        options.temperature, options.seed,
    )  # fmt: skip
    client = BenchClient(options.url, options.api_key)
    served = await look_up(client)
    model = options.model or served.model
    asks = _asks(options, served.vocab)
    if options.num_warmups:
        await run_benchmark(client, model, asks[: options.num_warmups], Traffic(), {})
    return await run_benchmark(client, model, asks, traffic, goodput, percentiles)


def _asks(options: argparse.Namespace, vocab: int | None) -> list[Any]:
    from superscaler.runtime.serving.bench.prompts import DATASETS, Shape, read_prompts, read_trace

    if options.dataset in _FILES and options.dataset_path is None:
        raise ServingError(f"--dataset {options.dataset} is a file", remedy="name it with --dataset-path")
    vocab = options.vocab or vocab
    if vocab is None and options.dataset != "custom":
        raise ServingError("the server does not say how many tokens there are", remedy="say it with --vocab")
    shape = Shape(
        options.num_prompts, vocab or 1, options.input_len, options.output_len, options.range_ratio,
        options.num_prefixes, options.prefix_len, options.seed,
    )  # fmt: skip
    if options.dataset == "custom":
        return list(read_prompts(options.dataset_path, shape))
    if options.dataset == "timed_trace":
        return list(read_trace(options.dataset_path, shape, options.speed))
    return list(DATASETS[options.dataset](shape))


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError as error:
        raise ServingError(f"--percentiles {text!r}", remedy="write 50,99") from error
    if not all(0 <= each <= 100 for each in found):
        raise ServingError(f"--percentiles {text!r}", remedy="each is from 0 to 100")
    return found
