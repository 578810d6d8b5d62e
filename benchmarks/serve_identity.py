"""Served answers beside `transformers.generate`: token for token the same, whatever shares the batch.

Five architectures of `transformers` with random weights in single precision. Each model is traced once, lowered and
compiled under several plans, and serves prompts that share prefixes, all at once, from a cache far too small for
them, in chunks of a random size: sequences are batched, chunked, share pages, and are preempted, by computing again or
by swapping. Goal: every answer is the one that ``generate`` gives the prompt alone.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.report import finish, parse_arguments
from benchmarks.served import Served
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize

PLANS = {"none": 1, "tp=2": 2, "pp=2": 2}
PROMPTS, NEW, VOCAB = 200, 24, 128
CACHE = CacheSize(pages=72, page_size=8)
_SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": VOCAB}
_LLAMA = {**_SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
_NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_PLAIN = {**_NO_ENDS, "max_position_embeddings": 256}
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=VOCAB, n_positions=256, **_NO_ENDS)
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**_SIZES, ffn_dim=96, word_embed_proj_dim=64, **_PLAIN)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA, **_PLAIN)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_LLAMA, head_dim=16, **_PLAIN)),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**_LLAMA, sliding_window=24, **_PLAIN)
    ),
}


def main() -> None:
    """Serve every architecture under every plan."""
    options = parse_arguments(__doc__ or "")
    names, plans, count = (
        (("llama",), ("none",), 40) if options.quick else (tuple(MODELS), tuple(PLANS), PROMPTS)
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for architecture in names:
            model = _model(architecture)
            prompts = _prompts(random.Random(architecture), count)
            expected = [_generated(model, prompt) for prompt in prompts]
            rows += [
                _row(Path(name), architecture, model, plan, prompts, expected, seed)
                for seed, plan in enumerate(plans)
            ]
    answers = sum(row["answers"] for row in rows)
    same = sum(row["same"] for row in rows)
    preempted = min(row["preemptions"] for row in rows)
    shared = min(row["shared tokens"] for row in rows)
    ok = same == answers and preempted > 0 and shared > 0
    finish(
        "serve_identity", ok, rows, options.quick, answers=answers, same=same, preemptions_least=preempted,
        shared_tokens_least=shared,
    )  # fmt: skip


def _row(
    home: Path, architecture: str, model: torch.nn.Module, plan: str, prompts: list[list[int]],
    expected: list[list[int]], seed: int,
) -> dict[str, Any]:  # fmt: skip
    chance = random.Random(f"{architecture} {plan}")
    folder = home / f"{architecture}-{seed}"
    compile_serving(model, Cluster.local(PLANS[plan]), plan, cache=CACHE).save(folder)
    chunk, host = chance.randrange(3, 20), chance.choice((0, 40))
    engine = ["--chunk-tokens", chunk, "--step-tokens", 96, "--step-sequences", 24, "--host-pages", host]
    params = SamplingParams(temperature=0.0, max_tokens=NEW)
    requests = [Request(str(number), tuple(prompt), params) for number, prompt in enumerate(prompts)]
    with Served(folder, engine, ranks=PLANS[plan]) as served:
        found = served.answers(requests)
        loads, shared = served.loads, served.cached
    same = sum(found[str(number)] == tuple(tokens) for number, tokens in enumerate(expected))
    return {
        "architecture": architecture, "plan": plan, "answers": len(prompts), "same": same, "chunk": chunk,
        "host pages": host, "steps": len(loads), "most at once": max(load.running for load in loads),
        "preemptions": loads[-1].preemptions, "shared tokens": shared,
    }  # fmt: skip


def _model(architecture: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[architecture]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # answers that differ from each other, and do not repeat one token
    return model


def _prompts(chance: random.Random, count: int) -> list[list[int]]:
    """Prompts of 1 to 60 tokens, most of which begin like others."""
    beginnings = [[chance.randrange(VOCAB) for _ in range(chance.randrange(8, 40))] for _ in range(6)]
    return [
        [
            *chance.choice([*beginnings, []]),
            *(chance.randrange(VOCAB) for _ in range(chance.randrange(1, 21))),
        ]
        for _ in range(count)
    ]


def _generated(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    tokens = torch.tensor([prompt])
    whole = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    return whole[0, len(prompt) :].tolist()


if __name__ == "__main__":
    main()
