"""Who wins after a negative step: a threshold that rises from ‖p‖² − p_y to the probability of y*

One softmax with seven classes, a negative step on the fourth (y, p = .12), step s from .03 to 100. Left: the
threshold τ(s) (`squeeze.threshold-law`): a class other than y gains while its probability (a horizontal line) lies
above the curve and loses once it lies below. τ starts at ‖p‖² − p_y (`squeeze.threshold-limit`), never falls
(`squeeze.threshold-rises`) and ends at p_{y*} (`squeeze.threshold-ceiling`), so in the end y* alone gains. Right:
each class's probability after the step over that before. The two classes between both ends gain first and lose later:
a larger step does not amplify every effect (`squeeze.larger-step-amplifies-all` is refuted); y*, y and the losers it
does amplify (`squeeze.runner-up-grows-with-step`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.figures._look import FALL, INK, RISE, SOFT, note, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "App. E, Claims 1, 2 and 5"
DIFFERS = (
    "The paper guarantees that y falls and that y* rises and states the rest as trends; here the threshold "
    "between winners and losers is exact at every step. Claim 5, that a larger step amplifies all effects, is "
    "refuted for classes in between."
)
TAGS = ("softmax", "squeezing")
P = (0.34, 0.24, 0.16, 0.12, 0.08, 0.04, 0.02)
LABEL = 3
EPS = float(np.finfo(float).eps)


def data(size: str) -> Table:
    """One row per step and class."""
    steps = np.geomspace(0.03, 100.0, 41 if size == "smoke" else 201)
    z = np.tile(np.log(P), (len(steps), 1))
    labels = np.full(len(steps), LABEL)
    n = len(P)
    return {
        "step_s": np.repeat(steps, n),
        "class_index": np.tile(np.arange(n), len(steps)),
        "p_before": sm.softmax(z).ravel(),
        "log_ratio_nats": sm.log_alpha(z, labels, s=steps).ravel(),
        "threshold": np.repeat(sm.threshold(z, labels, s=steps), n),
        "threshold_limit": np.repeat(sm.threshold_limit(z, labels), n),
    }


def _kind(i: int, one: Mapping[str, Any]) -> str:
    """What becomes of a class: its label in the picture."""
    if i == LABEL:
        return "y"
    gains = one["log_ratio_nats"] > 0.0
    return "always" if gains.all() else "never" if not gains.any() else "first"


LOOKS: dict[str, dict[str, Any]] = {
    "always": {"color": RISE, "ls": "-", "lw": 1.8},
    "first": {"color": SOFT, "ls": "-", "lw": 1.8},
    "never": {"color": "#8A8A8A", "ls": "-", "lw": 1.2},
    "y": {"color": FALL, "ls": (0, (4, 2)), "lw": 1.4},
}


def draw(table: Mapping[str, Any]) -> Any:
    """Threshold on the left, changes on the right, one colour per fate."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 2.9))
    left, right = fig.subplots(1, 2)
    for i in np.unique(table["class_index"]):
        one = rows(table, class_index=i)
        s, kind, p = one["step_s"], _kind(int(i), one), float(one["p_before"][0])
        look = LOOKS[kind]
        gains = one["log_ratio_nats"] > 0.0
        if kind == "y":
            left.plot(s, np.full(len(s), p), **look)
        else:
            left.plot(s[gains], np.full(gains.sum(), p), color=look["color"], lw=2.4)
            left.plot(s[~gains], np.full((~gains).sum(), p), color=look["color"], lw=0.9, ls=":")
        right.plot(s, np.exp(one["log_ratio_nats"]), zorder=3 if kind == "first" else 2, **look)
        number = f"{p:.2f}".lstrip("0")
        name = {"always": f"y*  {number}", "y": f"y  {number}"}.get(kind, number)
        place = {"textcoords": "offset points", "va": "center", "fontsize": 6.5, "color": INK, "annotation_clip": False}
        left.annotate(name, (s[-1], p), xytext=(4, 0), **place)
        if kind == "always":
            right.annotate(f"y*  {number}", (s[-1], np.exp(one["log_ratio_nats"][-1])), xytext=(4, 0), **place)
        elif kind == "first":
            top = int(np.argmax(one["log_ratio_nats"]))
            leader = {"arrowprops": {"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkB": 1}}
            peak = (s[top], np.exp(one["log_ratio_nats"][top]))
            right.annotate(
                number, peak, xytext=(-24, 26) if top < len(s) // 2 else (22, 12), ha="center", **place, **leader
            )
    one = rows(table, class_index=0)
    s, tau = one["step_s"], one["threshold"]
    left.plot(s, tau, color="black", lw=2.0, zorder=4)
    at = int(np.argmin(np.abs(tau - 0.29)))
    left.annotate(
        "τ(s)", (s[at], tau[at]), xytext=(-6, 2), textcoords="offset points", ha="right", fontsize=9, weight="bold"
    )
    start = (s[0], one["threshold_limit"][0])
    left.annotate("‖p‖² − p$_y$", start, xytext=(2, -5.5), textcoords="offset points", fontsize=6, va="center")
    note(left, 0.02, 0.99, "thick: gains   dotted: loses")
    left.set_ylim(0.0, 0.4)
    left.set_ylabel("probability before the step")
    right.axhline(1.0, color=INK, lw=0.6, zorder=1)
    right.set_ylim(0.0, 3.0)
    right.set_ylabel("after / before,  p′/p")
    note(right, 0.02, 0.99, "above 1: gains")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xlim(s[0], s[-1])
        ax.set_xlabel("step  s = η‖x‖²")
    y_line = rows(table, class_index=LABEL)
    half = int(np.argmin(np.abs(y_line["log_ratio_nats"] - np.log(0.5))))
    right.annotate("y", (s[half], 0.5), xytext=(-8, -4), textcoords="offset points", fontsize=7, color=INK)
    title(left, "A", "Other classes gain above τ")
    title(right, "B", "Two classes gain, then lose")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The law, the limits and the fates of the caption."""
    first = rows(table, class_index=0)
    s, tau, limit = first["step_s"], first["threshold"], float(first["threshold_limit"][0])
    p = np.array([rows(table, class_index=i)["p_before"][0] for i in range(len(P))])
    exact = float(p @ p - p[LABEL])
    require(abs(limit - exact) < 64 * EPS, f"τ(0+) = {limit}, ‖p‖² − p_y = {exact}")
    require((np.diff(tau) > -64 * EPS).all(), f"τ falls by {-np.diff(tau).min():.3g}")
    star = float(np.delete(p, LABEL).max())
    reach = 1.0 + star - p[LABEL]
    require(
        (tau >= limit - 64 * EPS).all() and tau[0] - limit <= s[0] * reach**2 / 8,
        f"τ(0+) = {limit}, τ({s[0]}) = {tau[0]}",
    )
    require(
        (tau <= star + 64 * EPS).all() and star - tau[-1] <= -np.log(star) / s[-1],
        f"τ({s[-1]}) = {tau[-1]}, p_y* = {star}",
    )
    ends = float(s[0]), float(s[-1])
    require(np.allclose(ends, (0.03, 100.0), rtol=64 * EPS), f"steps from {ends[0]} to {ends[1]}, expected .03 to 100")
    require(len(p) == 7 and abs(p[3] - 0.12) < 64 * EPS, f"{len(p)} classes, the fourth has {p[3]:.4f}, expected .12")
    fates = {"always": 0, "first": 0, "never": 0, "y": 0}
    for i in range(len(P)):
        one = rows(table, class_index=i)
        change = one["log_ratio_nats"]
        fates[_kind(i, one)] += 1
        if i == LABEL:
            require(
                (change < 0.0).all() and (np.diff(change) < 0.0).all(), f"y does not always fall: {change.max():.3g}"
            )
            continue
        off = np.abs(change - s * (one["p_before"] - tau))
        kind, gains = _kind(i, one), change > 0.0
        turns = int((gains[1:] != gains[:-1]).sum())
        if kind == "first":
            require(gains[0] and turns == 1, f"class {i}: gains at s = {s[0]}: {gains[0]}, and turns {turns} times")
        else:
            growth = np.diff(np.abs(change))
            require((growth > 0.0).all(), f"class {i} ({kind}): a larger step does less by {-growth.min():.3g} nats")
        require((off <= 64 * EPS * (1.0 + s)).all(), f"class {i}: log p′/p differs from s(p − τ) by {off.max():.3g}")
    require(
        fates == {"always": 1, "first": 2, "never": 3, "y": 1}, f"expected 1 winner, 2 that turn, 3 losers, got {fates}"
    )
