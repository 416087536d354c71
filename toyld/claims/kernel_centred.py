"""Many contexts, one kernel: features less their mean in the update (K6), when it descends, what it cannot remove.

Notation as in `toyld.claims.kernel`. The centred update takes features less their mean μ = Σ_u w_u φ_u, Σ w = 1, in the
head's gradient and leaves the forward pass alone: ΔZ = −η S P R with P = I − w1ᵀ. G = Σ g_c along a response's path.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb
from scipy.special import expit

from toyld import contexts, objectives
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.kernel_cases import (
    AT,
    HEAD,
    MODEL,
    PAIRS,
    WIDTH,
    gradients,
    large,
    logp,
    model,
    pulls,
    push_back,
    stacked,
    stepped,
    vectors,
    words,
    world,
)
from toyld.claims.spaces import constant, real, reals, step_size
from toyld.contexts import centred

Array = Any
SMALL = (2, 3, 4, 8)
STEPS = 3


def shares(count: int) -> Field:
    """Weights w > 0 (n, count) that sum to 1."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        w = -np.log(np.clip(1.0 - u, 1e-6, 1.0)) + 1e-6
        return w / w.sum(axis=-1, keepdims=True)

    return Field(lambda size: count, decode)


CENTRED = {**MODEL, "share": shares(8), "rate": real(0.0, 0.25), "beta": step_size(0.01, 2.0)}


def _run(z: Array, gram: Array, words: Array, *, lr: Array, beta: Array, share: Array) -> Array:
    """Z after STEPS centred updates of DPO."""
    objective, options = objectives.get("dpo", beta=beta), {"at": (), "precondition": centred(share)}
    one = world(z, gram, words)
    return contexts.train(one, objective, lr=lr, steps=STEPS, rejected="rejected", **options).state.logits


def _stretch(rate: Array) -> Array:
    """What STEPS do to an error at η = rate/tr S: ‖S P‖ ≤ 4 tr S for eight contexts, twelve pulls of at most √2."""
    return (1.0 + 80.0 * rate) ** STEPS


@claim(
    "kernel.centring",
    "Descent with features less their mean μ = Σ w_u φ_u in the head's gradient is ΔZ = −η S(I − w1ᵀ)R: it "
    "differs from "
    "plain descent by η S w rᵀ, r = Σ_c R_c, and not at all where the total residual r is zero.",
    source="toyld, K6",
    kind="identity",
    rungs=AT,
    premises=Premises(CENTRED, sizes=SMALL),
    proof="Φ(Φ − 1μᵀ)ᵀ R = S R − Φμ rᵀ, and Φμ = S w.",
    hunt=False,
)
def centring(head: Array, phi: Array, words: Array, share: Array, rate: Array, beta: Array) -> Margin:
    w, f, z, gram = model(head, phi)
    lr = rate / np.trace(gram, axis1=1, axis2=2)
    less = f - np.einsum("nc,ncd->nd", share, f)[:, None, :]
    one, now, total = world(z, gram, words), z, []
    for _ in range(STEPS):
        gaps = [logp(a, one.responses[kind]).sum(-1) for kind in PAIRS for a in (z, now)]
        r = push_back(now, one, beta[:, None] * expit(-beta[:, None] * (gaps[1] - gaps[0] - gaps[3] + gaps[2])))
        total.append(r.sum(1))
        w = w - lr[:, None, None] * r.transpose(0, 2, 1) @ less
        now = f @ w.transpose(0, 2, 1)
    done = _run(z, gram, words, lr=lr, beta=beta, share=share)
    objective = objectives.get("dpo", beta=beta)
    apart = stepped(one, objective, z, lr=lr, precondition=centred(share)) - stepped(one, objective, z, lr=lr)
    law = lr[:, None, None] * (gram @ share[:, :, None]) * total[0][:, None, :]
    scale = large(w, now, done)[:, None, None]
    return stacked(identity(done, now, scale * _stretch(rate)[:, None, None]), identity(apart, law, 10.0 * scale))


@claim(
    "kernel.common-component-cancels",
    "A component that all features share, S + c·11ᵀ with any c, has no effect on a centred run, whatever the "
    "weights of "
    "the mean.",
    source="toyld, K6",
    kind="theorem",
    rungs=AT,
    premises=Premises({**CENTRED, "c": step_size(1e-2, 1e2), "uneven": constant(0.0)}, sizes=SMALL),
    proof="1ᵀP = 1ᵀ − (1ᵀw)1ᵀ = 0, so (S + c·11ᵀ)P = S P.",
    without=Without(
        "all features share it equally",
        Premises({**CENTRED, "c": step_size(1e-2, 1e2), "uneven": real(0.0, 1.0)}, sizes=SMALL),
    ),
    cost=4,
)
def common_component_cancels(
    head: Array, phi: Array, words: Array, share: Array, rate: Array, beta: Array, c: Array, uneven: Array
) -> Margin:
    _, _, z, gram = model(head, phi)
    lr, a = rate / np.trace(gram, axis1=1, axis2=2), 1.0 + uneven[:, None] * np.linspace(0.0, 1.0, 8)
    both = gram + c[:, None, None] * a[:, :, None] * a[:, None, :]
    runs = [_run(z, s, words, lr=lr, beta=beta, share=share) for s in (gram, both)]
    scale = (large(z, *runs) + 16.0 * lr * beta * c) * _stretch(rate)
    return stacked(identity(runs[0], runs[1], scale[:, None, None]))


@claim(
    "kernel.centring-leaves",
    "A vector m added to every feature is not wholly removed by centring: every context moves by "
    "−η Σ_u ⟨m, φ_u − μ⟩ R_u more, nothing only if m sees no difference between features that count; centring the "
    "forward "
    "side too, PᵀSP, removes it.",
    source="toyld, K6: what centring cannot do",
    kind="identity",
    rungs=AT,
    premises=Premises({**CENTRED, "shift": reals(WIDTH)}, sizes=SMALL),
    proof="(Φ + 1mᵀ)(Φ − 1μᵀ)ᵀR = Φ(Φ − 1μᵀ)ᵀR + 1mᵀ(Φ − 1μᵀ)ᵀR: a shift leaves features less their mean as they "
    "are, but not "
    "the features of the contexts that are moved. Pᵀ1 = 0.",
    hunt=False,
)
def centring_leaves(
    head: Array, phi: Array, words: Array, share: Array, rate: Array, beta: Array, shift: Array
) -> Margin:
    _, f, z, gram = model(head, phi)
    moved = f + shift[:, None, :]
    more, p = moved @ moved.transpose(0, 2, 1), centred(share)
    objective = objectives.get("dpo", beta=beta)
    grams = (gram, more)
    plain, other = (stepped(world(z, s, words), objective, z, lr=rate, precondition=p) for s in grams)
    r = push_back(z, world(z, gram, words), np.repeat(0.5 * beta[:, None], 2, axis=1))
    less = f - np.einsum("nc,ncd->nd", share, f)[:, None, :]
    law = -rate[:, None, None] * np.einsum("nd,nud,nuv->nv", shift, less, r)[:, None, :]
    scale = (large(plain, other) + 16.0 * (1.0 + beta) * large(f, shift) ** 2)[:, None, None]
    two = [p.transpose(0, 2, 1) @ s @ p for s in grams]
    return stacked(identity(other - plain, law, scale), identity(two[0], two[1], 100.0 * scale))


def _descent(z: Array, gram: Array, words: Array, p: Array, kinds: Any = PAIRS) -> tuple[Array, Array]:
    """−⟨R, ΔZ⟩ of one DPO step of size 1 from the reference, and the size of its terms."""
    one = world(z, gram, words, kinds)
    pairs = one.responses["chosen"].token.shape[1]
    r = push_back(z, one, np.full((len(z), pairs), 0.5))
    change = stepped(one, objectives.get("dpo", beta=1.0), z, lr=1.0, precondition=p) - z
    size = large(gram) * large(p) * large(z) * z.shape[1] ** 2
    return -np.sum(r * change, axis=(1, 2)), size


FIRST = {kind: (at[:1], place[:1]) for kind, (at, place) in PAIRS.items()}
STEP = {**MODEL, "share": shares(8), "other": HEAD, "beta": step_size(0.01, 2.0), "lr": step_size(1e-3, 1.0)}


@claim(
    "kernel.descends",
    "To first order a step lowers the loss by η⟨R, S R⟩ = η‖ΦᵀR‖² = η‖∇_W L‖² ≥ 0, and DPO on a single pair widens its "
    "margin by η k‖∇ℓ_+ − ∇ℓ_−‖², k = β σ(−β(its margin over the reference)).",
    source="toyld, K3 and K6; Yuan et al. 2025, the margin under Condition 1",
    kind="theorem",
    rungs=AT,
    premises=Premises({**STEP, "on": constant(0.0)}, sizes=SMALL),
    proof="dL = ⟨R, dZ⟩ = −η⟨R, S R⟩ and S = ΦΦᵀ; of one pair R_c = −k ∂(ℓ_+ − ℓ_−)/∂z_c.",
    without=Without(
        "the features of the update are those of the forward pass",
        Premises({**STEP, "on": constant(1.0)}, sizes=SMALL),
    ),
    cost=2,
)
def descends(
    head: Array, phi: Array, words: Array, share: Array, other: Array, beta: Array, lr: Array, on: Array
) -> Margin:
    w, f, z, gram = model(head, phi)
    p = np.eye(8) - on[:, None, None] * (np.eye(8) - centred(share))
    value, size = _descent(z, gram, words, p)
    two = gradients(w, f, world(z, gram, words))
    apart = two[:, :2] - two[:, 2:]  # ∇ℓ_+ − ∇ℓ_− of either pair
    slope = -0.25 * apart.sum(axis=1)  # ∇_W L at the reference: k = ½, the mean of two pairs
    one, before = world(z, gram, words, FIRST), model(other, phi)[2]
    change = stepped(one, objectives.get("dpo", beta=beta), z, lr=lr, reference=before, precondition=p) - z
    plus, minus = one.responses.values()
    to = np.zeros_like(z)  # ∂(ℓ_+ − ℓ_−)/∂Z
    for sign, side in ((1.0, plus), (-1.0, minus)):
        np.add.at(to, (np.arange(len(z))[:, None, None], side.context), sign * pulls(z, side))
    over = [(logp(a, plus) - logp(a, minus)).sum((-1, -2)) for a in (z, before)]
    k = beta * expit(-beta * (over[0] - over[1]))
    wider, law = np.sum(to * change, axis=(1, 2)), lr * k * np.sum(apart[:, 0] ** 2, axis=-1)
    lines = [
        identity(value, np.sum(slope**2, axis=-1), size),
        # The engine's own rounding of Z − ηSR, and that of the margin in k.
        identity(wider, law, 12.0 * large(z, change) + lr * beta * (1.0 + beta * large(z, before)) * 12.0 * size),
    ]
    plain = stacked(*(Margin(np.where(on > 0.0, np.inf, m.value), m.bound) for m in lines))
    return stacked(Margin(value, rounding(size)), plain)


ONE_TOKEN = {"chosen": (np.array([[0]]), np.array([[0]])), "rejected": (np.array([[1]]), np.array([[1]]))}


def _centred_rate(head: Any, phi: Any, words: Any) -> arb:
    """⟨R, S P R⟩ of one pair of one token each, w uniform, k = ½, in balls."""
    w, f = ([[Fraction(x) for x in a[i : i + WIDTH]] for i in range(0, len(a), WIDTH)] for a in (head, phi))
    mean = [sum(column) / len(f) for column in zip(*f, strict=True)]
    z = [[exact.ball(sum(a * b for a, b in zip(x, row, strict=True))) for row in w] for x in f]
    p = [exact.tilt([arb(1)] * len(w), row) for row in z]
    r = [[(a - (i == y)) * c / 2 for i, a in enumerate(row)] for row, y, c in zip(p, words, (1, -1), strict=True)]
    total = arb(0)
    for x, left in zip(f, r, strict=True):
        for y, right in zip(f, r, strict=True):
            s = sum(a * (b - m) for a, b, m in zip(x, y, mean, strict=True))
            total += exact.ball(s) * sum((a * b for a, b in zip(left, right, strict=True)), arb(0))
    return total


@claim(
    "kernel.centred-descends",
    "To first order a step with features less their mean lowers the loss.",
    source="toyld, K6: what one expects of it",
    kind="theorem",
    rungs=AT,
    expect="refuted",
    instead="kernel.nearest-mean-descends",
    premises=Premises({"head": HEAD, "phi": vectors(2), "words": words(2)}, sizes=SMALL),
    proof="S P is not symmetric. With φ_1 = 1, φ_2 = ½ the update acts as ¼ on y+'s context and as −¼ on y−'s, "
    "while the "
    "loss reads 1 and ½: where y+ is nearly learned and y− is not, y− rises and takes the margin with it.",
    counterexample=Counterexample(
        {"head": (1, 0, 0, 0, 0, 0), "phi": (1, 0, 0, Fraction(1, 2), 0, 0), "words": (0, 1)}, margin=_centred_rate
    ),
)
def centred_descends(head: Array, phi: Array, words: Array) -> Margin:
    _, _, z, gram = model(head, phi)
    value, size = _descent(z, gram, words, centred(np.full((len(z), 2), 0.5)), ONE_TOKEN)
    return Margin(value, rounding(size))


NEAREST = {**MODEL, "share": shares(8), "common": real(0.1, 3.0), "other": reals(WIDTH), "above": real(1.01, 3.0)}


@claim(
    "kernel.nearest-mean-descends",
    "A centred step never raises the loss to first order, whatever the residual R, if and only if S w = λ·1 (the mean "
    "is the point of the features' affine hull nearest to 0): then S P = S − λ·11ᵀ, and λ is the largest common "
    "component that S has, the largest number that leaves S − λ·11ᵀ positive semidefinite.",
    source="toyld, K6: when descent is guaranteed",
    kind="theorem",
    rungs=AT,
    premises=Premises(
        {**NEAREST, "skew": constant(0.0)},
        sizes=SMALL,
    ),
    proof="If S w = λ1, then λ = wᵀSw, and λ²(1ᵀx)² = (wᵀSx)² ≤ λ xᵀSx makes S − λ11ᵀ positive semidefinite, and no "
    "larger c leaves it so, as wᵀ(S − c11ᵀ)w = λ − c. Conversely q(x) = xᵀSPx has q(w) = 0 and slope Sw − λ1 "
    "there: along y = λ1 − Sw it falls to −‖y‖⁴/(4 max(‖y‖², yᵀSPy)) or below, unless y is zero.",
    without=Without(
        "S w = λ1",
        Premises(
            {**NEAREST, "skew": constant(1.0)},
            sizes=SMALL,
        ),
    ),
    cost=2,
)
def nearest_mean_descends(
    head: Array, phi: Array, words: Array, share: Array, common: Array, other: Array, above: Array, skew: Array
) -> Margin:
    _, f, z, _ = model(head, phi)
    less = f - np.einsum("nc,ncd->nd", share, f)[:, None, :]

    def kernel(skew: Array) -> Array:
        g = less + (skew[:, None] * other)[:, None, :]
        return g @ g.transpose(0, 2, 1) + common[:, None, None] ** 2

    p, gram = centred(share), kernel(skew)
    value, size = _descent(z, gram, words, p)
    scale, most = 64.0 * large(gram), common**2  # S w = common²·1 where there is no skew
    left, less_left = (np.linalg.eigvalsh(gram - (x * most)[:, None, None])[:, 0] for x in (np.ones_like(above), above))
    lines = [
        identity(gram @ p, gram - most[:, None, None], scale[:, None, None]),
        Margin(left, rounding(scale)),
        # wᵀ(S − xλ11ᵀ)w = (1 − x)λ and ‖w‖ ≤ 1
        Margin((1.0 - above) * most - less_left, rounding(scale)),
        _negative_beside(kernel(np.ones(len(z))), share, p),
    ]
    law = stacked(*(m if m.value.ndim > 1 else Margin(m.value[:, None], m.bound[:, None]) for m in lines))
    silent = np.where(skew[:, None] > 0.0, np.inf, law.value)
    return stacked(Margin(value, rounding(size)), Margin(silent, law.bound))


def _negative_beside(gram: Array, share: Array, p: Array) -> Margin:
    """q(x) = xᵀSPx at a point beside w is at most −‖y‖⁴/(4 max(‖y‖², yᵀSPy)), y = λ1 − Sw: some R has ⟨R, SPR⟩ < 0."""
    b = np.einsum("ncu,nu->nc", gram, share)
    y = np.sum(share * b, axis=-1)[:, None] - b
    slope, bend = np.sum(y * y, axis=-1), np.einsum("nc,ncu,nu->n", y, gram @ p, y)
    most = np.maximum(np.maximum(bend, slope), 1e-300)
    x = share + (0.5 * slope / most)[:, None] * y
    beside = np.einsum("nc,ncu,nu->n", x, gram @ p, x)
    return Margin(-0.25 * slope**2 / most - beside, rounding(64.0 * large(gram) * large(x) ** 2))
