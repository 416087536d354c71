"""The paper's own runs: argmax up and chosen down is squeezing; the published argmax curve was measured elsewhere

Four released runs of Pythia-410M on Anthropic-HH, from one checkpoint; means over 500 training prompts of summed
log-probabilities. Along the contexts of the chosen response: the response itself, and the argmax at each of its
tokens. The shaded gap between them is how much greedy decoding prefers to say something else. A, SFT: chosen gains
more than argmax and the gap shrinks from 90 to 48 nats. B, DPO: the argmax gains 20 nats while the chosen response
loses 4, as one softmax does under a negative gradient (`squeeze.runner-up-rises`, `squeeze.rich-get-richer`; a run may
follow them or not). C, another released DPO run: chosen loses 25 and argmax is where it was, displacement without
squeezing. D, an older log, as published: its “argmax” starts at −113.5 where the same checkpoint has −61.6 in A-C, and
in 30 % of all cases it lies below the label's own log-probability, which no argmax can; it was measured along the
contexts of a shuffled response. The log of B holds means only; no log records how many examples apart the evaluations
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, RISE, SOFT, note, require, title
from toyld.figures._published import INPUTS, files, folders, read
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "INPUTS", "PAPER", "TAGS", "check", "data", "draw", "inputs"]

PAPER = "Fig. 4, last panel"
DIFFERS = (
    "The paper's figure says −113 to −63 for the argmax. Its log (D is one of that kind) was measured along the "
    "contexts of shuffled words, the argmax bug, which the authors confirmed and mended in May 2025: A to C are "
    "their mended logs, in which it starts at −61.6. The very run of the paper's figure was not released. Only "
    "the chosen response and its argmax are drawn; changes since the start stand in words."
)
TAGS = ("llm", "published")
FOLDERS = {
    "A": "pythia410_baseline_sft_verify_argmax_bug",
    "B": "pythia410m_baseline_dpo_checkbug_5e7",
    "C": "pythia410_baseline_dpo_checkbug",
    "D": "prob_pythia410m_dpo",
}
TITLES = {
    "A": "SFT: the gap shrinks",
    "B": "DPO: consistent with squeezing",
    "C": "Another DPO run: displacement",
    "D": "An older DPO log, as published",
}
inputs = partial(files, FOLDERS)


def data(size: str) -> Table:
    """One row per run and evaluation, NaN = not logged; the same at both sizes (reading takes a second)."""
    columns: dict[str, list[np.ndarray]] = {}
    for panel, folder in folders(FOLDERS).items():
        run = read(folder, keep_buggy_argmax=True).sel(probe="chosen").isel(seed=0)
        chosen = run["logp"].values
        nothing = np.full(chosen.shape, np.nan)
        argmax = run["argmax_logp"].values if "argmax_logp" in run else nothing
        logged = run["argmax_logp_as_logged"].values if "argmax_logp_as_logged" in run else nothing
        below = np.where(np.isnan(argmax), logged, argmax) < chosen
        n = len(chosen)
        made = {
            "panel": np.full(n, panel),
            "run": np.full(n, folder.name),
            "evaluation": np.arange(n),
            "chosen_logp_nats": chosen.mean(axis=1),
            "argmax_logp_nats": argmax.mean(axis=1),
            "argmax_as_logged_logp_nats": logged.mean(axis=1),
            "share_argmax_below_label": below.mean(axis=1),
            "examples_in_log": np.full(n, chosen.shape[1]),
        }
        for name, values in made.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _signed(x: float) -> str:
    return f"{x:+.0f}".replace("-", "−")


def draw(table: Mapping[str, Any]) -> Any:
    """Four panels on one scale."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.4))
    axes = fig.subplots(2, 2, sharey=True).ravel()
    start = float(rows(table, panel="A")["argmax_logp_nats"][0])
    for ax, panel in zip(axes, FOLDERS, strict=True):
        one = rows(table, panel=panel)
        x, chosen = one["evaluation"], one["chosen_logp_nats"]
        ax.plot(x, chosen, color=RISE, lw=1.8)
        bug = panel == "D"
        top = one["argmax_as_logged_logp_nats" if bug else "argmax_logp_nats"]
        if bug:
            ax.plot(x, top, color=SOFT, lw=1.8, ls=(0, (4, 1.5)))
            ax.plot(0, start, "o", color=FALL, ms=5, clip_on=False, zorder=5)
            ax.annotate(f"true argmax of this checkpoint: {start:.1f}".replace("-", "−"), (0, start), xytext=(7, 0),
                        textcoords="offset points", va="center", fontsize=6.5, color=INK)  # fmt: skip
            share = float(one["share_argmax_below_label"].mean())
            note(ax, 0.5, 0.03, f"below its own label in {share:.0%} of cases: impossible", ha="center", va="bottom")
        else:
            ax.fill_between(x, chosen, top, color="#EDEDED", lw=0, zorder=0)
            ax.plot(x, top, color=FALL, lw=1.8, ls="-")
            change = (top - chosen)[[0, -1]]
            words = f"gap {change[0]:.0f} → {change[1]:.0f}\n"
            words += f"chosen {_signed(chosen[-1] - chosen[0])}, argmax {_signed(top[-1] - top[0])}"
            ax.text(0.5, (chosen.mean() + top.mean()) / 2, words, transform=ax.get_yaxis_transform(), ha="center",
                    va="center", fontsize=6.8, color=INK)  # fmt: skip
        # Below or above everything that the line does nearby.
        near = slice(int(0.4 * len(x)), int(0.9 * len(x)))
        heights = ((chosen[near].min() - 9, "chosen response", RISE), (top[near].max() + 8, "argmax", FALL))
        if bug:
            heights = (heights[0], (top[near].min() - 12, "“argmax” as logged", INK))
        for height, name, color in heights:
            ax.text(
                x[int(0.65 * len(x))], height, name, ha="center", va="center", fontsize=7, weight="bold", color=color
            )
        ax.set_xlim(0, len(x) - 1)
        title(ax, panel, TITLES[panel])
    for ax in axes[::2]:
        ax.set_ylabel("log-probability of the\nresponse, nats")
    for ax in axes[2:]:
        ax.set_xlabel("evaluation during training")
    axes[0].set_ylim(-215, -24)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The published numbers, to the digits given, and the impossibility in the older log."""
    runs = {panel: rows(table, panel=panel) for panel in FOLDERS}
    starts = np.array([run["chosen_logp_nats"][0] for run in runs.values()])
    require(np.ptp(starts) < 1e-3, f"the runs do not start from one checkpoint: chosen at {starts}")
    ends = {  # chosen first and last, argmax first and last
        "A": (-151.98, -92.4, -61.56, -44.5),
        "B": (-151.98, -156.2, -61.56, -41.2),
        "C": (-151.98, -177.1, -61.56, -61.5),
        "D": (-151.98, -146.3, -113.54, -72.3),
    }
    for panel, expected in ends.items():
        run = runs[panel]
        top = run["argmax_as_logged_logp_nats" if panel == "D" else "argmax_logp_nats"]
        got = (run["chosen_logp_nats"][0], run["chosen_logp_nats"][-1], top[0], top[-1])
        for value, digits, half in zip(got, expected, (0.005, 0.05, 0.005, 0.05), strict=True):
            require(abs(value - digits) <= half * 1.001, f"{panel}: expected {expected}, got {np.round(got, 3)}")
        below = float(run["share_argmax_below_label"].mean())
        require((below > 0.0) == (panel == "D"), f"{panel}: argmax below the label in {below:.1%} of cases")
    gap = {p: (runs[p]["argmax_logp_nats"] - runs[p]["chosen_logp_nats"])[[0, -1]] for p in "ABC"}
    require(gap["B"][1] > gap["B"][0] and gap["C"][1] > gap["C"][0], f"gaps: {gap}")
    require(np.round(gap["A"]).tolist() == [90.0, 48.0], f"A: the gap goes from {gap['A'][0]:.2f} to {gap['A'][1]:.2f}")
    for panel, said in {"B": (-4.0, 20.0), "C": (-25.0, 0.0)}.items():
        run = runs[panel]
        went = [float(run[f"{name}_logp_nats"][-1] - run[f"{name}_logp_nats"][0]) for name in ("chosen", "argmax")]
        require(
            tuple(np.round(went)) == said,
            f"{panel}: chosen {went[0]:+.2f} and argmax {went[1]:+.2f} nats, expected {said}",
        )
    for panel, run in runs.items():
        n = set(run["examples_in_log"].tolist())
        require(n == {1 if panel == "B" else 500}, f"{panel}: {n} examples in the log, expected 500, in B their mean")
    share = float(runs["D"]["share_argmax_below_label"].mean())
    require(abs(share - 0.296) < 0.0005, f"D: argmax below the label in {share:.1%}, published log: 29.6 %")
