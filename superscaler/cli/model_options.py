"""The options that name a model, its optimizer, a cluster and a plan, and what they say."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from superscaler.cli.terminal import progress, say_note
from superscaler.errors import TraceError


def add_model(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options that name a model, a cluster and a plan; `name` is that of the argument for the model."""
    what = "FILE.py:NAME, such as models/gpt.py:tiny" + (", or a build folder" if name == "target" else "")
    parser.add_argument(name, help=what)
    parser.add_argument("--json", action="store_true", help="print the result for a program to read")
    parser.add_argument("--cluster", default="local:1", help="devices to plan for (default local:1)")
    parser.add_argument(
        "--plan",
        default="none",
        help="plan string, auto, or FILE.py:FUNCTION (default none); auto,zero=1 searches among plans that say so",
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="samples in the global batch of one step (default 8)"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float64", "float32", "bfloat16"), help="of parameters"
    )
    parser.add_argument(
        "--inference", action="store_true", help="only the outputs, in eval mode: no loss, no optimizer"
    )
    parser.add_argument(
        "--inputs", metavar="NAMES", help="which of the example inputs to pass, such as tokens (default all)"
    )
    parser.add_argument(
        "--dynamic",
        action="append",
        default=[],
        metavar="INPUT=DIMS",
        help="with --inference: sizes that vary from run to run, a name per dim of an input and - for one that "
        "stays, such as tokens=batch,seq",
    )
    _add_optimizer(parser.add_argument_group("optimizer and training"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a size of the model"
    )


def _add_optimizer(group: Any) -> None:
    add = group.add_argument
    add("--optimizer", default="adamw", choices=("adamw", "adam", "sgd", "lion"))
    add("--lr", type=float, default=3e-4, help="(peak) learning rate (default 3e-4)")
    add("--lr-schedule", default="constant", choices=("constant", "linear", "cosine"))
    add("--warmup", type=int, default=0, metavar="STEPS", help="until the learning rate peaks")
    add("--lr-steps", type=int, metavar="STEPS", help="after which it is --lr-floor")
    add("--lr-floor", type=float, default=0.0, help="its least value (default 0)")
    add("--weight-decay", type=float, default=0.01)
    add("--momentum", type=float, default=0.0, help="of sgd")
    add("--clip-norm", type=float, metavar="NORM", help="largest norm of all gradients")
    add("--master-weights", action="store_true", help="update float32 copies of parameters")
    add("--autocast", default="", choices=("bfloat16", "float16"), help="of the forward pass")
    add("--float8", action="store_true", help="multiply in float8 where linear layers compute in bfloat16")
    add("--loss-scale", choices=("dynamic",), help="scale the loss, skip steps that overflow")


def make_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model and its example inputs."""
    import torch

    from superscaler.model_reference import build_model

    if options.batch < 1:
        raise TraceError(f"--batch {options.batch} is no number of samples", remedy="use --batch 1 or more")
    with default_dtype(getattr(torch, options.dtype)):
        model, inputs = build_model(options.model, options.batch, overrides(options.set))
    return model.eval() if options.inference else model, _chosen(inputs, options.inputs)


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """While a model is built: the dtype of parameters that ask for none."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def named_plan(text: str) -> Any:
    """What ``--plan`` names: a plan string, or the plan script of ``FILE.py:FUNCTION``."""
    from superscaler.model_reference import load_script

    return load_script(text) if text.partition(":")[0].endswith(".py") else text


def _chosen(inputs: Any, names: str | None) -> Any:
    """The example inputs of these names."""
    if names is None:
        return inputs
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in inputs]
    if unknown:
        raise TraceError(
            f"--inputs {names}: the model's file gives no {unknown[0]!r}",
            remedy=f"choose from {', '.join(inputs)}",
        )
    return {name: inputs[name] for name in wanted}


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """What ``--set KEY=VALUE`` says, by key."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise TraceError(f"--set {pair!r} is not KEY=VALUE", remedy="write --set layers=2")
        values[key] = int(value) if value.lstrip("-").isdecimal() else _number_or_text(value)
    return values


def _dynamic(pairs: Sequence[str]) -> dict[str, list[str | None]]:
    """Input -> the names of its dims that vary."""
    named: dict[str, list[str | None]] = {}
    for pair in pairs:
        name, equals, dims = pair.partition("=")
        if not equals or not dims:
            raise TraceError(
                f"--dynamic {pair!r} is not INPUT=DIMS", remedy="write --dynamic tokens=batch,seq"
            )
        named[name] = [None if dim.strip() in ("", "-") else dim.strip() for dim in dims.split(",")]
    return named


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _optimizer(options: argparse.Namespace) -> Any:
    from superscaler.ir.learning_rates import SCHEDULES, Constant
    from superscaler.ir.optimizers import OPTIMIZERS

    rate: Any = options.lr
    if options.lr_schedule != "constant":
        if options.lr_steps is None:
            raise TraceError(
                f"--lr-schedule {options.lr_schedule} needs to know when it ends",
                remedy="add --lr-steps STEPS",
            )
        schedule: Any = SCHEDULES[options.lr_schedule]
        rate = schedule(options.lr, options.warmup, options.lr_steps, options.lr_floor)
    elif options.warmup:
        rate = Constant(options.lr, options.warmup)
    own = {"lr": rate, "weight_decay": options.weight_decay, "clip_norm": options.clip_norm}
    own |= {"master_weights": options.master_weights}
    own |= {"momentum": options.momentum} if options.optimizer == "sgd" else {}
    return OPTIMIZERS[options.optimizer](**own)


def make_graph(
    options: argparse.Namespace, model: tuple[Any, Any] | None = None, deferred: bool = False
) -> Any:
    """The traced graph.

    Args:
        options: What the user said.
        model: The model and its inputs, where they are there.
        deferred: Whether the model is built without memory otherwise.
    """
    from superscaler.ir.deferred import deferred_init, recorded
    from superscaler.ir.trace import trace

    with progress("building the model"):
        if model is None and deferred:
            with deferred_init():
                model = make_model(options)
            for fault in recorded(model[0]).faults.values():
                say_note(f"{fault.what}; run it with --weights")
        elif model is None:
            model = make_model(options)
    with progress("tracing"):
        optimizer = None if options.inference else _optimizer(options)
        return trace(
            *model,
            optimizer=optimizer,
            autocast=options.autocast,
            float8=options.float8,
            loss_scale=options.loss_scale,
            dynamic=_dynamic(options.dynamic),
        )


def make_plan(
    options: argparse.Namespace, model: tuple[Any, Any] | None = None, deferred: bool = False
) -> Any:
    """The plan, of a graph made as `make_graph` does; what a search found is printed."""
    from superscaler.compiler import plan
    from superscaler.planner.cluster import Cluster

    cluster = Cluster.parse(options.cluster)
    how = named_plan(options.plan)
    graph = make_graph(options, model, deferred)
    with progress("planning"):
        planned = plan(graph, cluster, how)
    if planned.report:
        print(planned.report, file=sys.stderr if options.json else sys.stdout)
    return planned
