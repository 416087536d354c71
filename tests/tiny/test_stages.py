"""The paper's stages in tiny transformers: what the arms are, that controls are fair, what is counted in answers."""

import doctest

import numpy as np
import pytest
import torch

from toyld import objectives
from toyld.claims import argmax_runs, every, extend_runs, own_words
from toyld.claims.runs import evaluate_on
from toyld.tiny import PAD, Sizes, ask, draw, train
from toyld.tiny.experiments import EXPERIMENTS, _worlds, stages
from toyld.tiny.models import start
from toyld.tiny.network import Shape
from toyld.trajectory import at_margin, margin, validate

SEEDS = (1000, 1001)
CLAIMS = every()


@pytest.fixture(scope="module")
def world():
    return _worlds.world(SEEDS)


@pytest.fixture(scope="module")
def found():
    return EXPERIMENTS.run("stages", seeds=SEEDS)  # once in a process, as the doctest asks for it


def test_its_examples_run():
    assert doctest.testmod(stages, optionflags=doctest.ELLIPSIS).failed == 0


def test_every_table_says_what_it_is(found):
    assert len(found) == 2 * (2 + 4)
    for name, ds in found.items():
        validate(ds)
        assert name.startswith(f"tiny {ds.attrs['model']} {ds.attrs['stage']} {ds.attrs['arm']}"), name
        assert (ds.attrs["experiment"], ds.attrs["world"]) == ("stages", "tiny")
        assert ds.seed.values.tolist() == list(SEEDS)
        assert int(ds.step[0]) == 0
    lengths = {
        (ds.attrs["arm"], ds.attrs["sft_updates"], ds.attrs["sft_passes"]) for n, ds in found.items() if "dpo" in n
    }
    assert lengths == {
        ("baseline", 15, 15.0), ("baseline", 30, 30.0), ("on-policy", 30, 30.0), ("extend", 30, 15.0),
    }  # fmt: skip


def test_every_dpo_starts_where_its_sft_was(found):
    """Each stage is trained anew: the longer ones passed where it ends, but for RMSprop's warm-up."""
    for model in _worlds.RECIPES:
        for arm, n in (("baseline", 15), ("baseline", 30), ("extend", 30)):
            sft = found[f"tiny {model} sft {arm}"]
            start = found[f"tiny {model} dpo {arm} after {n}"].isel(step=0)
            same = {}
            for kind in ("chosen", "rejected"):
                want, got = sft.logp.sel(step=n, probe=kind).values, start.logp.sel(probe=kind).values
                same[kind] = np.allclose(got, want, rtol=2e-5)
            assert set(same.values()) == {(model, n) != ("rmsprop", 15)}, (model, arm, n, same)
            np.testing.assert_allclose(start.logp.values, start.ref_logp.values, rtol=1e-6)


def test_half_as_many_updates_have_half_the_summed_rate():
    def summed(recipe, updates):
        warm = stages._warmup(recipe, updates)
        return sum(min(1.0, (k + 1) / warm) if warm else 1.0 for k in range(updates))

    for recipe in _worlds.RECIPES.values():
        short, long = (summed(recipe, n) for n in stages.SFT_UPDATES)
        assert short / long == pytest.approx(0.5, rel=0.03)  # with 10 updates of warm-up for both it were .41
        assert stages._warmup(recipe, stages.SFT_AT["rmsprop"][-1]) == recipe.warmup


def test_both_recipes_are_followed_to_the_same_share_of_the_loss(found):
    ends = [found[f"tiny {model} sft baseline"].logp.sel(probe="chosen").mean("example") for model in _worlds.RECIPES]
    left = [float((path.isel(step=-1) / path.isel(step=0)).mean()) for path in ends]
    assert max(left) - min(left) < 0.05, left
    assert min(left) > 0.15, left


@pytest.mark.parametrize("name", _worlds.RECIPES)
def test_an_update_of_extend_is_the_mean_over_rows_of_both_kinds(name, world):
    """By torch, of one model: L = mean over 2P rows of −log π(y|x), one step of the recipe's own rate."""
    recipe = _worlds.RECIPES[name]
    one = stages._extend(world.models, world.data, recipe, 1, at=[], kinds=["chosen"]).models.module(0)
    module = world.models.module(0)
    from toyld.tiny import sequences

    total, rows = 0.0, 0
    for kind in ("chosen", "rejected"):
        inputs, labels = sequences(world.language, world.data.prompt(kind), world.data.texts[kind])
        z = module(torch.from_numpy(inputs[0]))[:, -labels.shape[-1] :]
        picked = z.log_softmax(-1).gather(-1, torch.from_numpy(np.maximum(labels[0], 0))[..., None])[..., 0]
        total, rows = total - picked[torch.from_numpy(labels[0] != PAD)].sum(), rows + len(labels[0])
    gradients = torch.autograd.grad(total / rows, list(module.parameters()))
    for p, q, g in zip(module.parameters(), one.parameters(), gradients, strict=True):
        if name == "sgd":
            torch.testing.assert_close(q, p - recipe.sft * g, rtol=1e-4, atol=1e-5)
        else:  # the first step of RMSprop is η/√(1 − α) sign g, without a warm-up where there is but one
            step = recipe.sft / (1.0 - recipe.optimizer.alpha) ** 0.5
            sure = g.abs() > 1e-4
            torch.testing.assert_close((q - p)[sure], -step * g.sign()[sure], rtol=2e-2, atol=1e-5)


def test_on_policy_negatives_are_the_trained_models_own(found, world):
    for model, recipe in _worlds.RECIPES.items():
        own, given = (found[f"tiny {model} dpo {arm} after 30"].isel(step=0) for arm in ("on-policy", "baseline"))
        assert not set(stages.STALE) & set(own.probe.values.tolist())
        np.testing.assert_allclose(own.logp.sel(probe="chosen"), given.logp.sel(probe="chosen"), rtol=1e-6)
        sft = stages._sft(world.models, world.data, recipe, 30, at=[], kinds=["chosen"]).models
        text = sft.sample(world.language, world.data.prompts["chosen"], seed=stages.OWN)
        lengths = (text != PAD).sum(-1)
        np.testing.assert_array_equal(own.n_tokens.sel(probe="rejected").values, lengths)
        # What the trained model says itself is likelier to it than what the untrained one said.
        assert float(own.logp.sel(probe="rejected").mean()) > float(given.logp.sel(probe="rejected").mean())


def test_fresh_answers_are_drawn_from_the_policy_dpo_starts_from(found, world):
    """Drawn again from SFT trained again: as long and as likely; they fall, though nobody trained on them."""
    data, plain = world.data, objectives.get("sft")
    for model, recipe in _worlds.RECIPES.items():
        for arm, n in (("baseline", 15), ("baseline", 30), ("extend", 30)):
            ds = found[f"tiny {model} dpo {arm} after {n}"]
            teach = stages._extend if arm == "extend" else stages._sft
            begin = teach(world.models, data, recipe, n, at=[], kinds=["chosen"]).models
            text = begin.sample(data.language, data.prompts["chosen"], seed=stages.FRESH)
            np.testing.assert_array_equal(ds.n_tokens.sel(probe="sampled").values, (text != PAD).sum(-1))
            again = train(begin, data.also({"fresh": text}), plain, lr=1e-9, steps=1, kinds=["fresh"])
            got, path = ds.logp.sel(probe="sampled"), ds.logp.sel(probe="sampled").mean("example")
            np.testing.assert_allclose(got.isel(step=0).values, again.value("logp", "fresh")[0], rtol=1e-4)
            assert (path[:, -1] < path[:, 0]).all(), (model, arm, n)


def test_all_arms_reach_the_margin_that_they_are_compared_at(found):
    for name, ds in found.items():
        if ds.attrs["stage"] == "dpo":
            assert np.isfinite(at_margin(ds, extend_runs.MARGIN)).all(), name
            assert (margin(ds)[-1] > 15.0).all(), name


# --- what is counted in answers ---------------------------------------------------------------------------------------


def test_borrowed_by_hand():
    """Over all places, questions and answers, one at a time."""
    language = draw(Sizes(), [5, 6])
    data = ask(language, prompts=6)
    asked, taught = data.prompts["chosen"], data.prompts["test_chosen"]
    text = language.sample(asked, [np.random.default_rng(k) for k in (1, 2)])
    inside, elsewhere = stages.borrowed(language, asked, text, np.concatenate([asked, taught], 1))
    for s in range(2):
        counts = {True: [0, 0], False: [0, 0]}
        for n, prompt in enumerate(asked[s]):
            for other in (*asked[s], *taught[s]):
                for place in range(language.sizes.most):
                    said = language.concepts(text)[s, n, place]
                    own, theirs = language.facts[s, prompt, place], language.facts[s, other, place]
                    if other != prompt and said >= 0 and said != own and theirs != own:
                        kin = prompt // language.sizes.entities == other // language.sizes.entities
                        counts[kin][0] += said == theirs
                        counts[kin][1] += 1
        assert inside[s] == counts[True][0] / counts[True][1]
        assert elsewhere[s] == counts[False][0] / counts[False][1]


def test_nothing_is_borrowed_by_who_knows_or_is_silent():
    language = draw(Sizes(slip=0.0), [7])
    prompt = np.arange(32)[None]
    truth = language.sample(prompt, [np.random.default_rng(0)], knowledge=1.0)
    assert np.isnan(stages.borrowed(language, prompt, truth, prompt)).all()  # no chance
    assert np.isnan(stages.borrowed(language, prompt, np.full_like(truth, PAD), prompt)).all()


def test_counts_are_of_the_models_before_and_after(found, world):
    for model, recipe in _worlds.RECIPES.items():
        ds = found[f"tiny {model} sft baseline"]
        last = stages.SFT_AT[model][-1]
        after = stages._sft(world.models, world.data, recipe, last, at=[], kinds=["chosen"]).models
        for k, models in ((0, world.models), (-1, after)):
            for name, value in stages.said(models, world.data).items():
                np.testing.assert_allclose(ds[name].values[:, k], value, rtol=1e-6, err_msg=name)
        assert np.isnan(ds.eval_borrowed.values[:, 1:-1]).all()
        assert (ds.eval_right.values[:, -1] > ds.eval_right.values[:, 0]).all()


# --- claims that were made for this rung ------------------------------------------------------------------------------


def test_planted_effects_are_found_and_their_opposites_refuted(found):
    """The same tables with the sign of what a claim reads turned round."""
    name = "tiny rmsprop sft baseline"
    ds = found[name].copy(deep=True)
    n = ds.sizes["seed"]
    for asked in ("", "test_"):
        for what, gain in (
            ("borrowed", 0.2),
            ("guessed", 0.0),
            ("borrowed_elsewhere", 0.05),
            ("guessed_elsewhere", 0.0),
        ):
            column = f"eval_{asked}{what}"
            ds[column] = ds[column].copy(data=np.full(ds[column].shape, np.nan))
            ds[column].values[:, 0] = 0.2 + 0.001 * np.arange(n)
            ds[column].values[:, -1] = 0.2 + 0.001 * np.arange(n) + gain * (1.0 + 0.02 * np.arange(n))
    turned = ds.copy(deep=True)
    for column in [c for c in ds if str(c).startswith("eval_") and "borrowed" in str(c)]:
        turned[column] = 0.4 - ds[column]
    lost = ds.copy(deep=True)  # nothing is borrowed more often, but guesses have become fewer
    for column in [c for c in ds if str(c).startswith("eval_") and ("borrowed" in str(c) or "guessed" in str(c))]:
        off = 0.3 if "elsewhere" not in str(column) else 0.1
        lost[column].values[:, -1] -= off
    for id in ("borrows-taught-facts", "borrows-when-untaught", "borrows-from-the-similar"):
        claim = CLAIMS[f"supervised.{id}"]
        for planted, verdict in ((ds, "holds"), (turned, "refuted"), (lost, "refuted")):
            assert evaluate_on(claim, {name: planted}).summary == verdict, (id, verdict)
    bare = ds.drop_vars("eval_guessed")
    assert evaluate_on(CLAIMS["supervised.borrows-taught-facts"], {name: bare}).summary == "not applicable"


def test_other_answers_are_read_in_the_middle(found):
    for model, half in (("rmsprop", 50), ("sgd", 25)):
        name = f"tiny {model} sft baseline"
        path = found[name].logp.sel(probe="irr_train").mean("example")
        result = evaluate_on(CLAIMS["supervised.other-answers-rise-early"], {name: found[name]})
        assert result.effect.value == pytest.approx(float((path.sel(step=half) - path.sel(step=0)).mean()), rel=1e-6)


def test_fresh_samples_are_no_response_that_two_runs_share(found):
    run, control = (found[f"tiny sgd dpo {arm}"] for arm in ("extend after 30", "baseline after 15"))
    assert "sampled" in run.probe.values
    assert "sampled" not in extend_runs.others(run, control)
    claim = CLAIMS["preference.extend-moves-farther"]
    ((_, effect),) = [
        (t.runs, t.effect) for t in evaluate_on(claim, {"run": run, "control": control}).trials if t.effect is not None
    ]
    want = at_margin(control, 10.0, own_words.FRESH) - at_margin(run, 10.0, own_words.FRESH)
    assert effect.value == pytest.approx(want.mean())


def test_the_argmax_off_the_answers_is_another_path(found):
    name = "tiny sgd dpo baseline after 15"
    off, on = (
        evaluate_on(CLAIMS[f"preference.{id}"], {name: found[name]}).effect.value
        for id in ("argmax-rises-off-the-answers", "argmax-rises")
    )
    path = found[name].argmax_logp.sel(probe=argmax_runs.OFF).mean(("example", "seed"))
    assert off == pytest.approx(float(path[-1] - path[0]), rel=1e-6)
    assert off != pytest.approx(on, rel=0.01)


def test_the_policys_own_answers_are_no_evidence_of_a_bell(found):
    """They fall whatever is taught; what is known to be such is left out, and without the label it counts."""
    name, claim = "tiny sgd sft baseline", CLAIMS["supervised.similar-bell"]
    ds = found[name].copy(deep=True)
    assert set(ds.attrs["own_answers"].split()) == {"chosen_initial", "rejected", *stages.STALE}
    bell = np.sin(np.linspace(0.0, np.pi, ds.sizes["step"]))[:, None] * (1.0 + 0.01 * np.arange(2))
    for kind in ("chosen_gptsemantic", "chosen_gptformat"):
        ds.logp.loc[{"probe": kind}] = (bell[..., None] - 20.0 + np.zeros(ds.sizes["example"])).transpose(1, 0, 2)
    assert ds.logp.dims[:2] == ("seed", "step")
    assert evaluate_on(claim, {name: ds}).summary == "holds"
    bare = ds.copy()
    del bare.attrs["own_answers"]
    assert evaluate_on(claim, {name: bare}).effect.value <= 0.0
    own = ds.sel(probe=["chosen", "rejected"])
    assert "only the policy's own answers" in claim.premises(own)


def test_stages_that_push_unlike_are_not_compared(found):
    claim = CLAIMS["preference.argmax-rises-faster-than-sft"]
    for model in _worlds.RECIPES:
        run, control = (found[f"tiny {model} {arm}"].copy() for arm in ("dpo baseline after 15", "sft baseline"))
        assert "do not push alike" in claim.premises(run, control)
        run.attrs["first_push"] = control.attrs["first_push"]
        assert claim.premises(run, control) is None


def test_training_uphill_is_told():
    """A planted sign: the chosen response falls, and S1 is refuted; eight networks that nothing was taught before."""
    seeds = range(1000, 1008)
    language, claim, summaries = draw(Sizes(), seeds), CLAIMS["supervised.chosen-rises"], {}
    models, data = start(Shape(language.sizes.classes, language.sizes.places), seeds), ask(language, prompts=4)
    for lr in (0.02, -0.02):
        run = train(models, data, objectives.get("sft"), lr=lr, steps=4, at=(0, 2, 4), kinds=["chosen"])
        table = run.table("sft", "baseline", experiment="stages", model="sgd")
        summaries[lr] = evaluate_on(claim, {"run": table}).summary
    assert summaries == {0.02: "holds", -0.02: "refuted"}
