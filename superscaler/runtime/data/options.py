"""Command-line options that say what the data is and how it is read."""

import argparse

from superscaler.runtime.data.token_source import TOKEN_DTYPES, TokenFormat


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options of every entry script that reads data."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        metavar="DATA",
        help="data set: a .safetensors file with one tensor per input, a .bin or .npy file of tokens, a folder that "
        "save_to_disk of Hugging Face wrote, or FILE.py:FUNCTION, a function without arguments that returns a "
        "dataset or an iterable of samples (default: data.safetensors here)",
    )
    form = TokenFormat()
    add("--tokens", default=form.tokens, metavar="INPUT",
        help=f"of a file of tokens: the input that is given them (default {form.tokens})")  # fmt: skip
    add("--targets", default=form.targets, metavar="INPUT",
        help=f"of a file of tokens: the input that is given what follows each (default {form.targets})")  # fmt: skip
    add("--no-shift", action="store_true",
        help="of a file of tokens: targets are the tokens themselves, for a model that shifts them")  # fmt: skip
    add("--token-dtype", choices=TOKEN_DTYPES, default=form.dtype,
        help=f"of a .bin file: the type of a token (default {form.dtype})")  # fmt: skip
    add("--sample-tokens", type=int, metavar="TOKENS",
        help="of a file of tokens: how many a sample has (default: as compiled)")  # fmt: skip
    add("--no-read-ahead", action="store_true",
        help="read each batch when it is needed, in the main thread: for data sets bound to one thread")  # fmt: skip


def add_order_options(parser: argparse.ArgumentParser) -> None:
    """The options of training on the order of samples."""
    add = parser.add_argument
    add("--shuffle", action="store_true", help="take the samples of each epoch in a random order of its own")
    add("--data-seed", type=int, default=0, metavar="SEED", help="seed of that order (default 0)")


def token_format(options: argparse.Namespace) -> TokenFormat:
    """How samples are cut from a file of tokens."""
    return TokenFormat(
        tokens=options.tokens,
        targets=options.targets,
        shift=0 if options.no_shift else 1,
        dtype=options.token_dtype,
        length=options.sample_tokens,
    )


def order_seed(options: argparse.Namespace) -> int | None:
    """The seed of the order; None: samples come as they lie."""
    return options.data_seed if options.shuffle else None
