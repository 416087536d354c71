"""Foretelling a stage: the linearised network against finite differences, shares against scikit-learn's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import objectives
from toyld.contexts.measure import measure
from toyld.contexts.rows import Rows
from toyld.tiny import Models, Shape, Sizes, Texts, ask, draw, pretrain, scene, start, train, with_rejected
from toyld.tiny.experiments import reach
from toyld.trajectory.matched import at_margin, margin

SEEDS = range(1000, 1002)
PAIR = {"chosen": "chosen", "rejected": "rejected"}


@pytest.fixture(scope="module")
def small() -> tuple[Models, Texts]:
    """Two models in float64, a little pretrained, and pairs against their own answers."""
    language = draw(Sizes(), SEEDS)
    models, _ = pretrain(start(Shape(39, 8, width=8), SEEDS), language, steps=20)
    models = replace(models, flat=models.flat.double())
    data = ask(language, prompts=3)
    data = with_rejected(data, models.sample(language, data.prompts["chosen"], seed=0))
    kinds = ("chosen", "rejected", "test_chosen", "irr_train")
    return models, replace(data, texts={kind: data.texts[kind] for kind in kinds})


def test_the_linearised_network_is_tangent_to_the_network(small: tuple[Models, Texts]) -> None:
    models, data = small
    of = scene(data, ["chosen"], models)
    line = reach._Linear(models, of)
    delta = torch.randn(models.flat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    with torch.no_grad():
        up, down = (models.logits(of.inputs, models.flat + sign * step * delta).flatten(1, 2) for sign in (1.0, -1.0))
    torch.testing.assert_close(line.at(delta) - line.start, (up - down) / (2 * step), rtol=1e-6, atol=1e-6)
    r = torch.randn(line.start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((line.pull(r) * delta).sum(), (r * (line.at(delta) - line.start)).sum())


def test_gram_is_training_the_head_and_both_kernels_are_exact_for_small_steps(small: tuple[Models, Texts]) -> None:
    models, data = small
    dpo, kinds = objectives.get("dpo", beta=0.1), tuple(data.texts)
    found = reach.foretell(models, data, dpo, lr=0.1, steps=5, sides=PAIR)
    alone = train(models, data, dpo, lr=0.1, steps=5, rejected="rejected", layers="head", at=[0, 1, 5], kinds=kinds)
    np.testing.assert_allclose(found["gram"][[0, 1, 5]], alone.values["logp"], atol=1e-10)
    errors = []
    for lr in (1e-4, 1e-5):
        told = reach.foretell(models, data, dpo, lr=lr, steps=1, sides=PAIR)
        real = train(models, data, dpo, lr=lr, steps=1, rejected="rejected", at=[0, 1], kinds=kinds).values["logp"]
        assert np.abs(told["gram"][1] - real[1]).max() > 1e-2 * np.abs(real[1] - real[0]).max()
        np.testing.assert_allclose(told["tangent"][1], told["line"][1], atol=1e-12)
        errors.append(np.abs(told["tangent"][1] - real[1]).max())
    assert errors[1] < 0.02 * errors[0]  # second order in the step: a hundredth


def test_the_linearised_run_takes_its_residuals_from_itself(small: tuple[Models, Texts]) -> None:
    models, data = small
    sft, lr = objectives.get("sft"), 0.5
    rows_of = scene(data, ["chosen"], models)
    found = reach.foretell(models, data, sft, lr=lr, steps=10, sides={"chosen": "chosen"})["tangent"]
    line = reach._Linear(models, rows_of)
    rows = Rows(rows_of, sft, {"chosen": "chosen"}, line.start)
    delta = torch.zeros_like(models.flat)
    for _ in range(10):
        z = line.at(delta)
        delta = delta - lr * line.pull(rows.residual(z.detach()))
    logp = measure(line.at(delta), rows_of.responses, ["chosen"])["logp"]
    np.testing.assert_allclose(found[10][:, :1], logp.numpy(), atol=1e-9)


def test_shares_are_scikit_learns_and_correlations_scipys() -> None:
    from scipy.stats import pearsonr
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    real = rng.normal(size=(3, 4, 5))
    said = 0.7 * real + rng.normal(size=real.shape)
    flat = [(a.ravel(), b.ravel()) for a, b in zip(real, said, strict=True)]
    np.testing.assert_allclose(reach._explained(real, said), [r2_score(a, b) for a, b in flat])
    np.testing.assert_allclose(reach._alike(real, said), [pearsonr(a, b).statistic ** 2 for a, b in flat])


def test_a_slower_foretelling_is_read_where_it_has_come_as_far(small: tuple[Models, Texts]) -> None:
    models, data = small
    run = train(models, data, objectives.get("dpo"), lr=0.3, steps=12, rejected="rejected", at=range(13))
    table = run.table("dpo", "baseline")
    clock, goal = margin(table), margin(table)[7] * 0.93
    values = run.value("logp", "test_chosen").mean(-1)
    for s in range(2):
        want = at_margin(table, float(goal[s]), "test_chosen")[s]
        found = reach._paced(clock, (values - values[:1])[..., None], goal)[s, 0]
        assert found == pytest.approx(want, abs=1e-12)
    assert np.isnan(reach._paced(clock, values[..., None], goal + 1e3)).all()
