"""Calls are printed as a person would write them, and mean the same."""

import pytest
import torch

from superscaler.codegen.expressions import Text, call, without_unread
from superscaler.codegen.program import Compute
from superscaler.codegen.sizes import Sizes
from superscaler.ir.graph import Operator, Ref
from superscaler.ir.interpret import run_operator
from superscaler.ir.mesh import Mesh

END = 2**63 - 1


@pytest.mark.parametrize(
    ("kind", "arguments", "keywords", "written"),
    [
        ("aten.slice.Tensor", (Ref(0), 1, 0, 2), (), "x[:, :2]"),
        ("aten.slice.Tensor", (Ref(0), 2, 1, END), (), "x[:, :, 1:]"),
        ("aten.slice.Tensor", (Ref(0), -1, -2, END), (), "x[..., -2:]"),
        ("aten.slice.Tensor", (Ref(0), -2, None, None, 2), (), "x[..., ::2, :]"),
        ("aten.select.int", (Ref(0), 0, -1), (), "x[-1]"),
        ("aten.select.int", (Ref(0), 1, 2), (), "x[:, 2]"),
        ("aten._to_copy", (Ref(0),), (("dtype", "torch.float64"),), "x.to(torch.float64)"),
        ("aten.neg", (Ref(0),), (), "-x"),
        ("aten.pow.Tensor_Scalar", (Ref(0), 2), (), "x ** 2"),
        ("aten.sum.dim_IntList", (Ref(0), [1], True), (), "x.sum([1], True)"),
    ],
)
def test_the_written_call_computes_what_the_operator_does(kind, arguments, keywords, written):
    x = torch.randn(3, 4, 5)
    compute = Compute("o", kind, ("x",), ("y",), arguments, keywords)
    text = str(call(compute, [Text("x")], Sizes(Mesh((0,)), {})))
    assert text == written
    (result,) = run_operator(Operator("o", kind, ("x",), ("y",), arguments, keywords), [x])
    torch.testing.assert_close(eval(text, {"x": x, "torch": torch}), result)


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (["y", "_", "_"], "y = f(x)[0]"),
        (["_", "mean", "rstd"], "mean, rstd = f(x)[1:]"),
        (["y", "mean", "_"], "y, mean = f(x)[:2]"),
        (["_", "mean", "_"], "mean = f(x)[1]"),
        (["y", "mean"], "y, mean = f(x)"),
    ],
)
def test_no_name_holds_the_memory_of_results_at_either_end_that_nobody_reads(targets, text):
    names, call = without_unread(targets, "f(x)")
    assert f"{', '.join(names)} = {call}" == text
