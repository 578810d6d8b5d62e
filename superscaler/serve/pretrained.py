"""Pretrained models: a folder of Hugging Face with ``config.json`` and safetensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from superscaler.errors import TraceError
from superscaler.ir.deferred import deferred_init


def is_pretrained(reference: str) -> bool:
    """Whether a reference names such a folder."""
    return (Path(reference) / "config.json").is_file()


def pretrained_model(folder: Path | str, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The causal language model that a folder configures, without memory: the engine reads the weights.

    No code in the folder is run.

    Args:
        folder: With ``config.json``.
        dtype: Of the parameters; None: that in which they were saved.

    Raises:
        TraceError: `transformers` has no such model, or is not there.
    """
    with deferred_init():
        return _from_config(folder, dtype).eval()


def loaded_model(folder: Path | str) -> torch.nn.Module:
    """The causal language model that a folder configures, in float32: with the folder's weights, or else new ones.

    Raises:
        TraceError: `transformers` has no such model, or is not there, or the weights are of another.
    """
    if not any(Path(folder).glob("*.safetensors")):
        return _from_config(folder, torch.float32)
    with _errors(folder):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )


def _from_config(folder: Path | str, dtype: torch.dtype | None) -> torch.nn.Module:
    with _errors(folder):
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype or torch.float32, trust_remote_code=False
        )
        if (Path(folder) / "generation_config.json").is_file():  # which from_pretrained alone would read
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return model


@contextmanager
def _errors(folder: Path | str) -> Iterator[None]:
    """Whatever the code of some model raises at what some file says, as an error that names the folder."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise TraceError(
            f"{folder} is a model of transformers, which is not installed",
            remedy="pip install 'superscaler[models]'",
        ) from error
    try:
        yield
    except Exception as error:
        raise TraceError(
            f"{folder} cannot be loaded: {type(error).__name__}: {error}",
            where=f"{folder}/config.json",
            remedy="name a model that AutoModelForCausalLM of this version of transformers knows",
        ) from error
