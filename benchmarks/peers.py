"""The training steps of the peers, each as its own documentation has it, on a Llama of ``models/llama.py``.

A peer is a function of the model (whole, with the values every contender starts from) and the whole batch that returns
a step; the step trains once and returns this process's loss, or None where another has it. All use fused AdamW.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from models.llama import Llama, rotary_table
from superscaler.ir.optimizers import AdamW

Batch = Mapping[str, Tensor]
Step = Callable[[], Tensor | None]
Peer = Callable[[Llama, Batch, AdamW], Step]


def distributed_data_parallel(model: Llama, batch: Batch, options: AdamW) -> Step:
    """`DistributedDataParallel` with its buckets of 25 MB, whose gradients are views of them."""
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    return _step(wrapped, _own_samples(batch), _adamw(model, options))


def fully_sharded(model: Llama, batch: Batch, options: AdamW) -> Step:
    """`fully_shard` of every layer, then of the rest."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _step(model, _own_samples(batch), _adamw(model, options))


def tensor_parallel(model: Llama, batch: Batch, options: AdamW) -> Step:
    """`parallelize_module` column- and row-wise, the vocabulary cut in embedding, head and loss."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layer = {
        "attn.q": ColwiseParallel(),
        "attn.k": ColwiseParallel(),
        "attn.v": ColwiseParallel(),
        "attn.proj": RowwiseParallel(),
        "mlp.gate": ColwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(),
    }
    ends = {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }
    return _tensor_parallel(model, batch, options, mesh, layer, ends)


def sequence_parallel(model: Llama, batch: Batch, options: AdamW) -> Step:
    """As torchtitan's plan for Llama: what lies between the cut products is cut along the sequence."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    layer = {
        "norm_1": SequenceParallel(),
        "attn": PrepareModuleInput(
            input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
        ),
        "attn.q": ColwiseParallel(),
        "attn.k": ColwiseParallel(),
        "attn.v": ColwiseParallel(),
        "attn.proj": RowwiseParallel(output_layouts=Shard(1)),
        "norm_2": SequenceParallel(),
        "mlp": whole,
        "mlp.gate": ColwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }
    ends = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    return _tensor_parallel(model, batch, options, mesh, layer, ends)


def pipeline_1f1b(model: Llama, batch: Batch, options: AdamW, micro_batches: int = 4) -> Step:
    """`Schedule1F1B` over half the layers each; the first stage has the embedding, the last the head and the loss."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    part = _Part(model, rank, world_size)
    stage = PipelineStage(part, rank, world_size, torch.device("cpu"))
    schedule = Schedule1F1B(stage, micro_batches, loss_fn=_loss)
    optimizer = _adamw(part, options)

    def step() -> Tensor | None:
        optimizer.zero_grad()
        losses: list[Tensor] = []
        if rank == 0:
            schedule.step(batch["tokens"])
        else:
            schedule.step(target=batch["targets"], losses=losses)
        optimizer.step()
        return torch.stack(losses).mean().detach() if losses else None

    return step


class _Part(nn.Module):
    """The layers of one stage, with the embedding before the first and the head behind the last."""

    def __init__(self, model: Llama, stage: int, stages: int) -> None:
        super().__init__()
        each = len(model.layers) // stages
        self.head_width, self.theta = model.head_width, model.theta
        self.embed = model.embed if stage == 0 else None
        self.layers = model.layers[stage * each : (stage + 1) * each]
        self.norm = model.norm if stage == stages - 1 else None
        self.head = model.head if stage == stages - 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) if self.embed is not None else x
        rotation = rotary_table(x.shape[1], self.head_width, self.theta, like=x)
        for block in self.layers:
            x = block(x, *rotation)
        return self.head(self.norm(x)) if self.head is not None else x


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _adamw(model: nn.Module, options: AdamW) -> torch.optim.Optimizer:
    """The fused optimizer, which takes DTensors and plain ones in groups of their own."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(isinstance(parameter, DTensor), []).append(parameter)
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        options.lr, betas, options.eps, options.weight_decay, fused=True,
    )  # fmt: skip


def _own_samples(batch: Batch) -> Batch:
    rank, count = dist.get_rank(), dist.get_world_size()
    return {name: value.chunk(count)[rank] for name, value in batch.items()}


def _tensor_parallel(
    model: Llama, batch: Batch, options: AdamW, mesh: object, layer: dict, ends: dict
) -> Step:
    for block in model.layers:
        parallelize_module(block, mesh, layer)
    parallelize_module(model, mesh, ends)
    return _step(model, batch, _adamw(model, options), loss_parallel)


def _step(
    model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, around: Callable = nullcontext
) -> Step:
    def step() -> Tensor:
        optimizer.zero_grad()
        with around():
            loss = model(**batch)
            loss.backward()
        optimizer.step()
        loss = loss.detach()
        return loss.full_tensor() if isinstance(loss, DTensor) else loss

    return step


@dataclass(frozen=True, slots=True)
class Pair:
    """A plan, and the peer it stands beside."""

    plan: str
    name: str
    make: Peer


PEERS = {
    "dp": Pair("dp=2", "DistributedDataParallel", distributed_data_parallel),
    "fsdp": Pair("dp=2,zero=3", "fully_shard", fully_sharded),
    "tp": Pair("tp=2", "parallelize_module", tensor_parallel),
    "sp": Pair("tp=2,sp", "parallelize_module, sequence parallel", sequence_parallel),
    "pp": Pair("pp=2,schedule=1f1b,micro_batches=4", "Schedule1F1B", pipeline_1f1b),
}
