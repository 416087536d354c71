"""Trend 2 (§3.3): what a peakier softmax does to the threshold, to the losers and to the gain of y*.

Two readings of “peakier”. *Transfer*: at fixed p_y, mass moves from a class j to a likelier class i (to y* itself in
the end): majorisation of the other classes. *Colder*: p ∝ q^k with rising k. Notation and measures of
`toyld.claims.trends`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, rounding
from toyld.claims.spaces import label, logits, other_label, real, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, at, not_the_top, others, realised
from toyld.claims.trends import gains, gains_exactly, largest, rates, size_of, with_last
from toyld.claims.trends_share import STAR

Array = Any


def moved(z: Array, i: Array, j: Array, part: Array, /) -> Array:
    """Log-probabilities (n, V) after the part 0 < part < 1 of p_j has moved to class i."""
    logp = sm.log_softmax(z)
    richer = np.logaddexp(at(logp, i), at(logp, j) + np.log(part))
    poorer = at(logp, j) + np.log1p(-part)
    return np.where(sm.one_hot(z, i), richer[:, None], np.where(sm.one_hot(z, j), poorer[:, None], logp))


def moved_exactly(p: tuple[Fraction, ...], i: int, j: int, part: Fraction, /) -> tuple[Fraction, ...]:
    """The same in rationals."""
    d = part * p[j]
    return tuple(x + d if k == i else x - d if k == j else x for k, x in enumerate(p))


def _third(than: tuple[str, str]) -> Field:
    """A label (n,) different from two different ones."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        j = np.minimum((u[:, 0] * (size - 2)).astype(int), size - 3)
        low, high = np.sort(np.stack([case[name] for name in than]), axis=0)
        j = j + (j >= low)
        return j + (j >= high)

    return Field(lambda size: 1, decode)


def _transfer(to: Field, z: Field | None = None, y: Field | None = None, **rest: Any) -> Premises:
    """A label, a step, and the part of p_j that moves to `to`."""
    fields = {
        "z": z or logits(),
        "y": y or label(),
        "s": step_size(),
        "i": to,
        "j": _third(("y", "i")),
        "part": real(0.001, 0.999),
    }
    return Premises(fields, sizes=THREE_OR_MORE, **rest)


def _to_the_richer(z: Array, i: Array, j: Array, **_: Array) -> Array:
    return at(z, i) >= at(z, j)


def _to_a_richer(z: Array, i: Array, j: Array, **_: Array) -> Array:
    return at(z, i) > at(z, j)


@claim(
    "trends.peakier-raises-threshold",
    "At fixed p_y, moving mass from a class to a likelier one (neither is y) raises τ(s) at every step s, so every "
    "class but the receiver falls more, y included; when y* receives, the set of losers only grows.",
    source=f"the true part of {PAPER}, §3.3 trend 2",
    kind="theorem",
    premises=_transfer(other_label("y"), where=_to_the_richer),
    proof="e^K = Σ_{j≠y} p_j e^{s p_j} + p_y e^{s(p_y−1)} and x e^{sx} is convex: K is Schur-convex in the others. "
    "log α_j = s(p_j − 1[j=y]) − K, where p_j did not grow; y* is no loser before or after.",
    without=Without("the receiver is the likelier of the two", _transfer(other_label("y"))),
)
def peakier_raises_threshold(z: Array, y: Array, s: Array, i: Array, j: Array, part: Array) -> Margin:
    z2 = moved(z, i, j, part)
    fall = np.where(sm.one_hot(z, i), np.inf, realised(z, y, s) - realised(z2, y, s))
    rise = s * (sm.threshold(z2, y, s=s) - sm.threshold(z, y, s=s))
    bound = rounding(size_of(z, s + 1.0) + size_of(z2, s + 1.0))
    return Margin(np.concatenate([fall, rise[:, None]], axis=-1), bound[:, None])


def _fewer(p: tuple[Fraction, ...], y: int, s: Fraction, i: int, j: int, part: Fraction) -> Any:
    """Classes that may lose after the transfer less those that certainly lose before."""
    before, after = exact.log_alphas(p, y, s), exact.log_alphas(moved_exactly(p, i, j, part), y, s)
    rest = [k for k in range(len(p)) if k != y]
    return exact.ball(sum(not after[k] > 0 for k in rest) - sum(bool(before[k] < 0) for k in rest))


@claim(
    "trends.peakier-adds-losers",
    "At fixed p_y, moving mass from a class to a likelier one never lowers the number of losers.",
    source=f"{PAPER}, §3.3 trend 2, read as majorisation",
    kind="theorem",
    expect="refuted",
    instead="trends.peakier-raises-threshold",
    premises=_transfer(other_label("y"), where=_to_a_richer),
    proof="The threshold rises, but the receiver may rise past it.",
    counterexample=Counterexample(
        {
            "p": (Fraction(3, 7), Fraction(2, 7), Fraction(1, 7), Fraction(1, 7)),
            "y": 2,
            "s": Fraction(4),
            "i": 1,
            "j": 3,
            "part": Fraction(1, 2),
        },
        margin=_fewer,
    ),
)
def peakier_adds_losers(z: Array, y: Array, s: Array, i: Array, j: Array, part: Array) -> Margin:
    z2 = moved(z, i, j, part)
    rest, bound = others(z, y), rounding(size_of(z, s) + size_of(z2, s))[:, None]
    before = np.sum(rest & (sm.log_alpha(z, y, s=s) < -bound), axis=-1)
    after = np.sum(rest & (sm.log_alpha(z2, y, s=s) <= bound), axis=-1)
    return Margin(after - before, 0.05)  # a count: the error bounds stand in the two comparisons


def _rises(p: tuple[Fraction, ...], y: int, s: Fraction, i: int, j: int, part: Fraction) -> Any:
    first, second = gains_exactly(p, y, s), gains_exactly(moved_exactly(p, i, j, part), y, s)
    return largest(*(b - a for a, b in zip(first, second, strict=True)))


@claim(
    "trends.peakier-lifts-top-more",
    "At fixed p_y, moving mass from a class to y* makes y* gain more: if not in mass then in factor, if not in factor "
    "then in share.",
    source=f"{PAPER}, §3.3 trend 2",
    kind="theorem",
    expect="refuted",
    instead="trends.peakier-turning-point",
    premises=_transfer(STAR),
    proof="The nearer p_{y*} is to 1 − p_y, the less there is to gain: α_{y*} ≤ 1/p_{y*}.",
    counterexample=Counterexample(
        {
            "p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)),
            "y": 1,
            "s": Fraction(4),
            "i": 0,
            "j": 2,
            "part": Fraction(3, 4),
        },
        margin=_rises,
        note="mass, factor and share all fall",
    ),
)
def peakier_lifts_top_more(z: Array, y: Array, s: Array, i: Array, j: Array, part: Array) -> Margin:
    z2 = moved(z, i, j, part)
    (mass, factor), (mass2, factor2) = gains(z, y, s), gains(z2, y, s)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.log(sm.squeezing_ratio(z2, y, s=s)) - np.log(sm.squeezing_ratio(z, y, s=s))
    measures = np.stack([mass2 - mass, factor2 - factor, np.nan_to_num(share)], axis=-1)
    return Margin(measures.max(axis=-1), rounding(size_of(z, s) + size_of(z2, s)))


HALF = 0.5


def _stays_below_half(z: Array, i: Array, j: Array, part: Array, **_: Array) -> Array:
    p = sm.softmax(z)
    return at(p, i) + part * at(p, j) <= HALF


def _up_to_half(u: Array, logq: Array) -> Array:
    """Log-odds of a class with 1/2 (u = 0, and dense there) or less."""
    p = HALF * (1.0 - 0.99 * u**3)
    return np.log(p) - np.log1p(-p)


@claim(
    "trends.peakier-turning-point",
    "To first order in s, moving δ from j to y* raises the factor of y* exactly if the gap p_{y*} − p_j, averaged over "
    "before and after, is below 1/2, and its gain in mass as long as p_{y*} ends at 1/2 or less.",
    source=f"toyld, the turning point of {PAPER}, §3.3 trend 2, first order",
    kind="theorem",
    premises=_transfer(STAR, z=with_last(_up_to_half), where=_stays_below_half),
    proof="The factor rate is r = p_{y*} − (‖p‖² − p_y) by T2, the mass rate p_{y*} r; δ changes r by "
    "δ(1 − 2(p_{y*} − p_j + δ)), and p_{y*} − p_j + δ is the averaged gap. Mass: d(p_{y*} r)/dδ = "
    "2p_{y*}(1 − p_{y*}) + 2p_{y*}p_j − (‖p‖² − p_y). "
    "For p_{y*} ≤ 1/2 the first term is ≥ p_{y*}, and ‖p‖² − p_y ≤ p_{y*}(1 − p_y). Sharp: at "
    "p_{y*} above 1/2, with the rest in one class other than j and y, the derivative is −(1 − 2p_{y*})² < 0.",
    without=Without("p_{y*} ends at 1/2 or less", _transfer(STAR)),
)
def peakier_turning_point(z: Array, y: Array, s: Array, i: Array, j: Array, part: Array) -> Margin:
    p, z2 = sm.softmax(z), moved(z, i, j, part)
    p_star, delta, before, after = at(p, i), part * at(p, j), at(rates(z, y), i), at(rates(z2, y), i)
    bound = rounding(1.0 + np.max(np.abs(z), axis=-1))
    law = delta * (1.0 - 2.0 * (p_star - at(p, j) + delta))
    mass = (p_star + delta) * after - p_star * before
    return Margin(np.stack([bound - np.abs(after - before - law), mass], axis=-1), bound[:, None])


FACTOR_TURNS, MASS_TURNS = 0.75, (3.0 + 3.0**0.5) / 6.0


def _above_turn(u: Array, logq: Array) -> Array:
    """Log-odds of a class with 3/4 (u = 0, and dense there) or more, up to 1 − e^{−60} or so."""
    rest = (1.0 - FACTOR_TURNS) * np.maximum(1.0 - u**2, 1e-13) ** 2
    return np.log1p(-rest) - np.log(rest)


def _not_last(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
    return np.minimum((u[:, 0] * (size - 1)).astype(int), size - 2)


@claim(
    "trends.peak-lifts-top-less",
    "Moving mass from any class to y* makes y* gain less at every step s: in factor if p_{y*} ≥ 3/4, in mass if "
    "p_{y*} ≥ (3 + √3)/6 ≈ .789, both constants sharp.",
    source=f"toyld, the turning point of {PAPER}, §3.3 trend 2, every step",
    kind="theorem",
    premises=_transfer(STAR, z=with_last(_above_turn), y=Field(lambda size: 1, _not_last)),
    proof="P = p_{y*}, x = p_j, g = P − x, R the other classes, E_a = 1 − e^{−as}. Factor: d log α_{y*}/dδ ≤ 0 iff "
    "(e^{sg} − 1)/s ≥ 2x + Σ R e^{s(R−x)} + p_y e^{s(p_y−1−x)}. The left side is ≥ g e^{sg/2} with g ≥ 1/2, the right "
    "side ≤ (2x + ΣR + p_y) max(1, e^{s(R−x)}) ≤ ½ e^{s/4}, since x + ΣR + p_y ≤ 1/4. Mass: dΔp_{y*}/dδ ≤ 0 iff "
    "P[E_g − 2sx(1 − E_g) − Σ sR(1 − E_{P−R}) − s p_y(1 − E_b)] ≥ F(1 − F), b = 1 + P − p_y, where 1 − F = x E_g + "
    "Σ R E_{P−R} + p_y E_b. Use F ≤ 1, s(1 − E_a) ≤ E_a/a, E_a ≤ max(1, a/g) E_g; what remains is P ≥ x + 2Px/g + "
    "Σ_{R>x} R(1 + P/(P−R)) + Σ_{R≤x} R(2P−R)/g + p_y(1 + 2P − p_y)/g. With C(x) = x + 2Px/(P − x), convex, C(0) = 0: "
    "the terms in x and R are ≤ C(X), X = x + ΣR, and C(X) + (ε − X)(1 + 2P)/(P − X) rises with X up to ε = 1 − P. So "
    "C(ε) ≤ P is enough: 2Pε ≤ (P − ε)², that is 6ε² − 6ε + 1 ≥ 0. Sharp: as s, p_y → 0 with all the rest in j both "
    "derivatives change sign there.",
    without=Without("p_{y*} ≥ 3/4", _transfer(STAR)),
)
def peak_lifts_top_less(z: Array, y: Array, s: Array, i: Array, j: Array, part: Array) -> Margin:
    z2 = moved(z, i, j, part)
    (mass, factor), (mass2, factor2) = gains(z, y, s), gains(z2, y, s)
    high = at(sm.softmax(z), i) >= MASS_TURNS
    value = np.stack([factor - factor2, np.where(high, mass - mass2, np.inf)], axis=-1)
    return Margin(value, rounding(size_of(z, s) + size_of(z2, s))[:, None])


@claim(
    "trends.peak-has-little-to-gain",
    "At every step and for every i ≠ y: log(p'_i/p_i) ≤ s[p_i(1 − p_i) + p_y(1 − p_y)]; so log α_{y*} ≤ "
    "2s p_{y*}(1 − p_{y*}) once p_{y*} ≥ 1/2, which vanishes as the peak nears 1.",
    source=f"toyld, why {PAPER}, §3.3 trend 2 must turn",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "s": step_size()}),
    proof="K(s) ≥ s(‖p‖² − p_y) (T2), so log α_i ≤ s(p_i − ‖p‖² + p_y), and ‖p‖² ≥ p_i² + p_y². If p_{y*} ≥ 1/2 then "
    "p_y ≤ 1 − p_{y*} ≤ 1/2 and p(1 − p) increases there.",
    without=Without(
        "the step is a negative gradient (s > 0)", Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)})
    ),
)
def peak_has_little_to_gain(z: Array, y: Array, s: Array) -> Margin:
    p, rest = sm.softmax(z), np.exp(sm.log_not(z, y))
    change, star = sm.log_alpha(z, y, s=s), sm.runner_up(z, y)
    room = s[:, None] * (p * (1.0 - p) + (at(p, y) * rest)[:, None]) - change
    p_star = at(p, star)
    peak = np.where(p_star >= 0.5, 2.0 * s * p_star * np.exp(sm.log_not(z, star)) - at(change, star), np.inf)
    value = np.concatenate([np.where(others(z, y), room, np.inf), peak[:, None]], axis=-1)
    return Margin(value, rounding(size_of(z, s))[:, None])


EXPONENT = Field(lambda size: 1, lambda u, size, case: 10.0 ** u[:, 0] ** 3)  # 1 … 10, mostly just above 1
COLDER = {"z": logits(), "y": label(), "s": step_size(), "k": EXPONENT}
# Mostly an unlikely class of an uneven p: a likely one, or one of many equals, leaves no losers.
RARE = Field(lambda size: 1, lambda u, size, case: label().decode(1.0 - u**3, size, case))
UNEVEN = {**COLDER, "z": logits(low=1.0), "y": RARE}


def _valley(z: Array, y: Array, **_: Array) -> Array:
    return sm.valley_depth(z, y) >= 0.0


@claim(
    "trends.colder-valley-keeps-losers",
    "If y is a valley (log p_y ≤ −H), then along p ∝ q^k with rising k, at every step s, τ(s) rises and a class that "
    "loses keeps losing.",
    source=f"the true part of {PAPER}, §3.3 trend 2, as temperature",
    kind="theorem",
    premises=Premises(COLDER, where=_valley),
    proof="L = log p, E the mean over p, E' over p' ∝ p e^{sa}, a = p − e_y. A = E'L − EL ≥ 0 in a valley: "
    "dE'L/ds = Cov'(L, p) + p'_y(E'L − L_y), and L_y ≤ E'L persists; it persists in k too, as E(log q) rises. "
    "k dK/dk = E'[(L − EL)(1 + sp)] ≥ A(1 + s E'p) ≥ 0, p and L being comonotone. Loser i: at K = s p_i, with "
    "U = EL − L_i and v = L − L_i, k d(K − s p_i)/dk = A + s E'[p v] − s(E'p − p_i)U, and E'p > p_i (K convex in s, "
    "K(0) = 0). If U ≤ 0: E'[p v] ≥ E'p log(E'p/p_i) > 0. If U > 0: E'[p v] ≥ E'p E'v = E'p(U + A), which leaves "
    "A(1 + s E'p) + s p_i U > 0. So K − s p_i never falls back to 0. (For the losers p_y ≤ p_i does as well: at "
    "K = s p_i, A = Σ p_j (e^{s(p_j−p_i−1[j=y])} − 1)(L_j − L_i) has no negative term.)",
    without=Without("y is a valley", Premises(COLDER)),
)
def colder_valley_keeps_losers(z: Array, y: Array, s: Array, k: Array) -> Margin:
    z2 = z * k[:, None]
    first, second = realised(z, y, s), realised(z2, y, s)
    bound = rounding(size_of(z, s + 1.0) + size_of(z2, s + 1.0))[:, None]
    loser = others(z, y) & (first < -bound)
    rise = s * (sm.threshold(z2, y, s=s) - sm.threshold(z, y, s=s))
    return Margin(np.concatenate([np.where(loser, -second, np.inf), rise[:, None]], axis=-1), bound)


@claim(
    "trends.colder-keeps-losers-first-order",
    "To first order in s, whatever y: a class with p_i < ‖p‖² − p_y stays a loser along p ∝ q^k with rising k.",
    source=f"{PAPER}, §3.3 trend 2, as temperature",
    kind="theorem",
    premises=Premises(UNEVEN, sizes=THREE_OR_MORE),
    proof="With r = p/max p = e^{−kx}: i loses iff r_i + r_y < E_p r. At equality, = e^{−kξ} say, r_i and r_y are "
    "below it and fall at rates x_i, x_y ≥ ξ. E_p r = Z(2k)/Z(k), Z(k) = Σ e^{−kx}, falls at rate 2E_{2k}x − E_k x ≤ "
    "E_{2k}x, as E_k x falls with k, and ξ = (1/k)∫_k^{2k} E_t x dt ≥ E_{2k}x: the left side falls at least as fast.",
    without=Without("k rises", Premises({**UNEVEN, "k": real(0.1, 1.0)})),
)
def colder_keeps_losers_first_order(z: Array, y: Array, s: Array, k: Array) -> Margin:
    z2 = z * k[:, None]
    first, second = rates(z, y), rates(z2, y)
    bound = rounding(1.0 + np.max(np.abs(z2) + np.abs(z), axis=-1))[:, None]
    return Margin(np.where(others(z, y) & (first < -bound), -second, np.inf), bound)


def colder_exactly(p: tuple[Fraction, ...], k: int, /) -> tuple[Fraction, ...]:
    """p^k, normalised."""
    total = sum(x**k for x in p)
    return tuple(x**k / total for x in p)


def _keeps_losing(p: tuple[Fraction, ...], y: int, s: Fraction, k: int) -> Any:
    first, second = exact.log_alphas(p, y, s), exact.log_alphas(colder_exactly(p, k), y, s)
    losers = [a for i, a in enumerate(second) if i != y and first[i] < 0]
    return -largest(*losers) if losers else exact.ball(1)


@claim(
    "trends.colder-keeps-losers",
    "At every step s a class that loses keeps losing along p ∝ q^k with rising k, if y is not the top class.",
    source=f"{PAPER}, §3.3 trend 2, as temperature",
    kind="theorem",
    expect="refuted",
    instead="trends.colder-valley-keeps-losers",
    premises=Premises(COLDER, where=not_the_top),
    proof="True to first order and in valleys. With y just below the top and a third class behind, cooling "
    "empties that class into both: p_y grows, K(s) falls below 0, and a tail class that lost gains.",
    counterexample=Counterexample(
        {
            "p": (Fraction(52, 145), Fraction(51, 145), Fraction(41, 145), Fraction(1, 145)),
            "y": 1,
            "s": Fraction(1, 4),
            "k": 3,
        },
        margin=_keeps_losing,
        note="class 3, p = 1/145",
    ),
)
def colder_keeps_losers(z: Array, y: Array, s: Array, k: Array) -> Margin:
    z2 = z * k[:, None]
    bound = rounding(size_of(z, s) + size_of(z2, s))[:, None]
    loser = others(z, y) & (sm.log_alpha(z, y, s=s) < -bound)
    return Margin(np.where(loser, -sm.log_alpha(z2, y, s=s), np.inf), bound)


def _colder_gains(p: tuple[Fraction, ...], y: int, s: Fraction, k: int) -> Any:
    first, second = gains_exactly(p, y, s)[:2], gains_exactly(colder_exactly(p, k), y, s)[:2]
    return largest(*(b - a for a, b in zip(first, second, strict=True)))


@claim(
    "trends.colder-lifts-top-more",
    "Along p ∝ q^k with rising k, y not being the top class, y* gains more: if not in mass then in factor.",
    source=f"{PAPER}, §3.3 trend 2, as temperature",
    kind="theorem",
    expect="refuted",
    instead="trends.peak-has-little-to-gain",
    premises=Premises(COLDER, where=not_the_top),
    proof="Both vanish as p_{y*} → 1. With two classes Δp_{y*}/s → 2p_{y*}²(1 − p_{y*}), which turns at p_{y*} = 2/3.",
    counterexample=Counterexample(
        {"p": (Fraction(2, 3), Fraction(1, 3)), "y": 1, "s": Fraction(1), "k": 2},
        margin=_colder_gains,
        note="mass and factor both fall",
    ),
)
def colder_lifts_top_more(z: Array, y: Array, s: Array, k: Array) -> Margin:
    z2 = z * k[:, None]
    (mass, factor), (mass2, factor2) = gains(z, y, s), gains(z2, y, s)
    return Margin(np.maximum(mass2 - mass, factor2 - factor), rounding(size_of(z, s) + size_of(z2, s)))
