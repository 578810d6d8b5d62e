"""One server of `benchmarks.serve_throughput`: ``python -m benchmarks.serve_peers KIND FOLDER``.

It loads the checkpoint in FOLDER, says ``ready``, and answers all requests of ``FOLDER/requests.json`` at once for each
line it reads; it writes a line of JSON with the seconds that took, the tokens it was asked for, and the first answers.
This file runs in the environment of the peer, which may have neither this project nor its version of torch.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = 2
Requests = list[tuple[list[int], int]]
"""Prompt, and how many tokens shall follow."""
Answers = list[list[int]]


def ours(folder: Path, requests: Requests) -> Callable[[], Answers]:
    """The engine of this project over a build for one device."""
    import torch

    from superscaler.runtime.serving.offline import load_engine
    from superscaler.runtime.serving.request import Request
    from superscaler.runtime.serving.sampling_params import SamplingParams
    from superscaler.runtime.serving.settings import Settings

    torch.set_num_threads(THREADS)
    engine = load_engine(folder / "build", Settings(step_tokens=512), weights=folder)

    def run() -> Answers:
        found: Answers = [[] for _ in requests]
        for number, (prompt, count) in enumerate(requests):
            params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
            engine.add(Request(str(number), tuple(prompt), params, cache_salt=str(time.monotonic())))
        while not engine.is_idle:
            for output in engine.step():
                found[int(output.request_id)] += output.tokens
        return found

    return run


def generate(folder: Path, requests: Requests, size: int) -> Callable[[], Answers]:
    """`transformers.generate` on batches of `size` requests, padded to the longest, as long as the longest answer."""
    import torch

    model = _transformers(folder)

    def run() -> Answers:
        found: Answers = []
        for start in range(0, len(requests), size):
            some = requests[start : start + size]
            longest = max(len(prompt) for prompt, _ in some)
            tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in some])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in some])
            most = max(count for _, count in some)
            whole = model.generate(
                tokens, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
            found += [
                row[longest : longest + count].tolist() for row, (_, count) in zip(whole, some, strict=True)
            ]
        return found

    return run


def continuous(folder: Path, requests: Requests) -> Callable[[], Answers]:
    """The continuous batching of `transformers`, with a cache of a size that suits a CPU, all of which it reads."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _transformers(folder)
    generation = GenerationConfig(do_sample=False, max_new_tokens=256, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(page_size=16, num_blocks=384, max_batch_tokens=128)

    def run() -> Answers:
        manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=batching
        )
        manager.start()
        names = [
            manager.add_request(prompt, request_id=str(number), max_new_tokens=count)
            for number, (prompt, count) in enumerate(requests)
        ]
        found: dict[str, list[int]] = {}
        while len(found) < len(names):
            result = manager.get_result(timeout=60)
            assert result is not None, "continuous batching has stopped"
            if result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
        manager.stop(block=True)
        return [found[name] for name in names]

    return run


def vllm(folder: Path, requests: Requests) -> Callable[[], Answers]:
    """VLLM on CPUs."""
    from vllm import LLM, SamplingParams

    model = LLM(
        str(folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=512,
        max_num_seqs=256, enable_prefix_caching=False,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    params = [
        SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        for _, count in requests
    ]
    return lambda: [list(one.outputs[0].token_ids) for one in model.generate(prompts, params, use_tqdm=False)]


def _transformers(folder: Path) -> Any:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )


def main(kind: str, place: str) -> None:
    """Load, then run once per line."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    folder = Path(place)
    requests = [tuple(one) for one in json.loads((folder / "requests.json").read_text())]
    name, _, size = kind.partition(":")
    makers = {"ours": ours, "generate": generate, "continuous": continuous, "vllm": vllm}
    run = makers[name](folder, requests, *([int(size)] if size else []))
    _say(channel, {"ready": True})
    for _ in sys.stdin:
        began = time.perf_counter()
        answers = run()
        seconds = time.perf_counter() - began
        assert [len(answer) for answer in answers] == [count for _, count in requests], (
            "an answer is too short"
        )
        _say(channel, {"seconds": seconds, "answers": answers})


def _say(channel: Any, what: dict[str, Any]) -> None:
    channel.write(json.dumps(what) + "\n")
    channel.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
