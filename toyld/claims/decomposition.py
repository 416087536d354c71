"""The decomposition Δ log π = −η A K G + O(η²) of Prop. 1 (§2 Eq. 3): algebra of A, of G, of K, and the remainder.

Notation: z logits, p = π = softmax(z), A = ∂log π/∂z = I − 1πᵀ, G = ∂L/∂z, K(x_o, x_u) = ∇_θ z(x_o) ∇_θ z(x_u)ᵀ, and
K(d) = log Σ_j p_j e^{d_j} the cumulant generating function of a logit change d, so log(p'_i/p_i) = d_i − K(d).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import label, logits, other_label, probabilities, real, reals, step_size
from toyld.claims.tools import PAPER, at, span

Array = Any
CURRENT = Field(lambda size: 0, lambda u, size, case: sm.softmax(case["z"]))
FLAT = Field(lambda size: 1, lambda u, size, case: np.tile(20.0 * u - 10.0, (1, size)))


def _log_jacobian(z: Array) -> Array:
    """∂log π_i/∂z_j (n, V, V) by automatic differentiation of torch's own log-softmax."""
    import torch

    return torch.func.vmap(torch.func.jacrev(lambda x: torch.log_softmax(x, dim=-1)))(torch.from_numpy(z)).numpy()


def _jacobian(z: Array) -> Array:
    """∂π_i/∂z_j (n, V, V), likewise."""
    import torch

    return torch.func.vmap(torch.func.jacrev(lambda x: torch.softmax(x, dim=-1)))(torch.from_numpy(z)).numpy()


def _reach(u: Array, y: Array) -> Array:
    """max − min of the residual p − e_y at logits u (n,): 1 + p_{y*} − p_y."""
    g = sm.residual(u, y)
    return g.max(axis=-1) - g.min(axis=-1)


@claim(
    "decomposition.jacobian",
    "∂log π/∂z = A = I − 1πᵀ, and ∂π_i/∂z_j = π_i(1[i=j] − π_j): on the diagonal π_i(1 − π_i).",
    source=f"{PAPER}, §2 Eq. 3 and App. B.1; corrects F15",
    kind="identity",
    premises=Premises({"z": logits()}),
    proof="log π_i = z_i − log Σ e^z, whose second term has gradient π; π_i = e^{log π_i} multiplies row i by π_i.",
    cost=4,
)
def jacobian(z: Array) -> Margin:
    a = sm.jacobian(z)
    return identity(
        np.stack([_log_jacobian(z), _jacobian(z)], axis=1),
        np.stack([a, sm.softmax(z)[..., None] * a], axis=1),
        1.0,
    )


def _slope_of_second(p: tuple[Fraction, ...]) -> Any:
    """∂π_2/∂z_2 in balls by power-series arithmetic: the coefficient of ε in π_2(z + ε e_2)."""
    from flint import arb_series

    series = [arb_series([exact.ball(x).log(), 1 if i == 1 else 0], prec=2).exp() for i, x in enumerate(p)]
    return (series[1] / sum(series[1:], series[0]))[1]


@claim(
    "decomposition.printed-jacobian",
    "The entry (2, 2) of the matrix ∇_z π is 1 − π₂π₂.",
    source=f"{PAPER}, App. B, the matrix as printed (F15)",
    kind="identity",
    expect="refuted",
    instead="decomposition.jacobian",
    premises=Premises({"z": logits()}),
    proof="A factor π₂ is missing: the entry is π₂(1 − π₂) ≤ 1/4, the printed one is at least that large everywhere.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2))},
        margin=lambda p: -abs(_slope_of_second(p) - (1 - exact.ball(p[1]) ** 2)),
        note="1/4 against 3/4",
    ),
)
def printed_jacobian(z: Array) -> Margin:
    return identity(_jacobian(z)[:, 1, 1], 1.0 - sm.softmax(z)[:, 1] ** 2, 1.0)


@claim(
    "decomposition.projection",
    "A is the projection along 1 that removes the π-weighted mean: A² = A, A1 = 0, πᵀA = 0, "
    "det(λI − A) = λ(λ − 1)^{V−1}.",
    source=f"toyld, P1b, from {PAPER}, §2 Eq. 3",
    kind="identity",
    premises=Premises({"z": logits(), "root": real(2.0, 4.0)}),
    proof="A1 = 1 − 1(πᵀ1) = 0 and πᵀA = πᵀ − (πᵀ1)πᵀ = 0, so A² = A − A1πᵀ = A: eigenvalues are 0 and 1, and the "
    "trace V − 1 counts the ones. πᵀA = 0 is mass conservation: Σ π_i Δlog π_i = 0 to first order for every update.",
    cost=4,
)
def projection(z: Array, root: Array) -> Margin:
    a, p, size = sm.jacobian(z), sm.softmax(z), z.shape[-1]
    algebra = np.concatenate([(a @ a - a).reshape(len(z), -1), a.sum(-1), np.einsum("ni,nij->nj", p, a)], axis=-1)
    # Aᵀ, so that columns are diagonally dominant and elimination does not grow.
    _, logdet = np.linalg.slogdet(root[:, None, None] * np.eye(size) - np.swapaxes(a, -1, -2))
    gap = logdet - np.log(root) - (size - 1) * np.log(root - 1.0)
    # |δ log det M| ≤ V ‖M⁻¹‖ ‖δM‖ with ‖M‖ ≤ λ + 1, ‖M⁻¹‖ ≤ (1 + 1/λ)/(λ − 1), ‖δM‖ ≤ 4Vε‖M‖.
    lost = rounding(4.0 * size**2 * (root + 1.0) * (1.0 + 1.0 / root) / (root - 1.0))
    bound = np.concatenate([np.tile(rounding(4.0), algebra.shape), lost[:, None]], axis=-1)
    return Margin(bound - np.abs(np.concatenate([algebra, gap[:, None]], axis=-1)), bound)


@claim(
    "decomposition.mass-leak",
    "At a finite step Σ_i π_i log(π'_i/π_i) = −KL(π‖π') ≤ 0, and at least −(max d − min d)²/8 for a logit change d.",
    source="toyld, P1b at a finite step",
    kind="theorem",
    premises=Premises({"z": logits(), "v": reals(), "s": step_size(), "w": CURRENT}),
    proof="The sum is −KL by definition and KL ≥ 0 with equality only at π' = π. With π'_i ∝ π_i e^{d_i} it equals "
    "K'(0) − K(1) for K(t) = log E_π e^{td}, and 0 ≤ K'' ≤ (max d − min d)²/4 (Popoviciu).",
    without=Without(
        "the weights are π before the step",
        Premises({"z": logits(), "v": reals(), "s": step_size(), "w": probabilities()}),
    ),
)
def mass_leak(z: Array, v: Array, s: Array, w: Array) -> Margin:
    d = s[:, None] * v
    change = sm.log_softmax(z + d) - sm.log_softmax(z)
    fall = -np.sum(w * change, axis=-1)
    cap = (d.max(axis=-1) - d.min(axis=-1)) ** 2 / 8.0
    return Margin(np.stack([fall, cap - fall], axis=-1), rounding(span(z, s, d, change)))


@claim(
    "decomposition.residual-sums-to-zero",
    "1ᵀG = 0 for SFT with any coefficient, for any preference pair, for every loss that sees z through log π alone.",
    source=f"toyld, P1c; {PAPER}, Eq. 5 and 7",
    kind="identity",
    premises=Premises(
        {
            "z": logits(), "y": label(), "other": other_label(),
            "plus": real(-2.0, 2.0), "minus": real(-2.0, 2.0), "w": reals(),
        }
    ),
    proof="G = Aᵀ ∂f/∂log π for a loss f(log π), and 1ᵀAᵀ = (A1)ᵀ = 0: one update moves no mean logit.",
)  # fmt: skip
def residual_sums_to_zero(z: Array, y: Array, other: Array, plus: Array, minus: Array, w: Array) -> Margin:
    import torch

    leaf = torch.from_numpy(z).requires_grad_()
    (general,) = torch.autograd.grad(torch.sum(torch.from_numpy(w) * torch.log_softmax(leaf, dim=-1)), leaf)
    residuals = [
        sm.residual(z, y, c=plus),
        sm.pair_residual(z, y, other, c_plus=plus, c_minus=minus),
        general.numpy(),
    ]
    size = np.abs(plus) + np.abs(minus) + np.abs(w).sum(axis=-1)
    return identity(np.stack([g.sum(axis=-1) for g in residuals], axis=-1), 0.0, 2.0 * size[:, None])


@claim(
    "decomposition.frobenius",
    "‖A‖_F² = V − 2 + V‖π‖².",
    source=f"toyld, P1d; {PAPER}, App. C.2 Eq. 27-31",
    kind="identity",
    premises=Premises({"z": logits()}),
    proof="Row i of A is e_i − π, of squared length 1 − 2π_i + ‖π‖²; sum over i.",
    cost=4,
)
def frobenius(z: Array) -> Margin:
    size = z.shape[-1]
    law = size - 2.0 + size * np.sum(sm.softmax(z) ** 2, axis=-1)
    return identity(np.sum(sm.jacobian(z) ** 2, axis=(-2, -1)), law, 2.0 * size)


@claim(
    "decomposition.uniform-norm",
    "‖π‖₂² = 1/V for a uniform π, the smallest value there is; hence V − 1 ≤ ‖A‖_F² ≤ 2V − 2.",
    source=f"corrects {PAPER}, App. C.2 (F2)",
    kind="theorem",
    premises=Premises({"z": FLAT}),
    proof="V terms of 1/V²; ‖π‖² ≥ (Σ π)²/V by Cauchy-Schwarz and ‖π‖² ≤ Σ π = 1. Insert in decomposition.frobenius.",
    without=Without("π is uniform", Premises({"z": logits()})),
    cost=4,
)
def uniform_norm(z: Array) -> Margin:
    size = z.shape[-1]
    norm = np.sum(sm.softmax(z) ** 2, axis=-1)
    frob = np.sum(sm.jacobian(z) ** 2, axis=(-2, -1))
    bound = rounding(np.array([1.0, 2.0 * size, 2.0 * size]))
    value = np.stack([bound[0] - np.abs(norm - 1.0 / size), frob - (size - 1.0), 2.0 * size - 2.0 - frob], axis=-1)
    return Margin(value, bound)


@claim(
    "decomposition.printed-uniform-norm",
    "‖π‖₂² = 1/√V for a uniform π.",
    source=f"{PAPER}, App. C.2 as printed (F2)",
    kind="identity",
    expect="refuted",
    instead="decomposition.uniform-norm",
    premises=Premises({"z": FLAT}),
    proof="1/√V is the norm ‖π‖₂, not its square.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2))},
        margin=lambda p: -abs(sum((b * b for b in exact.balls(p)), exact.ball(0)) - 1 / exact.ball(len(p)).sqrt()),
        note="1/2 against 1/√2",
    ),
)
def printed_uniform_norm(z: Array) -> Margin:
    return identity(np.sum(sm.softmax(z) ** 2, axis=-1), z.shape[-1] ** -0.5, 1.0)


STRAIGHT = Field(lambda size: 0, lambda u, size, case: np.zeros_like(case["z"]))
TWO_CONTEXTS = {"z": logits(), "u": logits(), "y": label("u"), "s": step_size(1e-3, 1e3)}


@claim(
    "decomposition.remainder",
    "With logits linear in the parameters, K = ⟨x_o, x_u⟩I, one step on (x_u, y) gives "
    "Δlog π(·|x_o) = −ηAKG − ρ with one ρ for all classes and 0 ≤ ρ ≤ η²⟨x_o, x_u⟩²(1 + p_{y*} − p_y)²/8, p at x_u.",
    source=f"{PAPER}, §2 Prop. 1 (Eq. 3) with its constant; F13",
    kind="theorem",
    premises=Premises({**TWO_CONTEXTS, "bend": STRAIGHT}),
    proof="d = −ηKG is then the exact logit change at x_o. log(p'_i/p_i) = d_i − K(1) with K(t) = log E_π e^{td}, the "
    "first order is (Ad)_i = d_i − K'(0), so ρ = K(1) − K'(0) for every i. K'' is a variance of d, between 0 and "
    "(max d − min d)²/4 (Popoviciu): integrate twice. With 1 + p_{y*} − p_y ≤ 2: ρ ≤ η²‖x_o‖²‖x_u‖²/2.",
    without=Without(
        "the logits are linear in the parameters (a curved model adds s²b/2 to them)",
        Premises({**TWO_CONTEXTS, "bend": reals()}),
    ),
    cost=4,
)
def remainder(z: Array, u: Array, y: Array, s: Array, bend: Array) -> Margin:
    linear = -s[:, None] * sm.residual(u, y)
    done = sm.log_softmax(z + linear + 0.5 * (s**2)[:, None] * bend) - sm.log_softmax(z)
    rho = np.einsum("nij,nj->ni", sm.jacobian(z), linear) - done
    cap = (s * _reach(u, y)) ** 2 / 8.0
    bound = rounding(span(z, s, done, (s**2)[:, None] * bend))
    low, high = rho.min(axis=-1), rho.max(axis=-1)
    return Margin(np.stack([bound[:, 0] - (high - low), low, cap - high], axis=-1), bound)


FEATURES, HIDDEN = 3, 4
NETWORK = Premises(
    {
        "x": reals(FEATURES), "other": reals(FEATURES), "body": reals(HIDDEN * FEATURES, scale=0.6),
        "head": Field(lambda size: size * HIDDEN, reals().decode),
    },
    sizes=(2, 3, 4),
)  # fmt: skip


@claim(
    "decomposition.kernel",
    "K(x_o, x_u) = K(x_u, x_o)ᵀ and K(x, x) is positive semi-definite (a network with one hidden tanh layer).",
    source=f"toyld, P1e; {PAPER}, §2 Eq. 3 and App. C.1",
    kind="identity",
    premises=NETWORK,
    proof="K(x_o, x_u) = J_o J_uᵀ. For z = U tanh(Wx) it is ⟨h, h'⟩I + ⟨x, x'⟩BB'ᵀ with B = U diag(1 − h²); "
    "tried as the J_o J_uᵀ of automatic differentiation against the closed form with x_o and x_u exchanged.",
    cost=4,
)
def kernel(x: Array, other: Array, body: Array, head: Array) -> Margin:
    import torch

    n, size = len(x), head.shape[-1] // HIDDEN
    low, top = body.reshape(n, HIDDEN, FEATURES), head.reshape(n, size, HIDDEN)

    def by_autograd(features: Array) -> Array:
        inputs = [torch.from_numpy(a) for a in (low, top, features)]
        rows = torch.func.vmap(torch.func.jacrev(lambda w, u, at_: u @ torch.tanh(w @ at_), argnums=(0, 1)))(*inputs)
        return np.concatenate([part.numpy().reshape(n, size, -1) for part in rows], axis=-1)

    def layer(features: Array) -> tuple[Array, Array]:
        h = np.tanh(np.einsum("nij,nj->ni", low, features))
        return h, top * (1.0 - h**2)[:, None, :]

    (h, b), (h_, b_) = layer(other), layer(x)
    inner = np.sum(h * h_, axis=-1)[:, None, None] * np.eye(size)
    swapped = inner + np.sum(other * x, axis=-1)[:, None, None] * (b @ np.swapaxes(b_, 1, 2))
    jac_o, jac_u = by_autograd(x), by_autograd(other)
    scale = np.sum(jac_o**2, axis=(1, 2)) + np.sum(jac_u**2, axis=(1, 2))
    same = identity(jac_o @ np.swapaxes(jac_u, 1, 2), np.swapaxes(swapped, 1, 2), scale[:, None, None])
    least = np.linalg.eigvalsh(jac_o @ np.swapaxes(jac_o, 1, 2))[:, 0]
    return Margin(np.concatenate([same.value.reshape(n, -1), least[:, None]], axis=-1), rounding(scale)[:, None])


@claim(
    "decomposition.lessons-act-back-equally",
    "To first order SFT on (x_u, y_u) changes log π(y_o|x_o) by as much as SFT on (x_o, y_o) changes log π(y_u|x_u): "
    "η(e_{y_o} − π_o)ᵀK(x_o, x_u)(e_{y_u} − π_u).",
    source=f"toyld, P1e with {PAPER}, App. C.1 item 5",
    kind="identity",
    premises=Premises(
        {
            "z": logits(), "u": logits(), "y": label("z"), "other": label("u"),
            "k": Field(lambda size: size * size, reals().decode),
        },
        sizes=(2, 3, 4, 8),
    ),
    proof="Row y_o of A_o is (e_{y_o} − π_o)ᵀ and −G_u = e_{y_u} − π_u; the number is the inner product of the two "
    "gradients of log π. What is not symmetric is the whole vector −ηAKG: decomposition.influence-is-symmetric.",
)  # fmt: skip
def lessons_act_back_equally(z: Array, u: Array, y: Array, other: Array, k: Array) -> Margin:
    n, size = z.shape
    k = k.reshape(n, size, size)
    there = -np.einsum("nij,njk,nk->ni", sm.jacobian(z), k, sm.residual(u, other))
    back = -np.einsum("nij,nkj,nk->ni", sm.jacobian(u), k, sm.residual(z, y))
    return identity(at(there, y), at(back, other), 4.0 * np.abs(k).sum(axis=(1, 2)))


def _influence(p: tuple[Fraction, ...], q: tuple[Fraction, ...], y: int) -> Fraction:
    """‖A_p G_q‖² for label y: rational."""
    g = [b - (1 if i == y else 0) for i, b in enumerate(q)]
    mean = sum(a * b for a, b in zip(p, g, strict=True))
    return sum(((b - mean) ** 2 for b in g), Fraction(0))


@claim(
    "decomposition.influence-is-symmetric",
    "Learning x_u moves the prediction at x_o as far as learning x_o moves the one at x_u: ‖A_oKG_u‖ = ‖A_uKᵀG_o‖ "
    "(z = Wx, the same label y).",
    source=f"{PAPER}, App. C.1 item 5, which denies it",
    kind="identity",
    expect="refuted",
    instead="decomposition.lessons-act-back-equally",
    premises=Premises({"z": logits(), "q": probabilities(), "y": label("z")}),
    proof="K = ⟨x_o, x_u⟩I is symmetric, but the residual is that of the lesson: one already known has G = 0 and moves "
    "nothing, while it can be moved. π at x_o is p and at x_u is q.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "q": (Fraction(2, 3), Fraction(1, 3)), "y": 0},
        margin=lambda p, q, y: -exact.ball(abs(_influence(p, q, y) - _influence(q, p, y))),
    ),
)
def influence_is_symmetric(z: Array, q: Array, y: Array) -> Margin:
    def reached(of: Array, by: Array) -> Array:
        return np.sum(np.einsum("nij,nj->ni", sm.jacobian(of), sm.residual(by, y)) ** 2, axis=-1)

    u = np.log(q)
    return identity(reached(z, u), reached(u, z), 4.0 * z.shape[-1])
