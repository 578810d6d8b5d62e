"""The report of a benchmark: numbers with the names that ``vllm bench serve`` gives them."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from superscaler.errors import ServingError
from superscaler.runtime.serving.bench.client import Measured

_METRICS = {"ttft": "Time to First Token", "tpot": "Time per Output Token (excl. 1st token)",
            "itl": "Inter-token Latency", "e2el": "End-to-end Latency"}  # fmt: skip
_DRAFTS, _DRAFT_TOKENS, _ACCEPTED = (
    f"vllm:spec_decode_num_{what}_total" for what in ("drafts", "draft_tokens", "accepted_tokens")
)


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """``ttft:200 tpot:50``: the milliseconds within which a request is good.

    Raises:
        ServingError: It says something else.
    """
    found = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise ServingError(f"--goodput {pair!r}", remedy="write ttft:200, tpot:50 or e2el:5000, in ms")
        found[name] = float(value)
    return found


def make_report(
    measured: Sequence[Measured],
    seconds: float,
    goodput: Mapping[str, float],
    percentiles: Sequence[float] = (99.0,),
    drafted: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What all requests together say.

    Args:
        measured: Each of them.
        seconds: From the first that was sent to the last that ended.
        goodput: Milliseconds within which a request is good, by the name of the metric.
        percentiles: Which are told.
        drafted: Counters of speculation, as they grew meanwhile.
    """
    good = [each for each in measured if not each.error]
    values = {
        "ttft": [each.first for each in good if each.tokens_at],
        "tpot": [each.per_token for each in good if each.output_tokens > 1],
        "itl": [gap for each in good for gap in each.between],
        "e2el": [each.whole for each in good],
    }
    tokens_in, tokens_out = (
        sum(getattr(each, f"{way}_tokens") for each in good) for way in ("input", "output")
    )
    report: dict[str, Any] = {
        "duration": seconds,
        "completed": len(good),
        "failed": len(measured) - len(good),
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": len(good) / seconds,
        "request_goodput": sum(_is_good(each, goodput) for each in good) / seconds if goodput else None,
        "output_throughput": tokens_out / seconds,
        "total_token_throughput": (tokens_in + tokens_out) / seconds,
        "max_output_tokens_per_s": _most_tokens_in_a_second(good),
        "max_concurrent_requests": _most_at_once(good),
        "input_lens": [each.input_tokens for each in measured],
        "output_lens": [each.output_tokens for each in measured],
        "ttfts": [each.first if each.tokens_at else None for each in measured],
        "itls": [each.between for each in measured],
        "errors": [each.error for each in measured],
    }
    for name, found in values.items():
        report |= _summary(name, found, percentiles)
    return report | _speculation(drafted or {})


def _is_good(measured: Measured, goodput: Mapping[str, float]) -> bool:
    found = {"ttft": measured.first, "tpot": measured.per_token, "e2el": measured.whole}
    return all(found[name] * 1000 <= most for name, most in goodput.items())


def _summary(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    values = np.array(seconds or [0.0]) * 1000
    found = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
    found |= {f"p{each:g}": np.percentile(values, each) for each in percentiles}
    return {f"{what}_{name}_ms": float(value) for what, value in found.items()}


def _most_tokens_in_a_second(measured: Sequence[Measured]) -> float:
    """Over whole seconds since the first request; tokens that come together are told apart by their number."""
    start = min((each.sent for each in measured), default=0.0)
    seconds: defaultdict[int, float] = defaultdict(float)
    for each in measured:
        for at in each.tokens_at:
            seconds[int(at - start)] += each.output_tokens / len(each.tokens_at)
    return max(seconds.values(), default=0.0)


def _most_at_once(measured: Sequence[Measured]) -> int:
    changes = sorted([(each.sent, 1) for each in measured] + [(each.ended, -1) for each in measured])
    return int(max(np.cumsum([change for _, change in changes]), default=0))


def _speculation(drafted: Mapping[str, float]) -> dict[str, float]:
    drafts, tokens, accepted = (drafted.get(name, 0.0) for name in (_DRAFTS, _DRAFT_TOKENS, _ACCEPTED))
    if not drafts:
        return {}
    return {
        "spec_decode_num_drafts": drafts,
        "spec_decode_draft_tokens": tokens,
        "spec_decode_accepted_tokens": accepted,
        "spec_decode_acceptance_rate": 100 * accepted / tokens,
        "spec_decode_acceptance_length": 1 + accepted / drafts,
    }


def counters(metrics: str) -> dict[str, float]:
    """The counters of speculation in what ``/metrics`` says; added up over their labels."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        name, _, value = re.sub(r"\{.*\}", "", line).partition(" ")
        if name in (_DRAFTS, _DRAFT_TOKENS, _ACCEPTED):
            found[name] = found.get(name, 0.0) + float(value.split()[0])
    return found


def print_report(report: Mapping[str, Any], percentiles: Sequence[float] = (99.0,)) -> str:
    """The report as a person reads it."""
    rows = [
        ("Successful requests:", report["completed"]),
        ("Failed requests:", report["failed"]),
        ("Benchmark duration (s):", report["duration"]),
        ("Total input tokens:", report["total_input_tokens"]),
        ("Total generated tokens:", report["total_output_tokens"]),
        ("Request throughput (req/s):", report["request_throughput"]),
    ]
    if report["request_goodput"] is not None:
        rows.append(("Request goodput (req/s):", report["request_goodput"]))
    rows += [
        ("Output token throughput (tok/s):", report["output_throughput"]),
        ("Peak output token throughput (tok/s):", report["max_output_tokens_per_s"]),
        ("Peak concurrent requests:", report["max_concurrent_requests"]),
        ("Total token throughput (tok/s):", report["total_token_throughput"]),
    ]
    lines = [_title("Serving Benchmark Result", "="), *(_row(*row) for row in rows)]
    for name, what in _METRICS.items():
        lines.append(_title(what, "-"))
        for kind in ("mean", "median", *(f"p{each:g}" for each in percentiles)):
            label = f"{kind.capitalize()} {name.upper()} (ms):"
            lines.append(_row(label, report[f"{kind}_{name}_ms"]))
    if "spec_decode_num_drafts" in report:
        lines += [
            _title("Speculative Decoding", "-"),
            _row("Acceptance rate (%):", report["spec_decode_acceptance_rate"]),
            _row("Acceptance length:", report["spec_decode_acceptance_length"]),
            _row("Drafts:", int(report["spec_decode_num_drafts"])),
            _row("Draft tokens:", int(report["spec_decode_draft_tokens"])),
            _row("Accepted tokens:", int(report["spec_decode_accepted_tokens"])),
        ]
    return "\n".join([*lines, "=" * 60])


def _title(text: str, line: str) -> str:
    return f" {text} ".center(60, line)


def _row(label: str, value: float) -> str:
    return f"{label:<45} {value:<14.2f}" if isinstance(value, float) else f"{label:<45} {value:<14}"
