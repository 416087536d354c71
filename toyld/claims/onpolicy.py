"""On-policy negatives on one softmax, further statements: PPO's inner epochs, GRPO groups, NSR's alternatives.

Notation as in `toyld.claims.policy`: ρ = π_y/π_old, Â the advantage, a push c on y has the residual c(π − e_y).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.policy import CLIP, GOOD, NSR, ppo_push
from toyld.claims.spaces import label, logits, negative_step, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, at, others, realised, span
from toyld.claims.unlearning import ONE, ZERO, largest

Array = Any
STEPS = 40
INNER = {"z": logits(), "y": label(), "s": step_size(1e-3, 30.0)}


@claim(
    "policy.ppo-inner-epochs",
    "However many inner steps, PPO takes at most max(2s, 2(1 − ε)s − log(1 − ε)) nats from a token with Â = −1.",
    source=f"{PAPER}, App. A.3 on PPO (B2): what the clip protects",
    kind="theorem",
    premises=Premises({**INNER, "clipped": ONE}),
    proof="With x = −log ρ ≥ 0 one step falls by at most s e^{−x}(1 − π_y + π_{y*}) ≤ 2s e^{−x} (unlearning.ga-linear) "
    "and by nothing once x > −log(1 − ε). The last fall starts in 0 ≤ x ≤ −log(1 − ε), where x + 2s e^{−x} is convex: "
    "its maximum is at an end.",
    without=Without("the clip", Premises({**INNER, "clipped": ZERO})),
    cost=8,
)
def ppo_inner_epochs(z: Array, y: Array, s: Array, clipped: Array) -> Margin:
    start, x, scale = at(sm.log_softmax(z), y), np.zeros(len(z)), largest(z)[:, 0]
    for _ in range(STEPS):
        c = np.where(clipped > 0.0, ppo_push(np.exp(-x), -np.ones(len(z))), -np.exp(-x))
        z = sm.step(z, sm.residual(z, y, c=c), s=s)
        x = start - at(sm.log_softmax(z), y)
    most = np.maximum(2.0 * s, 2.0 * (1.0 - CLIP) * s - np.log1p(-CLIP))
    return Margin(most - x, STEPS * rounding(scale + 2.0 * s + x))


def _group(centred: bool) -> dict[str, Field]:
    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        a = 2.0 * u - 1.0
        return a - a.mean(axis=-1, keepdims=True) if centred else a

    taken = Field(lambda size: 4, lambda u, size, case: np.minimum((u * size).astype(int), size - 1))
    return {"z": logits(), "taken": taken, "a": Field(lambda size: 4, decode), "s": step_size()}


@claim(
    "policy.group-cancels",
    "On-policy at one shared context, advantages that sum to zero cancel the π-term: log(π'_j/π_j) = s a_j − "
    "log Σ_k π_k e^{s a_k}, a_j the summed advantage of token j, so that tokens nobody took keep their ratios "
    "(no squeezing among them).",
    source="extends the shared-context identity of a DPO pair (Razin et al. 2025, App. F) to GRPO groups",
    kind="theorem",
    premises=Premises(_group(centred=True)),
    proof="Σ_i Â_i(π − e_{y_i}) = π Σ_i Â_i − Σ_i Â_i e_{y_i} and Σ_i Â_i = 0. The others all rise iff "
    "Σ_k π_k e^{s a_k} < 1.",
    without=Without("the advantages sum to zero", Premises(_group(centred=False))),
)
def group_cancels(z: Array, taken: Array, a: Array, s: Array) -> Margin:
    members = range(a.shape[1])
    g = sum(sm.residual(z, taken[:, i], c=a[:, i]) for i in members)
    done = sm.log_softmax(sm.step(z, g, s=s)) - sm.log_softmax(z)
    push = s[:, None] * sum(a[:, i, None] * sm.one_hot(z, taken[:, i]) for i in members)
    law = push - np.logaddexp.reduce(sm.log_softmax(z) + push, axis=-1)[:, None]
    return identity(done, law, span(z, s * np.abs(a).sum(-1), done))


@claim(
    "policy.nsr-shares-by-prior",
    "A negative sample's mass goes to the other tokens in proportion to their probabilities: their ratios stay.",
    source=f"{NSR}, redistribution “guided by the model's prior”, read literally",
    kind="theorem",
    expect="refuted",
    instead="policy.nsr-ratios-widen",
    premises=negative_step(sizes=THREE_OR_MORE),
    proof="The logits move in proportion to π_j, so the probabilities by e^{sπ_yπ_j}: the likely ones gain more.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), "y": 1, "s": Fraction(1)},
        margin=lambda p, y, s: -abs(exact.log_alphas(p, y, s * p[y])[0] - exact.log_alphas(p, y, s * p[y])[2]),
        note="classes 0 and 2",
    ),
)
def nsr_shares_by_prior(z: Array, y: Array, s: Array) -> Margin:
    done, rest = realised(z, y, s * at(sm.softmax(z), y)), others(z, y)
    spread = np.where(rest, done, -np.inf).max(-1) - np.where(rest, done, np.inf).min(-1)
    return Margin(-spread, rounding(span(z, s, done)[:, 0]))


def _among(correct: bool) -> Premises:
    inside = Field(lambda size: 0, lambda u, size, case: case["good"] if correct else 1.0 - case["good"])
    fields = {"z": logits(), "good": GOOD, "s": step_size(), "inside": inside}
    return Premises(fields, where=lambda inside, **_: inside.max(-1) > 0.0)


@claim(
    "policy.expected-step-narrows",
    "An exact on-policy step, PSR or NSR alike, lowers the entropy among the correct answers, at every step size.",
    source=f"{NSR}: both collapse under exact gradients",
    kind="theorem",
    premises=_among(correct=True),
    proof="Within the correct set the step adds s(1 − π(correct))π_i to z_i, a tilt that rises with π_i: as in "
    "policy.nsr-ratios-widen. Among the wrong ones it subtracts sπ(correct)π_j and flattens at first.",
    without=Without("the answers are the correct ones (here the wrong ones)", _among(correct=False)),
)
def expected_step_narrows(z: Array, good: Array, s: Array, inside: Array) -> Margin:
    p = sm.softmax(z)
    after = sm.step(z, -p * (good - (p * good).sum(-1, keepdims=True)), s=s)
    before, now = (sm.entropy(np.where(inside > 0.0, a, -np.inf)) for a in (z, after))
    return Margin(before - now, rounding(span(z, s)[:, 0]))
