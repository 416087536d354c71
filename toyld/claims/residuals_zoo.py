"""All losses at once (§3.1, App. B.2): who pushes y− down, how hard at most and until when, and whose loss has a floor.

Ids start with `residual.`, like those of `toyld.claims.residuals`, whose notation this is. A case is one loss, with its
default parameters, and one pair of one-token responses with free log-probabilities; π_old = π_ref, rewards are ±1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from toyld import objectives
from toyld.claims.base import Field, Margin, Premises, Without, claim, rounding
from toyld.claims.residuals import ACROSS, numbers
from toyld.claims.spaces import integers, real
from toyld.claims.tools import PAPER

Array = Any
Rule = Callable[..., Any]
LEVELS = {name: real(-20.0, -0.05) for name in ("plus", "minus", "ref_plus", "ref_minus")}


def choose(names: Iterable[str], **more: Field) -> Premises:
    """A loss, by its place in the list, and a pair."""
    return Premises({"which": integers(0, len(list(names)) - 1), **LEVELS, **more}, sizes=(2,))


def over(names: Sequence[str], of: Rule, which: Array, *levels: Array) -> Array:
    """of(objective, batch), (n, …), each case with its own loss."""
    out: list[Any] = [None] * len(which)
    for k in np.unique(which):
        cases = np.flatnonzero(which == k)
        # A loss that looks across the batch gets one pair at a time.
        for part in np.split(cases, len(cases)) if names[k] in ACROSS else [cases]:
            values = of(objectives.get(names[k]), objectives.pair_batch(*(a[part] for a in levels)))
            for case, value in zip(part, np.broadcast_to(values, (len(part), *np.shape(values)[1:])), strict=True):
                out[case] = value
    return np.stack(out)


def both(objective: Any, batch: Any) -> Array:
    """(c_+, c_−), (n, 2)."""
    push = objective.push(batch)
    return np.concatenate([push.chosen, push.rejected], axis=1)


def size(*levels: Array) -> Array:
    """1 + Σ |log-probability|, (n,)."""
    return 1.0 + np.sum(np.abs(levels), axis=0)


def _down(o: Any, n: Any) -> Array:
    return -np.ones_like(n.h)


def _never(o: Any, n: Any) -> Array:
    return np.ones_like(n.h)


def _window(o: Any, n: Any) -> Array:
    """DiscoPOP at τ = 0.05 turns at u = −.119 and .072 (three digits: silent within .001 of either)."""
    low, high = o.beta * n.h + 0.119, 0.072 - o.beta * n.h
    return np.where(np.minimum(np.abs(low), np.abs(high)) < 1e-3, 0.0, low * high)


def _unclipped(o: Any, n: Any) -> Array:
    """Â = −1: cut off below π = (1 − ε)π_old."""
    return np.where(n.ratio_minus[:, 0] > 1.0 - o.clip, 1.0 - o.clip - n.ratio_minus[:, 0], 1.0)


def _names(text: str) -> list[str]:
    return text.split()


ALWAYS = _names(
    "ga npo nsr topr topr-token asymre kto dpo simpo dpop rpo cpo orpo nca dpo-shift gate-dpo cw-dpo ld-dpo "
    "unlikelihood trl.sigmoid trl.nca_pair trl.robust trl.bco_pair trl.aot trl.aot_unpaired trl.apo_zero trl.apo_down "
    "trl.sigmoid_norm mpo"
)
NEVER = _names("sft extend trl.sft")
UNTIL: dict[str, Rule] = {
    "cdpo": lambda o, n: n.h - np.log(1.0 / o.epsilon - 1.0) / o.beta,
    "ipo": lambda o, n: n.h - 0.5 / o.beta,
    "trl.ipo": lambda o, n: n.h - 0.5 / o.beta,
    "trl.exo_pair": lambda o, n: o.beta * n.h - np.log(1.0 / o.label_smoothing - 1.0),
    "sppo": lambda o, n: -(n.r_minus + 0.5 * o.eta),
    "trl.sppo_hard": lambda o, n: -(n.r_minus + 0.5 / o.beta),
    "slic": lambda o, n: n.l_plus - n.l_minus - o.delta,
    "trl.hinge": lambda o, n: o.beta * n.h - 1.0,
    "trl.discopop": _window,
    "ppo": _unclipped,
    "grpo": _unclipped,
}
SIGNS: dict[str, Rule] = {**dict.fromkeys(ALWAYS, _down), **dict.fromkeys(NEVER, _never), **UNTIL}
"""For each loss a quantity that is negative exactly where the loss pushes y− down (c_− < 0)."""


@claim(
    "residual.sign-table",
    f"{', '.join(NEVER)} never push y− down (c_− < 0), {len(UNTIL)} losses do up to a target, a threshold or a clip "
    f"and no further (DiscoPOP outside a window), and the other {len(ALWAYS)} do in every state (AsymRE where r < V).",
    source=f"toyld, table of losses (python -m toyld.objectives); {PAPER}, App. B.2.2, with F3-F5 corrected",
    kind="identity",
    premises=choose(SIGNS),
    proof=f"Up to a limit: {', '.join(UNTIL)}. The sign of each c_− of the table: β(1 − a), σ, ratios and "
    "probabilities are positive; 1 − ε − a < 0 iff βh > log((1 − ε)/ε); the "
    "others change sign, or end, where the quantity in question is 0.",
)
def sign_table(which: Array, **levels: Array) -> Margin:
    def sides(o: Any, batch: Any) -> Array:
        return np.stack([both(o, batch)[:, 1], SIGNS[o.name](o, numbers(batch))], axis=1)

    c, rule = over(list(SIGNS), sides, which, *levels.values()).T
    room = np.minimum(np.abs(rule), 1.0)
    return Margin(np.where((c < 0.0) == (rule < 0.0), room, -room), rounding(size(*levels.values())))


BALANCED = _names(
    "dpo cdpo ipo slic simpo ld-dpo trl.sigmoid trl.hinge trl.ipo trl.exo_pair trl.robust trl.aot trl.discopop "
    "trl.sigmoid_norm"
)
UNBALANCED = _names(
    "dpop rpo cpo kto nca sppo npo orpo dpo-shift gate-dpo cw-dpo trl.bco_pair trl.apo_zero trl.apo_down"
)


@claim(
    "residual.balanced",
    f"c_+ = −c_− for the {len(BALANCED)} losses of the margin alone (where divided by |y|: at equal lengths), so that "
    f"at a shared context the π-terms cancel, but not for {len(UNBALANCED)} others that push both responses.",
    source="toyld, table of losses (python -m toyld.objectives), the condition of T10",
    kind="theorem",
    premises=choose(BALANCED),
    proof="A loss of the margin alone has −∂f/∂ℓ_+ = ∂f/∂ℓ_−: "
    f"{', '.join(BALANCED)}. Not of the margin alone: {', '.join(UNBALANCED)}.",
    without=Without("the loss depends on the margin alone", choose([*BALANCED, *UNBALANCED])),
)
def balanced(which: Array, **levels: Array) -> Margin:
    c = over([*BALANCED, *UNBALANCED], both, which, *levels.values())
    bound = rounding((1.0 + np.abs(c).max(axis=1)) * size(*levels.values()))
    return Margin(bound - np.abs(c.sum(axis=1)), bound)


CAPS: dict[str, Rule] = {
    **dict.fromkeys(["dpo", "rpo", "cpo", "dpop", "gate-dpo", "cw-dpo", "ld-dpo", "simpo"], lambda o: o.beta),
    **dict.fromkeys(["trl.sigmoid", "trl.sigmoid_norm", "trl.aot", "trl.bco_pair", "trl.hinge"], lambda o: o.beta),
    **dict.fromkeys(["nca", "trl.nca_pair"], lambda o: 0.5 * o.beta),
    **dict.fromkeys(["trl.apo_zero", "trl.apo_down"], lambda o: 0.25 * o.beta),
    **dict.fromkeys(["ga", "nsr", "topr", "topr-token", "slic"], lambda o: 1.0),
    "dpo-shift": lambda o: o.shift * o.beta,
    "cdpo": lambda o: (1.0 - o.epsilon) * o.beta,
    "kto": lambda o: 0.25 * o.undesirable * o.beta,
    "npo": lambda o: 2.0,
    "trl.robust": lambda o: (1.0 - o.label_smoothing) / (1.0 - 2.0 * o.label_smoothing) * o.beta,
}
"""The largest push on y− there can be."""
UNCAPPED: dict[str, Rule] = dict.fromkeys(_names("ipo sppo unlikelihood orpo ppo grpo"), lambda o: 20.0)


@claim(
    "residual.caps",
    "The push on y− has a cap, a multiple of β for the DPO family, NCA, KTO, BCO and APO, 2 for NPO, 1 for GA, SLiC, "
    "NSR and TOPR, but none for IPO, SPPO, unlikelihood, ORPO, PPO and GRPO, whose clip is one-sided.",
    source="toyld, table of losses (python -m toyld.objectives)",
    kind="theorem",
    premises=choose(CAPS),
    proof="The caps: β for DPO and its kin, hinge and BCO, fβ for DPO-Shift, (1 − ε)β for cDPO, (1 − ε)β/(1 − 2ε) for "
    "robust DPO, β/2 for NCA, β/4 for KTO (λ_U times that) and APO; "
    "for 0 ≤ σ ≤ 1, σ(1 − σ) ≤ 1/4, 2ρ^β/(1 + ρ^β) ≤ 2, min(1, π/µ) ≤ 1, and |1 − ε − a| ≤ 1 − ε for ε ≤ 1/2.",
    without=Without("the loss is one of these (else 20)", choose([*CAPS, *UNCAPPED])),
)
def caps(which: Array, **levels: Array) -> Margin:
    def sides(o: Any, batch: Any) -> Array:
        c = both(o, batch)[:, 1]
        return np.stack([c, np.full_like(c, {**CAPS, **UNCAPPED}[o.name](o))], axis=1)

    c, cap = over([*CAPS, *UNCAPPED], sides, which, *levels.values()).T
    return Margin(cap - np.abs(c), rounding((1.0 + np.abs(c)) * size(*levels.values())))


ZERO = _names(
    "sft extend npo nsr kto dpo cdpo ipo slic simpo sppo dpop rpo cpo orpo nca dpo-shift gate-dpo cw-dpo ld-dpo "
    "unlikelihood trl.sigmoid trl.hinge trl.ipo trl.exo_pair trl.nca_pair trl.bco_pair trl.sppo_hard trl.aot "
    "trl.aot_unpaired trl.apo_zero trl.apo_down trl.discopop trl.sft trl.sigmoid_norm mpo"
)
FLOORS: dict[str, Rule] = {
    **dict.fromkeys(ZERO, lambda o, n: 0.0 * n.h),
    **dict.fromkeys(["ppo", "grpo"], lambda o, n: -2.0 * o.clip + 0.0 * n.h),
    # µ = π_ref here, ℓ_− − r_− its log.
    **dict.fromkeys(["topr", "topr-token"], lambda o, n: -np.exp(n.r_minus - n.l_minus - 1.0)),
}
"""What the loss never falls below, from (objective, numbers)."""
NO_FLOOR: dict[str, Rule] = {
    "ga": lambda o: 1.0,
    "asymre": lambda o: o.baseline + 1.0,
    "trl.robust": lambda o: o.beta * o.label_smoothing / (1.0 - 2.0 * o.label_smoothing),
}
"""The least push on y− of a loss without a floor."""


@claim(
    "residual.floors",
    f"{len(ZERO)} losses never fall below 0, PPO and GRPO (rewards ±1) not below −2ε, TOPR not below −1/(eµ): all but "
    f"{', '.join(NO_FLOOR)} have a floor.",
    source="toyld, table of losses (python -m toyld.objectives), bounded or not",
    kind="theorem",
    premises=choose(FLOORS),
    proof="Squares, hinges, −log σ, σ, −log π and a KL divergence are not negative: "
    f"{', '.join(ZERO)}. "
    "PPO: −min(ρ, 1 + ε) ≥ −(1 + ε) and "
    "max(ρ, 1 − ε) ≥ 1 − ε. TOPR: min(1, π/µ) log π ≥ π log π/µ ≥ −1/(eµ).",
    without=Without("the loss is one of these", choose([*FLOORS, *NO_FLOOR])),
)
def floors(which: Array, **levels: Array) -> Margin:
    def sides(o: Any, batch: Any) -> Array:
        n = numbers(batch)
        return np.stack([o.loss(batch), FLOORS.get(o.name, FLOORS["dpo"])(o, n)], axis=1)

    loss, floor = over([*FLOORS, *NO_FLOOR], sides, which, *levels.values()).T
    return Margin(loss - floor, rounding(size(*levels.values()) ** 2 * (1.0 - floor)))


@claim(
    "residual.no-floor",
    "Lowering log π(y−) by d nats lowers GA's loss by d, AsymRE's by (V − r)d and robust DPO's by at least "
    "βε/(1 − 2ε)·d, however low it is already: a push that never lets go is a loss without a floor.",
    source="toyld, table of losses (python -m toyld.objectives), bounded or not; TRL's robust loss",
    kind="theorem",
    premises=choose(NO_FLOOR, d=real(0.0, 2000.0)),
    proof="∂loss/∂ℓ_− = |c_−| is never below that number (robust: β[(1 − ε)(1 − a) + εa]/(1 − 2ε)); integrate over d.",
    without=Without("the loss is one of these (else 0.01)", choose([*NO_FLOOR, *FLOORS], d=real(0.0, 2000.0))),
)
def no_floor(which: Array, d: Array, **levels: Array) -> Margin:
    def value(o: Any, batch: Any) -> Array:
        return np.stack([o.loss(batch), np.full(len(batch.zeros()), NO_FLOOR.get(o.name, lambda o: 0.01)(o))], axis=1)

    names = [*NO_FLOOR, *FLOORS]
    before, rate = over(names, value, which, *levels.values()).T
    after, _ = over(names, value, which, *{**levels, "minus": levels["minus"] - d}.values()).T
    return Margin(before - after - rate * d, rounding((size(*levels.values()) + d) ** 2))
