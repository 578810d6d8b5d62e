"""Small causal language models of several families, with random weights in double precision."""

import torch
import transformers

from models import gpt, llama

VOCAB = 96
_SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": VOCAB}
_SHARED = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
_NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
FAMILIES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2, n_embd=32, n_head=4, vocab_size=VOCAB, n_positions=128, **_NO_SPECIAL
        )
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **_SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128, **_NO_SPECIAL
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHARED, **_NO_SPECIAL)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_SHARED, **_NO_SPECIAL)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**_SHARED, head_dim=8, **_NO_SPECIAL)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**_SHARED, sliding_window=10, **_NO_SPECIAL)
    ),
}


def language_model(family: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model of a family of `transformers`, or one of the project's own, in eval mode."""
    torch.manual_seed(0)
    if family in FAMILIES:
        model = FAMILIES[family]()
    else:
        module = {"own-gpt": gpt, "own-llama": llama}[family]
        model = module.build("tiny", layers=2, vocab=VOCAB, **({"seq": 128} if family == "own-gpt" else {}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # scores and logits that differ
    return model.to(dtype).eval()


def model_like(family: str) -> torch.nn.Module:
    """The model of a family with weights a little other, so that it often agrees with it."""
    model = language_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.4 * torch.rand(parameter.shape, dtype=parameter.dtype))
    return model


def logits_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """What the model itself says of whole sequences [batch, seq]: logits [batch, seq, vocab]."""
    with torch.no_grad():
        result = model(tokens)
    return result if isinstance(result, torch.Tensor) else result.logits
