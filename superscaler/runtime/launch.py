"""What ``torchrun train.py`` does: join the other ranks, load its program, weights and data, and train."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from superscaler.errors import BuildError
from superscaler.runtime.checkpoint import SHARD_BYTES, check_target, save_weights
from superscaler.runtime.communication import MARGIN
from superscaler.runtime.cuda_graph import record_in_cuda_graph
from superscaler.runtime.data import Batches
from superscaler.runtime.data.options import add_order_options, order_seed
from superscaler.runtime.elastic import add_elastic_options, choose_build
from superscaler.runtime.option_values import natural, positive
from superscaler.runtime.profile import BEFORE, Profile
from superscaler.runtime.ranks import meet, relative
from superscaler.runtime.recorded import WARM_UP, RecordedStep
from superscaler.runtime.session import (
    Session,
    add_common_options,
    load_start,
    run_entry,
)
from superscaler.runtime.step_report import StepReports
from superscaler.runtime.step_writers import JsonLines, StepWriter, TensorBoard, console
from superscaler.runtime.stopping import Stop
from superscaler.runtime.training_run import NEWEST, TrainingRun

if TYPE_CHECKING:
    from superscaler.runtime.training_checkpoint import Checkpoints

KEEP = 2
"""Checkpoints that stay, where --keep says nothing."""


def main(file: str, arguments: Sequence[str] | None = None) -> None:
    """Train with the build folder `file` lies in; its ``train.py`` calls this with its own ``__file__``."""
    run_entry(file, arguments, _parser, _run, choose_build)


def _run(session: Session, options: argparse.Namespace) -> None:
    build, rank = session.build, session.rank
    if options.save:
        check_target(options.save)
    recorded = _record(session, options)
    checkpoints = _open_checkpoints(session, options)
    run = (checkpoints and checkpoints.start(options.resume)) or _new_run(session, options)
    batches = Batches(
        session.data, build, rank, session.device, seed=order_seed(options),
        reads_ahead=not options.no_read_ahead, timeout=options.timeout,
    )  # fmt: skip
    run.restore(batches)
    with torch.no_grad(), Stop(rank, build.world_size, session.waits, options.timeout + MARGIN) as stop:
        _train(session, run, batches, checkpoints, stop, options)
    if checkpoints:
        checkpoints.save(run, batches)
        checkpoints.close()
    session.runtime.finish()
    if options.save:
        save_weights(
            options.save, build, rank, {**run.weights, **run.states}, meet,
            step=run.step, with_states=options.save_state, source=options.weights,
            shard_bytes=options.shard_bytes,
        )  # fmt: skip
    if recorded:
        recorded.close()
    session.close()


def _train(
    session: Session, run: TrainingRun, batches: Batches, checkpoints: "Checkpoints | None",
    stop: Stop, options: argparse.Namespace,
) -> None:  # fmt: skip
    is_reporter = session.rank == session.build.reporter
    reports = _open_reports(session, run, options) if is_reporter else None
    last = run.begun_at + options.steps
    profile = _open_profile(session, options, last - run.step)
    for number in range(run.step + 1, last + 1):
        session.waits.step = number
        outputs = session.module.train_step(
            run.weights, run.states, batches.micro_batches(number - 1), number, session.runtime
        )
        run.step = number
        if reports and "loss" in outputs:
            run.losses.append(outputs["loss"].detach().clone())
            reports.after_step(run, outputs)
        if checkpoints:
            checkpoints.after_step(run, batches)
        if profile:
            profile.after_step()
        stop.after_step(run)
        if stop.is_due:
            break
    if profile:
        profile.close()
    if reports:
        reports.close()
    if is_reporter and options.losses:
        Path(options.losses).write_text(json.dumps(run.settled_losses().tolist()) + "\n")


def _open_reports(session: Session, run: TrainingRun, options: argparse.Namespace) -> StepReports:
    writers: list[StepWriter] = [console(options.steps, run.steps, sys.stdout)]
    if options.log:
        writers.append(JsonLines(Path(options.log), run.steps))
    if options.tensorboard:
        writers.append(TensorBoard(Path(options.tensorboard), run.steps))
    return StepReports(
        session.build, session.device, options.steps, options.log_every, writers, options.peak_flops
    )


def _record(session: Session, options: argparse.Namespace) -> RecordedStep | None:
    """Let steps be recorded and replayed, if that is asked for."""
    if not options.cuda_graphs:
        return None
    if options.profile:
        raise BuildError(
            "--profile measures functions of a program, and --cuda-graphs replays steps without calling them",
            remedy="profile without --cuda-graphs, or look at the replays with Nsight Systems",
        )
    return record_in_cuda_graph(session.build, session.rank, session.module, session.device, session.waits)


def _open_profile(session: Session, options: argparse.Namespace, steps: int) -> Profile | None:
    if not options.profile:
        return None
    return Profile(
        Path(options.profile), session.build, session.rank, session.module, session.waits,
        options.profile_steps, steps,
    )  # fmt: skip


def _new_run(session: Session, options: argparse.Namespace) -> TrainingRun:
    start = load_start(session, options)
    return TrainingRun(start.weights, start.states, start.step, start.step, options.seed)


def _open_checkpoints(session: Session, options: argparse.Namespace) -> "Checkpoints | None":
    if not options.checkpoint:
        given = [
            name for name in ("resume", "checkpoint_every", "keep") if getattr(options, name) is not None
        ]
        if given:
            raise BuildError(
                f"--{given[0].replace('_', '-')} is given, but no folder of checkpoints",
                remedy="name it with --checkpoint",
            )
        return None
    # torch.distributed.checkpoint takes a second to import
    from superscaler.runtime.training_checkpoint import Checkpoints

    return Checkpoints(
        options.checkpoint, session.build, session.rank, session.device,
        every=options.checkpoint_every, keep=options.keep or KEEP,
    )  # fmt: skip


def _parser(entry: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=relative(entry),
        description="Train the model this folder was compiled from. Start it with torchrun.",
    )
    add = parser.add_argument
    add(
        "--steps",
        type=natural,
        default=10,
        help="training steps of the run, with --resume those made before among them (default 10)",
    )
    add_common_options(parser)
    add(
        "--cuda-graphs",
        action="store_true",
        help=f"record a step in a CUDA graph after the first {WARM_UP}, and replay it, for steps that a GPU finishes "
        "faster than Python launches them; with or without --compile",
    )
    add_order_options(parser)
    _add_checkpoint_options(parser)
    add(
        "--save",
        metavar="PATH",
        help="write the trained weights to this .safetensors file, or else to this folder, as transformers "
        "writes one, with the configuration and tokenizer of the folder --weights; on a shared file system",
    )
    add("--save-state", action="store_true", help="with --save: write the optimizer states too")
    add(
        "--shard-bytes",
        type=positive,
        default=SHARD_BYTES,
        metavar="BYTES",
        help=f"with --save FOLDER: how large its files may be (default {SHARD_BYTES})",
    )
    add("--losses", metavar="PATH", help="write the losses of all steps to this file, as a JSON list")
    _add_report_options(parser)
    add_elastic_options(parser)
    return parser


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("progress").add_argument
    add(
        "--log-every",
        type=positive,
        default=1,
        metavar="STEPS",
        help="print every so many steps, and log them (default 1); between them nothing waits for the loss",
    )
    add("--log", metavar="FILE", help="write a line of JSON per step that is printed to this file")
    add("--tensorboard", metavar="FOLDER", help="write curves for TensorBoard to this folder")
    add(
        "--peak-flops",
        type=float,
        metavar="FLOPS",
        help="operations per second of one device, for the MFU (default: what the cluster's data sheet says)",
    )
    add(
        "--profile",
        metavar="FOLDER",
        help="measure some steps, and write a trace for Perfetto of all ranks, what was foretold beside it, to this "
        "folder, on a shared file system",
    )
    add(
        "--profile-steps",
        type=positive,
        default=2,
        metavar="COUNT",
        help=f"with --profile: how many steps, after the first {BEFORE} (default 2)",
    )


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training checkpoints").add_argument
    add(
        "--checkpoint",
        metavar="FOLDER",
        help="keep training checkpoints here, on a shared file system; one is written at the end",
    )
    add(
        "--checkpoint-every",
        type=positive,
        metavar="STEPS",
        help="with --checkpoint: write one every so many steps too, while training goes on",
    )
    add(
        "--keep",
        type=positive,
        metavar="COUNT",
        help=f"with --checkpoint: how many of the newest stay (default {KEEP})",
    )
    add(
        "--resume",
        type=natural,
        nargs="?",
        const=NEWEST,
        metavar="STEP",
        help="go on from the newest checkpoint in the folder --checkpoint, or from that of a step; whatever the "
        "plan and the number of devices it was saved under. A run begins where there is none yet",
    )
