"""Folders of Hugging Face with small models of random weights."""

from pathlib import Path

import tokenizers
import torch
import transformers

VOCAB = 280
TEXT = "to be or not to be, that is the question"


def write_llama(folder: Path, template: str = "", layers: int = 2, seed: int = 0) -> None:
    """A small Llama, and a tokenizer that has learned a few words."""
    fast = tokenizers.ByteLevelBPETokenizer()
    fast.train_from_iterator([TEXT] * 4, VOCAB, special_tokens=["<s>", "</s>"])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast._tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template or None
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(llama_config(layers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)  # logits that differ
    model.save_pretrained(folder)


def llama_config(layers: int = 2, vocab: int = VOCAB) -> transformers.LlamaConfig:
    """Of such a Llama."""
    return transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
