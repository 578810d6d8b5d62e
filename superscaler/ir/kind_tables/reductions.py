"""Reductions, and what goes along one dim: softmax, sorting, running sums."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import RuleFunction, argument, contract_dims, keep_dim, letters, text

_VALUES = ("", "indices")


def _reduce(reducer: str = "", dims_at: int = 1) -> RuleFunction:
    """Some dims, told by the argument at `dims_at`, are reduced; all of them where nothing is told.

    Their pieces combine by the reducer; without one the reduced dims are needed whole.
    """

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        rank = len(reads[0])
        told = argument(operator, dims_at, operator.keyword("dim"))
        dims = (
            {dim % rank for dim in ([told] if isinstance(told, int) else told or range(rank))}
            if rank
            else set()
        )
        names = letters(reads[0])
        source = [
            f"{name}!" if i in dims and name != "1" and not reducer else name for i, name in enumerate(names)
        ]
        kept = len(writes[0]) == rank
        out = text(*("1" if i in dims else name for i, name in enumerate(names) if kept or i not in dims))
        return f"{text(*source)} -> {', '.join([f'{out}:{reducer}' if reducer else out] * len(writes))}"

    return rule


def _histogram(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Counts add up, if the bins do not depend on what is counted."""
    low, high = argument(operator, 2, 0), argument(operator, 3, 0)
    names = [name if low != high or name == "1" else f"{name}!" for name in letters(reads[0])]
    return f"{text(*names)} -> bins!"


REDUCTIONS = {
    # a mean is a sum and a division: superscaler.ir.import_fx
    "aten.sum": Kind(contract_dims, "torch.sum", linear=True),
    "aten.sum.dim_IntList": Kind(contract_dims, "torch.sum", linear=True),
    "aten.nansum": Kind(_reduce("sum"), "torch.nansum"),
    "aten.count_nonzero": Kind(_reduce("sum"), "torch.count_nonzero"),
    "aten.count_nonzero.dim_IntList": Kind(_reduce("sum"), "torch.count_nonzero"),
    "aten.histc": Kind(_histogram, "torch.histc"),
    "aten.logsumexp": Kind(_reduce("logsumexp"), "torch.logsumexp", flops_per_point=4),
    "aten.amax": Kind(_reduce("max"), "torch.amax"),
    "aten.max": Kind(_reduce("max"), "torch.max"),
    "aten.amin": Kind(_reduce(), "torch.amin"),
    "aten.min": Kind(_reduce(), "torch.min"),
    "aten.aminmax": Kind(_reduce(), "torch.aminmax", ("min", "max")),
    "aten.prod": Kind(_reduce(dims_at=9), "torch.prod"),
    "aten.prod.dim_int": Kind(_reduce(), "torch.prod"),
    "aten.any": Kind(_reduce(), "torch.any"),
    "aten.any.dim": Kind(_reduce(), "torch.any"),
    "aten.any.dims": Kind(_reduce(), "torch.any"),
    "aten.all": Kind(_reduce(), "torch.all"),
    "aten.all.dim": Kind(_reduce(), "torch.all"),
    "aten.all.dims": Kind(_reduce(), "torch.all"),
    "aten.var.correction": Kind(_reduce(), "torch.var", flops_per_point=3),
    "aten.std.correction": Kind(_reduce(), "torch.std", flops_per_point=3),
    "aten.var_mean.correction": Kind(_reduce(), "torch.var_mean", ("", "mean"), flops_per_point=3),
    "aten.std_mean.correction": Kind(_reduce(), "torch.std_mean", ("", "mean"), flops_per_point=3),
    "aten.linalg_vector_norm": Kind(_reduce(dims_at=2), "torch.linalg.vector_norm", flops_per_point=2),
    "aten.norm.Scalar": Kind(_reduce(dims_at=9), "torch.norm", flops_per_point=2),
    "aten.norm.ScalarOpt_dim": Kind(_reduce(dims_at=2), "torch.norm", flops_per_point=2),
    "aten.median": Kind(_reduce(), "torch.median"),
    # along one dim
    "aten.argmax": Kind(keep_dim(1, None), "torch.argmax"),
    "aten.argmin": Kind(keep_dim(1, None), "torch.argmin"),
    "aten.max.dim": Kind(keep_dim(1), "torch.max", _VALUES),
    "aten.min.dim": Kind(keep_dim(1), "torch.min", _VALUES),
    "aten.median.dim": Kind(keep_dim(1), "torch.median", _VALUES),
    "aten.mode": Kind(keep_dim(1), "torch.mode", _VALUES),
    "aten.kthvalue": Kind(keep_dim(2), "torch.kthvalue", _VALUES),
    "aten.topk": Kind(keep_dim(2), "torch.topk", _VALUES),
    "aten.sort": Kind(keep_dim(1), "torch.sort", _VALUES),
    "aten.sort.stable": Kind(keep_dim(9), "torch.sort", _VALUES),
    "aten.cumsum": Kind(keep_dim(1), "torch.cumsum", linear=True),
    "aten.cumprod": Kind(keep_dim(1), "torch.cumprod"),
    "aten.cummax": Kind(keep_dim(1), "torch.cummax", _VALUES),
    "aten.cummin": Kind(keep_dim(1), "torch.cummin", _VALUES),
    "aten.logcumsumexp": Kind(keep_dim(1), "torch.logcumsumexp", flops_per_point=4),
    "aten._softmax": Kind(keep_dim(1), flops_per_point=5),
    "aten._softmax_backward_data": Kind(keep_dim(2), flops_per_point=5),
    "aten._log_softmax": Kind(keep_dim(1), flops_per_point=5),
    "aten._log_softmax_backward_data": Kind(keep_dim(2), flops_per_point=5),
    "aten.glu": Kind(keep_dim(1), "F.glu"),
    "aten.glu_backward": Kind(keep_dim(2)),
    "aten.linalg_cross": Kind(keep_dim(9), "torch.linalg.cross"),
}  # fmt: skip
