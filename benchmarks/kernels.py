"""Paged attention beside attention that does not page, in turn: decoding, chunks of prompts and trees of tokens.

On a CPU the operator gathers pages for groups of sequences. It stands beside what an engine without such groups does:
gather all sequences padded to the longest, and F.scaled_dot_product_attention with a mask. How it compares with
attention to keys and values that already lie padded and contiguous, which an engine never has, is shown as well. On
CUDA its Triton kernels stand beside F.scaled_dot_product_attention and compiled FlexAttention on such keys and values.

Goal: every output right; on a CPU we are at least as fast as padding in the median of all rows and nowhere slower than
0.9 of it (with one sequence, or equal lengths, the work is the same and noise decides); on CUDA at least 0.9 of SDPA in
every row. Ratios are the others' seconds over ours, each the least of all rounds: these calls take microseconds, and
where threads wait for each other a busy core adds milliseconds to some of them. The kernels are also run by Triton's
interpreter.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.in_turn import time_in_turn
from benchmarks.report import finish, parse_arguments
from superscaler.runtime import ops

HEADS, KEY_HEADS, WIDTH, PAGE_SIZE = 8, 4, 64, 16
GPU_HEADS, GPU_KEY_HEADS, GPU_WIDTH = 32, 8, 128
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
LEAST = 0.9
"""Of the rival's speed, in any row."""
MEDIAN = {"cpu": 1.0, "cuda": 0.9}
PEAK_BYTES_PER_SECOND = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}
"""Of the memory of GPUs, by a part of their name (vendors' data sheets)."""


@dataclass(frozen=True)
class Shape:
    """A step: new tokens and earlier keys of each sequence."""

    name: str
    sequences: tuple[tuple[int, int], ...]
    is_tree: bool = False


def decode(count: int, length: int, spread: float = 0.0) -> Shape:
    """One new token each; lengths from ``(1 - spread) * length`` to `length`, evenly."""
    lengths = [round(length * (1 - spread * place / max(1, count - 1))) for place in range(count)]
    kind = f", spread {spread:.0%}" if spread else ""
    return Shape(f"decode {count} x {length}{kind}", tuple((1, one - 1) for one in lengths))


SHAPES = (
    decode(1, 512),
    decode(8, 64),
    decode(8, 1024),
    decode(8, 1024, 0.9),
    decode(64, 256),
    decode(64, 256, 0.9),
    Shape("prefill 256", ((256, 0),)),
    Shape("prefill 256 after 1024", ((256, 1024),)),
    Shape("chunk of 128 beside 16 decodes", ((128, 256), *((1, 100 + 20 * i) for i in range(16)))),
    Shape("trees of 16 x 8", tuple((16, 200 + 40 * i) for i in range(8)), is_tree=True),
)
MORE_SHAPES = (
    decode(64, 1024, 0.9),
    decode(8, 4096, 0.5),
    Shape("prefill 1024", ((1024, 0),)),
    Shape("trees of 64 x 4", tuple((64, 500 + 100 * i) for i in range(4)), is_tree=True),
)


def main() -> None:
    """Time all shapes, run the interpreter, print and keep what was found."""
    options = parse_arguments(__doc__ or "")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = SHAPES if options.quick else (*SHAPES, *MORE_SHAPES)
    steps = 30 if options.quick else 150
    rival = {"cpu": "padded", "cuda": "sdpa"}[device]
    rows = [
        measure(shape, dtype, device, steps) for dtype in (torch.float32, torch.bfloat16) for shape in shapes
    ]
    ratios = [row[f"over_{rival}"] for row in rows]
    interpreted = interpret()
    rows.append({**dict.fromkeys(rows[0], ""), "step": "kernels by the interpreter", "right": interpreted})
    is_right = all(row["right"] in (True, "skipped") for row in rows)
    is_fast = min(ratios) >= LEAST and median(ratios) >= MEDIAN[device]
    finish(
        "kernels", is_right and is_fast, rows, options.quick, right=is_right, worst_ratio=min(ratios),
        median_ratio=median(ratios), interpreted=interpreted, device=device,
    )  # fmt: skip


def measure(shape: Shape, dtype: torch.dtype, device: str, steps: int) -> dict[str, Any]:
    """A row of the table: milliseconds, and the others' seconds over ours."""
    call = Call(shape, dtype, device)
    outputs = {name: run() for name, run in call.contenders().items()}
    truth = call.by_definition()
    right = all((out.float() - truth).abs().max() < TOLERANCE[dtype] for out in outputs.values())
    timed = {name: _as_step(run) for name, run in call.contenders().items()}
    seconds, _ = time_in_turn(timed, steps, device)
    least = {name: min(times) for name, times in seconds.items()}
    row = {"step": shape.name, "dtype": str(dtype).removeprefix("torch."), "ms": 1e3 * least["paged"]}
    row |= {f"over_{name}": least[name] / least["paged"] for name in list(least)[1:]}
    if device == "cuda":
        row["bandwidth"] = call.num_bytes / least["paged"] / _peak()
    return {**row, "right": bool(right)}


def _as_step(run: Callable[[], Tensor]) -> Callable[[], float]:
    def step() -> float:
        run()
        return 0.0

    return step


def _peak() -> float:
    name = torch.cuda.get_device_name()
    return next((speed for part, speed in PEAK_BYTES_PER_SECOND.items() if part in name), float("nan"))


class Call:
    """The tensors of one step, paged and padded, and those who attend to them."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str) -> None:
        heads, groups, width = (
            (GPU_HEADS, GPU_KEY_HEADS, GPU_WIDTH) if device == "cuda" else (HEADS, KEY_HEADS, WIDTH)
        )
        torch.manual_seed(0)
        self.shape, self.dtype, self.device, self.scale = shape, dtype, device, width**-0.5
        news = [new for new, _ in shape.sequences]
        lengths = [new + earlier for new, earlier in shape.sequences]
        counts = [-(-length // PAGE_SIZE) for length in lengths]
        order = torch.randperm(sum(counts)).split(counts)
        pages = torch.nn.utils.rnn.pad_sequence(list(order), batch_first=True)
        slots = (pages[..., None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten(1)
        total = sum(news)
        draw = {"dtype": torch.float32}
        q = torch.randn(1, total, heads, width, **draw).transpose(1, 2)
        k, v = (torch.randn(1, total, groups, width, **draw).transpose(1, 2) for _ in "kv")
        keys, values = (torch.randn(sum(counts) * PAGE_SIZE, groups, width, **draw) for _ in "kv")
        new_slots = [
            row[length - new : length] for row, new, length in zip(slots, news, lengths, strict=True)
        ]
        starts = torch.tensor([0, *news]).cumsum(0)
        positions = torch.cat(
            [torch.arange(length - new, length) for new, length in zip(news, lengths, strict=True)]
        )
        visible = _trees(news) if shape.is_tree else torch.zeros(total, 0, dtype=torch.bool)
        self.floats = [x.to(device, dtype) for x in (q, k, v, keys, values)]
        self.step = [
            x.to(device)
            for x in (torch.cat(new_slots), starts, torch.tensor(lengths), pages, positions, visible)
        ]
        self.news, self.lengths, self.counts = news, lengths, counts
        self.pages = pages.to(device)
        self.mask = self._mask(visible).to(device)
        self.rows = torch.cat([torch.arange(new) + max(news) * i for i, new in enumerate(news)]).to(device)
        row_bytes = groups * width * self.floats[0].element_size()
        self.num_bytes = (
            2 * sum(lengths) * row_bytes + 2 * total * heads * width * self.floats[0].element_size()
        )

    def contenders(self) -> dict[str, Callable[[], Tensor]]:
        """Who attends; ours first."""
        self.paged()  # fills the caches
        near = self.gathered()
        named = {"paged": self.paged, "padded": lambda: self.attend(*self.gathered(), append=True)}
        if self.device == "cuda":
            near = [x.contiguous() for x in near]
            named = {"paged": self.paged, "sdpa": lambda: self.attend(*near), "flex": self.flex(*near)}
        else:
            near = [x.contiguous() for x in near]
            named["gathered"] = lambda: self.attend(*near)
        return named

    def paged(self) -> Tensor:
        """Ours [t, h, e]."""
        out = ops.paged_attention(*self.floats, *self.step, scale=self.scale, page_size=PAGE_SIZE)
        return out[0].transpose(0, 1)

    def gathered(self) -> list[Tensor]:
        """Keys and values of all sequences, padded to the longest [s, g, m, d]."""
        longest = max(self.lengths)
        pages = self.pages.flatten()
        caches = [x.unflatten(0, (-1, PAGE_SIZE)).index_select(0, pages) for x in self.floats[3:]]
        return [
            x.flatten(0, 1).unflatten(0, self.pages.shape[:1] + (-1,))[:, :longest].transpose(1, 2)
            for x in caches
        ]

    def attend(self, keys: Tensor, values: Tensor, append: bool = False) -> Tensor:
        """F.scaled_dot_product_attention on padded queries, keys and values; may put new ones in the caches as ours."""
        if append:
            for cache, new in zip(self.floats[3:], self.floats[1:3], strict=True):
                cache.index_copy_(0, self.step[0], new[0].transpose(0, 1))
        out = F.scaled_dot_product_attention(
            self._padded_queries(), keys, values, self.mask, scale=self.scale, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)[self.rows]

    def flex(self, keys: Tensor, values: Tensor) -> Callable[[], Tensor]:
        """Compiled FlexAttention on the same."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        seen = self.mask

        def is_seen(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return seen[sequence, 0, query, key]

        sizes = (len(self.news), None, max(self.news), max(self.lengths))
        blocks = create_block_mask(is_seen, *sizes, device=self.device)
        compiled = torch.compile(flex_attention, dynamic=False)

        def run() -> Tensor:
            out = compiled(
                self._padded_queries(), keys, values, block_mask=blocks, scale=self.scale, enable_gqa=True
            )
            return out.transpose(1, 2).flatten(0, 1)[self.rows]

        return run

    def by_definition(self) -> Tensor:
        """The output in float32, sequence by sequence [t, h, e]."""
        keys, values = (x.float() for x in self.gathered())
        found = []
        for number, q in enumerate(self.floats[0][0].float().split(self.news, 1)):
            new, length = self.news[number], self.lengths[number]
            k, v = (
                x[number, :, :length].repeat_interleave(q.shape[0] // keys.shape[1], 0)
                for x in (keys, values)
            )
            scores = q @ k.transpose(-1, -2) * self.scale
            hidden = ~self.mask[number, :, :new, :length]
            found.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1))
        return torch.cat(found)

    def _padded_queries(self) -> Tensor:
        q, most = self.floats[0], max(self.news)
        padded = q.new_zeros(len(self.news) * most, q.shape[1], q.shape[3])
        padded[self.rows] = q[0].transpose(0, 1)
        return padded.unflatten(0, (-1, most)).transpose(1, 2)

    def _mask(self, visible: Tensor) -> Tensor:
        """Whether a padded query sees a padded key [s, 1, most new, longest]."""
        mask = torch.zeros(len(self.news), 1, max(self.news), max(self.lengths), dtype=torch.bool)
        start = 0
        for number, (new, length) in enumerate(zip(self.news, self.lengths, strict=True)):
            own = (
                visible[start : start + new, :new]
                if self.shape.is_tree
                else torch.ones(new, new).tril().bool()
            )
            mask[number, 0, :new, length - new : length] = own
            mask[number, 0, :, : length - new] = True
            start += new
        return mask


def _trees(news: Sequence[int]) -> Tensor:
    """Binary trees: a token sees itself and its ancestors."""
    visible = torch.zeros(sum(news), max(news), dtype=torch.bool)
    start = 0
    for new in news:
        for token in range(new):
            visible[start + token, token] = True
            if token:
                visible[start + token] |= visible[start + (token - 1) // 2]
        start += new
    return visible


def interpret() -> bool | str:
    """Whether the kernels, run by Triton's interpreter, give what they must; "skipped" without Triton."""
    if find_spec("triton") is None:
        return "skipped"
    root = Path(__file__).resolve().parents[1]
    search = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": search}
    command = [sys.executable, "-m", "tests.runtime.ops.interpreted_kernels"]
    return (
        subprocess.run(command, env=environment, cwd=root, check=False, stdout=subprocess.DEVNULL).returncode
        == 0
    )


if __name__ == "__main__":
    main()
