"""The networks and stacks of them: shapes, starts, and that logits and gradients are torch's own."""

import math

import pytest
import torch
from torch import nn

from toyld.checked import BadInput
from toyld.digits.networks import lenet, make, mlp
from toyld.digits.stacks import backward, forward, stacked


def odd(seed):
    """A pool of odd sides, a padding that differs, and one tanh in two places."""
    tanh, random = nn.Tanh(), torch.Generator().manual_seed(seed)
    layers = nn.Conv2d(1, 3, 3, padding=(0, 1)), tanh, nn.AvgPool2d(2), tanh, nn.Flatten(), nn.Linear(18, 10)
    module = nn.Sequential(*layers).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=random)
    return module


BUILD = {
    "mlp": (lambda seed: mlp(49, width=12, seed=seed, dtype=torch.float64), 7),
    "no hidden layer": (lambda seed: mlp(49, depth=0, seed=seed, dtype=torch.float64), 7),
    "lenet 8": (lambda seed: lenet(8, seed=seed, dtype=torch.float64), 8),
    "lenet 28": (lambda seed: lenet(28, seed=seed, dtype=torch.float64), 28),
    "odd": (odd, 7),
}


def shapes(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")}


def test_the_mlp_has_four_hidden_layers_of_128_and_lenet_ends_in_60_42_10():
    assert list(shapes(mlp(784)).values()) == [(128, 784), (128, 128), (128, 128), (128, 128), (10, 128)]
    assert [type(layer) for layer in mlp(784)][1:3] == [nn.Linear, nn.ReLU]
    for side, flat in ((28, 400), (8, 64)):
        module = lenet(side)
        assert list(shapes(module).values())[2:] == [(60, flat), (42, 60), (10, 42)]
        kinds = [type(layer) for layer in module]
        assert (kinds.count(nn.Tanh), kinds.count(nn.AvgPool2d), kinds.count(nn.ReLU)) == (4, 2, 0)
    assert shapes(lenet())["conv2.weight"] == (16, 6, 5, 5)


def test_a_seed_is_a_start_and_the_shared_generator_is_left_alone():
    before = torch.get_rng_state()
    for build in (lambda **o: mlp(64, **o), lambda **o: lenet(8, **o), lambda **o: make("mlp", 8)(o.get("seed", 0))):
        one, again, other = build(seed=1000), build(seed=1000), build(seed=1001)
        for a, b, c in zip(one.parameters(), again.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    exact = mlp(64, seed=1000, dtype=torch.float64).parameters()
    assert all(torch.equal(a, b.float()) for a, b in zip(mlp(64, seed=1000).parameters(), exact, strict=True))


def test_the_start_is_uniform_within_torchs_bounds():
    for module in (mlp(64, seed=1000), lenet(28, seed=1000)):
        for layer in module:
            if not list(layer.parameters()):
                continue
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters():
                n, scaled = parameter.numel(), parameter.detach().double().flatten() / bound
                assert scaled.abs().max() <= 1
                # Means of n uniform numbers and of their squares, within 4.5 standard errors.
                assert abs(scaled.mean()) < 4.5 / math.sqrt(3 * n)
                assert abs(scaled.square().mean() - 1 / 3) < 4.5 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize("what", BUILD)
def test_logits_and_gradients_of_a_stack_are_torchs(what):
    build, side = BUILD[what]
    modules, random = [build(seed) for seed in range(3)], torch.Generator().manual_seed(0)
    theta = stacked(modules)
    images = torch.randn(3, 5, 1, side, side, generator=random, dtype=torch.float64)
    residual = torch.randn(3, 5, 10, generator=random, dtype=torch.float64)
    kept, into = [], {name: torch.randn(v.shape, generator=random, dtype=v.dtype) for name, v in theta.items()}
    before = {name: value.clone() for name, value in into.items()}
    with torch.no_grad():
        z = forward(modules[0], theta, images, keep=kept)
        backward(theta, kept, residual, into, decay=0.9)
    for s, module in enumerate(modules):
        own = module(images[s])
        (own * residual[s]).sum().backward()
        torch.testing.assert_close(z[s], own.detach(), rtol=1e-13, atol=1e-13)
        for name, parameter in module.named_parameters():
            wanted = 0.9 * before[name][s] + parameter.grad
            torch.testing.assert_close(into[name][s], wanted, rtol=1e-12, atol=1e-12)


def test_a_stack_can_be_differentiated_by_torch():
    modules = [lenet(8, seed=seed, dtype=torch.float64) for seed in range(2)]
    theta = {name: value.requires_grad_() for name, value in stacked(modules).items()}
    images = torch.ones(2, 3, 1, 8, 8, dtype=torch.float64)
    forward(modules[0], theta, images)[1].sum().backward()
    modules[1](images[1]).sum().backward()
    for name, parameter in modules[1].named_parameters():
        torch.testing.assert_close(theta[name].grad[1], parameter.grad, rtol=1e-12, atol=1e-12)
        assert not theta[name].grad[0].any(), "a network's logits depend on its own parameters alone"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(),
        nn.Linear(4, 4, bias=False),
        nn.Conv2d(1, 1, 3, stride=2),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 1, 3, bias=False),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.AvgPool2d(3),
        nn.AvgPool2d(2, stride=1),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3)),
        nn.Sequential(nn.Tanh()),
        nn.Flatten(0),
        nn.BatchNorm2d(1),
    ],
    ids=str,
)
def test_layers_with_other_formulas_are_refused(layer):
    with pytest.raises(BadInput, match=r"^network: expected layers among .*, got 1 = .*; train such a module"):
        stacked([nn.Sequential(nn.Flatten(), layer)])


def test_a_parameter_in_two_layers_is_refused():
    layer, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = layer.weight
    for again in (layer, tied):
        with pytest.raises(
            BadInput, match=r"^network: expected each parameter in one layer, got 2 = Linear.* with that"
        ):
            stacked([nn.Sequential(layer, nn.Tanh(), again)])


def test_what_is_no_plain_sequence_of_layers_is_refused():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    for module in (Residual(nn.Linear(4, 4)), nn.Linear(4, 4)):
        with pytest.raises(BadInput, match=rf"^network: expected a torch.nn.Sequential, got {type(module).__name__};"):
            stacked([module])


def test_unknown_networks_and_sizes_are_named():
    with pytest.raises(BadInput, match=r"^side: expected images of 8×8 or 28×28 pixels for LeNet, got 16×16;"):
        lenet(16)
    with pytest.raises(BadInput, match=r"^network: expected one of mlp, lenet, got 'mpl';"):
        make("mpl", 8)
