"""Golden numbers and exact oracles of the policy chapter; the claims themselves are tried in test_claims.py."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from toyld import softmax as sm
from toyld.claims import exact, policy
from toyld.claims.base import registry

F = Fraction


def own_entry(p, ratio, advantage):
    z = np.log([[1.0 - p, p]])
    c = policy.ppo_push(np.array([ratio]), np.array([advantage]))
    return float(sm.residual(z, 1, c=c)[0, 1])


def test_ppo_gives_a_rare_token_the_full_push_at_the_first_inner_step():
    np.testing.assert_allclose(own_entry(1e-6, 1.0, -1.0), 1.0 - 1e-6, rtol=1e-12)


def test_ppo_push_is_linear_in_the_ratio_and_jumps_to_zero_at_the_clip():
    got = [own_entry(1e-6, ratio, -1.0) for ratio in (1.0, 0.9, 0.8 + 1e-9, 0.8 - 1e-9, 0.1)]
    np.testing.assert_allclose(got, [1.0, 0.9, 0.8, 0.0, 0.0], rtol=0, atol=2e-6)


def test_ppo_residual_grows_while_a_likely_token_falls():
    # Same π_old = .9, unclipped: the push on log π falls, the own logit's residual rises.
    assert own_entry(0.75, 0.75 / 0.9, -1.0) > own_entry(0.9, 1.0, -1.0)


@pytest.mark.parametrize(("p", "c", "want"), [(0.1, 0.0, 0.10), (0.1, -0.8, 0.50), (0.5, 0.6, 0.20)])
def test_topr_effective_share(p, c, want):
    data = np.repeat([1.0, -1.0], [round(p * 1000), round((1 - p) * 1000)]) - c
    np.testing.assert_allclose(data[data > 0].sum() / np.abs(data).sum(), want, rtol=1e-12)
    np.testing.assert_allclose(p * (1 - c) / (1 + c * (1 - 2 * p)), want, rtol=1e-12)


def test_naive_off_policy_objective_runs_away_where_topr_stays():
    mu, r = np.array([[0.5, 0.3, 0.2]]), np.array([[1.0, -1.0, -1.0]])
    z = np.stack([np.zeros(1000), -np.linspace(0.0, 1e4, 1000), np.zeros(1000)], axis=-1)
    naive = (mu * r * sm.log_softmax(z)).sum(-1)
    topr = policy.topr_objective(sm.log_softmax(z), mu, r)
    assert naive.max() > 2900.0  # slope .3
    assert topr.max() <= 0.0  # the supremum with one positive arm: w log(w/W₊) = 0


def test_topr_objective_has_no_jump_where_the_truncation_sets_in():
    mu, r = np.array([[0.3, 0.7]]), np.array([[-1.0, 1.0]])
    step = 1e-7  # the slope of log π is at most 1, so J moves by at most Σ|µr| times this
    logp = [sm.log_softmax(np.array([[np.log(0.3 / 0.7) + d, 0.0]])) for d in (-step, step)]
    low, high = (policy.topr_objective(a, mu, r)[0] for a in logp)
    assert abs(high - low) <= 2.0 * step


def test_exact_psr_and_nsr_runs_coincide_and_collapse():
    good = np.array([[1.0, 1.0, 1.0, 0.0, 0.0]])
    psr = nsr = np.array([[0.2, 0.1, 0.0, 0.3, -0.1]])
    for _ in range(300):
        psr = sm.step(psr, -policy.expected_gradient(psr, good), s=1.0)
        nsr = sm.step(nsr, -policy.expected_gradient(nsr, good - 1.0), s=1.0)
    np.testing.assert_allclose(sm.softmax(psr), sm.softmax(nsr), rtol=1e-9)
    among = sm.entropy(psr[0, :3]), sm.entropy(np.array([0.2, 0.1, 0.0]))
    assert among[0] < among[1] - 0.02


def nearest_law(x):
    """The point of the simplex nearest to x, in rationals, by trying every support."""
    arms = range(len(x))
    for size in arms:
        for inside in itertools.combinations(arms, size + 1):
            level = (sum(x[i] for i in inside) - 1) / len(inside)
            if all((x[i] > level) == (i in inside) for i in arms):
                return [x[i] - level if i in inside else F(0) for i in arms]
    raise AssertionError


@pytest.mark.parametrize("gap", [F(2), F(1), F(1, 2), F(1, 10), F(1, 50)])
def test_water_filling_is_the_nearest_law_in_exact_arithmetic(gap):
    mu = (F(1, 10), F(1, 5), F(1, 20), F(1, 4), F(3, 20), F(1, 4))
    r = (F(1), F(-1, 2), F(3), F(0), F(7, 10), F(1, 10))
    b = sum(m * a for m, a in zip(mu, r, strict=True)) - gap
    want = nearest_law([m * (a - b) / gap for m, a in zip(mu, r, strict=True)])
    got = sm.water_filling(np.array(mu, dtype=float), np.array(r, dtype=float), baseline=float(b))
    np.testing.assert_allclose(got, np.array(want, dtype=float), rtol=0, atol=1e-13)


def test_asymre_support_shrinks_to_the_best_product():
    rng = np.random.default_rng(1)
    for _ in range(20):
        mu, r = rng.dirichlet(np.ones(8)), rng.normal(size=8)
        gaps = np.geomspace(1e-6, 4.0, 60)
        laws = np.stack([sm.water_filling(mu, r, baseline=mu @ r - gap) for gap in gaps])
        inside = laws > 0.0
        assert np.all(inside[1:] >= inside[:-1])
        assert inside[0].sum() == 1
        assert np.argmax(laws[0]) == np.argmax(mu * (r - mu @ r))


def test_above_break_even_the_start_decides():
    case = registry["policy.asymre-ends-at-argmax"].counterexample.floats()
    z, r, gap = case["z"], case["r"], case["gap"].astype(float)
    w, _ = policy.arms(sm.softmax(z), r, -gap)
    np.testing.assert_allclose(w, [[-10 / 9, -8 / 9]], rtol=1e-12)
    end = policy.asymre_run(z, w, -gap, np.array([0.1]), 2000)
    assert sm.softmax(end)[0, 0] > 1.0 - 1e-6
    other = policy.asymre_run(z - [[1.0, 0.0]], w, -gap, np.array([0.1]), 2000)
    assert sm.softmax(other)[0, 1] > 1.0 - 1e-6


def test_dead_atoms_lose_from_every_start():
    rng = np.random.default_rng(2)
    mu, r, gap = np.tile([0.6, 0.3, 0.1], (200, 1)), np.tile([-3.0, 1.0, 1.0], (200, 1)), np.full(200, 0.5)
    w, _ = policy.arms(mu, r, -gap)
    dead = np.zeros(200, dtype=int)
    assert np.all(policy.depth(w, gap, dead) < 0.0)
    start = np.concatenate([np.log([[1 - 2e-9, 1e-9, 1e-9]]), 3.0 * rng.normal(size=(199, 3))])
    end = policy.asymre_run(start, w, -gap, np.full(200, 0.5), 400)
    assert sm.softmax(end)[:, 0].max() < 1e-6


def test_the_full_push_on_a_valley_is_stored_where_it_hurts():
    # Not the smallest case, (2/3, 1/3), but a rare token: a valley ten nats deep with |G_y| = .999999.
    case = registry["policy.ppo-spares-valleys"].counterexample.floats()
    assert sm.valley_depth(case["z"], case["y"])[0] > 10.0
    np.testing.assert_allclose(own_entry(1e-6, 1.0, -1.0), 0.999999, rtol=1e-12)


@pytest.mark.parametrize(
    ("id", "rest"),
    [
        (
            "policy.nsr-differs-in-expectation",
            {"y": None, "s": None, "good": lambda p: sorted(itertools.product((0, 1), repeat=len(p)), reverse=True)},
        ),
        (
            "policy.asymre-ends-at-argmax",
            {"y": None, "s": None, "classes": [2], "r": [(1, 0), (0, 1)], "gap": (1, 2, 3, 4)},
        ),
    ],
)
def test_the_stored_counterexample_is_the_smallest(id, rest):
    stored = registry[id].counterexample
    found = exact.smallest(stored.margin, **rest)
    assert found == stored.case
