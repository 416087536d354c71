"""Scores before training against the training: K3 in the head, exact gradients in all layers, the tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import claims, contexts, objectives
from toyld.claims.runs import evaluate_on
from toyld.tiny import Shape, Sizes, ask, draw, start, train, with_rejected
from toyld.tiny.experiments import _pairs, foresight
from toyld.tiny.experiments._worlds import BETA
from toyld.trajectory import trajectory, validate

SEEDS = (1000, 1001)
DPO = objectives.get("dpo", beta=BETA)


@pytest.fixture(scope="module")
def world():
    """Small models in float64 with random heads, pairs of different lengths."""
    language = draw(Sizes(entities=4, concepts=4, function_words=3), SEEDS)
    models = start(Shape(language.sizes.classes, language.sizes.places, width=8, depth=1), SEEDS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    flat, head = models.flat.clone(), models.shape.classes * models.shape.width
    flat[:, -head:] = 0.6 * torch.randn(len(SEEDS), head, generator=generator, dtype=torch.float64)
    models = replace(models, flat=flat)
    data = ask(language, prompts=4)
    return models, with_rejected(data, models.sample(language, data.prompts["chosen"], seed=0))


def changes(run):
    return run.value("logp", "chosen")[-1] - run.value("logp", "chosen")[0]


def test_head_world_is_the_training_of_the_head(world):
    models, data = world
    run = train(models, data, DPO, lr=0.5, steps=6, rejected="rejected", layers="head", kinds=("chosen",))
    closed = contexts.train(foresight.head_world(models, data), DPO, lr=0.5, steps=6, rejected="rejected")
    want = closed.value("logp", "chosen")[-1] - closed.value("logp", "chosen")[0]
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(changes(run), want, rtol=1e-9, atol=1e-11)


def test_first_order_scores_are_the_falls_of_a_small_update(world):
    models, data = world
    found, lr = foresight.scores(models, data), 1e-6
    rate = lr * BETA / 2.0  # of the loss, at π = π_ref
    small = {"lr": lr, "steps": 1, "rejected": "rejected", "kinds": ("chosen",)}
    many = -changes(train(models, data, DPO, **small))
    np.testing.assert_allclose(rate / 4 * found["many"]["exact"], many, rtol=1e-4, atol=1e-12)
    head = -changes(train(models, data, DPO, layers="head", **small))
    np.testing.assert_allclose(lr * found["many"]["k3"], head, rtol=1e-4, atol=1e-12)
    alone = -changes(train(models.take(_pairs.members(2, 4)), _pairs.apart(data), DPO, **small)).reshape(2, 4)
    np.testing.assert_allclose(rate * found["alone"]["exact"], alone, rtol=1e-4, atol=1e-12)
    np.testing.assert_array_equal(found["alone"]["exact"], found["many"]["exact_pair"])
    assert not np.allclose(found["many"]["exact"], found["many"]["exact_pair"])


def test_signed_is_the_first_update_of_rmsprop(world):
    from toyld.tiny import Optimizer

    models, data = world
    lr = 1e-9
    run = train(
        models, data, DPO, lr=lr, steps=1, optimizer=Optimizer("rmsprop", eps=1e-30), rejected="rejected",
        kinds=("chosen",),
    )  # fmt: skip
    # RMSprop's memory of one gradient g is .01 g², so that its first update is 10 sign(g).
    want = 10 * lr * foresight.scores(models, data)["many"]["signed"]
    np.testing.assert_allclose(-changes(run), want, rtol=1e-3, atol=1e-12)


def test_pairs_alone_are_pairs_that_meet_no_other(world):
    data = world[1]
    one = _pairs.apart(data)
    assert one.texts["chosen"].shape == (8, 1, 7)
    np.testing.assert_array_equal(one.texts["rejected"][5, 0], data.texts["rejected"][1, 1])
    np.testing.assert_array_equal(one.prompts["chosen"][5], data.prompts["chosen"][1, 1:2])
    assert one.language.seeds == (1000,) * 4 + (1001,) * 4


def test_tables_score_every_design(world, monkeypatch):
    monkeypatch.setattr(foresight, "taught", lambda seeds, size: world)
    runs = {("sgd", "head", "many"): 10, ("sgd", "all", "many"): 10, ("rmsprop", "all", "alone"): 10}
    found = foresight.tables(SEEDS, runs=runs)
    assert list(found) == [
        f"foresight: {name}" for name in ("many, sgd, head", "many, sgd, all", "alone, rmsprop, all")
    ]
    for ds in found.values():
        validate(ds)
        ranks = [ds[name].values for name in ds.data_vars if name.startswith("eval_rank_end")]
        assert np.nanmax(np.abs(ranks)) <= 1.0 + 1e-12
        assert ds.attrs["experiment"] == "foresight"
    head, whole = found["foresight: many, sgd, head"], found["foresight: many, sgd, all"]
    assert float(head["eval_rank_end_begun"].min()) > 0.5
    assert "eval_rank_exact" not in head
    assert "eval_rank_end_exact" in whole


IN_NETWORKS = {id: one for id, one in claims.every().items() if id.startswith("foresight.") and one.rungs == ("tiny",)}


def table(optimizer, **ranks):
    """A table in which these scores have these mean rank correlations at both targets."""
    rng, n = np.random.default_rng(3), 20
    columns = {
        f"eval_rank{end}_{name}": rng.normal(ranks.get(name, 0.0), 0.1, (n, 1))
        for name in foresight.SCORES
        for end in ("", "_end")
    }
    attrs = {"experiment": "foresight", "regime": "many", "optimizer": optimizer}
    return trajectory(columns, step=[0], probe=["chosen"], seed=range(n), stage="scores", arm="many", attrs=attrs)


@pytest.mark.parametrize("id", sorted(IN_NETWORKS))
def test_claims_about_networks_hold_as_stated_and_not_on_the_opposite_or_at_one_target(id):
    one = IN_NETWORKS[id]
    optimizer = "rmsprop" if id.endswith("rmsprop") else "sgd"
    ranks = {"exact": 0.5, "k3": 0.5, "begun": 0.8}
    stated = table(optimizer, **ranks)
    assert evaluate_on(one, {"as stated": stated}).summary == "holds"
    opposite = {"exact": -0.5 if "head" not in id else 0.5, "k3": -0.5, "begun": -0.8}
    assert evaluate_on(one, {"opposite": table(optimizer, **opposite)}).summary == "refuted"
    half = stated.copy()
    for name, rank in opposite.items():
        half[f"eval_rank_end_{name}"] = stated[f"eval_rank_end_{name}"] - ranks[name] + rank
    assert evaluate_on(one, {"half": half}).summary != "holds"
