"""Many contexts, one kernel: steps against gradient flow (K7), stable for positive residuals, never for negative "
"ones.

Notation as in `toyld.claims.kernel`. L is the mean over n rows of −ℓ (SFT) or ℓ (gradient ascent), N_c the number of
tokens trained at context c, and λ = λ_max(√N S √N)/n; where every context is trained once λ = λ_max(S)/n.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb

from toyld import contexts, objectives
from toyld.claims import exact
from toyld.claims.base import Counterexample, Margin, Premises, Without, claim, rounding
from toyld.claims.kernel_cases import AT, HEAD, large, logp, model, stacked, tables, vectors, words, world
from toyld.claims.spaces import constant, real, step_size
from toyld.contexts import State
from toyld.contexts.flow import flow

Array = Any
SMALL = (2, 3, 4, 8)
STEPS = 4
# Three rows of two tokens; context 0 is trained three times, 1 twice, 2 once.
ROWS = (np.array([[0, 1], [0, 1], [0, 2]]), np.array([[0, 1], [2, 3], [4, 5]]))
COUNT = np.array([3.0, 2.0, 1.0])
CASE = {"head": HEAD, "phi": vectors(3), "words": words(6)}


def _top(gram: Array) -> Array:
    """λ of the rows above, (n,)."""
    root = np.sqrt(COUNT)
    return np.linalg.eigvalsh(root[:, None] * gram * root)[:, -1] / len(ROWS[0])


def _train(z: Array, gram: Array, words: Array, *, sign: Array, lr: Array, steps: int = STEPS) -> tuple[Array, Array]:
    """(Z, A) after each of `steps` updates, (steps + 1, n, C, V): SFT where sign is 1, gradient ascent where it "
    "is −1."""
    state, out = State(z, np.zeros_like(z)), []
    up = bool(np.all(sign > 0.0))
    side = {"chosen": "rows", "rejected": None} if up else {"chosen": None, "rejected": "rows"}
    one = world(z, gram, words, {"rows": ROWS})
    for _ in range(steps + 1):
        out.append(state)
        options: dict[str, Any] = {"at": (), "form": "kernel", **side}
        state = contexts.train(one, objectives.get("sft" if up else "ga"), lr=lr, steps=1, state=state, **options).state
    return np.stack([s.logits for s in out]), np.stack([s.dual for s in out])


def _losses(z: Array, gram: Array, words: Array, sign: Array) -> Array:
    """L at every step, (n, steps + 1)."""
    rows = world(z[0], gram, words, {"rows": ROWS}).responses["rows"]
    return np.stack([-sign * logp(now, rows).sum((1, 2)) / len(ROWS[0]) for now in z], axis=1)


def _fall(z: Array, gram: Array, words: Array, sign: Array) -> Margin:
    """L falls at every step."""
    return Margin(-np.diff(_losses(z, gram, words, sign), axis=1), rounding(2.0 * large(*z))[:, None])


@claim(
    "kernel.sft-descends",
    "The loss of SFT never rises at a step with η λ ≤ 4, however the contexts are coupled; no larger number than "
    "4 will do.",
    source="toyld, K7",
    kind="theorem",
    rungs=AT,
    premises=Premises({**CASE, "rate": real(0.01, 4.0)}, sizes=SMALL),
    proof="diag π − ππᵀ ≤ ½, so the Hessian of L in W, Σ_c (N_c/n)(diag π_c − π_cπ_cᵀ) ⊗ φ_cφ_cᵀ, is at most ½ λ, "
    "and a step changes L "
    "by at most −η(1 − ηλ/4)‖∇L‖². ½ is met at π = (½, ½): with two labels in conflict at one context x = z_1 − "
    "z_2 goes to "
    "x − ηλ tanh(x/2), which is farther from the optimum 0 than x if ηλ > 4 and x is small.",
    without=Without("η λ ≤ 4", Premises({**CASE, "rate": real(4.4, 8.0)}, sizes=SMALL)),
    cost=2,
)
def sft_descends(head: Array, phi: Array, words: Array, rate: Array) -> Margin:
    _, _, z, gram = model(head, phi)
    sign = np.ones(len(z))
    return _fall(_train(z, gram, words, sign=sign, lr=rate / _top(gram))[0], gram, words, sign)


def _distance(head: Array, other: Array, phi: Array, words: Array, *, sign: Array, lr: Array) -> Margin:
    """‖W − W'‖² of two runs from two heads at every step, less that at the step before."""
    value, size = [], []
    for w in (head, other):
        start, f, z, gram = model(w, phi)
        logits, dual = _train(z, gram, words, sign=sign, lr=lr)
        value.append(start - np.einsum("tncv,ncd->tnvd", dual, f))
        size.append(large(*logits) + large(start) + large(f) * large(*dual))
    apart = np.sum((value[0] - value[1]) ** 2, axis=(2, 3)).T
    scale = apart.max(axis=1) + np.sqrt(apart.max(axis=1)) * (size[0] + size[1])
    return Margin(np.diff(apart, axis=1), rounding(scale * head.shape[1])[:, None])


@claim(
    "kernel.sft-runs-approach",
    "Two SFT runs on the same rows never move apart, ‖W − W'‖ falls or stays at every step with η λ ≤ 4: errors "
    "made on the "
    "way are forgotten, not amplified.",
    source="toyld, K7: stability for positive residuals",
    kind="theorem",
    rungs=AT,
    premises=Premises({**CASE, "other": HEAD, "rate": real(0.01, 4.0)}, sizes=SMALL),
    proof="L is convex in W with a gradient of Lipschitz constant ½λ, so ⟨∇L − ∇L', W − W'⟩ ≥ 2‖∇L − ∇L'‖²/λ "
    "(Baillon, Haddad), and "
    "‖W − W' − η(∇L − ∇L')‖² ≤ ‖W − W'‖² − η(4/λ − η)‖∇L − ∇L'‖².",
    without=Without("η λ ≤ 4", Premises({**CASE, "other": HEAD, "rate": real(4.4, 8.0)}, sizes=SMALL)),
    cost=2,
)
def sft_runs_approach(head: Array, phi: Array, words: Array, other: Array, rate: Array) -> Margin:
    gram = model(head, phi)[3]
    apart = _distance(head, other, phi, words, sign=np.ones(len(head)), lr=rate / _top(gram))
    return Margin(-apart.value, apart.bound)


ASCENT = {**CASE, "other": HEAD, "lr": step_size(1e-3, 10.0)}


@claim(
    "kernel.ascent-runs-part",
    "Under gradient ascent (c = −1) the objective's own loss falls at every step of any size, and two runs on the "
    "same rows "
    "never approach: ‖W − W'‖ rises or stays, so that no step is small enough for errors to be forgotten.",
    source="toyld, K7: no stability for negative residuals",
    kind="theorem",
    rungs=AT,
    premises=Premises({**ASCENT, "sign": constant(-1.0)}, sizes=SMALL),
    proof="L = mean ℓ is concave in W: it lies below its tangent, L(W − η∇L) ≤ L − η‖∇L‖², and ⟨∇L − ∇L', W − W'⟩ "
    "≤ 0, so that "
    "‖W − W' − η(∇L − ∇L')‖² ≥ ‖W − W'‖².",
    without=Without("the residual is negative", Premises({**ASCENT, "sign": constant(1.0)}, sizes=SMALL)),
    cost=2,
)
def ascent_runs_part(head: Array, phi: Array, words: Array, other: Array, lr: Array, sign: Array) -> Margin:
    _, _, z, gram = model(head, phi)
    falls = _fall(_train(z, gram, words, sign=sign, lr=lr)[0], gram, words, sign)
    return stacked(falls, _distance(head, other, phi, words, sign=sign, lr=lr))


def _gap(p: Any, s: Any) -> arb:
    """−(growth of |x − x'|) of two runs of gradient ascent on class 0 of two, x = z_0 − z_1, in balls."""
    x = [(exact.ball(a) / exact.ball(b)).log() for a, b in (p[:2], p[2:])]
    new = [a - 2 * exact.ball(s) * exact.ball(b) for a, b in zip(x, (p[1], p[3]), strict=True)]
    return abs(x[0] - x[1]) - abs(new[0] - new[1])


@claim(
    "kernel.small-steps-forget",
    "For every loss there is a step small enough that two runs on the same rows do not move apart.",
    source="toyld, K7 read for negative residuals",
    kind="theorem",
    rungs=AT,
    expect="refuted",
    instead="kernel.ascent-runs-part",
    premises=Premises({"z": tables(2), "s": step_size(1e-6, 1.0)}, sizes=(2,)),
    proof="Under gradient ascent on one of two classes x = z_0 − z_1 goes to x − 2s(1 − σ(x)), whose slope "
    "exceeds 1 for every s > 0.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2), Fraction(2, 3), Fraction(1, 3)), "s": Fraction(1, 1000)}, margin=_gap
    ),
)
def small_steps_forget(z: Array, s: Array) -> Margin:
    n = len(z)
    starts, label = z.reshape(n, 2, -1), np.zeros((n, 1))
    rows = {"rows": (np.array([[0]]), np.array([[0]]))}
    new = []
    for i in (0, 1):
        one = world(starts[:, i : i + 1], np.ones((n, 1, 1)), label, rows)
        options: dict[str, Any] = {"chosen": None, "rejected": "rows", "at": ()}
        new.append(contexts.train(one, objectives.get("ga"), lr=s, steps=1, **options).state.logits[:, 0])
    before, after = (np.sqrt(np.sum((a - b) ** 2, axis=-1)) for a, b in (starts.transpose(1, 0, 2), new))
    return Margin(before - after, rounding(large(z, *new)))


LONG, TOLERANCE = 6, 1e-9


@claim(
    "kernel.steps-follow-the-flow",
    "After time t SFT in steps with η λ ≤ 4 is within ηtλ‖∇L(W_0)‖/4 of gradient flow, in ‖W − W(t)‖: order one in η.",
    source="toyld, K7",
    kind="theorem",
    rungs=AT,
    premises=Premises({**CASE, "rate": real(0.01, 4.0), "sign": constant(1.0)}, sizes=(2, 3, 4)),
    proof="Along the flow ‖Ẅ‖ = ‖∇²L ∇L‖ ≤ ½λ‖∇L‖, and ‖∇L‖ falls; a step errs by at most ½η² of it, and later steps "
    "amplify nothing (kernel.sft-runs-approach).",
    without=Without(
        "the residual is positive",
        Premises({**CASE, "rate": real(0.01, 4.0), "sign": constant(-1.0)}, sizes=(2, 3, 4)),
    ),
    cost=40,
    hunt=False,
)
def steps_follow_the_flow(head: Array, phi: Array, words: Array, rate: Array, sign: Array) -> Margin:
    _, f, z, gram = model(head, phi)
    top = _top(gram)
    lr = rate / top
    dual = _train(z, gram, words, sign=sign, lr=lr, steps=LONG)[1]
    up = bool(np.all(sign > 0.0))
    side: dict[str, Any] = {"chosen": "rows", "rejected": None} if up else {"chosen": None, "rejected": "rows"}
    one = world(z, gram, words, {"rows": ROWS})
    options: dict[str, Any] = {"rtol": TOLERANCE, "atol": TOLERANCE, "at": (), **side}
    limit = flow(one, objectives.get("sft" if up else "ga"), lr=lr, steps=LONG, **options).state.dual
    apart, slope = (
        np.sqrt(np.sum(np.einsum("ncv,ncd->nvd", a, f) ** 2, axis=(1, 2))) for a in (dual[-1] - limit, dual[1])
    )
    most = LONG * rate / 4.0 * slope  # η‖∇L(W_0)‖ is how far the first step goes
    # The integrator errs by its tolerance a step, of which it takes some hundreds.
    return Margin(most - apart, 1e3 * TOLERANCE * large(limit) * large(f))
