"""Architectures in tiny sizes: unmodified `transformers` models from their configurations, and those of ``models/``.

Each is a function that returns a model in float64 and the inputs of one training step of `BATCH` samples.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

BATCH, LENGTH, VOCAB, CLASSES = 4, 8, 64, 8
Example = tuple[nn.Module, dict[str, Tensor]]

_TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_NARROW = {**_GROUPED, "head_dim": 8}
_IMAGE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
_ENCODER_DECODER = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0,
}  # fmt: skip
_GPT = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip


OWN: Mapping[str, tuple[str, ...]] = {
    "gpt": ("tokens",), "llama": ("tokens",), "moe": ("tokens",), "swin": (), "mbart": ("source", "shifted"),
    "alphafold2": (),
}  # fmt: skip
"""File of ``models/`` -> the inputs whose second dim is the length of a text."""
_TEXTS = {"input_ids", "decoder_input_ids"}
"""Such inputs of the others."""

Inputs = Callable[[int, int], dict[str, Any]]
"""From the number of samples and the length of a text to the inputs of a training step."""


def token_ids(batch: int, length: int) -> Tensor:
    """Random tokens [batch, length], none of which is 0, the usual padding."""
    return torch.randint(1, VOCAB, (batch, length))


def _tokens(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": token_ids(batch, length), "labels": token_ids(batch, length)}


def _real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _image(size: int) -> Inputs:
    return lambda batch, length: {
        "pixel_values": _real(batch, 3, size, size),
        "labels": torch.randint(0, CLASSES, (batch,)),
    }


def _pairs(batch: int, length: int) -> dict[str, Any]:
    ids = token_ids(batch, length)
    ids[:, -1] = VOCAB - 1
    return {"input_ids": ids, "pixel_values": _real(batch, 3, 16, 16), "return_loss": True}


def _speech(batch: int, length: int) -> dict[str, Any]:
    return {"input_features": _real(batch, 8, 32), "labels": token_ids(batch, length)}


def _waves(batch: int, length: int) -> dict[str, Any]:
    return {"input_values": _real(batch, 400), "labels": torch.randint(0, 4, (batch,))}


ARCHITECTURES: Mapping[str, tuple[str, str, Mapping[str, Any], Inputs]] = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", _GPT, _tokens),
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 4}, _tokens),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, _tokens),
    "OPT": ("OPTForCausalLM", "OPTConfig", {
        "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 32, "dropout": 0.0, "word_embed_proj_dim": 32}, _tokens),
    "BLOOM": ("BloomForCausalLM", "BloomConfig", {
        "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}, _tokens),
    "Falcon": ("FalconForCausalLM", "FalconConfig", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, _tokens),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, _tokens),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": 4}, _tokens),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}, _tokens),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, _tokens),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _NARROW, _tokens),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", _NARROW, _tokens),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", {**_NARROW, "sliding_window": 4}, _tokens),
    "Phi": ("PhiForCausalLM", "PhiConfig", {
        **_TEXT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}, _tokens),
    "OLMo": ("OlmoForCausalLM", "OlmoConfig", _TEXT, _tokens),
    "Mamba": ("MambaForCausalLM", "MambaConfig", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, _tokens),
    "BERT": ("BertForMaskedLM", "BertConfig", {**_TEXT, **_NO_DROPOUT}, _tokens),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", {
        **_TEXT, **_NO_DROPOUT, "max_position_embeddings": 40}, _tokens),
    "ALBERT": ("AlbertForMaskedLM", "AlbertConfig", {**_TEXT, **_NO_DROPOUT, "embedding_size": 16}, _tokens),
    "ELECTRA": ("ElectraForMaskedLM", "ElectraConfig", {**_TEXT, **_NO_DROPOUT, "embedding_size": 32}, _tokens),
    "DistilBERT": ("DistilBertForMaskedLM", "DistilBertConfig", {
        "vocab_size": VOCAB, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 32, "dropout": 0.0, "attention_dropout": 0.0}, _tokens),
    "DeBERTa-v2": ("DebertaV2ForMaskedLM", "DebertaV2Config", {
        **_TEXT, **_NO_DROPOUT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
    }, _tokens),
    "T5": ("T5ForConditionalGeneration", "T5Config", {
        "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "dropout_rate": 0.0, "decoder_start_token_id": 0}, _tokens),
    "BART": ("BartForConditionalGeneration", "BartConfig", {
        **_ENCODER_DECODER, "max_position_embeddings": 32}, _tokens),
    "mBART": ("MBartForConditionalGeneration", "MBartConfig", {
        **_ENCODER_DECODER, "max_position_embeddings": 32}, _tokens),
    "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {
        **_ENCODER_DECODER, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}, _speech),
    "ViT": ("ViTForImageClassification", "ViTConfig", {**_IMAGE, **_NO_DROPOUT, "num_labels": CLASSES}, _image(16)),
    "DeiT": ("DeiTForImageClassification", "DeiTConfig", {
        **_IMAGE, **_NO_DROPOUT, "num_labels": CLASSES}, _image(16)),
    "Swin": ("SwinForImageClassification", "SwinConfig", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
        "num_labels": CLASSES, "drop_path_rate": 0.0}, _image(32)),
    "SegFormer": ("SegformerForImageClassification", "SegformerConfig", {
        **_NO_DROPOUT, "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2],
        "decoder_hidden_size": 32, "drop_path_rate": 0.0, "num_labels": CLASSES}, _image(32)),
    "ResNet": ("ResNetForImageClassification", "ResNetConfig", {
        "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic",
        "num_labels": CLASSES}, _image(32)),
    "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig", {
        "hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "image_size": 32, "num_labels": CLASSES,
    }, _image(32)),
    "CLIP": ("CLIPModel", "CLIPConfig", {
        "text_config": {**_TEXT, "eos_token_id": VOCAB - 1}, "vision_config": _IMAGE, "projection_dim": 16}, _pairs),
    "wav2vec 2.0": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (8, 3),
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False,
        "classifier_proj_size": 16, "num_labels": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0,
        "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "layerdrop": 0.0}, _waves),
}  # fmt: skip
"""Name -> class of the model, class of its configuration, the configuration's fields, the inputs."""


class _InFloat64(TorchFunctionMode):
    """Whatever a model computes in float32 by its own will (a loss, a norm, a softmax) is computed in float64.

    Rounding to float32 in the middle of a model turns differences of the last bit of a float64 into differences of
    1e-7; without it two ways of computing the same agree to 1e-12 or compute something else.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call with float64 wherever float32 is asked for."""
        if func is Tensor.float:
            func = Tensor.double
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def names() -> tuple[str, ...]:
    """All there are."""
    return (*ARCHITECTURES, *(f"models/{name}.py" for name in OWN))


def build(name: str) -> Example:
    """The model called `name`, in float64 and training mode, and inputs with a loss."""
    torch.manual_seed(0)
    return _build_own(name) if name.endswith(".py") else _build_published(name)


def _build_own(name: str) -> Example:
    module, _ = _own(name)
    inputs = module.example_inputs("tiny", batch=BATCH)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return module.build("tiny").double(), wide


def _build_published(name: str) -> Example:
    import transformers

    model_class, config_class, fields, inputs = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**fields)
    if hasattr(config, "num_experts_per_tok"):
        # of the ways to run experts, the one whose shapes do not depend on the routing and that knows float64
        config._experts_implementation = "batched_mm"
    original = getattr(transformers, model_class)
    widened = type(original.__name__, (original,), {"forward": _in_float64(original.forward)})
    return widened(config).double().train(), inputs(BATCH, LENGTH)


def inference_inputs(name: str, batch: int, length: int) -> dict[str, Any]:
    """Inputs of any size, for the model's answer alone."""
    if name.endswith(".py"):
        return _own_inference_inputs(name, batch, length)
    inputs = ARCHITECTURES[name][3](batch, length)
    has_decoder = "labels" in inputs and ARCHITECTURES[name][0].endswith("ForConditionalGeneration")
    inputs.pop("labels", None)
    inputs.pop("return_loss", None)
    return inputs | ({"decoder_input_ids": token_ids(batch, length)} if has_decoder else {})


def _own_inference_inputs(name: str, batch: int, length: int) -> dict[str, Any]:
    module, texts = _own(name)
    return {
        key: value[:, :length] if key in texts else value.double() if value.is_floating_point() else value
        for key, value in module.example_inputs("tiny", batch=batch).items()
        if key not in ("targets", "labels")
    }


def varying_sizes(name: str, inputs: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Which dims of the inputs vary: the samples of all, and the length of texts."""
    texts = _own(name)[1] if name.endswith(".py") else _TEXTS
    return {key: {0: "batch"} | ({1: "seq"} if key in texts else {}) for key in inputs}


def _own(name: str) -> tuple[Any, Collection[str]]:
    """A module of ``models/``, and its inputs that are texts."""
    stem = name.removesuffix(".py").removeprefix("models/")
    return import_module(f"models.{stem}"), OWN[stem]


def _in_float64(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def widened(*args: Any, **kwargs: Any) -> Any:
        with _InFloat64():
            return forward(*args, **kwargs)

    return widened
