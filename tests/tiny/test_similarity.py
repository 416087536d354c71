"""Texts that are picked for what was measured of them; interventions on a measured kernel; effects read off cells."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from toyld import objectives
from toyld.claims import similarity_factorial as claims
from toyld.contexts import engine
from toyld.contexts.experiments import similarity as held
from toyld.tiny import Models, Shape, Sizes, Texts, ask, draw, pretrain, start, train
from toyld.tiny.experiments import _negatives, similarity

SEEDS = (1100, 1101)


@functools.cache
def world() -> tuple[Models, Texts]:
    language = draw(Sizes(), SEEDS)
    models, _ = pretrain(start(Shape(39, 8), SEEDS), language, steps=40, lr=6e-3)
    return models, ask(language, prompts=4)


@functools.cache
def candidates() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    models, data = world()
    texts = _negatives.pool(models, data, each=8)
    return texts, _negatives.measured(models, data, texts)


def test_candidates_are_as_long_as_chosen_and_begin_with_another_word() -> None:
    models, data = world()
    texts, found = candidates()
    right = data.texts["chosen"][:, :, None]
    there = (texts >= 0).any(-1)
    assert there.mean() > 0.5
    assert ((texts >= 0) == (right >= 0))[there].all()
    assert (texts[..., 0] != right[..., 0])[there].all()
    assert ((texts == 0).sum(-1) == 1)[there].all()
    assert all((np.isfinite(found[name]) == there).all() for name in _negatives.MEASURES)
    again = _negatives.pool(models, data, each=8)
    assert (again == texts).all()


def test_measures_of_a_text_by_hand() -> None:
    """One text, contexts one by one: log π from the whole model, every cosine of every pair of contexts."""
    models, data = world()
    texts, found = candidates()
    s, p = 1, 2
    n = int(np.flatnonzero((texts[s, p] >= 0).any(-1))[5])
    only = models.take([s])

    def states(prompt: int, text: np.ndarray) -> tuple[torch.Tensor, list[float]]:
        tokens = [*data.language.ask(np.array(prompt)).tolist(), *text[text >= 0].tolist()]
        rows = torch.tensor(tokens[:-1])[None, None]
        z = only.logits(rows)[0, 0].double().log_softmax(-1)
        h = torch.nn.functional.normalize(only.hidden(rows)[0, 0].double(), dim=-1)
        return h[1:], [float(z[t - 1, tokens[t]]) for t in range(2, len(tokens))]

    mine, logp = states(data.prompts["chosen"][s, p], texts[s, p, n])
    own, said = mine[1:], texts[s, p, n][texts[s, p, n] >= 0][1:]
    near, shared = [], []
    for q in range(4):
        text = data.texts["test_chosen"][s, q]
        theirs, _ = states(data.prompts["test_chosen"][s, q], text)
        for h, y in zip(own, said, strict=True):
            for other, label in zip(theirs, text[text >= 0], strict=True):
                near.append(float(h @ other))
                shared.append(near[-1] if y == label else 0.0)
    right, _ = states(data.prompts["chosen"][s, p], data.texts["chosen"][s, p])
    wanted = {
        "logp": np.mean(logp),
        "test": np.mean(near),
        "plus": float((own @ right.T).mean()),
        "labels": np.mean(shared),
    }
    for name, value in wanted.items():
        assert found[name][s, p, n] == pytest.approx(value, abs=1e-5), name


def test_cells_differ_in_the_factor_that_they_are_named_for() -> None:
    _, found = candidates()
    best = dict(zip(_negatives.CELLS, _negatives.picked(found), strict=True))
    measure = {"probability": ("logp",), "contexts": ("test", "plus"), "labels": ("labels",)}
    for i, (factor, (low, high)) in enumerate(_negatives.FACTORS.items()):
        for name in measure[factor]:
            mean = {}
            for level in (low, high):
                each = [
                    np.take_along_axis(found[name], at[..., None], 2) for cell, at in best.items() if cell[i] == level
                ]
                mean[level] = float(np.mean(each))
            assert (mean[high] > mean[low]) == (factor != "probability"), (factor, name, mean)


def test_a_world_held_still_trains_as_the_head_of_the_transformer_does() -> None:
    """K1: the closed form on the measured Gram matrix is head-only descent, whatever answers share contexts."""
    models, data = world()
    models = Models(models.shape, models.seeds, models.flat.double())
    data = data.also({"rejected": similarity.negatives(models, data)["temperature 1"]})
    still = similarity.held_still(models, data)
    kinds = ("chosen", "rejected", "test_chosen")
    closed = engine.train(still, objectives.get("dpo"), lr=0.5, steps=6, rejected="rejected", kinds=kinds)
    network = train(
        models, data, objectives.get("dpo"), lr=0.5, steps=6, rejected="rejected", kinds=kinds, layers="head"
    )
    for kind in kinds:
        np.testing.assert_allclose(closed.value("logp", kind), network.value("logp", kind), atol=1e-9)


def test_coupling_scales_what_own_contexts_share_with_the_rest_and_nothing_else() -> None:
    models, data = world()
    data = data.also({"rejected": similarity.negatives(models, data)["temperature 1"]})
    still = similarity.held_still(models, data)
    at, every = held.own(still), slice(0, still.size[1])
    before = still.kernel.block(every, every)
    after = similarity.coupled(still, at, 0.25, 0.2).kernel.block(every, every)
    more = before + np.diagonal(before, axis1=1, axis2=2).mean(1)[:, None, None] / 4.0  # .2 of the new diagonal
    r = still.responses["rejected"]
    b, p, t = (int(i[0]) for i in np.nonzero(at))
    mine, chosen = int(r.context[b, p, t]), int(still.responses["chosen"].context[b, 0, 0])
    np.testing.assert_allclose(after[b, mine, mine], more[b, mine, mine])
    np.testing.assert_allclose(after[b, mine, chosen], 0.25 * more[b, mine, chosen])
    np.testing.assert_allclose(after[b, chosen, chosen], more[b, chosen, chosen])
    assert np.linalg.eigvalsh(after).min() > -1e-9 * np.abs(after).max()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_a_common_feature_has_its_share_of_the_mean_square(share: float) -> None:
    """a = c² / (c² + mean ‖h‖²), from the hidden states along chosen, one answer after another."""
    models, data = world()
    size = similarity.common_size(models, data, share)
    held = models.take(range(len(models)), common=size.tolist())
    for s in range(len(models)):
        whole, common = [], []
        for p in range(data.prompts["chosen"].shape[1]):
            text = data.texts["chosen"][s, p]
            tokens = [*data.language.ask(data.prompts["chosen"][s, p]).tolist(), *text[text >= 0].tolist()]
            h = held.take([s]).hidden(torch.tensor(tokens[:-1])[None, None])[0, 0].double().numpy()[1:]
            whole += (h**2).sum(-1).tolist()
            common += (h[:, -1] ** 2).tolist()
        assert np.sum(common) / np.sum(whole) == pytest.approx(share, rel=1e-5)


def _made(effect: dict[str, float], leak: float) -> dict[tuple[str, ...], xr.Dataset]:
    """Cells whose changes are linear in what was measured, and whose labels leak into the levels of probability."""
    out: dict[tuple[str, ...], xr.Dataset] = {}
    for cell in _negatives.CELLS:
        level = {f: 0.5 if cell[i] == claims.LEVELS[f][1] else -0.5 for i, f in enumerate(claims.LEVELS)}
        told = {
            "logp": level["probability"],
            "test": level["contexts"],
            "labels": level["labels"] - leak * level["probability"],
        }
        fall = sum(effect[f] * told[claims.MEASURED[f]] for f in effect)
        rows: dict[str, Any] = {f"eval_text_{name}": (("seed", "step"), [[x, np.nan]] * 2) for name, x in told.items()}
        rows["fell"] = (("seed",), [fall, fall])
        out[cell] = xr.Dataset(rows)
    return out


def test_effects_are_cleared_of_what_the_texts_leave_of_other_factors() -> None:
    effect = {"probability": 0.3, "contexts": -0.2, "labels": -2.0}
    runs = _made(effect, leak=0.4)
    raw, own = (found(runs, lambda ds: ds.fell.values) for found in (claims.contrasts, claims.cleared))
    np.testing.assert_allclose(raw["probability"], 0.3 + 0.4 * 2.0)
    for factor, value in effect.items():
        np.testing.assert_allclose(own[factor], value, atol=1e-12)
    np.testing.assert_allclose([raw["mean"], raw["probability x labels"]], 0.0, atol=1e-12)
