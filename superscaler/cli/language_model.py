"""The options that name a language model that is served, and what they say: its build, weights and tokenizer."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superscaler.cli.terminal import progress
from superscaler.errors import ServingError
from superscaler.runtime.option_values import positive

if TYPE_CHECKING:
    from superscaler.runtime.serving.server.tokenizer import Tokenizer


def add_language_model(group: Any, cache_tokens: int = 4096) -> None:
    """Add the options; `cache_tokens` is what the caches hold by default."""
    add = group.add_argument
    add("--cluster", default="local:1", help="devices to plan for (default local:1)")
    add("--plan", default="none", help="plan string, or FILE.py:FUNCTION (default none)")
    add("--dtype", choices=("float64", "float32", "bfloat16", "float16"),
        help="of parameters (default: as the folder says, else float32)")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a size of the model")
    add("--weights", metavar="PATH", help="safetensors file or folder (default: the model's folder)")
    add("--tokenizer", metavar="FOLDER", help="with the tokenizer (default: the model's folder)")
    add("--cache-tokens", type=positive, default=cache_tokens, metavar="N",
        help=f"tokens of all sequences that the caches hold (default {cache_tokens})")  # fmt: skip
    add("--page-size", type=positive, default=16, metavar="N", help="tokens on a page of them (default 16)")
    add(
        "--longest",
        type=positive,
        metavar="N",
        help="most tokens of a sequence (default: as the model is configured)",
    )


def compile_language_model(options: argparse.Namespace, folder: Path) -> Path:
    """Compile `options.model` for serving, and write the build folder; returns it."""
    from superscaler.cli.model_options import named_plan
    from superscaler.planner.cluster import Cluster
    from superscaler.serve.compile import compile_serving
    from superscaler.serve.paged import CacheSize

    with progress("building the model"):
        model = unloaded_model(options.model, options.dtype, options.set)
    how = named_plan(options.plan)
    cache = CacheSize.of_tokens(options.cache_tokens, options.page_size)
    with progress("compiling"):
        cluster = Cluster.parse(options.cluster)
        compiled = compile_serving(model, cluster, how, cache=cache, longest=options.longest)
        told = {"arguments": options.words, "cluster": options.cluster, "folder": os.getcwd()}
        return compiled.save(folder, options.model, {"compiled_with": told})


def is_build(reference: Path | str) -> bool:
    """Whether it names a folder that was compiled."""
    return (Path(reference) / "plan.json").is_file()


def check_reference(reference: str) -> None:
    """Refuse what is neither a folder of Hugging Face nor a file: most often one that is not here.

    Raises:
        ServingError: Which says how to come by one.
    """
    from superscaler.serve.pretrained import is_pretrained

    if not is_pretrained(reference) and not reference.rpartition(":")[0] and not Path(reference).is_file():
        missing = "no config.json in it" if Path(reference).is_dir() else "no such folder or file"
        raise ServingError(
            f"{reference!r} is no model: there is {missing}",
            remedy="name a folder on this machine, which `hf download ORGANISATION/NAME --local-dir FOLDER` fetches "
            "from Hugging Face, or FILE.py:NAME such as models/llama.py:tiny",
        )


def unloaded_model(reference: str, dtype: str | None, sizes: Sequence[str]) -> Any:
    """The model that a reference names, without memory.

    Args:
        reference: A folder of Hugging Face, or FILE.py:NAME.
        dtype: Of its parameters; None: as the folder says, else float32.
        sizes: KEY=VALUE, that override those of the file.
    """
    import torch

    from superscaler.cli.model_options import default_dtype, overrides
    from superscaler.ir.deferred import deferred_init
    from superscaler.model_reference import build_model
    from superscaler.serve.pretrained import is_pretrained, pretrained_model

    wanted = getattr(torch, dtype) if dtype else None
    if is_pretrained(reference):
        if sizes:
            raise ServingError("--set says nothing of a folder", remedy="change its config.json instead")
        return pretrained_model(reference, wanted)
    check_reference(reference)
    with default_dtype(wanted or torch.get_default_dtype()), deferred_init():
        return build_model(reference, 1, overrides(sizes))[0]


def check_engine_arguments(arguments: Sequence[str]) -> None:
    """End the program, as for any mistake of a command line, where a build's ``serve.py`` knows no such arguments."""
    from superscaler.runtime.serving.launch import parser

    parser("serve.py").parse_args(["--connect", "the server's", *arguments])


def tokenizer_of(options: argparse.Namespace) -> "Tokenizer | None":
    """The tokenizer of `options.model`, or the one that was named; None where it has none.

    Raises:
        ServingError: One was named that is not there.
    """
    from superscaler.runtime.serving.server.tokenizer import load_tokenizer

    own = options.model if Path(options.model).is_dir() else None
    with progress("loading the tokenizer"):
        place = options.tokenizer or own
        tokenizer = load_tokenizer(place) if place else None
    if options.tokenizer and tokenizer is None:
        raise ServingError(f"there is no tokenizer in {options.tokenizer}", remedy="name another folder")
    return tokenizer


def weights_of(options: argparse.Namespace) -> Path | None:
    """Where the weights of `options.model` are; None: in its build, or nowhere."""
    own = Path(options.model)
    if options.weights:
        return Path(options.weights)
    return own if own.is_dir() and not is_build(own) and any(own.glob("*.safetensors")) else None
