"""What ``torchrun run.py`` does: compute the outputs of all samples of a data set, and write them as one file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from superscaler.runtime.data import Batches, batch_shapes
from superscaler.runtime.option_values import positive
from superscaler.runtime.outputs import OutputFile
from superscaler.runtime.ranks import meet, relative
from superscaler.runtime.session import Session, add_common_options, load_start, run_entry


def main(file: str, arguments: Sequence[str] | None = None) -> None:
    """Run the build folder `file` lies in; its ``run.py`` calls this with its own ``__file__``."""
    run_entry(file, arguments, _parser, _run)


def _run(session: Session, options: argparse.Namespace) -> None:
    build = session.build
    if build.sizes or options.batch:
        build = build.bind(batch_shapes(session.data, build, options.batch))
        session.runtime.use_sizes(build.sizes, build.exchanges)
    weights = load_start(session, options).weights
    batches = Batches(
        session.data, build, session.rank, session.device, is_once=True,
        reads_ahead=not options.no_read_ahead, timeout=options.timeout,
    )  # fmt: skip
    outputs = OutputFile(options.out, build, session.rank)
    with torch.no_grad():
        for micro_batches in batches.epoch():
            outputs.add(session.module.infer_step(weights, micro_batches, session.runtime))
    session.runtime.finish()
    assert batches.samples is not None, "an epoch ends"
    outputs.write(batches.samples, meet)
    if session.rank == 0:
        print(f"{options.out}: outputs of {batches.samples} samples")  # noqa: T201
    session.close()


def _parser(entry: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=relative(entry),
        description="Compute the outputs of the model this folder was compiled from. Start it with torchrun.",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="the .safetensors file to write, on a shared file system: one tensor per output, a row per sample",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="SAMPLES",
        help="samples per batch, where the build leaves it open (default: as in the example it was compiled with)",
    )
    add_common_options(parser)
    return parser
