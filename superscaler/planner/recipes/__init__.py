"""Recipes: the plans everyone knows, as short scripts on the primitives a user has, ``ss.recipes``.

A recipe is called from a plan script, alone or with others, or asked for by its word in a plan string. Each file is a
family; `table` lists them all, and `plan_string` reads ``dp=2,tp=2``.
"""

from superscaler.planner.recipes.co_sharding import co_shard_layers
from superscaler.planner.recipes.context_parallelism import context_parallel
from superscaler.planner.recipes.data_parallelism import data_parallel
from superscaler.planner.recipes.expert_parallelism import expert_parallel
from superscaler.planner.recipes.offloading import (
    offload_activations,
    offload_everything,
    offload_optimizer,
    offload_optimizer_and_activations,
    offload_optimizer_and_parameters,
    offload_parameters,
)
from superscaler.planner.recipes.pipelines import pipeline, place_stages, scheduled_pipeline
from superscaler.planner.recipes.plan_string import (
    PlanOptions,
    apply_recipes,
    explain_words,
    parse_plan,
    recipe,
    said_words,
    words,
)
from superscaler.planner.recipes.recomputation import recompute_attention, recompute_layers, recompute_stages
from superscaler.planner.recipes.sharding import gradient_sharding, optimizer_sharding, parameter_sharding
from superscaler.planner.recipes.table import RECIPES, Recipe
from superscaler.planner.recipes.tensor_parallelism import (
    sequence_parallel,
    tensor_parallel,
    tensor_parallel_axes,
)

__all__ = [
    "RECIPES", "PlanOptions", "Recipe", "apply_recipes", "co_shard_layers", "context_parallel", "data_parallel",
    "expert_parallel", "explain_words", "gradient_sharding", "offload_activations", "offload_everything",
    "offload_optimizer", "offload_optimizer_and_activations", "offload_optimizer_and_parameters",
    "offload_parameters", "optimizer_sharding", "parameter_sharding",
    "parse_plan", "pipeline", "place_stages", "recipe", "recompute_attention", "recompute_layers",
    "recompute_stages", "said_words", "scheduled_pipeline", "sequence_parallel", "tensor_parallel",
    "tensor_parallel_axes", "words",
]  # fmt: skip
