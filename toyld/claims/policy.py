"""Negative gradients of policy optimisation on one softmax: PPO, GRPO, NSR, TOPR, AsymRE (App. A.3 and later papers).

Notation: ρ = π_y/π_old the ratio of a taken token y, Â its advantage, µ the behaviour law of an off-policy data set,
r rewards, b a baseline (AsymRE's V), w = µ(r − b) and δ = Σ w = E_µ r − b. A push c on y has the residual c(π − e_y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from scipy.special import xlogy

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import label, logits, negative_step, probabilities, real, reals, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, at, others, span
from toyld.claims.unlearning import ONE, ZERO, gradient, largest, pick

Array = Any
NSR = "Zhu et al. 2025, negative sample reinforcement (arXiv 2506.01347)"
TOPR = "TOPR, tapered off-policy REINFORCE (arXiv 2503.14286)"
ASYMRE = "Arnal et al. 2025, AsymRE (arXiv 2506.20520), Thm 4.2"
CLIP = 0.2
MILLIONTH = Fraction(1, 10**6)
SMALL = (2, 3, 4, 8)
GOOD = Field(lambda size: size, lambda u, size, case: (u < 0.5).astype(float))
OFF_POLICY = {"z": logits(), "mu": probabilities(), "r": reals()}
ARMS = {"mu": probabilities(), "r": reals(), "gap": real(0.1, 3.0)}
START = {"z": logits(high=3.0), **ARMS}


def ppo_push(ratio: Array, advantage: Array) -> Array:
    """c = Âρ, or 0 once the clip has cut the token off: ρ < 1 − ε for Â < 0, ρ > 1 + ε for Â > 0."""
    cut = np.where(advantage < 0.0, ratio < 1.0 - CLIP, ratio > 1.0 + CLIP)
    return np.where(cut, 0.0, advantage * ratio)


@claim(
    "policy.ppo-push",
    "PPO's clipped loss −min(ρÂ, clip(ρ, 1 − ε, 1 + ε)Â) has the residual c(π − e_y), c = Âρ up to the clip and "
    "exactly 0 beyond it (for Â < 0: below ρ = 1 − ε).",
    source=f"{PAPER}, App. A.3 on PPO (B2), made exact",
    kind="identity",
    premises=Premises(
        {"z": logits(), "y": label(), "u": real(-2.0, 2.0), "a": real(-3.0, 3.0)},
        where=lambda z, y, u, a: np.abs(np.abs(np.expm1(u)) - CLIP) > 1e-9,  # the loss has a kink there
    ),
    proof="For Â < 0 the min is Â max(ρ, 1 − ε), for Â > 0 it is Â min(ρ, 1 + ε); dρ/dz = ρ(e_y − π). The push is "
    "linear in π_y; the residual's own entry Âπ_y(1 − π_y)/π_old is not, and shrinks with π_y only below π_y = 1/2.",
)
def ppo_push_is(z: Array, y: Array, u: Array, a: Array) -> Margin:
    def loss(logp: Any, y: Any, old: Any, advantage: Any) -> Any:
        ratio = (pick(logp, y) - old).exp()
        return -(ratio * advantage).minimum(ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * advantage)

    c, old = ppo_push(np.exp(u), a), at(sm.log_softmax(z), y) - u
    return identity(gradient(loss, z, y, old, a), sm.residual(z, y, c=c), (1.0 + np.abs(c))[:, None] * largest(z))


@claim(
    "policy.ppo-spares-valleys",
    "PPO never puts a large negative gradient on a valley: if Â = −1 and log π_y ≤ −H(π), its residual is |G_y| ≤ 1/2.",
    source=f"{PAPER}, App. A.3 (F9), read without reference to π_old",
    kind="theorem",
    expect="refuted",
    instead="policy.ppo-push",
    premises=Premises(
        {"z": logits(), "y": label(), "rho": real(0.8, 1.2)}, where=lambda z, y, rho: sm.valley_depth(z, y) >= 0.0
    ),
    proof="At the first inner step π = π_old, so ρ = 1 and |G_y| = 1 − π_y: the full push, however rare the token. The "
    "damping is relative to π_old; it protects later inner steps only.",
    counterexample=Counterexample(
        {"p": (1 - MILLIONTH, MILLIONTH), "y": 1, "rho": Fraction(1)},
        margin=lambda p, y, rho: exact.ball(Fraction(1, 2) - rho * (1 - p[y])),
        note="|G_y| = .999999",
    ),
)
def ppo_spares_valleys(z: Array, y: Array, rho: Array) -> Margin:
    g = sm.residual(z, y, c=ppo_push(rho, -np.ones(len(z))))
    return Margin(0.5 - np.abs(at(g, y)), rounding(largest(z)[:, 0]))


def _correct(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
    count = 1 + np.minimum((u[:, 0] * (size - 1)).astype(int), size - 2)
    return (np.arange(size) < count[:, None]).astype(float)


@claim(
    "policy.grpo-weights",
    "GRPO's advantages of a group with a share p of correct answers are (1 − p)/√(p(1 − p)) and −p/√(p(1 − p)): up and "
    "down carry the same total weight, N⁺p⁺ = N⁻p⁻ = N√(p(1 − p)).",
    source="Deng et al. 2025, NTHR (arXiv 2505.18830), Lemma 4.2",
    kind="identity",
    premises=Premises({"r": Field(lambda size: 1, _correct)}),  # the V of `sizes` is the group size here
    proof="Binary rewards have mean p and variance p(1 − p). Another normaliser would scale both sides alike.",
)
def grpo_weights(r: Array) -> Margin:
    p, size = r.mean(axis=-1, keepdims=True), r.shape[-1]
    a, spread = (r - p) / r.std(axis=-1, keepdims=True), np.sqrt(p * (1.0 - p))
    up, down = (a * r).sum(-1, keepdims=True), (a * (1.0 - r)).sum(-1, keepdims=True)
    want = [np.where(r > 0.0, (1.0 - p) / spread, -p / spread), size * spread, -size * spread]
    return identity(np.concatenate([a, up, down], -1), np.concatenate(want, -1), size)


@claim(
    "policy.nsr-residual",
    "A negative sample written on the probability, L = +π_y, has G_y = π_y(1 − π_y) and G_j = −π_yπ_j; written as a "
    "ratio, L = +π_y/π_old, it has on-policy −(π − e_y), without the extra π_y.",
    source=f"{NSR}, Eq. 8, and its code (`returns − 1` with the PPO ratio)",
    kind="identity",
    premises=Premises({"z": logits(), "y": label()}),
    proof="dπ_y/dz = π_y(e_y − π). Divided by π_old = π_y the factor is gone: rare tokens get the full push.",
)
def nsr_residual(z: Array, y: Array) -> Margin:
    old, p, p_y = at(sm.log_softmax(z), y), sm.softmax(z), at(sm.softmax(z), y)[:, None]
    on_probability = gradient(lambda logp, y: pick(logp, y).exp(), z, y)
    on_ratio = gradient(lambda logp, y, old: (pick(logp, y) - old).exp(), z, y, old)
    formula = p_y * np.where(sm.one_hot(z, y), 1.0 - p, -p)
    got, want = np.stack([on_probability, on_ratio], 1), np.stack([formula, sm.residual(z, y, c=-1.0)], 1)
    return identity(got, want, largest(z)[..., None])


@claim(
    "policy.nsr-ratios-widen",
    "A negative sample widens every ratio among the other tokens, log(π'_i/π'_j) = log(π_i/π_j) + sπ_y(π_i − π_j), and "
    "lowers the entropy of the alternatives, at every step size.",
    source=f"{NSR}, Eq. 8, at a finite step",
    kind="theorem",
    premises=negative_step(sizes=THREE_OR_MORE),
    proof="Among i ≠ y the law q ∝ π is tilted to q_s ∝ q e^{sπ_yπ_i}; dH(q_s)/ds = −π_y Cov(log q_s, π) ≤ 0, as "
    "log q_s rises with π_i. In the ratio form of the code s takes the place of sπ_y.",
    without=Without(
        "the sample is negative (s > 0)",
        Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)}, sizes=THREE_OR_MORE),
    ),
)
def nsr_ratios_widen(z: Array, y: Array, s: Array) -> Margin:
    p, rest, star = sm.softmax(z), others(z, y), sm.runner_up(z, y)
    after = sm.step(z, sm.residual(z, y, c=-at(p, y)), s=s)
    change = sm.log_softmax(after) - sm.log_softmax(z)
    law = (s * at(p, y))[:, None] * (p - at(p, star)[:, None])
    bound = rounding(span(z, np.abs(s)))
    ratios = np.where(rest, bound - np.abs(change - at(change, star)[:, None] - law), np.inf)
    before, now = (sm.entropy(np.where(rest, a, -np.inf)) for a in (z, after))
    return Margin(np.concatenate([ratios, (before - now)[:, None]], axis=-1), bound)


def expected_gradient(z: Array, r: Array) -> Array:
    """∇E_{y~π} of REINFORCE's surrogate r_y log π_y in z (n, V), every y enumerated, by automatic differentiation."""
    weight = sm.softmax(z) * r  # the sampling probabilities carry no gradient
    return gradient(lambda logp, weight: (weight * logp).sum(-1), z, weight)


@claim(
    "policy.psr-equals-nsr",
    "On-policy in expectation positive-only and negative-only reinforcement are one gradient, "
    "π_i(1[i correct] − π(correct)), and so is REINFORCE with any baseline.",
    source=f"{NSR}, PSR and NSR; no exact-gradient run on one softmax separates them",
    kind="identity",
    premises=Premises({"z": logits(), "good": GOOD, "b": real(-3.0, 3.0)}),
    proof="E_{y~π}[e_y − π] = 0, so a constant added to r changes nothing: r = 1[correct] (PSR), r − 1 (NSR), r − b. "
    "In general the gradient is π_i(r_i − E_π r).",
)
def psr_equals_nsr(z: Array, good: Array, b: Array) -> Margin:
    p = sm.softmax(z)
    want = p * (good - (p * good).sum(-1, keepdims=True))
    got = np.stack([expected_gradient(z, r) for r in (good, good - 1.0, good - b[:, None])], axis=1)
    return identity(got, want[:, None, :], (4.0 * largest(z))[..., None])


def _apart(p: Sequence[Fraction], good: Sequence[Fraction]) -> Any:
    """‖PSR − NSR‖₁ − ‖PSR‖₁/100 as a ball, each gradient Σ_y π_y r_y(e_y − π) summed by itself."""
    n = range(len(p))
    psr, nsr = ([sum((p[y] * (good[y] - b) * ((y == i) - p[i]) for y in n), Fraction(0)) for i in n] for b in (0, 1))
    return exact.ball(sum((abs(a - b) - abs(a) / 100 for a, b in zip(psr, nsr, strict=True)), Fraction(0)))


@claim(
    "policy.nsr-differs-in-expectation",
    "With exact on-policy gradients NSR moves the policy otherwise than PSR, by at least 1 % of the gradient.",
    source=f"{NSR}: diversity under NSR, read as a property of the expected gradient; the 1 % is our reading",
    kind="theorem",
    expect="refuted",
    instead="policy.psr-equals-nsr",
    premises=Premises({"z": logits(), "good": GOOD}, where=lambda z, good: (good.max(-1) > 0.0) & (good.min(-1) < 1.0)),
    proof="The two expected gradients are equal; what separates the methods in practice is sampling or approximation.",
    counterexample=Counterexample({"p": (Fraction(1, 2), Fraction(1, 2)), "good": (1, 0)}, margin=_apart),
)
def nsr_differs_in_expectation(z: Array, good: Array) -> Margin:
    psr, nsr = expected_gradient(z, good), expected_gradient(z, good - 1.0)
    return Margin(np.abs(psr - nsr).sum(-1) - 0.01 * np.abs(psr).sum(-1), rounding(largest(z)[:, 0]))


def topr_objective(logp: Any, mu: Any, r: Any) -> Any:
    """J (n,) = Σ_{r>0} µ r log π + Σ_{r<0} r g(π), g = π up to µ and µ(1 + log(π/µ)) beyond; numpy or torch."""
    xp = array_namespace(logp)
    ratio = logp - xp.log(mu)
    return (r * xp.where(r > 0.0, mu * logp, xp.where(ratio <= 0.0, xp.exp(logp), mu * (1.0 + ratio)))).sum(-1)


@claim(
    "policy.topr-objective",
    "TOPR's update, negatives weighted by min(1, π/µ) without gradient, ascends J = Σ_{r>0} µr log π + Σ_{r<0} r g(π), "
    "g(π) = π for π ≤ µ and µ(1 + log(π/µ)) beyond.",
    source=f"{TOPR}, truncated importance weights on negatives; J derived here",
    kind="identity",
    premises=Premises(OFF_POLICY),
    proof="The term of y is µ r min(1, π/µ)∇log π = r (min(µ, π)/π)∇π = r g'(π)∇π.",
)
def topr_ascends(z: Array, mu: Array, r: Array) -> Margin:
    weight = mu * r * np.where(r > 0.0, 1.0, np.minimum(1.0, sm.softmax(z) / mu))
    update = gradient(lambda logp, weight: (weight * logp).sum(-1), z, weight)
    return identity(update, gradient(topr_objective, z, mu, r), np.abs(r).sum(-1, keepdims=True) * largest(z))


def _punished(truncated: Field) -> Premises:
    fields = {**OFF_POLICY, "t": step_size(1e-3, 1e3), "truncated": truncated}
    return Premises(fields, where=lambda r, **_: r.min(-1) < 0.0)


@claim(
    "policy.topr-bounded",
    "TOPR's J has the supremum Σ₊ w log(w/W₊), w = µr where r > 0, W₊ = Σ₊ w; the untruncated E_µ[r log π] has none: "
    "along z − t e_y with r_y < 0 it gains at least tµ_y|r_y| − max(0, −E_µ r)|log(1 − π_y)|.",
    source=f"{TOPR}, bounded against unbounded, both made quantitative",
    kind="theorem",
    premises=_punished(ONE),
    proof="g ≥ 0, so J's negative part is ≤ 0, and Gibbs' inequality bounds the rest; z = log w there and −t elsewhere "
    "comes as close as one likes. Untruncated the gain is tµ_y|r_y| − E_µ[r] log(1 − π_y(1 − e^{−t})).",
    without=Without("the truncation", _punished(ZERO)),
)
def topr_bounded(z: Array, mu: Array, r: Array, t: Array, truncated: Array) -> Margin:
    w, y = mu * r, np.argmin(r, axis=-1)
    plus = np.maximum(w, 0.0)
    best = xlogy(plus, plus / np.maximum(plus.sum(-1, keepdims=True), 1e-300)).sum(-1)
    near = sm.log_softmax(np.where(plus > 0.0, np.log(np.maximum(plus, 1e-300)), -800.0))
    logp, path = sm.log_softmax(z), sm.log_softmax(z - t[:, None] * sm.one_hot(z, y))
    here, far = (w * logp).sum(-1), (w * path).sum(-1)
    gain = far - here + t * at(w, y) + np.minimum(0.0, w.sum(-1)) * sm.log_not(z, y)
    below = best - np.where(truncated > 0.0, topr_objective(logp, mu, r), here)
    close = np.where(plus.max(-1) > 0.0, -np.abs(topr_objective(near, mu, r) - best), np.inf)
    return Margin(np.stack([below, close, gain], -1), rounding(np.abs(r).sum(-1) * (largest(z)[:, 0] + t))[:, None])


@claim(
    "policy.topr-share",
    "Data with a share p of correct answers, rewards ±1 and a baseline c have the effective positive share "
    "p̃ = p(1 − c)/(1 + c(1 − 2p)); a wanted p̃ needs c = (p − p̃)/(p + p̃ − 2pp̃).",
    source=f"{TOPR}, effective proportion of positives; the inverse derived here",
    kind="identity",
    premises=Premises({"p": real(0.01, 0.99), "c": real(-0.95, 0.95)}, sizes=(2,)),
    proof="Positives weigh p|1 − c|, negatives (1 − p)|−1 − c|; their sum is 1 + c(1 − 2p). Solve for c.",
)
def topr_share(p: Array, c: Array) -> Margin:
    plus, minus = p * np.abs(1.0 - c), (1.0 - p) * np.abs(-1.0 - c)
    share = p * (1.0 - c) / (1.0 + c * (1.0 - 2.0 * p))
    back = (p - share) / (p + share - 2.0 * p * share)
    got, want = np.stack([plus / (plus + minus), back], -1), np.stack([share, c], -1)
    return identity(got, want, 1.0 / (p * (1.0 - p) * (1.0 - c * c))[:, None])


def arms(mu: Array, r: Array, gap: Array) -> tuple[Array, Array]:
    """(w, b): w = µ(r − b) at the baseline b = E_µ r − gap, so that Σ w = gap."""
    b = (mu * r).sum(-1) - gap
    return mu * (r - b[:, None]), b


def asymre_run(z: Array, w: Array, gap: Array, s: Array, steps: int) -> Array:
    """Logits after exact-gradient ascent of Σ w log π: z ← z + s(w − gap π)."""
    for _ in range(steps):
        z = sm.step(z, gap[:, None] * sm.softmax(z) - w, s=s)
    return z


@claim(
    "policy.asymre-water-filling",
    "For b < E_µ r AsymRE's limit, from every start, is the law π* nearest to w/δ: after n exact steps with sδ ≤ 2, "
    "‖π_n − π*‖² ≤ ‖π(x) − w/δ‖² − ‖π* − w/δ‖² + ‖z_0 − x‖²/(nsδ)² for every x.",
    source=f"{ASYMRE}; proof and rate (‖π_n − π*‖ = O(log n/n)) derived here",
    kind="theorem",
    premises=Premises({**START, "k": real(0.1, 2.0)}, sizes=SMALL),
    proof="f(z) = δ log Σ e^z − ⟨w, z⟩ is convex, its gradient g = δπ − w is δ/2-Lipschitz. For s ≤ 2/δ, any x and "
    "D_k = ‖z_k − x‖: 2s(f(z_{k+1}) − f(x)) ≤ D_k² − D_{k+1}² − s²‖g_{k+1}‖²; f(z_k) − f(z_n) ≥ s(n − k)‖g_n‖², as ‖g‖ "
    "never grows; f(z_n) − f(x) ≥ −‖g(x)‖D_n. Summed: ‖g_n‖² ≤ ‖g(x)‖² + D_0²/(ns)². The gradients' closure is convex "
    "with least element v = δπ* − w, so ‖g_n − v‖² ≤ ‖g_n‖² − ‖v‖². Take x = log max(π*, (nsδ)^{−2}). The KKT "
    "conditions: (w − δπ*)_i is λ on the support and ≤ λ off it.",
    without=Without("sδ ≤ 2", Premises({**START, "k": real(2.0, 20.0)}, sizes=SMALL)),
    cost=10,
)
def asymre_water_filling(z: Array, mu: Array, r: Array, gap: Array, k: Array) -> Margin:
    (w, b), n = arms(mu, r, gap), 300
    x, law = w / gap[:, None], sm.water_filling(mu, r, baseline=b)
    off = ((sm.softmax(asymre_run(z, w, gap, k / gap, n)) - law) ** 2).sum(-1)
    anchor = np.log(np.maximum(law, 1.0 / (k * n)[:, None] ** 2))
    shift = z - anchor - (z - anchor).mean(-1, keepdims=True)
    most = ((sm.softmax(anchor) - x) ** 2).sum(-1) - ((law - x) ** 2).sum(-1) + (shift**2).sum(-1) / (k * n) ** 2
    kkt = ((x - law) * law).sum(-1, keepdims=True) - (x - law)
    size = 1.0 + np.abs(x).sum(-1)
    bound = n * rounding(np.abs(z).max(-1) + k * n * size) + rounding(size**2)
    total = -np.abs(law.sum(-1, keepdims=True) - 1.0)
    fine = np.broadcast_to(rounding(size)[:, None], (len(size), kkt.shape[-1] + 1))
    return Margin(np.concatenate([(most - off)[:, None], kkt, total], -1), np.column_stack([bound, fine]))


@claim(
    "policy.asymre-support",
    "Arm i is in the limit's support iff Σ_j min(w_i, w_j) > 0; so the supports are nested and only shrink as b rises "
    "to E_µ r, down to argmax_i µ_i(r_i − E_µ r).",
    source=f"{ASYMRE}, shrinking support; the rule derived here",
    kind="theorem",
    premises=Premises({**ARMS, "more": real(0.0, 0.99)}),
    proof="i is in iff Σ_j [w_j − w_i]₊ < δ = Σ_j w_j, that is Σ_j (w_j − [w_j − w_i]₊) = Σ_j min(w_i, w_j) > 0; every "
    "w_j = µ_j(r_j − b) falls with b.",
    without=Without("the second baseline is the larger one", Premises({**ARMS, "more": real(-5.0, 0.0)})),
)
def asymre_support(mu: Array, r: Array, gap: Array, more: Array) -> Margin:
    rule, inside, scale = [], [], np.zeros(len(gap))
    for share in (0.0 * more, more):
        w, b = arms(mu, r, gap * (1.0 - share))
        inside.append(sm.water_filling(mu, r, baseline=b) > 0.0)
        rule.append(np.minimum(w[:, :, None], w[:, None, :]).sum(-1))
        scale = np.maximum(scale, np.abs(w).sum(-1) * w.shape[-1])
    agree = [np.where(a, m, -m) for a, m in zip(inside, rule, strict=True)]
    return Margin(np.concatenate([*agree, np.where(inside[1], rule[0], np.inf)], -1), rounding(scale)[:, None])


def depth(w: Array, gap: Array, i: Array) -> Array:
    """θ_i (n,) = (w_i + gap − max_{j≠i} w_j)/(2 gap): at baseline E_µ r + gap atom i attracts from π_i > 1 − θ_i."""
    return 0.5 * (at(w, i) + gap - np.where(others(w, i), w, -np.inf).max(-1)) / gap


def _start(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
    """Logits of a law with π_i anywhere in (1 − θ_i, 1), or in (0, 1) if the case says `inside` = 0."""
    theta = depth(arms(case["mu"], case["r"], -case["gap"])[0], case["gap"], case["i"])
    reach = np.where(case["inside"] > 0.0, np.clip(theta, 0.0, 1.0), 1.0)
    missing, other = (0.999 * (1.0 - u[:, :1])) * reach[:, None], others(u[:, 1:], case["i"])
    rest = (1e-6 + u[:, 1:]) * other
    return np.log(np.where(other, np.maximum(missing * rest / rest.sum(-1, keepdims=True), 1e-30), 1.0 - missing))


def _attracted(inside: Field) -> Premises:
    fields = {**ARMS, "i": label("r"), "inside": inside, "z": Field(lambda size: size + 1, _start)}
    return Premises(
        {**fields, "s": step_size(1e-3, 1e2)},
        where=lambda mu, r, gap, i, **_: depth(arms(mu, r, -gap)[0], gap, i) > 0.0,
    )


@claim(
    "policy.asymre-atoms",
    "For b = E_µ r + γ, γ > 0, every atom i with w_i + γ > max_{j≠i} w_j attracts: from π_i > 1 − θ_i, "
    "θ_i = (w_i + γ − max_{j≠i} w_j)/2γ, each exact step adds at least 2sγ(π_i(0) − 1 + θ_i) to every log(π_i/π_j).",
    source=f"{ASYMRE}, collapse for V > V^µ; the basins derived here",
    kind="theorem",
    premises=_attracted(ONE),
    proof="A step adds s[w_i − w_j + γ(π_i − π_j)] ≥ 2sγ[θ_i − (1 − π_i)] > 0, so π_i grows, the premise stays and "
    "π_i → 1. If w_j > w_i + γ for some j the bracket is < 0 at every π: atom i is nobody's limit.",
    without=Without("the start is in the basin, π_i > 1 − θ_i", _attracted(ZERO)),
)
def asymre_atoms(mu: Array, r: Array, gap: Array, i: Array, inside: Array, z: Array, s: Array) -> Margin:
    w, n = arms(mu, r, -gap)[0], 20
    end = asymre_run(z, w, -gap, s, n)
    rate = 2.0 * s * gap * (depth(w, gap, i) - (1.0 - at(sm.softmax(z), i)))
    gain = (at(end, i)[:, None] - end) - (at(z, i)[:, None] - z)
    return Margin(np.where(others(z, i), gain - n * rate[:, None], np.inf), n * rounding(largest(z) + largest(end)))


def _elsewhere(p: Sequence[Fraction], r: Sequence[Fraction], gap: Fraction) -> Any:
    """1 − θ_i − µ_i as a ball, least over the atoms i ≠ argmax w: if negative, the run ends on such an atom."""
    mean = sum(x * a for x, a in zip(p, r, strict=True))
    w = [x * (a - mean - gap) for x, a in zip(p, r, strict=True)]
    theta = [(x + gap - max(w[:i] + w[i + 1 :])) / (2 * gap) for i, x in enumerate(w)]
    return exact.ball(min(1 - theta[i] - x for i, x in enumerate(p) if i != w.index(max(w))))


@claim(
    "policy.asymre-ends-at-argmax",
    "For b > E_µ r AsymRE started at π = µ ends on the atom argmax_i w_i.",
    source=f"{ASYMRE}, collapse for V > V^µ, natural reading",
    kind="theorem",
    expect="refuted",
    instead="policy.asymre-atoms",
    premises=Premises({"z": logits(high=3.0), "r": reals(), "gap": real(0.1, 3.0)}, sizes=SMALL),
    proof="Several atoms attract at once and the start decides: µ may lie in the basin of another atom.",
    counterexample=Counterexample(
        {"p": (Fraction(2, 3), Fraction(1, 3)), "r": (1, 0), "gap": 2},
        margin=_elsewhere,
        note="w = (−10/9, −8/9), θ_0 = 4/9: µ_0 = 2/3 > 5/9 is in the basin of atom 0, here the better arm",
    ),
    cost=10,
)
def asymre_ends_at_argmax(z: Array, r: Array, gap: Array) -> Margin:
    w, _ = arms(sm.softmax(z), r, -gap)
    end = asymre_run(z, w, -gap, 1.0 / gap, 100)
    return Margin(at(sm.softmax(end), np.argmax(w, -1)) - 0.5, 100 * rounding(largest(end)[:, 0]))
