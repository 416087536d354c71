"""What the generated tests of `entropy.*` do not see: golden values of T6 and T7, a second oracle, smallest cases."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from toyld import softmax as sm
from toyld.claims import entropy, exact
from toyld.claims.base import evaluate

LADDER = np.array([2.0, 1.0, 0.0, -1.0, -2.0])


@pytest.mark.parametrize(
    ("y", "c", "after", "change"),
    [
        (0, -1.0, (0.5720, 0.2837, 0.0969, 0.0347, 0.0126), 0.0751),
        (3, -1.0, (0.6948, 0.2090, 0.0714, 0.0155, 0.0093), -0.1231),
        (0, 1.0, None, -0.0883),
        (3, 1.0, None, 0.1363),
    ],
)
def test_golden_entropy_changes(y: int, c: float, after: tuple[float, ...] | None, change: float) -> None:
    moved = sm.step(LADDER, sm.residual(LADDER, y, c=c), s=0.5)
    assert round(float(sm.entropy(moved) - sm.entropy(LADDER)), 4) == change
    if after is not None:
        np.testing.assert_array_equal(np.round(sm.softmax(moved), 4), after)
    assert (sm.valley_depth(LADDER, y) >= 0) == (y == 3)


def test_valley_bound_is_attained_by_the_uniform_law() -> None:
    """From uniform p the fall of H is KL(p'‖p) exactly, in balls."""
    p = (Fraction(1, 4),) * 4
    q = exact.push(p, 0, 3)
    fall = exact.entropy(p) - exact.entropy(q)
    divergence = sum((a * (a / exact.ball(b)).log() for a, b in zip(q, p, strict=True)), exact.ball(0))
    assert abs(fall - divergence) < exact.ball(Fraction(1, 10**40))
    assert fall > 0


def test_first_order_law_against_mpmath() -> None:
    mpmath = pytest.importorskip("mpmath")
    z, y = [1.5, -0.5, 0.25, -3.0], 1
    with mpmath.workdps(40):
        p = [mpmath.exp(x) for x in z]
        p = [x / sum(p) for x in p]

        def h(s: object) -> object:
            w = [x * mpmath.exp(s * (x - (i == y))) for i, x in enumerate(p)]
            total = sum(w)
            return -sum(x / total * mpmath.log(x / total) for x in w)

        want = float(mpmath.diff(h, 0))
    logits = np.array(z)
    assert float(sm.entropy_rate(logits, sm.residual(logits, y))) == pytest.approx(want, rel=1e-13)


def test_with_two_classes_only_valleys_lower_entropy_to_first_order() -> None:
    """dH/ds = 2p(1 − p)² log(p/(1 − p)), p = p_y: the law stated beside the refuted claim."""
    for n in range(2, 12):
        for k in range(1, n):
            q = Fraction(k, n)
            closed = 2 * exact.ball(q * (1 - q) ** 2) * (exact.ball(q) / exact.ball(1 - q)).log()
            assert abs(entropy._rate((q, 1 - q), 0) - closed) < exact.ball(Fraction(1, 10**40))


def test_counterexample_to_only_valleys_is_smallest() -> None:
    stored = entropy.only_valleys_lower_it.counterexample
    assert stored is not None
    found = exact.smallest(
        entropy._rate,
        where=lambda p, y: exact.ball(p[y]).log() + exact.entropy(p) > 0,
        s=None,
        denominators=range(2, 11),
    )
    assert found == stored.case


@pytest.mark.parametrize(("scale", "drawn", "uniform"), [(4.0, 0.27, 0.97), (2.0, 0.40, 0.93), (0.5, 0.49, 0.68)])
def test_how_often_a_drawn_label_is_a_valley(scale: float, drawn: float, uniform: float) -> None:
    """T7, V = 50, Gaussian logits: the published two digits, within Hoeffding's error at a risk of 1e-6."""
    n, size = 20_000, 50
    z = np.random.default_rng(7).normal(size=(n, size)) * scale
    valley = -sm.log_softmax(z) >= sm.entropy(z)[:, None]
    slack = 0.005 + np.sqrt(np.log(2.0 / 1e-6) / (2.0 * n))
    assert abs(np.sum(sm.softmax(z) * valley, axis=-1).mean() - drawn) < slack
    assert abs(valley.mean() - uniform) < slack


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("step", lambda z, g, *, s: z + np.asarray(s)[..., None] * g, "valley"),
        ("entropy_rate", lambda z, v: np.sum(sm.softmax(z) * v, axis=-1), "covariance_law"),
        ("threshold_limit", lambda z, y: np.sum(sm.softmax(z) ** 2, axis=-1), "break_even"),
        ("valley_depth", lambda z, y: sm.entropy(z) + entropy.at(sm.log_softmax(z), y), "valleys_are_rarer_on_policy"),
        ("valley_depth", lambda z, y: -entropy.at(sm.log_softmax(z), y) - sm.entropy(z) - 0.3, "valley_is_absorbing"),
    ],
)
def test_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, claim: str) -> None:
    monkeypatch.setattr(sm, name, wrong)
    assert not evaluate(getattr(entropy, claim), examples=500).as_expected
