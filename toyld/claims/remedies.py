"""Remedies against squeezing: logits-SAM (Luo et al. 2026) and gated rejected gradients (Mouiche & Bahi 2026).

Notation: z logits, p = softmax(z), y the penalised class, y* = argmax_{i≠y} p_i, q = p without y, renormalised. A SAM
step takes the residual at z̃ = z + ρ(e_y − p)/‖e_y − p‖, where the probabilities are p̃ ∝ p e^{(ρ/‖e_y − p‖)(e_y − p)};
among the classes other than y that is q̃ ∝ q e^{−Rq} with the *radius* R = ρ(1 − p_y)/‖e_y − p‖ = ρ/√(1 + ‖q‖²) < ρ.
A gate g = σ(α(p_− − τ)) ∈ (0, 1) multiplies the rejected gradient; it is not differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb
from scipy.special import expit, logsumexp

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, rounding
from toyld.claims.pairs import PAIR, moved, pair_alphas
from toyld.claims.spaces import label, logits, other_label, real, step_size
from toyld.claims.tools import THREE_OR_MORE, at, others, span

Array = Any
LUO, GATE = "Luo et al. 2026", "Mouiche & Bahi 2026"
SIGN = Field(lambda size: 1, lambda u, size, case: np.where(u[:, 0] < 0.5, 1.0, -1.0))
FIRST = Field(lambda size: 0, lambda u, size, case: np.zeros(len(u), dtype=int))
RARE = Field(lambda size: size, lambda u, size, case: np.concatenate([-10.0 - 30.0 * u[:, :1], 2.0 * u[:, 1:]], axis=1))
# Where the order of the others can turn under SAM: y rare, the step large.
FAR = {"z": RARE, "y": FIRST, "s": real(10.0, 1e3), "rho": real(4.0, 20.0)}
ONE = {"z": logits(high=40.0), "y": label(), "s": step_size()}
SAM = {**ONE, "rho": step_size(1e-5, 1e2)}


def within(most: float) -> Callable[..., Array]:
    """Premise: R = ρ/√(1 + ‖q‖²) is at most `most`."""

    def near(z: Array, y: Array, s: Array, rho: Array) -> Array:
        q = np.where(others(z, y), sm.softmax(np.where(others(z, y), z, -1e4)), 0.0)
        return rho <= most * np.sqrt(1.0 + np.sum(q * q, axis=-1))

    return near


def sharpened(z: Array, y: Array, s: Array, rho: Array) -> tuple[Array, Array]:
    """log p' − log p (n, V) of a SAM step really taken, and the bound (n, 1) of its rounding."""
    done = sm.log_softmax(sm.sam_step(z, y, s=s, rho=rho)) - sm.log_softmax(z)
    return done, rounding((1.0 + s)[:, None] * (span(z, np.abs(rho)) + 1.0) + np.abs(done).max(-1, keepdims=True))


@claim(
    "sam.runner-up-rises-less",
    "After a negative step with logits-SAM y* ends no higher than after the plain step, for every ρ > 0 and s > 0.",
    source=f"{LUO}, Cor. 3.6, first inequality; no smallness of ρ or s is needed",
    kind="theorem",
    premises=Premises(SAM),
    proof="r = p̃/p is smallest at y* and at most 1 there, and ≥ 1 at y. log(p_{y*}/p'_{y*}) = log Σ p_j e^{s x_j} with "
    "x_j = p̃_j − p̃_{y*} − 1[j=y]. For j ≠ y, p̃_j − p̃_{y*} ≥ r_{y*}(p_j − p_{y*}) ≥ p_j − p_{y*}, as p_j ≤ p_{y*}; "
    "for y, p̃_y ≥ p_y and p̃_{y*} ≤ p_{y*}. So every exponent is at least the plain step's.",
    without=Without("SAM climbs (ρ > 0)", Premises({**SAM, "rho": real(-3.0, -0.1)})),
)
def sam_runner_up(z: Array, y: Array, s: Array, rho: Array) -> Margin:
    done, bound = sharpened(z, y, s, rho)
    star = sm.runner_up(z, y)
    return Margin(at(sm.log_alpha(z, y, s=s), star) - at(done, star), bound[:, 0])


@claim(
    "sam.label-falls-less",
    "After a negative step with logits-SAM the penalised class ends no lower than after the plain step, for every "
    "s > 0, if R ≤ 4, that is ρ ≤ 4√(1 + ‖q‖²); ρ ≤ 4 suffices, and 4 cannot be replaced in R.",
    source=f"{LUO}, Cor. 3.6, second inequality, with its range",
    kind="theorem",
    premises=Premises(SAM, where=within(4.0)),
    proof="p_y/p'_y = p_y + Σ_{j≠y} p_j e^{s(p̃_j + 1 − p̃_y)} and p̃_y ≥ p_y, so Σ q_j e^{t q̃_j} ≤ Σ q_j e^{t q_j} with "
    "t = s(1 − p_y) is enough. That follows if q majorises q̃: then q̃ is a mean of permutations of q, e^x is convex, "
    "and of the Σ q_j e^{t q_σ(j)} the largest has σ = 1. Majorisation: let S have k classes, T be the top k. If S is "
    "another, logit q̃(S) ≤ logit q(S) + R(max q outside S − min q in S) term by term; sorting S against T, "
    "q(T) − q(S) is at least that bracket; logit' ≥ 4 ≥ R: so logit q̃(S) ≤ logit q(T). And q̃(T) ≤ q(T), since q̃/q "
    "falls in q. Sharp: p_y → 0, s → ∞, q = (½ + δ, ½ − δ), δ → 0.",
    without=Without("R ≤ 4", Premises(FAR, sizes=(3, 4))),
)
def sam_label(z: Array, y: Array, s: Array, rho: Array) -> Margin:
    done, bound = sharpened(z, y, s, rho)
    return Margin(at(done, y) - at(sm.log_alpha(z, y, s=s), y), bound[:, 0])


def _sam_label_lead(p: Any, y: int, s: Any, rho: Any) -> arb:
    """log α_y of the SAM step less that of the plain step, as a ball."""
    b = exact.balls(p)
    g = [(i == y) - a for i, a in enumerate(b)]
    norm = sum((a * a for a in g), arb(0)).sqrt()
    near = exact.tilt(b, [exact.ball(rho) * a / norm for a in g])
    after = exact.tilt(b, [exact.ball(s) * (a - (i == y)) for i, a in enumerate(near)])
    return (after[y] / exact.push(p, y, s)[y]).log()


@claim(
    "sam.label-falls-less-at-any-radius",
    "After a negative step with logits-SAM the penalised class ends no lower than after the plain step, for every ρ.",
    source=f"{LUO}, Cor. 3.6 read without its |ρ| = κ√|η|",
    kind="theorem",
    expect="refuted",
    instead="sam.label-falls-less",
    premises=Premises(FAR, sizes=(3, 4)),
    proof="A long climb past a rare y reverses the order of the others; the step then feeds a class that p̃ overrates.",
    counterexample=Counterexample(
        {"p": (Fraction(13, 20), Fraction(34999, 10**5), Fraction(1, 10**5)), "y": 2, "s": Fraction(32), "rho": 6},
        margin=_sam_label_lead,
        note="R = 4.83; with V = 2 it holds at every ρ",
    ),
)
def sam_label_any(z: Array, y: Array, s: Array, rho: Array) -> Margin:
    return sam_label.check(z=z, y=y, s=s, rho=rho)


@claim(
    "sam.runner-up-still-rises",
    "A negative step with logits-SAM still raises y*, and most of all other classes' log-ratios, if R ≤ 2 (ρ ≤ 2 "
    "suffices): it softens squeezing and never reverses it.",
    source="corollary of Claim 2 and T3 for the step of " + LUO,
    kind="theorem",
    premises=Premises(SAM, where=within(2.0)),
    proof="For q_i > q_j: log(q_i/q_j) ≥ 2(q_i − q_j)/(q_i + q_j) ≥ R(q_i − q_j), so p̃ keeps the order and y* has the "
    "largest exponent p̃_{y*}; y has the smallest, p̃_y − 1 < 0.",
    without=Without("R ≤ 2", Premises(FAR, sizes=(3, 4))),
)
def sam_still_squeezes(z: Array, y: Array, s: Array, rho: Array) -> Margin:
    done, bound = sharpened(z, y, s, rho)
    star = at(done, sm.runner_up(z, y))
    return Margin(np.stack([star, star - done.max(axis=-1)], axis=-1), bound)


@claim(
    "sam.residual-recursion",
    "With H = diag(p) − ppᵀ, g = p − e_y, ρ̃ = ρ/‖g‖, a SAM step with coefficient c = ±1 leaves the residual within "
    "s² + sρ²/4 of (I − csH − sρ̃H²)g in the 1-norm, at every step.",
    source=f"{LUO}: the residual recursion, with its remainder made explicit",
    kind="theorem",
    premises=Premises({**SAM, "s": step_size(1e-6, 10.0), "rho": step_size(1e-5, 10.0), "c": SIGN}),
    proof="‖p(z + d) − p − Hd‖₁ ≤ range(d)²/4: p'' along d is p_i{(d_i − E d)² − Var d}, and Var d ≤ range²/4. So "
    "‖p̃ − p − cρ̃Hg‖₁ ≤ ρ̃² range(g)²/4 ≤ ρ²/2, as range(g)² ≤ 2‖g‖², and sH at most halves it times s; the step itself "
    "has range ≤ 2s.",
    without=Without("SAM climbs (ρ > 0)", Premises({**SAM, "rho": real(-0.1, -1e-3), "c": SIGN})),
)
def sam_recursion(z: Array, y: Array, s: Array, rho: Array, c: Array) -> Margin:
    p, g = sm.softmax(z), sm.residual(z, y)

    def curved(v: Array) -> Array:
        return p * (v - np.sum(p * v, axis=-1, keepdims=True))

    ahead = np.abs(rho)[:, None] * g / np.linalg.norm(g, axis=-1, keepdims=True)
    law = g - s[:, None] * (c[:, None] * curved(g) + curved(curved(ahead)))
    gap = np.sum(np.abs(sm.residual(sm.sam_step(z, y, s=s, rho=rho, c=c), y) - law), axis=-1)
    return Margin(s**2 + s * rho**2 / 4.0 - gap, rounding((1.0 + s) * span(z, np.abs(rho))[:, 0]))


SELF = Field(lambda size: 0, lambda u, size, case: case["y"])
GATE_KNOBS = {"alpha": real(0.0, 50.0), "tau": real(0.0, 1.0)}


def gate(z: Array, y: Array, alpha: Array, tau: Array) -> Array:
    """g = σ(α(p_y − τ)) (n,)."""
    return expit(alpha * (at(sm.softmax(z), y) - tau))


@claim(
    "gate.rare-rejected",
    "As p_y → 0 a gated step squeezes like the plain one of size s₀ = sσ(−ατ), so not at all only as ατ → ∞: "
    "|log(p'_{y*}/p_{y*}) + log Σ_{j≠y} q_j e^{−s₀(q_{y*} − q_j)}| ≤ max{−log(1 − p_y), s₀p_y} + sαp_y(1 − p_y)/2.",
    source=f"{GATE}, README; the limit with its rate",
    kind="theorem",
    premises=Premises({**ONE, **GATE_KNOBS, "i": SELF}),
    proof="|g − σ(−ατ)| ≤ αp_y/4 and 0 ≤ d log α_{y*}/ds ≤ 1 + p_{y*} − p_y ≤ 2(1 − p_y). At size s₀, with L the sum "
    "and A = Σ q_j e^{−s₀(1 − p_y)(q_{y*} − q_j)}: L ≤ A ≤ e^{s₀p_y}L, and 1/α_{y*} lies in [(1 − p_y)A, A].",
    without=Without("the gate looks at the rejected class", Premises({**ONE, **GATE_KNOBS, "i": other_label("y")})),
)
def gate_rare(z: Array, y: Array, s: Array, alpha: Array, tau: Array, i: Array) -> Margin:
    p_y, star, floor = at(sm.softmax(z), y), sm.runner_up(z, y), s * expit(-alpha * tau)
    logq = np.where(others(z, y), sm.log_softmax(z) - sm.log_not(z, y)[:, None], -np.inf)
    fall = floor[:, None] * (np.exp(logq) - np.exp(at(logq, star))[:, None])
    gap = at(sm.log_alpha(z, y, s=s * gate(z, i, alpha, tau)), star) + logsumexp(logq + fall, axis=-1)
    reach = np.maximum(-sm.log_not(z, y), floor * p_y) + s * alpha * p_y * np.exp(sm.log_not(z, y)) / 2.0
    return Margin(reach - np.abs(gap), rounding(1.0 + s + np.abs(sm.log_not(z, y)) + np.abs(z).max(axis=-1)))


@claim(
    "gate.margin-shrinks",
    "At a shared context as at separate ones, a gated step (0 ≤ g ≤ 1) widens the margin log p_+/p_− by no more than "
    "the ungated step does; shared: by s{1 − p_+ + p_− + g(1 + p_+ − p_−)} ≥ 0 against 2s.",
    source=f"{GATE}: the gate trades margin for likelihood",
    kind="theorem",
    premises=Premises({**PAIR, "g": real(0.0, 1.0)}),
    proof="Shared: Δz = s(e_+ − g e_− − (1 − g)p), and the bracket grows with g. Separate: y+'s step is unchanged, and "
    "p'_− never rises with the step's size (T4).",
    without=Without("g ≤ 1", Premises({**PAIR, "g": real(1.1, 3.0)})),
)
def gate_margin(z: Array, plus: Array, minus: Array, s: Array, g: Array) -> Margin:
    done = moved(z, plus, minus, s, g)
    p_plus, p_minus, grown = at(sm.softmax(z), plus), at(sm.softmax(z), minus), at(done, plus) - at(done, minus)
    law = s * (1.0 - p_plus + p_minus + g * (1.0 + p_plus - p_minus))
    bound = rounding(span(z, s, done))
    apart = at(sm.log_alpha(z, minus, s=s * g), minus) - at(sm.log_alpha(z, minus, s=s), minus)
    return Margin(np.stack([bound[:, 0] - np.abs(grown - law), grown, 2.0 * s - grown, apart], axis=-1), bound)


@claim(
    "gate.contrast-lowers-loser",
    "A preference loss, c_+ > 0 > c_−, lowers π(y−) at a shared context.",
    source="common reading of contrastive losses; DPOP (Pal et al. 2024) with λ = 50 has k = 1/51 below the reference",
    kind="theorem",
    expect="refuted",
    instead="pair.winner-rises",
    premises=Premises({**PAIR, "k": real(0.0, 1.0)}, sizes=THREE_OR_MORE),
    proof="Below k = ½ the unbalanced part (1 − k)(p − e_+) is SFT on y+, which lifts the tail, and y− with it (T8).",
    counterexample=Counterexample(
        {
            "p": (Fraction(3, 5), *[Fraction(1, 5)] * 2),
            "plus": 1,
            "minus": 2,
            "s": Fraction(1, 8),
            "k": Fraction(1, 51),
        },
        margin=lambda p, plus, minus, s, k: -pair_alphas(p, plus, minus, s, k)[minus],
    ),
)
def contrast_lowers_loser(z: Array, plus: Array, minus: Array, s: Array, k: Array) -> Margin:
    done = moved(z, plus, minus, s, k)
    return Margin(-at(done, minus), rounding(span(z, s, done))[:, 0])


@claim(
    "gate.open-gate-lowers-loser",
    "At a shared context a gated pair step raises y+ always, and lowers y− whenever p_− ≥ τ.",
    source=f"{GATE}; corollary of pair.winner-rises",
    kind="theorem",
    premises=Premises({**PAIR, **GATE_KNOBS}, where=lambda z, minus, tau, **_: at(sm.softmax(z), minus) >= tau),
    proof="y+ has the largest exponent for every 0 ≤ k ≤ 2; p_− ≥ τ means g ≥ ½, where y− has the smallest.",
    without=Without("p_− ≥ τ", Premises({**PAIR, **GATE_KNOBS}, sizes=THREE_OR_MORE)),
)
def gate_open(z: Array, plus: Array, minus: Array, s: Array, alpha: Array, tau: Array) -> Margin:
    done = moved(z, plus, minus, s, gate(z, minus, alpha, tau))
    return Margin(np.stack([at(done, plus), -at(done, minus)], axis=-1), rounding(span(z, s, done)))
