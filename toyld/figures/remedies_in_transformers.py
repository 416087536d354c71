"""In transformers DPO+NLL spares the chosen answer, extend costs the untrained one; centring has little to take off

The preference stage of tiny transformers, all layers, RMSprop, 20 languages and models: mean change of log π since its
start against the margin m = Δ(ℓ₊ − ℓ₋), with 95 % intervals over seeds, where nine seeds of ten get there. A: DPO+NLL
lifts the chosen answer, Gate-DPO less (and in one seed not: `remedy.nll-and-gate-raise-chosen` is open); the others
lift it little or lower it. B: an untrained answer falls under all of them, least after SFT on both answers (extend),
which had cost it a nat before (`remedy.extend-pays-beforehand`), so that it does not end higher
(`remedy.extend-ends-higher` is open; so is that it falls least, `remedy.extend-spares-untrained-most`, which 20 other
seeds do not reproduce). With the mean input of every layer projected out of the updates both stand a
little higher than without (`remedy.spares-chosen-in-all-layers`, `remedy.spares-untrained-in-all-layers`, both
open after Holm's correction): the mean is not much of the states here (`remedy.mean-is-small`,
`remedy.little-to-undo`). C: how fast the margin grows. IPO stops at its target of 5
(`remedy.ipo-stops-at-its-target`), DPOP and SimPO stay behind (`remedy.dpop-is-far-behind`,
`remedy.remedies-are-slower`); A and B lack these three. D: m counts from each arm's own start, and the gap ℓ₊ − ℓ₋
begins at 10.35 nats after SFT, at .18 after extend: extend at m = 10 prefers the chosen answers as DPO does at m = 0.
Where the gap has come to 16 nats, log π of the untrained answer itself is 3.9 nats lower after extend
(`remedy.extend-costs-untrained-at-equal-gap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["COST", "DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "§4.3 (the question of a remedy)"
DIFFERS = (
    "The paper proposes extend alone and compares win rates after as many epochs; here remedies are compared at "
    "equal margin and at equal gap in tiny transformers."
)
TAGS = ("tiny", "remedies", "squeezing")
COST = "half a minute"
SEED = 0  # seeds count from here
SEEDS = {"smoke": 5, "paper": 20}
GRID = np.linspace(0.0, 10.0, 11)
# arm -> words, colour, dashes
LOOKS: dict[str, tuple[str, str, Any]] = {
    "plain": ("DPO", FALL, "-"),
    "projected": ("μ projected out", RISE, "-"),
    "extend": ("extend before", SOFT, (0, (5, 1.5))),
    "rpo": ("DPO+NLL", "#009E73", (0, (4, 1, 1, 1))),
    "gate-dpo": ("Gate-DPO", "#4C86A8", (0, (3, 1))),
    "length-normalised": ("length-normalised", INK, (0, (1, 1.5))),
}
SLOW: dict[str, tuple[str, str, Any]] = {
    "ipo": ("IPO", "#8A8A8A", (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    "simpo": ("SimPO", "#8A8A8A", (0, (7, 1.5))),
    "dpop": ("DPOP", "#8A8A8A", (0, (1, 1.5))),
}
GAPS = np.arange(1.0, 21.0)  # nats; 16 is where the claim compares
BOTH = ("plain", "extend")
PROBES = {"chosen": "chosen", "untrained": "test_chosen"}


def data(size: str) -> Table:
    """One row per arm, measure and place: change at a margin, margin after so many updates, log π at a gap.

    Measure start: the gap before DPO.
    """
    from toyld.claims.centring import ENOUGH, crossing
    from toyld.tiny.experiments import EXPERIMENTS
    from toyld.trajectory.matched import at_margin, margin

    found = EXPERIMENTS.run("remedies", range(SEED, SEED + SEEDS[size]))
    columns: dict[str, list[Any]] = {name: [] for name in ("arm", "measure", "place", "mean", "low", "high")}

    def put(*values: Any) -> None:
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)

    for arm in (*LOOKS, *SLOW):
        ds = found[f"remedies rmsprop layers {arm}"]
        path = margin(ds)
        for k, update in enumerate(ds.step.values):
            put(arm, "margin", float(update), *interval(path[k]))
        for measure, probe in PROBES.items() if arm in LOOKS else ():
            for m in GRID:
                units = at_margin(ds, float(m), probe)
                units = units[np.isfinite(units)]
                enough = len(units) >= ENOUGH * path.shape[1]
                put(arm, measure, float(m), *(interval(units) if enough else (np.nan,) * 3))
    for arm in BOTH:
        logp = found[f"remedies rmsprop layers {arm}"].logp.mean("example").transpose("step", "seed", "probe")
        gap = (logp.sel(probe="chosen") - logp.sel(probe="rejected")).values
        put(arm, "start", 0.0, *interval(gap[0]))
        for target in GAPS:
            units = crossing(gap, logp.sel(probe="test_chosen").values, float(target))
            units = units[np.isfinite(units)]
            enough = len(units) >= ENOUGH * gap.shape[1]
            put(arm, "level", float(target), *(interval(units) if enough else (np.nan,) * 3))
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """A panel a measure, a line an arm, bands of the intervals."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.6))
    axes = fig.subplots(2, 2).ravel()
    for ax, measure in zip(axes, (*PROBES, "margin", "level"), strict=True):
        for arm, (label, color, dashes) in {**LOOKS, **SLOW}.items():
            one = rows(table, arm=arm, measure=measure)
            ax.fill_between(one["place"], one["low"], one["high"], color=color, alpha=0.12, lw=0)
            ax.plot(one["place"], one["mean"], color=color, ls=dashes, lw=1.3, label=label)
    for ax in axes[:3]:
        ax.axhline(0.0, color=QUIET, lw=0.6, zorder=0)
    for ax in axes[:2]:
        ax.set_xlabel("margin m, nats")
        ax.set_xlim(0.0, GRID[-1])
        ax.set_ylabel("change, nats")
    axes[2].set_xlabel("updates")
    axes[2].set_ylabel("margin m, nats")
    axes[3].set_xlabel("gap ℓ₊ − ℓ₋, nats")
    axes[3].set_ylabel("log π, nats")
    words_of = ("chosen", "untrained", "growth", "untrained at equal gap")
    for letter, ax, words in zip("ABCD", axes, words_of, strict=True):
        title(ax, letter, words)
    handles, labels = axes[2].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, handlelength=2.2)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption says of the arms."""
    centred(table)

    def at(arm: str, measure: str, place: float) -> float:
        one = rows(table, arm=arm, measure=measure)
        found = one["mean"][one["place"] == place]
        require(len(found) == 1, f"{arm} {measure}: {len(found)} rows at {place:g}, expected 1")
        return float(found[0])

    def curve(arm: str, measure: str) -> Any:
        return rows(table, arm=arm, measure=measure)["mean"]

    for arm in (*LOOKS, *SLOW):
        first = at(arm, "margin", 0.0)
        require(first == 0.0, f"{arm}: margin starts at {first}, not 0")
    for arm in LOOKS:
        for measure in PROBES:
            require(at(arm, measure, 0.0) == 0.0, f"{arm} {measure}: does not start at 0 but {at(arm, measure, 0.0)}")
        fall = at(arm, "untrained", 5.0)
        require(fall < 0.0, f"{arm}: untrained {fall:+.2f} at 5 nats, not a fall")
    for m in (5.0, 8.0):
        lift = {arm: at(arm, "chosen", m) for arm in LOOKS}
        require(max(lift, key=lambda arm: lift[arm]) == "rpo", f"chosen at {m:g}: not highest under DPO+NLL, {lift}")
        require(lift["rpo"] > 0.0, f"chosen at {m:g}: {lift['rpo']:+.2f} under DPO+NLL, not a rise")
        spared = {arm: at(arm, "untrained", m) for arm in LOOKS}
        best = max(spared, key=lambda arm: spared[arm])
        require(best == "extend", f"untrained at {m:g}: highest under {best}, {spared[best]:+.2f}, not after extend")
        for measure in PROBES:
            gain = at("projected", measure, m) - at("plain", measure, m)
            require(0.0 < gain < 0.2 * m, f"{measure} at {m:g}: {gain:+.2f} by projection, not a little")
    starts = {arm: at(arm, "start", 0.0) for arm in BOTH}
    require(6.0 < starts["plain"] < 12.0, f"DPO begins at a gap of {starts['plain']:.2f}, not about 10.35")
    require(abs(starts["extend"]) < 0.7, f"extend leaves a gap of {starts['extend']:+.2f}, not about .18")
    apart = at("plain", "level", 16.0) - at("extend", "level", 16.0)
    require(2.5 < apart < 5.5, f"at a gap of 16: {apart:.2f} lower after extend, not about 3.9")
    top = float(curve("ipo", "margin").max())
    require(4.0 < top < 5.5, f"IPO: its margin comes to {top:.2f}, its target is 5")
    ends = {arm: float(curve(arm, "margin")[-1]) for arm in (*LOOKS, *SLOW)}
    require(2.0 * ends["dpop"] < ends["plain"], f"DPOP: margin {ends['dpop']:.1f}, DPO {ends['plain']:.1f}")
    for arm in ("simpo", "rpo", "gate-dpo"):
        require(ends[arm] < ends["plain"], f"{arm}: margin {ends[arm]:.1f}, DPO {ends['plain']:.1f}")
