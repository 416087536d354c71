"""One negative gradient: harmless on a flat softmax, winner-takes-all on a peaked one

The panels of the paper's Appendix E from the authors' own random numbers (notebook squeeze_effect.ipynb, seed 10086, V
= 50, 4 features, ‖x‖² = 10.397): every class's probability before (circle) and after (triangle) one step, classes
sorted by probability before. A, a positive step on y: y rises, y* falls (`sft.label-rises-runner-up-falls`), and here
all 49 others fall. B, a negative step where p is flat: y falls (`squeeze.penalised-falls`) and none of the 49 others
does (`squeeze.nobody-else-loses`), as τ(0+) = ‖p‖² − p_y < 0 suggests (`squeeze.threshold-limit`). C and D, a negative
step where p is peaked: y* rises (`squeeze.runner-up-rises`) and the other 48 fall, as they must once y* has .577
(`squeeze.peak-takes-all`). The notebook announces C as a step on the peak, but with this seed its label holds 2.9 %
and log p_y + H = −2.8 < 0: it is a valley, like D, and entropy falls (`entropy.valley`). D′ is the later version of D,
which also pulls label 25 up in the same context: the π-terms cancel (`pair.shared-context`), all the rest moves by one
common factor, here 1 − 4.0e-6 (`pair.rest-moves-together`), and squeezing is gone. E, the large softmax of the
notebook (V = 1,000, s = 56): y* takes everything, from .51 to 1 − 5e-10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.figures._look import FALL, INK, QUIET, RISE, note, require, title
from toyld.figures._notebook import PANELS, SEED, panels
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "App. E, small and large V"
DIFFERS = (
    "The same random numbers, starts and steps as the authors' notebook, drawn by classes sorted by probability. "
    "C is announced as a step on a peak; with this seed its label is in a valley. D′ is the later version of D in "
    "the same repository."
)
TAGS = ("softmax", "squeezing")
EPS = float(np.finfo(float).eps)
UNMOVED = 1e-3  # |Δ log p| in nats below which a class is drawn as a circle: it did not move visibly

TITLES = {
    "A": ("A", "SFT on y: all others fall"),
    "B": ("B", "Push y down, flat: no other falls"),
    "C": ("C", "Push y down, “peak”: y* takes all"),
    "D": ("D", "Push y down, valley: y* takes all"),
    "D pair": ("D′", "Pair in one context: y* stays put"),
    "E": ("E", "Push y down, V = 1,000"),
}


def data(size: str) -> Table:
    """One row per panel and class, classes ranked by probability before; the same at both sizes (milliseconds)."""
    columns: dict[str, list[Any]] = {}
    for panel in panels():
        n = len(panel.z)
        after = sm.step(panel.z, panel.residual, s=panel.s)
        star = int(sm.runner_up(panel.z, panel.label))
        order = np.argsort(-panel.z, kind="stable")
        role = np.where(order == panel.label, "label", np.where(order == star, "y*", "other"))
        role = np.where(order == panel.partner, "partner", role)
        made = {
            "panel": np.full(n, panel.name),
            "rank": np.arange(1, n + 1),
            "class_index": order,
            "role": role,
            "log_p_before_nats": sm.log_softmax(panel.z)[order],
            "log_p_after_nats": sm.log_softmax(after)[order],
            "step_s": np.full(n, panel.s),
            "label_log_p_plus_entropy_nats": np.full(n, -sm.valley_depth(panel.z, panel.label)),
            "threshold_limit": np.full(n, sm.threshold_limit(panel.z, panel.label)),
            "entropy_before_nats": np.full(n, sm.entropy(panel.z)),
            "entropy_after_nats": np.full(n, sm.entropy(after)),
        }
        for name, values in made.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _one(table: Mapping[str, Any], role: str, when: str) -> float:
    return float(np.exp(rows(table, role=role)[f"log_p_{when}_nats"][0]))


def _short(p: float) -> str:
    """A probability in few characters: .072, 5e−14."""
    if p >= 0.001:
        return f"{p:.3f}".lstrip("0") if p < 0.9995 else "1.000"
    mantissa, _, exponent = f"{p:.0e}".partition("e")
    return f"{mantissa}e−{abs(int(exponent))}"


def _panel(ax: Any, one: Mapping[str, Any], name: str) -> None:
    rank, role = one["rank"], one["role"]
    before, after = np.exp(one["log_p_before_nats"]), np.exp(one["log_p_after_nats"])
    change = one["log_p_after_nats"] - one["log_p_before_nats"]
    up, down, still = change > UNMOVED, change < -UNMOVED, np.abs(change) <= UNMOVED
    named = np.isin(role, ("label", "partner", "y*"))
    large = len(rank) > 100
    size = 1.0 if large else 2.6
    ax.set_yscale("log")
    ax.margins(x=0.04, y=0.07)
    if large:
        ax.fill_between(rank[~named], after[~named], before[~named], color="#E6E6E6", lw=0, zorder=0)
    else:
        ax.vlines(rank[~named], before[~named], after[~named], color=QUIET, lw=0.6, zorder=1)
    ax.plot(
        rank, before, "o", ms=size, mfc="white", mec="#8C8C8C", mew=0.25 if large else 0.5, zorder=2, rasterized=large
    )
    for mask, marker, color in ((down, "v", FALL), (up, "^", RISE), (still, "o", "#8C8C8C")):
        part = mask & ~named
        ax.plot(rank[part], after[part], marker, ms=size, mfc=color, mec="none", zorder=3, rasterized=large)
    pair = "partner" in role
    for part, label in (("label", "y⁻" if pair else "y"), ("y*", "y*"), ("partner", "y⁺")):
        for i in np.flatnonzero(role == part):
            color, marker = (RISE, "^") if up[i] else (FALL, "v") if down[i] else ("#8C8C8C", "o")
            ax.vlines(rank[i], before[i], after[i], color=color, lw=1.8, zorder=4)
            ax.plot(rank[i], after[i], marker, ms=6, mfc=color, mec="white", mew=0.5, zorder=5)
            place = {"xytext": (5.5, 0), "textcoords": "offset points", "va": "center", "weight": "bold"}
            ax.annotate(label, (rank[i], after[i]), color=INK, fontsize=8, zorder=6, **place)
    if large:
        ax.set_ylim(1e-48, 1e2)
        ax.set_yticks([10.0**k for k in (-40, -30, -20, -10, 0)], minor=False)
        ax.minorticks_off()
    title(ax, *TITLES[name])


def draw(table: Mapping[str, Any]) -> Any:
    """Six panels, 3 × 2, probabilities on a logarithmic axis."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 6.4))
    for ax, name in zip(fig.subplots(3, 2).ravel(), PANELS, strict=True):
        one = rows(table, panel=name)
        _panel(ax, one, name)
        change = one["log_p_after_nats"] - one["log_p_before_nats"]
        rest = ~np.isin(one["role"], ("label", "partner"))
        falls, rises = int((rest & (change < -UNMOVED)).sum()), int((rest & (change > UNMOVED)).sum())
        lines = [f"y  {_short(_one(one, 'label', 'before'))} → {_short(_one(one, 'label', 'after'))}"]
        lines += [f"y*  {_short(_one(one, 'y*', 'before'))} → {_short(_one(one, 'y*', 'after'))}"]
        others = f"only y* rises, {falls} fall" if rises == 1 else f"others: {rises} rise, {falls} fall"
        lines += ["all others: no visible change" if name == "D pair" else others]
        if name == "C":
            lines.append(
                f"in fact a valley: log p$_y$ + H = {one['label_log_p_plus_entropy_nats'][0]:.1f}".replace("-", "−")
            )
        low = name in ("B", "E")
        x, side = (0.03, "left") if name == "E" else (0.99, "right")
        note(ax, x, 0.04 if low else 0.97, "\n".join(lines), ha=side, va="bottom" if low else "top")
        if name == "A":
            note(ax, 0.03, 0.04, "○ before   ▲▼ after the step", va="bottom")
        if name in ("A", "C", "D pair"):
            ax.set_ylabel("probability")
        if name in ("D pair", "E"):
            ax.set_xlabel("class, by its rank before the step")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The counts and signs of the caption, from the probabilities in the table."""
    for name in PANELS:
        one = rows(table, panel=name)
        change = one["log_p_after_nats"] - one["log_p_before_nats"]
        role, n = one["role"], len(change)
        require(n == (1000 if name == "E" else 50), f"{name}: {n} classes")
        rate = {"B": 0.3, "E": 1.0}.get(name, 0.5)
        norm2, digits = float(one["step_s"][0]) / rate, 0 if name == "E" else 3
        require(round(norm2, digits) == (56 if name == "E" else 10.397), f"{name}: ‖x‖² = {norm2:.6g}")
        label, star, rest = change[role == "label"][0], change[role == "y*"][0], change[role != "label"]
        for when in ("before", "after"):
            total = np.exp(one[f"log_p_{when}_nats"]).sum()
            require(abs(total - 1.0) < 64 * n * EPS, f"{name}: probabilities {when} sum to {total}")
            entropy = -np.sum(np.exp(one[f"log_p_{when}_nats"]) * one[f"log_p_{when}_nats"])
            stated = one[f"entropy_{when}_nats"][0]
            require(
                abs(entropy - stated) < 64 * n * EPS, f"{name}: entropy {when} is {entropy}, the table says {stated}"
            )
        depth = one["log_p_before_nats"][role == "label"][0] + one["entropy_before_nats"][0]
        stated = one["label_log_p_plus_entropy_nats"][0]
        require(abs(depth - stated) < 64 * n * EPS, f"{name}: log p_y + H is {depth}, the table says {stated}")
        # Lemma 1: log p' − log p = Δz − const, with Δz = −s·residual.
        push = {"A": -1.0, "D pair": 0.0}.get(name, 1.0) * np.exp(one["log_p_before_nats"])
        push = push + np.where(role == "partner", 1.0, 0.0) + (1.0 if name == "A" else -1.0) * (role == "label")
        spread = np.ptp(change - one["step_s"] * push)
        bound = 64 * EPS * (np.abs(one["log_p_after_nats"]).max() + one["step_s"].max())
        require(
            spread < bound,
            f"{name}: the step is not s = {one['step_s'][0]:.4g} times the residual (off by {spread:.3g})",
        )
        falls = int((rest < 0.0).sum())
        if name == "A":
            require(
                label > 0.0 and falls == n - 1, f"A: log p_y changes by {label:.3g}, {falls} of {n - 1} others fall"
            )
            continue
        require(label < 0.0, f"{name}: the penalised label does not fall (Δ log p = {label:.3g})")
        if name == "D pair":
            largest = float(np.abs(star))
            require(largest < 1e-5, f"D′: y* moves by {largest:.3g} nats although the π-terms cancel")
            apart = np.ptp(change[(role != "label") & (role != "partner")])
            require(apart < bound, f"D′: the rest does not move by one factor, log p′/p is {apart:.3g} nats apart")
            lost = -float(np.expm1(star))
            require(f"{lost:.1e}" == "4.0e-06", f"D′: the rest moves by a factor 1 − {lost:.3g}, expected 1 − 4.0e-6")
            continue
        require(star > 0.0, f"{name}: y* does not rise (Δ log p = {star:.3g})")
        expected = 0 if name == "B" else n - 2
        require(falls == expected, f"{name}: {falls} of {n - 1} others fall, expected {expected}")
        before = np.exp(one["log_p_before_nats"])
        tau, top = one["threshold_limit"][0], before.max()
        exact = float(before @ before - before[role == "label"][0])
        require(abs(tau - exact) < 64 * n * EPS, f"{name}: τ(0+) = {tau}, ‖p‖² − p_y = {exact}")
        require((tau < 0.0) == (name == "B"), f"{name}: τ(0+) = {tau:.4g}")
        require(name == "B" or name == "E" or top >= 3**-0.5, f"{name}: the peak has {top:.4f}, below 1/√3")
    one = rows(table, panel="C")
    label, depth = _one(one, "label", "before"), float(one["label_log_p_plus_entropy_nats"][0])
    require(f"{label:.3f} {depth:.1f}" == "0.029 -2.8", f"C: p_y = {label:.4f}, log p_y + H = {depth:.3f}")
    one = rows(table, panel="E")
    start, left = _one(one, "y*", "before"), -float(np.expm1(rows(one, role="y*")["log_p_after_nats"][0]))
    require(f"{start:.2f} {left:.0e}" == "0.51 5e-10", f"E: y* goes from {start:.4f} to 1 − {left:.3g}")
    for name in ("C", "D", "E"):
        one = rows(table, panel=name)
        depth = one["label_log_p_plus_entropy_nats"][0]
        change = one["entropy_after_nats"][0] - one["entropy_before_nats"][0]
        require(depth < 0.0, f"{name}: log p_y + H = {depth:.3f} is not below 0: not a valley")
        require(change < 0.0, f"{name}: a valley was pushed down and entropy rises by {change:.3f} nats")
