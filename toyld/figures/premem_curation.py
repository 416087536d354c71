"""Lessons bought by accuracy before copying are worth as many i.i.d. ones, not half as many again

Tiny transformers taught 192 first lessons, and then as many relatives of a quarter of them (half of the numbers drawn
anew), chosen by a rule; 16 seeds. A: test accuracy by the number of lessons in all. Black: i.i.d. lessons, with the
straight line in the logarithm of their number that B is read off; the rules, all at 384, are drawn side by side, on the
line's level there (dotted). Bars are 95 % intervals over seeds, which differ more than rules do; B compares within
seeds: how many i.i.d. lessons come to the same accuracy on the line, over how many there were, on a logarithmic scale,
with 95 % intervals by Fieller's theorem. Relatives of the lessons of lowest pre-memorisation accuracy come to 1.01
[.91, 1.10]: that they save data is not seen (`premem.curation-saves-data`), and that they are worth 1.5 times as many,
the least that was reported, is refuted (`premem.curation-saves-a-third`). Those of the highest come to .75 [.68, .83]
(`premem.low-beats-high`), those of a quarter drawn by lot to .92 [.86, .98] (`premem.low-beats-any-relatives` is open),
i.i.d. lessons of that number, which are not quite on their line, to .97 [.93, 1.02]. Low accuracy or high perplexity
before any training choose as well (`premem.curation-beats-rivals` is open) and need no first finetuning. In per cent
beside the rules: how much of what they bought is of the kind of problem of which the model had seen less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.claims.premem_curation import SAVED, efficiency, ratios
from toyld.figures._curation import load, restored
from toyld.figures._look import FALL, GREEN, INK, QUIET, RISE, SOFT, centred, interval, note, require, title
from toyld.figures._table import Table, rows

__all__ = ["SEED", "TAGS", "check", "data", "draw"]

TAGS = ("tiny", "premem")
SEED = 0  # seeds count from here
SEEDS = {"smoke": 8, "paper": 16}  # with fewer, intervals reach what was reported
FIRST = 192
IID = "iid"
# Rule -> words, colour, marker.
RULES: dict[str, tuple[str, str, str]] = {
    IID: ("i.i.d.", INK, "o"),
    "low": ("low PreMem", RISE, "o"),
    "high": ("high PreMem", FALL, "s"),
    "any": ("by lot", "#777777", "D"),
    "low-train": ("low training accuracy", SOFT, "^"),
    "low-before": ("low accuracy before", GREEN, "v"),
    "surprising": ("high perplexity before", "#56B4E9", "P"),
}
RIVALS = ("low-train", "low-before", "surprising")
TICKS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
APART = 0.075  # doublings between the points of panel A at one number of lessons


def data(size: str) -> Table:
    """A row an arm, size and seed of the first seeds (`what` is run), and then one for every point and end of the line.

    what: accuracy and weak (means over seeds), doublings (log₂ of the ratio, Fieller's interval), line (test accuracy
    on it, no interval).
    """
    found = load()
    keep = np.isin(found["seed"], np.unique(found["seed"])[: SEEDS[size]])
    runs = {name: found[name][keep] for name in ("arm", "count", "seed", "test", "weak")}
    n = int(keep.sum())
    out: dict[str, list[Any]] = {"what": ["run"] * n} | {name: values.tolist() for name, values in runs.items()}
    out |= {name: [np.nan] * n for name in ("mean", "low", "high")}
    for row in _told(runs):
        for name, values in out.items():
            values.append(row.get(name, -1 if name == "seed" else np.nan))
    return {name: np.array(values) for name, values in out.items()}


def _told(runs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the picture shows of the runs: means with intervals, ratios, and the line at its ends."""
    out = []
    for arm, count in dict.fromkeys(zip(map(str, runs["arm"]), map(int, runs["count"]), strict=True)):
        one = rows(runs, arm=arm, count=count)
        for what, name in (("accuracy", "test"), ("weak", "weak")):
            out.append(_row(what, arm, count, interval(one[name])))
    for arm, told in _doublings(runs).items():
        out.append(_row("doublings", arm, _size(runs), told))
    iid = sorted((row["count"], row["mean"]) for row in out if row["what"] == "accuracy" and row["arm"] == IID)
    slope, level = np.polyfit(np.log2([n for n, _ in iid]), [y for _, y in iid], 1)
    for n in (iid[0][0], iid[-1][0]):
        out.append(_row("line", IID, n, (float(level + slope * np.log2(n)), np.nan, np.nan)))
    return out


def _size(runs: Mapping[str, Any]) -> int:
    """How many lessons the rules come to."""
    return int(next(n for arm, n in zip(runs["arm"], runs["count"], strict=True) if arm != IID))


def _doublings(runs: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """log₂ of the ratio by arm, and the ends of Fieller's interval: the ratios that Student's t does not refute."""
    from scipy.special import stdtrit

    tables, out = restored(runs), {}
    once, twice = (efficiency(tables, ratio=ratio) for ratio in (1.0, 2.0))
    for arm, value in ratios(tables).items():
        d, b = once[arm], once[arm] - twice[arm]  # beyond the line, and its slope a doubling
        q = stdtrit(len(d) - 1, 0.975) ** 2 / len(d)
        dd, db, bb = np.cov(d, b)[[0, 0, 1], [0, 1, 1]]
        square, cross = b.mean() ** 2 - q * bb, d.mean() * b.mean() - q * db
        require(square > 0.0, f"the slope is not surely other than 0: {b.mean():.4f}, {len(b)} seeds")
        root = (cross**2 - square * (d.mean() ** 2 - q * dd)) ** 0.5
        out[arm] = float(np.log2(value)), float((cross - root) / square), float((cross + root) / square)
    return out


def _row(what: str, arm: str, count: int, told: tuple[float, float, float]) -> dict[str, Any]:
    return {"what": what, "arm": arm, "count": count} | dict(zip(("mean", "low", "high"), told, strict=True))


def draw(table: Mapping[str, Any]) -> Any:
    """Accuracies by number of lessons on the left, ratios of data efficiency on the right."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 3.2))
    left, right = fig.subplots(1, 2, width_ratios=(1.0, 1.05))
    line, iid = rows(table, what="line"), rows(table, what="accuracy", arm=IID)
    left.plot(line["count"], line["mean"], color=QUIET, lw=0.9, zorder=1)
    _bars(left, iid["count"], iid, INK, "o", 3.0)
    size = int(rows(table, what="doublings")["count"][0])
    level = float(np.interp(np.log2(size), np.log2(line["count"]), line["mean"]))
    half = len(RULES) // 2
    left.plot(size * 2.0 ** (APART * (half + 0.5) * np.array([-1.0, 1.0])), [level, level], color=INK, lw=0.8,
              ls=(0, (1, 1.5)), zorder=1)  # fmt: skip
    for place, (arm, (name, color, marker)) in enumerate(RULES.items()):
        if arm != IID:  # i.i.d. lessons stand in the middle
            one = rows(table, what="accuracy", arm=arm)
            beside = size * 2.0 ** (APART * (place - half - (place <= half)))
            _bars(left, [beside], one, color, marker, 3.5)
        ratio = {key: 2.0**values for key, values in rows(table, what="doublings", arm=arm).items()
                 if key in ("mean", "low", "high")}  # fmt: skip
        right.hlines(place, ratio["low"], ratio["high"], color=color, lw=1.4)
        right.plot(ratio["mean"], [place], color=color, marker=marker, ms=4.2)
        share = float(rows(table, what="weak", arm=arm, count=size)["mean"][0])
        right.text(0.015, place - 0.36, f"{name}, {100 * share:.0f} %", transform=right.get_yaxis_transform(),
                   fontsize=6.8, color=INK, va="center")  # fmt: skip
    left.set_xscale("log", base=2)
    left.set_xticks(iid["count"], [str(n) for n in iid["count"]])
    left.minorticks_off()
    left.set_xlabel("lessons")
    left.set_ylabel("test accuracy")
    note(left, 0.97, 0.12, "black: i.i.d. lessons", ha="right")
    right.set_xscale("log", base=2)
    span = rows(table, what="doublings")
    right.set_xlim(2.0 ** (span["low"].min() - 0.9), 2.0 ** max(span["high"].max() + 0.15, 0.75))
    shown = [t for t in TICKS if right.get_xlim()[0] < t < right.get_xlim()[1]]
    right.set_xticks(shown, [f"{t:g}" for t in shown])
    right.minorticks_off()
    right.axvline(1.0, color=QUIET, lw=0.8, zorder=0)
    right.axvline(SAVED, color=INK, lw=0.8, zorder=0)
    right.text(SAVED * 0.98, -0.5, "reported", fontsize=6.5, color=INK, ha="right", va="center")
    right.set_yticks([])
    right.set_ylim(len(RULES) - 0.5, -0.8)
    right.set_xlabel("worth … times as many i.i.d. lessons")
    title(left, "A", "Test accuracy")
    title(right, "B", "Data efficiency")
    return fig


def _bars(ax: Any, x: Any, one: Mapping[str, Any], color: str, marker: str, size: float) -> None:
    half = np.stack([one["mean"] - one["low"], one["high"] - one["mean"]])
    ax.errorbar(x, one["mean"], half, color=color, marker=marker, ms=size, ls="", elinewidth=1.0, zorder=3)


def check(table: Mapping[str, Any]) -> None:
    """Every mean, ratio and the line made again from the runs, and what the caption says of them."""
    shown = {name: values[np.asarray(table["what"]) != "run"] for name, values in table.items()}
    runs = rows(table, what="run")
    told, tables = _told(runs), restored(runs)
    require(len(shown["what"]) == len(told), f"expected {len(told)} means, got {len(shown['what'])}")
    for i, row in enumerate(told):
        where = f"{row['what']} of {row['arm']}, {row['count']} lessons"
        for name, value in row.items():
            have = shown[name][i]
            if isinstance(value, float):
                same = bool(np.isclose(have, value, rtol=0.0, atol=1e-9, equal_nan=True))
                require(same, f"{where}: {name} {have:.4f}, from runs {value:.4f}")
            else:
                require(have == value, f"row {i}: expected {value} for {name}, got {have}")
    centred({name: values[np.isin(shown["what"], ("accuracy", "weak"))] for name, values in shown.items()})
    iid = rows(shown, what="accuracy", arm=IID)
    require((np.diff(iid["mean"]) > 0.0).all(), f"more i.i.d. lessons do not help: {iid['mean']}")
    line, gain = rows(shown, what="line"), {arm: rows(shown, what="doublings", arm=arm) for arm in RULES}
    slope = float(np.diff(line["mean"])[0] / np.diff(np.log2(line["count"]))[0])
    for arm, told_ in gain.items():  # both panels say the same, and the ends are where Student's interval ends at 0
        after = rows(shown, what="accuracy", arm=arm, count=_size(runs))
        on = float(line["mean"][0] + slope * np.log2(after["count"] / line["count"][0])[0])
        read, have = float(after["mean"][0] - on) / slope, float(told_["mean"][0])
        require(abs(read - have) < 1e-9, f"{arm}: {read:.4f} doublings off the line in A, {have:.4f} in B")
        for end, side in (("low", 1), ("high", 2)):
            left = interval(efficiency(tables, ratio=2.0 ** float(told_[end][0]))[arm])[side]
            require(abs(left) < 1e-9, f"{arm}: at {told_[end][0]:.4f} doublings an end at {left:+.2e}, not at 0")
    require(_size(runs) == 2 * FIRST, f"rules come to {_size(runs)} lessons, not {2 * FIRST}")
    low, high = gain["low"], gain["high"]
    ends = [float(low[end][0]) for end in ("low", "high")]
    require(ends[0] < 0.0 < ends[1], f"low PreMem: {ends[0]:+.3f} to {ends[1]:+.3f} doublings, surely not as many")
    require(ends[1] < np.log2(SAVED), f"low PreMem: {ends[1]:.3f} doublings, {np.log2(SAVED):.3f} were reported")
    require(high["high"][0] < 0.0, f"high PreMem: {high['high'][0]:+.3f} doublings at most, not surely worse")
    for other in ("any", "high"):
        above = float(low["mean"][0] - gain[other]["mean"][0])
        require(above > 0.0, f"low PreMem: {above:+.3f} doublings above {other}")
    best = max(float(gain[rival]["mean"][0]) for rival in RIVALS)
    require(low["mean"][0] < best + 0.1, f"low PreMem: {low['mean'][0] - best:+.3f} doublings above every rival")
    kind = {arm: float(rows(shown, what="weak", arm=arm)["mean"][0]) for arm in RULES}
    require(
        kind["low"] > 0.5 + kind["high"], f"low PreMem buys {kind['low']:.2f} of the weak kind, high {kind['high']:.2f}"
    )
