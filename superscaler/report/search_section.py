"""The search in the page: which plan was chosen among which, how good it is, and what would help."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from superscaler.planner.show import format_bytes
from superscaler.report.table import facts, table
from superscaler.search.auto import LEAST_GAIN, MORE_MEMORY, Report
from superscaler.simulator.simulation import format_seconds


def describe_search(report: Report, memory_limit: int) -> dict[str, Any]:
    """What the section shows, as JSON; times are in seconds, memory is in bytes.

    Args:
        report: Of the search.
        memory_limit: What the smallest device of the cluster has.
    """
    return {
        "choices": [
            [choice.plan, choice.estimated, choice.simulated, choice.memory_bytes, choice.fits]
            for choice in report.choices
        ],
        "memory_limit": memory_limit,
        "estimated": report.estimated,
        "objective": report.objective,
        "bound": report.bound,
        "gap": report.gap,
        "more_memory": MORE_MEMORY,
        "gain": report.gain_of_more_memory,
        "refused": [reason.splitlines()[0] for reason in report.refused],
    }


def search_section(described: Mapping[str, Any]) -> str:
    """The section, made of what `describe_search` says."""
    titles = (
        "plan", "", "simulated step", "longer by", "estimated step", "fullest device", "of", "fits"
    )  # fmt: skip
    caption = "Plans that were simulated: the chosen one, then the fastest first"
    rows = list(_rows(described["choices"], described["memory_limit"]))
    shown = table(titles, rows, "plans", numbers=range(2, 7), caption=caption, heading=0)
    return facts(_facts(described)) + shown + _refused(described["refused"])


def _facts(described: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "fastest step by the estimate (objective)", format_seconds(described["objective"])
    yield "no plan takes less (bound)", format_seconds(described["bound"])
    yield "gap", f"{described['gap']:.1%}"
    yield "plans estimated to the end", f"{described['estimated']:,}"
    gain = described["gain"]
    more = f"with {format_bytes(described['more_memory'])} more on each device"
    yield more, f"a step would take {gain:.1%} less" if gain > LEAST_GAIN else "no plan would be faster"


def _rows(choices: Sequence[Sequence[Any]], memory_limit: int) -> Iterable[list[str]]:
    chosen = choices[0][2]
    for number, (plan, estimated, simulated, memory, fits) in enumerate(choices):
        yield [
            f"<code>{escape(plan).replace(',', ',<wbr>')}</code>",
            "runner-up" if number else "<b>chosen</b>",
            format_seconds(simulated),
            f"{simulated / chosen - 1:+.1%}" if number else "",
            format_seconds(estimated),
            format_bytes(memory),
            format_bytes(memory_limit),
            "yes" if fits else '<b class="short">no</b>',
        ]


def _refused(reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    entries = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    count = f"{len(reasons)} way{'s' * (len(reasons) > 1)} to cut the model refused, and why"
    return f"<details><summary>{count}</summary><ul>{entries}</ul></details>"
