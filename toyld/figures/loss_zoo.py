"""The loss zoo: how each objective's push on y⁻ lets go as y⁻ becomes improbable

Every registered objective with its default parameters, one-token responses: y⁻ starts at π = π_ref = π_old = .1 and
is pushed down to 1e-12 while y⁺ stays. Plotted is the push −∂loss/∂log π(y⁻) relative to its start (1 = as hard as at
the start, 0 = let go, below 0 = it now pulls y⁻ up); what it multiplies is the same residual π − e_y everywhere. A: a
push that never lets go is a loss without a floor (`residual.no-floor`); gradient ascent runs off linearly
(`unlearning.ga-linear`). B: the DPO family lets go with the margin or its own log-ratio, at rate β, and never turns
(`residual.dpo-never-reverses`); NPO's push is 2ρ^β/(1 + ρ^β) (`unlearning.npo-push`). C: in proportion to π(y⁻) or a
power of it; unlikelihood's is π/(1 − π) (`unlearning.unlikelihood-residual`), that of a negative sample on the
probability itself is π (`policy.nsr-residual`). D: at a threshold (ppo and grpo at their clip, `policy.ppo-push`;
slic, hinge) or a target, beyond which it pulls y⁻ up: ipo (`residual.ipo-reverses`), cdpo, and sppo
(`residual.sppo-stops-at-target`), which is said to have no negative gradient
(`residual.sppo-has-no-negative-gradient` is refuted); trl.discopop begins with the wrong sign. Not drawn: sft (no
push on y⁻), extend (pulls y⁻ up), bs-t (a target distribution in place of a label).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "App. B.2.2"
DIFFERS = (
    "The paper gives the gradients of five losses as formulas; here every registered loss is computed. Of the "
    "paper's own, three are otherwise than printed: IPO's coefficient, SLiC's, and the sign of SPPO's push on y⁻, "
    "which makes it a bounded negative gradient, not an absent one."
)
TAGS = ("objectives",)
START, END = 0.1, 1e-12
EPS = float(np.finfo(float).eps)


def _group(push: np.ndarray) -> str:
    """What the push on y⁻ does along the way (negative = pushes down)."""
    if not (push < 0.0).any():
        return "none"
    relative = push / push[0]
    if relative.min() < 0.0 or (push[1:][np.abs(push[:-1]) > 0.3 * np.abs(push[0])] == 0.0).any():
        return "threshold"
    if relative[-1] > 0.25 and abs(relative[-1] - relative[-1 - len(push) // 8]) < 0.05:
        return "holds on"
    return "proportional" if relative[-1] < 1e-6 else "margin"


def data(size: str) -> Table:
    """One row per objective and probability; objectives with a target distribution in place of a label are left out."""
    from toyld import objectives

    log_p = np.linspace(np.log(START), np.log(END), 33 if size == "smoke" else 129)
    calm = np.array([np.log(START)])
    columns: dict[str, list[Any]] = {}
    for name in objectives.OBJECTIVES:
        objective = objectives.get(name)
        if objective.kind == "target":
            continue
        # One pair a batch: some objectives look across the batch.
        pushes = [objective.push(objectives.pair_batch(calm, lp[None], calm, calm)).rejected for lp in log_p]
        push = np.array([0.0 if one is None else float(one[0, 0]) for one in pushes]) + 0.0
        made = {
            "objective": np.full(len(log_p), name),
            "group": np.full(len(log_p), _group(push)),
            "p_rejected": np.exp(log_p),
            "log_ratio_to_reference_nats": log_p - log_p[0],
            "push_on_log_p": push,
        }
        for column, values in made.items():
            columns.setdefault(column, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _families(table: Mapping[str, Any], group: str) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """(names, p, relative push) of each distinct curve of a group, the largest family first."""
    part = rows(table, group=group)
    found: list[tuple[list[str], np.ndarray, np.ndarray]] = []
    for name in dict.fromkeys(part["objective"].tolist()):
        one = rows(part, objective=name)
        relative = one["push_on_log_p"] / abs(one["push_on_log_p"][0]) * -1.0
        for names, _, curve in found:
            if np.abs(curve - relative).max() < 1e-3:
                names.append(name)
                break
        else:
            found.append(([name], one["p_rejected"], relative))
    return sorted(found, key=lambda family: -len(family[0]))


def _words(names: list[str], most: int = 3) -> str:
    first = sorted(names, key=lambda name: (name.startswith("trl."), name != "dpo"))
    return ", ".join(first[:most]) + (f" +{len(first) - most}" if len(first) > most else "")


PANELS = {
    "holds on": ("A", "Never lets go"),
    "margin": ("B", "Slowly: margin or own log-ratio"),
    "proportional": ("C", "Lets go with π(y⁻) itself"),
    "threshold": ("D", "Stops, or turns around"),
}
STYLES: list[tuple[str, Any]] = [
    (RISE, "-"),
    (FALL, "-"),
    (SOFT, (0, (5, 1.5))),
    ("#0072B2", (0, (1.5, 1.2))),
    (QUIET, "-"),
    (INK, (0, (4, 1, 1, 1))),
    ("#009E73", "-"),
    ("#CC79A7", (0, (3, 1))),
]


def draw(table: Mapping[str, Any]) -> Any:
    """One panel per group, a line per distinct curve."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.6))
    axes = fig.subplots(2, 2, sharex=True, sharey=True).ravel()
    for ax, (group, (letter, words)) in zip(axes, PANELS.items(), strict=True):
        for i, (names, p, relative) in enumerate(_families(table, group)):
            ax.plot(
                p,
                relative,
                lw=1.6,
                label=_words(names),
                color=STYLES[i % len(STYLES)][0],
                ls=STYLES[i % len(STYLES)][1],
            )
        ax.axhline(0.0, color=INK, lw=0.6)
        ax.set_xscale("log")
        ax.set_xlim(START, END)
        ax.set_ylim(-1.05, 1.08)
        ax.legend(loc="lower right" if group == "threshold" else "lower left", handlelength=2.2, labelspacing=0.25)
        title(ax, letter, words)
    axes[0].text(END * 2, -0.04, "below 0: pulls y⁻ up", ha="right", va="top", fontsize=6.5, color=INK)
    for ax in axes[2:]:
        ax.set_xlabel("π(y⁻): less probable →")
    for ax in axes[::2]:
        ax.set_ylabel("push on y⁻, relative to start")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The closed forms of the losses that have one, and the groups the caption names."""
    groups = {name: str(rows(table, objective=name)["group"][0]) for name in dict.fromkeys(table["objective"].tolist())}
    named = {
        "none": "sft",
        "holds on": "ga asymre",
        "margin": "dpo npo",
        "proportional": "unlikelihood nsr topr",
        "threshold": "ppo grpo slic trl.hinge ipo sppo cdpo",
    }
    wrong = {
        name: groups.get(name) for group, names in named.items() for name in names.split() if groups.get(name) != group
    }
    require(not wrong, f"{len(wrong)} objectives in other groups than the caption says: {wrong}")
    out = {"extend", "bs-t"} & {name for name, group in groups.items() if group != "none"}
    require(not out, f"{len(out)} objectives that the caption says are not drawn: {out}")
    for name, group in groups.items():
        one = rows(table, objective=name)
        p, push = one["p_rejected"], one["push_on_log_p"]
        ends = float(p[0]), float(p[-1])
        near = np.allclose(ends, (START, END), rtol=64 * EPS * abs(np.log(END)), atol=0.0)
        require(near, f"{name}: π(y⁻) goes from {ends[0]:.6g} to {ends[1]:.6g}, expected {START} to {END}")
        require(_group(push) == group, f"{name}: {group!r} in the table, its {len(push)} pushes say {_group(push)!r}")
        if group in ("holds on", "margin"):
            require((push < 0.0).all(), f"{name}: the push turns, it reaches {push.max():.3g}")
        elif group == "proportional":
            half = slice(len(p) // 2, None)
            slope = np.diff(np.log(-push[half])) / np.diff(np.log(p[half]))
            require(
                np.ptp(slope) < 1e-4, f"{name}: the push is no power of π: exponents {slope.min()} to {slope.max()}"
            )
        elif name in ("ppo", "grpo", "slic", "trl.hinge"):
            require(push[-1] == 0.0, f"{name}: beyond its threshold the push is {push[-1]:.3g}, not 0")
        elif name in ("ipo", "cdpo", "sppo"):
            require(push[-1] > 0.0, f"{name}: beyond its target the push is {push[-1]:.3g}, not upwards")
        elif name == "trl.discopop":
            require(push[0] > 0.0, f"{name}: the push begins with {push[0]:.3g}, not with the wrong sign")
    missing = set(PANELS) - set(groups.values())
    require(not missing, f"no objective in {missing}")
    beta = 0.1  # the default of the family
    for name in ("ga", "dpo", "ipo", "npo", "unlikelihood", "nsr"):
        one = rows(table, objective=name)
        p, r, push = one["p_rejected"], one["log_ratio_to_reference_nats"], one["push_on_log_p"]
        closed = {
            "ga": -np.ones_like(p),
            "dpo": -beta / (1.0 + np.exp(-beta * r)),
            "ipo": -2.0 * (0.5 / beta + r),
            "npo": -2.0 * np.exp(beta * r) / (1.0 + np.exp(beta * r)),
            "unlikelihood": -p / (1.0 - p),
            "nsr": -p,
        }[name]
        far = float(np.abs(r).max())
        bound = 64 * EPS * (np.abs(closed) * (1.0 + far) + (far if name == "ipo" else 0.0))
        off = np.abs(push - closed)
        require((off <= bound).all(), f"{name}: push {push[off.argmax()]:.6g}, closed form {closed[off.argmax()]:.6g}")
