"""Golden numbers and exact oracles of the unlearning chapter; the claims themselves are tried in test_claims.py."""

from fractions import Fraction

import numpy as np
import pytest

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims import unlearning as un
from toyld.claims.base import registry

F = Fraction


def test_log_probability_under_ga_falls_linearly_and_under_npo_logarithmically():
    # V = 10, η = .1, ‖x‖ = 1, y one of the zeros of logits (1, 0, …, 0), after 100, 1000 and 10000 updates.
    beta = np.array([0.0, 1.0, 0.5])  # 0 is gradient ascent: W = 1
    z, y = np.tile(np.eye(10)[0], (3, 1)), np.full(3, 1)
    start, got = sm.log_softmax(z)[:, 1], []
    for done in range(1, 10_001):
        w = 2.0 / (1.0 + np.exp(beta * (start - sm.log_softmax(z)[:, 1])))
        z = sm.step(z, sm.residual(z, y, c=-w), s=0.1)
        if done in (100, 1000, 10_000):
            got.append(sm.log_softmax(z)[:, 1])
    want = [[-17.1, -5.5, -7.2], [-197.1, -8.0, -12.6], [-1997.1, -10.5, -17.6]]
    np.testing.assert_allclose(got, want, rtol=0, atol=0.05)  # the digits given
    slope = -np.diff(got, axis=0) / np.log(10.0)  # nats per e-fold of n: 1/β for NPO
    np.testing.assert_allclose(slope[1, 1:], 1.0 / beta[1:], rtol=0.1)


@pytest.mark.parametrize(("beta", "want"), [(1.0, [1, 0.182, 0.0198]), (0.1, [1, 0.885, 0.774])])
def test_npo_weight(beta, want):
    ratio = np.array([1.0, 0.1, 0.01])
    z = np.log(np.stack([ratio / 2, 1.0 - ratio / 2], axis=-1))
    ref = np.log(np.full((3, 2), 0.5))

    def loss(logp, ref):
        return 2.0 / beta * (beta * (logp - ref)[:, 0]).exp().log1p()

    push = un.gradient(loss, z, ref)[:, 0] / (1.0 - ratio / 2)  # its own-logit entry is W(1 − π_y)
    np.testing.assert_allclose(push, want, atol=5e-4)


def test_a_run_agrees_with_fifty_digits():
    mpmath = pytest.importorskip("mpmath")
    z, y, s = np.array([[2.0, 0.5, -1.0, -3.0]]), np.array([2]), np.array([0.7])
    fall = un._falls(z, y, s, lambda _z, _y, x: 2.0 / (1.0 + np.exp(0.5 * x)))[0]
    with mpmath.workdps(50):
        now = [mpmath.mpf(x) for x in z[0]]

        def logp():
            return now[2] - mpmath.log(sum(mpmath.exp(x) for x in now))

        start = logp()
        for n in range(un.STEPS):
            total, w = sum(mpmath.exp(x) for x in now), 2 / (1 + mpmath.exp((start - logp()) / 2))
            now = [x + mpmath.mpf(0.7) * w * (mpmath.exp(x) / total - (i == 2)) for i, x in enumerate(now)]
            bound = un._run_rounding(z, s, fall[None])[0, 0]
            assert abs(float(start - logp()) - fall[n]) < bound


EXACT = [
    ((F(2, 5), F(1, 4), F(1, 5), F(1, 10), F(1, 20)), 4),
    ((F(2, 5), F(1, 4), F(1, 5), F(1, 10), F(1, 20)), 1),
    ((F(7, 10), F(1, 10), F(1, 10), F(1, 20), F(1, 20)), 3),
    ((F(9, 10), F(1, 20), F(1, 40), F(1, 80), F(1, 80)), 0),
]


@pytest.mark.parametrize(("p", "y"), EXACT)
def test_window_is_where_the_first_order_changes_vanish(p, y):
    star = 1 if y == 0 else 0

    def first_order(i, lam):
        d = [x - t for x, t in zip(p, un._exact_target(p, y, lam), strict=True)]
        return d[i] - sum(x * a for x, a in zip(p, d, strict=True))

    def root(i):  # affine in λ
        at_0, at_1 = first_order(i, F(0)), first_order(i, F(1))
        return at_0 / (at_0 - at_1)

    assert first_order(star, F(0)) > 0 > first_order(y, F(0))  # gradient ascent: y falls and y* rises
    low, high = un.window(np.log([[float(x) for x in p]]), np.array([y]))
    np.testing.assert_allclose([low[0], high[0]], [float(root(star)), float(root(y))], rtol=1e-12)
    assert y == 0 or root(star) <= root(y)


def test_no_window_if_y_is_the_top_class():
    low, high = un.window(np.log([[0.9, 0.05, 0.025, 0.0125, 0.0125]]), np.array([0]))
    assert low[0] > min(1.0, high[0])


def test_ga_raises_the_runner_up_and_bst_lowers_it():
    z, y, s = np.log([[0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05]]), np.array([6]), 0.5
    before = sm.softmax(z)
    low, high = un.window(z, y)
    for lam, sign in [(0.0, 1.0), (0.9 * low[0], 1.0), (0.5 * (low[0] + high[0]), -1.0)]:
        after = sm.softmax(sm.step(z, un.target(z, y, np.array([lam])) - before, s=s * 1e-3 if lam else s))
        assert np.sign(after - before)[0, 0] == sign
        assert after[0, 6] < before[0, 6]


def test_unlikelihood_residual_stays_bounded_where_its_push_does_not():
    z = np.log([[1.0 - 1e-9, 1e-9]])
    push = un._odds(z, np.array([0]))
    np.testing.assert_allclose(push, 1e9, rtol=1e-6)
    np.testing.assert_allclose(np.abs(sm.residual(z, np.array([0]), c=-push)).sum(), 2.0, rtol=1e-6)


HALVES = (F(1, 2), F(1, 4), F(3, 4), F(1, 8), F(3, 8), F(5, 8), F(7, 8))


@pytest.mark.parametrize(
    ("id", "rest"),
    [
        ("unlearning.bst-printed-residual", {"s": None}),
        ("unlearning.bst-lowers-runner-up", {"classes": [4]}),
        ("unlearning.bst-lowers-label", {"classes": [4]}),
    ],
)
def test_the_stored_counterexample_is_the_smallest(id, rest):
    stored = registry[id].counterexample
    assert exact.smallest(stored.margin, **rest, lam=HALVES) == stored.case
