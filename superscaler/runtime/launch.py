"""What ``torchrun train.py`` does: join the other ranks, load its program, weights and data, and train."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from superscaler.runtime.build import Build
from superscaler.runtime.checkpoint import SHARD_BYTES, check_target, save_weights
from superscaler.runtime.data import Batches
from superscaler.runtime.ranks import leave, meet, relative
from superscaler.runtime.session import Session, add_common_options, positive, run_entry


def main(file: str, arguments: Sequence[str] | None = None) -> None:
    """Train with the build folder `file` lies in; its ``train.py`` calls this with its own ``__file__``."""
    run_entry(file, arguments, _parser, _run)


def _run(session: Session, options: argparse.Namespace) -> None:
    build, rank = session.build, session.rank
    if options.save:
        check_target(options.save)
    batches = Batches(session.data, build, rank, session.device)
    with torch.no_grad():
        _train(session, batches, options)
    session.runtime.finish()
    if options.save:
        save_weights(
            options.save, build, rank, {**session.weights, **session.states}, meet,
            step=session.steps + options.steps, with_states=options.save_state, source=options.weights,
            shard_bytes=options.shard_bytes,
        )  # fmt: skip
    leave()


def _train(session: Session, batches: Batches, options: argparse.Namespace) -> None:
    build, runtime = session.build, session.runtime
    is_reporter = session.rank == build.programs[build.loss_row].devices[0]
    tokens = _elements_per_step(build)
    losses: list[Tensor | float] = []
    since, last = time.perf_counter(), 0
    for step in range(1, options.steps + 1):
        number = session.steps + step
        outputs = session.module.train_step(
            session.weights, session.states, batches.micro_batches(number - 1), number, runtime
        )
        if not is_reporter or "loss" not in outputs:
            continue
        losses.append(outputs["loss"].detach().clone())
        if step % options.log_every == 0 or step == options.steps:
            loss = float(losses[-1])
            seconds = (time.perf_counter() - since) / (step - last)
            norm = f"  grad norm {float(outputs['grad_norm']):.3f}" if "grad_norm" in outputs else ""
            line = f"step {step}/{options.steps}  loss {loss:.4f}{norm}  {tokens / seconds:.0f} tokens/s"
            print(line, flush=True)  # noqa: T201
            since, last = time.perf_counter(), step
    if is_reporter and options.losses:
        Path(options.losses).write_text(json.dumps([float(loss) for loss in losses]) + "\n")


def _elements_per_step(build: Build) -> int:
    _, shape = next(iter(build.inputs.values()))
    return torch.Size(shape).numel()


def _parser(entry: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=relative(entry),
        description="Train the model this folder was compiled from. Start it with torchrun.",
    )
    add = parser.add_argument
    add("--steps", type=positive, default=10, help="training steps to run (default 10)")
    add_common_options(parser)
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
    add(
        "--log-every",
        type=positive,
        default=1,
        metavar="STEPS",
        help="print every so many steps (default 1)",
    )
    add("--losses", metavar="PATH", help="write the losses of all steps to this file, as a JSON list")
    return parser
