"""Answers judged by the language: chances of being right, win rates, answers of other questions, stages in pieces."""

from __future__ import annotations

import doctest
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import objectives
from toyld.claims import alignment as claims
from toyld.claims import evaluate_on, registry
from toyld.tiny import Shape, Sizes, ask, draw, pretrain, start, with_rejected
from toyld.tiny.experiments import _generations as said
from toyld.tiny.experiments import alignment
from toyld.tiny.experiments._worlds import BETA, RECIPES, World
from toyld.tiny.language import PAD
from toyld.tiny.measures import beliefs, right
from toyld.tiny.models import Models
from toyld.tiny.stage import train
from toyld.trajectory import trajectory

SEEDS = (1000, 1001)
PLAN = alignment.Plan(4, (2,), (0, 2, 4), (1, 3))


@pytest.fixture(scope="module")
def little():
    """A world whose models have hardly been pretrained."""
    language = draw(Sizes(), SEEDS)
    models, _ = pretrain(start(Shape(language.sizes.classes, language.sizes.places), SEEDS), language, steps=25)
    data = ask(language, prompts=6)
    own = models.sample(language, data.prompts["chosen"], seed=0)
    return World(language, models, with_rejected(data, own))


@pytest.fixture(scope="module")
def tables(little):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "world", lambda seeds, size: little)
        return alignment.tables(SEEDS, plans={"rmsprop": PLAN, "sgd": PLAN})


def certain(models: Models) -> Models:
    """The same with beliefs: fresh ones give every token the same probability."""
    noise = torch.randn(models.flat.shape, generator=torch.Generator().manual_seed(0))
    return replace(models, flat=models.flat + 0.3 * noise)


def small(least: int = 1, most: int = 2):
    """A language whose right answers can be listed, and an untrained model of it."""
    sizes = Sizes(relations=1, entities=4, function_words=2, concepts=3, synonyms=2, least=least, most=most)
    return draw(sizes, [3]), certain(start(Shape(sizes.classes, sizes.places), [3]))


@pytest.mark.parametrize(("least", "most"), [(1, 2), (2, 2)])
def test_the_chance_of_a_right_answer_is_the_sum_over_all_right_answers(least: int, most: int) -> None:
    language, models = small(least, most)
    functions = range(language.functions, language.words)
    words = range(language.words, language.sizes.classes)
    texts = []
    for n in range(1, most + 1):
        for slots in itertools.product(*[functions, words] * n):
            texts.append([*slots, 0, *[PAD] * (2 * (most - n))])
    text = np.array(texts)[None]
    prompt = np.full(text.shape[:2], 2)
    logp = np.take_along_axis(beliefs(models, language, prompt, text), np.maximum(text, 0)[..., None], -1)[..., 0]
    each = np.exp(np.where(text == PAD, 0.0, logp).sum(-1))
    exact = float((each * right(language, prompt, text)).sum())
    led = said.chance(models, language, np.full((1, 4000), 2))
    error = led.std() / led.shape[1] ** 0.5
    assert abs(led.mean() - exact) < 5.0 * error < 0.1 * exact


def test_greedy_answers_are_those_of_the_models_and_sampled_ones_can_be_had_again() -> None:
    language = draw(Sizes(), SEEDS)
    models = certain(start(Shape(language.sizes.classes, language.sizes.places), SEEDS))
    data = ask(language, prompts=3)
    one, again = (said.speak(models, data, samples={"trained": 2, "heldout": 3}) for _ in range(2))
    greedy = models.sample(language, data.prompt("test_chosen"), seed=0, temperature=0.0)
    np.testing.assert_array_equal(one["heldout_greedy"].text[:, :, 0], greedy)
    assert [one[way].text.shape[2] for way in said.WAYS] == [1, 2, 1, 3]
    for way in said.WAYS:
        np.testing.assert_array_equal(one[way].text, again[way].text)
        np.testing.assert_array_equal(one[way].judged["right"], again[way].judged["right"])
    prompt, text = one["trained_greedy"].flat()
    np.testing.assert_array_equal(one["trained_greedy"].judged["right"][..., 0], right(language, prompt, text))


def test_win_rates_count_ties_half_and_leave_out_twins() -> None:
    shape, text = (1, 2), np.zeros((1, 2, 2, 7), int)

    def one(likely: list[list[float]], chance: list[list[float]]) -> said.Said:
        return said.Said(np.zeros(shape, int), text, {"likely": np.array([likely]), "right": np.array([chance])})

    a, b = (
        one([[0.0, -1.0], [-2.0, -2.0]], [[1.0, 0.5], [0.0, 0.0]]),
        one([[-0.5, -3.0], [-2.0, -5.0]], [[0.0] * 2] * 2),
    )
    # prompt 1: 0 > −3 wins, −1 < −.5 loses (0 and −.5, −1 and −3 are twins); prompt 2: −2 > −5 wins, −2 = −2 ties
    np.testing.assert_allclose(said.wins(a, b, "likely"), [(1 + 0 + 1 + 0.5) / 4])
    np.testing.assert_allclose(said.wins(b, a, "likely"), [1 - (1 + 0 + 1 + 0.5) / 4])
    np.testing.assert_allclose(said.wins(a, b, "right"), [0.5 + 0.375 / 2])


def test_borrowed_answers_are_wrong_here_and_taught_elsewhere() -> None:
    language = draw(Sizes(slip=0.0, least=2, most=2, concentration=9.0), SEEDS)
    data = ask(language, prompts=6)
    given = said.told(data)
    taught = data.prompts["chosen"]
    assert (given.taught.sum(1) == 6).all()
    np.testing.assert_array_equal(
        np.take_along_axis(given.says, taught[..., None], 1), language.concepts(data.texts["chosen"])
    )

    def answered(text: np.ndarray) -> said.Said:
        return said.Said(taught, text[:, :, None], {})

    own, _ = said.borrowed(given, answered(data.texts["chosen"]))
    np.testing.assert_array_equal(own, 0.0)  # an answer of one's own is right, whoever else was taught it
    other, untaught = said.borrowed(given, answered(np.roll(data.texts["chosen"], 1, axis=1)))
    facts = language.facts[np.arange(len(SEEDS))[:, None], taught]
    wrong = ~(facts == np.roll(facts, 1, axis=1)).all(-1)
    relation = taught // language.sizes.entities
    free = np.array([[(~row[r * 8 : (r + 1) * 8]).any() for r in range(4)] for row in given.taught])
    # Each wrong answer counts as often as it was taught; relations without an untaught answer do not count.
    says = np.roll(facts, 1, axis=1)
    times = (facts[:, None] == says[:, :, None]).all(-1) & np.take_along_axis(free, relation, 1)[:, None]
    np.testing.assert_allclose(other, (times.sum(-1) * wrong).mean(1))
    np.testing.assert_array_equal(untaught, 0.0)  # what says the same as a taught answer counts nowhere
    assert (other > 0.5).all()


def test_an_untaught_answer_counts_as_many_times_as_were_taught() -> None:
    language = draw(Sizes(slip=0.0, least=2, most=2, relations=1, entities=8), [5])
    data = ask(language, prompts=3)
    given = said.told(data)
    taught = data.prompts["chosen"][0]
    asked, free = int(taught[0]), np.flatnonzero(given.counted[0] & ~given.taught[0])
    text = language.tell(np.repeat(given.says[:, free[:1]], 3, axis=1), [np.random.default_rng(0)])
    hers, theirs = said.borrowed(given, said.Said(data.prompts["chosen"], text[:, :, None], {}))
    wrong = (given.says[0][:, None] != language.facts[0, taught]).any(-1)  # answer × prompt asked
    alike = (given.says[0] == given.says[0, free[0]]).all(-1)
    want = [wrong[taught, i].sum() * (alike & wrong[:, i])[free].sum() / wrong[free, i].sum() for i in range(3)]
    np.testing.assert_allclose(theirs, np.mean(want))
    assert hers[0] == 0.0 < theirs[0], asked


def test_a_control_is_read_where_it_has_the_margin() -> None:
    each = np.array([[[0.0], [1.0], [3.0]]] * 3)
    found = alignment._at_equal(each, np.array([[0.0], [2.5], [9.0]]), np.array([[0.0], [2.0], [4.0]]))
    np.testing.assert_allclose(found[:2, 0], [0.0, 1.5])
    assert np.isnan(found[2, 0])


def test_tables_say_what_they_are_and_carry_on_from_each_other(tables) -> None:
    assert len(tables) == 10
    for name, ds in tables.items():
        assert ds.attrs["experiment"] == "alignment"
        assert ds.attrs["model"] in name
    for model in RECIPES:
        runs = [ds for ds in tables.values() if (ds.attrs["model"], ds.attrs["stage"]) == (model, "dpo")]
        told = [(ds.attrs["arm"], ds.attrs["sft_updates"], ds.attrs["sft_passes"]) for ds in runs]
        assert told == [("baseline", 4, 4.0), ("baseline", 8, 8.0), ("extend", 8, 4.0)]
        for ds in runs:
            sft = tables[f"alignment {model} sft {ds.attrs['arm']}"].sel(step=ds.attrs["sft_updates"])
            for name in ("eval_right_trained_sampled", "eval_kl_truth_heldout", "eval_borrowed_heldout_greedy"):
                np.testing.assert_allclose(ds[name].values[:, 0], sft[name].values, rtol=1e-6)
            assert np.isfinite(ds.eval_right_trained_greedy.values).all()
            np.testing.assert_array_equal(np.isfinite(ds.eval_likely_heldout_sampled.values[0]), [1, 0, 1, 0, 1])
        extend = runs[2]
        for control, other in zip(alignment.CONTROLS, runs, strict=False):
            for way in said.WAYS:
                gap = extend[f"eval_right_{way}"].values - other[f"eval_right_{way}"].values
                won = extend[f"eval_beats_{control}_right_{way}"].values
                np.testing.assert_allclose(won[:, ::2], 0.5 + gap[:, ::2] / 2.0, atol=1e-12)
            same = extend[f"eval_beats_at_margin_{control}_right_trained_greedy"].values[:, 0]
            np.testing.assert_array_equal(same, extend[f"eval_beats_{control}_right_trained_greedy"].values[:, 0])


def test_a_stage_in_pieces_is_the_stage(little, tables) -> None:
    w, recipe = little, RECIPES["rmsprop"]
    shared = {"optimizer": recipe.optimizer, "warmup": recipe.warmup, "kinds": alignment.KINDS}
    models = train(w.models, w.data, objectives.get("sft"), lr=recipe.sft, steps=4, **shared).models
    dpo = objectives.get("dpo", beta=BETA)
    whole = train(models, w.data, dpo, lr=recipe.dpo, steps=4, rejected="rejected", at=range(5), **shared)
    ds = tables["alignment rmsprop dpo baseline after 4"]
    for kind in alignment.KINDS:
        path = ds.logp.sel(probe=kind).transpose("step", "seed", "example").values
        np.testing.assert_allclose(path, whole.value("logp", kind), rtol=1e-4)
    np.testing.assert_allclose(ds.loss.values.T, whole.loss, rtol=1e-4)


@pytest.mark.parametrize("model", RECIPES)
def test_extended_sft_moves_as_the_mean_over_both_rows(little, tables, model: str) -> None:
    recipe, both = RECIPES[model], objectives.get("extend")
    rate = recipe.sft / 2.0 if model == "sgd" else recipe.sft  # RMSprop divides the size of the loss out
    how = {"optimizer": recipe.optimizer, "warmup": recipe.warmup, "rejected": "rejected", "kinds": alignment.KINDS}
    run = train(little.models, little.data, both, lr=rate, steps=8, at=[0, 4, 8], **how)
    ds = tables[f"alignment {model} sft extend"]
    for kind in ("chosen", "rejected"):
        path = ds.logp.sel(probe=kind).transpose("step", "seed", "example").values
        np.testing.assert_allclose(path, run.value("logp", kind), rtol=1e-4)


@pytest.mark.parametrize(("lead", "verdict"), [(-0.1, "holds"), (0.1, "refuted")])
def test_claims_read_win_rates_with_their_sign(lead: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    names = [f"eval_beats_{at}updates_right_{way}" for way in claims.TRAINED for at in ("", "at_margin_")]
    rates = {name: 0.5 + lead + 0.01 * rng.standard_normal((12, 3)) for name in names}
    for rate in rates.values():
        rate[:, 1] = np.nan  # not asked there
    told = {"step": [0, 1, 2], "probe": ["chosen"], "seed": range(12), "stage": "dpo", "arm": "extend"}
    ds = trajectory(rates, world="tiny", attrs={"experiment": "alignment"}, **told)
    assert evaluate_on(registry["alignment.longer-sft-wins"], {"one": ds}).summary == verdict


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(claims).failed == 0
