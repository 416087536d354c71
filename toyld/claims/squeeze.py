"""The squeezing effect of one negative gradient (§3.3, App. E): Lemma 1, Claims 1-3 and 5, theorems T1-T5.

Notation: p = π before, p' after z' = z + s(p − e_y), y the penalised class, y* = argmax_{i≠y} p_i,
K(s) = log Σ_j p_j e^{s(p_j − 1[j=y])}, τ(s) = K(s)/s, so that log(p'_i/p_i) = s(p_i − 1[i=y]) − K(s).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import label, logits, negative_step, other_label, real, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, agree, at, least, others, realised, span

Array = Any


@claim(
    "squeeze.lemma-1",
    "After one update with coefficient c on y, p'_i/p_i = 1/Σ_j p_j exp{−s c[(p_j − p_i) − (1[j=y] − 1[i=y])]}.",
    source=f"{PAPER}, App. E, Lemma 1",
    kind="identity",
    premises=Premises({"z": logits(), "y": label(), "s": step_size(), "c": real(-1.0, 1.0)}),
    proof="p'_i = p_i e^{d_i}/Σ_j p_j e^{d_j} with d = −s c(p − e_y); divide through by e^{d_i}.",
)
def lemma_1(z: Array, y: Array, s: Array, c: Array) -> Margin:
    p, hit = sm.softmax(z), sm.one_hot(z, y).astype(float)
    d = -(s * c)[:, None] * (p - hit)
    exponent = sm.log_softmax(z)[:, None, :] + d[:, None, :] - d[:, :, None]
    largest = exponent.max(axis=-1)
    lemma = -(largest + np.log(np.exp(exponent - largest[..., None]).sum(axis=-1)))
    done = realised(z, y, s, c)
    return identity(done, lemma, span(z, s, done))


@claim(
    "squeeze.penalised-falls",
    "The penalised class always falls: p'_y < p_y for every p with 0 < p_y < 1 and every step s > 0.",
    source=f"{PAPER}, §3.3 guarantee, App. E Claim 1",
    kind="theorem",
    premises=negative_step(),
    proof="log(p_y/p'_y) = log(p_y + Σ_{j≠y} p_j e^{s(p_j + 1 − p_y)}): every exponent is > 0.",
    without=Without(
        "the gradient is negative (s > 0)",
        Premises({"z": logits(), "y": label(), "s": real(-2.0, 2.0)}, where=lambda z, y, s: s != 0.0),
    ),
)
def penalised_falls(z: Array, y: Array, s: Array) -> Margin:
    change = at(sm.log_alpha(z, y, s=s), y)
    return Margin(-change, rounding(np.abs(change) + np.abs(s)))


RUNNER_UP = Field(lambda size: 0, lambda u, size, case: sm.runner_up(case["z"], case["y"]))


@claim(
    "squeeze.runner-up-rises",
    "The most likely class other than y always rises: p'_{y*} > p_{y*}, for every p and every s > 0.",
    source=f"{PAPER}, §3.3 guarantee, App. E Claim 2",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "s": step_size(), "i": RUNNER_UP}),
    proof="log(p_{y*}/p'_{y*}) = log Σ_j p_j e^{s(p_j − p_{y*} − 1[j=y])}: every exponent is ≤ 0, that of y is < 0 "
    "(p_y − p_{y*} − 1 < 0).",
    without=Without(
        "i is the largest class other than y",
        Premises({"z": logits(), "y": label(), "s": step_size(), "i": other_label("y")}, sizes=THREE_OR_MORE),
    ),
)
def runner_up_rises(z: Array, y: Array, s: Array, i: Array) -> Margin:
    change, done = at(sm.log_alpha(z, y, s=s), i), realised(z, y, s)
    # The closed form may itself lean on y*; the update really taken does not.
    bound = np.stack([rounding(np.abs(change) + s), rounding(span(z, s, done)[:, 0])], axis=-1)
    return Margin(np.stack([change, at(done, i)], axis=-1), bound)


FLAT = Field(lambda size: 1, lambda u, size, case: np.tile(20.0 * u - 10.0, (1, size)))


@claim(
    "squeeze.uniform-shares-equally",
    "From a uniform p every class other than y gains, all by the same factor.",
    source=f"{PAPER}, App. E Claim 3A",
    kind="theorem",
    premises=Premises(
        {
            "z": FLAT,
            "y": Field(lambda size: 1, lambda u, size, case: (u[:, 0] * (size - 1)).astype(int)),
            "s": step_size(),
        }
    ),
    proof="log(p'_i/p_i) = s p_i − K(s) depends on i ≠ y through p_i alone; all p_i = p_{y*}, and y* rises.",
    without=Without("p is uniform", negative_step(sizes=THREE_OR_MORE)),
)
def uniform_shares_equally(z: Array, y: Array, s: Array) -> Margin:
    change = sm.log_alpha(z, y, s=s)
    rest = others(z, y)
    high = np.where(rest, change, -np.inf).max(axis=-1)
    low = np.where(rest, change, np.inf).min(axis=-1)
    bound = rounding(np.abs(high) + s)
    return Margin(np.stack([bound - (high - low), low], axis=-1), bound[:, None])


@claim(
    "squeeze.threshold-law",
    "For i ≠ y, log(p'_i/p_i) = s(p_i − τ(s)) with τ(s) = (1/s) log Σ_j p_j e^{s(p_j − 1[j=y])}: "
    "class i gains exactly if p_i > τ(s).",
    source="toyld, T1, from Lemma 1 of " + PAPER,
    kind="identity",
    premises=negative_step(),
    proof="Lemma 1 with d_i = s p_i for i ≠ y; K(s) = s τ(s) does not depend on i.",
)
def threshold_law(z: Array, y: Array, s: Array) -> Margin:
    done = realised(z, y, s)
    law = s[:, None] * (sm.softmax(z) - sm.threshold(z, y, s=s)[:, None])
    margin = identity(done, law, span(z, s, done))
    least_seen = np.log(1e-300)  # below it α is no normal float64
    factor = identity(np.log(np.maximum(sm.alpha(z, y, s=s), 1e-300)), np.maximum(done, least_seen), span(z, s, done))
    # A class on the wrong side has a margin of minus its distance from the threshold.
    side = np.where(others(z, y), law, done) * np.where(sm.winners(z, y, s=s), 1.0, -1.0)
    value = [np.where(others(z, y), margin.value, np.inf), factor.value, side]
    return Margin(np.concatenate(value, axis=-1), margin.bound)


@claim(
    "squeeze.threshold-limit",
    "0 ≤ τ(s) − (‖p‖² − p_y) ≤ s(1 + p_{y*} − p_y)²/8: to first order the winners are {i : p_i > ‖p‖² − p_y}.",
    source=f"toyld, T2; sharpens {PAPER}, App. E Claim 3B",
    kind="theorem",
    premises=negative_step(),
    proof="K(0) = 0, K'(0) = ⟨p, p − e_y⟩ = ‖p‖² − p_y, and 0 ≤ K'' ≤ range²/4 (Popoviciu), where p − e_y has range "
    "p_{y*} + 1 − p_y; integrate twice and divide by s.",
    without=Without(
        "the step is a negative gradient (s > 0)",
        Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)}),
    ),
)
def threshold_limit(z: Array, y: Array, s: Array) -> Margin:
    gap = sm.threshold(z, y, s=s) - sm.threshold_limit(z, y)
    reach = np.pi / sm.safe_step(z, y)
    return Margin(np.stack([gap, s * reach**2 / 8.0 - gap], axis=-1), rounding(1.0 + np.abs(s))[:, None])


@claim(
    "squeeze.nobody-else-loses",
    "Every class other than y gains or stays, at the finite step s, if and only if K(s) ≤ s·min_{i≠y} p_i.",
    source="toyld, T2, finite step",
    kind="theorem",
    premises=negative_step(),
    proof="By T1 the smallest factor among i ≠ y belongs to the smallest p_i; it is ≥ 1 iff min p_i ≥ τ(s).",
    without=Without("s > 0", Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)})),
)
def nobody_else_loses(z: Array, y: Array, s: Array) -> Margin:
    done = realised(z, y, s)
    worst = np.where(others(z, y), done, np.inf).min(axis=-1)
    rule = s * (np.where(others(z, y), sm.softmax(z), np.inf).min(axis=-1) - sm.threshold(z, y, s=s))
    bound = rounding(span(z, s, done)[:, 0])
    return Margin(agree(worst, rule), bound)


@claim(
    "squeeze.heavy-label-suffices",
    "If p_y ≥ ‖p‖² then no class other than y loses, whatever the step.",
    source="toyld, T2 read at a finite step",
    kind="theorem",
    expect="refuted",
    instead="squeeze.nobody-else-loses",
    premises=negative_step(where=lambda z, y, s: sm.threshold_limit(z, y) <= 0.0),
    proof="True to first order only: τ(s) grows with s (T4) and passes min p_i.",
    counterexample=Counterexample(
        {"p": (Fraction(2, 5), Fraction(2, 5), Fraction(1, 5)), "y": 0, "s": Fraction(4)},
        margin=lambda p, y, s: least(a for i, a in enumerate(exact.log_alphas(p, y, s)) if i != y),
    ),
)
def heavy_label_suffices(z: Array, y: Array, s: Array) -> Margin:
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s), np.inf).min(axis=-1)
    return Margin(change, rounding(1.0 + s))


UNEQUAL_KERNEL = Field(lambda size: size, lambda u, size, case: 0.2 + 2.0 * u)
ISOTROPIC_KERNEL = Field(lambda size: 0, lambda u, size, case: np.ones((len(u), size)))


@claim(
    "squeeze.rich-get-richer",
    "Among the classes other than y, p_i ≥ p_j implies p'_i/p_i ≥ p'_j/p_j, and Δp_i is largest at y*.",
    source=f"toyld, T3; {PAPER}, §3.3 trend 1",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "s": step_size(), "k": ISOTROPIC_KERNEL}, sizes=THREE_OR_MORE),
    proof="log(p'_i/p_i) = s p_i − K(s) increases in p_i; with r_i = p'_i/p_i, Δp_i = p_i(r_i − 1) where r_{y*} > 1: "
    "a class with r_i ≤ 1 has Δp_i ≤ 0, one with r_i > 1 has both factors below those of y*.",
    without=Without(
        "K is a multiple of I (each class has the same step)",
        Premises({"z": logits(), "y": label(), "s": step_size(), "k": UNEQUAL_KERNEL}, sizes=THREE_OR_MORE),
    ),
)
def rich_get_richer(z: Array, y: Array, s: Array, k: Array) -> Margin:
    done = sm.log_softmax(z - s[:, None] * k * sm.residual(z, y, c=-1.0)) - sm.log_softmax(z)
    rest = others(z, y)
    order = np.argsort(np.where(rest, z, -np.inf), axis=-1, kind="stable")
    ranked = np.take_along_axis(done, order, axis=-1)[:, 1:]
    change = sm.softmax(z) * np.expm1(done)
    top = at(change, sm.runner_up(z, y)) - np.where(rest, change, -np.inf).max(axis=-1)
    bound = rounding(span(z, s, done))
    return Margin(np.concatenate([np.diff(ranked, axis=-1), top[:, None]], axis=-1), bound)


TWO_STEPS = {"z": logits(), "y": label(), "s": step_size(), "more": real(1.0, 10.0)}


@claim(
    "squeeze.threshold-rises",
    "τ(s) never falls as the step grows: the set of losers only grows with s.",
    source="toyld, T4",
    kind="theorem",
    premises=Premises(TWO_STEPS),
    proof="K is convex (a cumulant generating function) with K(0) = 0, so its chord slope K(s)/s is non-decreasing.",
    without=Without("the second step is the larger one", Premises({**TWO_STEPS, "more": real(0.1, 1.0)})),
)
def threshold_rises(z: Array, y: Array, s: Array, more: Array) -> Margin:
    rise = sm.threshold(z, y, s=s * more) - sm.threshold(z, y, s=s)
    return Margin(rise, rounding(1.0 + np.zeros_like(s)))


@claim(
    "squeeze.threshold-ceiling",
    "p_{y*} + log(p_{y*})/s ≤ τ(s) ≤ p_{y*}: as s → ∞ only the maximal classes other than y keep winning.",
    source="toyld, T4, limit",
    kind="theorem",
    premises=negative_step(),
    proof="Keep only the term of y* for the lower bound; bound every exponent by s p_{y*} for the upper.",
    without=Without("s > 0", Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)})),
)
def threshold_ceiling(z: Array, y: Array, s: Array) -> Margin:
    star = sm.runner_up(z, y)
    tau, p_star, log_star = sm.threshold(z, y, s=s), at(sm.softmax(z), star), at(sm.log_softmax(z), star)
    bound = rounding(1.0 + np.abs(log_star / s))
    return Margin(np.stack([tau - p_star - log_star / s, p_star - tau], axis=-1), bound[:, None])


@claim(
    "squeeze.runner-up-grows-with-step",
    "p'_{y*} never falls, p'_y never rises, and a class that loses at s loses at every larger step.",
    source=f"toyld, T4; the true part of {PAPER}, App. E Claim 5",
    kind="theorem",
    premises=Premises(TWO_STEPS),
    proof="d log p'_i/ds = a_i − E_{p_s}[a], a = p − e_y: y* has the largest a and y the smallest. Losers: T1 and T4.",
    without=Without("the second step is the larger one", Premises({**TWO_STEPS, "more": real(0.1, 1.0)})),
)
def runner_up_grows_with_step(z: Array, y: Array, s: Array, more: Array) -> Margin:
    first, second = sm.log_alpha(z, y, s=s), sm.log_alpha(z, y, s=s * more)
    star = sm.runner_up(z, y)
    loser = others(z, y) & (first < 0.0)
    bound = rounding(1.0 + s * more)[:, None]
    value = np.concatenate(
        [
            (at(second, star) - at(first, star))[:, None],
            (at(first, y) - at(second, y))[:, None],
            np.where(loser, -second, np.inf),
        ],
        axis=-1,
    )
    return Margin(value, bound)


@claim(
    "squeeze.larger-step-amplifies-all",
    "A larger step amplifies every change: if class i gains at s, it gains at least as much at a larger step.",
    source=f"{PAPER}, App. E Claim 5 (F8)",
    kind="theorem",
    expect="refuted",
    instead="squeeze.runner-up-grows-with-step",
    premises=Premises(TWO_STEPS, sizes=THREE_OR_MORE),
    proof="A class with ‖p‖² − p_y < p_i < p_{y*} gains at first; τ(s) → p_{y*} passes it later (T4).",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), "y": 1, "s": Fraction(1), "more": Fraction(2)},
        margin=lambda p, y, s, more: least(
            b - a
            for i, (a, b) in enumerate(zip(exact.log_alphas(p, y, s), exact.log_alphas(p, y, s * more), strict=True))
            if i != y and a > 0
        ),
        note="class 2",
    ),
)
def larger_step_amplifies_all(z: Array, y: Array, s: Array, more: Array) -> Margin:
    first, second = sm.log_alpha(z, y, s=s), sm.log_alpha(z, y, s=s * more)
    gains = others(z, y) & (first > 0.0)
    return Margin(np.where(gains, second - first, np.inf), rounding(1.0 + s * more)[:, None])


@claim(
    "squeeze.winner-takes-all",
    "Only y* gains if and only if the second largest class other than y is below τ(s).",
    source=f"toyld, T5; sharp form of {PAPER}, App. E Claim 3C",
    kind="theorem",
    premises=negative_step(sizes=THREE_OR_MORE),
    proof="T1 applied to the second largest class; T3 for those below it.",
    without=Without("s > 0", Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)}, sizes=THREE_OR_MORE)),
)
def winner_takes_all(z: Array, y: Array, s: Array) -> Margin:
    done = realised(z, y, s)
    star = sm.runner_up(z, y)
    rivals = np.where(others(z, y, star), done, -np.inf).max(axis=-1)
    second = np.where(others(z, y, star), sm.softmax(z), -np.inf).max(axis=-1)
    rule = s * (second - sm.threshold(z, y, s=s))
    return Margin(agree(rivals, rule), rounding(span(z, s, done)[:, 0]))


def _peak(low: float) -> Premises:
    def peaked(z: Array, y: Array, s: Array) -> Array:
        return (np.argmax(z, axis=-1) != y) & (at(sm.softmax(z), sm.runner_up(z, y)) >= low)

    return negative_step(where=peaked, sizes=THREE_OR_MORE)


@claim(
    "squeeze.peak-takes-all",
    "If y is not the top class and the top class has p ≥ 1/√3 ≈ .577, every class but the top falls, at every step.",
    source=f"toyld, corollary of T2 and T4; {PAPER}, App. E Claim 3C with its constant",
    kind="theorem",
    premises=_peak(3**-0.5),
    proof="Write 1 − ε for the top and x for the largest class other than it and y. x < ‖p‖² − p_y follows from "
    "x − x² + p_y − p_y² < (1 − ε)²; u − u² is concave and x + p_y ≤ ε, so the left side is at most ε − ε²/2, and "
    "ε − ε²/2 ≤ (1 − ε)² iff 1 − ε ≥ 1/√3. Then x ≤ τ(0+) ≤ τ(s). Sharp: at x = p_y = ε/2 with 1 − ε below 1/√3, "
    "x gains for small s.",
    without=Without("the top class has p ≥ 1/√3", _peak(0.0)),
)
def peak_takes_all(z: Array, y: Array, s: Array) -> Margin:
    change = sm.log_alpha(z, y, s=s)
    return Margin(np.where(others(z, sm.runner_up(z, y)), -change, np.inf), rounding(s)[:, None])


def _mass_to_move(z: Array, y: Array, **_: Array) -> Array:
    """1 − p_y > e^{−300}: below, Δp_y ≈ s(1 − p_y)² underflows and a share of it cannot be computed."""
    return sm.log_not(z, y) > -300.0


def _half_share(p: Any, y: int, s: Fraction) -> Any:
    after = exact.push(p, y, s)
    star = max((i for i in range(len(p)) if i != y), key=lambda i: p[i])
    return (after[star] - exact.ball(p[star])) * 2 - (exact.ball(p[y]) - after[y])


@claim(
    "squeeze.mass-goes-to-the-top",
    "At least half of the mass taken from y goes to y*.",
    source=f"{PAPER}, §3.3 wording “largely” (F6)",
    kind="theorem",
    expect="refuted",
    instead="squeeze.runner-up-share",
    premises=negative_step(sizes=(4, 8, 50), where=_mass_to_move),
    proof="From a uniform p the others share equally: with V classes y* gets 1/(V − 1).",
    counterexample=Counterexample({"p": (Fraction(1, 4),) * 4, "y": 0, "s": Fraction(1)}, margin=_half_share),
)
def mass_goes_to_the_top(z: Array, y: Array, s: Array) -> Margin:
    return Margin(sm.squeezing_ratio(z, y, s=s) - 0.5, rounding(1.0 + s))


@claim(
    "squeeze.runner-up-share",
    "y* gets at least the share 1/(V − 1) of the mass taken from y, and exactly that if the others are uniform.",
    source="toyld, corollary of T3; corrects F6",
    kind="theorem",
    premises=negative_step(where=_mass_to_move),
    proof="The changes of the V − 1 classes other than y sum to −Δp_y and the largest is that of y* (T3).",
    without=Without(
        "y* is the largest other class",
        Premises(
            {"z": logits(), "y": label(), "s": step_size(), "i": other_label("y")},
            sizes=THREE_OR_MORE,
            where=_mass_to_move,
        ),
    ),
)
def runner_up_share(z: Array, y: Array, s: Array, i: Array | None = None) -> Margin:
    least_share = 1.0 / (z.shape[-1] - 1)

    def share(z: Array, i: Array) -> tuple[Array, Array]:
        change, logp = sm.log_alpha(z, y, s=s), sm.log_softmax(z)
        # Divided by p_i and p_y apart: p_y may be 1e-70.
        odds = np.exp(np.minimum(at(logp, i) - at(logp, y), 600.0))
        ratio = odds * np.expm1(at(change, i)) / -np.expm1(at(change, y))
        return ratio, rounding((1.0 + np.abs(ratio)) * (1.0 + np.abs(z).max(-1) + 1 / s))

    flat = np.where(sm.one_hot(z, y), z, 0.0)  # the same label with all others tied
    (ratio, bound), (tied, near) = share(z, sm.runner_up(z, y) if i is None else i), share(flat, sm.runner_up(flat, y))
    value = [ratio - least_share, near - np.abs(tied - least_share)]
    return Margin(np.stack(value, axis=-1), np.stack([bound, near], axis=-1))
