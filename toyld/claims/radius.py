"""How far first order reaches: the remainder of one step and the Taylor radius (T11; Sao 2026, arXiv 2603.13552).

Notation: p = softmax(z), K(w) = log Σ_j p_j e^{w v_j} at a complex step w along a logit direction v, Δ = max v − min v;
a negative step on y has v = a = p − e_y and Δ = 1 + p_{y*} − p_y. The *radius* is π/Δ.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import label, logits, negative_step, probabilities, real, reals, step_size
from toyld.claims.tools import PAPER, others, realised, span

Array = Any
GHOSTS = "Sao 2026, arXiv 2603.13552"
CURRENT = Field(lambda size: 0, lambda u, size, case: sm.softmax(case["z"]))
# Points on a circle. On a circle of radius kπ/Δ, k ≤ .95, the argument of Σ p e^{wv}, v centred, turns between
# neighbours by at most (2π/POINTS)(kπ/2)/cos(kπ/2) < 1 < π (step.zero-free), so no turn is missed.
POINTS = 128
INSIDE, OUTSIDE = real(0.05, 0.95), real(1.0, 3.0)


def _partition(z: Array, v: Array, w: Array) -> Array:
    """Σ_j p_j e^{w v_j} (n, m) at complex w (n, m), v centred on the middle of its range, up to a factor > 0."""
    middle = 0.5 * (v.max(axis=-1, keepdims=True) + v.min(axis=-1, keepdims=True))
    exponent = sm.log_softmax(z)[:, None, :] + w[..., None] * (v - middle)[:, None, :]
    return np.sum(np.exp(exponent - exponent.real.max(axis=-1, keepdims=True)), axis=-1)


def _zeros_inside(z: Array, v: Array, radius: Array, points: int = POINTS) -> Array:
    """Zeros of Σ p e^{wv} in |w| < radius (n,) by the argument principle: turns of its argument around the circle."""
    w = radius[:, None] * np.exp(2j * np.pi * np.arange(points) / points)
    values = _partition(z, v, w)
    return np.sum(np.angle(np.roll(values, -1, axis=1) / values), axis=1) / (2.0 * np.pi)


@claim(
    "step.zero-free",
    "For |Im w| ≤ π/Δ, |Σ_j p_j e^{w v_j}| ≥ cos(|Im w|Δ/2) Σ_j p_j e^{Re(w) v_j}: inside this strip the partition "
    "function has no zero and its log no branch point.",
    source=f"toyld, T11; {GHOSTS}",
    kind="theorem",
    premises=Premises({"z": logits(), "v": reals(), "k": real(0.0, 1.0), "re": real(-3.0, 3.0)}),
    proof="Multiply by e^{−iIm(w)c}, c the middle of v: the arguments of the terms are Im(w)(v_j − c), at most "
    "|Im w|Δ/2 in size, so each term has a real part of at least cos(|Im w|Δ/2) times its modulus. (k = |Im w|Δ/π.)",
    without=Without(
        "|Im w| ≤ π/Δ", Premises({"z": logits(), "v": reals(), "k": real(3.0, 5.0), "re": real(-3.0, 3.0)})
    ),
)
def zero_free(z: Array, v: Array, k: Array, re: Array) -> Margin:
    reach = v.max(axis=-1) - v.min(axis=-1)
    scale = np.where(reach > 0.0, reach, 1.0)
    w = (re + 1j * np.pi * k / scale)[:, None]
    size = np.abs(_partition(z, v, w))[:, 0]
    real_size = np.abs(_partition(z, v, w.real))[:, 0]
    return Margin(size - np.cos(np.pi * k / 2.0) * real_size, rounding(span(z, np.abs(re) * reach + k)[:, 0]))


def _not_constant(z: Array, v: Array, k: Array) -> Array:
    return v.max(axis=-1) > v.min(axis=-1)


@claim(
    "step.taylor-radius",
    "log Σ_j p_j e^{w v_j} is analytic in |w| < π/Δ, for every p and every direction v: the partition function has no "
    "zero there.",
    source=f"toyld, T11; {GHOSTS}, multiclass lower bound",
    kind="theorem",
    premises=Premises({"z": logits(), "v": reals(), "k": INSIDE}, where=_not_constant),
    proof="The disc lies in the strip of step.zero-free. Sharp: at two equal classes a zero sits at w = iπ/Δ. Tried by "
    "counting zeros in the disc of radius kπ/Δ with the argument principle.",
    without=Without(
        "the factor k on the radius is below 1",
        Premises({"z": logits(), "v": reals(), "k": OUTSIDE}, where=_not_constant),
    ),
    cost=6,
)
def taylor_radius(z: Array, v: Array, k: Array) -> Margin:
    return identity(_zeros_inside(z, v, k * sm.taylor_radius(v)), 0.0, float(POINTS))


GAP = Field(lambda size: 1, lambda u, size, case: np.concatenate([10.0 * u, np.zeros_like(u)], axis=-1))


@claim(
    "step.binary-radius",
    "With two classes the radius is exactly √(δ² + π²)/Δ, δ = z_1 − z_2: no zero inside, the pair "
    "(−δ ± iπ)/(v_1 − v_2) on the circle.",
    source=f"{GHOSTS}, binary case",
    kind="identity",
    premises=Premises({"z": GAP, "v": reals()}, sizes=(2,), where=lambda z, v: np.abs(v[:, 0] - v[:, 1]) > 1e-3),
    proof="p_1e^{wv_1} + p_2e^{wv_2} = 0 iff δ + w(v_1 − v_2) is an odd multiple of iπ; the nearest are ±iπ. Tried "
    "with δ ≤ 10 by counting 0 zeros at .95 of the radius and 2 at its geometric mean with the next, √(δ² + 9π²)/Δ.",
    cost=8,
)
def binary_radius(z: Array, v: Array) -> Margin:
    delta, reach = z[:, 0] - z[:, 1], v[:, 0] - v[:, 1]
    radius, second = (np.hypot(delta, m * np.pi) / np.abs(reach) for m in (1, 3))
    root = _partition(z, v, ((-delta + 1j * np.pi) / reach)[:, None])[:, 0]
    # f'/f = (Δ/2) tanh((δ + wΔ)/2) and |wΔ| < 13; both circles keep .15 from its poles in wΔ, so |f'/f| < 8Δ and the
    # argument turns by less than (2π/1024)·13·8 < π between neighbours: no turn is missed.
    inside, around = (_zeros_inside(z, v, r, 1024) for r in (0.95 * radius, np.sqrt(radius * second)))
    bound = rounding(np.array([20.0, 1024.0, 1024.0]))
    seen = np.stack([np.abs(root), np.abs(inside), np.abs(around - 2.0)], axis=-1)
    return Margin(bound - seen, bound)


@claim(
    "step.safe-step",
    "The Taylor series of a negative step on y converges for s < π/(1 + p_{y*} − p_y), which is at least π/2.",
    source=f"toyld, T11; {GHOSTS}",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "k": INSIDE}),
    proof="step.taylor-radius with v = p − e_y: its largest entry is p_{y*}, its smallest p_y − 1, and "
    "1 + p_{y*} − p_y ≤ 2. Converges, not “first order is good”: step.first-order-within-half-the-radius.",
    without=Without(
        "the factor k on the radius is below 1", Premises({"z": logits(), "y": label(), "k": OUTSIDE})
    ),
    cost=6,
)  # fmt: skip
def safe_step(z: Array, y: Array, k: Array) -> Margin:
    rest, radius = np.where(others(z, y), sm.softmax(z), 0.0), sm.safe_step(z, y)
    reach = rest.sum(axis=-1) + rest.max(axis=-1)  # 1 − p_y + p_{y*}, without cancellation
    zeros = identity(_zeros_inside(z, sm.residual(z, y), k * np.pi / reach), 0.0, float(POINTS) + 0.0 * k)
    formula = identity(radius * reach, np.pi, 4.0 * span(z, 0.0)[:, 0])
    bound = np.stack([zeros.bound, rounding(4.0 + 0.0 * k), formula.bound], axis=-1)
    return Margin(np.stack([zeros.value, radius - np.pi / 2.0, formula.value], axis=-1), bound)


@claim(
    "step.remainder-in-radii",
    "A negative step of k radii, s = kπ/(1 + p_{y*} − p_y), changes every log p_i by its first order minus one and the "
    "same ρ with 0 ≤ ρ ≤ π²k²/8: half a radius costs at most .31 nats, a tenth at most .0124.",
    source="toyld, T11 with decomposition.remainder",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "k": step_size(1e-3, 10.0), "w": CURRENT}),
    proof="0 ≤ ρ = K(s) − sK'(0) ≤ s²Δ²/8 (decomposition.remainder) and sΔ = kπ.",
    without=Without(
        "first order is taken at p before the step (A = I − 1pᵀ)",
        Premises({"z": logits(), "y": label(), "k": step_size(1e-3, 10.0), "w": probabilities()}),
    ),
)
def remainder_in_radii(z: Array, y: Array, k: Array, w: Array) -> Margin:
    s = k * sm.safe_step(z, y)
    a = sm.residual(z, y)
    done = realised(z, y, s)
    rho = s[:, None] * (a - np.sum(w * a, axis=-1, keepdims=True)) - done
    cap = (np.pi * k) ** 2 / 8.0
    bound = rounding(span(z, s, done))
    low, high = rho.min(axis=-1), rho.max(axis=-1)
    return Margin(np.stack([low, cap - high, bound[:, 0] - (high - low)], axis=-1), bound)


def _half_right(p: tuple[Fraction, ...], y: int, s: Fraction) -> Any:
    """|exact|/2 − |first order − exact| at y*, in balls; the case must have s ≤ π/(2Δ)."""
    from flint import arb

    star = max((x, -i) for i, x in enumerate(p) if i != y)
    i = -star[1]
    if not exact.ball(s) * 2 * exact.ball(1 + p[i] - p[y]) < arb.pi():
        return arb(1)
    change = exact.log_alphas(p, y, s)[i]
    first = exact.ball(s * (p[i] - (sum(x * x for x in p) - p[y])))
    return abs(change) / 2 - abs(first - change)


@claim(
    "step.first-order-within-half-the-radius",
    "Within half the radius, first order gives the rise of log p_{y*} to within half of its true size.",
    source="toyld, T11, “converges” read as “is good”",
    kind="theorem",
    expect="refuted",
    instead="step.remainder-in-radii",
    premises=negative_step(where=lambda z, y, s: 2.0 * s <= sm.safe_step(z, y)),
    proof="The remainder is second order but not small: for p = (1/2, 1/2) the rise is s/2 − log cosh(s/2), .49 "
    "at s = 3/2 (radius π), where first order says .75.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "s": Fraction(3, 2)}, margin=_half_right
    ),
    cost=4,
)
def first_order_within_half_the_radius(z: Array, y: Array, s: Array) -> Margin:
    star = sm.one_hot(z, sm.runner_up(z, y))
    change = np.sum(np.where(star, sm.log_alpha(z, y, s=s), 0.0), axis=-1)
    first = s * np.sum(np.where(star, np.einsum("nij,nj->ni", sm.jacobian(z), sm.residual(z, y)), 0.0), axis=-1)
    return Margin(np.abs(change) / 2.0 - np.abs(first - change), rounding(s))


@claim(
    "step.second-order-term",
    "The remainder ρ of one step is s²Var_p(a)/2 up to s³(1 + p_{y*} − p_y)³/(36√3), a = p − e_y: "
    "second order, and no better.",
    source=f"toyld, P1a; {PAPER}, §2 Prop. 1 as an order in η",
    kind="theorem",
    premises=Premises({"z": logits(), "y": label(), "s": step_size(1e-3, 1e2), "w": CURRENT}),
    proof="K(s) − sK'(0) − s²K''(0)/2 is a mean of K''' times s³/6. K''' is a third central moment; for a given mean "
    "the extreme laws have two points −u < 0 < v, with moment uv(v − u) and u + v ≤ Δ, at most Δ³/(6√3).",
    without=Without(
        "the variance is under p before the step",
        Premises({"z": logits(), "y": label(), "s": step_size(1e-3, 1e2), "w": probabilities()}),
    ),
    cost=4,
)
def second_order_term(z: Array, y: Array, s: Array, w: Array) -> Margin:
    a = sm.residual(z, y)
    done = realised(z, y, s)
    rho = s[:, None] * np.einsum("nij,nj->ni", sm.jacobian(z), a) - done
    variance = np.sum(w * (a - np.sum(w * a, axis=-1, keepdims=True)) ** 2, axis=-1)
    cap = (s * (np.pi / sm.safe_step(z, y))) ** 3 / (36.0 * 3**0.5)
    value = cap[:, None] - np.abs(rho - (s**2 * variance / 2.0)[:, None])
    return Margin(value, rounding(span(z, s + s**2, done)))


def _constant_margin(p: tuple[Fraction, ...], y: int, eta: Fraction, norm: Fraction, constant: Fraction) -> Any:
    """C η²‖x‖² − ρ in balls, s = η‖x‖²: ρ from the class y."""
    b, s = exact.balls(p), exact.ball(eta * norm)
    square = sum((x * x for x in b), exact.ball(0))
    first = s * ((b[y] - 1) - (square - b[y]))
    return exact.ball(constant * eta**2 * norm) - (first - exact.log_alphas(p, y, eta * norm)[y])


@claim(
    "step.constant-free-of-features",
    "The remainder is at most Cη²‖∇_θ z(x_u)‖²_op with one constant C for every model and input (x_o = x_u = x, "
    "z = Wx, ‖∇z‖² = ‖x‖²).",
    source=f"{PAPER}, §2 Prop. 1, O(η²‖∇_θ z(x_u)‖²_op) read with a uniform constant (F13)",
    kind="theorem",
    expect="refuted",
    instead="decomposition.remainder",
    premises=Premises(
        {
            "z": logits(), "y": label(), "eta": step_size(1e-6, 1.0), "norm": step_size(1e-3, 1e6),
            "constant": step_size(1.0, 1e3),
        }
    ),
    proof="ρ ≈ η²‖x‖⁴Var_p(a)/2, so for any C a feature with ‖x‖² > 2C/Var_p(a) and a small η breaks it: the constant "
    "hides ‖∇z(x_o)‖², that is, the curvature of log π at x_o. As an order in η for a fixed model Prop. 1 stands.",
    counterexample=Counterexample(
        {
            "p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "eta": Fraction(1, 9), "norm": Fraction(9),
            "constant": Fraction(1),
        },
        margin=_constant_margin,
        note="C = 1 fails at ‖x‖² = 9, η = 1/9; any C at ‖x‖² = 9C, η = 1/(9C)",
    ),
    cost=4,
)  # fmt: skip
def constant_free_of_features(z: Array, y: Array, eta: Array, norm: Array, constant: Array) -> Margin:
    s = eta * norm
    rho = s[:, None] * np.einsum("nij,nj->ni", sm.jacobian(z), sm.residual(z, y)) - realised(z, y, s)
    return Margin((constant * eta**2 * norm)[:, None] - rho, rounding(span(z, s)))


def _two_layer_margin(w: Fraction, eta: Fraction, constant: Fraction) -> Any:
    """Cη²(2w²)² − |remainder| in balls for z = (w₁w₂, 0), w₁ = w₂ = w, one SFT step on class 1."""
    before, rate = exact.ball(w * w), exact.ball(eta)
    p = 1 / (1 + (-before).exp())
    after = before * (1 + rate * (1 - p)) ** 2
    change = -((1 + (-after).exp()) / (1 + (-before).exp())).log()
    return exact.ball(constant) * (2 * rate * before) ** 2 - abs(change - 2 * rate * before * (1 - p) ** 2)


@claim(
    "step.constant-free-of-curvature",
    "The remainder of any network is at most Cη²‖∇_θ z(x_o)‖²‖∇_θ z(x_u)‖² (z = (w₁w₂, 0), w₁ = w₂ = w, "
    "SFT on class 1, ‖∇z‖² = 2w²).",
    source="toyld, the bound of decomposition.remainder carried over to curved logits (F13)",
    kind="theorem",
    expect="refuted",
    instead="decomposition.remainder",
    premises=Premises(
        {"w": step_size(1e-3, 1.0), "eta": step_size(1e-3, 1.0), "constant": step_size(1.0, 1e3)}, sizes=(2,)
    ),
    proof="The step is w ← w(1 + η(1 − p)), so the logit itself has a second-order term η²(1 − p)²w², of order w² "
    "where the bound is of order w⁴: whatever C, a small w breaks it. A network's constant must know its curvature.",
    counterexample=Counterexample(
        {"w": Fraction(1, 6), "eta": Fraction(1), "constant": Fraction(1)}, margin=_two_layer_margin
    ),
)
def constant_free_of_curvature(w: Array, eta: Array, constant: Array) -> Margin:
    before = w**2
    p = 1.0 / (1.0 + np.exp(-before))
    after = before * (1.0 + eta * (1.0 - p)) ** 2
    rest = np.log1p(np.exp(-before)) - np.log1p(np.exp(-after)) - 2.0 * eta * before * (1.0 - p) ** 2
    return Margin(constant * (2.0 * eta * before) ** 2 - np.abs(rest), rounding(1.0 + np.zeros_like(w)))
