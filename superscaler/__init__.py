"""superscaler compiles a PyTorch model into a parallel plan, and the plan into a `torch.distributed` program.

    import superscaler as ss
    graph = ss.trace(model, args, optimizer=ss.AdamW(lr=3e-4))
    plan = ss.plan(graph, ss.Cluster.local(4), "dp=2,tp=2")
    plan.save("build/gpt")

The names are loaded when first used, so that a generated program, which needs `superscaler.runtime` alone,
starts without the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superscaler import serve
    from superscaler.compiler import compile, plan
    from superscaler.ir.declare import rule
    from superscaler.ir.deferred import deferred_init
    from superscaler.ir.learning_rates import Constant, Cosine, Linear
    from superscaler.ir.loss_scale import LossScale
    from superscaler.ir.optimizers import SGD, Adam, AdamW, Lion
    from superscaler.ir.trace import trace
    from superscaler.planner import recipes, schedules
    from superscaler.planner.cluster import Cluster
    from superscaler.planner.plan import Plan
    from superscaler.planner.planner import Planner
    from superscaler.runtime.loaded import load
    from superscaler.runtime.serving.grammar.grammar import Grammar
    from superscaler.runtime.serving.offline import generate, load_engine
    from superscaler.runtime.serving.sampling_params import SamplingParams
    from superscaler.runtime.serving.settings import Settings
    from superscaler.serve.compile import compile_serving

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Cluster",
    "Constant",
    "Cosine",
    "Grammar",
    "Linear",
    "Lion",
    "LossScale",
    "Plan",
    "Planner",
    "SamplingParams",
    "Settings",
    "compile",
    "compile_serving",
    "deferred_init",
    "generate",
    "load",
    "load_engine",
    "plan",
    "recipes",
    "rule",
    "schedules",
    "serve",
    "trace",
]

_HOMES = {
    "Adam": "superscaler.ir.optimizers",
    "AdamW": "superscaler.ir.optimizers",
    "Cluster": "superscaler.planner.cluster",
    "Constant": "superscaler.ir.learning_rates",
    "Cosine": "superscaler.ir.learning_rates",
    "Grammar": "superscaler.runtime.serving.grammar.grammar",
    "Linear": "superscaler.ir.learning_rates",
    "Lion": "superscaler.ir.optimizers",
    "LossScale": "superscaler.ir.loss_scale",
    "Plan": "superscaler.planner.plan",
    "Planner": "superscaler.planner.planner",
    "SGD": "superscaler.ir.optimizers",
    "SamplingParams": "superscaler.runtime.serving.sampling_params",
    "Settings": "superscaler.runtime.serving.settings",
    "compile": "superscaler.compiler",
    "compile_serving": "superscaler.serve.compile",
    "deferred_init": "superscaler.ir.deferred",
    "generate": "superscaler.runtime.serving.offline",
    "load": "superscaler.runtime.loaded",
    "load_engine": "superscaler.runtime.serving.offline",
    "plan": "superscaler.compiler",
    "rule": "superscaler.ir.declare",
    "trace": "superscaler.ir.trace",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name == "__version__":
        return import_module("importlib.metadata").version("superscaler")
    if name in ("recipes", "schedules"):
        return import_module(f"superscaler.planner.{name}")
    if name == "serve":
        return import_module("superscaler.serve")
    if name not in _HOMES:
        raise AttributeError(f"module 'superscaler' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return [*__all__, "__version__"]
