"""Generated programs call operators of a user's: the build brings along what defines them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import superscaler as ss
from superscaler.codegen.operator_files import defined_by
from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.custom_operators import define
from tests.codegen import scaling_operators

STEPS = 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.down = nn.Linear(8, 6)

    def forward(self, x):
        return self.down(scaling_operators.scale(self.up(x), self.weight)).square().mean()


def net():
    torch.manual_seed(0)
    return Net().double()


def compiled(plan, devices, **options):
    x = torch.randn(4, 6, dtype=torch.float64)
    return ss.compile(
        net(), (x,), cluster=ss.Cluster.local(devices), plan=plan, optimizer=ss.SGD(lr=0.1), **options
    )


@pytest.mark.parametrize("plan", ["none", "dp=2", "tp=2", "dp=2,tp=2,zero=1"])
def test_every_plan_computes_what_eager_pytorch_does(plan):
    made = compiled(plan, 4 if "," in plan else 1 if plan == "none" else 2)
    comparison = made.compare_with_eager(net(), (torch.randn(4, 6, dtype=torch.float64),))
    assert comparison.largest < 1e-12


def test_the_operator_is_cut_by_the_rule_found():
    stage = compiled("tp=2", 2)
    reduced = [name for name in stage.placed.placements if name.startswith("scale")]
    assert reduced
    operator = stage.graph.by_name["scale"]
    (layout,) = stage.placed.writes(operator)
    assert layout.cuts[-1] == ("tp",)


@pytest.mark.ranks
def test_ranks_that_never_saw_the_users_module_train_as_eager(tmp_path):
    build = compiled("tp=2", 2, save=tmp_path / "build")
    assert build is not None
    data = {"x": torch.randn(4 * STEPS, 6, dtype=torch.float64)}
    save_file(data, tmp_path / "data.safetensors")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "build/train.py", f"--steps={STEPS}", "--data=data.safetensors", "--losses=losses.json",
        "--save=saved.safetensors",
    ]  # fmt: skip
    package = str(Path(ss.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x in data["x"].split(4):
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(losses, rel=1e-12)
    for name, value in load_file(tmp_path / "saved.safetensors").items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_the_file_is_part_of_the_build_and_fingerprinted(tmp_path):
    compiled("dp=2", 2, save=tmp_path / "build")
    assert (
        'define("scalingtest.scale", by="operators_scaling_operators.py", beside=__file__)'
        in (tmp_path / "build" / "stage0.py").read_text()
    )
    copy = tmp_path / "build" / "operators_scaling_operators.py"
    assert copy.read_text() == Path(scaling_operators.__file__).read_text()
    read_build(tmp_path / "build")
    copy.write_text(copy.read_text() + "\n")
    with pytest.raises(BuildError, match="edited"):
        read_build(tmp_path / "build")


def custom(path, text):
    """An operator ``othertest.twice`` defined in a file of its own."""
    path.write_text(
        f"import torch\n{text}\n"
        '@torch.library.custom_op("othertest::twice", mutates_args=())\n'
        "def twice(x: torch.Tensor) -> torch.Tensor:\n    return 2 * x\n"
        "twice.register_fake(lambda x: torch.empty_like(x))\n"
    )
    space = {"__name__": "made", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space["twice"]


def graph_of(operator):
    class Twice(nn.Module):
        def forward(self, x):
            return operator(x)

    return ss.trace(Twice(), (torch.randn(4, 6),))


def test_a_file_that_imports_from_its_package_is_refused(tmp_path):
    graph = graph_of(custom(tmp_path / "part.py", "if not torch:\n    from .other import x\n"))
    with pytest.raises(BuildError, match=r"(?s)part\.py.*imports from its own package.*part\.py:3"):
        defined_by(graph)


def test_an_operator_defined_by_no_python_file_is_refused():
    library = torch.library.Library("nowheretest", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CPU")
    library.impl("twice", torch.empty_like, "Meta")
    graph = graph_of(torch.ops.nowheretest.twice)
    with pytest.raises(BuildError, match=r"(?s)torch\.ops\.nowheretest\.twice.*torch\.library\.custom_op"):
        defined_by(graph)


def test_a_file_that_defines_something_else_is_told(tmp_path):
    (tmp_path / "operators_a.py").write_text("import torch\n")
    with pytest.raises(
        BuildError, match=r"operators_a\.py was imported and does not define torch\.ops\.a\.b"
    ):
        define("a.b", by="operators_a.py", beside=str(tmp_path / "stage0.py"))


def test_a_file_that_fails_is_told(tmp_path):
    (tmp_path / "operators_b.py").write_text("import there_is_no_such_module\n")
    with pytest.raises(
        BuildError, match=r"(?s)operators_b\.py, which defines torch\.ops\.a\.b, cannot be imported"
    ):
        define("a.b", by="operators_b.py", beside=str(tmp_path / "stage0.py"))


def test_an_operator_that_is_there_is_not_defined_again(tmp_path):
    define("scalingtest.scale", by="nothing.py", beside=str(tmp_path / "stage0.py"))
