"""Reductions, and what goes along one dim: softmax, sorting, running sums."""

from superscaler.ir.kind import Kind
from superscaler.ir.shape_rules import contract_dims, keep_dim

REDUCTIONS = {
    # a mean is a sum and a division: superscaler.ir.import_fx
    "aten.sum": Kind(contract_dims, "torch.sum", linear=True),
    "aten.sum.dim_IntList": Kind(contract_dims, "torch.sum", linear=True),
    "aten.argmax": Kind(keep_dim(1, None), "torch.argmax"),
    "aten.argmin": Kind(keep_dim(1, None), "torch.argmin"),
    "aten._softmax": Kind(keep_dim(1), "torch.ops.aten._softmax", flops_per_point=5),
    "aten._softmax_backward_data": Kind(keep_dim(2), "torch.ops.aten._softmax_backward_data", flops_per_point=5),
    "aten._log_softmax": Kind(keep_dim(1), "torch.ops.aten._log_softmax", flops_per_point=5),
    "aten._log_softmax_backward_data": Kind(keep_dim(2), "torch.ops.aten._log_softmax_backward_data", flops_per_point=5),
    "aten.cumsum": Kind(keep_dim(1), "torch.cumsum", linear=True),
}  # fmt: skip
