"""Predictors: K3 against autograd and against the update itself, baselines against their definitions."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toyld import contexts, objectives
from toyld.contexts import languages, predict
from toyld.contexts.experiments import foresight
from toyld.contexts.kernels import Features
from toyld.contexts.predict import TERMS

EPS = float(np.finfo(float).eps)


def ragged(world, seed=5):
    """The same world with responses of unequal lengths (1 to T tokens)."""
    rng = np.random.default_rng(seed)
    texts = {}
    for kind in ("chosen", "rejected", "test_chosen"):
        text = np.array(world.language.texts[kind])
        ends = rng.integers(1, text.shape[-1] + 1, size=text.shape[:2])
        texts[kind] = np.where(np.arange(text.shape[-1]) < ends[..., None], text, -1)
    return replace(world.language, texts=texts).world(world.seeds, {})


@functools.cache
def small(shared=1):
    return ragged(languages.markov(seeds=[1001, 1002], vocab=9, prompts=4, length=4, shared=shared))


def trained(world, steps=4, lr=20.0, objective=None):
    """A policy that has left its reference, so that every pair has its own 1 − a."""
    return contexts.train(world, objective or objectives.get("dpo"), lr=lr, steps=steps, rejected="rejected").state


def with_autograd(world, state, reference, beta, probe):
    """The four terms from torch's gradients of a head: (own, rejected, other_chosen, other_rejected), each (P,)."""
    phi = torch.as_tensor(np.asarray(world.kernel.features)[0])
    z0, ref = (torch.as_tensor(np.asarray(contexts.logits(world, s))[0]) for s in (state, reference))
    head = torch.zeros(phi.shape[1], z0.shape[1], dtype=z0.dtype, requires_grad=True)

    def responses(kind, z):
        context, token, mask = (torch.as_tensor(np.array(a[0])) for a in world.responses[kind])
        return (torch.log_softmax(z, -1)[context, token] * mask).sum(-1)

    def gradients(kind):
        rows = responses(kind, z0 + phi @ head)
        return torch.stack([torch.autograd.grad(one, head, retain_graph=True)[0].ravel() for one in rows])

    plus, minus = (responses(kind, z0).detach().requires_grad_() for kind in ("chosen", "rejected"))
    h = (plus - responses("chosen", ref)) - (minus - responses("rejected", ref))
    loss = -torch.nn.functional.logsigmoid(beta * h).mean()
    pushes = torch.autograd.grad(loss, (plus, minus))
    parts = []
    for kind, push in zip(("chosen", "rejected"), pushes, strict=True):
        moved = -(gradients(probe) @ gradients(kind).T) * push
        parts.append((moved.diagonal(), moved.sum(1) - moved.diagonal()))
    return [part.numpy() for part in (parts[0][0], parts[1][0], parts[0][1], parts[1][1])]


@pytest.mark.parametrize("probe", ["chosen", "rejected", "test_chosen"])
def test_terms_are_those_of_autograd_one_by_one(probe):
    world = small()
    rng = np.random.default_rng(3)
    world = replace(world, kernel=Features(rng.normal(size=(*world.size[:2], 7)))).take([0])
    state, beta = trained(world, lr=0.5), 0.7
    found = predict.terms(
        world, state, objective=objectives.get("dpo", beta=beta), reference=contexts.engine.start(world), probe=probe
    )
    wanted = with_autograd(world, state, contexts.engine.start(world), beta, probe)
    pushes = [np.abs(wanted[i]).max() for i in range(4)]
    assert min(pushes) > 1e-3  # no term is empty
    for name, one in zip(TERMS, wanted, strict=True):
        np.testing.assert_allclose(found[name][0], one, rtol=0, atol=1e4 * EPS * max(pushes), err_msg=name)
    np.testing.assert_allclose(found["total"][0], sum(wanted), rtol=0, atol=1e4 * EPS * max(pushes))


OBJECTIVES = [objectives.get("dpo", beta=0.3), objectives.get("ipo"), objectives.get("rpo"), objectives.get("ld-dpo")]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize(("probe", "along"), [("chosen", "label"), ("chosen", "argmax"), ("test_chosen", "label")])
def test_terms_are_the_derivative_of_the_engines_update(objective, probe, along):
    world = small()
    state, before = trained(world), contexts.engine.start(world)
    total = predict.terms(world, state, objective=objective, reference=before, probe=probe, along=along)["total"]
    where = world.responses[probe]
    at = contexts.logits(world, state)[np.arange(len(where.context))[:, None, None], where.context]
    top = np.sort(at, axis=-1)[where.mask]
    assert (top[:, -1] - top[:, -2]).min() > 0.05  # changes of 1e-3 nats make no other token the likeliest

    def slope(lr):
        run = contexts.train(
            world, objective, lr=lr, steps=1, state=state, reference=before, rejected="rejected", kinds=(probe,)
        )
        values = run.value("logp" if along == "label" else "argmax_logp", probe)
        return (values[1] - values[0]) / lr

    h = 1e-3 / np.abs(total).max()  # changes of 1e-3 nats: two halvings leave an error of third order in them
    a, b, c = slope(h), slope(h / 2), slope(h / 4)
    best = (8 * c - 6 * b + a) / 3
    np.testing.assert_allclose(best, total, rtol=0, atol=1e-6 * np.abs(total).max())


def test_terms_start_at_the_world_and_at_dpo_by_default():
    world = small()
    one = predict.terms(world)
    two = predict.terms(world, contexts.engine.start(world), objective=objectives.get("dpo", beta=0.1))
    for name in (*TERMS, "total"):
        np.testing.assert_array_equal(one[name], two[name])


def test_shared_tokens_cancel_within_a_pair():
    world = languages.markov(seeds=[1000], vocab=9, prompts=1, length=4, shared=4)
    found = predict.terms(world)
    np.testing.assert_array_equal(found["own"], -found["rejected"])
    assert (found["own"] > 0).all()


def test_couplings_are_symmetric_and_positive():
    world = small()
    one = predict.couplings(world, None, "chosen", "rejected")
    other = predict.couplings(world, None, "rejected", "chosen")
    np.testing.assert_allclose(one, np.swapaxes(other, 1, 2), rtol=1e-12, atol=1e-14)
    whole = np.block(
        [[predict.couplings(world, None, a, b) for b in ("chosen", "rejected")] for a in ("chosen", "rejected")]
    )
    assert np.linalg.eigvalsh(whole).min() > -1e-12


def test_entanglement_says_which_chosen_response_falls():
    setting = foresight.Setting(sizes=foresight.SMALL, kernels={"crowded": foresight.HELD_OUT["crowded"]})
    world = foresight.worlds(range(1000, 1008), setting)
    state = contexts.train(world, objectives.get("sft"), lr=3.0, steps=300, until=0.45, at=(), kinds=("chosen",)).state
    pairs = foresight.alone(world, state)
    sign = predict.entanglement(pairs)
    run = contexts.train(pairs, objectives.get("dpo"), lr=1e-4, steps=1, rejected="rejected")
    fell = run.value("logp", "chosen")[1] < run.value("logp", "chosen")[0]
    assert 8 < fell.sum() < 72
    np.testing.assert_array_equal(fell, sign > 0)


def test_ches_is_what_its_definition_says_over_true_lengths():
    world = small()
    every = slice(0, world.size[1])
    s = world.kernel.block(every, every)
    found = predict.ches(world)
    plus, minus = world.responses["chosen"], world.responses["rejected"]
    lengths = {(int(a.sum()), int(b.sum())) for a, b in zip(plus.mask[0], minus.mask[0], strict=True)}
    assert len(lengths) > 1
    for b, p in np.ndindex(*found["ches"].shape):
        one, two = (r.context[b, p][r.mask[b, p]] for r in (plus, minus))
        across = sum(s[b, c, d] for c in one for d in two)
        own = sum(s[b, c, d] for c in one for d in one)
        assert found["ches"][b, p] == pytest.approx(across - own, rel=1e-12, abs=1e-12)
        wanted = across / (len(one) * len(two)) - own / len(one) ** 2
        assert found["normalised"][b, p] == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_padding_changes_no_score():
    world = small()
    texts = {kind: np.pad(t, ((0, 0), (0, 0), (0, 3)), constant_values=-1) for kind, t in world.language.texts.items()}
    longer = replace(world.language, texts=texts).world(world.seeds, {})
    for score in (predict.terms, predict.ches, predict.likelihoods):
        one, two = score(world), score(longer)
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-11, atol=1e-14, err_msg=name)
    np.testing.assert_array_equal(predict.edit_distance(world), predict.edit_distance(longer))


@functools.cache
def recursive(one, two):
    if not one or not two:
        return len(one) + len(two)
    change = recursive(one[1:], two[1:]) + (one[0] != two[0])
    return min(change, recursive(one[1:], two) + 1, recursive(one, two[1:]) + 1)


@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5))
def test_edit_distance_is_the_fewest_edits(one, two):
    assert predict._levenshtein(one, two) == recursive(tuple(one), tuple(two))


def test_edit_distance_is_over_the_longer_response():
    world = small()
    plus, minus = world.responses["chosen"], world.responses["rejected"]
    found = predict.edit_distance(world)
    for b, p in np.ndindex(*found.shape):
        one, two = (tuple(r.token[b, p][r.mask[b, p]].tolist()) for r in (plus, minus))
        assert found[b, p] == recursive(one, two) / max(len(one), len(two))
    assert 0 < found.min() < found.max() <= 1


def test_likelihoods_are_those_of_the_policy():
    world = small()
    state = trained(world)
    run = contexts.train(world, objectives.get("dpo"), lr=1.0, steps=0, state=state, rejected="rejected")
    plus, minus = run.value("logp", "chosen")[0], run.value("logp", "rejected")[0]
    long = {kind: world.responses[kind].mask.sum(-1) for kind in ("chosen", "rejected")}
    found = predict.likelihoods(world, state)
    np.testing.assert_allclose(found["improbability"], -minus / long["rejected"], rtol=1e-13)
    np.testing.assert_allclose(found["surprise"], -plus / long["chosen"], rtol=1e-13)
    np.testing.assert_allclose(found["margin"], plus - minus, rtol=1e-12, atol=1e-12)


def test_foresee_in_as_many_even_updates_is_the_run_itself():
    world = small()
    state, lr = trained(world, steps=2), np.array([3.0, 9.0])
    dpo = objectives.get("dpo", beta=0.4)
    kinds = ("chosen", "test_chosen")
    run = contexts.train(world, dpo, lr=lr, steps=6, state=state, rejected="rejected", at=range(7), kinds=kinds)
    for variable in ("logp", "argmax_logp"):
        found = predict.foresee(
            world, state, lr=lr, steps=6, updates=6, growth=1.0, objective=dpo, kinds=kinds, variable=variable
        )
        for kind in kinds:
            wanted = run.value(variable, kind) - run.value(variable, kind)[:1]
            np.testing.assert_allclose(found[kind], wanted, rtol=1e-10, atol=1e-11)
    assert np.abs(wanted[-1]).max() > 0.1


def test_foresee_grows_by_a_quarter_unless_told_otherwise():
    world = small()
    state, lr, dpo = contexts.engine.start(world), 0.7, objectives.get("dpo")
    wanted = [np.zeros((2, 4))]
    shares = 1.25 ** np.arange(8)
    for share in lr * 50 * shares / shares.sum():
        run = contexts.train(
            world, dpo, lr=share, steps=1, state=state, reference=contexts.engine.start(world), rejected="rejected"
        )
        state = run.state
        path = run.value("logp", "chosen")
        wanted.append(wanted[-1] + path[1] - path[0])
    found = predict.foresee(world, lr=lr, steps=50)["chosen"]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-11)
    even = predict.foresee(world, lr=lr, steps=50, growth=1.0)["chosen"]
    assert np.abs(even[4] - found[4]).max() > 0.01


def test_foresee_keeps_to_the_time_of_the_run_whatever_its_updates():
    world = small()
    run = contexts.train(world, objectives.get("dpo"), lr=0.5, steps=64, rejected="rejected", kinds=("chosen",))
    wanted = run.value("logp", "chosen")[-1] - run.value("logp", "chosen")[0]
    errors = [np.abs(predict.foresee(world, lr=0.5, steps=64, updates=k)["chosen"][-1] - wanted).max() for k in (4, 8)]
    assert errors[1] < errors[0] < 0.05 * np.abs(wanted).max()


def test_torch_gives_the_same_numbers():
    world = small()
    moved = world.to(torch.zeros(1, dtype=torch.float64))
    for name, one in predict.terms(world).items():
        np.testing.assert_allclose(predict.terms(moved)[name].numpy(), one, rtol=1e-10, atol=1e-14, err_msg=name)
    for name, one in predict.ches(world).items():
        np.testing.assert_allclose(predict.ches(moved)[name].numpy(), one, rtol=1e-10, atol=1e-12, err_msg=name)
    along = [predict.terms(w, along="argmax")["total"] for w in (world, moved)]
    np.testing.assert_allclose(along[1].numpy(), along[0], rtol=1e-10, atol=1e-14)
    paths = [predict.foresee(w, lr=5.0, steps=20)["chosen"] for w in (world, moved)]
    np.testing.assert_allclose(paths[1].numpy(), paths[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(predict.edit_distance(moved), predict.edit_distance(world))
    for name, one in predict.likelihoods(world).items():
        np.testing.assert_allclose(predict.likelihoods(moved)[name].numpy(), one, rtol=1e-12, atol=1e-12)
