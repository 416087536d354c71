"""What the generated tests of `sft.*` and `extend.*` do not see: golden values of T9, sharpness, smallest cases."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq

from toyld import softmax as sm
from toyld.claims import exact, mirror
from toyld.claims.base import Claim, evaluate


def test_first_loser_at_a_shared_context_for_one_per_cent() -> None:
    """T9: ε = .01, one other class or very many: the first loser appears at s = .12 and .04."""
    eps = 0.01
    seen = []
    for rest in (1, 10_000):
        z = np.log(np.array([(1 - eps) / 2, (1 - eps) / 2, *[eps / rest] * rest]))

        def least(s: float, z: np.ndarray = z) -> float:
            return float(sm.log_alpha(z, 1, s=s)[2])

        seen.append(brentq(least, 1e-3, 1.0))
        m = eps / rest
        low = 4 * eps * (1 - eps) + 8 * (m - rest * m**2)
        assert low <= seen[-1] <= 2 * np.arctanh(2 * eps + 4 * m / (1 - eps))
    np.testing.assert_array_equal(np.round(seen, 2), [0.12, 0.04])


def test_own_path_range_is_sharp() -> None:
    """Just beyond log((1 − ε)/ε)/ε a class of vanishing mass loses, and there p'_− = ε."""
    eps, tiny = Fraction(1, 4), Fraction(1, 10**12)
    p = (1 - eps, eps - tiny, tiny)
    reach = np.log(3.0) / 0.25
    within, beyond = Fraction(reach * 0.9999), Fraction(reach * 1.0001)
    assert exact.log_alphas(p, 0, within)[2] > 0
    assert exact.log_alphas(p, 0, beyond)[2] < 0
    assert float(exact.push(p, 0, Fraction(reach))[0].mid()) == pytest.approx(0.25, abs=1e-10)


def test_thresholds_of_extend_in_exact_arithmetic() -> None:
    eps = Fraction(1, 5)
    own = (1 - eps, eps / 2, eps / 4, eps / 4)
    rest = sum(x * x for x in own[1:])
    assert sum(x * x for x in own) - own[0] == -eps * (1 - eps) + rest
    shared = ((1 - eps) / 2, (1 - eps) / 2, eps / 2, eps / 2)
    rest = sum(x * x for x in shared[2:])
    assert sum(x * x for x in shared) - shared[1] == -eps * (1 - eps) / 2 + rest < 0


@pytest.mark.parametrize(
    ("claim", "where"),
    [
        (mirror.lowers_everything_else, None),
        (mirror.own_path_any_step, lambda p, y, s: p[y] > Fraction(1, 2) and len(p) > 2),
        (mirror.shared_context_any_step, lambda p, y, s: y == 1 and p[0] == p[1] and 1 - 2 * p[0] < Fraction(1, 3)),
    ],
)
def test_counterexample_is_smallest(claim: Claim, where: Callable[..., bool] | None) -> None:
    assert claim.counterexample is not None
    assert exact.smallest(claim.counterexample.margin, where=where, classes=(2, 3)) == claim.counterexample.case


def test_sft_and_a_negative_step_cancel_in_balls() -> None:
    p = (Fraction(3, 5), Fraction(1, 5), Fraction(1, 10), Fraction(1, 10))
    both = [a + b for a, b in zip(exact.log_alphas(p, 2, 2, 1), exact.log_alphas(p, 2, 2, -1), strict=True)]
    reach = 1 + p[0] - p[2]
    for x in both:
        assert abs(x - both[0]) < exact.ball(Fraction(1, 10**40))
        assert -exact.ball(reach**2) < x < 0  # s²Δ²/4 with s = 2


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("step", lambda z, g, *, s: z + np.asarray(s)[..., None] * g, "threshold"),
        ("threshold", lambda z, y, *, s: np.full(len(z), 1.0 / z.shape[-1]), "threshold_falls"),
        ("runner_up", lambda z, y: np.argmax(z, axis=-1), "label_rises_runner_up_falls"),
        ("residual", lambda z, y, *, c=1.0: np.asarray(c)[..., None] * sm.softmax(z), "own_path"),
    ],
)
def test_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, claim: str) -> None:
    monkeypatch.setattr(sm, name, wrong)
    assert not evaluate(getattr(mirror, claim), examples=500).as_expected
