"""DPO, IPO, SPPO and SLiC (§3.1, App. B.2.2): how long each pushes, and the misprints F3, F4, F5 of the paper.

Ids start with `residual.`, like those of `toyld.claims.residuals`, whose notation this is. The responses are one token
each, y+ and y− at contexts of their own; x = h − 1/2β is how far IPO's margin h is from its target.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from toyld import objectives
from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.residuals import contexts, words
from toyld.claims.spaces import constant, label, logits, real, step_size
from toyld.claims.tools import PAPER, at, least, span

Array = Any
STEPS = 40
SMALL = (2, 4, 8)
PAIR = {"z": contexts(2), "y": words(2)}  # index 0 is y+, 1 is y−
BETA = step_size(0.02, 2.0)
ZERO = constant(0.0)


def pull(objective: Any, side: str, z: Array, y: Array, ratio: Array, /) -> Array:
    """−∂loss/∂z (n, V) by autograd: `side`'s response is the token y at log-ratio `ratio`, the other at log-ratio 0."""
    import torch

    leaf = torch.tensor(z, requires_grad=True)
    own = torch.log_softmax(leaf, -1).gather(-1, torch.tensor(y)[:, None])[:, 0]
    ref, calm = own.detach() - torch.tensor(ratio), torch.full_like(own, -1.0)
    levels = (own, calm, ref, calm) if side == "chosen" else (calm, own, calm, ref)
    loss = objective.loss(objectives.pair_batch(*levels)).sum()
    if loss.requires_grad:
        loss.backward()
    if leaf.grad is None:
        raise ValueError(
            f"{objective.name}: expected a loss that depends on log π of the {side} response; got a constant"
        )
    return -leaf.grad.numpy()


def tuned(name: str, /, **parameters: Array) -> Any:
    """An objective for `pull` with a parameter per case."""
    import torch

    return objectives.get(name, **{key: torch.tensor(np.asarray(a, dtype=float)) for key, a in parameters.items()})


def largest(z: Array, /) -> Array:
    """1 + max |z| (n,)."""
    return 1.0 + np.abs(z).reshape(len(z), -1).max(axis=1)


STRENGTH = {"h": real(-30.0, 30.0), "beta": step_size(1e-3, 10.0)}


@claim(
    "residual.dpo-never-reverses",
    "DPO's c_+ = −c_− = β(1 − a) is positive and at most β; it is at least β/2 for h ≤ 0, between βe^{−βh}/2 and "
    "βe^{−βh} for h ≥ 0, and d more nats of margin multiply it by a factor between e^{−βd} and 1.",
    source=f"{PAPER}, Eq. 7, App. B.2.2 “regularising effect”, with its rate",
    kind="theorem",
    premises=Premises({**STRENGTH, "d": real(0.0, 30.0)}, sizes=(2,)),
    proof="c = β/(1 + e^{βh}): positive, below β, and 1 ≤ 1 + e^{βh} ≤ 2 for h ≤ 0, e^{βh} ≤ 1 + e^{βh} ≤ 2e^{βh} for "
    "h ≥ 0. d log c/dh = −βσ(βh) lies in (−β, 0).",
    without=Without("the margin grows (d ≥ 0)", Premises({**STRENGTH, "d": real(-30.0, 0.0)}, sizes=(2,))),
)
def dpo_never_reverses(h: Array, beta: Array, d: Array) -> Margin:
    def log_c(h: Array) -> Array:
        calm = np.full_like(h, -1.0)
        levels = (calm + np.minimum(h, 0.0), calm, calm - np.maximum(h, 0.0), calm)
        both = objectives.get("dpo", beta=beta).push(objectives.pair_batch(*levels))
        return np.log(np.concatenate([both.chosen, -both.rejected], axis=1))

    now, later = log_c(h), log_c(h + d)
    high = (np.log(beta) - beta * np.maximum(h, 0.0))[:, None]
    value = [high - now, now - high + np.log(2.0), now - later, later - now + (beta * d)[:, None]]
    bound = rounding(1.0 + beta * (60.0 + np.abs(d)) + np.abs(np.log(beta)))
    return Margin(np.concatenate(value, axis=1), bound[:, None])


@claim(
    "residual.dpo-at-reference",
    "At π = π_ref a DPO step s on either response is the SFT step sβ/2, up on y+ and down on y−: at β = 0.1 and equal "
    "learning rate it is 20 times smaller.",
    source=f"toyld, B4; {PAPER}, §3.1 and App. B.2.2 at a = 1/2",
    kind="identity",
    premises=Premises({**PAIR, "s": step_size(), "beta": step_size(1e-3, 10.0)}, sizes=(2, 3, 4, 8)),
    proof="h = 0, so a = 1/2 and c_± = ±β/2. For plain gradient descent, and SFT's loss summed over tokens.",
    cost=8,
)
def dpo_at_reference(z: Array, y: Array, s: Array, beta: Array) -> Margin:
    got, want = [], []
    for i, (side, sign) in enumerate((("chosen", 1.0), ("rejected", -1.0))):
        here, label = z[:, i], y[:, i]
        move = s[:, None] * pull(tuned("dpo", beta=beta), side, here, label, np.zeros(len(z)))
        got.append(sm.log_softmax(here + move) - sm.log_softmax(here))
        want.append(sm.log_alpha(here, label, s=0.5 * s * beta, c=sign))
    done, law = np.concatenate(got, axis=1), np.concatenate(want, axis=1)
    return identity(done, law, span(z.reshape(len(z), -1), s * beta * largest(z), done))


@claim(
    "residual.rmsprop-divides-out-beta",
    "Under RMSprop (ε = 0) the factor β/2 is gone: DPO's first step from π_ref moves every logit as far as SFT's.",
    source="toyld, B4, its condition; the paper's runs use RMSprop",
    kind="identity",
    premises=Premises({**PAIR, "rate": real(0.001, 0.1), "beta": step_size(1e-3, 10.0)}, sizes=SMALL),
    proof="The first step is −rate·g/√(0.01 g²): a positive factor on g cancels, a negative one turns the step round.",
    cost=12,
)
def rmsprop_divides_out_beta(z: Array, y: Array, rate: Array, beta: Array) -> Margin:
    import torch

    def moved(objective: Any, side: str, i: int) -> Array:
        leaf = torch.zeros(z[:, i].shape, dtype=torch.float64, requires_grad=True)
        leaf.grad = -torch.tensor(pull(objective, side, z[:, i], y[:, i], np.zeros(len(z))))
        torch.optim.RMSprop([leaf], lr=1.0, alpha=0.99, eps=0.0).step()
        return rate[:, None] * leaf.detach().numpy()  # a step is linear in the learning rate

    dpo, both_up = tuned("dpo", beta=beta), objectives.get("extend")
    got = np.concatenate([moved(dpo, "chosen", 0), moved(dpo, "rejected", 1)], axis=1)
    want = np.concatenate([moved(both_up, "chosen", 0), -moved(both_up, "rejected", 1)], axis=1)
    return identity(got, want, (10.0 * rate * largest(z))[:, None])


def _moved(z: Array, y: Array, s: Array, plus: Array, minus: Array) -> tuple[Array, Array]:
    """Logits (n, 2, V) after a real update with coefficients plus and minus, and the log π of its labels (n, 2)."""
    new = np.stack(
        [sm.step(z[:, i], sm.residual(z[:, i], y[:, i], c=c), s=s) for i, c in enumerate((plus, minus))], axis=1
    )
    return new, at(sm.log_softmax(new), y)


RUN = {**PAIR, "s": step_size(1e-2, 10.0), "beta": real(0.05, 1.0)}


@claim(
    "residual.dpo-never-stops",
    "From π_ref, DPO's margin grows at every step like (1/β) log n: (1/β) log(1 + κ₀β²sn/2) ≤ h_n ≤ "
    "(1/β) log(1 + 4β²sn e^{2β²s}), κ₀ = (1 − π_−(0))² V/(V − 1); the loss goes to 0 and log π(y−) to −∞.",
    source=f"{PAPER}, Eq. 7; derived here, as unlearning.npo-logarithmic",
    kind="theorem",
    premises=Premises({**RUN, "ahead": ZERO}, sizes=SMALL),
    proof="c = β/F'(h), F(h) = h + (e^{βh} − 1)/β, convex. In a step of size sc each log π_± changes by at most 2sc "
    "(⟨e_y − π', e_y − π⟩ ≤ 2); y+ rises, and y− falls by at least κ₀sc (unlearning.ga-linear). So "
    "ΔF ≥ F'(h)Δh ≥ κ₀βs, and ΔF ≤ F'(h + Δh)Δh ≤ 4βs e^{βΔh}, βΔh ≤ 2β²s as c ≤ β/2. Lastly (e^{βh} − 1)/β ≤ F ≤ "
    "2(e^{βh} − 1)/β. And log π_−(n) = log π_−(0) − h_n + log π_+(n) − log π_+(0) ≤ log π_−(0) − log π_+(0) − h_n.",
    without=Without("the run starts at the reference", Premises({**RUN, "ahead": real(0.0, 40.0)}, sizes=SMALL)),
    cost=8,
)
def dpo_never_stops(z: Array, y: Array, s: Array, beta: Array, ahead: Array) -> Margin:
    dpo, first, V = objectives.get("dpo", beta=beta), at(sm.log_softmax(z), y), z.shape[-1]
    room = (np.exp(2.0 * sm.log_not(z[:, 1], y[:, 1])) * V / (V - 1))[:, None]
    gains, rejected, own = [], [], first
    for _ in range(STEPS):
        c = dpo.strength(ahead + own[:, 0] - first[:, 0] - own[:, 1] + first[:, 1])
        z, own = _moved(z, y, s, c, -c)
        gains.append(own[:, 0] - first[:, 0] - own[:, 1] + first[:, 1])
        rejected.append(own[:, 1])
    gain, minus = np.stack(gains, axis=1), np.stack(rejected, axis=1)
    n, b, s1 = np.arange(1, STEPS + 1), beta[:, None], s[:, None]
    low = np.log1p(0.5 * room * b**2 * s1 * n) / b
    high = np.log1p(4.0 * b**2 * s1 * n * np.exp(2.0 * b**2 * s1)) / b
    ceiling = (first[:, 1] - first[:, 0])[:, None] - gain - minus
    # One rounding a step of numbers of this size: the comparison functions shift with a slip and do not magnify it.
    bound = STEPS * rounding(largest(z) + gain.max(axis=1) - minus.min(axis=1))[:, None]
    return Margin(np.concatenate([gain - low, high - gain, ceiling], axis=1), bound)


SIDES = {**PAIR, "h": real(-20.0, 20.0), "beta": BETA, "other": BETA}


def _along(z: Array, y: Array, h: Array, beta: Array, other: Array) -> tuple[Array, Array, Array]:
    """⟨G_IPO, G_DPO⟩ and |G_IPO||G_DPO| over both contexts, and a rounding bound, (n,); `other` is DPO's own β."""
    ipo, dpo = (
        np.concatenate([pull(o, "chosen", z[:, 0], y[:, 0], h), pull(o, "rejected", z[:, 1], y[:, 1], -h)], axis=1)
        for o in (tuned("ipo", beta=beta), tuned("dpo", beta=other))
    )
    size = 8.0 * (largest(z) + np.abs(h)) * (1.0 + 1.0 / beta + np.abs(h)) * (1.0 + other)
    return np.sum(ipo * dpo, axis=1), np.linalg.norm(ipo, axis=1) * np.linalg.norm(dpo, axis=1), rounding(size)


@claim(
    "residual.ipo-sides-with-dpo",
    "As long as the margin is below 1/2β, IPO's gradient points exactly where DPO's does, whatever DPO's own β.",
    source=f"toyld, table of losses (python -m toyld.objectives); {PAPER}, App. B.2.2, with F3 corrected",
    kind="theorem",
    premises=Premises(SIDES, sizes=SMALL, where=lambda h, beta, **_: h < 0.5 / beta),
    proof="Both have c_+ = −c_−, so G is c_+ times one vector, (π_+ − e_+, −(π_− − e_−)). DPO's c_+ is positive, IPO's "
    "is −2(h − 1/2β).",
    without=Without("h < 1/2β", Premises(SIDES, sizes=SMALL)),
    cost=4,
)
def ipo_sides_with_dpo(z: Array, y: Array, h: Array, beta: Array, other: Array) -> Margin:
    product, lengths, bound = _along(z, y, h, beta, other)
    return Margin(product - lengths, bound)


@claim(
    "residual.ipo-reverses",
    "Beyond its target, h > 1/2β, IPO's gradient points exactly against DPO's: y− is pulled up and y+ pushed down.",
    source=f"toyld, table of losses (python -m toyld.objectives); {PAPER}, App. B.2.2, with F3 corrected",
    kind="theorem",
    premises=Premises(SIDES, sizes=SMALL, where=lambda h, beta, **_: h > 0.5 / beta),
    proof="As for residual.ipo-sides-with-dpo, with IPO's c_+ = −2(h − 1/2β) < 0; DPO's is > 0 at every margin.",
    without=Without("h > 1/2β", Premises(SIDES, sizes=SMALL)),
    cost=4,
)
def ipo_reverses(z: Array, y: Array, h: Array, beta: Array, other: Array) -> Margin:
    product, lengths, bound = _along(z, y, h, beta, other)
    return Margin(-lengths - product, bound)


def _stays(before: Array, after: Array, scale: Array) -> Margin:
    """The distance to a target keeps its sign and does not grow."""
    return Margin(np.stack([np.sign(before) * after, np.abs(before) - np.abs(after)], axis=1), rounding(scale)[:, None])


def _target(step: Field) -> Premises:
    ratio = real(-20.0, 20.0)
    return Premises({**PAIR, "r_plus": ratio, "r_minus": ratio, "beta": BETA, "s": step}, sizes=SMALL)


@claim(
    "residual.ipo-stops-at-target",
    "A step s ≤ 1/8 of IPO moves the margin towards 1/2β, from below or above, and never beyond it.",
    source=f"toyld, table of losses (python -m toyld.objectives), ipo at a finite step; compare {PAPER}, Eq. 17 (F3)",
    kind="theorem",
    premises=_target(step_size(1e-6, 0.125)),
    proof="c_± = ∓2x, x = h − 1/2β. Each log π_± moves the way of its c (squeeze.penalised-falls, "
    "sft.label-rises-runner-up-falls) by at most 2s|c|, as ⟨e_y − π', e_y − π⟩ ≤ 2. So x moves towards 0 by at most "
    "8s|x|. 1/8 is sharp: with π_± near 0 and all else on one class that product is near 2.",
    without=Without("s ≤ 1/8", _target(step_size(0.125, 8.0))),
    cost=2,
)
def ipo_stops_at_target(z: Array, y: Array, r_plus: Array, r_minus: Array, beta: Array, s: Array) -> Margin:
    c, before = objectives.get("ipo", beta=beta).strength(r_plus - r_minus), at(sm.log_softmax(z), y)
    own = _moved(z, y, s, c, -c)[1] - before
    x = r_plus - r_minus - 0.5 / beta
    return _stays(x, x + own[:, 0] - own[:, 1], (1.0 + s) * (largest(z) + np.abs(c)))


@claim(
    "residual.sppo-stops-at-target",
    "SPPO pushes y− down exactly while r_− > −η/2 (c_− = −η at π_ref) and pulls it up below; a step s ≤ 1/4 moves r_− "
    "towards −η/2, and r_+ towards η/2, and never beyond.",
    source=f"toyld, table of losses (python -m toyld.objectives), sppo at a finite step; corrects {PAPER}, App. B.2.2 "
    "(F5)",
    kind="theorem",
    premises=_target(step_size(1e-6, 0.25)),
    proof="c_± = −2x, x = r_± ∓ η/2. log π_± moves the way of its c by at most 2s|c| = 4s|x|, as for IPO, but each "
    "response has a target of its own. 1/4 is sharp.",
    without=Without("s ≤ 1/4", _target(step_size(0.25, 8.0))),
    cost=2,
)
def sppo_stops_at_target(z: Array, y: Array, r_plus: Array, r_minus: Array, beta: Array, s: Array) -> Margin:
    calm = np.full_like(s, -1.0)
    sppo = objectives.get("sppo", eta=1.0 / beta)
    plus, minus = sppo.coefficients(objectives.pair_batch(calm, calm, calm - r_plus, calm - r_minus))
    own = _moved(z, y, s, plus, minus)[1] - at(sm.log_softmax(z), y)
    scale = (1.0 + s) * (largest(z) + np.abs(plus) + np.abs(minus))
    parts = []
    for x, moved in ((r_plus - 0.5 / beta, own[:, 0]), (r_minus + 0.5 / beta, own[:, 1])):
        parts.append(_stays(x, x + moved, scale))
    return Margin(np.concatenate([m.value for m in parts], axis=1), parts[0].bound)


ONE = {"z": logits(high=3.0), "y": label(), "h": real(-20.0, 20.0), "beta": BETA}


def _off(y: int, p: tuple[Fraction, ...], true: Any, printed: Any) -> Any:
    """Minus the distance of two coefficients' residuals, as a ball: least over the classes."""
    return least(-abs((true - printed) * exact.ball(q - (i == y))) for i, q in enumerate(p))


@claim(
    "residual.printed-ipo",
    "IPO's residual is β(1 − a)(π − y) with a = h − 1/2β.",
    source=f"{PAPER}, App. B.2.2, Eq. 17 (F3)",
    kind="identity",
    expect="refuted",
    instead="residual.ipo",
    premises=Premises(ONE),
    proof="−∂(h − 1/2β)²/∂h = −2(h − 1/2β): zero at the target h = 1/2β, where the printed one is β; it turns there, "
    "the printed one at h = 1/2β + 1.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "beta": Fraction(1), "h": Fraction(0)},
        margin=lambda p, y, beta, h: _off(
            y, p, exact.ball(-2 * (h - 1 / (2 * beta))), exact.ball(beta * (1 - (h - 1 / (2 * beta))))
        ),
        note="at π_ref: 1, printed 3/2",
    ),
)
def printed_ipo(z: Array, y: Array, h: Array, beta: Array) -> Margin:
    got = pull(tuned("ipo", beta=beta), "chosen", z, y, h)
    printed = beta * (1.0 - (h - 0.5 / beta))
    scale = (largest(z) + np.abs(h)) * (1.0 + 1.0 / beta + beta) * (1.0 + np.abs(h))
    return identity(got, -sm.residual(z, y, c=printed), scale[:, None])


@claim(
    "residual.printed-slic",
    "Where SLiC's hinge is active, its residual on y+ is DPO's.",
    source=f"{PAPER}, App. B.2.2, Eq. 20: G_SLiC = a·G_DPO + …, a = 1[Δ < δ] (F4)",
    kind="identity",
    expect="refuted",
    instead="residual.slic",
    premises=Premises(ONE),
    proof="−∂ max(0, δ − ℓ_+ + ℓ_−)/∂ℓ_+ is the indicator itself, without DPO's factor β(1 − a): SLiC pushes at full "
    "strength up to δ and stops there. (Its reference term acts on y_ref's contexts.)",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "beta": Fraction(1), "h": Fraction(0)},
        margin=lambda p, y, beta, h: _off(
            y, p, exact.ball(1), exact.ball(beta) / (1 + (exact.ball(beta) * exact.ball(h)).exp())
        ),
        note="1, printed 1/2; at β = 0.1 printed 1/20",
    ),
)
def printed_slic(z: Array, y: Array, h: Array, beta: Array) -> Margin:
    # δ = 1 and ℓ_− = −1: active whatever π_+ < 1.
    got = pull(objectives.get("slic", delta=1.0), "chosen", z, y, h)
    printed = pull(tuned("dpo", beta=beta), "chosen", z, y, h)
    return identity(got, printed, ((largest(z) + np.abs(h)) * (1.0 + beta) ** 2)[:, None])


@claim(
    "residual.sppo-has-no-negative-gradient",
    "SPPO has no negative gradient: it never pushes y− down.",
    source=f"{PAPER}, App. B.2.2, Eq. 22, “two positive vectors” (F5)",
    kind="theorem",
    expect="refuted",
    instead="residual.sppo-stops-at-target",
    premises=Premises(ONE),
    proof="A slip of sign: c_− = −2(r_− + η/2) = −η at π_ref. The negative gradient is bounded, not absent.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "beta": Fraction(1), "h": Fraction(0)},
        margin=lambda p, y, beta, h: exact.ball(-2 * (h + 1 / (2 * beta)) * (1 - p[y])),
        note="η = 1/β = 1 and r_− = h = 0: half a logit per unit step",
    ),
)
def sppo_has_no_negative_gradient(z: Array, y: Array, h: Array, beta: Array) -> Margin:
    got = at(pull(tuned("sppo", eta=1.0 / beta), "rejected", z, y, h), y)
    return Margin(got, rounding((largest(z) + np.abs(h)) * (1.0 + 1.0 / beta + np.abs(h))))


MINUS: tuple[tuple[str, Callable[[Any], dict[str, Any]]], ...] = (
    ("ipo", lambda beta: {"beta": beta}),
    ("slic", lambda beta: {}),
    ("sppo", lambda beta: {"eta": 1.0 / beta}),
)


@claim(
    "residual.printed-minus",
    "Minimised as printed, with a minus before the expectation, IPO, SLiC and SPPO pull y+ up at π = π_ref.",
    source=f"{PAPER}, App. B.2.2, Eq. 16, 18 and 21 (F3)",
    kind="theorem",
    expect="refuted",
    instead="residual.ipo-stops-at-target",
    premises=Premises({"z": logits(high=3.0), "y": label(), "beta": BETA}),
    proof="The squares and the hinge are losses already: with the minus c_+ is −1/β, −1 and −η, and y+ is pushed down.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 2)), "y": 0, "beta": Fraction(1)},
        margin=lambda p, y, beta: -least(exact.ball(c * (1 - p[y])) for c in (1 / beta, Fraction(1))),
        note="η = 1/β",
    ),
)
def printed_minus(z: Array, y: Array, beta: Array) -> Margin:
    up = [at(-pull(tuned(name, **of(beta)), "chosen", z, y, np.zeros(len(z))), y) for name, of in MINUS]
    return Margin(np.max(up, axis=0), rounding(largest(z) * (1.0 + 1.0 / beta)))
