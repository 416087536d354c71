"""The closed form foretells most of SFT of a transformer, and under DPO directions rather than sizes

A stage that trains every layer of tiny transformers by plain descent, foretold from the models before it; 20 languages
and models. Full: the closed form with the Gram matrix of the last hidden states, which is head-only fine-tuning to a
thousandth of a nat (`reach.gram-is-the-head`). Dashed: the kernel of all layers before the stage, without ever forming
it. Dotted: its first update drawn out. A, B: what each leaves over, after as many updates, of the variance of Δ log π
over kinds of responses and prompts: geometric means and 95 % intervals over seeds; grey: one half; what lies above one
foretells worse than the mean would. The Gram matrix explains most of SFT (`reach.gram-explains-sft`), less of DPO
(`reach.dpo-reaches-below-the-head`); the kernel of all layers explains the start of both, updates that move the stage
by about one nat (`reach.tangent-explains-the-start`), and DPO leaves it sooner (`reach.dpo-leaves-its-kernel`). After
forty updates the first one drawn out leaves more than the run of that kernel: 15 times the variance in SFT, 1.7 times
it in DPO (`reach.closed-form-beats-the-line`). C: share of responses whose direction is said rightly, means and 95 %
intervals (`reach.gram-says-directions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["COST", "DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "§2 (first order) beside whole runs of tiny transformers"
DIFFERS = (
    "The paper argues from one step to a run; here whole runs are foretold and compared. Tiny transformers on "
    "made-up languages, plain descent instead of RMSprop, in place of language models."
)
TAGS = ("tiny", "kernel")
COST = "half a minute"
SEED = 0  # seeds count from here
SEEDS = {"smoke": 5, "paper": 20}
LOOK: dict[str, Any] = {"gram": {"ls": "-"}, "tangent": {"ls": (0, (3, 1.5))}, "line": {"ls": (0, (1, 1.2))}}
SAID = {"gram": "Gram of hidden states", "tangent": "kernel of all layers", "line": "first update drawn out"}
COLOURS = {"gram": RISE, "tangent": FALL, "line": SOFT}


def data(size: str) -> Table:
    """One row per stage, foretelling, what is read, and updates: of signs, and of log10(1 − share explained)."""
    from toyld.tiny.experiments import EXPERIMENTS

    found = EXPERIMENTS.run("reach", range(SEED, SEED + SEEDS[size]))
    columns: dict[str, list[Any]] = {name: [] for name in ("stage", "by", "what", "updates", "mean", "low", "high")}
    for ds in found.values():
        for by in LOOK:
            for what in ("explained", "signs"):
                require(f"eval_{what}_{by}" in ds, f"{by}: expected finite shares, got none; a run came apart")
                for i, updates in enumerate(ds.step.values):
                    units = ds[f"eval_{what}_{by}"].values[:, i]
                    units = np.log10(1.0 - units) if what == "explained" else units
                    values = ds.attrs["arm"], by, what, int(updates), *interval(units)
                    for name, value in zip(columns, values, strict=True):
                        columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Two panels of shares, one of directions."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 2.2))
    axes = fig.subplots(1, 3)
    for ax, stage in zip(axes, ("sft", "dpo"), strict=False):
        for by in LOOK:
            one = rows(table, stage=stage, by=by, what="explained")
            ax.plot(one["updates"], 10 ** one["mean"], color=COLOURS[by], lw=1.2, marker="o", ms=2.4, **LOOK[by])
            ax.fill_between(one["updates"], 10 ** one["low"], 10 ** one["high"], color=COLOURS[by], alpha=0.16, lw=0)
        ax.axhline(0.5, color=QUIET, lw=0.6, zorder=0)
        ax.set_yscale("log")
        ax.set_ylim(1e-5, 60.0)
        ax.set_ylabel("left over ÷ variance")
    for by in LOOK:
        axes[1].plot([], [], color=COLOURS[by], lw=1.2, label=SAID[by], **LOOK[by])
        for stage, marker in (("sft", "o"), ("dpo", "s")):
            one = rows(table, stage=stage, by=by, what="signs")
            axes[2].plot(one["updates"], one["mean"], color=COLOURS[by], lw=1.0, marker=marker, ms=2.6, **LOOK[by])
            axes[2].fill_between(one["updates"], one["low"], one["high"], color=COLOURS[by], alpha=0.16, lw=0)
    axes[2].plot([], [], color=QUIET, marker="o", ms=3, lw=0, label="SFT")
    axes[2].plot([], [], color=QUIET, marker="s", ms=3, lw=0, label="DPO")
    axes[2].set_ylim(0.6, 1.01)
    axes[2].set_ylabel("directions said rightly")
    axes[2].legend(loc="lower left")
    axes[1].legend(loc="lower right", fontsize=6)
    for ax in axes:
        ax.set_xlabel("updates")
    title(axes[0], "A", "SFT")
    title(axes[1], "B", "DPO")
    title(axes[2], "C", "Up or down?")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption tells, at each number of updates."""
    centred(table)

    def left(stage: str, by: str) -> Any:
        return 10 ** rows(table, stage=stage, by=by, what="explained")["mean"]

    require(left("sft", "gram").max() < 0.5, f"Gram: expected most of SFT explained, left {left('sft', 'gram')}")
    require(bool((left("sft", "gram") < left("dpo", "gram")).all()), "Gram: expected less of DPO than of SFT explained")
    require(left("dpo", "tangent")[1] > left("sft", "tangent")[1], "expected DPO to leave its kernel sooner")
    for stage in ("sft", "dpo"):
        require(
            left(stage, "tangent")[0] < 0.1, f"{stage}: expected its start explained, left {left(stage, 'tangent')}"
        )
        require(left(stage, "tangent")[-1] < left(stage, "line")[-1], f"{stage}: expected a line to be no run")
        said = rows(table, stage=stage, by="gram", what="signs")["mean"]
        require(said.min() > 0.8, f"{stage}: expected directions of four in five, got {said}")
