"""Squeezing at a glance: push one unlikely answer down, and the favourite takes it all

A: one softmax, one gradient step (s = 2) that pushes the unlikely y⁻ down. Only the likeliest answer y* gains; ten
that nobody mentioned fall with y⁻ (`squeeze.runner-up-rises`, `squeeze.peak-takes-all`). B: a whole run of DPO in
closed form (many contexts with a common component, after SFT; means over seeds with 95 % intervals). The margin grows
as it should (`preference.margin-grows`), yet even the preferred y⁺ falls (`preference.chosen-falls`, conditional: it
depends on the kernel), an answer to a prompt that nobody trained falls further, and what rises is the model's own
favourite along y⁺ (`preference.argmax-rises`). The chosen curve alone cannot tell that from harmless falls; the gap to
the favourite can (`preference.gap-widens`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.figures._look import FALL, GREEN, QUIET, RISE, SOFT, centred, require, title
from toyld.figures._runs import ARGMAX, by_hand, collected
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "Fig. 2 and 4"
DIFFERS = (
    "A sketch of the paper's two findings, not a copy of its panels: twelve classes instead of fifty, and in B made-up "
    "languages whose head alone trains instead of Pythia and Qwen. The paper's own argmax curve was measured along "
    "other contexts by mistake; this one is measured along those of y⁺."
)
TAGS = ("softmax", "contexts", "dpo", "squeezing")
STEP, CLASSES, LABEL, FALLOFF = 2.0, 12, 8, 0.95
RUN = "anisotropic dpo baseline after 10"
# Kind -> (words at its end, colour, dashes).
LINES: dict[str, tuple[str, str, Any]] = {
    ARGMAX: ("the favourite along y⁺", SOFT, "-"),
    "chosen": ("y⁺, preferred", RISE, "-"),
    "irr_test": ("untrained answer", GREEN, (0, (4, 1.2))),
    "rejected": ("y⁻, rejected", FALL, "-"),
}


def _logits() -> np.ndarray:
    return -FALLOFF * np.arange(CLASSES)


def data(size: str) -> Table:
    """Part "step": the probability (mean) of each class (x), before and after; part "run": a kind by update (x)."""
    z = _logits()
    after = sm.step(z, sm.residual(z, LABEL, c=-1.0), s=STEP)
    run = collected(size, {RUN: "dpo"}, LINES)
    nothing, first = np.full(2 * CLASSES, np.nan), np.tile(np.arange(1, CLASSES + 1), 2)
    return {
        "part": np.repeat(["step", "run"], [2 * CLASSES, len(run["kind"])]),
        "line": np.concatenate([np.repeat(["before", "after"], CLASSES), run["kind"]]),
        "x": np.concatenate([first, run["update"]]),
        "mean": np.concatenate([sm.softmax(z), sm.softmax(after), run["mean_nats"]]),
        "low": np.concatenate([nothing, run["low_nats"]]),
        "high": np.concatenate([nothing, run["high_nats"]]),
        "seeds": np.concatenate([np.zeros(2 * CLASSES, int), run["seeds"]]),
    }


def draw(table: Mapping[str, Any]) -> Any:
    """A: every class before and after one step. B: changes over a run of DPO, named at the lines' ends."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 2.35))
    left, right = fig.subplots(1, 2, width_ratios=(1.0, 1.15))
    before, after = (rows(table, part="step", line=name) for name in ("before", "after"))
    for k, p, q in zip(before["x"], before["mean"], after["mean"], strict=True):
        color = RISE if q > p else FALL
        strong = k in (1, LABEL + 1)
        left.plot([k, k], [p, q], color=color if strong else QUIET, lw=2.6 if strong else 1.1, zorder=1)
        left.plot(k, q, marker="^" if q > p else "v", color=color, ms=6 if strong else 3.6, zorder=3)
        left.plot(k, p, marker="o", mfc="white", mec="#777777", ms=3.8, mew=0.8, zorder=2)
    left.set_yscale("log")
    left.set(xlabel="answers, likeliest first", ylabel="probability", xticks=[1, 4, 8, 12])
    left.text(1.5, after["mean"][0], "y* takes all", va="center", color=RISE, fontweight="bold", fontsize=7.5)
    low = after["mean"][LABEL]
    left.text(LABEL + 0.6, low, "y⁻, pushed", va="center", ha="right", color=FALL, fontweight="bold", fontsize=7.5)
    title(left, "A", "One push on one answer")
    for kind, (words, color, dashes) in LINES.items():
        one = rows(table, part="run", line=kind)
        right.plot(one["x"], one["mean"], color=color, ls=dashes, lw=1.9)
        right.fill_between(one["x"], one["low"], one["high"], color=color, alpha=0.15, lw=0)
        last = float(one["x"][-1])
        ink = "#8A5F00" if color == SOFT else color  # letters need more contrast than lines
        right.text(1.03 * last, one["mean"][-1], words, va="center", color=ink, fontsize=7, fontweight="bold")
    right.plot([0, last], [0, 0], color=QUIET, lw=0.7, zorder=0)
    right.spines["bottom"].set_bounds(0, last)
    right.set(xlabel="updates of DPO", ylabel="change of log π, nats", xlim=(0, 1.72 * last))
    right.set_xticks([0, 10, 20, 30])
    title(right, "B", "A whole run of DPO")
    return fig


def _ends(table: Mapping[str, Any], kind: str) -> tuple[float, float, float]:
    one = rows(table, part="run", line=kind)
    require(one["mean"][0] == 0.0 and one["x"][0] == 0, f"{kind} does not start at 0")
    return float(one["mean"][-1]), float(one["low"][-1]), float(one["high"][-1])


def check(table: Mapping[str, Any]) -> None:
    """A from the closed form of `log_alpha`; B's signs by intervals, and y⁺ from the definition of a run."""
    z = _logits()
    before, after = (rows(table, part="step", line=name) for name in ("before", "after"))
    first = sm.softmax(z)
    off = float(np.abs(before["mean"] - first).max())
    require(off < 1e-12, f"A: the classes are off by up to {off:.3g} from those of the caption")
    alpha = after["mean"] / before["mean"]
    expected = sm.alpha(z, LABEL, s=STEP)
    require(np.allclose(alpha, expected, rtol=1e-9), f"A: the step moves by {alpha.round(4)}, not {expected.round(4)}")
    rest = np.delete(alpha, [0, LABEL])
    require(alpha[0] > 1.0 and (rest < 1.0).all(), f"A: not only y* gains: {alpha.round(4)}")
    require(len(rest) == 10, f"A: {len(rest)} others, the caption says ten")
    run = rows(table, part="run")
    centred(run)
    ends = {kind: _ends(table, kind) for kind in LINES}
    require(ends["chosen"][2] < 0.0, f"B: y⁺ ends at {ends['chosen']}")
    require(ends[ARGMAX][1] > 0.0, f"B: the argmax ends at {ends[ARGMAX]}")
    require(ends["irr_test"][2] < ends["chosen"][1], f"B: the untrained answer ends at {ends['irr_test']}")
    require(ends["rejected"][2] < ends["irr_test"][1], f"B: y⁻ ends at {ends['rejected']}")
    got, updates = ends["chosen"][0], int(run["x"].max())
    want = by_hand(int(run["seeds"][0]), "anisotropic", sft=10, dpo=updates)
    require(abs(got - want) < 1e-9 * abs(want), f"B: y⁺ gains {got:.12g} nats, by hand {want:.12g}")
