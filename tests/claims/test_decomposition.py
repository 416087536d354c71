"""What the generated tests of `decomposition.*` do not see: a second oracle, smallest counterexamples, planted bugs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from toyld import softmax as sm
from toyld.claims import decomposition, exact
from toyld.claims.base import evaluate


def test_eigenvalues_of_a_are_zero_once_and_one_otherwise() -> None:
    z = np.random.default_rng(0).normal(size=(20, 9))
    values = np.sort(np.linalg.eigvals(sm.jacobian(z)).real, axis=-1)
    # Condition of the eigenvalues of I − 1πᵀ: ‖1‖‖π‖ ≤ √V = 3, per entry rounding of the QR algorithm V ε‖A‖.
    atol = 3.0 * 9 * 3.0 * np.finfo(float).eps * 10
    np.testing.assert_allclose(values[:, 0], 0.0, atol=atol)
    np.testing.assert_allclose(values[:, 1:], 1.0, atol=atol)


def test_softmax_slope_by_power_series_is_p_times_one_minus_p() -> None:
    for p in ((Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)), (Fraction(1, 10), Fraction(9, 10))):
        assert decomposition._slope_of_second(p).contains(exact.ball(p[1] * (1 - p[1])))
        assert not decomposition._slope_of_second(p).contains(exact.ball(1 - p[1] ** 2))


def test_remainder_for_two_equal_classes_is_log_cosh() -> None:
    mpmath = pytest.importorskip("mpmath")
    for s in (0.01, 1.0, 30.0):
        z = np.zeros((1, 2))
        first = s * np.einsum("nij,nj->ni", sm.jacobian(z), sm.residual(z, np.array([0])))
        rho = first - sm.log_alpha(z, np.array([0]), s=np.array([s]))
        with mpmath.workdps(40):
            want = float(mpmath.log(mpmath.cosh(mpmath.mpf(s) / 2)))
        np.testing.assert_allclose(rho, want, atol=64 * np.finfo(float).eps * (1 + s), rtol=0)
        assert want <= s**2 / 8  # the constant: Δ = 1 here


def test_influence_counterexample_is_smallest() -> None:
    """Over all pairs of two-class laws by least common denominator: the first difference is at 3."""
    stored = decomposition.influence_is_symmetric.counterexample
    assert stored is not None
    first = None
    for n in range(2, 5):
        laws = [law for d in range(2, n + 1) for q in exact.distributions(2, d) for law in {q, q[::-1]}]
        for p in laws:
            for q in laws:
                there, back = decomposition._influence(p, q, 0), decomposition._influence(q, p, 0)
                first = first or (n if there != back else None)
    assert first == 3 == max(x.denominator for x in (*stored.case["p"], *stored.case["q"]))
    assert decomposition._influence(**stored.case) == Fraction(2, 9)
    assert decomposition._influence(stored.case["q"], stored.case["p"], 0) == Fraction(5, 9)


def test_lessons_act_back_equally_in_a_real_step() -> None:
    """SFT on u and Δlog π(y_o|o), SFT on o and Δlog π(y_u|u): equal up to second order (half the step, a quarter)."""
    z = np.array([[0.3, -1.0, 0.5], [1.2, 0.1, -0.7]])
    y = np.array([2, 0])
    gaps = []
    for s in (1e-2, 5e-3):
        g = sm.residual(z, y)
        moved = sm.log_softmax(z - s * g[::-1]) - sm.log_softmax(z)
        gaps.append(abs(moved[0, y[0]] - moved[1, y[1]]))
    assert gaps[0] / gaps[1] == pytest.approx(4.0, rel=0.05)  # third-order terms are of relative size s


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("jacobian", lambda z: np.broadcast_to(np.eye(z.shape[-1]), (*z.shape, z.shape[-1])).copy(), "projection"),
        ("jacobian", lambda z: np.broadcast_to(np.eye(z.shape[-1]), (*z.shape, z.shape[-1])).copy(), "remainder"),
        ("residual", lambda z, y, *, c=1.0: np.asarray(c)[..., None] * sm.softmax(z), "residual_sums_to_zero"),
    ],
)
def test_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, claim: str) -> None:
    monkeypatch.setattr(sm, name, wrong)
    assert not evaluate(getattr(decomposition, claim), examples=200).as_expected
