"""Any causal language model of transformers, from the configuration in a checkpoint folder.

    superscaler compile examples/transformers_model.py:FOLDER --cluster local:4 --plan tp=2,pp=2 -o build/model
    torchrun --nproc-per-node 4 build/model/train.py --weights FOLDER --save TRAINED --data FILE.safetensors

The compiler makes no tensors: the ranks read their pieces of FOLDER, and write TRAINED for `from_pretrained`.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def build(folder: str, **overrides: int) -> PreTrainedModel:
    """The model in `folder`, untrained, in the precision of the command line; `overrides` are of its config."""
    config = AutoConfig.from_pretrained(folder, use_cache=False, **without_sequence(overrides))
    return AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype())


def example_inputs(folder: str, batch: int, sequence: int = 128, **overrides: int) -> dict[str, torch.Tensor]:
    """Tokens, and the same as labels: the model shifts them itself."""
    tokens = torch.zeros(batch, sequence, dtype=torch.int64)
    return {"input_ids": tokens, "labels": tokens.clone()}


def without_sequence(overrides: dict[str, int]) -> dict[str, int]:
    """What is said of the model and not of its inputs."""
    return {key: value for key, value in overrides.items() if key != "sequence"}
