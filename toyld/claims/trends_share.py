"""Trend 3 in its ratio form (T12): the share ρ = Δp_{y*}/|Δp_y| that y* gets of the mass taken from y.

Notation, readings of “smaller p_y” and measures of `toyld.claims.trends`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, rounding
from toyld.claims.spaces import label, logits, other_label, real, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, at, others
from toyld.claims.trends import LARGER, SCALED, TWO_LABELS, gains, gains_exactly, same_top, scaled, size_of

Array = Any


def share_rounding(z: Array, y: Array, s: Array, /) -> Array:
    """Scale (n,) of the rounding of log ρ: what is uncertain in 1 − 1/α_{y*}, over itself."""
    _, factor = gains(z, y, s)
    with np.errstate(divide="ignore"):
        return size_of(z, 1.0 + s * (1.0 + at(sm.softmax(z), sm.runner_up(z, y)) / -np.expm1(-factor)))


def _in_range(z: Array, y: Array, **_: Array) -> Array:
    """1 − p_y above e^{−300}: below it what y loses, (1 − p_y)² or so, is not a float64."""
    return sm.log_not(z, y) > -300.0


STAR = Field(lambda size: 0, lambda u, size, case: sm.runner_up(case["z"], case["y"]))


@claim(
    "trends.rarer-label-gives-larger-share",
    "For one p, pushing down the rarer of two labels gives y* the larger share ρ of what the label loses.",
    source="toyld, T12 read at one p",
    kind="theorem",
    expect="refuted",
    instead="trends.share-falls-with-label",
    premises=Premises(TWO_LABELS, where=same_top, sizes=THREE_OR_MORE),
    proof="The classes left beside y* differ between the two: if they are tied with y*, they get as much as y*.",
    counterexample=Counterexample(
        {"p": (Fraction(2, 5), Fraction(2, 5), Fraction(1, 5)), "b": 1, "a": 2, "s": Fraction(1)},
        margin=lambda p, a, b, s: gains_exactly(p, a, s)[2] - gains_exactly(p, b, s)[2],
        note="ρ = 1/2 for the rarer label, at least 2/3 for the other",
    ),
)
def rarer_label_gives_larger_share(z: Array, a: Array, b: Array, s: Array) -> Margin:
    change = np.log(sm.squeezing_ratio(z, a, s=s)) - np.log(sm.squeezing_ratio(z, b, s=s))
    return Margin(change, rounding(share_rounding(z, a, s) + share_rounding(z, b, s)))


@claim(
    "trends.share-law",
    "ρ = p_{y*}(p_y + d)/(p_y(1 − p_y − d)), with D = Σ_{j≠y} p_j(1 − e^{−s(p_{y*}−p_j)}) and "
    "d = D/(1 − e^{−s(1+p_{y*}−p_y)}); so q_{y*}(1 + D/p_y) ≤ ρ ≤ 1 + d/p_y: ρ diverges like 1/p_y as p_y → 0, unless "
    "all others are tied (then it is 1/(V − 1)).",
    source="toyld, T12 with a finite bound; squeeze.runner-up-share sharpened to q_{y*} = p_{y*}/(1 − p_y)",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "s": step_size(), "i": STAR}, where=_in_range),
    proof="With F = 1/α_{y*} and E = e^{−Y_y}: α_y = E/F, so ρ = (p_{y*}/p_y)(1 − F)/(F − E); 1 − F = D + p_y(1 − E), "
    "F − E = (1 − p_y)(1 − E) − D. Lower bound: d ≥ D and 1 − p_y − d ≤ 1 − p_y. Upper bound: 1 − p_y − d = "
    "Σ_{j≠y} p_j(1 − (1 − e^{−s(p_*−p_j)})/(1 − E)) ≥ p_*.",
    without=Without(
        "i is the largest class other than y",
        Premises(
            {"z": logits(), "y": label(), "s": step_size(), "i": other_label("y")}, where=_in_range, sizes=THREE_OR_MORE
        ),
    ),
)
def share_law(z: Array, y: Array, s: Array, i: Array) -> Margin:
    p, logp, change = sm.softmax(z), sm.log_softmax(z), sm.log_alpha(z, y, s=s)
    log_p_y, p_star = at(logp, y), at(p, sm.runner_up(z, y))
    gap = np.where(others(z, y), p_star[:, None] - p, 0.0)
    lost = -np.sum(p * np.expm1(-s[:, None] * gap), axis=-1)
    d = lost / -np.expm1(-s * (p_star + np.exp(sm.log_not(z, y))))
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = at(logp, i) - log_p_y + np.log(np.expm1(at(change, i))) - np.log(-np.expm1(at(change, y)))
        rho = np.where(at(change, i) > 0.0, rho, -1e3)  # a class that falls has a negative share
        surplus, excess = np.log(np.exp(log_p_y) + d), np.log(np.exp(log_p_y) + lost)
    left = np.sum(np.where(others(z, y), p, 0.0), axis=-1) - d
    law = at(logp, i) - log_p_y + surplus - np.log(left)
    bound = rounding(share_rounding(z, y, s) * (1.0 + np.exp(sm.log_not(z, y)) / left))
    below = at(logp, i) - sm.log_not(z, y) + excess - log_p_y
    named = np.where(i == sm.runner_up(z, y), np.abs(np.log(sm.squeezing_ratio(z, y, s=s)) - law), 0.0)
    value = [bound - np.abs(rho - law), rho - below, surplus - log_p_y - rho, bound - named]
    return Margin(np.stack(value, axis=-1), bound[:, None])


@claim(
    "trends.share-falls-with-label",
    "With the others in proportion the share ρ of y* never falls when p_y gets smaller or the step larger, and rises "
    "strictly unless all others are tied.",
    source="toyld, T12, observed there, proved here; the ratio version of " + f"{PAPER}, App. E Claim 4",
    kind="theorem",
    premises=Premises({**SCALED, "more": real(1.0, 10.0)}, where=_in_range),
    proof="In trends.share-law put u = 1 − p_y, d = u h, h = E_q[(1 − e^{−su(q_*−q)})/(1 − e^{−su(1+q_*)})] < 1: "
    "ρ/q_* = 1/(1 − h) + (u/(1 − u)) h/(1 − h), which increases in h and in u. And h increases with su: "
    "the log-slope of (1 − e^{−at})/(1 − e^{−bt}) in t is a/(e^{at} − 1) − b/(e^{bt} − 1) > 0 for a < b.",
    without=Without("p_y gets smaller", Premises({**SCALED, "more": real(1.0, 10.0), "less": LARGER}, where=_in_range)),
)
def share_falls_with_label(z: Array, y: Array, s: Array, less: Array, more: Array) -> Margin:
    z2 = scaled(z, y, less)
    rho = np.log(sm.squeezing_ratio(z, y, s=s))
    value = [np.log(sm.squeezing_ratio(z2, y, s=s)) - rho, np.log(sm.squeezing_ratio(z, y, s=s * more)) - rho]
    here = share_rounding(z, y, s)
    bound = [rounding(here + share_rounding(z2, y, s)), rounding(here + share_rounding(z, y, s * more))]
    return Margin(np.stack(value, axis=-1), np.stack(bound, axis=-1))
