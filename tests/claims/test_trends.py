"""Trends 2 and 3: golden values, smallest counterexamples, sharp constants; and the order of `exact.smallest`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import comb, gcd
from typing import Any

import numpy as np
import pytest

from toyld import softmax as sm
from toyld.claims import exact, trends, trends_peak, trends_share
from toyld.claims.base import evaluate, registry
from toyld.claims.exact import STEPS, distributions, smallest

HALF, QUARTER, EIGHTH = Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)
PARTS = [HALF, QUARTER, Fraction(3, 4)]


def one(*p: float) -> np.ndarray:
    """Logits of one case."""
    return np.log(np.array([p]))


# ---- the enumeration -------------------------------------------------------------------------------------------------


def test_distributions_are_all_of_them_once() -> None:
    for size, denominator in ((2, 7), (3, 12), (4, 13)):
        listed = list(distributions(size, denominator))
        assert len(set(listed)) == len(listed)
        assert listed == sorted(listed)
        everything = {tuple(sorted(c, reverse=True)) for c in compositions(denominator, size) if gcd(*c) == 1}
        assert {tuple(int(x * denominator) for x in p) for p in listed} == everything


def compositions(total: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (total,)
        return
    for first in range(1, total - count + 2):
        for rest in compositions(total - first, count - 1):
            yield (first, *rest)


def test_compositions_are_counted() -> None:
    assert len(list(compositions(9, 4))) == comb(8, 3)


def test_smallest_goes_classes_denominator_p_label_step_then_the_rest() -> None:
    seen: list[tuple[Any, ...]] = []

    def note(p: Any, y: int, s: Fraction, k: int) -> Any:
        seen.append((len(p), max(x.denominator for x in p), y, s, k))
        return exact.ball(0)

    assert smallest(note, classes=[2, 3], denominators=[3, 4], s=[1, 2], k=lambda p, y, s: [y, y + 10]) is None
    assert seen == [
        (size, denominator, y, s, k)
        for size in (2, 3)
        for denominator in (3, 4)
        for y in range(size)
        for s in (1, 2)
        for k in (y, y + 10)
    ]


def test_a_zero_margin_is_no_counterexample_and_the_float_check_only_saves_time() -> None:
    stored = registry["trends.peakier-lifts-top-more"]
    assert smallest(lambda p, y, s: exact.log_alphas(p, y, s)[0] - exact.log_alphas(p, y, s)[0], classes=[2]) is None
    assert stored.counterexample is not None
    arguments = {"i": top, "j": apart, "part": PARTS}
    plain = smallest(stored.counterexample.margin, classes=[3], denominators=[4], **arguments)
    assert plain == smallest(
        stored.counterexample.margin, check=stored.check, classes=[3], denominators=[4], **arguments
    )


# ---- every stored counterexample is the first of the enumeration -----------------------------------------------------


def top(p: Any, y: int, s: Fraction) -> list[int]:
    return [max((i for i in range(len(p)) if i != y), key=lambda i: p[i])]


def apart(p: Any, y: int, s: Fraction, i: int) -> list[int]:
    return [j for j in range(len(p)) if j not in (i, y)]


def rarer(p: Any, b: int) -> list[int]:
    return [] if p.index(max(p)) == b else [a for a in range(len(p)) if p[a] < p[b]]


TWO_LABELS = {"y": None, "s": None, "b": lambda p: range(len(p)), "a": rarer, "step": STEPS}
LESS = [HALF, QUARTER, EIGHTH]
SEARCHES: dict[str, dict[str, Any]] = {
    "trends.rarer-label-lifts-top-more": TWO_LABELS,
    "trends.rarer-label-gives-larger-share": TWO_LABELS,
    "trends.scaled-others-fall-more": {"less": LESS, "denominators": range(2, 14)},
    "trends.scaled-rarer-lifts-top-more": {"less": LESS},
    "trends.peakier-adds-losers": {
        "classes": [3, 4],
        "denominators": range(2, 25),
        "i": lambda p, y, s: [i for i in range(len(p)) if i != y],
        "j": lambda p, y, s, i: [j for j in apart(p, y, s, i) if p[j] < p[i]],
        "part": PARTS,
    },
    "trends.peakier-lifts-top-more": {"classes": [3, 4], "i": top, "j": apart, "part": PARTS},
    "trends.colder-lifts-top-more": {"where": lambda p, y, s, k: p[y] < max(p), "k": [2, 3]},
}


@pytest.mark.parametrize("id", SEARCHES)
def test_stored_counterexample_is_the_smallest(id: str) -> None:
    stored = registry[id].counterexample
    assert stored is not None
    search = SEARCHES[id]
    if search is TWO_LABELS:  # the step comes last there
        found = smallest(lambda p, a, b, step: stored.margin(p=p, a=a, b=b, s=step), **search)
        assert found is not None
        found["s"] = found.pop("step")
    else:
        found = smallest(stored.margin, check=registry[id].check, **search)
    assert found == dict(stored.case)


def test_every_refuted_trend_has_its_search() -> None:
    refuted = {id for id, c in registry.items() if id.startswith("trends.") and c.expect == "refuted"}
    assert refuted == {*SEARCHES, "trends.colder-keeps-losers"}


def _gains_by_label(p: np.ndarray, s: float) -> dict[int, np.ndarray]:
    """log α_i (n, V) for every label but class 0, for i other than the label."""
    own = p * np.exp(s * p)
    total = own.sum(axis=-1)
    return {y: s * p - np.log(total + np.expm1(-s) * own[:, y])[:, None] for y in range(1, p.shape[1])}


@pytest.mark.slow
def test_stored_case_of_colder_keeps_losers_is_the_smallest() -> None:
    """Every case in float64: none earlier comes within 1e-12 of a counterexample with k = 2, 3, 4."""
    stored = registry["trends.colder-keeps-losers"].counterexample
    assert stored is not None
    hits = []
    for size in (3, 4):
        for denominator in range(size, 146):
            cases = list(distributions(size, denominator))
            if not cases:
                continue
            p = np.array([[x.numerator / x.denominator for x in q] for q in cases])
            for s in STEPS:
                before = _gains_by_label(p, float(s))
                for k in (2, 3, 4):
                    cold = p**k / np.sum(p**k, axis=-1, keepdims=True)
                    for y, after in _gains_by_label(cold, float(s)).items():
                        # exact ties at 0 (a class at the threshold) are no counterexample
                        turned = (before[y] < 1e-13) & (after > -1e-13) & (after - before[y] > 1e-12)
                        turned[:, y] = False
                        turned &= (p[:, y] < p[:, 0])[:, None]  # classes are in falling order
                        hits += [{"p": cases[n], "y": y, "s": s, "k": k} for n in np.flatnonzero(turned.any(axis=-1))]
    assert hits == [dict(stored.case)]


# ---- which measure fails where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("measure", "step"), [(0, 4), (1, 1), (2, 4)], ids=["mass", "factor", "share"])
def test_each_measure_of_a_peakier_p_fails_on_its_own(measure: int, step: int) -> None:
    found = smallest(
        lambda p, y, s, i, j, part: (
            trends.gains_exactly(trends_peak.moved_exactly(p, i, j, part), y, s)[measure]
            - trends.gains_exactly(p, y, s)[measure]
        ),
        classes=[3],
        i=top,
        j=apart,
        part=PARTS,
    )
    assert found == {"p": (HALF, QUARTER, QUARTER), "y": 1, "s": step, "i": 0, "j": 2, "part": Fraction(3, 4)}


def test_golden_values_of_f7_and_t12() -> None:
    q, s = np.array([0.7, 0.2, 0.1]), np.array([0.5])
    y = np.array([3])
    rhos, masses = [], []
    for p_y in (0.001, 0.01, 0.05, 0.2, 0.4):
        z = one(*((1 - p_y) * q), p_y)
        rhos.append(float(sm.squeezing_ratio(z, y, s=s)[0]))
        masses.append(float(trends.gains(z, y, s)[0][0]))
    np.testing.assert_allclose(rhos, [98.4, 10.4, 2.63, 1.16, 0.92], rtol=5e-3)
    np.testing.assert_allclose(masses[:4], [0.053, 0.056, 0.067, 0.095], atol=5e-4)


def test_gains_agree_with_balls() -> None:
    for p in distributions(4, 11):
        for y in range(4):
            mass, factor, share = (float(a.mid()) for a in trends.gains_exactly(p, y, Fraction(3, 2)))
            z, labels, s = one(*map(float, p)), np.array([y]), np.array([1.5])
            got = [a[0] for a in trends.gains(z, labels, s)] + [float(sm.squeezing_ratio(z, labels, s=s)[0])]
            np.testing.assert_allclose(got, [mass, factor, share], rtol=1e-13)


def test_scaled_and_moved_agree_with_rationals() -> None:
    p, y = (HALF, QUARTER, EIGHTH, EIGHTH), np.array([1])
    z = one(*map(float, p))
    for less in (HALF, Fraction(1, 5), Fraction(7, 2)):
        expected = [[float(x) for x in trends.scaled_exactly(p, 1, less)]]
        np.testing.assert_allclose(np.exp(trends.scaled(z, y, np.array([float(less)]))), expected, rtol=1e-14)
    z2 = trends_peak.moved(z, np.array([0]), np.array([2]), np.array([0.75]))
    np.testing.assert_allclose(
        np.exp(z2), [[float(x) for x in trends_peak.moved_exactly(p, 0, 2, Fraction(3, 4))]], rtol=1e-14
    )


# ---- the constants are sharp -----------------------------------------------------------------------------------------


def _rise(top: float, rest: tuple[float, ...], s: float) -> tuple[float, float]:
    """Change of (mass, factor) when a thousandth of class 1 moves to class 0; the label is last and holds 1e-9."""
    z, y = one(top, *rest, 1e-9), np.array([1 + len(rest)])
    steps = np.array([s])
    z2 = trends_peak.moved(z, np.array([0]), np.array([1]), np.array([1e-3]))
    before, after = trends.gains(z, y, steps), trends.gains(z2, y, steps)
    return float(after[0][0] - before[0][0]), float(after[1][0] - before[1][0])


def test_the_constants_of_peak_lifts_top_less_are_sharp() -> None:
    turn = trends_peak.MASS_TURNS
    assert turn == pytest.approx(0.7887, abs=1e-4)
    assert _rise(turn - 0.002, (1.002 - turn,), 1e-4)[0] > 0.0 > _rise(turn + 0.002, (0.998 - turn,), 1e-4)[0]
    assert _rise(0.748, (0.252,), 1e-4)[1] > 0.0 > _rise(0.752, (0.248,), 1e-4)[1]


def test_the_mass_may_fall_as_soon_as_the_peak_is_above_one_half() -> None:
    assert _rise(0.52, (1e-4, 0.48 - 1e-4), 1e-4)[0] < 0.0 < _rise(0.5, (0.1, 0.4), 1e-4)[0]


def test_first_order_turning_points_reach_their_bounds() -> None:
    """q_{y*} = √2 − 1 beside a thin rest has the earliest turning point, .195 in mass and .396 in factor."""
    top = 2**0.5 - 1.0
    thin = np.full(4000, (1.0 - top) / 4000)
    label = np.array([4001])
    for k, turn in ((0, 1.0 - (1.0 + 2**0.5) / 3.0), (1, 1.0 - (1.0 + 2**0.5) / 4.0)):
        rates = []
        for p_y in (turn - 0.01, turn, turn + 0.01):
            z = one(*((1 - p_y) * np.array([top, *thin])), p_y)
            factor = trends.gains(z, label, np.array([1e-5]))[1][0]
            rates.append(factor * (np.exp(z[0, 0]) if k == 0 else 1.0))
        assert rates[1] > rates[0]
        assert rates[1] > rates[2]


def test_a_vanishing_label_can_lift_the_top_more_above_step_14() -> None:
    """The first step at which it does is near 14.8, with a thin rest and q_{y*} near .107."""

    def slope(s: float, top: float) -> float:
        rest = np.full(2000, (1.0 - top) / 2000)
        values = []
        for p_y in (1e-7, 2e-7):
            z = one(*((1 - p_y) * np.array([top, *rest])), p_y)
            values.append(trends.gains(z, np.array([2001]), np.array([s]))[1][0])
        return float(values[1] - values[0])

    tops = np.linspace(0.08, 0.14, 25)
    assert min(slope(14.0, top) for top in tops) > 0.0
    assert min(slope(15.2, top) for top in tops) < 0.0


@pytest.mark.parametrize(
    ("id", "module", "name", "wrong"),
    [
        ("trends.peak-lifts-top-less", trends_peak, "MASS_TURNS", 0.77),
        ("trends.peak-lifts-top-less", trends_peak, "FACTOR_TURNS", 0.73),
        ("trends.peakier-turning-point", trends_peak, "HALF", 0.53),
        ("trends.scaled-rarer-lifts-top-less", trends, "factor_turns", lambda a, b: 1.03 - (1.0 + a) / (2.0 + 2.0 * b)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wrong_constant_is_seen(
    monkeypatch: pytest.MonkeyPatch, id: str, module: Any, name: str, wrong: Any, seed: int
) -> None:
    monkeypatch.setattr(module, name, wrong)
    assert evaluate(registry[id], examples=2000, seed=seed).verdict == "refuted"


def test_a_wrong_squeezing_ratio_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sm.squeezing_ratio
    monkeypatch.setattr(sm, "squeezing_ratio", lambda z, y, *, s: 1.01 * right(z, y, s=s))
    assert evaluate(registry["trends.share-law"], examples=500).verdict == "refuted"


def test_most_cases_of_the_first_order_losers_have_a_loser() -> None:
    claim = registry["trends.colder-keeps-losers-first-order"]
    speaks = []
    for size, u in claim.premises.sample(np.random.default_rng(0), 2000):
        speaks.append(np.isfinite(claim.check(**claim.premises.decode(u, size)[0]).value).any(axis=-1))
    assert np.concatenate(speaks).mean() > 0.75


def test_the_share_has_its_two_limits() -> None:
    """ρ = 1/(V − 1) for tied others; (1 − p_{y*})/p_y as s → ∞, when y* takes everything."""
    tied, apart_ = one(0.3, 0.3, 0.3, 0.1), one(0.4, 0.3, 0.2, 0.1)
    y = np.array([3])
    np.testing.assert_allclose(sm.squeezing_ratio(tied, y, s=np.array([2.0])), 1.0 / 3.0, rtol=1e-13)
    np.testing.assert_allclose(sm.squeezing_ratio(apart_, y, s=np.array([900.0])), 0.6 / 0.1, rtol=1e-12)


def test_the_chapter_is_complete() -> None:
    assert {c.check.__module__ for id, c in registry.items() if id.startswith("trends.")} == {
        trends.__name__,
        trends_peak.__name__,
        trends_share.__name__,
    }
