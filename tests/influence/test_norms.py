"""Norms of the kernel: exact ones against the kernel itself, random projections against the exact ones."""

import importlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

from toyld.checked import BadInput
from toyld.influence import Model, estimated, frobenius, kernel

_spec = importlib.util.spec_from_file_location("influence_networks", Path(__file__).parent / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)
norms = importlib.import_module("toyld.influence.norms")


@pytest.mark.parametrize("name", ["mlp", "lenet", "attention"])
def test_exact_norms_are_those_of_the_kernel(name):
    net, observed, taught, _ = networks.network(name)
    model = Model(net)
    k = kernel(model, observed, taught)
    rest = tuple(i for i in range(k.ndim) if i not in (0, k.ndim // 2))
    torch.testing.assert_close(frobenius(model, observed, taught), k.square().sum(rest).sqrt(), rtol=1e-12, atol=0)
    by_position = frobenius(model, observed, taught, positions=True)
    want = k.square().sum((k.ndim // 2 - 1, k.ndim - 1)).sqrt()
    torch.testing.assert_close(by_position, want, rtol=1e-12, atol=0)


def test_a_causal_model_couples_no_position_to_later_ones():
    net, observed, taught, _ = networks.network("attention")
    found = frobenius(Model(net, parameters="place"), observed, taught, positions=True)
    assert found.shape == (3, networks.T, 2, networks.T)
    alone = frobenius(Model(net, parameters="head.*"), observed, taught, positions=True)
    assert float(alone.min()) > 0.0  # the head is shared by all positions
    z = kernel(Model(net, parameters="place"), observed, observed)
    assert float(z[0, 0, :, 0, -1].abs().max()) > 0.0  # both read the first position's vector


METRIC = {"0.weight": 2.0, "5.bias": torch.linspace(0.1, 1.0, networks.V, dtype=torch.float64)}


def test_projections_estimate_without_bias_and_cover():
    """80 estimates at 32 projections: mean of the squares within 4 standard errors, coverage within 4 of .93."""
    net, observed, taught, _ = networks.network("mlp", seed=1)
    model = Model(net)
    exact = frobenius(model, observed[:1], taught[:1], metric=METRIC)[0, 0]
    repeats, number = 80, 32
    runs = [
        estimated(model, observed[:1], taught[:1], projections=number, seed=1000 + i, metric=METRIC)
        for i in range(repeats)
    ]
    value, error, low, high = (
        torch.stack([getattr(r, n)[0, 0] for r in runs]) for n in ("value", "error", "low", "high")
    )
    squares = value.square()
    assert abs(squares.mean() - exact**2) < 4.0 * squares.std() / math.sqrt(repeats)
    assert 0.7 < error.mean() / value.std() < 1.4  # the standard deviation of 80 is known to 8 %
    covered = int(((low <= exact) & (exact <= high)).sum())
    assert stats.binomtest(covered, repeats, 0.93).pvalue > 6e-5
    assert (error / value).mean() < 1.0 / math.sqrt(2 * number)


def test_the_interval_is_students():
    net, observed, taught, _ = networks.network("mlp")
    for projections, t in ((2, 12.7062047), (4, 3.1824463), (16, 2.1314495)):  # .975 quantiles at projections − 1
        found = estimated(Model(net), observed, taught, projections=projections)
        reach = t * found.error / found.value
        torch.testing.assert_close(torch.log(found.high / found.value), reach, rtol=1e-7, atol=0)
        torch.testing.assert_close(torch.log(found.value / found.low), reach, rtol=1e-7, atol=0)


class Cube(torch.autograd.Function):
    """x³, without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cubed(nn.Linear):
    def forward(self, x):
        return Cube.apply(super().forward(x))


@pytest.mark.parametrize("first", ["a function of one's own", "a bag", "normalised weights"])
def test_operations_without_forward_mode_get_one_clear_line(first):
    torch.manual_seed(0)
    layer = {
        "a function of one's own": lambda: Cubed(4, 3),
        "a bag": lambda: nn.EmbeddingBag(5, 3),
        "normalised weights": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    }[first]()
    model = Model(nn.Sequential(layer, nn.Linear(3, 5)).double())
    x = torch.randint(5, (2, 4)) if first == "a bag" else torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(BadInput, match=r"expected operations with forward mode, got .*; use frobenius") as caught:
        estimated(model, x, x, projections=2)
    assert "\n" not in str(caught.value)
    assert (frobenius(model, x, x) > 0.0).all()  # the way out


def test_sparse_gradients_are_projected_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 5)).double()
    ids = torch.randint(5, (2, 4))
    sparse = estimated(Model(net), ids, ids, projections=4)
    net[0].sparse = False
    assert torch.equal(sparse.value, estimated(Model(net), ids, ids, projections=4).value)


def test_projections_are_repeatable_and_find_no_coupling_where_none_is():
    net = nn.Linear(4, 3, bias=False).double()
    x = torch.eye(4, dtype=torch.float64)
    one, two = (estimated(Model(net), x[:2], x[1:3], projections=4, seed=s) for s in (0, 0))
    assert torch.equal(one.value, two.value)
    assert not torch.equal(one.value, estimated(Model(net), x[:2], x[1:3], projections=4, seed=1).value)
    assert torch.equal(one.value == 0.0, torch.tensor([[True, True], [False, True]]))
    assert float(one.high[0, 0]) == 0.0


def test_projections_take_sequences_and_parts_of_a_module(monkeypatch):
    net, observed, taught, _ = networks.network("tied")
    model = Model(net, parameters=["mlp.*", "place"])
    exact, found = frobenius(model, observed, taught), estimated(model, observed, taught, projections=64, seed=3)
    monkeypatch.setattr(norms, "ROOM", 2_000)  # a few projections at a time: the same vectors
    assert torch.allclose(estimated(model, observed, taught, projections=64, seed=3).value, found.value, rtol=1e-12)
    assert ((found.value - exact).abs() < 5.0 * found.error).all()
    assert (found.error < 0.2 * exact).all()


@pytest.mark.parametrize("number", [1, 2.0, "many"])
def test_too_few_projections_get_one_clear_line(number):
    with pytest.raises(BadInput, match=r"projections: expected an integer ≥ 2, got .*; 32 give") as caught:
        estimated(Model(nn.Linear(2, 2)), torch.zeros(1, 2), torch.zeros(1, 2), projections=number)
    assert "\n" not in str(caught.value)
