"""Entropy under a push: valleys (T6), the covariance law (Cui et al. 2025), on-policy negatives (T7; B1, B3).

Notation: a = p − e_y, p_s ∝ p e^{sa} the distribution after a negative step s on y, τ(s) its threshold,
K_y(s) = log Σ_j p_j e^{sa_j}. The class y is a *valley* of p if log p_y ≤ −H(p): less likely than e^{−H}.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import constant, label, logits, negative_step, probabilities, reals, step_size
from toyld.claims.tools import PAPER, at

Array = Any
CURRENT = Field(lambda size: 0, lambda u, size, case: sm.softmax(case["z"]))
UNIFORM = Field(lambda size: 0, lambda u, size, case: np.full((len(u), size), 1.0 / size))
ANY_LAW = probabilities()


def _blur(z: Array, *moves: Array) -> Array:
    """Rounding bound (n,) of an entropy at z plus moves.

    Logits rounded by ε(|z| + |move|) shift H by at most that times Σ p|log p + H| ≤ 2H ≤ 2 log V.
    """
    size = 1.0 + np.max(np.abs(z), axis=-1)
    for move in moves:
        size = size + np.max(np.abs(move), axis=-1)
    return rounding((1.0 + 2.0 * np.log(z.shape[-1])) * size)


def _is_valley(z: Array, y: Array, s: Array) -> Array:
    return sm.valley_depth(z, y) >= 0.0


def _negative(z: Array, y: Array, s: Array) -> Array:
    return sm.step(z, sm.residual(z, y, c=-1.0), s=s)


def _entropy_gradient(z: Array) -> Array:
    """∂H/∂z (n, V) by automatic differentiation."""
    import torch

    leaf = torch.from_numpy(z).requires_grad_()
    logp = torch.log_softmax(leaf, dim=-1)
    (slope,) = torch.autograd.grad(-torch.sum(torch.exp(logp) * logp), leaf)
    return slope.numpy()


@claim(
    "entropy.valley",
    "Pushing down a valley lowers the entropy at every step, by at least a divergence: "
    "log p_y ≤ −H(p) implies H(p') ≤ H(p) − KL(p'‖p).",
    source="toyld, T6, with the size of the fall",
    kind="theorem",
    premises=negative_step(where=_is_valley),
    proof="H(p) − H(p_s) − KL(p_s‖p) = m(s) − m(0) with m(s) = E_{p_s} log p, m(0) = −H(p). "
    "m' = Cov_{p_s}(log p, a) = Cov_{p_s}(log p, p) + p_s(y)(m − log p_y). The covariance is ≥ 0, both being "
    "increasing in p (Chebyshev), so f = m − log p_y, which is ≥ 0 at s = 0, obeys f' ≥ p_s(y) f: f ≥ 0 and m' ≥ 0.",
    without=Without("y is a valley: log p_y ≤ −H(p)", negative_step()),
)
def valley(z: Array, y: Array, s: Array) -> Margin:
    after = _negative(z, y, s)
    logp, logq = sm.log_softmax(z), sm.log_softmax(after)
    fall = sm.entropy(z) - sm.entropy(after)
    return Margin(fall - np.sum(np.exp(logq) * (logq - logp), axis=-1), _blur(z, after, logq - logp))


@claim(
    "entropy.valley-is-absorbing",
    "A valley that is pushed down stays one and gets deeper by at least log(p_y/p'_y) + KL(p'‖p).",
    source="toyld, T6, its last sentence, with the size",
    kind="theorem",
    premises=negative_step(where=_is_valley),
    proof="The depth is −log p_y − H; −log p_y grows by log(p_y/p'_y) > 0 and H falls by at least KL(p'‖p) "
    "(entropy.valley).",
    without=Without("y is a valley: log p_y ≤ −H(p)", negative_step()),
)
def valley_is_absorbing(z: Array, y: Array, s: Array) -> Margin:
    after = _negative(z, y, s)
    logp, logq = sm.log_softmax(z), sm.log_softmax(after)
    least = -at(sm.log_alpha(z, y, s=s), y) + np.sum(np.exp(logq) * (logq - logp), axis=-1)
    depth = sm.valley_depth(after, y)
    grown, bound = depth - sm.valley_depth(z, y), _blur(z, after, logq - logp)
    mean = np.sum(sm.softmax(after) * (after - at(after, y)[:, None]), axis=-1)  # −log p_y − H = E_p z − z_y
    value = [depth, grown - least, bound - np.abs(depth - mean)]
    return Margin(np.stack(value, axis=-1), bound[:, None])


@claim(
    "entropy.valley-squeezes",
    "If y is a valley, p_y ≤ e^{−H} ≤ ‖p‖², so the threshold τ(s) is at least ‖p‖² − p_y ≥ 0 at every step: "
    "classes with little mass lose.",
    source=f"toyld, T6 with T2, T4; {PAPER}, App. A.3 (B1)",
    kind="theorem",
    premises=negative_step(where=_is_valley),
    proof="−H = E_p log p ≤ log E_p p = log ‖p‖² (Jensen); τ never falls below τ(0+) = ‖p‖² − p_y (T4).",
    without=Without("y is a valley: log p_y ≤ −H(p)", negative_step()),
)
def valley_squeezes(z: Array, y: Array, s: Array) -> Margin:
    square = np.sum(sm.softmax(z) ** 2, axis=-1)
    limit = sm.threshold_limit(z, y)
    value = [square - np.exp(-sm.entropy(z)), limit, sm.threshold(z, y, s=s) - limit]
    return Margin(np.stack(value, axis=-1), rounding(1.0 + np.log(z.shape[-1])) + 0.0 * s[:, None])


@claim(
    "entropy.first-order-law",
    "At s = 0 a negative step on y changes the entropy at the rate −{Cov_p(log p, p) − p_y(log p_y + H)}.",
    source="toyld, T6, first-order law",
    kind="identity",
    premises=Premises({"z": logits(), "y": label()}),
    proof="∂H/∂z_i = −p_i(log p_i + H); take the inner product with a = p − e_y.",
)
def first_order_law(z: Array, y: Array) -> Margin:
    logp = sm.log_softmax(z)
    p, centred = np.exp(logp), logp + sm.entropy(z)[:, None]
    law = -(np.sum(p**2 * centred, axis=-1) - at(p * centred, y))
    slope = np.sum(_entropy_gradient(z) * sm.residual(z, y), axis=-1)
    return identity(slope, law, 1.0 + 2.0 * np.log(z.shape[-1]))


def _rate(p: tuple[Fraction, ...], y: int) -> Any:
    """dH/ds at 0 of a negative step on y, in balls."""
    b, h = exact.balls(p), exact.entropy(p)
    return b[y] * (b[y].log() + h) - sum((x * x * (x.log() + h) for x in b), exact.ball(0))


@claim(
    "entropy.only-valleys-lower-it",
    "A small negative step on a class that is no valley, log p_y > −H(p), does not lower the entropy.",
    source="toyld, T6 read as necessary",
    kind="theorem",
    expect="refuted",
    instead="entropy.first-order-law",
    premises=Premises({"z": logits(), "y": label()}, where=lambda z, y: sm.valley_depth(z, y) < 0.0),
    proof="The sign compares Cov_p(log p, p), which may be large, with p_y(log p_y + H). With two classes it does hold "
    "to first order: the rate is 2p(1 − p)² log(p/(1 − p)), p = p_y.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(2, 5), Fraction(1, 10)), "y": 1},
        margin=_rate,
        note="log p_y + H = +.027, dH/ds = −.042",
    ),
)
def only_valleys_lower_it(z: Array, y: Array) -> Margin:
    rate = sm.entropy_rate(z, sm.residual(z, y))
    return Margin(rate, rounding(1.0 + 2.0 * np.log(z.shape[-1])) + 0.0 * rate)


@claim(
    "entropy.covariance-law",
    "dH = −η Cov_p(log p, Δz): policy gradient Δz = p(r − E_p r), natural policy gradient Δz = r (up to a constant).",
    source="Cui et al. 2025, arXiv 2505.22617",
    kind="identity",
    premises=Premises({"z": logits(), "r": reals()}),
    proof="∂H/∂z_i = −p_i(log p_i + H), so dH = −Cov_p(log p, Δz). The gradient of E_p r in z is p(r − E_p r) = Fr, "
    "F = diag(p) − ppᵀ the Fisher matrix, so r itself is a natural gradient.",
)
def covariance_law(z: Array, r: Array) -> Margin:
    import torch

    leaf = torch.from_numpy(z).requires_grad_()
    (policy,) = torch.autograd.grad(torch.sum(torch.softmax(leaf, dim=-1) * torch.from_numpy(r)), leaf)
    gradient = policy.numpy()
    p, slope = sm.softmax(z), _entropy_gradient(z)
    fisher = p * r - p * np.sum(p * r, axis=-1, keepdims=True)
    law = np.stack([sm.entropy_rate(z, p * (r - np.sum(p * r, -1, keepdims=True))), sm.entropy_rate(z, r)], axis=-1)
    seen = np.stack([np.sum(slope * gradient, axis=-1), np.sum(slope * r, axis=-1)], axis=-1)
    scale = ((1.0 + 2.0 * np.log(z.shape[-1])) * (1.0 + np.abs(r).max(axis=-1)))[:, None]
    rates, natural = identity(seen, law, scale), identity(fisher, gradient, scale)
    return Margin(np.concatenate([rates.value, natural.value], axis=-1), rounding(scale))


@claim(
    "entropy.covariance-law-remainder",
    "At a finite step z' = z + sv the covariance law is off by at most s²Δ²(1/8 + (log V)/2), Δ = max v − min v.",
    source="toyld, Cui et al. 2025, arXiv 2505.22617, with its constant",
    kind="theorem",
    premises=Premises({"z": logits(), "v": reals(), "s": step_size(1e-4, 1e2), "w": CURRENT}),
    proof="H'(s) = −Cov(L, v) under p_s, L = log p_s, and H'' = −Var(v) − Cov(L, (v − Ev)²). Var(v) ≤ Δ²/4; with "
    "(v − Ev)² in [0, Δ²] and E|L + H| ≤ 2H the covariance is at most Δ²H ≤ Δ² log V. Integrate twice.",
    without=Without(
        "the covariance is under p before the step",
        Premises({"z": logits(), "v": reals(), "s": step_size(1e-4, 1e2), "w": ANY_LAW}),
    ),
)
def covariance_law_remainder(z: Array, v: Array, s: Array, w: Array) -> Margin:
    move, mean = s[:, None] * v, np.sum(w * v, axis=-1, keepdims=True)
    covariance = np.sum(w * np.log(np.where(w > 0.0, w, 1.0)) * (v - mean), axis=-1)
    change = sm.entropy(z + move) - sm.entropy(z)
    reach = v.max(axis=-1) - v.min(axis=-1)
    cap = (s * reach) ** 2 * (0.125 + 0.5 * np.log(z.shape[-1]))
    return Margin(cap - np.abs(change + s * covariance), _blur(z, move))


def _every_label(z: Array) -> tuple[Array, Array]:
    """(z repeated for each label (n, V, V), labels (n, V))."""
    size = z.shape[-1]
    return np.repeat(z[:, None, :], size, axis=1), np.tile(np.arange(size), (len(z), 1))


@claim(
    "entropy.break-even",
    "The mean first-order threshold over labels y ∼ q is ‖p‖² − ⟨q, p⟩: 0 on-policy (q = p), ‖p‖² − 1/V ≥ 0 for "
    "uniform labels.",
    source="toyld, T7",
    kind="theorem",
    premises=Premises({"z": logits(), "q": UNIFORM}),
    proof="τ(0+) = ‖p‖² − p_y; take the mean. ‖p‖² ≥ 1/V by Cauchy-Schwarz.",
    without=Without("the labels are uniform", Premises({"z": logits(), "q": ANY_LAW})),
    cost=4,
)
def break_even(z: Array, q: Array) -> Margin:
    limits = sm.threshold_limit(*_every_label(z))
    p = sm.softmax(z)
    bound = rounding(2.0 + np.zeros(len(z)))
    value = [
        np.sum(q * limits, axis=-1),
        bound - np.abs(np.sum(p * limits, axis=-1)),
        bound - np.abs(np.sum(q * limits, axis=-1) - sm.break_even(z, q)),
    ]
    return Margin(np.stack(value, axis=-1), bound[:, None])


@claim(
    "entropy.on-policy-negatives-cancel",
    "E_{y∼p}[p − e_y] = 0, and at a finite step E_{y∼p} log(p'_i/p_i) = −E_y K_y(s) is the same for every class i, "
    "between −(s²/8)E_y(1 + p_{y*} − p_y)² and 0.",
    source="toyld, T7, with its finite-step version",
    kind="theorem",
    premises=Premises({"z": logits(), "s": step_size(), "q": CURRENT}),
    proof="log(p'_i/p_i) = s(p_i − 1[i=y]) − K_y(s), whose first term has mean 0 under y ∼ p. "
    "E_y K_y'(0) = E_y(‖p‖² − p_y) = 0 and 0 ≤ K_y'' ≤ (1 + p_{y*} − p_y)²/4 (Popoviciu). Without a baseline on-policy "
    "negatives cancel to first order only: what is left lowers every class, hence squeezes.",
    without=Without("the labels are drawn from p", Premises({"z": logits(), "s": step_size(), "q": ANY_LAW})),
    cost=3,
)
def on_policy_negatives_cancel(z: Array, s: Array, q: Array) -> Margin:
    start, labels = _every_label(z)
    push = sm.residual(start, labels, c=-1.0)
    changes = sm.log_softmax(start - s[:, None, None] * push) - sm.log_softmax(start)
    mean = np.sum(q[..., None] * changes, axis=1)
    reach = np.pi / sm.safe_step(start, labels)
    cap = s**2 * np.sum(q * reach**2, axis=-1) / 8.0
    # A class that falls by 1e3 nats has a log-ratio good to ε(|z| + s + that).
    bound = rounding(np.max(np.abs(z), axis=-1) + 4.0 * s + 1.0)
    idle = bound[:, None] - s[:, None] * np.abs(np.sum(q[..., None] * push, axis=1))
    high, low = mean.max(axis=-1), mean.min(axis=-1)
    value = np.stack([bound - (high - low), -high, low + cap], axis=-1)
    return Margin(np.concatenate([value, idle], axis=-1), bound[:, None])


BELOW, ABOVE = constant(1.0), constant(-1.0)


@claim(
    "entropy.valleys-are-rarer-on-policy",
    "A label drawn from p is a valley no more often than one drawn uniformly: Σ_{valleys} p ≤ #valleys/V, for every p.",
    source=f"toyld, T7, last sentence, for every p; {PAPER}, App. A.3 (B3)",
    kind="theorem",
    premises=Premises({"z": logits(), "side": BELOW}),
    proof="The valleys {log p_y ≤ −H} are the k least likely classes for some k; the mean of the k smallest p is at "
    "most the mean of all, 1/V, with equality only if p is uniform.",
    without=Without("the set is {log p ≤ −H}, not {log p ≥ −H}", Premises({"z": logits(), "side": ABOVE})),
    cost=4,
)
def valleys_are_rarer_on_policy(z: Array, side: Array) -> Margin:
    inside = side[:, None] * sm.valley_depth(*_every_label(z)) >= 0.0
    drawn = np.sum(np.where(inside, sm.softmax(z), 0.0), axis=-1)
    return Margin(inside.mean(axis=-1) - drawn, rounding(1.0) + np.zeros(len(z)))
