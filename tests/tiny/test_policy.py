"""The experiment on policy gradients: its tables, and GWHES against gradients taken by torch."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from toyld import claims
from toyld.tiny import Shape, Sizes, draw, start
from toyld.tiny.experiments import policy
from toyld.tiny.experiments._displaced import gwhes, of_right, ranks
from toyld.tiny.reinforce import Practice, Round
from toyld.tiny.verifier import advantages, ask_models
from toyld.trajectory import trajectory

SEEDS = (1000, 1001)


@pytest.fixture(scope="module")
def found():
    return policy.tables(SEEDS)


def test_every_arm_of_every_design_has_its_table(found):
    arms = {(ds.attrs["design"], ds.attrs["arm"], ds.attrs["model"]) for ds in found.values()}
    assert len(arms) == len(found) == 6 + 2 + 2 + 6 + 4
    for ds in found.values():
        assert ds.attrs["experiment"] == "policy"
        assert ds.seed.values.tolist() == list(SEEDS)
        assert all(np.isfinite(ds[name].values).any() for name in ds.data_vars)


def test_arms_of_a_design_begin_alike(found):
    first = {
        name: {key: ds[key].values[:, 0] for key in ds.data_vars}
        for name, ds in found.items()
        if ds.attrs["design"] in ("signs", "inner")
    }
    for design in ("signs", "inner"):
        one, *others = (columns for name, columns in first.items() if design in name)
        for other, key in ((other, key) for other in others for key in one):
            np.testing.assert_allclose(other[key], one[key], rtol=1e-4, atol=1e-6, err_msg=key)
    own, frozen = (found[f"policy, behaviour, {arm}"] for arm in ("own", "frozen"))
    for key in ("valley", "gap", "reward", "losers"):
        np.testing.assert_allclose(own[f"eval_{key}"][:, 0], frozen[f"eval_{key}"][:, 0], rtol=1e-4)


def test_small_steps_are_a_quarter_of_the_rate_for_four_times_as_long(found):
    (_, many), (*small_weights, small) = policy.SIGNS["signed −, small steps"]
    (_, few), (*weights, rate) = policy.SIGNS["signed −"]
    assert (small_weights, many * small, small) == (weights, few * rate, rate / 4)
    moved, step = found["policy, signs, signed −, small steps"], found["policy, noise, signed −"]
    assert moved.step.values.tolist() == list(range(many + 1))
    # The lengths of the steps of both signs, over the rates
    ratio = step.eval_norm.values * small / (found["policy, noise, signed +"].eval_norm.values * rate)
    assert ((ratio > 0.4) & (ratio < 2.5)).all(), ratio


def test_surprise_ranks_gains_by_how_improbable_right_answers_were(found):
    """By plain torch, one answer at a time: −log π before against the gain of log π by the update."""
    world, models = policy.begun(SEEDS)
    said = ask_models(models, world.language, world.data.prompts["chosen"], samples=policy.K, draw=policy.LATER)
    step = Round(models, world.language, said, Practice(samples=policy.K, advantage="group")).gradient(models)
    moved = dataclasses.replace(models, flat=models.flat - 0.07 * step)
    for s in range(len(SEEDS)):
        before, after, mixed = models.module(s), moved.module(s), []
        for prompt, texts, reward in zip(said.prompt[s, :, 0], said.text[s], said.reward[s], strict=True):
            sums = []
            for text in texts[reward > 0]:
                label = torch.from_numpy(text[text >= 0])
                row = torch.cat([torch.from_numpy(world.language.ask(prompt)), label[:-1]])[None]
                with torch.no_grad():
                    z = [module(row)[0, 1:].log_softmax(-1) for module in (before, after)]
                sums.append([float(one[torch.arange(len(label)), label].sum()) for one in z])
            if 0 < len(sums) < policy.K:
                mixed.append(np.mean(sums, 0))
        first, last = np.transpose(mixed)
        got = found["policy, displacement, taught 40, rate 0.07, group"].eval_surprise.values[s]
        np.testing.assert_allclose(got, spearmanr(-first, last - first).statistic, atol=1e-9)


def test_pushes_are_whole_at_first_and_damped_by_ppo_alone(found):
    ppo, bare = (found[f"policy, inner, {arm}"] for arm in ("ppo", "bare"))
    for where in ("valley", "rest"):
        np.testing.assert_allclose(ppo[f"eval_push_{where}"][:, 0], 1.0, rtol=1e-4)
        np.testing.assert_allclose(bare[f"eval_push_{where}"], 1.0, rtol=1e-3)
        assert (ppo[f"eval_push_{where}"][:, -1] < 0.99).all()
        np.testing.assert_array_equal(ppo[f"eval_cut_{where}"][:, 0], 0.0)


def test_shares_are_shares_and_cosines_cosines(found):
    for ds in found.values():
        for name in ds.data_vars:
            values = ds[name].values[np.isfinite(ds[name].values)]
            share = ("right", "pass", "reward", "valley", "losers", "fell", "cut")
            if any(name.startswith(f"eval_{one}") for one in share) and not name.startswith("eval_fell_"):
                assert ((values >= 0) & (values <= 1)).all(), name
            if name in ("eval_draws", "eval_signs", "eval_all", "eval_foretold", "eval_surprise", "eval_loss_foretold"):
                assert (np.abs(values) <= 1 + 1e-6).all(), name


def test_models_of_the_displacement_know_more_when_taught_for_longer(found):
    little, much = (found[f"policy, displacement, taught {n}, rate 0.07, group"].eval_right.values for n in (40, 80))
    assert (much > little + 0.1).all()


@pytest.fixture(scope="module")
def answered():
    """Untrained models in float64, their answers, and rewards drawn at random."""
    models = start(Shape(39, 8, width=12, depth=2, heads=2), SEEDS, dtype=torch.float64)
    language = draw(Sizes(), SEEDS)
    said = ask_models(models, language, np.array([[1, 2, 3], [4, 5, 6]]), samples=4, draw=0)
    reward = np.zeros_like(said.reward)
    reward[:, :2, :2] = np.random.default_rng(1).random((2, 2, 2)) < 0.7
    reward[0, 0, 0] = 1.0
    return models, language, dataclasses.replace(said, reward=reward)


def test_gwhes_is_the_heads_gradient_of_the_right_answers(answered):
    """−⟨∇ log π(y_i), Σ_j Â_j ∇ log π(y_j)⟩ over the head's weights, by autograd, answer by answer."""
    models, language, said = answered
    weight = advantages(said.reward, "group")
    got = gwhes(Round(models, language, said, Practice(samples=4, advantage="group")), models, weight)
    for s in range(2):
        module = models.module(s)
        for p in range(3):
            grads = []
            for text in said.text[s, p]:
                label = torch.from_numpy(text[text >= 0])
                row = torch.cat([torch.from_numpy(language.ask(said.prompt[s, p, 0])), label[:-1]])[None]
                logp = module(row)[0, 1:].log_softmax(-1)[torch.arange(len(label)), label].sum()
                (g,) = torch.autograd.grad(logp, [module.head.weight])
                grads.append(g.flatten().numpy())
            right = said.reward[s, p] > 0
            if right.any():
                scores = -(np.array(grads)[right] @ (weight[s, p] @ np.array(grads)))
                np.testing.assert_allclose(got[s, p], scores.mean(), rtol=1e-9)
            else:
                assert np.isnan(got[s, p])
    assert np.isfinite(got).sum() >= 2


def test_means_over_right_answers_skip_prompts_of_one_kind():
    values = np.array([[[1.0, 2.0, 6.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    reward = np.array([[[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    np.testing.assert_array_equal(of_right(values, reward), [[3.5, np.nan, np.nan]])


def test_ranks_are_spearmans():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 9))
    a[0, 2], a[1, 2:], b[2, 4] = np.nan, np.nan, a[2, 4]
    got = ranks(a, b)
    there = np.isfinite(a)
    np.testing.assert_allclose(got[0], spearmanr(a[0][there[0]], b[0][there[0]]).statistic, rtol=1e-12)
    assert np.isnan(got[1])
    np.testing.assert_allclose(got[2], spearmanr(a[2], b[2]).statistic, rtol=1e-12)


# ---- claims on tables with known numbers ----------------------------------------------------------------------------


def table(design, arm, columns, n=6, **attrs):
    rng = np.random.default_rng(0)
    noise = {f"eval_{name}": np.add.outer(0.001 * rng.normal(size=n), value) for name, value in columns.items()}
    attrs = {"experiment": "policy", "design": design, **attrs}
    step = range(len(next(iter(columns.values()))))
    return trajectory(noise, step=list(step), probe=["answers"], seed=range(n), stage="rl", arm=arm, attrs=attrs)


def test_claims_read_what_they_say():
    """A table in which each statement is true by a known amount; the reverse of it gives minus that."""
    up, down = (table("signs", arm, {"right": [0.1, end]}) for arm, end in (("signed +", 0.3), ("signed −", 0.15)))
    one = claims.every()["reinforcement.positives-gain-more"]
    assert one.premises(up, down) is None
    assert one.check(up, down).value == pytest.approx(0.15)
    assert "about signed +, signed −" in one.premises(down, up)
    small, large = (
        table("signs", arm, {"pass": [0.7, end]}) for arm, end in (("signed −, small steps", 0.68), ("signed −", 0.5))
    )
    spare = claims.every()["reinforcement.small-steps-spare-pass"]
    assert spare.premises(small, large) is None
    assert spare.premises(large, small) is not None
    assert spare.check(small, large).value == pytest.approx(0.18)
    graded = [table("displacement", "group", {"foretold": [x], "surprise": [0.3]}, rate=x) for x in (0.5, 0.4)]
    told = claims.every()["reinforcement.gwhes-beats-surprise"]
    assert told.premises(*graded) is None
    assert told.check(*graded).value == pytest.approx(0.15, abs=1e-3)  # columns have noise of their own
    frozen = table("behaviour", "frozen", {"gap": [0.6, 0.7, np.nan]})
    own = table("behaviour", "own", {"gap": [0.6, 0.58, np.nan]})
    spiral = claims.every()["reinforcement.frozen-answers-spiral"]
    assert spiral.check(frozen, own).value == pytest.approx(0.1)
    assert spiral.check(table("behaviour", "frozen", {"gap": [0.6, 0.5, np.nan]}), own).value == pytest.approx(-0.1)
    taught = [table("displacement", "group", {"fell": [x]}, taught=80, rate=r) for x, r in ((0.5, 0.07), (0.2, 0.02))]
    steps = claims.every()["reinforcement.displacement-is-large-steps"]
    assert steps.premises(*taught) is None
    assert steps.premises(*taught[::-1]) is not None
    assert steps.check(*taught).value == pytest.approx(0.3)


def test_claims_compare_the_same_seeds():
    up, down = (table("signs", arm, {"right": [0.1, 0.2]}) for arm in ("signed +", "signed −"))
    other = down.assign_coords(seed=down.seed + 1)
    assert claims.every()["reinforcement.positives-gain-more"].premises(up, other) == "runs of other seeds"
