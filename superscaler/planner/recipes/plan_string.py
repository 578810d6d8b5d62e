"""Plan strings: ``dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4,zero=1,sp`` is a combination of recipes.

The devices form one array per row of the pipeline, data parallel outside tensor parallel; rows are outermost.
"""

from collections.abc import Callable
from typing import Any

from superscaler.errors import PlanError
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.pipelines import scheduled_pipeline
from superscaler.planner.recipes.table import LISTS, NUMBERS, RECIPES, SHORT, PlanOptions

PlanScript = Callable[[Planner], None]


def words() -> list[str]:
    """Every word a plan string may have, those with several values as ``zero=1|2|3``."""
    values: dict[str, list[str]] = {}
    for row in RECIPES:
        values.setdefault(row.key, []).extend(filter(None, [row.value]))
    values |= {key: ["N"] for key in NUMBERS} | {key: ["N+N"] for key in LISTS}
    found = []
    for key, choices in values.items():
        word = "=".join(filter(None, (key, "|".join(choices))))
        found += [key, word] if key in SHORT else [word]
    return found


def explain_words() -> str:
    """A line per word: what it stands for, and whose idea it is."""
    said = {row.word: f"{row.about} ({row.source})" for row in RECIPES}
    said |= {f"{key}=N": about for key, about in NUMBERS.items()}
    said |= {f"{key}=N+N": about for key, about in LISTS.items()}
    width = max(map(len, said))
    return "\n".join(f"  {word:<{width}}  {about}" for word, about in said.items())


def parse_plan(text: str) -> PlanOptions:
    """Read a plan string.

    Raises:
        PlanError: A word is unknown, a number is missing or wrong, or options do not go together.
    """
    options = PlanOptions(**said_words(text))
    _check(text, options)
    return options


def said_words(text: str) -> dict[str, Any]:
    """The words of a plan string and their values, one by one.

    Raises:
        PlanError: A word is unknown or said twice, or a number is missing.
    """
    numbers = {*NUMBERS, *(row.key for row in RECIPES if row.value == "N")}
    choices = {row.word for row in RECIPES if row.value != "N"}
    said: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = word.partition("=")
        if key in said:
            raise PlanError(f"the plan {text!r} says {key} twice", remedy="keep one of them")
        if key in SHORT and not equals:
            value = SHORT[key]
        if key in numbers and value.isdecimal():
            said[key] = int(value)
        elif key in LISTS and all(map(str.isdecimal, value.split("+"))):
            said[key] = tuple(map(int, value.split("+")))
        elif not equals and key in choices:
            said[key] = True
        elif value and f"{key}={value}" in choices:
            said[key] = int(value) if value.isdecimal() else value
        elif value == "0" and f"{key}=1" in choices:
            said[key] = 0
        elif word != "none":
            raise PlanError(
                f"the plan {text!r} has a word that means nothing: {word!r}",
                remedy=f"words are {', '.join(words())}, or none",
            )
    return said


def _check(text: str, options: PlanOptions) -> None:
    numbers = (options.pp, options.co_shard, options.micro_batches, options.virtual, *options.layers)
    if min(*options.axes.values(), *numbers) < 1:
        raise PlanError(f"the plan {text!r} has a number below 1", remedy="use whole numbers from 1")
    if options.zero and options.dp == 1:
        raise PlanError(
            f"the plan {text!r} has zero={options.zero} but no dp to cut over", remedy="add dp=2 or more"
        )
    if "virtual" in text and options.schedule != "interleaved":
        raise PlanError(
            f"the plan {text!r} has virtual stages but no schedule for them",
            remedy="add schedule=interleaved",
        )
    if options.sp and options.tp == 1:
        raise PlanError(f"the plan {text!r} has sp but no tp to cut over", remedy="add tp=2 or more")


def recipe(text: str) -> PlanScript:
    """The plan script a plan string stands for."""
    options = parse_plan(text)

    def script(p: Planner) -> None:
        if p.cluster.num_devices != options.num_devices:
            sizes = {**options.axes, "pp": options.pp}
            product = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "dp 1"
            raise PlanError(
                f"the plan {text!r} needs {options.num_devices} devices ({product}), "
                f"the cluster {p.cluster.name!r} has {p.cluster.num_devices}",
                remedy=f"use {options.num_devices} devices (--cluster local:{options.num_devices}), "
                f"or a plan whose {' x '.join(sizes)} is {p.cluster.num_devices}",
            )
        place = f"schedule={options.schedule}" if options.schedule else f"pp={options.pp}"
        p.said_by = f"{place} in the plan {text!r}" if place in text else f"the plan {text!r}"
        scheduled_pipeline(
            p, options.schedule_name, options.pp, options.micro_batches, options.virtual, options.layers,
            **options.axes,
        )  # fmt: skip
        apply_recipes(p, options, f" in the plan {text!r}")

    return script


def apply_recipes(p: Planner, options: PlanOptions, said_in: str = "") -> None:
    """What a plan string says of the stages that are placed.

    Args:
        p: The planner, after all stages are placed.
        options: What the string says.
        said_in: What to add to a word in errors.
    """
    for row in RECIPES:
        word = row.word_said(options)
        if word and row.apply:
            p.said_by = f"{word}{said_in}"
            row.apply(p, options)
    p.said_by = ""
