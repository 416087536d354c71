"""The null model against worlds where everything is known: enumerated sequences, and normal changes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toyld import softmax as sm
from toyld.diagnosis import DEFAULT
from toyld.diagnosis.curves import curves
from toyld.diagnosis.null import log_e_value, null_model, second_order_loss
from toyld.trajectory import trajectory

V = 4
FAST = replace(DEFAULT, resamples=200)


def four_errors(p, n):
    """Four standard errors of a share seen in n independent trials."""
    return 4 * (p * (1 - p) / n) ** 0.5


def table(chosen, sampled=None, tokens=None, **attrs):
    """A run of two evaluations; arrays (2, example) or (seed, 2, example)."""
    probes = {"chosen": chosen} | ({} if sampled is None else {"sampled": sampled})
    arrays = [np.atleast_3d(a) if np.ndim(a) == 3 else np.asarray(a)[None] for a in probes.values()]
    logp = np.stack(arrays, axis=2)
    values = {"logp": logp}
    if tokens is not None:
        values["n_tokens"] = np.broadcast_to(np.asarray(tokens, float), (logp.shape[0], logp.shape[2], logp.shape[3]))
    names = [f"x{i}" for i in range(logp.shape[-1])]
    return trajectory(
        values, step=[0, 100], probe=list(probes), example=names, seed=range(logp.shape[0]), attrs=attrs or None
    )


def run(*args, thresholds=DEFAULT, **kwargs):
    return null_model(curves(table(*args, **kwargs)), thresholds=thresholds)


class Sequences:
    """Prompts with policies over sequences of two tokens of V, before and after one update that pushes a token down.

    π(y₁ y₂ | x) = softmax(z_x)[y₁] softmax(w_{x, y₁})[y₂]: all V² sequences are enumerated.
    """

    def __init__(self, prompts, size, seed):
        rng = np.random.default_rng(seed)
        first, second = rng.normal(size=(prompts, V)), rng.normal(size=(prompts, V, V))
        y = rng.integers(V, size=prompts)
        moved = sm.step(first, sm.residual(first, y, c=-1.0), s=size)
        turned = second + size * rng.normal(size=second.shape) / 2
        self.before, self.after = (
            (sm.log_softmax(a)[:, :, None] + sm.log_softmax(b)).reshape(prompts, V * V)
            for a, b in ((first, second), (moved, turned))
        )
        self.delta = self.after - self.before
        self.kl = -(np.exp(self.before) * self.delta).sum(1)

    def draw(self, seed, policy=None):
        """One sequence for each prompt from π_0 (or `policy`): its log-probability before and after."""
        rng = np.random.default_rng(seed)
        p = np.exp(self.before if policy is None else policy)
        y = (p.cumsum(1) > rng.uniform(size=len(p))[:, None] * p.sum(1, keepdims=True)).argmax(1)
        rows = np.arange(len(y))
        return np.stack([self.before[rows, y], self.after[rows, y]])


def test_the_identity_behind_it_holds_by_enumeration():
    world = Sequences(50, 2.0, seed=0)
    p = np.exp(world.before)
    np.testing.assert_allclose((p * np.exp(world.delta)).sum(1), 1.0, rtol=1e-13)
    assert (world.kl > 0).all()
    assert ((p * (world.delta >= np.log(20))).sum(1) <= 0.05).all()


def test_fresh_samples_lose_the_divergence():
    world = Sequences(4000, 1.0, seed=1)
    moves = world.draw(seed=2)
    found = run(moves)
    error = (moves[1] - moves[0]).std() / 4000**0.5
    assert abs(found["d_chosen"] + world.kl.mean()) < 4 * error
    assert found["low"] < -world.kl.mean() < found["high"]
    assert abs(np.exp(moves[1] - moves[0]).mean() - 1) < 4 * np.exp(moves[1] - moves[0]).std() / 4000**0.5


def test_second_order_is_near_where_moves_are_small():
    """Error of the second order is of third order in the step: halving it divides the relative error by about two."""
    errors = []
    for size in (0.4, 0.1):
        world = Sequences(300, size, seed=3)
        p = np.exp(world.before)
        mean = (p * world.delta).sum(1)
        total = (p * world.delta**2).sum() / 300 - mean.mean() ** 2
        errors.append(abs(second_order_loss(total) / mean.mean() - 1))
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1


def test_the_interval_of_the_divergence_covers():
    world = Sequences(150, 1.0, seed=4)
    runs = 120
    hits = 0
    for i in range(runs):
        found = run(world.draw(seed=1000 + i), world.draw(seed=5000 + i), thresholds=FAST)
        hits += found["expected_low"] <= -world.kl.mean() <= found["expected_high"]
    # prompts are fixed here, and resampled in the interval: it is wider than it need be, never narrower
    assert hits / runs > 0.95 - four_errors(0.95, runs)


def test_where_fresh_samples_are_in_the_table_they_are_taken():
    world = Sequences(400, 1.0, seed=5)
    fresh, chosen = world.draw(seed=6), world.draw(seed=7)
    found = run(chosen, fresh, tokens=2.0)
    assert found["method"] == "sampled"
    assert found["reliable"] is True
    assert found["expected"] == pytest.approx((fresh[1] - fresh[0]).mean(), abs=1e-6)
    assert found["excess"] == pytest.approx(found["d_chosen"] - found["expected"], abs=2e-6)
    assert found["excess_low"] < 0 < found["excess_high"]


def refuted(delta, **kwargs):
    return log_e_value(delta, **kwargs) >= np.log(20)


def test_fresh_samples_are_refuted_once_in_twenty_at_most():
    runs, wrong, mirrored = 1000, 0, 0
    world = Sequences(30, 1.0, seed=8)
    for i in range(runs):
        before, after = world.draw(seed=i)
        wrong += refuted((after - before)[None])
        mirrored += refuted((before - after)[None])
    assert wrong / runs < 0.05 + four_errors(0.05, runs)
    assert mirrored / runs > 0.5, "teeth: with the sign reversed the test must break"


def test_samples_of_the_trained_policy_are_refuted():
    world = Sequences(300, 1.0, seed=9)
    found = run(world.draw(seed=10, policy=world.after))
    assert found["refuted"] is True
    assert found["p"] < 1e-3
    assert found["d_chosen"] > 0
    assert found["text"] == "chosen did not fall: nothing to explain"


def test_the_expectation_of_the_e_value_is_one_for_two_prompts():
    """By enumeration over all pairs of sequences of two prompts: E E = 1 for the product and for the mean."""
    world = Sequences(2, 1.5, seed=11)
    total = sum(
        np.exp(world.before[0, i] + world.before[1, j])
        * np.exp(log_e_value(np.array([[world.delta[0, i], world.delta[1, j]]])))
        for i in range(V * V)
        for j in range(V * V)
    )
    assert total == pytest.approx(1.0, rel=1e-12)


def test_several_seeds_of_one_example_count_once():
    """The product runs within a seed: repeating a run must not multiply the evidence."""
    moves = np.array([0.5, 1.0, 0.7])
    one, three = log_e_value(moves[None]), log_e_value(np.tile(moves, (3, 1)))
    assert three == pytest.approx(one, rel=1e-12)
    start = np.full((3, 3), -50.0)
    found = run(np.stack([start, start + moves], axis=1))
    assert found["log_e"] == pytest.approx(one, abs=1e-3)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_means_never_refute_more_than_their_examples(delta):
    values = np.array(delta)
    by_mean = log_e_value(np.array([[values.mean()]]), count=len(values))
    assert by_mean <= log_e_value(values[None]) + 1e-9


def test_noise_of_unknown_size_refutes_once_in_twenty_at_most():
    """The policy has not moved, scoring errs by a nat: E exp of the noise exceeds 1, and the e-value would refute."""
    rng, wrong, by_e_value = np.random.default_rng(13), 0, 0
    for _ in range(200):
        found = run(np.stack([np.full(300, -90.0), -90.0 + rng.normal(0.0, 1.0, 300)]))
        wrong += found["refuted"]
        by_e_value += found["log_e"] >= np.log(20)
    assert wrong / 200 < 0.05 + four_errors(0.05, 200)
    assert by_e_value > 40, "teeth: the e-value alone does refute"


def test_scoring_noise_refutes_nothing():
    """The policy has not moved; every example was scored twice with an error of up to 0.02 nats a token."""
    rng = np.random.default_rng(12)
    start = np.full(2000, -100.0)
    found = run(np.stack([start, start + 100 * 0.02 * rng.uniform(-1, 1, 2000)]), tokens=100.0, noise_floor=0.02)
    assert found["refuted"] is False
    blind = run(np.stack([start, start + 100 * 0.02 * rng.uniform(-1, 1, 2000)]), tokens=100.0)
    assert blind["d_chosen"] == pytest.approx(0.0, abs=0.1)


# --- the size from the variance ------------------------------------------------------------------------------------


@given(st.floats(0, 50), st.floats(0, 3))
def test_the_size_inverts_the_sum_of_variances(mean_v, spread):
    """s² = E v + ¼ κ² (E v)² must give back −E v/2; with κ forgotten, Var(v)/8 is added."""
    total = mean_v + (spread * mean_v) ** 2 / 4
    assert second_order_loss(total, spread=spread) == pytest.approx(-mean_v / 2, rel=1e-9, abs=1e-12)
    assert second_order_loss(total) == pytest.approx(-mean_v / 2 - (spread * mean_v) ** 2 / 8, rel=1e-9, abs=1e-12)


def test_lengths_correct_the_size():
    """Normal changes whose variance goes with length: exact by the law of total variance; without lengths too far."""
    rng = np.random.default_rng(13)
    n = 40_000
    tokens = rng.integers(5, 100, n).astype(float)
    v = 0.04 * tokens
    delta = rng.normal(-v / 2, np.sqrt(v))
    start = np.full(n, -300.0)
    found = run(np.stack([start, start + delta]), tokens=tokens, thresholds=FAST)
    assert found["method"] == "second order, lengths"
    assert found["expected_low"] < -v.mean() / 2 < found["expected_high"]
    assert found["expected"] == pytest.approx(-v.mean() / 2, rel=0.05)
    assert found["alike"] == pytest.approx(-v.mean() / 2 - v.var() / 8, rel=0.05)
    assert found["alike"] < found["expected_low"]


def test_large_moves_are_called_unreliable_and_small_ones_reliable():
    rng = np.random.default_rng(14)
    start = np.full(500, -150.0)
    for deviation, reliable in ((0.5, True), (20.0, False)):
        found = run(np.stack([start, start + rng.normal(-(deviation**2) / 2, deviation, 500).clip(-400, 140)]))
        assert found["reliable"] is reliable
        assert (found["excess"] is not None) is reliable
        assert ("rough: " in found["text"]) is not reliable
        assert "within that" in found["text"], "these are fresh samples"


def test_one_outlier_makes_it_unreliable_though_the_variance_is_small():
    delta = np.full(200, -0.05)
    delta[0] = 9.0
    assert run(np.stack([np.full(200, -50.0), -50.0 + delta]))["reliable"] is False


def test_a_tail_that_was_not_drawn_makes_it_unreliable():
    """All fell by 5 to 20 nats: the few that must have risen for E exp Δ = 1 are not among these examples."""
    delta = np.linspace(-20, -5, 500)
    assert (np.exp(delta).sum() ** 2 / (np.exp(delta) ** 2).sum()) > 3 * DEFAULT.effective_examples
    assert run(np.stack([np.full(500, -90.0), -90.0 + delta]))["reliable"] is False


# --- what comes back -----------------------------------------------------------------------------------------------


def test_means_alone_give_the_sign_and_a_test_but_no_size():
    logp = np.array([-120.0, -119.0]).reshape(1, 2, 1, 1)
    known = {"n_examples": 500, "noise_floor": 1e-6}
    values = {"logp": logp, "n_tokens": [[[50.0]]]}
    means = trajectory(values, step=[0, 9], probe=["chosen"], attrs=known)
    found = null_model(curves(means))
    assert found["expected"] is None
    assert found["d_chosen"] == 1.0
    assert found["refuted"] is True, "500 examples that rose by 1 nat: a likelihood ratio of e^500"
    falling = null_model(curves(means.assign(logp=means.logp[:, ::-1].assign_coords(step=means.step))))
    assert falling["refuted"] is False
    assert "by an amount that means do not show; the fall of 1 may be only that" in falling["text"]
    unknown = trajectory({"logp": logp}, step=[0, 9], probe=["chosen"])
    found = null_model(curves(unknown))
    assert (found["refuted"], found["p"]) == (None, None), "one nat in one mean, of whose noise nothing is known"


def test_the_sentence_says_where_the_fall_lies_and_no_p():
    rng = np.random.default_rng(16)
    start, noise = np.full(400, -150.0), rng.normal(0.0, 0.5, 400)
    for fall, where in ((0.0625, "less than that"), (0.125, "within that"), (3.0, "beyond that")):
        found = run(np.stack([start, start - fall - (noise - noise.mean()) * (0.5 if fall > 1 else 1.0)]))
        if where == "less than that":  # variance 0.25 says 0.125; wide enough to call a half of it less
            found = run(np.stack([np.repeat(start, 9), np.repeat(start - fall - noise + noise.mean(), 9)]))
        assert found["text"].endswith(f"the fall of {fall:.3g} is {where}"), found["text"]
        assert "p ≤" not in found["text"]
    split = np.append(np.full(390, -9.0), np.full(10, 40.0))  # falls on average, and some rose by far too much
    found = run(np.stack([start, start + split]), tokens=100.0, noise_floor=1e-6)
    assert found["refuted"] is True
    assert found["text"].endswith("though some chosen rose by more than such answers would")


def test_every_answer_can_be_written_and_says_one_sentence():
    rng = np.random.default_rng(15)
    start = rng.uniform(-400, -50, (1, 60))
    huge = np.concatenate([start, start + np.abs(start) * 0.9])
    holes = huge.copy()
    holes[1, :20] = np.nan
    for moves in (huge, holes, np.concatenate([start, start]), np.concatenate([start, start - 1e4])):
        found = run(moves)
        json.dumps(found, allow_nan=False)
        assert "\n" not in found["text"]
        assert found["expected"] <= 0
        assert 0 <= found["p"] <= 1


def test_without_two_evaluations_of_chosen_there_is_no_null_model():
    once = trajectory({"logp": [[[[-3.0, -4.0]]]]}, step=[0], probe=["chosen"], example=["a", "b"])
    assert null_model(curves(once)) is None
    other = trajectory({"logp": [[[[-3.0]], [[-4.0]]]]}, step=[0, 1], probe=["rejected"])
    assert null_model(curves(other)) is None
    lost = trajectory(
        {"logp": [[[[-3.0, np.nan]], [[np.nan, -4.0]]]]}, step=[0, 1], probe=["chosen"], example=["a", "b"]
    )
    assert null_model(curves(lost)) is None


def test_the_start_is_named_as_what_it_is():
    late = table(np.array([[-50.0, -60.0], [-51.0, -60.5]])).assign_attrs(has_step0=0)
    assert "the policy at the first evaluation" in null_model(curves(late))["text"]
    assert "the policy before training" in run(np.array([[-50.0, -60.0], [-51.0, -60.5]]))["text"]
