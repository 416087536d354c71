"""Token by token: cancelled residuals, T6's law, gradients and proxies against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import objectives
from toyld import softmax as sm
from toyld.contexts.rows import Rows
from toyld.influence import Model, frobenius
from toyld.influence.proxies import lbk, sign_delta
from toyld.tiny import PAD, Shape, Sizes, ask, draw, scene, start, train, with_rejected
from toyld.tiny.experiments import _pairs, _proxies, _valley, tokens
from toyld.trajectory import validate

SEEDS = (1000, 1001)
EPS = float(np.finfo(float).eps)


@pytest.fixture(scope="module")
def world():
    """Small models in float64 whose heads are random, so that beliefs differ, and pairs of every kind."""
    language = draw(Sizes(entities=4, concepts=4, function_words=3), SEEDS)
    models = start(Shape(language.sizes.classes, language.sizes.places, width=8, depth=1), SEEDS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    flat = models.flat.clone()
    head = models.shape.classes * models.shape.width
    flat[:, -head:] = 0.6 * torch.randn(len(SEEDS), head, generator=generator, dtype=torch.float64)
    models = replace(models, flat=flat)
    data = ask(language, prompts=4)
    own = models.sample(language, data.prompts["chosen"], seed=0)
    return models, with_rejected(data, own)


@pytest.mark.parametrize("shared", [0, 2])
def test_residuals_cancel_before_the_divergence_and_are_two_labels_at_it(world, shared):
    models, data = world
    pairs = tokens.shared_pairs(models, data, shared)
    of = scene(pairs, tokens.SIDES, models)
    with torch.no_grad():
        z = models.logits(of.inputs).flatten(1, 2)
    sides = {side: side for side in tokens.SIDES}
    r = Rows(of, objectives.get("dpo", beta=0.1), sides, z).residual(z).numpy()
    along = {side: r[np.arange(len(r))[:, None, None], of.responses[side].context.numpy()] for side in tokens.SIDES}
    together = along["chosen"] + along["rejected"]
    place = {side: tokens.regions(pairs, side) for side in tokens.SIDES}
    before, at = place["chosen"]["before"], place["chosen"]["at"] & place["rejected"]["at"]
    # Two sums of at most V terms of size β/2P, each rounded.
    assert before.sum() >= shared * 4
    assert np.abs(together[before]).max() <= 64 * EPS
    hot = np.eye(r.shape[-1])
    want = 0.05 / 4 * (hot[pairs.texts["rejected"][at]] - hot[pairs.texts["chosen"][at]])
    np.testing.assert_allclose(together[at], want, atol=64 * EPS)
    assert np.abs(along["rejected"][place["rejected"]["after"]]).sum(-1).min() > 1e-4


def test_regions_and_divergence_by_hand(world):
    _, data = world
    chosen, rejected = data.texts["chosen"].copy(), data.texts["chosen"].copy()
    rejected[:, 0, 2] = (rejected[:, 0, 2] + 1) % 5 + 5
    rejected[:, 1, 1:] = PAD
    pairs = replace(data, texts={"chosen": chosen, "rejected": rejected})
    first = tokens.diverging(pairs)
    assert first[:, :2].tolist() == [[2, 1]] * 2
    assert (first[:, 2:] == chosen.shape[-1]).all()
    found = tokens.regions(pairs, "rejected")
    assert found["before"][0].sum(-1).tolist() == [2, 1, 0, 0]
    assert found["at"][0].sum(-1).tolist() == [1, 0, 0, 0]
    assert found["after"][0, 0].sum() == (chosen[0, 0] != PAD).sum() - 3


def test_means_by_region_of_a_known_change(world):
    models, data = world
    pairs = tokens.shared_pairs(models, data, 2)
    before = _pairs.beliefs(models, pairs, tokens.SIDES)
    after = {side: logp.copy() for side, logp in before.items()}
    text, place = pairs.texts["rejected"], tokens.regions(pairs, "rejected")
    after["rejected"][place["after"]] += 0.5  # every class, the label too
    at = np.nonzero(place["after"])
    after["rejected"][(*at, text[at])] -= 3.0
    found = tokens.by_region(before, after, pairs)
    np.testing.assert_allclose(found["rejected_label_after"], -2.5)
    for name in ("top", "rest"):
        np.testing.assert_allclose(found[f"rejected_{name}_after"], 0.5, rtol=1e-9)
    for name in ("gap_after", "spread_after", "label_at", "spread_before"):
        np.testing.assert_allclose(found[f"rejected_{name}"], 0.0, atol=1e-9)


def test_the_label_of_the_other_side_is_not_one_of_the_rest_where_both_train(world):
    models, data = world
    pairs = tokens.shared_pairs(models, data, 2)
    before = _pairs.beliefs(models, pairs, tokens.SIDES)
    after = {side: logp.copy() for side, logp in before.items()}
    at = np.nonzero(tokens.regions(pairs, "rejected")["at"])
    after["rejected"][(*at, np.maximum(pairs.texts["chosen"], 0)[at])] += 9.0
    found = tokens.by_region(before, after, pairs)
    np.testing.assert_array_equal(found["rejected_rest_at"], 0.0)


def test_law_is_the_derivative_of_entropy():
    z = np.random.default_rng(0).normal(size=(6, 9)) * 2.0
    label, s = np.arange(6) % 9, 1e-6
    push = np.eye(9)[label] - sm.softmax(z)
    slope = (sm.entropy(z - s * push) - sm.entropy(z + s * push)) / (2 * s)
    np.testing.assert_allclose(_valley.law(sm.log_softmax(z), label), slope, rtol=1e-5, atol=1e-8)


def test_gradients_are_those_of_the_module(world):
    models, data = world
    g = _pairs.gradients(models, data, "rejected")
    member, pair = 1, 2
    module = models.module(member)
    text = data.texts["rejected"][member, pair]
    text = text[text != PAD]
    ids = np.concatenate([data.language.ask(data.prompt("rejected")[member, pair]), text])
    logp = module(torch.as_tensor(ids[None, :-1])).log_softmax(-1)[0, 1:]
    own = torch.autograd.grad(logp[torch.arange(len(text)), torch.as_tensor(text)].sum(), list(module.parameters()))
    torch.testing.assert_close(g[member, pair], torch.cat([one.flatten() for one in own]), rtol=1e-9, atol=1e-11)


def test_single_negative_steps_follow_the_law_in_the_head_and_not_always_in_all_layers(world):
    found = _valley._valley(*world)
    for name in ("law_tiny", "valley_tiny", "valley_moderate"):
        np.testing.assert_array_equal(found["head"][name], 1.0)
    assert (found["all"]["law_tiny"] < 1.0).any()
    assert 0.0 < found["head"]["depth"].mean() < 1.0


def test_condition_1_and_the_sum_over_pairs_tell_every_sign_of_a_small_step(world):
    models, data = world
    learnt = train(models, data, objectives.get("sft"), lr=0.03, steps=60, at=()).models
    found = _valley._entangled(learnt, tokens.shared_pairs(models, data, 3))
    for side in tokens.SIDES:
        np.testing.assert_array_equal(found[f"{side}_small"], 1.0)
        np.testing.assert_array_equal(found[f"{side}_sum_batch"], 1.0)
    np.testing.assert_array_equal(found["neither"], 0.0)
    np.testing.assert_array_equal(found["margin_small"], 1.0)
    assert found["chosen_said"].min() < 1.0, "some pair fails Condition 1, or the test shows half of it"


def test_cut_pairs_keep_their_ratios_in_the_head_alone(world):
    models, data = world
    head, whole = (tokens.cut(models, data, layers) for layers in ("head", "all"))
    assert float(head["eval_moved"].min()) > 0.1
    # A few thousand roundings of logits of size ten.
    assert float(head["eval_spread"].max()) < 1e4 * EPS
    assert float(whole["eval_spread"].min()) > 1e-4


def test_positions_are_a_valid_table_token_by_token(world, monkeypatch):
    models, data = world
    plan = ("alone", "sgd", "all", 2)
    monkeypatch.setitem(tokens.DESIGN, plan, 3)
    ds, end = tokens.positions(models, data, plan)
    validate(ds)
    assert len(end) == 8
    assert ds.logp_token.dims == ("seed", "step", "probe", "example", "token")
    np.testing.assert_allclose(ds.logp_token.sum("token"), ds.logp, rtol=1e-12)
    margin = (ds.logp.sel(probe="chosen") - ds.logp.sel(probe="rejected")).diff("step")
    differ = tokens.diverging(tokens.shared_pairs(models, data, 2)) < data.texts["chosen"].shape[-1]
    assert float(margin.values[:, 0][differ].min()) > 0


def test_lbk_and_signdelta_are_those_of_their_definitions_and_below_the_exact_bound(world):
    models, data = world
    found = _proxies.influence(models, data)
    member, u = 0, 1
    model = Model(models.module(member))

    def sides(kind, p):
        text = data.texts[kind][member, p]
        text = text[text != PAD]
        ids = np.concatenate([data.language.ask(data.prompt(kind)[member, p]), text])[:-1]
        return torch.as_tensor(ids[None]), torch.as_tensor(text)

    taught, label = sides("chosen", u)
    z = model.attached(taught)
    residual = z.detach().softmax(-1)[:, 1:]
    residual[0, torch.arange(len(label)), label] -= 1.0
    loss = torch.nn.functional.cross_entropy(z[0, 1:], label, reduction="sum")
    names = list(model.theta)
    step = dict(zip(names, torch.autograd.grad(loss, list(model.parameters.values())), strict=True))
    for o, (kind, p) in {2: ("chosen", 2), 5: ("test_chosen", 1)}.items():
        seen, _ = sides(kind, p)
        logits, dz = model.tangent(seen, step)
        pi = logits.softmax(-1)[:, 1:]
        change = -(dz[:, 1:] - (pi * dz[:, 1:]).sum(-1, keepdim=True))
        np.testing.assert_allclose(found["lbk"][member, u, o], lbk(change, pi, residual)[0], rtol=1e-3)
        np.testing.assert_allclose(found["sign"][member, u, o], sign_delta(change)[0], rtol=1e-3, atol=1e-6)
        blocks = frobenius(model, seen, taught, positions=True)[0, 1:, 0, 1:]
        exact = float(blocks.square().sum()) ** 0.5
        assert found["lbk"][member, u, o] <= exact**2
        # Three projections: within a factor of three of the norm.
        assert exact / 3.0 < found["norm"][member, u, o] < exact * 3.0


def test_a_lesson_is_no_observer_of_itself(world):
    found = _proxies.influence(*world)
    assert found["lbk"].shape == (2, _proxies.LESSONS, 8)
    nothing = np.isnan(found["norm"])
    assert nothing.sum() == 2 * _proxies.LESSONS
    assert nothing[:, np.arange(_proxies.LESSONS), np.arange(_proxies.LESSONS)].all()
