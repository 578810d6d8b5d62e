"""Pretrained models: a folder of Hugging Face with ``config.json`` and safetensors."""

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
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise TraceError(
            f"{folder} is a model of transformers, which is not installed",
            remedy="pip install 'superscaler[models]'",
        ) from error
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with deferred_init():
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype or torch.float32, trust_remote_code=False
            )
    except Exception as error:  # whatever the code of some model raises at what some file says
        raise TraceError(
            f"{folder} cannot be loaded: {type(error).__name__}: {error}",
            where=f"{folder}/config.json",
            remedy="serve a model that AutoModelForCausalLM of this version of transformers knows",
        ) from error
    return model.eval()
