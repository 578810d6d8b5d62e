"""``superscaler distill``: a small draft for speculation, trained on what the model writes that it drafts for."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superscaler.cli.language_model import (
    add_language_model,
    check_engine_arguments,
    check_reference,
    compile_language_model,
    is_build,
    tokenizer_of,
    weights_of,
)
from superscaler.cli.terminal import print_json, progress, say_note
from superscaler.errors import BuildError, ServingError
from superscaler.runtime.option_values import positive

if TYPE_CHECKING:
    import numpy as np

    from superscaler.distill.lesson import Teacher

_SUMMARY = "train a small draft that proposes tokens to a model that is served"
_EPILOG = """\
examples:
  superscaler distill ~/qwen --draft tiny-qwen/ --text docs/*.md -o build/draft
  superscaler distill models/llama.py:tiny --weights tiny.safetensors --draft models/llama.py:tiny \\
      --draft-set layers=1 --tokens text.npy -o build/draft
  superscaler serve ~/qwen --speculate build/draft

The model continues pieces of the text, and the draft learns what it found likely. Both are kept beside the output, in
FOLDER-training: the same command uses a lesson that was written to its end once more, and goes on with training where
that was interrupted. What follows -- is for the model's serve.py: superscaler distill ... -- --help
"""


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "distill",
        help=_SUMMARY,
        description=_SUMMARY,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        help="what is served: a folder of Hugging Face, FILE.py:NAME, or a build of `superscaler serve`",
    )
    add("--draft", required=True, metavar="MODEL", help="a folder of Hugging Face, whose weights it starts from "
        "if it has any, or FILE.py:NAME")  # fmt: skip
    add(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="the draft's build, for --speculate",
    )
    add("--text", nargs="+", type=Path, metavar="FILE", help="text of what users will ask for")
    add("--tokens", type=Path, metavar="FILE", help="the same as a .npy or .bin file of tokens")
    add(
        "--token-dtype",
        choices=("uint16", "uint32"),
        default="uint16",
        help="of a .bin file (default uint16)",
    )
    add("--json", action="store_true", help="print the result for a program to read")
    add_language_model(parser.add_argument_group("the model"), cache_tokens=16384)
    _add_lesson(parser.add_argument_group("what it writes"))
    _add_training(parser.add_argument_group("the draft and its training"))
    parser.set_defaults(run=run)


def _add_lesson(group: Any) -> None:
    add = group.add_argument
    add("--samples", type=positive, default=2000, help="pieces of text that it continues (default 2000)")
    add("--prompt-tokens", type=positive, default=64, metavar="N", help="of each piece (default 64)")
    add(
        "--answer-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="that it writes after it (default 128)",
    )
    add("--likely", type=positive, default=16, metavar="N",
        help="of the likeliest tokens are written down with each (default 16)")  # fmt: skip
    add(
        "--temperatures",
        type=_numbers,
        default=(0.0, 1.0),
        metavar="T,T",
        help="of answers, in turn (default 0,1)",
    )
    add("--seed", type=int, default=0, help="of the pieces, the answers, and the order of training")


def _add_training(group: Any) -> None:
    add = group.add_argument
    add("--draft-set", action="append", default=[], metavar="KEY=VALUE", help="override a size of the draft")
    add("--steps", type=positive, default=2000, help="training steps (default 2000)")
    add("--batch", type=positive, default=16, help="samples of a step (default 16)")
    add("--lr", type=float, default=1e-3, help="peak learning rate (default 1e-3)")
    add("--autocast", default="", choices=("bfloat16", "float16"), help="of the forward pass")
    add("--training-cluster", default="local:1", help="devices to train on (default local:1)")
    add("--training-plan", default="none", help="plan string (default none)")
    add("--draft-cache-tokens", type=positive, default=4096, metavar="N",
        help="tokens that the draft's own caches hold (default 4096)")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Have the lesson written, train, and write the draft's build."""
    from superscaler.codegen.build import check_replaceable
    from superscaler.distill.lesson import LessonRecipe
    from superscaler.distill.training import TrainingRecipe, distill
    from superscaler.planner.cluster import Cluster
    from superscaler.serve.compile import compile_serving
    from superscaler.serve.paged import CacheSize

    lesson = LessonRecipe(
        options.samples, options.prompt_tokens, options.answer_tokens, options.likely, options.temperatures,
        options.seed,
    )  # fmt: skip
    training = TrainingRecipe(
        options.steps, options.batch, options.lr, options.autocast, options.training_cluster,
        options.training_plan, options.seed,
    )  # fmt: skip
    check_engine_arguments(options.arguments)
    check_replaceable(options.output)  # now, and not after hours of training
    if not is_build(options.model):
        check_reference(options.model)
    text = _tokens(options)
    work = options.output.with_name(options.output.name + "-training")
    with progress("building the draft"):
        draft = _draft(options)
    teacher = _teacher(options, work)
    found = distill(teacher, draft, text, lesson, training, work, say_note)
    cache = CacheSize.of_tokens(options.draft_cache_tokens)
    folder = compile_serving(draft, Cluster.local(1), cache=cache).save(options.output, options.draft)
    if options.json:
        print_json(
            {
                "folder": str(folder),
                "agreement": found.agreement,
                "samples": found.samples,
                "steps": training.steps,
            }
        )
        return
    print(
        f"{folder}: of the model's tokens that it has not seen, {100 * found.agreement:.1f} % are its likeliest"
    )
    print(f"  superscaler serve {options.model} --speculate {folder}")


def _tokens(options: argparse.Namespace) -> "np.ndarray":
    """Of all the text."""
    import numpy as np

    from superscaler.runtime.data.token_source import map_tokens

    if (options.text is None) == (options.tokens is None):
        raise ServingError(
            "what is the model to write about?",
            remedy="give --text FILE ..., or --tokens FILE.npy, one of the two",
        )
    if options.tokens:
        return map_tokens(options.tokens, options.token_dtype)
    tokenizer = tokenizer_of(options)
    if tokenizer is None:
        raise ServingError(
            f"{options.model} has no tokenizer for --text",
            remedy="name one with --tokenizer FOLDER, or give tokens: --tokens FILE.npy",
        )
    found = [tokenizer.encode(_read(path), special=False) for path in options.text]
    return np.concatenate([np.array(each, np.int64) for each in found])


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}", remedy="name files of text") from error
    except UnicodeDecodeError as error:
        raise BuildError(f"{path} cannot be read as text: {error}", remedy="give files in UTF-8") from error


def _teacher(options: argparse.Namespace, work: Path) -> "Teacher":
    from superscaler.distill.lesson import Teacher

    given = Path(options.model)
    folder = given if is_build(given) else compile_language_model(options, work / "model")
    return Teacher(folder, weights_of(options), tuple(options.arguments))


def _draft(options: argparse.Namespace) -> Any:
    """The draft, with its first weights."""
    import torch

    from superscaler.cli.model_options import overrides
    from superscaler.model_reference import build_model
    from superscaler.serve.pretrained import is_pretrained, loaded_model

    torch.manual_seed(options.seed)
    check_reference(options.draft)
    if not is_pretrained(options.draft):
        return build_model(options.draft, 1, overrides(options.draft_set))[0]
    if options.draft_set:
        raise ServingError("--draft-set says nothing of a folder", remedy="change its config.json instead")
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    return loaded_model(options.draft)


def _numbers(text: str) -> tuple[float, ...]:
    """Joined by commas."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers joined by commas, as in 0,1") from error
