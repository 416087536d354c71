"""Stacked models against the plain modules they are made of: logits, gradients, and centred gradients by hand."""

import pytest
import torch

from toyld.checked import BadInput
from toyld.tiny import Centre, Shape, Transformer
from toyld.tiny.stacks import begin, forward, views

SHAPE = Shape(classes=11, places=7, width=12, depth=2, heads=3, expand=2)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # of numbers around 1, sums of some hundred


def drawn(*size, seed):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def flat():
    """Parameters (3, P) of models with everything away from its start."""
    return begin(SHAPE, range(3)).double() + 0.3 * drawn(3, SHAPE.parameters, seed=0)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(11, (3, 4, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def push():
    """∂L/∂logits (3, 4, 6, 11)."""
    return drawn(3, 4, 6, 11, seed=2)


def module(flat, member):
    one = Transformer(SHAPE).double()
    torch.nn.utils.vector_to_parameters(flat[member].clone(), one.parameters())
    return one


def test_begin_stacks_the_modules_of_its_seeds():
    rows = [torch.nn.utils.parameters_to_vector(Transformer(SHAPE, seed=seed).parameters()) for seed in (4, 2)]
    assert torch.equal(begin(SHAPE, [4, 2]), torch.stack(rows).detach())


def test_views_share_the_memory_of_the_tensor(flat):
    mine = flat.clone()
    views(SHAPE, mine)["last.bias"][1] = 7.0
    assert int((mine != flat).sum()) == 12


def test_logits_and_gradients_are_those_of_the_plain_modules(flat, tokens, push):
    leaf = flat.clone().requires_grad_()
    z = forward(SHAPE, views(SHAPE, leaf), tokens)
    (g,) = torch.autograd.grad(z, leaf, push)
    for s in range(3):
        one = module(flat, s)
        own = one(tokens[s])
        torch.testing.assert_close(z[s], own, **CLOSE)
        wanted = torch.autograd.grad(own, list(one.parameters()), push[s])
        torch.testing.assert_close(g[s], torch.cat([part.flatten() for part in wanted]), rtol=1e-12, atol=1e-11)


def test_hidden_states_are_what_the_head_reads(flat, tokens):
    h = forward(SHAPE, views(SHAPE, flat), tokens, hidden=True)
    torch.testing.assert_close(h[2], module(flat, 2).hidden(tokens[2]), **CLOSE)


def by_hand(one, tokens, push, centre, mask):
    """The gradient of one module whose linear layers hear of centred inputs: Σ b (a − …)ᵀ, from hooks."""
    heard, linears = {}, {name: layer for name, layer in one.named_modules() if isinstance(layer, torch.nn.Linear)}
    for name, layer in linears.items():
        layer.register_forward_hook(lambda _, given, out, name=name: heard.update({name: [given[0].detach(), out]}))
    z = one(tokens)
    outs = [out for _, out in heard.values()]
    names = [name for name, _ in one.named_parameters()]
    plain = torch.autograd.grad(z, [*one.parameters(), *outs], push)
    found, backs = dict(zip(names, plain, strict=False)), dict(zip(heard, plain[len(names) :], strict=True))
    for name in linears if centre.where == "all" else ["head"]:
        a, b = heard[name][0].flatten(0, 1), backs[name].flatten(0, 1)
        mean = a[mask.flatten()].mean(0)
        if centre.how == "random":  # a direction that has nothing to do with the inputs
            mean = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(a.shape[1])).double()
        told = a - mean if centre.how == "subtract" else a - torch.outer(a @ mean, mean) / (mean @ mean)
        found[f"{name}.weight"] = b.T @ told
    return torch.cat([found[name].flatten() for name in names])


@pytest.mark.parametrize("where", ["head", "all"])
@pytest.mark.parametrize("how", ["subtract", "project", "random"])
@pytest.mark.parametrize("masked", [False, True])
def test_centring_changes_what_weights_are_told_and_nothing_else(flat, tokens, push, where, how, masked):
    centre, leaf = Centre(where, how), flat.clone().requires_grad_()
    mask = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(3)) < (0.6 if masked else 2.0)
    z = forward(SHAPE, views(SHAPE, leaf), tokens, centre=centre, mask=mask if masked else None)
    torch.testing.assert_close(z, forward(SHAPE, views(SHAPE, flat), tokens), **CLOSE)
    (g,) = torch.autograd.grad(z, leaf, push)
    for s in range(3):
        wanted = by_hand(module(flat, s), tokens[s], push[s], centre, mask[s])
        torch.testing.assert_close(g[s], wanted, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("wrong", [{"where": "heads"}, {"how": "center"}])
def test_a_centre_that_is_none_is_refused_in_one_line(wrong):
    with pytest.raises(BadInput, match=r"expected head or all, and subtract, project, random, got .*; correct it"):
        Centre(**wrong)


def test_more_tokens_than_places_are_refused_in_one_line(flat):
    with pytest.raises(BadInput, match="expected up to 7 in a row, got 8; make models with more places"):
        forward(SHAPE, views(SHAPE, flat), torch.zeros(3, 1, 8, dtype=torch.long))
