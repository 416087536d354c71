"""What the generated tests of `step.*` do not see: exact Taylor coefficients, every constant C, planted bugs."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb

from toyld import softmax as sm
from toyld.claims import exact, radius
from toyld.claims.base import evaluate

ORDER = 60


def taylor(p: tuple[Fraction, ...], v: tuple[Fraction, ...]) -> list[Fraction]:
    """Taylor coefficients c_n of log Σ_j p_j e^{s v_j}, exactly: n c_n = n m_n − Σ_k k c_k m_{n−k}, m_n = E v^n/n!."""
    m = [sum(a * b**n for a, b in zip(p, v, strict=True)) / math.factorial(n) for n in range(ORDER + 1)]
    c = [Fraction(0)]
    for n in range(1, ORDER + 1):
        c.append(m[n] - sum((k * c[k] * m[n - k] for k in range(1, n)), Fraction(0)) / n)
    return c


CASES = [
    ((Fraction(1, 2), Fraction(1, 2)), (Fraction(-1, 2), Fraction(1, 2))),
    ((Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)), (Fraction(7, 10), Fraction(2, 10), Fraction(-9, 10))),
    ((Fraction(1, 4),) * 4, (Fraction(-1), Fraction(0), Fraction(1, 3), Fraction(2))),
]


@pytest.mark.parametrize(("p", "v"), CASES)
def test_coefficients_obey_cauchys_estimate_inside_the_radius(p: tuple[Fraction, ...], v: tuple[Fraction, ...]) -> None:
    """|c_n| (kR)^n ≤ max |log Σ| on the circle kR ≤ kπ − log cos(kπ/2), v centred (which changes c_1 alone)."""
    middle = (max(v) + min(v)) / 2
    c = taylor(p, tuple(x - middle for x in v))
    k, reach = Fraction(9, 10), max(v) - min(v)
    r = exact.ball(k) * arb.pi() / exact.ball(reach)
    half = exact.ball(k) * arb.pi() / 2
    cap = 2 * half - half.cos().log()
    for n in range(1, ORDER + 1):
        assert exact.ball(abs(c[n])) * r**n <= cap
    if len(p) == 2:  # two equal classes: the radius is no larger, and at 4/3 of it the terms already grow
        assert exact.ball(abs(c[ORDER])) * (exact.ball(Fraction(40, 27)) * r) ** ORDER > 1000 * exact.ball(abs(c[2]))


def test_partial_sums_converge_inside_and_not_outside() -> None:
    """Two equal classes, radius π: errors of the partial sums of log cosh(s/2) at s = 3 and s = 4."""
    c = taylor(*CASES[0])

    def error(s: int, order: int) -> float:
        partial = sum((c[n] * s**n for n in range(order + 1)), Fraction(0))
        return float(abs(exact.ball(partial) - (arb(s) / 2).cosh().log()).mid())

    assert error(3, 60) < error(3, 30) < error(3, 10)
    assert error(4, 60) > error(4, 30) > error(4, 10)


def test_binary_radius_of_a_known_gap() -> None:
    """p = (1, e^δ)/(1 + e^δ): the series of the log-partition has coefficients of root 1/√(δ² + π²)."""
    z, v = np.array([[3.0, 0.0]]), np.array([[1.0, 0.0]])
    r = math.hypot(3.0, math.pi)
    zeros = [radius._zeros_inside(z, v, np.array([k * r]), 1024)[0] for k in (0.99, 1.01)]
    np.testing.assert_allclose(zeros, [0.0, 2.0], atol=1e-10)
    assert sm.taylor_radius(v)[0] < r


@pytest.mark.parametrize("c", [1, 10, 1000])
def test_no_constant_rescues_the_printed_order(c: int) -> None:
    """The notes of the two refuted constants, for more values of C."""
    half = (Fraction(1, 2), Fraction(1, 2))
    assert radius._constant_margin(half, 0, Fraction(1, 9 * c), Fraction(9 * c), Fraction(c)) < 0
    assert radius._two_layer_margin(Fraction(1, 6 * c), Fraction(1), Fraction(c)) < 0
    assert radius._two_layer_margin(Fraction(1, 2), Fraction(1), Fraction(c)) > 0  # not at every w


def test_counterexample_to_half_the_radius_is_smallest() -> None:
    stored = radius.first_order_within_half_the_radius.counterexample
    assert stored is not None
    found = exact.smallest(stored.margin, s=(Fraction(1), Fraction(3, 2), Fraction(2)))
    assert found == stored.case


def test_zeros_are_counted() -> None:
    """The counter itself: Σ = cosh has zeros at ±iπ/2, ±3iπ/2, …"""
    z, v = np.zeros((3, 2)), np.tile([-1.0, 1.0], (3, 1))
    found = radius._zeros_inside(z, v, np.array([1.5, 3.0, 6.0]), 4096)
    np.testing.assert_allclose(found, [0.0, 2.0, 4.0], atol=1e-9)


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("taylor_radius", lambda v: 1.1 * np.pi / (v.max(axis=-1) - v.min(axis=-1)), "taylor_radius"),
        ("safe_step", lambda z, y: np.full(len(z), np.pi), "safe_step"),
        ("safe_step", lambda z, y: np.full(len(z), np.pi / 2.0), "safe_step"),
        ("jacobian", lambda z: np.broadcast_to(np.eye(z.shape[-1]), (*z.shape, z.shape[-1])), "second_order_term"),
        ("step", lambda z, g, *, s: z + np.asarray(s)[..., None] * g, "remainder_in_radii"),
    ],
)
def test_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object, claim: str) -> None:
    monkeypatch.setattr(sm, name, wrong)
    assert not evaluate(getattr(radius, claim), examples=500).as_expected
