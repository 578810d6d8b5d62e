"""The command line: flags are read, handed to the pipeline, and its answers printed; nothing else."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from superscaler.errors import BuildError, ProfileError, SuperscalerError, TraceError

_EPILOG = """\
examples:
  superscaler compile models/gpt.py:tiny --cluster local:4 --plan dp=2,tp=2 -o build/gpt
  torchrun --nproc-per-node 4 build/gpt/train.py --steps 20 --data build/text.safetensors
  superscaler compile models/gpt.py:tiny --inference --inputs tokens --dynamic tokens=batch,seq -o build/gpt-run
  python build/gpt-run/run.py --data build/text.safetensors --out build/logits.safetensors
  superscaler check models/gpt.py:tiny --cluster local:4 --plan tp=2,pp=2,micro_batches=2
  superscaler show build/gpt
  superscaler show --html build/gpt
  superscaler profile --devices 2 -o mine.yaml
  superscaler show models/gpt.py:tiny --cluster local:2 --plan tp=2,sp --communication
  superscaler show models/gpt.py:tiny --cluster local:2 --plan pp=2 --explain 'h.0.attn.q/linear'
  superscaler simulate models/gpt.py:gpt3-175b --cluster dgx-a100:16 --plan dp=2,tp=8,pp=8,micro_batches=32 --batch 64

plans: words joined by commas, or none; auto, to search; or FILE.py:FUNCTION, a plan script (see examples/)
clusters: local:N, dgx-a100:NODES and other presets, or a .yaml file
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 0 for success, 1 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SuperscalerError as error:
        print(f"superscaler: error: {error}", file=sys.stderr)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with what plan strings can say, which is looked up when somebody asks for help."""

    def format_help(self) -> str:
        from superscaler.planner.recipes import explain_words

        return f"{super().format_help()}words of plans:\n{explain_words()}\n"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "superscaler",
        description="Compile a PyTorch model into a verified parallel plan and torch.distributed programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    compile_ = commands.add_parser("compile", help="model and plan -> a build folder that torchrun runs")
    _add_model(compile_, "model")
    compile_.add_argument("-o", "--output", required=True, type=Path, help="the build folder to write")
    compile_.set_defaults(run=_compile)
    check = commands.add_parser(
        "check", help="prove a plan right, and run it against eager PyTorch in one process"
    )
    _add_model(check, "model")
    check.add_argument("--static", action="store_true", help="only the proof; nothing is executed")
    check.add_argument("--steps", type=int, default=2, help="training steps to compare (default 2)")
    check.set_defaults(run=_check)
    show = commands.add_parser("show", help="print a build folder's plan, or the plan of a model")
    _add_model(show, "target")
    show.add_argument("--graph", action="store_true", help="print the traced graph instead")
    show.add_argument("--communication", action="store_true", help="print every move with its bytes instead")
    show.add_argument("--explain", metavar="OPERATOR", help="why one operator is cut and placed as it is")
    show.add_argument(
        "--html", action="store_true", help="write a page that shows who computes what and when instead"
    )
    show.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default report.html, in the build folder if it is one)",
    )
    show.set_defaults(run=_show)
    simulate = commands.add_parser(
        "simulate", help="predict a step's time and memory on a cluster that need not be here"
    )
    _add_model(simulate, "model")
    simulate.add_argument(
        "--trace", type=Path, metavar="FILE", help="write what happens when, for Perfetto or chrome://tracing"
    )
    simulate.set_defaults(run=_simulate)
    profile = commands.add_parser(
        "profile", help="measure this machine's operators and collectives, and write a cluster file"
    )
    profile.add_argument("-o", "--output", required=True, type=Path, help="the .yaml file to write")
    profile.add_argument("--devices", type=int, default=1, help="measured at the same time (default 1)")
    profile.add_argument("--backend", choices=("gloo", "nccl"), help="of CPUs or GPUs (default GPUs if any)")
    profile.add_argument("--quick", action="store_true", help="fewer sizes, shorter measurements")
    profile.add_argument(
        "--database",
        type=Path,
        metavar="FILE",
        help="times of single calls, added to what is there (default profile.json in the folder SUPERSCALER_CACHE "
        "names, else beside the output)",
    )
    _add_model(profile, "--model")
    profile.set_defaults(run=_profile, cluster="")
    return parser


def _add_model(parser: argparse.ArgumentParser, name: str) -> None:
    what = "FILE.py:NAME, such as models/gpt.py:tiny" + (", or a build folder" if name == "target" else "")
    parser.add_argument(name, help=what)
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
    _add_optimizer(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a size of the model"
    )


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "adam", "sgd", "lion"))
    parser.add_argument("--lr", type=float, default=3e-4, help="(peak) learning rate (default 3e-4)")
    parser.add_argument("--lr-schedule", default="constant", choices=("constant", "linear", "cosine"))
    parser.add_argument(
        "--warmup", type=int, default=0, metavar="STEPS", help="until the learning rate peaks"
    )
    parser.add_argument("--lr-steps", type=int, metavar="STEPS", help="after which it is --lr-floor")
    parser.add_argument("--lr-floor", type=float, default=0.0, help="its least value (default 0)")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.0, help="of sgd")
    parser.add_argument("--clip-norm", type=float, metavar="NORM", help="largest norm of all gradients")
    parser.add_argument("--master-weights", action="store_true", help="update float32 copies of parameters")
    parser.add_argument("--autocast", default="", choices=("bfloat16", "float16"), help="of the forward pass")
    parser.add_argument("--loss-scale", choices=("dynamic",), help="scale the loss, skip steps that overflow")


def _compile(options: argparse.Namespace) -> None:
    plan = _plan(options, deferred=True)
    with _progress("verifying"):
        plan.verify()
    with _progress("writing"):
        folder = plan.save(options.output, options.model)
    devices = plan.num_devices
    print(f"{folder}: plan {plan.name!r} for {devices} device(s), verified; run it with")
    entry = "train.py --steps 20" if plan.graph.is_training else "run.py --out OUTPUTS.safetensors"
    print(f"  torchrun --nproc-per-node {devices} {folder}/{entry} --data FILE.safetensors")


def _check(options: argparse.Namespace) -> None:
    if options.static:
        plan = _plan(options, deferred=True)
        with _progress("verifying"):
            plan.verify()
        print(f"plan {plan.name!r}: proved complete, race-free, deadlock-free and within memory")
        return
    model, inputs = _model(options)
    plan = _plan(options, model=(model, inputs))
    with _progress("verifying"):
        plan.verify()
    with _progress("comparing with eager PyTorch"):
        comparison = plan.compare_with_eager(model, inputs, steps=options.steps)
    print(f"plan {plan.name!r}: proved complete, race-free, deadlock-free and within memory")
    print(comparison)


def _show(options: argparse.Namespace) -> None:
    folder = Path(options.target)
    if options.html:
        _show_page(options, folder)
        return
    if folder.is_dir():
        text = folder / "plan.txt"
        if not text.is_file():
            raise BuildError(
                f"{folder} is not a build folder: it has no plan.txt", remedy="name one made by compile -o"
            )
        print(text.read_text().rstrip())
        print("\nprograms: " + ", ".join(str(path) for path in sorted(folder.glob("stage*.py"))))
        return
    options.model = options.target
    if options.graph:
        from superscaler.ir.text import format_graph

        print(format_graph(_trace(options, deferred=True)))
        return
    plan = _plan(options, deferred=True)
    if options.communication:
        print(plan.communication())
        return
    print(plan.explain(options.explain) if options.explain else plan)


def _show_page(options: argparse.Namespace, folder: Path) -> None:
    from superscaler.report.page import page_of_build

    options.model = options.target
    is_build = folder.is_dir()
    page = page_of_build(folder) if is_build else _plan(options, deferred=True).page()
    file = options.output or (folder / "report.html" if is_build else Path("report.html"))
    _write(file, page)
    print(f"{file}: open it in a browser")


def _simulate(options: argparse.Namespace) -> None:
    from superscaler.simulator.trace_events import trace_events

    plan = _plan(options, deferred=True)
    with _progress("simulating"):
        simulation = plan.simulate()
    if options.trace:
        _write(options.trace, json.dumps(trace_events(simulation)))
    print(f"plan {plan.name!r} on {plan.num_devices} devices of {plan.cluster.name}")
    print(simulation)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BuildError(
            f"cannot write {path}: {error}", remedy="name a file in a folder that exists"
        ) from error


def _profile(options: argparse.Namespace) -> None:
    from superscaler.profiling.profile import profile

    if options.devices < 1 or options.output.suffix not in (".yaml", ".yml"):
        raise ProfileError(
            f"{options.devices} devices cannot be measured into {options.output}",
            remedy="write superscaler profile --devices 2 -o mine.yaml",
        )
    options.cluster = options.cluster or f"local:{options.devices}"
    plan = _plan(options, deferred=True) if options.model else None
    with _progress("measuring"):
        measured = profile(options.devices, options.backend or "", quick=options.quick, model=plan)
    cache = os.environ.get("SUPERSCALER_CACHE")
    database = options.database or Path(cache or options.output.parent) / "profile.json"
    measured.save(options.output, database)
    print(
        f"{measured}\n{options.output}: use it as --cluster {options.output}; times of calls are in {database}"
    )


def _model(options: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from superscaler.model_reference import build_model

    if options.batch < 1:
        raise TraceError(f"--batch {options.batch} is no number of samples", remedy="use --batch 1 or more")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        model, inputs = build_model(options.model, options.batch, _overrides(options.set))
    finally:
        torch.set_default_dtype(before)
    return model.eval() if options.inference else model, _chosen(inputs, options.inputs)


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


def _overrides(pairs: Sequence[str]) -> dict[str, Any]:
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


def _trace(options: argparse.Namespace, model: tuple[Any, Any] | None = None, deferred: bool = False) -> Any:
    from superscaler.ir.deferred import deferred_init, recorded
    from superscaler.ir.trace import trace

    with _progress("building the model"):
        if model is None and deferred:
            with deferred_init():
                model = _model(options)
            for fault in recorded(model[0]).faults.values():
                print(f"note: {fault.what}; run it with --weights", file=sys.stderr)
        elif model is None:
            model = _model(options)
    with _progress("tracing"):
        optimizer = None if options.inference else _optimizer(options)
        return trace(
            *model,
            optimizer=optimizer,
            autocast=options.autocast,
            loss_scale=options.loss_scale,
            dynamic=_dynamic(options.dynamic),
        )


def _plan(options: argparse.Namespace, model: tuple[Any, Any] | None = None, deferred: bool = False) -> Any:
    from superscaler.compiler import plan
    from superscaler.model_reference import load_script
    from superscaler.planner.cluster import Cluster

    cluster = Cluster.parse(options.cluster)
    is_file = options.plan.partition(":")[0].endswith(".py")
    how = load_script(options.plan) if is_file else options.plan
    graph = _trace(options, model, deferred)
    with _progress("planning"):
        planned = plan(graph, cluster, how)
    if planned.report:
        print(planned.report)
    return planned


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Say on a terminal what is going on, and how long it took where that is over two seconds."""
    terminal = sys.stderr.isatty()
    if terminal:
        print(f"{what} ...", end="\r", file=sys.stderr, flush=True)
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    if terminal:
        print("\033[K", end="", file=sys.stderr)
    if seconds > 2:
        print(f"{what}: {seconds:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
