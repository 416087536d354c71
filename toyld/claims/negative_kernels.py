"""Negative steps where K is no multiple of I: which guarantees of squeezing survive, and on what condition (networks).

Notation: a = π − e_y at the image (context) pushed, y the penalised class, y* = argmax_{i≠y} π_i. To first order a
negative step moves the logits of a network by s(K a), K its kernel between the two inputs, which is positive
semi-definite (PSD) from an input to itself; where logits are linear in what trains this is exact. Closed form: K = I.
(K a)_i is the *score* of class i. Where a claim has `k` it is K row by row, (n, V²).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb
from scipy.special import logsumexp

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.pairs import rates
from toyld.claims.spaces import label, logits, other_label, real, reals, step_size
from toyld.claims.tools import PAPER, at, others

Array = Any
SIZES = (2, 3, 4, 8)
FEW = (3, 4, 8)


def psd(u: np.ndarray, size: int, case: Any) -> Array:
    """Diagonal, of one feature, of some features or of V: B Bᵀ with rows of B apart in size, diagonal 1 on average."""
    regime, rank = u[:, :1, None], 1 + np.minimum((u[:, 1] * size).astype(int), size - 1)
    b = np.tan(1.3 * (2.0 * u[:, 2:] - 1.0)).reshape(-1, size, size) + 1e-3
    kept = np.where(np.arange(size) < rank[:, None, None], b, 0.0)
    b = np.where(regime < 0.3, b * np.eye(size), kept)
    k = b @ b.swapaxes(-1, -2)
    return (k / np.trace(k, axis1=-2, axis2=-1)[:, None, None] * size).reshape(len(u), -1)


def anything(u: np.ndarray, size: int, case: Any) -> Array:
    return np.tan(1.3 * (2.0 * u - 1.0))


PSD = Field(lambda size: 2 + size * size, psd)
ANY = Field(lambda size: size * size, anything)  # as between two inputs that differ
STEP = {"z": logits(), "y": label(), "s": step_size()}
WITH = Premises({**STEP, "k": PSD}, sizes=SIZES)


def square(k: Array, /) -> Array:
    """K (n, V, V) of its entries (n, V²)."""
    return k.reshape(len(k), round(k.shape[-1] ** 0.5), -1)


def scores(z: Array, y: Array, k: Array, /) -> Array:
    """K a, (n, V)."""
    return (square(k) @ sm.residual(z, y)[..., None])[..., 0]


def moved(z: Array, d: Array, s: Array, /) -> Array:
    """log p' − log p (n, V) after z' = z + s d."""
    return sm.log_softmax(z + s[:, None] * d) - sm.log_softmax(z)


def size(z: Array, s: Array, k: Array, /) -> Array:
    """(n,) of the numbers that a log-ratio is made of; |a| sums to 2 at most."""
    return 1.0 + np.abs(z).max(-1) + 4.0 * np.abs(s) * np.abs(k).max(-1)


@claim(
    "network.penalised-falls",
    "At the input pushed z' = z + sKa lowers log π_y by at least s aᵀKa ≥ 0, for every PSD K and every step s > 0; "
    "a network's own rate is d log π_y/dη = −aᵀKa.",
    source=f"toyld; {PAPER}, §3.3 guarantee 1 without K ∝ I",
    kind="theorem",
    premises=WITH,
    proof="log π_y is concave in z, with gradient e_y − π = −a: log p'_y ≤ log p_y − ⟨a, s K a⟩. In a network aᵀKa = "
    "‖∇_θ log π_y‖², and a step down a gradient falls at the rate of its square.",
    without=Without("K is PSD (the input observed is the one pushed)", Premises({**STEP, "k": ANY}, sizes=SIZES)),
)
def penalised_falls(z: Array, y: Array, s: Array, k: Array) -> Margin:
    a, d = sm.residual(z, y), scores(z, y, k)
    rate, change = np.sum(a * d, axis=-1), at(moved(z, d, s), y)
    return Margin(np.stack([-change, -change - s * rate, s * rate], axis=-1), rounding(size(z, s, k))[:, None])


def _falls(w: Any, h: Any, y: int, s: Any) -> arb:
    """log(p_y/p'_y) after one step on log π_y of z = w h in which w and h train."""
    w, h, s = [exact.ball(x) for x in w], exact.ball(h), exact.ball(s)
    one = [arb(1)] * len(w)
    p = exact.tilt(one, [x * h for x in w])
    a = [x - (i == y) for i, x in enumerate(p)]
    after = h + s * sum((x * b for x, b in zip(w, a, strict=True)), arb(0))
    return (p[y] / exact.tilt(one, [(x + s * h * b) * after for x, b in zip(w, a, strict=True)])[y]).log()


@claim(
    "network.penalised-falls-at-every-step",
    "Where features train, too, the penalised class falls at every step size.",
    source=f"{PAPER}, §3.3 guarantee 1, read of a network",
    kind="theorem",
    expect="refuted",
    instead="network.penalised-falls",
    premises=Premises({"w": reals(), "h": real(0.1, 2.0), "y": label("w"), "s": step_size(1e-2, 1e2)}, sizes=SIZES),
    proof="Only the rate is negative: in z = w h head and feature turn both their signs at once if the step is large.",
    counterexample=Counterexample(
        {"w": (1, 0), "h": 1, "y": 0, "s": 6},
        margin=_falls,
        note="the smallest such network",
    ),
)
def penalised_falls_at_every_step(w: Array, h: Array, y: Array, s: Array) -> Margin:
    h, s = h[:, None], s[:, None]
    a = sm.residual(w * h, y)
    after = (w + s * h * a) * (h + s * np.sum(w * a, axis=-1, keepdims=True))
    change = at(sm.log_softmax(after) - sm.log_softmax(w * h), y)
    return Margin(-change, rounding(1.0 + np.abs(after).max(-1)))


HIDDEN, INPUTS = 3, 2
TWO_LAYERS = {
    "head": Field(lambda size: HIDDEN * size, lambda u, size, case: 6.0 * u - 3.0),
    "body": reals(HIDDEN * INPUTS),
    "x": reals(INPUTS),
    "y": Field(lambda size: 1, lambda u, size, case: np.minimum((u[:, 0] * size).astype(int), size - 1)),
}


@claim(
    "network.two-layers",
    "In z = W tanh(U x) a negative step's rates are d log π/dη = (I − 1πᵀ)K a with K = ‖h‖² I + ‖x‖² W D² Wᵀ, "
    "h = tanh(U x), D = diag(1 − h²): the head's part of K is ∝ I, that of the features has the shape of W.",
    source=f"toyld; {PAPER}, §2 for a network of two layers",
    kind="identity",
    premises=Premises(TWO_LAYERS, sizes=SIZES),
    hunt=False,
    proof="∂z/∂W_i = e_i hᵀ gives ‖h‖² I; ∂z/∂U = W D ⊗ x gives ‖x‖² W D D Wᵀ. The rate is (I − 1πᵀ) times K a.",
)
def two_layers(head: Array, body: Array, x: Array, y: Array) -> Margin:
    import torch

    w, u = head.reshape(len(head), -1, HIDDEN), body.reshape(-1, HIDDEN, INPUTS)
    inputs, index = torch.from_numpy(x), torch.from_numpy(y)[:, None]

    def logs(w: Any, u: Any) -> Any:
        h = torch.tanh((u @ inputs[..., None])[..., 0])
        return (w @ h[..., None])[..., 0].log_softmax(-1)

    done = rates(logs, lambda w, u: logs(w, u).gather(-1, index), w, u)
    h = np.tanh(np.einsum("nhd,nd->nh", u, x))
    z, bent = np.einsum("nvh,nh->nv", w, h), w * (1.0 - h * h)[:, None]
    k = np.sum(h * h, -1)[:, None, None] * np.eye(z.shape[-1])
    k = k + np.sum(x * x, -1)[:, None, None] * (bent @ bent.swapaxes(-1, -2))
    d = scores(z, y, k.reshape(len(k), -1))
    law = d - np.sum(sm.softmax(z) * d, axis=-1, keepdims=True)
    return identity(done, law, 8.0 * size(z, np.ones(len(z)), k.reshape(len(k), -1))[:, None])


@claim(
    "network.score-law",
    "log(p'_i/p_i) = s((K a)_i − τ(s)), τ(s) = (1/s) log Σ_j p_j e^{s(K a)_j}: a class gains exactly if its score is "
    "above τ; τ never falls as s grows, from ⟨p, K a⟩ towards the largest score.",
    source="toyld, T1, T2 and T4 for any K",
    kind="theorem",
    premises=Premises({**STEP, "k": ANY, "more": real(1.0, 10.0)}, sizes=SIZES),
    proof="p'_i ∝ p_i e^{s(K a)_i}. The cumulant generating function s τ(s) is convex and 0 at 0, so its slope τ "
    "grows; its derivative at 0 is the mean score, and the largest term alone bounds it from below.",
    without=Without(
        "the second step is the larger one", Premises({**STEP, "k": ANY, "more": real(0.1, 1.0)}, sizes=SIZES)
    ),
)
def score_law(z: Array, y: Array, s: Array, k: Array, more: Array) -> Margin:
    d, logp = scores(z, y, k), sm.log_softmax(z)
    top, which, mean = d.max(-1), d.argmax(-1), np.sum(np.exp(logp) * d, axis=-1)
    tau, later = (logsumexp(logp + t[:, None] * (d - top[:, None]), axis=-1) / t + top for t in (s, s * more))
    law = identity(moved(z, d, s), s[:, None] * (d - tau[:, None]), size(z, s, k)[:, None])
    order = np.stack([later - tau, tau - mean, top - tau, tau - top - at(logp, which) / s], axis=-1)
    bound = [np.broadcast_to(law.bound, d.shape), np.broadcast_to(rounding(size(z, s, k) / s)[:, None], order.shape)]
    return Margin(np.concatenate([law.value, order], axis=-1), np.concatenate(bound, axis=-1))


TOP = Field(lambda size: 0, lambda u, size, case: scores(case["z"], case["y"], case["k"]).argmax(-1))


@claim(
    "network.top-score-rises",
    "The class with the largest score (K a)_i rises at every step; every other class i falls at the latest where "
    "s > log(1/p_m)/((K a)_m − (K a)_i), m the class with the largest score.",
    source="toyld, T4 for any K: what takes the place of y*",
    kind="theorem",
    premises=Premises({**STEP, "k": ANY, "i": TOP}, sizes=SIZES),
    proof="log(p_i/p'_i) = log Σ_j p_j e^{s((K a)_j − (K a)_i)}: at m no exponent is > 0; at another class the term "
    "of m alone is p_m e^{s((K a)_m − (K a)_i)}, > 1 from the step named on.",
    without=Without("i has the largest score", Premises({**STEP, "k": ANY, "i": other_label("y")}, sizes=FEW)),
)
def top_score_rises(z: Array, y: Array, s: Array, k: Array, i: Array) -> Margin:
    d = scores(z, y, k)
    gap, best = d.max(-1, keepdims=True) - d, -at(sm.log_softmax(z), d.argmax(-1))
    clear = gap > 1e-9 * (1.0 + np.abs(d).max(-1, keepdims=True))
    late = 2.0 * (1.0 + best[:, None]) / np.where(clear, gap, 1.0)
    fall = logsumexp(sm.log_softmax(z)[:, None] + late[..., None] * (d[:, None] - d[..., None]), axis=-1)
    value = [np.where(clear, fall, np.inf), at(moved(z, d, s), i)[:, None]]
    wide = 1.0 + np.abs(z).max(-1, keepdims=True) + 2.0 * late * np.abs(d).max(-1, keepdims=True)
    return Margin(np.concatenate(value, -1), np.concatenate([rounding(wide), rounding(size(z, s, k))[:, None]], -1))


def alphas(p: Any, y: int, s: Any, k: Any) -> list[arb]:
    """log(p'_i/p_i) of z' = z + s K(p − e_y) as balls."""
    b, n = exact.balls(p), len(p)
    a = [x - (i == y) for i, x in enumerate(b)]
    d = [exact.ball(s) * sum((exact.ball(k[n * i + j]) * a[j] for j in range(n)), arb(0)) for i in range(n)]
    return [(after / before).log() for after, before in zip(exact.tilt(b, d), b, strict=True)]


def one_star(z: Array, y: Array, **_: Array) -> Array:
    """y* is one class alone."""
    ranked = np.sort(np.where(others(z, y), z, -np.inf), axis=-1)
    return ranked[:, -1] > ranked[:, -2]


def favourite(p: Any, y: int) -> int:
    return max((i for i in range(len(p)) if i != y), key=lambda i: p[i])


@claim(
    "network.runner-up-rises",
    "y*, the most likely class other than y, rises whatever the PSD K.",
    source=f"{PAPER}, §3.3 guarantee 2, App. E Claim 2, read of a network",
    kind="theorem",
    expect="refuted",
    instead="network.near-isotropic-suffices",
    premises=Premises({**STEP, "k": PSD}, sizes=FEW, where=one_star),
    proof="If K lifts another class more, that one takes the mass of y*, too. (With two classes y* gets what y loses.)",
    counterexample=Counterexample(
        {
            "p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)),
            "y": 1,
            "s": 1,
            "k": (0, 0, 0, 0, 0, 0, 0, 0, 1),
        },
        margin=lambda p, y, s, k: alphas(p, y, s, k)[favourite(p, y)],
        note="the logit of class 2 alone trains",
    ),
)
def runner_up_rises(z: Array, y: Array, s: Array, k: Array) -> Margin:
    return Margin(at(moved(z, scores(z, y, k), s), sm.runner_up(z, y)), rounding(size(z, s, k)))
