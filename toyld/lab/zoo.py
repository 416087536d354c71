"""The loss zoo of the lab: what its panel says of each loss, and golden vectors for js/losses.js (App. B.2.2).

A response is `tokens` tokens, each in a context of its own, all alike; y⁺ and y⁻ share these contexts or have their
own. So one softmax, or two, tell a whole run: a push c on a response moves its logits by s·c·(e_y − π) at every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld import objectives
from toyld import softmax as sm
from toyld.claims.residuals import name_of, summary
from toyld.objectives import Batch

__all__ = ["LOSSES", "cases", "data", "fate", "push", "run"]

Floats = NDArray[np.float64]
PLUS, MINUS = 0, 1  # y⁺ and y⁻ among the classes
# Name → what the panel calls it and the claims that say more than `residual.<name>`; in the order of the list.
LOSSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sft": ("SFT", ("residual.sign-table",)),
    "extend": ("SFT on both (extend)", ("residual.sign-table",)),
    "ga": ("gradient ascent", ("residual.no-floor", "unlearning.ga-linear")),
    "npo": ("NPO", ("unlearning.npo-push", "unlearning.npo-logarithmic")),
    "kto": ("KTO", ("residual.caps",)),
    "dpo": ("DPO", ("residual.dpo-never-stops", "residual.dpo-never-reverses")),
    "cdpo": ("cDPO", ("residual.balanced",)),
    "trl.robust": ("robust DPO", ("residual.no-floor",)),
    "ipo": ("IPO", ("residual.ipo-stops-at-target", "residual.ipo-reverses")),
    "sppo": ("SPPO", ("residual.sppo-stops-at-target", "residual.sppo-has-no-negative-gradient")),
    "slic": ("SLiC", ("residual.printed-slic", "residual.balanced")),
    "trl.hinge": ("hinge", ("residual.balanced", "residual.caps")),
    "simpo": ("SimPO", ("residual.caps",)),
    "orpo": ("ORPO", ("residual.caps",)),
    "rpo": ("DPO + NLL (RPO)", ("residual.caps",)),
    "cpo": ("CPO", ("residual.caps",)),
    "dpo-shift": ("DPO-Shift", ("residual.caps",)),
    "nca": ("NCA", ("residual.caps",)),
    "trl.bco_pair": ("BCO", ("residual.caps",)),
    "trl.exo_pair": ("EXO", ("residual.balanced",)),
    "trl.apo_zero": ("APO-zero", ("residual.caps",)),
    "trl.apo_down": ("APO-down", ("residual.sign-table",)),
}
# Parameter → what it is called, from, to, ratio or difference of a slider's steps. ε < ½: above it labels are lies.
_RANGES: Mapping[str, tuple[str, float, float]] = {
    "beta": ("β", 0.01, 1.0),
    "gamma": ("γ, margin asked for", 0.0, 3.0),
    "epsilon": ("ε, labels that are wrong", 0.0, 0.4),
    "label_smoothing": ("ε, labels that are wrong", 0.001, 0.4),
    "eta": ("η", 1.0, 40.0),
    "delta": ("δ, margin asked for", 0.5, 20.0),
    "weight": ("λ, weight", 0.0, 2.0),
    "alpha": ("α, weight of the NLL", 0.0, 2.0),
    "shift": ("f, share of the push on y⁻", 0.1, 1.0),
    "desirable": ("λ for y⁺", 0.25, 4.0),
    "undesirable": ("λ for y⁻", 0.25, 4.0),
}
_OWN: Mapping[tuple[str, str], tuple[str, float, float]] = {("simpo", "beta"): ("β", 0.25, 5.0)}
_HIDDEN = {("slic", "weight")}  # the pull on a third response
_NEAR = {"cdpo": 1.0, "ipo": 1.0, "sppo": 1.0, "dpo": 1.0, "trl.robust": 1.0}  # nats, before any target
# The largest step at which a target is reached from one side (the two claims that say so).
_LARGEST = {"ipo": 1.0 / 8.0, "sppo": 1.0 / 4.0}


def _shown(name: str) -> dict[str, float]:
    """The parameters a learner may move, with their defaults."""
    given = vars(objectives.get(name))
    return {key: float(value) for key, value in given.items() if (name, key) not in _HIDDEN}


def data() -> dict[str, Any]:
    """What the panel shows that it does not compute: names, formulas, sources, ranges of parameters, ids of claims.

    >>> [loss["label"] for loss in data()["losses"]][5:9]
    ['DPO', 'cDPO', 'robust DPO', 'IPO']
    """
    losses = []
    for name, (label, claims) in LOSSES.items():
        parameters = []
        for key, value in _shown(name).items():
            words, low, high = _OWN.get((name, key), _RANGES[key])
            parameters.append({"name": key, "label": words, "min": low, "max": high, "value": value})
        about = {"formula": summary(objectives.get(name)), "source": objectives.get(name).source}
        losses.append({"name": name, "label": label, **about, "claims": [name_of(name), *claims],
                       "parameters": parameters, "largest": _LARGEST.get(name)})  # fmt: skip
    return {"losses": losses}


def _batch(at: Mapping[str, float]) -> Batch:
    """One pair whose summed log-probabilities are these, spread evenly over its tokens; the anchor at ratio 0."""

    def tokens(total: float, count: float) -> Floats:
        return np.full((1, int(count)), total / count)

    plus, minus = at["nPlus"], at["nMinus"]
    chosen, rejected = tokens(at["plus"], plus), tokens(at["minus"], minus)
    ref_chosen, ref_rejected = tokens(at["refPlus"], plus), tokens(at["refMinus"], minus)
    return Batch(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected,
                 anchor=ref_chosen, ref_anchor=ref_chosen)  # fmt: skip


def push(name: str, parameters: Mapping[str, float], at: Mapping[str, float], /) -> tuple[float, float]:
    """(c_+, c_−) of a loss at `at`: plus, minus, refPlus, refMinus (summed log-probabilities), nPlus, nMinus (tokens).

    >>> at = {"plus": -3.0, "minus": -4.0, "refPlus": -3.0, "refMinus": -4.0, "nPlus": 2, "nMinus": 2}
    >>> push("dpo", {"beta": 0.1}, at)
    (0.05, -0.05)
    """
    plus, minus = objectives.get(name, **parameters).coefficients(_batch(at))
    return float(plus[0]), float(minus[0])


@cache
def fate(name: str, /, **parameters: float) -> str:
    """What becomes of the push on y⁻, from `toyld.objectives.row`, which probes the loss and knows no formula.

    >>> fate("dpo"), fate("ipo"), fate("slic"), fate("ga"), fate("sft")
    ('fades', 'target', 'threshold', 'never', 'none')
    """
    found = objectives.row(name, **parameters).fades
    words = {"no push": "none", "pulls": "none", "target": "target", "never": "never"}
    return next((kind for word, kind in words.items() if found.startswith(word)),
                "threshold" if "hard off" in found else "fades")  # fmt: skip


def run(name: str, parameters: Mapping[str, float], world: Mapping[str, Any], marks: Sequence[int], /) -> list[Any]:
    """Updates of one pair by `toyld.softmax` and `toyld.objectives`, as js/losses.js has them: a row at each mark.

    world: logits (y⁺ class 0, y⁻ class 1), tokens, step, shared (one context or two), states (updates + 1).

    >>> world = {"logits": [0.0, 0.0, 1.0], "tokens": 1, "step": 0.5, "shared": True, "states": 2}
    >>> rows = run("dpo", {"beta": 0.1}, world, [0, 1])
    >>> rows[0]["push"], round(rows[1]["margin"], 3)  # two logits move apart by .025 each
    ([0.05, -0.05], 0.05)
    """
    tokens, step = int(world["tokens"]), float(world["step"])
    above = below = np.asarray(world["logits"], float)
    first = sm.log_softmax(above)
    star = MINUS + 1 + int(np.argmax(first[MINUS + 1 :]))
    ref = {"refPlus": tokens * float(first[PLUS]), "refMinus": tokens * float(first[MINUS])}
    rows = []
    for update in range(int(world["states"])):
        up, down = sm.log_softmax(above), sm.log_softmax(below)
        at = {"plus": tokens * float(up[PLUS]), "minus": tokens * float(down[MINUS]), **ref}
        plus, minus = push(name, parameters, {**at, "nPlus": tokens, "nMinus": tokens})
        if update in marks:
            margin = at["plus"] - ref["refPlus"] - at["minus"] + ref["refMinus"]
            rows.append({"update": update, "plus": at["plus"], "minus": at["minus"],
                         "star": tokens * float(down[star]), "push": [plus, minus], "margin": margin})  # fmt: skip
        if world["shared"]:
            above = below = sm.step(above, sm.pair_residual(above, PLUS, MINUS, c_plus=plus, c_minus=minus), s=step)
        else:
            above = sm.step(above, sm.residual(above, PLUS, c=plus), s=step)
            below = sm.step(below, sm.residual(below, MINUS, c=minus), s=step)
    return rows


def _drawn(rng: np.random.Generator, name: str) -> dict[str, float]:
    """Parameters off their defaults, within the sliders' ranges."""
    out = {}
    for key in _shown(name):
        _, low, high = _OWN.get((name, key), _RANGES[key])
        out[key] = float(rng.uniform(low, high))
    return out


def _levels(plus: float, minus: float, ref_plus: float, ref_minus: float, n_plus: int, n_minus: int) -> dict[str, Any]:
    return {"plus": plus, "minus": minus, "refPlus": ref_plus, "refMinus": ref_minus, "nPlus": n_plus,
            "nMinus": n_minus}  # fmt: skip


def _places(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Random pairs, margins from −700 to 700 by either side, probabilities next to 1 and next to 0."""
    places = []
    for _ in range(6):
        near = -rng.exponential(8.0, 4)
        plus, minus, ref_plus, ref_minus = (float(x) for x in near)
        places.append(_levels(plus, minus, ref_plus, ref_minus, *(int(n) for n in rng.integers(1, 12, 2))))
    for plus, minus, ref_plus, ref_minus in (
        (-1.0, -701.0, -1.0, -1.0), (-701.0, -1.0, -1.0, -1.0), (-1.0, -1.0, -701.0, -1.0),
        (-1.0, -1.0, -1.0, -701.0), (-1e-9, -40.0, -2.0, -2.0), (-40.0, -1e-9, -2.0, -2.0), (-0.7, -0.6, -0.65, -0.65),
    ):  # fmt: skip
        places.append(_levels(plus, minus, ref_plus, ref_minus, 1, 1))
    return places


def _case(call: str, args: list[Any], want: Any, size: float) -> dict[str, Any]:
    # Absolute: rounding of sums of numbers as large as `size`; where pushes cancel, that is what is left of them.
    return {"call": call, "args": args, "want": want, "rtol": 1e-9, "atol": 64.0 * np.finfo(float).eps * size}


def cases(seed: int = 0) -> list[dict[str, Any]]:
    """Golden vectors: pushes of every loss at random and extreme places, what becomes of them, and runs."""
    rng = np.random.default_rng(seed)
    out = []
    for name in LOSSES:
        usual = {key: value for key, value in vars(objectives.get(name)).items() if (name, key) not in _HIDDEN}
        for parameters in (usual, _drawn(rng, name)):
            for at in _places(rng):
                out.append(_case("losses.push", [name, parameters, at], list(push(name, parameters, at)), 0.0))
        at = _levels(-20.0, -20.0, -20.0, -20.0, 10, 10)
        far = 30.0 / usual.get("beta", 0.2)
        # Once as far as the panel looks, once so near that only what is without end tells.
        out += [_case("losses.fate", [name, usual, at, d], fate(name), 0.0) for d in (far, _NEAR.get(name, far))]
        # Flat, too: there the likeliest other class is no likelier than y⁺ and y⁻.
        for shared, logits in ((True, rng.normal(0.0, 2.0, 5)), (False, rng.normal(0.0, 2.0, 3)), (True, np.zeros(4))):
            world = {"logits": [float(x) for x in logits], "tokens": int(rng.integers(1, 5)), "step": 0.1,
                     "shared": shared, "states": 24}  # fmt: skip
            marks = [0, 1, 2, 23]
            out.append(_case("losses.run", [name, usual, world, marks], run(name, usual, world, marks), 1.0))
    return out
