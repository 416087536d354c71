"""What DPO's own loss and optimum say of a population of pairs: ratios, rankings, rewards.

Notation: z logits, p = softmax(z), p_0 the reference; h the margin of log-ratios, β the loss's scale.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
from flint import arb
from scipy.special import expit

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import constant, integers, label, logits, other_label, probabilities, real, reals
from toyld.claims.tools import agree, at

Array = Any


@claim(
    "pair.gradient-ratio",
    "|∂L/∂π_−|/|∂L/∂π_+| = π_+/π_− for any loss of log(π_+/π_−); in the logits of a shared context both are equal.",
    source="Feng et al. 2024 (arXiv 2404.04626) and arXiv 2507.07723; toyld, T10",
    kind="identity",
    premises=Premises({"z": logits(), "plus": label(), "minus": other_label("plus"), "beta": real(0.01, 2.0)}),
    proof="L = f(log π_+ − log π_−) has ∂L/∂π_± = ±f'/π_±, and ∂L/∂z = f'(e_+ − e_−).",
)
def gradient_ratio(z: Array, plus: Array, minus: Array, beta: Array) -> Margin:
    import torch

    logp = np.maximum(sm.log_softmax(z), -300.0)
    pair = torch.from_numpy(np.exp(np.stack([at(logp, plus), at(logp, minus)]))).requires_grad_()
    loss = -torch.nn.functional.logsigmoid(torch.from_numpy(beta) * (pair[0].log() - pair[1].log()))
    up, down = np.log(np.abs(torch.autograd.grad(loss.sum(), pair)[0].numpy()))
    return identity(down - up, at(logp, plus) - at(logp, minus), 1000.0)


PAIRS = Field(lambda size: size * (size - 1) // 2, lambda u, size, case: 0.1 * 100.0**u)
TABLE = {"z": reals(), "r": reals(scale=2.0), "z0": reals(scale=2.0), "beta": real(0.1, 2.0), "counts": PAIRS}
RANKED = {"z": logits(), "z0": logits(), "plus": label(), "minus": other_label("plus"), "beta": real(0.01, 1.0)}
REFERENCE = Field(lambda size: 0, lambda u, size, case: sm.softmax(case["z0"]))


def fitted(phi: Array, r: Array, counts: Array) -> tuple[Array, Array]:
    """θ (n,) of the DPO optimum over π ∝ e^{θφ}, infinite exact data on each pair, and the bound of its error.

    Bisection on Σ n_ij Δφ_ij{σ(Δr_ij) − σ(θΔφ_ij)}, which falls in θ (β = 1, uniform reference).
    """
    i, j = (list(x) for x in zip(*combinations(range(phi.shape[-1]), 2), strict=True))
    gap, target = phi[:, i] - phi[:, j], expit(r[:, i] - r[:, j])
    high = np.max(np.abs(r[:, i] - r[:, j]) / np.maximum(np.abs(gap), 1e-9), axis=-1)
    low = -high
    for _ in range(100):
        mid = 0.5 * (low + high)
        up = np.sum(counts * gap * (target - expit(mid[:, None] * gap)), axis=-1) > 0.0
        low, high = np.where(up, mid, low), np.where(up, high, mid)
    slope = 1e-300 + np.sum(counts * gap**2 * expit(mid[:, None] * gap) * expit(-mid[:, None] * gap), axis=-1)
    return mid, high - low + rounding(np.sum(counts * np.abs(gap), axis=-1)) / slope


def _reward_gain(phi: Any, r: Any, counts: Any) -> arb:
    """E r − mean r at the DPO optimum, its θ enclosed between rationals of certain sign; NaN if it is not."""
    pairs = [(exact.ball(a - b), exact.ball(c - d)) for (a, c), (b, d) in combinations(zip(phi, r, strict=True), 2)]

    def slope(theta: Fraction) -> arb:
        t = exact.ball(theta)
        terms = ((f, 1 / (1 + (-g).exp()) - 1 / (1 + (-t * f).exp())) for f, g in pairs)
        return sum((exact.ball(n) * f * x for n, (f, x) in zip(counts, terms, strict=True)), arb(0))

    low, high = Fraction(-64), Fraction(65)  # halving never meets a whole θ
    for _ in range(60):
        mid = (low + high) / 2
        low, high = (mid, high) if slope(mid) > 0 else (low, mid)
    theta = exact.ball(low).union(exact.ball(high)) if slope(low) > 0 > slope(high) else arb("nan")
    p = exact.tilt([arb(1)] * len(phi), [theta * exact.ball(a) for a in phi])
    return sum((a * exact.ball(b) for a, b in zip(p, r, strict=True)), arb(0)) - exact.ball(Fraction(sum(r), len(r)))


@claim(
    "pair.exact-preferences-help",
    "Fitted to infinitely many exact preferences σ(r_i − r_j), DPO's optimum never has less expected reward than π_0.",
    source="the expectation that Gopalan et al. 2026 (2510.20413) correct",
    kind="theorem",
    expect="refuted",
    instead="pair.realizable",
    premises=Premises({"phi": reals(), "r": reals(), "counts": PAIRS}, sizes=(3, 4)),
    proof="In a class that cannot express r, here π ∝ e^{θφ} and uniform π_0, the fit weighs pairs by their frequency. "
    "Equal counts do not save it: φ = (0, 1, 4), r = (0, 4, 1) loses too.",
    counterexample=Counterexample({"phi": (0, 1, 2), "r": (0, 1, 0), "counts": (2, 1, 1)}, margin=_reward_gain),
)
def exact_preferences_help(phi: Array, r: Array, counts: Array) -> Margin:
    theta, error = fitted(phi, r, counts)
    gain = np.sum(sm.softmax(theta[:, None] * phi) * r, axis=-1) - r.mean(axis=-1)
    return Margin(gain, np.ptp(r, axis=-1) * np.ptp(phi, axis=-1) * error / 4.0 + rounding(np.abs(r).max(axis=-1)))


@claim(
    "pair.realizable",
    "If the class contains π* ∝ π_0 e^{r/β} (a tabular one does), π* is the DPO optimum for any positive pair counts, "
    "and E_{π*} r ≥ E_{π_0} r.",
    source="the premise that Gopalan et al. 2026 (2510.20413) drop",
    kind="theorem",
    premises=Premises({**TABLE, "noise": constant(0.0)}, sizes=(2, 3, 4, 8)),
    proof="Each pair's loss is a cross-entropy, least where its margin is r_i − r_j: π* does that for all pairs at "
    "once. d E r/dt = Var r ≥ 0 along π_0 e^{tr}.",
    without=Without("the preferences are exact", Premises({**TABLE, "noise": real(0.1, 0.5)}, sizes=(3, 4))),
)
def realizable(z: Array, r: Array, z0: Array, beta: Array, counts: Array, noise: Array) -> Margin:
    i, j = (list(x) for x in zip(*combinations(range(z.shape[-1]), 2), strict=True))
    best = z0 + r / beta[:, None]
    chance = expit(r[:, i] - r[:, j])
    chance = chance + noise[:, None] * (0.5 - chance)

    def loss(a: Array) -> Array:
        m = beta[:, None] * ((a - z0)[:, i] - (a - z0)[:, j])
        return np.sum(counts * (chance * np.logaddexp(0.0, -m) + (1.0 - chance) * np.logaddexp(0.0, m)), axis=-1)

    gain = np.sum((sm.softmax(best) - sm.softmax(z0)) * r, axis=-1)
    size = 1.0 + np.sum(counts, axis=-1) * (1.0 + sum(np.abs(a).max(axis=-1) for a in (z, z0, r)))
    return Margin(np.stack([loss(best + 0.1 * z) - loss(best), gain], axis=-1), rounding(size)[:, None])


@claim(
    "pair.reference-samples-fall",
    "E_{π_ref} log(π(y)/π_ref(y)) = −KL(π_ref‖π) ≤ −½‖π − π_ref‖₁²: the log-likelihood of fresh samples of the "
    "reference falls on average, whatever the objective.",
    source="Rafailov et al. 2024 (arXiv 2406.02900), §3.5; with Pinsker's inequality",
    kind="theorem",
    premises=Premises({"z": logits(), "z0": logits(), "law": REFERENCE}),
    proof="Definition of KL, and Pinsker: KL ≥ ½‖·‖₁². Samples that were trained on are not fresh.",
    without=Without("samples of the reference", Premises({"z": logits(), "z0": logits(), "law": probabilities()})),
)
def reference_samples_fall(z: Array, z0: Array, law: Array) -> Margin:
    drop = np.sum(law * (sm.log_softmax(z0) - sm.log_softmax(z)), axis=-1)
    far = np.sum(np.abs(sm.softmax(z) - sm.softmax(z0)), axis=-1)
    return Margin(drop - far**2 / 2.0, rounding(1.0 + np.abs(z).max(axis=-1) + np.abs(z0).max(axis=-1)))


@claim(
    "pair.ranking-threshold",
    "π ranks y+ above y− iff L_DPO ≤ −log σ(βc), c = log π_ref(y−)/π_ref(y+); L_DPO < log 2 does not say so.",
    source="Chen et al. 2024 (arXiv 2405.19534), preference ranking accuracy, Thm 4.1",
    kind="theorem",
    premises=Premises({**RANKED, "known": constant(1.0)}),
    proof="L_DPO = −log σ(β(log π(y+)/π(y−) + c)) falls strictly in that log-ratio, and is −log σ(βc) where it is 0.",
    without=Without("the threshold knows c", Premises({**RANKED, "known": constant(0.0)})),
)
def ranking_threshold(z: Array, z0: Array, plus: Array, minus: Array, beta: Array, known: Array) -> Margin:
    ratio = sm.log_softmax(z) - sm.log_softmax(z0)
    c, h = at(z0, minus) - at(z0, plus), at(ratio, plus) - at(ratio, minus)
    room = np.logaddexp(0.0, -beta * known * c) - np.logaddexp(0.0, -beta * h)
    return Margin(
        agree(room, at(z, plus) - at(z, minus)), rounding(1.0 + np.abs(z).max(axis=-1) + np.abs(z0).max(axis=-1))
    )


@claim(
    "pair.group-weights",
    "GRPO's standardised rewards of a group with N⁺ right and N⁻ wrong answers, p = N⁺/N, are p⁺ = (1 − p)/√(p(1 − p)) "
    "and −p⁻ = −p/√(p(1 − p)), so N⁺p⁺ = N⁻p⁻.",
    source="Deng et al. 2025 (2505.18830), Lemma 4.2",
    kind="identity",
    premises=Premises({"right": integers(1, 20), "wrong": integers(1, 20)}, sizes=(2,)),
    proof="Mean p and deviation √(p(1 − p)) of N binary rewards; with N − 1 in place of N both weights rescale alike.",
)
def group_weights(right: Array, wrong: Array) -> Margin:
    k, total, p = np.arange(40), right + wrong, right / (right + wrong)
    spread = np.where(k < total[:, None], (k < right[:, None]) - p[:, None], 0.0)
    weight = spread / np.sqrt(np.sum(spread**2, axis=-1) / total)[:, None]
    found = np.stack([weight[:, 0], at(weight, total - 1), weight.sum(axis=-1)], axis=-1)
    return identity(found, np.stack([1.0 - p, -p, 0.0 * p], axis=-1) / np.sqrt(p * (1.0 - p))[:, None], 40.0)
