"""Which pairs will be displaced? One update tells much, eight tell all but all, one pair's looks tell little

DPO in closed form, 32 seeds, held-out language and kernels (one colour each, from little to much that all contexts
share). A, B: rank correlation, over the pairs of a world, of a score known before training with the fall of log π(y⁺)
of each pair where the margin reaches 20 nats; mean and 95 % interval over seeds; 1 = the right order, 0 = none. A, all
pairs trained together: eight updates, each twice the last, beat one (`foresight.few-updates-beat-one`) and the run's
own first eight (`foresight.few-updates-beat-a-beginning`); one update (K3) beats CHES (`foresight.one-step-beats-ches`)
and all log-probabilities (`foresight.one-step-beats-likelihoods`). Where contexts share much its terms of the pair
alone (entanglement) say little, and CHES nothing. B, every pair trained alone: CHES and overlap of tokens say more.
Improbability of y⁻ says nothing, or leans the wrong way. C: share of chosen responses that the first update lowers,
and that have fallen at the margin and at the end: one update is far too hopeful
(`foresight.first-update-is-too-hopeful`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, require, title
from toyld.figures._table import Table, rows

__all__ = ["PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "§4.2 (which pairs does DPO lower?)"
TAGS = ("contexts", "squeezing", "displacement")
SEED = 0  # seeds count from here
SEEDS = 32
COLOURS = {"prefixes": SOFT, "places": FALL, "crowded": RISE}
NAMES = {
    "foreseen": "8 large updates",
    "begun": "first 8 of the run",
    "k3": "one update (K3)",
    "pair": "… the pair's own terms",
    "ches": "CHES",
    "ches_normalised": "CHES, by length",
    "overlap": "overlap of tokens",
    "ease": "log π(y⁺) a token",
    "margin": "log π(y⁺)/π(y⁻)",
    "improbability": "−log π(y⁻) a token",
}
WHEN = {"fell_first": "first\nupdate", "fell": "margin\n20", "fell_end": "end"}


def data(size: str) -> Table:
    """One row per kernel, regime and number read: mean over seeds, 95 % interval, how many seeds have it."""
    from scipy.special import stdtrit

    from toyld.contexts.experiments import foresight

    columns: dict[str, list[Any]] = {}
    for ds in foresight.tables(range(SEED, SEED + (8 if size == "smoke" else SEEDS))).values():
        read = {f"rank_{name}": f"eval_rank_{name}" for name in NAMES} | {name: f"eval_{name}" for name in WHEN}
        read |= {f"auc_{name}": f"eval_auc_{name}" for name in NAMES if f"eval_auc_{name}" in ds}
        for what, variable in read.items():
            x = ds[variable].values[:, 0]
            x = x[np.isfinite(x)]
            half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else np.nan
            mean = float(x.mean())
            made = {"kernel": ds.attrs["kernel"], "regime": ds.attrs["regime"], "what": what, "seeds": len(x)}
            made |= {"mean": mean, "low": mean - half, "high": mean + half}
            for name, value in made.items():
                columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Two panels of scores, one of shares."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.8, 3.1))
    axes = fig.subplots(1, 3, width_ratios=(1.0, 1.0, 0.62))
    for ax, letter, regime, words in zip(
        axes, "AB", ("many", "alone"), ("Pairs trained together", "Each pair alone"), strict=False
    ):
        for i, (kernel, color) in enumerate(COLOURS.items()):
            for y, name in enumerate(NAMES):
                if regime == "alone" and name == "pair":
                    continue  # it is K3 there
                one = rows(table, kernel=kernel, regime=regime, what=f"rank_{name}")
                at = y + 0.22 * (i - 1)
                ax.plot([one["low"][0], one["high"][0]], [at, at], color=color, lw=1.0)
                ax.plot(one["mean"], [at], "o", color=color, ms=3.2, label=f"kernel “{kernel}”" if y == 0 else None)
        ax.axvline(0.0, color=QUIET, lw=0.6, zorder=0)
        ax.set_xlim(-0.55, 1.03)
        ax.set_ylim(len(NAMES) - 0.5, -0.5)
        ax.set_yticks(range(len(NAMES)), NAMES.values() if letter == "A" else [""] * len(NAMES))
        ax.set_xlabel("rank correlation with the fall")
        title(ax, letter, words)
    for kernel, color in COLOURS.items():
        for regime, dashes in (("many", "-"), ("alone", (0, (3, 1.5)))):
            share = [rows(table, kernel=kernel, regime=regime, what=when)["mean"][0] for when in WHEN]
            axes[2].plot(range(3), share, marker="o", color=color, ls=dashes)
    axes[2].set_xticks(range(3), WHEN.values())
    axes[2].set_ylim(-0.02, 1.0)
    axes[2].set_ylabel("share of y⁺ below its start")
    axes[0].plot([], [], color=INK, label="C: together")
    axes[0].plot([], [], color=INK, ls=(0, (3, 1.5)), label="C: alone")
    title(axes[2], "C", "Who falls")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, handletextpad=0.4)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The order of the scores that the caption tells, and the shares that fall."""

    def value(kernel: str, regime: str, what: str, column: str = "mean") -> float:
        return float(rows(table, kernel=kernel, regime=regime, what=what)[column][0])

    for kernel in COLOURS:
        for regime in ("many", "alone"):
            got = {name: value(kernel, regime, f"rank_{name}") for name in NAMES}
            order = f"{kernel}, {regime}: {', '.join(f'{name} {x:.2f}' for name, x in got.items())}"
            require(got["foreseen"] > 0.95, f"expected eight updates above .95, got {order}")
            require(
                got["foreseen"] > got["begun"] > got["k3"], f"expected eight, begun, one in this order, got {order}"
            )
            others = [x for name, x in got.items() if name not in ("foreseen", "begun", "k3", "pair")]
            require(got["k3"] > max(others), f"expected one update above every heuristic, got {order}")
            require(got["improbability"] < 0.3, f"expected nothing of improbability, got {order}")
            shares = [value(kernel, regime, when) for when in WHEN]
            require(shares[0] < min(shares[1:]), f"{kernel}, {regime}: expected more falls than at first, got {shares}")
    pair, whole = (value("crowded", "many", f"rank_{name}") for name in ("pair", "k3"))
    require(pair < whole / 2, f"crowded, together: expected less than half from the pair's own terms, got {pair:.2f}")
    for name in ("ches", "overlap"):
        alone, many = (value("crowded", regime, f"rank_{name}") for regime in ("alone", "many"))
        require(alone > many, f"crowded: expected more of {name} alone, got {alone:.2f} against {many:.2f}")
