"""Recorded steps, replayed with the same seed, give bit for bit what eager PyTorch would have filled."""

import copy

import pytest
import torch
from torch import nn

from models import gpt
from superscaler.errors import TraceError
from superscaler.ir.deferred import deferred_init, initialisers, recorded


def replay(model, seed):
    """Fill every tensor by its steps, in the order of the names."""
    torch.manual_seed(seed)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {}
    for name, steps in initialisers(model).items():
        values[name] = torch.empty(tensors[name].shape, dtype=tensors[name].dtype)
        for method, *arguments in steps:
            getattr(values[name], method)(*arguments)
    return values


def assert_same_as_eager(make):
    torch.manual_seed(7)
    eager = make()
    with deferred_init():
        deferred = make()
    assert all(tensor.is_meta for tensor in deferred.state_dict().values())
    values = replay(deferred, seed=7)
    expected = {**dict(eager.named_parameters()), **dict(eager.named_buffers())}
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name].data, rtol=0, atol=0)
        assert value.dtype == expected[name].dtype


class Fill(nn.Module):
    """One parameter `w`, made by a function."""

    def __init__(self, make):
        super().__init__()
        self.w = nn.Parameter(make())


def steps_of(make):
    with deferred_init():
        model = Fill(make)
    return initialisers(model)["w"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(5, 7),
        lambda: nn.Linear(5, 7, bias=False, dtype=torch.float64),
        lambda: nn.Embedding(11, 3),
        lambda: nn.LayerNorm(9),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.Conv2d(3, 8, 3),
        lambda: nn.GRU(4, 6),
        lambda: nn.Bilinear(3, 4, 5),
    ],
)
def test_modules_are_filled_as_by_eager_pytorch(make):
    assert_same_as_eager(make)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(3, 4) * 0.02,
        lambda: torch.rand(3, 4) * 2 - 1,
        lambda: 1 - torch.rand(3, 4).clamp(0.1, 0.9),
        lambda: -(torch.rand(5) + 0.5).log().exp_().sqrt(),
        lambda: torch.ones(5).div(3).add(2, alpha=4).sub_(1, alpha=0.5).pow(2),
        lambda: 1 / torch.full((2, 2), 3.0),
        lambda: torch.full((4, 6), 2.0).t()[1:],
        lambda: torch.zeros(6).normal_(1, 2).clone(),
        lambda: torch.zeros(6).copy_(torch.full((), 0.3)),
        lambda: torch.tensor(2.6592),
        lambda: torch.randn(0, 3),
        lambda: torch.empty(8).fill_(1).mul_(5).normal_(),
        lambda: torch.zeros_like(torch.zeros(4, dtype=torch.int64), dtype=torch.float32),
        lambda: torch.zeros(4)[1:].zero_(),
        lambda: nn.init.xavier_uniform_(torch.empty(4, 5)),
        lambda: nn.init.kaiming_normal_(torch.empty(4, 5), nonlinearity="relu"),
        lambda: torch.randn(4).requires_grad_().detach().data,
    ],
)
def test_expressions_of_numbers_are_filled_as_by_eager_pytorch(make):
    torch.manual_seed(3)
    expected = make().detach()
    with deferred_init():
        model = Fill(make)
    torch.testing.assert_close(
        replay(model, seed=3)["w"], expected.contiguous(), rtol=0, atol=0, check_stride=False
    )


def test_a_later_filling_of_the_whole_starts_anew():
    assert steps_of(lambda: torch.empty(4).normal_().mul_(2).uniform_(-1, 1)) == (("uniform_", -1.0, 1.0),)


def test_truncated_normal_keeps_to_its_bounds_and_moments():
    mean, std, low, high = 0.5, 2.0, -1.0, 3.0
    make = lambda: nn.init.trunc_normal_(torch.empty(200_000), mean, std, low, high)  # noqa: E731
    with deferred_init():
        model = Fill(make)
    assert [step[0] for step in initialisers(model)["w"]] == ["uniform_", "erfinv_", "mul_", "add_", "clamp_"]
    value = replay(model, seed=0)["w"]
    expected = make()
    assert low <= value.min()
    assert value.max() <= high
    assert value.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
    assert value.std().item() == pytest.approx(expected.std().item(), abs=0.02)
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(value.quantile(quantiles), expected.quantile(quantiles), rtol=0, atol=0.05)


def test_truncated_normal_outside_is_left_as_it_was():
    before = nn.init._no_grad_trunc_normal_
    with deferred_init():
        assert nn.init._no_grad_trunc_normal_ is not before
    assert nn.init._no_grad_trunc_normal_ is before


def test_gpt_starts_as_gpt2_does():
    with deferred_init():
        model = gpt.build("tiny")
    steps = initialisers(model)
    assert steps.keys() == dict(model.named_parameters()).keys()
    assert steps["wte.weight"] == steps["h.0.attn.q.weight"] == (("normal_", 0.0, 0.02),)
    assert steps["h.3.mlp.down.weight"] == (("normal_", 0.0, 0.02 / 8**0.5),)
    assert steps["h.1.ln_1.weight"] == (("fill_", 1.0),)
    assert steps["h.1.attn.q.bias"] == (("fill_", 0.0),)


def test_gpt3_175b_needs_no_memory():
    with deferred_init():
        model = gpt.build("gpt3-175b")
    assert len(initialisers(model)) == 2 + 96 * 15 + 2
    assert initialisers(model)["h.95.mlp.up.weight"] == (("normal_", 0.0, 0.02),)


def test_tied_weights_appear_once():
    with deferred_init():
        model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
        model["head"].weight = model["embed"].weight
        nn.init.normal_(model["head"].weight, std=0.5)
    assert initialisers(model) == {"embed.weight": (("normal_", 0.0, 0.5),)}


def test_conversion_to_another_float_keeps_the_filling():
    with deferred_init():
        model = nn.Linear(4, 4).to(torch.bfloat16)
    assert initialisers(model)["weight"] == (("uniform_", pytest.approx(-0.5), pytest.approx(0.5)),)


def test_real_tensors_bring_their_values():
    with deferred_init():
        model = nn.LayerNorm(4)
        with torch.device("cpu"):
            model.register_buffer("table", torch.arange(5.0).exp())
    assert torch.equal(model.table, torch.arange(5.0).exp())
    assert initialisers(model).keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Embedding(10, 4, padding_idx=1).weight, "overwrites a part of it"),
        (lambda: torch.empty(3), "nothing has filled it"),
        (lambda: torch.randn(4) * torch.rand(4), "`mul`"),
        (lambda: torch.randn(4) * torch.tensor([1.0, 2.0, 3.0, 4.0]), "`mul`"),
        (lambda: torch.rand(4).div(0.3, rounding_mode="floor"), "`div`"),
        (lambda: torch.randn(4, 8)[:2], "part of a larger random tensor"),
        (lambda: torch.empty(4, 8).copy_(torch.randn(8)), "repeats random values"),
        (lambda: torch.randn(1, 8).expand(4, 8).clone(), "part of a larger|repeats"),
        (lambda: nn.init.orthogonal_(nn.Linear(3, 3).weight), "orthogonal_"),
        (lambda: nn.init.sparse_(torch.zeros(3, 3), 0.5), "sparse_|randperm|overwrites"),
        (lambda: nn.init.dirac_(torch.zeros(3, 3, 3)), "dirac_|overwrites"),
        (lambda: torch.empty(9).exponential_(), "`exponential_`"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_name_and_remedy(make, reason):
    with deferred_init():
        model = Fill(make)
    with pytest.raises(TraceError, match=reason) as error:
        initialisers(model)
    assert "the parameter 'w'" in str(error.value)
    assert "remedy: " in str(error.value)


def test_the_error_names_the_users_line():
    with deferred_init():
        model = nn.Sequential(nn.Embedding(10, 4, padding_idx=1))
    with pytest.raises(TraceError, match=r"'0\.weight'") as error:
        initialisers(model)
    assert "test_deferred.py:" in error.value.where


def test_a_faulty_buffer_is_called_a_buffer():
    with deferred_init():
        model = nn.Module()
        model.register_buffer("noise", torch.rand(4, 4).tril(), persistent=False)
    with pytest.raises(TraceError, match="the buffer 'noise'"):
        initialisers(model)


def sinusoids():
    table = torch.zeros(6, 4)
    for position in range(6):
        table[position, 0::2] = torch.sin(position / torch.tensor([1.0, 100.0]))
        table[position, 1::2] = torch.cos(position / torch.tensor([1.0, 100.0]))
    return table


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1.0, 2.0]),
        lambda: torch.ones(4, 4).tril(),
        lambda: torch.full((3,), 2, dtype=torch.int64).float(),
        lambda: nn.init.eye_(torch.empty(3, 3)),
        lambda: torch.empty(4).copy_(torch.arange(4.0)),
        lambda: 1.0 / 10000 ** (torch.arange(0, 8, 2).float() / 8),
        lambda: torch.arange(6.0).expand(2, 6),
        lambda: torch.arange(6.0).view(2, 3).t(),
        lambda: torch.stack(torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")).flatten(1),
        lambda: torch.full((3,), torch.linspace(0, 1, 5)[3].item()),
        sinusoids,
    ],
)
def test_what_depends_on_no_random_number_has_the_values_of_eager(make):
    with deferred_init():
        model = Fill(make)
    found = recorded(model)
    assert not found.faults
    values = {**found.values, **replay(model, seed=0)}
    assert torch.equal(values["w"], make())


def test_a_copy_of_a_table_is_a_table_of_its_own():
    with deferred_init():
        first = Fill(lambda: torch.arange(4.0))
        model = nn.ModuleList([first, copy.deepcopy(first)])
        with torch.no_grad():
            model[1].w[0] = 7.0
    values = recorded(model).values
    assert values["0.w"].tolist() == [0, 1, 2, 3]
    assert values["1.w"].tolist() == [7, 1, 2, 3]


def test_random_values_stay_unknown_whatever_is_written_into_them():
    with deferred_init():
        model = Fill(lambda: torch.randn(4))
        with torch.no_grad():
            model.w[0] = torch.arange(1.0)[0]
    assert recorded(model).faults.keys() == {"w"}


def test_a_transposed_draw_is_as_random_as_the_draw():
    assert steps_of(lambda: torch.empty(4, 6).uniform_(-3, 5).t()) == (("uniform_", -3.0, 5.0),)


def test_a_fault_is_mended_by_filling_the_whole():
    assert steps_of(lambda: nn.init.eye_(torch.empty(3, 3)).fill_(2.0)) == (("fill_", 2.0),)


def test_copies_of_random_values_are_refused():
    with deferred_init():
        first = nn.Linear(4, 4)
        model = nn.Sequential(first, copy.deepcopy(first))
    with pytest.raises(TraceError, match=r"'1\.weight' is a copy of the random values of '0\.weight'"):
        initialisers(model)


def test_a_model_from_outside_is_refused():
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    with pytest.raises(TraceError, match="outside"):
        initialisers(model)
