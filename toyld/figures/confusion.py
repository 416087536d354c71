"""Runs whose cause is known, and what the verdict calls them: right, unless the effect drowns in the noise

Rows are causes, columns verdicts, numbers the percentage of the runs of that cause. A run is 40 examples of many small
softmaxes moved by one mechanism (`toyld.diagnosis.causes`: a pull as in `sft.label-rises-runner-up-falls`, squeezing by
the push of `squeeze.runner-up-rises` arriving at contexts like the chosen ones, displacement by a conflicting pair that
leaves the top alone, `pair.rest-moves-together`), seen in 8 evaluations. A, measured with a noise of .02 nats per
token: at least 95 % are right in every row, and no healthy run is called squeezing. B, three times that noise: nothing
is invented, no healthy run is called squeezing; of the wrong calls at least four in five are of a less severe class,
and about half are squeezing of which only the fall of the rejected response is left to see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import INK, require, title
from toyld.figures._table import Table, rows

__all__ = ["COST", "SEED", "TAGS", "check", "data", "draw"]

TAGS = ("diagnosis", "softmax")
COST = "half a minute"
SEED = 0  # seeds count from here
RUNS = {"smoke": 4, "paper": 200}
LOUD = 3.0
PANELS = {"A": ("noise .02 nats/token", 1.0), "B": ("three times that noise", LOUD)}


def data(size: str) -> Table:
    """One row per panel, cause and verdict."""
    from toyld.diagnosis import Thresholds
    from toyld.diagnosis.causes import CAUSES, NOISE, confusion

    runs, quick = RUNS[size], Thresholds(resamples=200)
    names = list(CAUSES)
    columns: dict[str, list[Any]] = {
        n: [] for n in ("panel", "noise_nats_per_token", "cause", "verdict", "runs", "share")
    }
    for panel, (_, factor) in PANELS.items():
        noise = round(factor * NOISE, 12)
        matrix = confusion(runs=runs, noise=noise, thresholds=quick)
        for cause in names:
            for verdict in names:
                share = matrix[cause].get(verdict, 0) / runs
                for name, value in zip(columns, (panel, noise, cause, verdict, runs, share), strict=True):
                    columns[name].append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _matrix(table: Mapping[str, Any], panel: str) -> tuple[list[str], Any]:
    """(names in the order of the file, shares [cause, verdict])."""
    one = rows(table, panel=panel)
    names = list(dict.fromkeys(one["cause"].tolist()))
    share = {(c, v): s for c, v, s in zip(one["cause"].tolist(), one["verdict"].tolist(), one["share"], strict=True)}
    return names, np.array([[float(share[c, v]) for v in names] for c in names])


def draw(table: Mapping[str, Any]) -> Any:
    """Two matrices; darker = more of the row."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    ramp = LinearSegmentedColormap.from_list("toyld", ["#FFFFFF", "#B7C6D3", "#0B3954"])
    fig = Figure(figsize=(5.5, 3.3))
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (panel, (words, _)) in zip(axes, PANELS.items(), strict=True):
        names, share = _matrix(table, panel)
        n = len(names)
        ax.pcolormesh(np.arange(n + 1) - 0.5, np.arange(n + 1) - 0.5, share, cmap=ramp, vmin=0, vmax=1, lw=0)
        for i, j in zip(*np.nonzero(share), strict=True):
            number = f"{100 * share[i, j]:.3g}"
            ax.text(j, i, number, ha="center", va="center", fontsize=5.8, color="white" if share[i, j] > 0.6 else INK)
        ax.set_xticks(range(n), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=6.5)
        ax.set_yticks(range(n), names, fontsize=6.5)
        ax.tick_params(length=0)
        ax.set_xlim(-0.5, n - 0.5)
        ax.set_ylim(n - 0.5, -0.5)
        ax.set_aspect("equal")
        for edge in np.arange(n + 1) - 0.5:
            ax.axhline(edge, color="#E4E4E4", lw=0.4)
            ax.axvline(edge, color="#E4E4E4", lw=0.4)
        ax.set_xlabel("verdict")
        title(ax, panel, words)
    axes[0].set_ylabel("cause")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The caption's percentages; with few runs a class's 95 % are asked of all classes together."""
    from toyld.diagnosis import CLASSES, SEVERITY
    from toyld.diagnosis.causes import NOISE

    for panel, (_, factor) in PANELS.items():
        one = rows(table, panel=panel)
        noise, runs = one["noise_nats_per_token"], int(one["runs"][0])
        require(np.abs(noise - factor * NOISE).max() < 1e-12, f"{panel}: noise {noise[0]}, expected {factor * NOISE}")
        names, share = _matrix(table, panel)
        require(set(names) == set(CLASSES), f"{panel}: {len(names)} causes {names}, expected {sorted(CLASSES)}")
        require(np.abs(share.sum(1) - 1.0).max() < 1e-9, f"{panel}: rows add up to {share.sum(1).round(4)}, expected 1")
        right, at = np.diag(share), {name: i for i, name in enumerate(names)}
        called = float(share[at["healthy"], at["squeezing"]])
        require(called == 0.0, f"{panel}: {called:.1%} of the healthy runs are called squeezing")
        if panel == "A":
            worst = float(right.min() if runs >= 100 else right.mean())
            require(worst >= 0.95, f"A: right {dict(zip(names, right.tolist(), strict=True))}, expected at least 95 %")
            continue
        wrong = {(c, v): float(share[at[c], at[v]]) for c in names for v in names if c != v}
        quieter = sum(s for (c, v), s in wrong.items() if SEVERITY.index(v) > SEVERITY.index(c))
        require(
            quieter >= 0.8 * sum(wrong.values()), f"B: of {sum(wrong.values()):.3f} wrong, {quieter:.3f} less severe"
        )
        sunk = wrong["squeezing", "rejection"] + wrong["squeezing", "not-learning"]
        require(
            sunk >= 0.4 * sum(wrong.values()), f"B: of {sum(wrong.values()):.3f} wrong, {sunk:.3f} unseen squeezing"
        )
