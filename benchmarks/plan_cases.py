"""The plans that the table of docs/plans.md measures: a plan string or a script, a model, and the plan in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import superscaler as ss
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import RECIPES, parse_plan
from superscaler.planner.recipes.pipelines import PLACED_OTHERWISE
from superscaler.planner.recipes.table import PlanOptions
from superscaler.planner.schedules import NAMED

SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"layers": 4, "width": 16, "heads": 4, "seq": 8, "vocab": 32},
    "mbart": {},
    "moe": {},
    "swin": {},
    "alphafold2": {"recycles": 2},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    title: str
    model: str
    plan: str | Callable[[Planner], None]
    about: str
    """What is cut, where it runs, in what order."""
    devices: int = 2
    """Of a script; a plan string knows its own."""

    @property
    def name(self) -> str:
        """The plan string, or the script's name."""
        return self.plan if isinstance(self.plan, str) else self.plan.__name__

    @property
    def num_devices(self) -> int:
        """Devices the plan needs."""
        return parse_plan(self.plan).num_devices if isinstance(self.plan, str) else self.devices

    @property
    def options(self) -> PlanOptions | None:
        """What the plan string says."""
        return parse_plan(self.plan) if isinstance(self.plan, str) else None

    @property
    def scripts(self) -> tuple[Callable[..., Any], ...]:
        """The scripts of its words; or the script."""
        if not isinstance(self.plan, str):
            return (self.plan,)
        options = parse_plan(self.plan)
        said = [row.script for row in RECIPES if row.word_said(options)]
        if options.schedule in PLACED_OTHERWISE:
            said.append(PLACED_OTHERWISE[options.schedule])
        elif options.micro_batches > 1:
            said.append(NAMED[options.schedule_name].make)
        return tuple(dict.fromkeys(said))


def pp_in_dp_and_co_shard(p: Planner) -> None:
    """Three recipes, and a decision of one's own for the first layer."""
    ss.recipes.scheduled_pipeline(p, "1f1b", rows=2, micro_batches=2, dp=2)
    ss.recipes.data_parallel(p)
    ss.recipes.optimizer_sharding(p)
    p.co_shard(p.select("h.0"), pieces=2)


def first_half_recomputed(p: Planner) -> None:
    """Recomputation per block: the stage that stores most computes its layers again, the other does not."""
    ss.recipes.scheduled_pipeline(p, "1f1b", rows=2, micro_batches=4)
    for layer in ("h.0", "h.1"):
        p.recompute(p.select(layer))


CASES = (
    Case("one device", "gpt", "none", "Nothing is cut. What the others are compared with differs by rounding alone."),
    Case("gradient accumulation", "gpt", "micro_batches=4",
         "The batch is cut in time: four micro-batches run one after another, and the update reads the sum."),
    Case("data parallel", "gpt", "dp=2",
         "The batch is cut over two devices. Gradients of parameters come out as summands: one all-reduce each."),
    Case("ZeRO-1", "gpt", "dp=2,zero=1",
         "The update of every parameter is cut, so its gradient is reduce-scattered, and what it writes all-gathered."),
    Case("ZeRO-2", "gpt", "dp=2,zero=2,micro_batches=2",
         "As ZeRO-1; gradients are reduce-scattered in every micro-batch, so that no device holds a whole one."),
    Case("ZeRO-3 (FSDP)", "gpt", "dp=2,zero=3,micro_batches=2",
         "Parameters lie as their updates write them; every reader has an all-gather before it, once in the forward "
         "and once in the backward."),
    Case("tensor parallel", "gpt", "tp=2",
         "Heads, hidden units and the vocabulary are cut: per layer two all-reduces forward and two backward."),
    Case("sequence parallel", "gpt", "tp=2,sp",
         "Between the parts that tensor parallelism cuts, the sequence is: each all-reduce becomes a reduce-scatter "
         "and an all-gather of the same bytes."),
    Case("context parallel", "gpt", "cp=2",
         "The sequence is cut everywhere. Keys and values are all-gathered in every layer, queries stay."),
    Case("expert parallel", "moe", "ep=2",
         "The batch is cut, and inside the experts the experts: tokens travel there and back by all-to-all."),
    Case("GPipe", "gpt", "pp=2,schedule=gpipe,micro_batches=4",
         "Two stages of layers on a device each; all forwards, then all backwards."),
    Case("1F1B", "gpt", "pp=2,schedule=1f1b,micro_batches=4",
         "As GPipe, but a stage runs a backward as soon as it can, and so stores fewer micro-batches."),
    Case("interleaved 1F1B", "gpt", "pp=2,schedule=interleaved,micro_batches=4",
         "Stages 0 and 2 on one device, 1 and 3 on the other: the bubble halves, messages double."),
    Case("ZB-H1", "gpt", "pp=2,schedule=zb-h1,micro_batches=4",
         "The backward is two tasks; gradients of weights, for which nobody waits, fill the bubble."),
    Case("ZB-H2", "gpt", "pp=2,schedule=zb-h2,micro_batches=4",
         "As ZB-H1 with more forwards ahead: nearly no bubble, for twice the activations."),
    Case("ZB-V", "gpt", "pp=2,schedule=zb-v,micro_batches=4",
         "Stages 0 and 3 on one device, 1 and 2 on the other; the turn needs no message."),
    Case("bidirectional (DualPipe)", "gpt", "pp=2,schedule=bidirectional,micro_batches=4",
         "Two replicas, each from its end of the devices, with half of the samples each; gradients are summed."),
    Case("solved by CP-SAT", "gpt", "pp=2,schedule=solved,micro_batches=4",
         "The stages of GPipe; the order of their tasks is searched for, and proved the shortest where it can be."),
    Case("recomputation, selective", "gpt", "recompute=selective,micro_batches=2",
         "The inside of attention runs again in the backward. GPT's attention is one operator that stores no scores "
         "anyway; Swin's is not."),
    Case("recomputation, selective", "swin", "recompute=selective",
         "From the product of queries and keys to that with values, scores and softmax are computed again."),
    Case("recomputation, layers", "gpt", "recompute=layers,micro_batches=2",
         "Of each layer its input is stored; its forward runs again just before its backward."),
    Case("recomputation, full", "gpt", "pp=2,recompute=full,micro_batches=4",
         "Of each stage its input is stored for every micro-batch that waits."),
    Case("recomputation, per block", "gpt", first_half_recomputed,
         "A selection per block: here the layers of the first stage, which stores the most micro-batches."),
    Case("optimizer states in host memory", "gpt", "dp=2,zero=1,offload=optimizer",
         "As ZeRO-1; the states wait in host memory, and are on the device for the update of their parameter."),
    Case("activations in host memory", "gpt", "pp=2,micro_batches=4,offload=activations",
         "What layers leave for their backward waits in host memory; a layer's is on the device at a time."),
    Case("states and activations in host memory", "gpt", "dp=2,recompute,offload=optimizer+activations",
         "Of activations the layers' inputs alone are left, and they wait in host memory, as the states do."),
    Case("parameters in host memory", "gpt", "tp=2,offload=parameters",
         "A layer's parameters are fetched while the layer before it runs, in the forward and again in the backward; "
         "the update fetches and stows those it changes."),
    Case("states and parameters in host memory", "gpt", "dp=2,zero=3,offload=optimizer+parameters",
         "As ZeRO-3; of the parameters a device has its pieces of two layers at a time, and one layer's joined."),
    Case("all in host memory", "gpt", "pp=2,micro_batches=4,offload=optimizer+activations+parameters",
         "States, layers' activations and parameters wait in host memory; gradients stay on the device."),
    Case("co-shard", "gpt", "co_shard=2",
         "Heads and hidden units of each layer run in two pieces, one after another on the same device, and run "
         "again in the backward: of what lies inside a layer one piece exists at a time."),
    Case("co-shard", "swin", "dp=2,co_shard=2",
         "The plan of SuperScaler for images of high resolution, here with data parallelism."),
    Case("interlaced", "gpt", "pp=2,schedule=interlaced,micro_batches=4",
         "The vocabulary is cut over all devices; its tasks run between those of a pipeline of the layers."),
    Case("interlaced", "mbart", "pp=2,schedule=interlaced,micro_batches=2",
         "SuperScaler's plan for mBART, whose embedding is too large for a stage and is read at both ends."),
    Case("interlaced, a step apart", "mbart", "pp=2,schedule=interlaced-ahead,micro_batches=4",
         "A micro-batch rests for a step between stages, so that all rows meet once per micro-batch and none waits; "
         "twice as many are in flight."),
    Case("3F1B", "alphafold2", "pp=2,schedule=3f1b,micro_batches=2",
         "Three passes over the same stages, of which the last has a backward: three forwards for each backward. The "
         "model computes some values in single precision whatever its parameters are in."),
    Case("tp in pp in dp, ZeRO-1", "gpt", "dp=2,tp=2,pp=2,zero=1,micro_batches=2",
         "Stages of 2 x 2 devices; nothing in one recipe knows of another."),
    Case("pp in dp, ZeRO-1, co-shard in one layer", "gpt", pp_in_dp_and_co_shard,
         "From Python: a layer runs piece after piece inside its stage.", 4),
    Case("co-shard in tp in pp in dp, ZeRO-1", "gpt", "dp=2,tp=2,pp=2,co_shard=2,zero=1,micro_batches=2",
         "What tensor parallelism leaves a device of a layer runs there in two pieces, one after another."),
    Case("dp, tp and ZB-V", "gpt", "dp=2,tp=2,pp=2,schedule=zb-v,micro_batches=4",
         "Two stages per row of 2 x 2 devices."),
    Case("tp in both directions", "gpt", "tp=2,pp=2,schedule=bidirectional,micro_batches=2",
         "Each stage of each replica is cut over two devices."),
    Case("dp, cp and ZeRO-3", "gpt", "dp=2,cp=2,zero=3",
         "Batch and sequence are cut, parameters stored in halves."),
    Case("dp and ep", "moe", "dp=2,ep=2", "Experts over two devices, twice; their gradients are summed over dp alone."),
    Case("sp with recomputation", "gpt", "tp=2,sp,recompute,micro_batches=2",
         "The layer's all-gathers run again with it."),
    Case("ZB-H1 with ZeRO-1", "gpt", "dp=2,pp=2,schedule=zb-h1,zero=1,micro_batches=4",
         "A pipeline of two replicas per stage, with its optimizer cut."),
)  # fmt: skip
