"""The paper's Figure 4 from its own logs: under DPO nearly every kind of response falls, the rejected one first

Two released DPO runs on Anthropic-HH: above Pythia-410M, means over 500 training prompts with 95 % intervals, below
Pythia-1B, of which means alone were logged; both older logs, whose argmax was measured along other contexts and is
left out. Changes of summed log-probabilities since the run's first evaluation. A, D: the chosen response y⁺ rises at
first and ends 6 nats up in the small model and 7 down in the large one; its rephrases fall below it
(`preference.chosen-outlasts-rephrases`). B, E: the rejected response y⁻ falls most of all that a person or a model
wrote, ahead of its rephrases (`preference.rejected-leads-rephrases`), and the margin grows (`preference.margin-grows`).
C, F: other texts fall, too: what other prompts are taught, what test prompts would be, sentences on other subjects,
shuffled words (`preference.observed-fall` asks it of all kinds but one). The claims' verdicts on real runs
stand beside rung `published` of the scoreboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, interval, require, title
from toyld.figures._published import INPUTS, files, folders, read
from toyld.figures._registry import FigureError
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "INPUTS", "PAPER", "TAGS", "check", "data", "draw", "inputs"]

PAPER = "Fig. 4, all panels but the last; App. D for Pythia-1B"
DIFFERS = (
    "Two of the authors' released runs. Which runs the paper's panels show is not said, so that these need not be the "
    "same. Changes since the first evaluation are drawn, the paper draws the log-probabilities themselves. The last "
    "panel, the argmax, is left out: these two logs hold it along the contexts of shuffled words (see published_runs). "
    "The released files of the model's own rephrase were not scored."
)
TAGS = ("llm", "published", "dpo")
FOLDERS = {"Pythia-410M": "prob_pythia410m_dpo", "Pythia-1B": "verifyargmax_pythia1b_dpo_ep10_chosen"}
# Kind -> panel of the upper row, its words, colour, dashes.
SOLID, DASH, DOT, LONG, DENSE = "-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2, 0.6))
KINDS: dict[str, tuple[str, str, str, Any]] = {
    "chosen": ("A", "y⁺", RISE, SOLID),
    "chosen_gptsemantic": ("A", "its meaning, other words", FALL, DASH),
    "chosen_gptformat": ("A", "its form, other words", SOFT, LONG),
    "chosen_initial": ("A", "untrained model's answer", INK, DOT),
    "rejected": ("B", "y⁻", RISE, SOLID),
    "reject_gptsemantic": ("B", "its meaning, other words", FALL, DASH),
    "reject_gptformat": ("B", "its form, other words", SOFT, LONG),
    "irr_train": ("C", "y⁺ of another prompt", RISE, SOLID),
    "irr_test": ("C", "y⁺ of a test prompt", FALL, DASH),
    "irr_hum": ("C", "another subject", SOFT, LONG),
    "random_permute": ("C", "y⁺ shuffled", INK, DOT),
    "random_nonhum": ("C", "a test y⁺ shuffled", "#8A8A8A", DENSE),
}
WORDS = {"A": "Chosen, and like it", "B": "Rejected, and like it", "C": "Other texts"}
BELOW = {"A": "D", "B": "E", "C": "F"}
inputs = partial(files, FOLDERS)


def data(size: str) -> Table:
    """One row per model, kind and evaluation; NaN = an interval that was not logged. The same at both sizes."""
    names = ("model", "run", "kind", "evaluation", "examples_in_log", "mean_nats", "low_nats", "high_nats", "logp_nats")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for model, folder in folders(FOLDERS).items():
        run = read(folder).isel(seed=0)
        for kind in KINDS:
            if kind not in run.probe.values:
                raise FigureError(f"{folder.name}: expected log-probabilities of {kind}, got none; fetch the run anew")
            logp = run.logp.sel(probe=kind).values
            for evaluation, units in enumerate(logp - logp[:1]):
                made = (model, folder.name, kind, evaluation, len(units), *interval(units), logp[evaluation].mean())
                for name, value in zip(names, made, strict=True):
                    columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Two models, three panels each, one scale a model."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.9))
    axes = fig.subplots(2, 3, sharey="row")
    for row, (line, model) in enumerate(zip(axes, FOLDERS, strict=True)):
        for ax, panel in zip(line, WORDS, strict=True):
            for kind, (where, said, color, dashes) in KINDS.items():
                if where != panel:
                    continue
                one = rows(table, model=model, kind=kind)
                ax.plot(one["evaluation"], one["mean_nats"], color=color, ls=dashes, label=said)
                ax.fill_between(one["evaluation"], one["low_nats"], one["high_nats"], color=color, alpha=0.16, lw=0)
            ax.axhline(0.0, color=QUIET, lw=0.6, zorder=0)
            ax.set_xlim(0, rows(table, model=model)["evaluation"].max())
            if row == 1:
                ax.set_xlabel("evaluation")
                ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=2.4, borderaxespad=0)
            title(ax, panel if row == 0 else BELOW[panel], WORDS[panel])
        line[0].set_ylabel(f"{model}\nchange of log-probability, nats")
    return fig


def _last(table: Mapping[str, Any], model: str) -> dict[str, float]:
    return {kind: float(rows(table, model=model, kind=kind)["mean_nats"][-1]) for kind in KINDS}


def check(table: Mapping[str, Any]) -> None:
    """The ends as published, who falls before whom, and that the changes are those of the log-probabilities."""
    published = {"Pythia-410M": (5.64, -76.29, -151.98), "Pythia-1B": (-6.71, -188.14, -132.25)}
    for model, (chosen, rejected, start) in published.items():
        last = _last(table, model)
        got = last["chosen"], last["rejected"], float(rows(table, model=model, kind="chosen")["logp_nats"][0])
        require(
            np.allclose(got, (chosen, rejected, start), atol=0.0051),
            f"{model}: y⁺, y⁻ and the start {np.round(got, 2)}, expected {chosen}, {rejected}, {start}",
        )
        written = [kind for kind in KINDS if not kind.startswith("random")]
        require(min(written, key=last.__getitem__) == "rejected", f"{model}: {last}: y⁻ does not fall most")
        for side, rephrase in (("chosen", "chosen"), ("rejected", "reject")):
            like = [last[f"{rephrase}_{form}"] for form in ("gptsemantic", "gptformat")]
            ahead = min(like) - last[side] if side == "rejected" else last[side] - max(like)
            require(ahead > 10.0, f"{model}: {side} is {ahead:.1f} nats ahead of its rephrases, expected more than 10")
        up = [kind for kind, change in last.items() if change >= 0.0]
        require(len(up) <= 1, f"{model}: {len(up)} kinds end above their start, {up}, expected one at most")
        n = set(rows(table, model=model)["examples_in_log"].tolist())
        require(n == {500 if model == "Pythia-410M" else 1}, f"{model}: {n} examples in the log")
        for kind in KINDS:
            one = rows(table, model=model, kind=kind)
            moved = one["logp_nats"] - one["logp_nats"][0]
            off = float(np.abs(moved - one["mean_nats"]).max())
            require(off < 1e-9, f"{model}, {kind}: changes are {off:.3g} nats off the log-probabilities")
            known = np.isfinite(one["low_nats"])
            require(bool(known.all() if n == {500} else not known.any()), f"{model}, {kind}: {known.sum()} intervals")
            if known.any():
                even = float(np.abs(one["low_nats"] + one["high_nats"] - 2 * one["mean_nats"]).max())
                wide = float(one["high_nats"][-1] - one["low_nats"][-1])
                require(even < 1e-9 and 1.0 < wide < 10.0, f"{model}, {kind}: interval {wide:.2f} wide, off by {even}")
