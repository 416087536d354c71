"""Squeezing by position: the rich gain after the first token in which a pair differs, not at it; shared beginnings pay

Tiny transformers after SFT, 20 seeds; pairs whose first two tokens are shared, y⁻ being the model's own continuation.
Change of log π over a short DPO run, nats a context, mean over the contexts before, at and after the first token in
which the two differ; bars: 95 % intervals over seeds. Along y⁺: its token. Along y⁻: its token, y* (the likeliest class
that is not trained there), and the mean of all classes that are not. At the difference, where DPO keeps the ratios of
all others if K ∝ I (T10), y* moves like the rest; after it y* falls less, or rises
(`tokens.rich-gain-after-divergence`, `tokens.argmax-rises-in-the-head`). The tokens that y⁺ shares with y⁻ fall
(`tokens.shared-beginning-pays`), though both residuals cancel there; its own ones rise in A and B
(`tokens.chosen-rises-at-the-divergence`). A and B: every pair alone, plain descent, 20 updates of the head and 6 of all
layers. C and D: all pairs together, through all layers, by plain descent (15 updates) and RMSprop (20): other pairs
lower y* as well, and RMSprop lifts the improbable rest above it (`tokens.rmsprop-favours-the-tail`). E: y* less the
rest, pairs alone as in B, by how many tokens are shared; behind four of them little is left. Vertical axes of A to D
are linear between −.5 and .5, logarithmic beyond.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["COST", "DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§3.3 and Claim 2 (squeezing), token by token"
DIFFERS = (
    "The paper sums log-probabilities over a response; here they are drawn by position, in tiny transformers. At "
    "the first token in which a pair differs squeezing is cancelled if K is in proportion to I, a case that the "
    "paper does not set apart."
)
TAGS = ("tiny", "dpo", "squeezing")
COST = "half a minute"
SEEDS = {"smoke": 5, "paper": 20}
RUNS = {
    "head": ("alone, sgd, head", "Pair alone, head"),
    "alone": ("alone, sgd, all", "Pair alone, all layers"),
    "sgd": ("many, sgd, all", "All pairs"),
    "rmsprop": ("many, rmsprop, all", "All pairs, RMSprop"),
}
SHARED, MIDDLE = (0, 1, 2, 3, 4), 2
REGIONS = ("before", "at", "after")
# What is drawn: its column, colour, marker, name.
LINES = {
    "plus": ("chosen_label", RISE, "o", "token of y⁺"),
    "minus": ("rejected_label", FALL, "v", "token of y⁻"),
    "top": ("rejected_top", INK, "s", "y*, along y⁻"),
    "rest": ("rejected_rest", QUIET, "D", "rest, along y⁻"),
}


def _tables(size: str) -> Mapping[str, Any]:
    from toyld.tiny.experiments import EXPERIMENTS

    return EXPERIMENTS.run("tokens", seeds=range(SEEDS[size]))


def data(size: str) -> Table:
    """One row per run, tokens shared, what is read and region: mean over seeds and 95 % interval, nats a context."""
    found = _tables(size)
    columns: dict[str, list[Any]] = {}
    wanted = [(run, MIDDLE, what) for run in RUNS for what in LINES]
    wanted += [("alone", k, "gap") for k in SHARED]
    for run, shared, what in wanted:
        ds = found[f"tokens: {RUNS[run][0]}, {shared} shared"]
        for region in REGIONS:
            name = f"eval_{LINES[what][0] if what in LINES else 'rejected_gap'}_{region}"
            if name not in ds:  # nothing lies before the first token
                continue
            x = ds[name].values[:, -1]
            x = x[np.isfinite(x)]
            made = {"run": run, "shared": shared, "what": what, "region": region, "seeds": len(x)}
            for key, value in (made | dict(zip(("mean", "low", "high"), interval(x), strict=True))).items():
                columns.setdefault(key, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Four panels of regions, one of shared tokens."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.2))
    panels = fig.subplot_mosaic([["A", "B", "E"], ["C", "D", "E"]])
    axes, last = [panels[letter] for letter in "ABCD"], panels["E"]
    for ax, letter, (run, (_, words)) in zip(axes, "ABCD", RUNS.items(), strict=True):
        for i, (what, (_, color, marker, name)) in enumerate(LINES.items()):
            one = rows(table, run=run, shared=MIDDLE, what=what)
            at = np.array([REGIONS.index(region) for region in one["region"]]) + 0.12 * (i - 1.5)
            ax.vlines(at, one["low"], one["high"], color=color, lw=1.2)
            ax.plot(at, one["mean"], marker=marker, color=color, ms=3.2, lw=0.8, label=name)
        ax.axhline(0.0, color=QUIET, lw=0.6, zorder=0)
        ax.set_yscale("symlog", linthresh=0.5)
        ax.set_ylim(-6.5, 1.6)
        ax.set_yticks([-4, -2, -1, -0.5, 0, 0.5, 1], ["−4", "−2", "−1", "−.5", "0", ".5", "1"])
        ax.minorticks_off()
        ax.set_xticks(range(3), REGIONS)
        ax.set_xlabel("the first difference")
        title(ax, letter, words)
    for ax in axes[::2]:
        ax.set_ylabel("change of log π, nats")
    for i, (region, color, marker) in enumerate(zip(REGIONS, (SOFT, FALL, RISE), "D^o", strict=True)):
        one = rows(table, run="alone", what="gap", region=region)
        at = one["shared"] + 0.15 * (i - 1)
        last.vlines(at, one["low"], one["high"], color=color, lw=1.2)
        last.plot(at, one["mean"], marker=marker, color=color, ms=3.2, lw=0.8, label=region)
    last.axhline(0.0, color=QUIET, lw=0.6, zorder=0)
    last.set_xticks(SHARED)
    last.set_xlabel("shared tokens")
    last.set_ylabel("y* less the rest, nats")
    title(last, "E", "Who gets rich")
    last.set_ylim(bottom=last.get_ylim()[0] - 0.6 * np.ptp(last.get_ylim()))
    last.legend(loc="lower left", title="the first difference:", alignment="left")
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, title="A to D")
    return fig


def _by_hand(size: str, run: str, what: str) -> dict[str, np.ndarray]:
    """Region → mean change of the label (seed,), from log π token by token and the texts."""
    from toyld.tiny.experiments import tokens
    from toyld.tiny.experiments._pairs import taught

    side = "chosen" if what == "plus" else "rejected"
    text = tokens.shared_pairs(*taught(tuple(range(SEEDS[size]))), MIDDLE).texts
    logp = _tables(size)[f"tokens: {RUNS[run][0]}, {MIDDLE} shared"].logp_token.sel(probe=side).values
    out: dict[str, list[float]] = {region: [] for region in REGIONS}
    for s in range(len(logp)):
        changes: dict[str, list[float]] = {region: [] for region in REGIONS}
        for p, (one, other) in enumerate(zip(text["chosen"][s], text["rejected"][s], strict=True)):
            first = next((t for t in range(len(one)) if one[t] != other[t]), -1)
            for t in range(len(one) if first >= 0 else 0):
                if np.isfinite(logp[s, 0, p, t]):
                    region = REGIONS[int(np.sign(t - first)) + 1]
                    changes[region].append(logp[s, 1, p, t] - logp[s, 0, p, t])
        for region, values in changes.items():
            out[region].append(float(np.mean(values)) if values else np.nan)
    return {region: np.array(values) for region, values in out.items()}


def check(table: Mapping[str, Any]) -> None:
    """What the caption says; the labels' changes anew from the tokens."""
    centred(table)
    size = next(size for size, n in SEEDS.items() if n == int(table["seeds"].max()))

    def value(run: str, what: str, region: str, column: str = "mean") -> float:
        return float(rows(table, run=run, shared=MIDDLE, what=what, region=region)[column][0])

    for run in RUNS:
        for what in ("plus", "minus"):
            for region, units in _by_hand(size, run, what).items():
                for column, want in zip(("mean", "low", "high"), interval(units[np.isfinite(units)]), strict=True):
                    off = abs(value(run, what, region, column) - want)
                    require(off < 1e-9, f"{run}: {column} of {what} {region} is {off:.3g} off the one by hand")
        fallen = value(run, "plus", "before", "high" if size == "paper" else "mean")
        require(fallen < 0.0, f"{run}: expected shared tokens of y⁺ to fall, got {fallen:.3f}")
        gain = [value(run, "top", region) - value(run, "rest", region) for region in REGIONS]
        if run != "rmsprop":
            require(gain[2] > gain[1], f"{run}: expected y* to gain on the rest more after than at, got {gain}")
        else:
            require(gain[2] < 0.0, f"{run}: expected the rest above y*, got {gain}")
    for run in ("head", "alone"):
        rises = value(run, "plus", "at", "low"), value(run, "plus", "after", "low")
        require(min(rises) > 0.0, f"{run}: expected y⁺'s own tokens to rise, got {rises}")
    require(value("head", "top", "after", "low") > 0.0, f"head: y* after is {value('head', 'top', 'after'):.3f}")
    for run in ("sgd", "rmsprop") if size == "paper" else ():  # five seeds do not tell
        top = value(run, "top", "after")
        require(top < 0.0, f"{run}: expected y* to fall in company, got {top:.3f}")
    gaps = {region: rows(table, what="gap", region=region)["mean"].mean() for region in REGIONS}
    require(gaps["after"] > max(gaps["at"], gaps["before"], 0.0), f"expected the largest gap after, got {gaps}")
