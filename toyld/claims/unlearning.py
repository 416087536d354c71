"""Unlearning one label of one softmax: gradient ascent, NPO, unlikelihood training and BS-T.

A step is z' = z − s G. G = −W(π − e_y) with W = 1 for gradient ascent (GA), W = 2ρ^β/(1 + ρ^β), ρ = π_y/π_ref, for NPO
and W = π_y/(1 − π_y) for unlikelihood; G = t − π with a target t for BS-T. `fall` is log π_y(0) − log π_y(n) in nats
after n steps, y* = argmax_{i≠y} π_i, q the belief π cut to its three largest classes and renormalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, each, identity, rounding
from toyld.claims.spaces import constant, label, logits, real, reals, step_size
from toyld.claims.tools import at, not_the_top, span
from toyld.rollout import flow

Array = Any
UNLIKELIHOOD = "Welleck et al. 2020, unlikelihood training (arXiv 1908.04319), token level"
NPO = "Zhang et al. 2024, Negative Preference Optimization (arXiv 2404.05868)"
BST = "Li et al. (ICLR 2026), BS-T unlearning"
STEPS = 40


def gradient(loss: Callable[..., Any], z: Array, /, *arrays: Array) -> Array:
    """∂loss/∂z (n, V) by torch's automatic differentiation in float64; loss(log π, *arrays) has shape (n,)."""
    import torch

    leaf = torch.tensor(z, requires_grad=True)
    total = loss(torch.log_softmax(leaf, -1), *map(torch.tensor, arrays)).sum()
    if total.requires_grad:
        total.backward()
    if leaf.grad is None:
        raise ValueError("expected a loss that depends on log π; got a constant")
    return leaf.grad.numpy()


def pick(logp: Any, y: Any, /) -> Any:
    """log π_y (n,) of tensors."""
    return logp.gather(-1, y[:, None])[:, 0]


def largest(z: Array) -> Array:
    """1 + max |z| (n, 1): the size of the numbers in a gradient through a softmax."""
    return 1.0 + np.abs(z).max(axis=-1, keepdims=True)


def _falls(z: Array, y: Array, s: Array, weight: Callable[[Array, Array, Array], Array]) -> Array:
    """fall (n, STEPS) of a run of real updates; `weight` gets (logits, y, the fall so far)."""
    start, fall = at(sm.log_softmax(z), y), []
    for _ in range(STEPS):
        w = weight(z, y, start - at(sm.log_softmax(z), y))
        z = sm.step(z, sm.residual(z, y, c=-w), s=s)
        fall.append(start - at(sm.log_softmax(z), y))
    return np.stack(fall, axis=-1)


def _run_rounding(z: Array, s: Array, fall: Array) -> Array:
    """Bound (n, 1) on a run's fall: one rounding a step of numbers of this size, none of them amplified.

    The comparison functions below shift by a constant, so a slip early on is carried along, not magnified.
    """
    return STEPS * rounding(1.0 + np.abs(z).max(axis=-1) + 2.0 * STEPS * s + fall[:, -1])[:, None]


def _room(z: Array, y: Array) -> Array:
    """κ₀ = (1 − π_y)² V/(V − 1) (n, 1): the least that (1 − π_y)² + Σ_{j≠y} π_j² can be, and it only grows."""
    size = z.shape[-1]
    return (np.exp(2.0 * sm.log_not(z, y)) * size / (size - 1))[:, None]


ZERO, ONE = constant(0.0), constant(1.0)
NOT_CERTAIN = {"z": logits(high=40.0), "y": label()}
BELIEF = {**NOT_CERTAIN, "s": step_size()}
RUN = {"z": logits(), "y": label(), "s": step_size(1e-3, 10.0)}


@claim(
    "unlearning.ga-linear",
    "Gradient ascent drives log π_y down linearly at every n: κ₀ s n ≤ fall ≤ 2 s n, κ₀ = (1 − π_y(0))² V/(V − 1).",
    source=f"{NPO}, linear divergence of GA, with constants",
    kind="theorem",
    premises=Premises({**RUN, "beta": ZERO}),
    proof="One step falls by log Σ_j π_j e^{s x_j}, x_y = 0, x_j = 1 + π_j − π_y ≤ 1 + π_{y*} − π_y ≤ 2(1 − π_y) ≤ 2: "
    "the upper bound. Jensen: at least s Σ_{j≠y} π_j(1 − π_y + π_j) = s[(1 − π_y)² + Σ_{j≠y} π_j²], by Cauchy-Schwarz "
    "at least s(1 − π_y)² V/(V − 1), and π_y only falls. Once y* holds all the mass the rate is 2s.",
    without=Without("the weight stays 1 (here NPO's)", Premises({**RUN, "beta": real(0.5, 2.0)})),
    cost=8,
)
def ga_linear(z: Array, y: Array, s: Array, beta: Array) -> Margin:
    fall = _falls(z, y, s, lambda _z, _y, x: 2.0 / (1.0 + np.exp(beta * x)))
    time = s[:, None] * np.arange(1, STEPS + 1)
    room = np.stack([fall - _room(z, y) * time, 2.0 * time - fall], axis=-1)
    return Margin(room, _run_rounding(z, s, fall)[..., None])


@claim(
    "unlearning.npo-push",
    "NPO's loss −(2/β) log σ(−β log ρ), ρ = π_y/π_ref, has the residual −W(π − e_y), W = 2ρ^β/(1 + ρ^β): GA's times W.",
    source=f"{NPO}, loss and adaptive weight",
    kind="identity",
    premises=Premises({"z": logits(), "y": label(), "reference": reals(scale=3.0), "beta": step_size(1e-2, 10.0)}),
    proof="dL/d log ρ = 2σ(β log ρ) = 2ρ^β/(1 + ρ^β) = 1 + tanh(β log(ρ)/2): W rises with ρ from 0 to 2, 1 at π_ref.",
)
def npo_push(z: Array, y: Array, reference: Array, beta: Array) -> Margin:
    def loss(logp: Any, y: Any, ref: Any, beta: Any) -> Any:
        exponent = beta * (pick(logp, y) - ref)
        return 2.0 / beta * exponent.logaddexp(0.0 * exponent)

    ref = at(sm.log_softmax(reference), y)
    weight = 1.0 + np.tanh(0.5 * beta * (at(sm.log_softmax(z), y) - ref))
    scale = (1.0 + beta) * (1.0 + np.abs(z).max(-1) + np.abs(reference).max(-1))
    return identity(gradient(loss, z, y, ref, beta), sm.residual(z, y, c=-weight), scale[:, None])


@claim(
    "unlearning.npo-near-ga",
    "Below the reference (ρ ≤ 1): ρ^β ≤ W ≤ min(1, 2ρ^β), 1 − W ≤ β|log ρ|/2 and 0 ≤ L_NPO − (2/β) log 2 − log ρ ≤ "
    "β(log ρ)²/4: β → 0 is gradient ascent.",
    source=f"{NPO}, limit β → 0, with its error",
    kind="theorem",
    premises=Premises({"u": real(-20.0, 0.0), "beta": step_size(1e-6, 10.0)}, sizes=(2,)),
    proof="W = 1 + tanh(βu/2), u = log ρ ≤ 0, |tanh x| ≤ |x|; 1 ≤ 1 + ρ^β ≤ 2 gives the rest of the first two. "
    "L = (2/β) log(1 + e^{βu}) = (2/β) log 2 + u + (2/β) log cosh(βu/2), and 0 ≤ log cosh x ≤ x²/2.",
    without=Without("ρ ≤ 1", Premises({"u": real(0.0, 20.0), "beta": step_size(1e-6, 10.0)}, sizes=(2,))),
)
def npo_near_ga(u: Array, beta: Array) -> Margin:
    power = np.exp(beta * u)
    weight = 2.0 * power / (1.0 + power)
    excess = 2.0 / beta * (np.logaddexp(0.0, beta * u) - np.log(2.0)) - u
    push = [weight - power, np.minimum(1.0, 2.0 * power) - weight, 0.5 * beta * np.abs(u) - (1.0 - weight)]
    loss = [excess, 0.25 * beta * u**2 - excess]
    bounds = [rounding(1.0 + beta * np.abs(u))] * 3 + [rounding(1.0 / beta + np.abs(u))] * 2
    return Margin(np.stack(push + loss, axis=-1), np.stack(bounds, axis=-1))


@claim(
    "unlearning.npo-logarithmic",
    "Started at its reference, NPO falls logarithmically: (1/β) log(1 + βκ₀sn) ≤ fall ≤ (1/β) log(1 + 4βsn e^{2βs}).",
    source=f"{NPO}, logarithmic divergence of NPO, two-sided and at a finite step",
    kind="theorem",
    premises=Premises({**RUN, "beta": real(0.05, 2.0), "ahead": ZERO}),
    proof="With x the fall, W = 2/F'(x) for F(x) = x + (e^{βx} − 1)/β, convex and increasing. GA's bounds at step sW: "
    "κ₀ s W ≤ Δx ≤ 2 s W ≤ 2s. So ΔF ≥ F'(x)Δx ≥ 2κ₀s, and ΔF ≤ F'(x + Δx)Δx ≤ e^{2βs}F'(x)Δx ≤ 4s e^{2βs}: F grows "
    "linearly. Lastly (e^{βx} − 1)/β ≤ F ≤ 2(e^{βx} − 1)/β. The slope per e-fold of n is 1/β.",
    without=Without(
        "the run starts at its reference (`ahead` = log ρ(0) = 0)",
        Premises({**RUN, "beta": real(0.05, 2.0), "ahead": real(0.0, 10.0)}),
    ),
    cost=8,
)
def npo_logarithmic(z: Array, y: Array, s: Array, beta: Array, ahead: Array) -> Margin:
    fall = _falls(z, y, s, lambda _z, _y, x: 2.0 / (1.0 + np.exp(beta * (x - ahead))))
    n, b, step = np.arange(1, STEPS + 1), beta[:, None], s[:, None]
    low = np.log1p(b * _room(z, y) * step * n) / b
    high = np.log1p(4.0 * b * step * n * np.exp(2.0 * b * step)) / b
    return Margin(np.stack([fall - low, high - fall], axis=-1), _run_rounding(z, s, fall)[..., None])


@claim(
    "unlearning.npo-same-path",
    "NPO's gradient flow runs along GA's own path, π^NPO(t) = π^GA(∫W dt), whatever β and the reference: at equal "
    "log π_y it has squeezed the other classes exactly as much.",
    source=f"{NPO}; consequence of its adaptive weight",
    kind="identity",
    premises=Premises(
        {"z": reals(scale=2.0), "y": label(), "beta": real(0.1, 1.0), "ahead": real(-3.0, 3.0), "t": real(0.1, 3.0)},
        sizes=(2, 3, 4, 8),
    ),
    proof="dz/dt = W(π − e_y) with a positive scalar W: the clock dτ = W dt turns it into GA's dz/dτ = π − e_y.",
    cost=100,
    hunt=False,  # two ODEs a case
)
@each
def npo_same_path(z: Array, y: Array, beta: Array, ahead: Array, t: Array) -> Margin:
    from scipy.integrate import solve_ivp

    start, tol, size = at(sm.log_softmax(z), y), 1e-12, len(z)

    def field(_t: float, state: Array) -> Array:
        now = state[:size]
        w = 1.0 + np.tanh(0.5 * beta * (at(sm.log_softmax(now), y) - start + ahead))
        return np.append(-sm.residual(now, y, c=-w), w)

    run = solve_ivp(field, (0.0, float(t)), np.append(z, 0.0), method="DOP853", rtol=tol, atol=tol)
    npo, tau = run.y[:size, -1], run.y[size, -1]
    ga = flow(z, int(y), times=[tau], rtol=tol)[-1]
    # Local errors tol(1 + |z|) in fewer than 1000 steps. GA's field expands them by at most e^{τ/2} (the Hessian of
    # log Σ e^z is at most 1/2), NPO's by e^{τ/2 + βt}: |∂W/∂z| ≤ βW(1 − W/2)|π − e_y| ≤ β/√2, and |π − e_y| ≤ √2.
    bound = tol * 1000.0 * (1.0 + np.abs(z).max() + 2.0 * tau) * np.exp(0.5 * tau + beta * t)
    return Margin(bound - np.abs(sm.log_softmax(npo) - sm.log_softmax(ga)), bound)


def _odds(z: Array, y: Array) -> Array:
    """Unlikelihood's weight π_y/(1 − π_y), shape (n,)."""
    return np.exp(at(sm.log_softmax(z), y) - sm.log_not(z, y))


@claim(
    "unlearning.unlikelihood-residual",
    "Unlikelihood −log(1 − π_y) pushes log π_y by −π_y/(1 − π_y), and its residual has the size ‖G‖₁ = 2π_y: it fades "
    "with π_y, where GA's 2(1 − π_y) grows.",
    source=f"{UNLIKELIHOOD}; its residual",
    kind="identity",
    premises=Premises(NOT_CERTAIN),
    proof="L = log Σ_j e^{z_j} − log Σ_{j≠y} e^{z_j}, so G = π − π(·|not y) = −π_y/(1 − π_y)·(π − e_y): own entry π_y, "
    "the others sum to −π_y. The push is unbounded as π_y → 1, the residual never.",
)
def unlikelihood_residual(z: Array, y: Array) -> Margin:
    g = gradient(lambda logp, own: -logp.masked_fill(own, -np.inf).logsumexp(-1), z, sm.one_hot(z, y))
    got = np.column_stack([g, np.abs(g).sum(-1)])
    return identity(got, np.column_stack([sm.residual(z, y, c=-_odds(z, y)), 2.0 * at(sm.softmax(z), y)]), largest(z))


@claim(
    "unlearning.unlikelihood-logarithmic",
    "Unlikelihood also falls only logarithmically: log(1 + s n π₀(1 − π₀)V/(V − 1)) ≤ fall ≤ log(1 + n(e^{2sπ₀} − 1)), "
    "π₀ = π_y(0).",
    source=f"{UNLIKELIHOOD}; its rate, that of NPO with β = 1",
    kind="theorem",
    premises=Premises({**NOT_CERTAIN, "s": step_size(1e-3, 10.0), "own": ONE}),
    proof="GA's bounds at the step sπ_y/(1 − π_y): sπ_y(1 − π_y)V/(V − 1) ≤ Δx ≤ 2sπ_y. Hence 1/π_y grows by "
    "(e^{Δx} − 1)/π_y, at least s(1 − π₀)V/(V − 1) and at most (e^{2sπ_y} − 1)/π_y ≤ (e^{2sπ₀} − 1)/π₀.",
    without=Without(
        "the weight is π_y/(1 − π_y) (here GA's 1)", Premises({**NOT_CERTAIN, "s": step_size(1e-3, 10.0), "own": ZERO})
    ),
    cost=8,
)
def unlikelihood_logarithmic(z: Array, y: Array, s: Array, own: Array) -> Margin:
    fall = _falls(z, y, s, lambda now, label, _x: np.where(own > 0.0, _odds(now, label), 1.0))
    n, p, step = np.arange(1, STEPS + 1), at(sm.softmax(z), y)[:, None], s[:, None]
    size = z.shape[-1]
    low = np.log1p(step * n * p * np.exp(sm.log_not(z, y))[:, None] * size / (size - 1))
    high = np.log1p(n * np.expm1(2.0 * step * p))
    return Margin(np.stack([fall - low, high - fall], axis=-1), _run_rounding(z, s, fall)[..., None])


def belief(z: Array, /, *, k: int = 3) -> Array:
    """BS-T's belief q (n, V): π cut to its k largest classes (of tied ones the first) and renormalised."""
    rank = np.argsort(np.argsort(-z, axis=-1, kind="stable"), axis=-1, kind="stable")
    return sm.softmax(np.where(rank < k, z, -np.inf))


def target(z: Array, y: Array, lam: Array, /) -> Array:
    """BS-T's target t = λq + (1 − λ)e_y, shape (n, V)."""
    return lam[:, None] * belief(z) + (1.0 - lam)[:, None] * sm.one_hot(z, y)


@claim(
    "unlearning.bst-residual",
    "Minimising ⟨t, log π⟩ with t = λq + (1 − λ)e_y has G = t − π = G_GA + λ(q − e_y), G_GA = e_y − π.",
    source=f"{BST}, Thm 5.2 with its sign corrected (F12)",
    kind="identity",
    premises=Premises({"z": logits(), "y": label(), "lam": real(0.0, 1.0)}),
    proof="∂⟨t, log π⟩/∂z = t − π Σt and Σt = 1. So G_BST[v] = G_GA[v] + λq[v] for v ≠ y, and −λ(1 − q[y]) more at y.",
)
def bst_residual(z: Array, y: Array, lam: Array) -> Margin:
    g = gradient(lambda logp, t: (t * logp).sum(-1), z, target(z, y, lam))
    ga = -sm.residual(z, y)
    return identity(g, ga + lam[:, None] * (belief(z) - sm.one_hot(z, y)), largest(z))


def _exact_target(p: Sequence[Fraction], y: int, lam: Fraction) -> list[Fraction]:
    top = sorted(range(len(p)), key=lambda i: (-p[i], i))[:3]
    mass = sum(p[i] for i in top)
    return [lam * (x / mass if i in top else 0) + (1 - lam) * (i == y) for i, x in enumerate(p)]


def _bst_log_alphas(p: Sequence[Fraction], y: int, s: Fraction, lam: Fraction) -> list[Any]:
    """log(π'_i/π_i) in balls after one BS-T step."""
    before = exact.balls(p)
    after = exact.tilt(before, [exact.ball(s * (x - t)) for x, t in zip(p, _exact_target(p, y, lam), strict=True)])
    return [(b / a).log() for a, b in zip(before, after, strict=True)]


def _misprint(p: Sequence[Fraction], y: int, lam: Fraction) -> Any:
    """−max_v |(t − π)[v] − printed G[v]| as a ball, λq = t − (1 − λ)e_y."""
    own = [(1 - lam) * (i == y) for i in range(len(p))]
    printed = [x - 2 * e + t for x, e, t in zip(p, own, _exact_target(p, y, lam), strict=True)]
    return exact.ball(-max(abs(t - x - g) for t, x, g in zip(_exact_target(p, y, lam), p, printed, strict=True)))


@claim(
    "unlearning.bst-printed-residual",
    "BS-T's residual is G = π − (1 − λ)e_y + λq.",
    source=f"{BST}, Thm 5.2 as printed (F12)",
    kind="identity",
    expect="refuted",
    instead="unlearning.bst-residual",
    premises=Premises({"z": logits(), "y": label(), "lam": real(0.0, 1.0)}),
    proof="The GA part has the opposite sign: the difference from t − π is 2(π − (1 − λ)e_y), zero iff π = (1 − λ)e_y.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "lam": Fraction(1, 2)}, margin=_misprint
    ),
)
def bst_printed_residual(z: Array, y: Array, lam: Array) -> Margin:
    printed = sm.softmax(z) - (1.0 - lam)[:, None] * sm.one_hot(z, y) + lam[:, None] * belief(z)
    return identity(target(z, y, lam) - sm.softmax(z), printed, largest(z))


def window(z: Array, y: Array, /) -> tuple[Array, Array]:
    """(λ*, λ_y), each (n,): to first order y* falls iff λ > λ* and y falls iff λ < λ_y.

    λ* = (π_{y*} + π_y − ‖π‖²)/(q_{y*} + π_y − ⟨π, q⟩), λ_y = (1 − 2π_y + ‖π‖²)/(1 − q_y − π_y + ⟨π, q⟩).
    """
    p, q, star, one = sm.softmax(z), belief(z), sm.runner_up(z, y), sm.one_hot(z, y)
    p_y, not_y, not_q = at(p, y), np.exp(sm.log_not(z, y)), 1.0 - at(q, y)
    p_star, q_star, rest = at(p, star), at(q, star), np.where(one, 0.0, p)
    # The same quotients as sums of terms of one sign: nothing cancels, however peaked π is.
    low = (p_y * (not_y + p_star) + (rest * (p_star[:, None] - p)).sum(-1)) / (
        p_y * (not_q + q_star) + (rest * (q_star[:, None] - q)).sum(-1)
    )
    high = (not_y**2 + (rest * p).sum(-1)) / (not_q * not_y + (rest * q).sum(-1))
    return low, high


def _between(low: float, high: float) -> Field:
    """λ = λ* + u(min(1, λ_y) − λ*) for u in [low, high]; below 0 means a share of λ*."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        first, last = window(case["z"], case["y"])
        share = low + (high - low) * u[:, 0]
        return np.where(share < 0.0, (1.0 + share) * first, first + share * (np.minimum(1.0, last) - first))

    return Field(lambda size: 1, decode)


@claim(
    "unlearning.bst-window",
    "If y is not the most likely class there is a window λ* ≤ λ ≤ min(1, λ_y), and in it BS-T lowers y and y* at every "
    "step size; below λ* it still raises y* to first order, as GA does.",
    source=f"{BST}: BS-T lowers the likely neighbours; the condition on λ",
    kind="theorem",
    premises=Premises({**BELIEF, "lam": _between(0.0, 1.0)}, where=not_the_top),
    proof="log(π'_i/π_i) = s d_i − log Σ_j π_j e^{s d_j} ≤ s(d_i − ⟨π, d⟩) (Jensen), d = π − t. The bracket is "
    "affine in λ: for y* it falls and is zero at λ*, for y it rises and is zero at λ_y. Not empty: let λ = λ*, so "
    "d_{y*} = ⟨π, d⟩, and m the mass of the classes T of q. If λ ≤ m then d_y ≤ d_{y*}, as π_y ≤ π_{y*}. If λ > m then "
    "d_{y*} < 0 is the least entry beside d_y, and d_y > d_{y*} would lift the mean above d_{y*}. Either way "
    "d_y ≤ ⟨π, d⟩, so λ* ≤ λ_y. And λ* ≤ 1: at λ = 1 the bracket of y* is ≤ 0 iff m(π_{y*} − ‖π‖²) ≤ π_{y*} − Σ_T π², "
    "and Σ_T π² ≤ mπ_{y*}.",
    without=Without("λ ≥ λ*", Premises({**BELIEF, "lam": _between(-1.0, 0.0)}, where=not_the_top)),
)
def bst_window(z: Array, y: Array, s: Array, lam: Array) -> Margin:
    first, last = window(z, y)
    done = sm.log_softmax(sm.step(z, target(z, y, lam) - sm.softmax(z), s=s)) - sm.log_softmax(z)
    value = [-at(done, y), -at(done, sm.runner_up(z, y)), np.minimum(1.0, last) - first]
    fine, gap = rounding(span(z, s, done)[:, 0]), rounding(1.0 + first)
    return Margin(np.stack(value, axis=-1), np.stack([fine, fine, gap], axis=-1))


@claim(
    "unlearning.bst-lowers-runner-up",
    "BS-T lowers the most likely other class y* whatever the mixing weight 0 < λ < 1.",
    source=f"{BST}: toy comparison with GA read without its condition",
    kind="theorem",
    expect="refuted",
    instead="unlearning.bst-window",
    premises=Premises({**BELIEF, "lam": real(0.0, 1.0)}, sizes=(4, 8, 50)),
    proof="For λ < λ* the first-order change of log π_{y*} is positive, as GA's is (λ = 0).",
    counterexample=Counterexample(
        {"p": (Fraction(1, 4),) * 4, "y": 0, "s": Fraction(1), "lam": Fraction(1, 2)},
        margin=lambda p, y, s, lam: -_bst_log_alphas(p, y, s, lam)[1 if y == 0 else 0],
        note="uniform over four classes: λ* = 3/4; with fewer classes nothing is cut off and λ* = 1",
    ),
)
def bst_lowers_runner_up(z: Array, y: Array, s: Array, lam: Array) -> Margin:
    done = sm.log_softmax(sm.step(z, target(z, y, lam) - sm.softmax(z), s=s)) - sm.log_softmax(z)
    return Margin(-at(done, sm.runner_up(z, y)), rounding(span(z, s, done)[:, 0]))


@claim(
    "unlearning.bst-lowers-label",
    "BS-T lowers the label y whatever the mixing weight 0 < λ < 1.",
    source=f"{BST}: forgetting read without its condition",
    kind="theorem",
    expect="refuted",
    instead="unlearning.bst-window",
    premises=Premises({**BELIEF, "lam": real(0.0, 1.0)}, sizes=(4, 8, 50)),
    proof="For λ > λ_y the target puts less on y than π does, relative to the mean: log π_y rises to first order.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 4),) * 4, "y": 3, "s": Fraction(1), "lam": Fraction(7, 8)},
        margin=lambda p, y, s, lam: -_bst_log_alphas(p, y, s, lam)[y],
        note="y outside the three classes of q: λ_y = 3/4",
    ),
)
def bst_lowers_label(z: Array, y: Array, s: Array, lam: Array) -> Margin:
    done = sm.log_softmax(sm.step(z, target(z, y, lam) - sm.softmax(z), s=s)) - sm.log_softmax(z)
    return Margin(-at(done, y), rounding(span(z, s, done)[:, 0]))
