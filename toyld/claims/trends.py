"""Trend 3 (§3.3, App. E Claim 4): what a rarer penalised class does to the others, to y* and to its share.

Two readings of “smaller p_y”. *Same p*: two choices a, b of the penalised class. *Scaled*: one label, whose logit
alone moves, so the other classes keep their proportions q_j = p_j/(1 − p_y). Measures of how far y* rises: its mass
Δp_{y*}, its factor α_{y*} = p'_{y*}/p_{y*}, its share ρ = Δp_{y*}/|Δp_y|. Notation of `toyld.claims.squeeze`;
Y_j = s(p_{y*} − p_j + 1[j=y]) ≥ 0 throughout, so that 1/α_{y*} = E_p[e^{−Y}].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import label, logits, other_label, step_size
from toyld.claims.tools import at, others, realised

Array = Any
PAPER = "Ren & Sutherland 2025"
THREE_OR_MORE = (3, 4, 8, 50)


def scaled(z: Array, y: Array, less: Array, /) -> Array:
    """Log-probabilities (n, V) with p_y times `less` and the other classes in proportion: z_y moves alone."""
    near, own = np.exp(sm.log_not(z, y)), np.minimum(less * np.exp(at(sm.log_softmax(z), y)), 1.0)
    # 1 − less·p_y: the second form is exact when p_y is near 1, and cancels when `less` is large.
    after = np.log(np.where(near > 0.5, 1.0 - own, less * near - np.expm1(np.log(less))))
    shift = np.where(sm.one_hot(z, y), np.log(less)[:, None], (after - sm.log_not(z, y))[:, None])
    return sm.log_softmax(z) + shift


def scaled_exactly(p: tuple[Fraction, ...], y: int, less: Fraction, /) -> tuple[Fraction, ...]:
    """The same in rationals."""
    rest = (1 - less * p[y]) / (1 - p[y])
    return tuple(less * x if i == y else rest * x for i, x in enumerate(p))


def size_of(z: Array, s: Array, /) -> Array:
    """Scale (n,) of the rounding of log α in closed form: p is known to ε·max|z| relative, and s multiplies it."""
    return np.abs(s) * (2.0 + np.max(np.abs(z), axis=-1))


def gains(z: Array, y: Array, s: Array, /) -> tuple[Array, Array]:
    """(Δp_{y*}, log α_{y*}), each (n,)."""
    star = sm.runner_up(z, y)
    factor = at(sm.log_alpha(z, y, s=s), star)
    return at(sm.softmax(z), star) * np.expm1(factor), factor


def rates(z: Array, y: Array, /) -> Array:
    """d log α_i/ds at s = 0, (n, V), from the Jacobian of the softmax and the residual; times p_i: the rate of p_i."""
    return np.sum(sm.jacobian(z) * sm.residual(z, y)[:, None, :], axis=-1)


def proportions(z: Array, y: Array, /) -> tuple[Array, Array]:
    """(q_{y*}, ‖q‖²) of the other classes' proportions q_j = p_j/(1 − p_y), each (n,)."""
    q = np.where(sm.one_hot(z, y), 0.0, np.exp(sm.log_softmax(z) - sm.log_not(z, y)[:, None]))
    return q.max(axis=-1), np.sum(q * q, axis=-1)


def gains_exactly(p: tuple[Fraction, ...], y: int, s: Fraction, /) -> tuple[Any, Any, Any]:
    """(Δp_{y*}, log α_{y*}, ρ) as balls."""
    star = max((i for i in range(len(p)) if i != y), key=lambda i: p[i])
    after = exact.push(p, y, s)
    up, down = after[star] - exact.ball(p[star]), exact.ball(p[y]) - after[y]
    return up, (after[star] / exact.ball(p[star])).log(), up / down


def largest(*values: Any) -> Any:
    """The largest of some balls."""
    return functools.reduce(lambda a, b: a.max(b), values)


SMALLER = Field(lambda size: 1, lambda u, size, case: 10.0 ** (-4.0 * u[:, 0]))


def _larger(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
    """Up to p_y^{−.9}, so that p_y·less < 1; 1 where p_y is so near 1 that a float cannot hold the difference."""
    room = sm.log_not(case["z"], case["y"]) > -14.0
    return np.where(room, np.exp(-0.9 * u[:, 0] * at(sm.log_softmax(case["z"]), case["y"])), 1.0)


LARGER = Field(lambda size: 1, _larger)
SCALED = {"z": logits(), "y": label(), "s": step_size(), "less": SMALLER}
TWO_LABELS = {"z": logits(), "a": label(), "b": other_label("a"), "s": step_size()}


def _a_is_rarer(z: Array, a: Array, b: Array, s: Array) -> Array:
    return at(z, a) <= at(z, b)


def same_top(z: Array, a: Array, b: Array, s: Array) -> Array:
    """a is rarer than b, and y* is the same class for both."""
    return (at(z, a) < at(z, b)) & (sm.runner_up(z, a) == sm.runner_up(z, b))


def _rarer(p: tuple[Fraction, ...], b: int) -> list[int]:
    """Labels a rarer than b for which y* is the same class."""
    top = p.index(max(p))
    return [] if b == top else [a for a in range(len(p)) if p[a] < p[b]]


@claim(
    "trends.rarer-label-squeezes-others-more",
    "For one p and two labels with p_a ≤ p_b: pushing a down leaves every other class, y* included, at or below where "
    "pushing b down does, all by the same factor e^{K_a − K_b}; and a falls by a larger factor than b would.",
    source=f"toyld, F7; the true part of {PAPER}, §3.3 trend 3 and App. E Claim 4",
    kind="theorem",
    premises=Premises(TWO_LABELS, where=_a_is_rarer, sizes=THREE_OR_MORE),
    proof="log α_i = s p_i − K_y for i ≠ y with e^{K_y} = Σ_j p_j e^{s p_j} − (1 − e^{−s}) p_y e^{s p_y}, and x e^{sx} "
    "increases: K_a ≥ K_b. For the labels, s(p_a − 1) − K_a ≤ s(p_b − 1) − K_b.",
    without=Without("a is the rarer label", Premises(TWO_LABELS, sizes=THREE_OR_MORE)),
)
def rarer_label_squeezes_others_more(z: Array, a: Array, b: Array, s: Array) -> Margin:
    low, high = realised(z, a, s), realised(z, b, s)
    bound = rounding(size_of(z, s + 1.0))
    gap = np.where(others(z, a, b), high - low, np.nan)
    spread = bound - (np.nanmax(gap, axis=-1) - np.nanmin(gap, axis=-1))
    labels = at(sm.log_alpha(z, b, s=s), b) - at(sm.log_alpha(z, a, s=s), a)
    return Margin(np.stack([np.nanmin(gap, axis=-1), spread, labels], axis=-1), bound[:, None])


@claim(
    "trends.rarer-label-lifts-top-more",
    "For one p, pushing down the rarer of two labels lifts y* more.",
    source=f"{PAPER}, §3.3 trend 3, App. E Claim 4, second half (F7)",
    kind="theorem",
    expect="refuted",
    instead="trends.rarer-label-squeezes-others-more",
    premises=Premises(TWO_LABELS, where=same_top, sizes=THREE_OR_MORE),
    proof="Never true: the rarer label lifts y* less, in mass and in factor (the two agree, p_{y*} being the same).",
    counterexample=Counterexample(
        {"p": (Fraction(2, 5), Fraction(2, 5), Fraction(1, 5)), "b": 1, "a": 2, "s": Fraction(1)},
        margin=lambda p, a, b, s: gains_exactly(p, a, s)[1] - gains_exactly(p, b, s)[1],
    ),
)
def rarer_label_lifts_top_more(z: Array, a: Array, b: Array, s: Array) -> Margin:
    return Margin(gains(z, a, s)[1] - gains(z, b, s)[1], rounding(size_of(z, s)))


@claim(
    "trends.scaled-losers-fall-more",
    "With the others in proportion, a smaller p_y raises τ(s)/(1 − p_y): the set of losers only grows, and each of "
    "them falls by a larger factor and loses more mass.",
    source=f"the true part of {PAPER}, §3.3 trend 3 and App. E Claim 4, first half, scaled",
    kind="theorem",
    premises=Premises(SCALED),
    proof="Let u = 1 − p_y, p_j = u q_j: log α_j = u(s q_j − K/u), so all follows if K/u rises with u. "
    "u dK/du = Σ_{j≠y} p'_j (1 + s p_j) − p'_y (u/p_y)(1 + s p_y), and K ≤ Σ_{j≠y} p'_j s p_j − p'_y s u (K is convex "
    "in s, K(0) = 0). Subtract: u dK/du − K ≥ 1 − p'_y − p'_y u/p_y = 1 − p'_y/p_y > 0.",
    without=Without("p_y gets smaller", Premises({**SCALED, "less": LARGER})),
)
def scaled_losers_fall_more(z: Array, y: Array, s: Array, less: Array) -> Margin:
    z2 = scaled(z, y, less)
    first, second = realised(z, y, s), realised(z2, y, s)
    bound = rounding(size_of(z, s + 1.0) + size_of(z2, s + 1.0))
    loser = others(z, y) & (first < -bound[:, None])
    mass = sm.softmax(z) * np.expm1(first) - sm.softmax(z2) * np.expm1(second)
    u, u2 = np.exp(sm.log_not(z, y)), np.exp(sm.log_not(z2, y))
    level = u * sm.threshold(z2, y, s=s) - u2 * sm.threshold(z, y, s=s)
    value = [np.where(loser, first - second, np.inf), np.where(loser, mass, np.inf), (s * level)[:, None]]
    return Margin(np.concatenate(value, axis=-1), bound[:, None])


def _lesser(p: tuple[Fraction, ...], y: int, s: Fraction, less: Fraction) -> Any:
    """Worst over the classes less likely than y* of log α_i − log α_i at the smaller p_y."""
    top = max(x for i, x in enumerate(p) if i != y)
    first, second = exact.log_alphas(p, y, s), exact.log_alphas(scaled_exactly(p, y, less), y, s)
    falls = [a - b for i, (a, b) in enumerate(zip(first, second, strict=True)) if i != y and p[i] < top]
    return -largest(*(-a for a in falls)) if falls else exact.ball(1)


@claim(
    "trends.scaled-others-fall-more",
    "With the others in proportion, a smaller p_y lowers every class less likely than y* by a larger factor.",
    source=f"{PAPER}, §3.3 trend 3, App. E Claim 4, first half, scaled",
    kind="theorem",
    expect="refuted",
    instead="trends.scaled-losers-fall-more",
    premises=Premises(SCALED, sizes=THREE_OR_MORE),
    proof="Losers do fall more; a class that gains may gain more: at large p_y all gain, and the less they hold the "
    "less there is to multiply.",
    counterexample=Counterexample(
        {
            "p": (Fraction(10, 13), Fraction(2, 13), Fraction(1, 13)),
            "y": 0,
            "s": Fraction(1, 16),
            "less": Fraction(1, 2),
        },
        margin=_lesser,
    ),
)
def scaled_others_fall_more(z: Array, y: Array, s: Array, less: Array) -> Margin:
    z2 = scaled(z, y, less)
    lesser = others(z, y) & (z < at(z, sm.runner_up(z, y))[:, None])
    change = np.where(lesser, sm.log_alpha(z, y, s=s) - sm.log_alpha(z2, y, s=s), np.inf)
    return Margin(change, rounding(size_of(z, s) + size_of(z2, s))[:, None])


@claim(
    "trends.scaled-rarer-lifts-top-more",
    "With the others in proportion, a smaller p_y lifts y* more, if not in mass then in factor.",
    source=f"{PAPER}, §3.3 trend 3, App. E Claim 4, second half, scaled (F7)",
    kind="theorem",
    expect="refuted",
    instead="trends.scaled-top-criterion",
    premises=Premises(SCALED),
    proof="As p_y → 0 there is nothing left to take: at V = 2, y* cannot gain more than p_y.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "s": Fraction(1), "less": Fraction(1, 2)},
        margin=lambda p, y, s, less: largest(
            *(
                b - a
                for a, b in zip(
                    gains_exactly(p, y, s)[:2], gains_exactly(scaled_exactly(p, y, less), y, s)[:2], strict=True
                )
            )
        ),
        note="mass and factor both fall",
    ),
)
def scaled_rarer_lifts_top_more(z: Array, y: Array, s: Array, less: Array) -> Margin:
    z2 = scaled(z, y, less)
    (mass, factor), (mass2, factor2) = gains(z, y, s), gains(z2, y, s)
    return Margin(np.maximum(mass2 - mass, factor2 - factor), rounding(size_of(z, s) + size_of(z2, s)))


@claim(
    "trends.scaled-top-criterion",
    "With the others in proportion, log α_{y*} grows with p_y exactly if α_{y*} M < 1 and Δp_{y*} exactly if "
    "α_{y*}² M < 1, where M = e^{−Y_y} + E_p[Y e^{−Y}]: ∂ log α_{y*}/∂z_y = p_y(1 − α_{y*} M), "
    "∂Δp_{y*}/∂z_y = p_{y*} p_y (1 − α_{y*}² M).",
    source="toyld, F7; at p_y → 0 the first is E_q[(1 − x)e^{−x}] > e^{−s(1+q_*)}, x = s(q_* − q)",
    kind="identity",
    premises=Premises({"z": logits(), "y": label(), "s": step_size()}),
    proof="Scaling the others is moving z_y alone: ∂p_j/∂z_y = p_j(1[j=y] − p_y), hence ∂Y_j/∂z_y = −p_y Y_j for every "
    "j. With F = 1/α_{y*} = E_p[e^{−Y}]: ∂F/∂z_y = p_y(e^{−Y_y} − F) + p_y E_p[Y e^{−Y}] = −p_y(F − M). Divide by −F; "
    "and Δp_{y*} = p_{y*}(1/F − 1), ∂p_{y*}/∂z_y = −p_{y*} p_y.",
    cost=4,
)
def scaled_top_criterion(z: Array, y: Array, s: Array) -> Margin:
    import torch

    leaf, labels, steps = torch.tensor(z, requires_grad=True), torch.tensor(y), torch.tensor(s)
    star = sm.runner_up(leaf, labels)[:, None]
    factor = torch.take_along_dim(sm.log_alpha(leaf, labels, s=steps), star, dim=-1)[:, 0]
    mass = torch.take_along_dim(sm.softmax(leaf), star, dim=-1)[:, 0] * torch.expm1(factor)
    slopes = [at(torch.autograd.grad(f.sum(), leaf, retain_graph=True)[0].numpy(), y) for f in (factor, mass)]
    p = sm.softmax(z)
    p_y, p_star = at(p, y), at(p, sm.runner_up(z, y))
    big_y = s[:, None] * (p_star[:, None] - p + sm.one_hot(z, y))
    alpha = 1.0 / np.sum(p * np.exp(-big_y), axis=-1)
    m = np.exp(-at(big_y, y)) + np.sum(p * big_y * np.exp(-big_y), axis=-1)
    scale = p_y * size_of(z, 1.0 + s) * (1.0 + alpha * m)
    first = identity(slopes[0], p_y * (1.0 - alpha * m), scale)
    second = identity(slopes[1], p_star * p_y * (1.0 - alpha**2 * m), scale * p_star * alpha)
    return Margin(np.stack([first.value / first.bound, second.value / second.bound], axis=-1), np.ones((len(z), 1)))


@claim(
    "trends.scaled-turning-point",
    "To first order in s, with the others in proportion, y* gains most mass at p_y = 1 − 2Q/3 and its largest factor "
    "at p_y = 1 − Q/2, Q = (1 + q_{y*})/(1 + ‖q‖²): a smaller p_y lifts y* less below that point and more above it.",
    source=f"toyld, the turning point of {PAPER}, §3.3 trend 3, first order",
    kind="theorem",
    premises=Premises(SCALED),
    proof="With u = 1 − p_y the rates are p_{y*} − ‖p‖² + p_y = u(1 + q_* − u(1 + ‖q‖²)) for the factor and u q_* "
    "times it for the mass: a quadratic and a cubic with one maximum in u. As q_*² ≤ ‖q‖² ≤ q_*, (1 + q_*)/(1 + ‖q‖²) "
    "lies between 1 and the maximum of (1 + q)/(1 + q²), (1 + √2)/2 at q = √2 − 1: the points lie in [.195, 1/3] and "
    "in [.396, 1/2].",
    without=Without("p_y gets smaller", Premises({**SCALED, "less": LARGER})),
)
def scaled_turning_point(z: Array, y: Array, s: Array, less: Array) -> Margin:
    z2 = scaled(z, y, less)
    star = sm.runner_up(z, y)
    factor, factor2 = at(rates(z, y), star), at(rates(z2, y), star)
    mass, mass2 = at(sm.softmax(z), star) * factor, at(sm.softmax(z2), star) * factor2
    before, after = at(sm.softmax(z), y), at(sm.softmax(z2), y)
    top, square = proportions(z, y)
    bound = rounding(size_of(z, 1.0) + size_of(z2, 1.0))
    columns = []
    for at_first, at_last, part, low, high in (
        (mass, mass2, 2.0 / 3.0, 1.0 - (1.0 + 2**0.5) / 3.0, 1.0 / 3.0),
        (factor, factor2, 1.0 / 2.0, 1.0 - (1.0 + 2**0.5) / 4.0, 1.0 / 2.0),
    ):
        turn = 1.0 - part * (1.0 + top) / (1.0 + square)
        below, above = np.maximum(before, after) <= turn, np.minimum(before, after) >= turn
        columns += [np.where(below, at_first - at_last, np.where(above, at_last - at_first, np.inf))]
        columns += [turn - low, high - turn]
    return Margin(np.stack(columns, axis=-1), bound[:, None])


def with_last(log_odds: Callable[[Array, Array], Array], rest: Field | None = None) -> Field:
    """Logits whose last class has the log-odds log_odds(u, log q) (n, 1), q being the others' proportions."""
    field = logits() if rest is None else rest

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        logq = sm.log_softmax(field.decode(u[:, 1:], size - 1, case))
        return np.concatenate([logq, log_odds(u[:, :1], logq)], axis=-1)

    return Field(lambda size: 1 + field.width(size - 1), decode)


def factor_turns(top: Array, square: Array) -> Array:
    """The p_y at which log α_{y*} turns to first order, from `proportions`."""
    return 1.0 - (1.0 + top) / (2.0 + 2.0 * square)


def _up_to_turn(u: Array, logq: Array) -> Array:
    """Log-odds of a p_y from the turning point (u = 0, and dense there) down to e^{−50} of it."""
    q = np.exp(logq)
    turn = factor_turns(q.max(axis=-1, keepdims=True), np.sum(q * q, axis=-1, keepdims=True))
    p_y = turn * np.exp(-50.0 * u**3)
    return np.log(p_y) - np.log1p(-p_y)


LAST = Field(lambda size: 0, lambda u, size, case: np.full(len(u), size - 1))
SLIGHTLY_SMALLER = Field(lambda size: 1, lambda u, size, case: 10.0 ** (-4.0 * u[:, 0] ** 3))
SMALL_STEP = {"z": logits(), "y": label(), "s": step_size(1e-6, 1.0), "less": SLIGHTLY_SMALLER}
BELOW_TURN = {**SMALL_STEP, "z": with_last(_up_to_turn), "y": LAST}


@claim(
    "trends.scaled-rarer-lifts-top-less",
    "With the others in proportion and s ≤ 1, y* gains less when p_y is smaller: in factor for all "
    "p_y ≤ 1 − (1 + q_{y*})/(2 + 2‖q‖²), which is never below .396, and in mass at least for p_y ≤ 1/12.",
    source="toyld, F7, finite step",
    kind="theorem",
    premises=Premises(BELOW_TURN),
    proof="Let u = 1 − p_y, σ = su ≤ 1, β = 1 + q_*, c = q_* − ‖q‖² ≤ q_*(1 − q_*), x = q_* − q, ε = e^{−σβ}. Factor: "
    "1 > αM reads E_q[(1 − σx)e^{−σx}] > ε(1 + σβ p_y/u). As (1 − t)e^{−t} ≥ 1 − 2t and p_y/u ≤ (β − 2c)/β (the "
    "premise), (1 − 2σc)e^{σβ} ≥ 1 + σ(β − 2c) is enough. The difference has value and slope 0 at σ = 0, is first "
    "convex, then concave (β ≥ 4c), and is ≥ 0 at σ = 1 for every q_*, c = q_*(1 − q_*) being the worst. Mass: "
    "1 > α²M reads F² > u E_q[σx e^{−σx}] + ε(1 + σβ p_y); put F ≥ u(1 − σc) + p_y ε and E_q[…] ≤ σc. Times e^{σβ} the "
    "difference is 0 at σ = 0 with slope β − 3(p_y β + uc) > 0, first convex, then concave; at σ = 1 it is worst at "
    "p_y = 1/12 and c = q_*(1 − q_*), where it is > .05 for every q_*.",
    without=Without("p_y is below the turning point", Premises(SMALL_STEP)),
)
def scaled_rarer_lifts_top_less(z: Array, y: Array, s: Array, less: Array) -> Margin:
    z2 = scaled(z, y, less)
    (mass, factor), (mass2, factor2) = gains(z, y, s), gains(z2, y, s)
    light = at(sm.softmax(z), y) <= 1.0 / 12.0
    value = np.stack([factor - factor2, np.where(light, mass - mass2, np.inf)], axis=-1)
    return Margin(value, rounding(size_of(z, s) + size_of(z2, s))[:, None])


def _with_rare_label(rest: Field) -> dict[str, Field]:
    """Logits whose last class, the label, holds between e^{−60} and e^{−30}."""
    return {"z": with_last(lambda u, logq: -30.0 - 30.0 * u, rest), "y": LAST, "s": step_size()}


def _short_or_heavy(z: Array, y: Array, s: Array) -> Array:
    return (s <= 14.0) | (at(sm.softmax(z), sm.runner_up(z, y)) >= 1.0 / 7.0)


ALMOST_FLAT = Field(lambda size: 1, lambda u, size, case: np.where(np.arange(size) == 0, 3.0 * u, 0.0))


@claim(
    "trends.vanishing-label",
    "As p_y → 0 the factor α_{y*} falls towards its limit if s ≤ 14 or q_{y*} ≥ 1/7: only steps above 14 on a softmax "
    "with all others below 1/7 can make a vanishing label lift y* more.",
    source="toyld, F7, when its criterion can fail",
    kind="theorem",
    premises=Premises(_with_rare_label(logits()), where=_short_or_heavy),
    proof="To show: E_q[(1 − x)e^{−x}] > e^{−s(1+q)} with x = s(q − q_j), q = q_{y*}. If sq > 2, then q ≥ 1/7 either "
    "way; (1 − x)e^{−x} ≥ −e^{−2} leaves at least q − (1 − q)e^{−2} ≥ .0268 > e^{−4} > e^{−s−sq}. If sq = t ≤ 2, then "
    "s ≤ 14 either way; (1 − x)e^{−x} falls on [0, t], so times e^t the left is at least (t/s)e^t + (1 − t/s)(1 − t) = "
    "1 − t + (t/s)(e^t − 1 + t), to be compared with e^{−s}. For s ≤ 7 use e^t ≥ 1 + t: ≥ 1 − t + 2t²/s ≥ 1 − s/8 > "
    "e^{−s}; for 7 ≤ s ≤ 14 it is at least 1 − t + t(e^t − 1 + t)/14 > .03 > e^{−7}.",
    without=Without("s ≤ 14 or q_{y*} ≥ 1/7", Premises(_with_rare_label(ALMOST_FLAT), sizes=(51,))),
)
def vanishing_label(z: Array, y: Array, s: Array) -> Margin:
    p, star = sm.softmax(z), sm.runner_up(z, y)
    big_y = s[:, None] * (at(p, star)[:, None] - p + sm.one_hot(z, y))
    m = np.exp(-at(big_y, y)) + np.sum(p * big_y * np.exp(-big_y), axis=-1)
    slope = 1.0 - np.exp(at(sm.log_alpha(z, y, s=s), star)) * m
    # p_y is not 0: each of the two terms is off by less than (1 + s)² p_y, relative to the limit.
    return Margin(slope, rounding(size_of(z, 1.0 + s)) + 4.0 * (1.0 + s) ** 2 * at(p, y))
