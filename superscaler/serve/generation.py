"""Generation: what a model of `transformers` says of its own answers, for a build that is served without the model."""

from typing import Any

import torch

from superscaler.serve.language_model import is_of_transformers

_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Of its ``generation_config``, what requests may say too, and what they call it; the same as vLLM takes."""


def generation_facts(model: torch.nn.Module, vocab: int) -> dict[str, Any]:
    """Entries of ``plan.json``: the tokens that end its texts, and how they are drawn where a request does not say.

    Args:
        model: Of any kind; one that is not of `transformers` says nothing.
        vocab: How many tokens it knows. An end that it cannot say, such as that of a larger family, is none.
    """
    if not is_of_transformers(model):
        return {"end_tokens": [], "sampling": {}}
    config: Any = model.config
    generation: Any = getattr(model, "generation_config", None)
    said: dict[str, Any] = {} if generation is None else generation.to_diff_dict()
    ends = said.get("eos_token_id")
    if ends is None:
        ends = getattr(config.get_text_config(), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    sampling = {ours: said[theirs] for theirs, ours in _SAMPLING.items() if said.get(theirs) is not None}
    return {"end_tokens": sorted({end for end in ends if end < vocab}), "sampling": sampling}
