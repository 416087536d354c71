"""Teaching y⁻ first (“extend”) against fair controls, in tiny transformers: the paper's Figure 5, with intervals

DPO after 30 updates of SFT on y⁺ and y⁻ less the same DPO after SFT on y⁺ alone, of equal weight on y⁺ (15 updates, as
many passes where rows come in batches): differences of the change since DPO began, means over 20 languages and models
with 95 % intervals. A, C: along
DPO. Under plain descent y⁺ and the others fall less; with RMSprop nothing is left of that in the end, so that
`preference.extend-slows-others-at-equal-passes` and `preference.extend-spares-chosen-at-equal-passes` are open here.
The argmax rises no less with either optimiser
(`preference.extend-lowers-total-argmax-at-equal-passes` is not borne out). B, D: at a margin of 10 nats, also against
plain SFT of as many updates (open marks). The price: what the policy says itself now holds the y⁻ that it was taught,
so that its fresh answers fall further than plain SFT's do, and KL(π_ref ‖ π) is larger
(`preference.extend-moves-farther`; open, for with RMSprop it is not sure).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import GREEN, INK, QUIET, RISE, SOFT, interval, require, title
from toyld.figures._runs import ARGMAX
from toyld.figures._table import Table, rows
from toyld.figures._tiny import NAMES, SEEDS, begins_at_zero, changes, end, stages

__all__ = ["COST", "DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§4.3, Fig. 5"
DIFFERS = (
    "Tiny transformers on made-up languages, 20 seeds with intervals, where the paper has single runs of a "
    "language model. Two fair controls, SFT of equal weight on y⁺ and of as many updates, where the paper has the "
    "first alone, so that differences of curves are drawn and not the curves. The weaker rise of the argmax that "
    "the paper reports is not borne out."
)
TAGS = ("tiny", "dpo", "remedies")
COST = "half a minute"
MARGIN = 10.0
FRESH = "sampled"
CONTROLS = {"passes": 15, "updates": 30}
# Kind -> (words, colour, dashes).
LINES: dict[str, tuple[str, str, Any]] = {
    "chosen": ("y⁺", RISE, "-"),
    "irr_train": ("taught elsewhere", GREEN, (0, (6, 1.5, 1, 1.5))),
    "irr_test": ("never taught", "#8C6BB1", (0, (1.2, 1.5))),
    ARGMAX: ("argmax", SOFT, "-"),
    FRESH: ("fresh answers", "#777777", (0, (5, 1.5))),
}


def data(size: str) -> Table:
    """One row per recipe, kind and evaluation: the difference; parts "at margin …" have one row a kind, update −1."""
    extend = {f"{model} dpo extend after 30": model for model in NAMES}
    minus = {f"{model} dpo extend after 30": f"{model} dpo baseline after 15" for model in NAMES}
    curves = changes(size, extend, LINES, minus=minus)
    columns: dict[str, list[Any]] = {"part": ["along"] * len(curves["run"])}
    columns |= {name: list(values) for name, values in curves.items()}
    for model in NAMES:
        for clock, n in CONTROLS.items():
            for kind in LINES:
                gained = _at_margin(size, model, f"extend after {30}", kind)
                units = gained - _at_margin(size, model, f"baseline after {n}", kind)
                row = (f"at margin, {clock}", model, kind, -1, len(units), *interval(units))
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _at_margin(size: str, model: str, run: str, kind: str) -> np.ndarray:
    from toyld.trajectory import at_margin

    ds = stages(size)[f"tiny {model} dpo {run}"]
    if kind == ARGMAX:
        return at_margin(ds, MARGIN, variable="argmax_logp")
    return at_margin(ds, MARGIN, kind)


def draw(table: Mapping[str, Any]) -> Any:
    """Left: along DPO; right: at one margin, against both controls."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.8))
    axes = fig.subplots(2, 2, width_ratios=(1.25, 1.0))
    for r, model in enumerate(NAMES):
        ax, right = axes[r]
        ax.axhline(0.0, color=QUIET, lw=0.7, zorder=0)
        for kind, (words, color, dashes) in LINES.items():
            one = rows(table, part="along", run=model, kind=kind)
            ax.plot(one["update"], one["mean"], color=color, ls=dashes, lw=1.6, label=words)
            ax.fill_between(one["update"], one["low"], one["high"], color=color, alpha=0.15, lw=0)
        ax.set_xlim(0, one["update"].max())
        ax.set_ylabel("extend less plain SFT, nats")
        title(ax, "AC"[r], f"{NAMES[model]}, along DPO")
        right.axvline(0.0, color=QUIET, lw=0.7, zorder=0)
        for i, (kind, (_, color, _)) in enumerate(LINES.items()):
            for clock, face, shift in (("passes", color, -0.14), ("updates", "white", 0.14)):
                one = rows(table, part=f"at margin, {clock}", run=model, kind=kind)
                error = one["high"] - one["mean"]
                right.errorbar(one["mean"], [i + shift], xerr=error, color=color, marker="o", ms=4, mfc=face, lw=1.2)
        right.set_yticks(range(len(LINES)), [words for words, *_ in LINES.values()], fontsize=7)
        right.set_ylim(len(LINES) - 0.5, -0.5)
        title(right, "BD"[r], "at a margin of 10 nats")
    axes[1, 0].set_xlabel("updates of DPO")
    axes[1, 1].set_xlabel("extend less plain SFT, nats")
    for face, words in ((INK, "of equal weight on y⁺"), ("white", "of as many updates")):
        axes[1, 1].plot([], [], "o", ms=4, color=INK, mfc=face, label=words)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    more, names = axes[1, 1].get_legend_handles_labels()
    fig.legend(handles + more, labels + names, loc="outside lower center", ncols=4, fontsize=6.8, handlelength=1.6)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption says, by intervals over the seeds."""
    begins_at_zero(rows(table, part="along"))
    at = rows(table, update=-1)
    off = np.abs(at["low"] + at["high"] - 2.0 * at["mean"]).max()
    require(off < 1e-9, f"an interval lies {off:.3g} aside of its mean")
    for kind in ("chosen", "irr_train", "irr_test"):
        for clock in CONTROLS:
            lead = end(table, "sgd", kind, part=f"at margin, {clock}")
            require(lead[1] > 0.0, f"plain descent, {kind}: spared by {lead} at equal margin, {clock}")
        lead = end(table, "sgd", kind, part="along")
        require(lead[1] > 0.0, f"plain descent, {kind}: spared by {lead} in the end")
        if table["seeds"][0] >= SEEDS["paper"]:
            low, high = end(table, "rmsprop", kind, part="along")[1:]
            require(low < 0.0 < high, f"RMSprop, {kind}: spared by [{low:.3g}, {high:.3g}] in the end")
    for model in NAMES:
        total = end(table, model, ARGMAX, part="along")
        if table["seeds"][0] >= SEEDS["paper"]:
            require(total[2] > 0.0, f"{model}: the argmax rises less after extend, by {total}")
        price = end(table, model, FRESH, part="at margin, passes")
        require(price[2] < 0.0, f"{model}: fresh answers fall by {price} less after extend")
