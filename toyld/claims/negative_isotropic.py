"""Near to K ∝ I, and orders that do as well: when a network's negative step keeps the guarantees of squeezing.

Notation of `toyld.claims.negative_kernels`: a = π − e_y, K a the scores, `k` = K row by row. Near to I: near to κI, κ >
0.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.negative_kernels import (
    ANY,
    FEW,
    PSD,
    SIZES,
    STEP,
    alphas,
    anything,
    favourite,
    moved,
    one_star,
    psd,
    scores,
    size,
    square,
)
from toyld.claims.spaces import logits, real, reals
from toyld.claims.tools import at, others

Array = Any


KAPPA = real(0.05, 20.0)  # κ > 0: with κ < 0 the step is a positive one
DOMINANT = Field(lambda size: PSD.width(size) + 1, lambda u, size, case: _dominant(u, size))


def _dominant(u: np.ndarray, size: int) -> Array:
    """Symmetric, its diagonal above the sum of the rest of each row."""
    k = square(psd(u[:, :-1], size, None))
    off = k * (1.0 - np.eye(size))
    own = np.abs(off).sum(-1) + np.diagonal(k, axis1=-2, axis2=-1) + 0.01
    return (off + own[..., None] * np.eye(size)).reshape(len(u), -1)


@claim(
    "network.diagonal-dominance-suffices",
    "y* rises if K is strictly diagonally dominant: every class is coupled most to itself.",
    source="toyld: a condition that suggests itself",
    kind="theorem",
    expect="refuted",
    instead="network.near-isotropic-suffices",
    premises=Premises({**STEP, "k": DOMINANT}, sizes=FEW, where=one_star),
    proof="The diagonal must also be even: a class that learns five times as fast overtakes y*.",
    counterexample=Counterexample(
        {
            "p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)),
            "y": 1,
            "s": 1,
            "k": (1, 0, 0, 0, 1, 0, 0, 0, 5),
        },
        margin=lambda p, y, s, k: alphas(p, y, s, k)[favourite(p, y)],
    ),
)
def diagonal_dominance_suffices(z: Array, y: Array, s: Array, k: Array) -> Margin:
    return Margin(at(moved(z, scores(z, y, k), s), sm.runner_up(z, y)), rounding(size(z, s, k)))


@claim(
    "network.rows-and-columns-cancel",
    "K + 1cᵀ + b1ᵀ does what K does, and so does PKP, P = I − 11ᵀ/V: only K centred on both sides counts, and all of "
    "`squeeze.*` holds with step κs where PKP = κP and κ > 0 (κ < 0 is a positive step).",
    source="toyld: softmax is blind to 1, and the residual sums to 0",
    kind="identity",
    premises=Premises({**STEP, "k": ANY, "b": reals(), "c": reals(), "kappa": KAPPA}, sizes=SIZES),
    proof="⟨1, a⟩ = 0 removes b1ᵀ; 1⟨c, a⟩ moves all logits alike.",
)
def rows_and_columns_cancel(z: Array, y: Array, s: Array, k: Array, b: Array, c: Array, kappa: Array) -> Margin:
    n = z.shape[-1]
    project, add = np.eye(n) - 1.0 / n, b[:, :, None] + c[:, None, :]
    done = moved(z, scores(z, y, k), s)
    more = (square(k) + add).reshape(len(k), -1)
    centred = (project @ square(k) @ project).reshape(len(k), -1)
    plain = (kappa[:, None, None] * np.eye(n) + add).reshape(len(k), -1)
    wide = 8.0 * np.sum([size(z, s, one) for one in (more, k, plain)], axis=0)[:, None]
    pairs = [
        identity(moved(z, scores(z, y, more), s), done, wide),
        identity(moved(z, scores(z, y, centred), s), done, wide),
        identity(moved(z, scores(z, y, plain), s), sm.log_alpha(z, y, s=kappa * s), wide),
    ]
    return Margin(
        np.concatenate([one.value for one in pairs], -1),
        np.concatenate([np.broadcast_to(one.bound, z.shape) for one in pairs], -1),
    )


def _near(most: float) -> Field:
    """K = κI + E, √2 ‖E‖ ‖a‖ up to `most` times |κ|(p_{y*} − p_(2)), κ the field before; E any or the worst one."""

    def decode(u: np.ndarray, size: int, case: Any) -> Array:
        p, a = sm.softmax(case["z"]), sm.residual(case["z"], case["y"])
        ranked = np.sort(np.where(others(case["z"], case["y"]), p, -1.0), axis=-1)
        room, length = ranked[:, -1] - ranked[:, -2], np.linalg.norm(a, axis=-1) + 1e-300
        order = np.argsort(np.where(others(case["z"], case["y"]), p, -1.0), axis=-1)
        worst = np.zeros((len(u), size, size))
        rows = np.arange(len(u))
        unit = a / length[:, None]
        worst[rows, order[:, -2]], worst[rows, order[:, -1]] = unit / 2**0.5, -unit / 2**0.5
        e = np.where(u[:, :1, None] < 0.5, worst, square(anything(u[:, 2:], size, case)))
        e = e / (np.linalg.norm(e, ord=2, axis=(-2, -1)) + 1e-300)[:, None, None]
        limit = most * u[:, 1] * np.abs(case["kappa"]) * room / (2**0.5 * length)
        return (case["kappa"][:, None, None] * np.eye(size) + e * limit[:, None, None]).reshape(len(u), -1)

    return Field(lambda size: 2 + size * size, decode)


@claim(
    "network.near-isotropic-suffices",
    "If K = κI + E, κ > 0, up to rows and columns of one number, with √2 ‖E‖ ‖π − e_y‖ ≤ κ(p_{y*} − p_(2)), p_(2) the "
    "next of the others, then y* rises at every step and gains most in log π; no larger E will do in general.",
    source="toyld, T1 and T3 with room for error",
    kind="theorem",
    premises=Premises({**STEP, "kappa": KAPPA, "k": _near(1.0)}, sizes=FEW),
    proof="(K a)_{y*} − (K a)_j = κ(a_{y*} − a_j) + ⟨e_{y*} − e_j, E a⟩, where a_{y*} − a_j ≥ p_{y*} − p_(2) and the "
    "last is at least −√2 ‖E‖ ‖a‖: y* has the largest score (network.top-score-rises). Equality for j the next class "
    "and E along −(e_{y*} − e_j)aᵀ: with a larger one y* has not the largest score and falls in the end. With κ < 0 "
    "and two equal favourites E = 0 meets the bound, and y* falls.",
    without=Without("the bound on E", Premises({**STEP, "kappa": KAPPA, "k": _near(30.0)}, sizes=FEW)),
)
def near_isotropic_suffices(z: Array, y: Array, s: Array, kappa: Array, k: Array) -> Margin:
    done, star = moved(z, scores(z, y, k), s), sm.runner_up(z, y)
    lead = np.where(others(z, star), at(done, star)[:, None] - done, np.inf).min(-1)
    return Margin(np.stack([at(done, star), lead], axis=-1), rounding(size(z, s, k))[:, None])


OTHER_INPUT = {**STEP, "o": logits()}


@claim(
    "network.favourite-spreads",
    "Where K(x_o, x_u) = kI with k > 0 (the head alone trains and ⟨h_o, h_u⟩ + 1 > 0, as of ReLU features always), y "
    "falls at the other input too, and y* of the input pushed rises there: at every step, whatever is believed there.",
    source="toyld, T1 seen from another input",
    kind="theorem",
    premises=Premises({**OTHER_INPUT, "b": real(0.01, 10.0)}),
    proof="z_o moves by s k a_u, whose largest entry is that of y* and whose smallest that of y.",
    without=Without("k > 0", Premises({**OTHER_INPUT, "b": real(-2.0, 2.0)})),
)
def favourite_spreads(z: Array, y: Array, s: Array, o: Array, b: Array) -> Margin:
    done = moved(o, b[:, None] * sm.residual(z, y), s)
    bound = rounding(1.0 + np.abs(o).max(-1) + 2.0 * np.abs(s * b))
    return Margin(np.stack([at(done, sm.runner_up(z, y)), -at(done, y)], axis=-1), bound[:, None])


def _ordered(fraction: float) -> Field:
    """Scores (n, V) in the order of p among the classes but y, that of y at most as large as of any above it."""

    def decode(u: np.ndarray, size: int, case: Any) -> Array:
        z, y = case["z"], case["y"]
        rest, rank = others(z, y), np.argsort(np.argsort(z, axis=-1), axis=-1)
        d = np.take_along_axis(np.sort(4.0 * u[:, :-2] - 2.0, axis=-1), rank, axis=-1)
        above = np.where(rest & (z > at(z, y)[:, None]), d, np.inf).min(-1)
        own = np.where(np.isfinite(above), above, d.max(-1)) - 3.0 * u[:, -2]
        mixed = np.where(u[:, -1:] < fraction, d[:, ::-1], d)
        return np.where(rest, mixed, own[:, None])

    return Field(lambda size: size + 2, decode)


def _valley(z: Array, y: Array, **_: Array) -> Array:
    return sm.valley_depth(z, y) >= 0.0


@claim(
    "network.valley-calms",
    "If log p_y ≤ −H(p), the scores of the classes but y are ordered like p, and that of y is at most as large as "
    "those of all classes above it, entropy falls at every step, by at least KL(p'‖p).",
    source="toyld, T6 for any K",
    kind="theorem",
    premises=Premises({**STEP, "d": _ordered(0.0)}, sizes=FEW, where=_valley),
    proof="K a = u − c e_y with u ordered like p and c ≥ 0. H(p) − H(p_s) − KL(p_s‖p) = m(s) − m(0), m(s) = "
    "E_{p_s} log p. m' = Cov_{p_s}(log p, u) + c p_s(y)(m − log p_y): the covariance is ≥ 0 (Chebyshev), so "
    "m − log p_y stays ≥ 0.",
    without=Without("the order of the scores", Premises({**STEP, "d": _ordered(1.0)}, sizes=FEW, where=_valley)),
)
def valley_calms(z: Array, y: Array, s: Array, d: Array) -> Margin:
    after = z + s[:, None] * d
    logp, logq = sm.log_softmax(z), sm.log_softmax(after)
    fall = sm.entropy(z) - sm.entropy(after) - np.sum(np.exp(logq) * (logq - logp), axis=-1)
    wide = 1.0 + np.abs(z).max(-1) + np.abs(after).max(-1) + np.abs(logq - logp).max(-1)
    return Margin(fall, rounding((1.0 + 2.0 * np.log(z.shape[-1])) * wide))


def _entropies(p: Any, y: int, s: Any, k: Any) -> arb:
    after = [x * a.exp() for x, a in zip(exact.balls(p), alphas(p, y, s, k), strict=True)]
    return exact.entropy(p) - exact.entropy(after)


@claim(
    "network.valley-calms-whatever-K",
    "Pushing down a valley lowers the entropy whatever the PSD K.",
    source="toyld, T6 (entropy.valley), read of a network",
    kind="theorem",
    expect="refuted",
    instead="network.valley-calms",
    premises=Premises({**STEP, "k": PSD}, sizes=FEW, where=_valley),
    proof="The mass can go to a middling class.",
    counterexample=Counterexample(
        {
            "p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)),
            "y": 1,
            "s": 1,
            "k": (0, 0, 0, 0, 0, 0, 0, 0, 1),
        },
        margin=_entropies,
    ),
)
def valley_calms_whatever_k(z: Array, y: Array, s: Array, k: Array) -> Margin:
    after = z + s[:, None] * scores(z, y, k)
    return Margin(sm.entropy(z) - sm.entropy(after), rounding((1.0 + 2.0 * np.log(z.shape[-1])) * size(z, s, k)))
