"""Language models trained by the project's own compiled programs, once: the weights are kept under their recipe."""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import superscaler as ss
from benchmarks.report import RESULTS
from models import llama
from superscaler.ir.learning_rates import Cosine
from superscaler.planner.cluster import Cluster
from superscaler.runtime.loaded import TrainingProgram

KEPT = RESULTS / "trained"
SEQ = 128
VOCAB = 256


@dataclass(frozen=True)
class Recipe:
    """What a model is, and how it is trained."""

    layers: int
    width: int
    heads: int
    steps: int
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0

    def model(self) -> nn.Module:
        """With its first weights."""
        torch.manual_seed(self.seed)
        return llama.build(
            "tiny", layers=self.layers, width=self.width, heads=self.heads, kv_heads=self.heads // 2,
            inner=self.width * 8 // 3 // 32 * 32, vocab=VOCAB, seq=SEQ,
        )  # fmt: skip


def trained(recipe: Recipe, text: bytes, start: Path | None = None) -> Path:
    """The weights (safetensors) of a model trained on a text; from the file, where it was trained before.

    Args:
        recipe: The model and its training.
        text: Its bytes are the tokens.
        start: Weights to begin with.
    """
    name = hashlib.sha256(repr((asdict(recipe), text, start and start.name, SEQ)).encode()).hexdigest()[:16]
    path = KEPT / f"{recipe.layers}x{recipe.width}-{name}.safetensors"
    if path.is_file():
        return path
    KEPT.mkdir(parents=True, exist_ok=True)
    model = recipe.model()
    batches = _batches(recipe, text)
    with tempfile.TemporaryDirectory() as home:
        build = Path(home) / "build"
        rate = Cosine(
            recipe.rate, warmup=recipe.steps // 20 + 1, total=recipe.steps + 1, floor=recipe.rate / 20
        )
        optimizer = ss.AdamW(lr=rate, clip_norm=1.0)
        ss.compile(
            model,
            next(batches),
            cluster=Cluster.local(1),
            optimizer=optimizer,
            autocast="bfloat16",
            save=build,
        )
        step = ss.load(build, weights=start)
        assert isinstance(step, TrainingProgram)
        loss = torch.zeros(())
        for number in range(recipe.steps):
            loss = step(next(batches))
            if number % 50 == 0:
                print(f"{path.stem} step {number} loss {loss.item():.3f}", flush=True)
        step.save(path)
    print(f"{path.stem} loss {loss.item():.3f}", flush=True)
    return path


def _batches(recipe: Recipe, text: bytes) -> Iterator[dict[str, Tensor]]:
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(recipe.seed)
    places = torch.arange(SEQ)
    while True:
        starts = torch.randint(len(data) - SEQ, (recipe.batch, 1), generator=generator)
        yield {"tokens": data[starts + places], "targets": data[starts + places + 1]}
