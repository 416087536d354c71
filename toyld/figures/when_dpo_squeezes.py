"""When DPO squeezes: what all contexts share decides it, and how far DPO goes

Whole runs of SFT, then DPO, in closed form: six prompts of four tokens, S = local part + c·11ᵀ, means over seeds. A and
B, the change of the chosen response over DPO (number, nats; blue up, orange down), framed where the run reads as
squeezing (chosen falls, or lags behind the argmax, which rises), dashed where as displacement. At c = 0, with what the
local part couples, chosen rises in every cell; at the largest c it falls in all, and most of them squeeze
(`kernel.common-slope` is the first order of it). How improbable y⁻ is (A, its sampling temperature) moves chosen by
less than a quarter of what c does, on average. C, β and the learning rate matter after equal updates, and hardly at
equal margin. D and E ask which first-order term of `kernel.one-step`, known before the first update of DPO, tells where
chosen will rise: D, over this map (AUC; .5 = chance); E, among conditions of equal c (rank correlation). The cross-talk
between chosen responses draws the boundary, since it feels c, which alone does as well; at equal c it tells next to
nothing, and the push on the response itself, the room that it has, tells more. The push on y⁻ points the wrong way:
chosen falls rather where that term is larger. All terms together say what the first step does, a poor guide to the end.
Bars: 95 % intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toyld.figures._by_hand import by_hand
from toyld.figures._look import FALL, INK, QUIET, RISE, note, require, title
from toyld.figures._table import Table, rows

__all__ = ["SEED", "TAGS", "check", "data", "draw"]

TAGS = ("contexts", "dpo", "squeezing")
SEED = 0  # seeds count from here
WORLD = {"concepts": 6, "prompts": 6, "length": 4}
# An update of SFT moves a context's logits by a tenth of its residual (η = .1 a prompt); DPO at β = .1 and η = 12
# starts as fast. SFT of 10, 20, 40 updates: little, half, most of what can be learnt. Margin 10 nats: one unit of
# reward at β = .1. Temperature 1 = the model's own answers, 8 = nearly uniform ones.
SHARED: dict[str, Any] = {"world": WORLD, "sft_lr": 0.6, "steps": 100, "marks": 25, "margin": 10.0}
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 8,
        "common": (0.0, 0.2, 1.6),
        "A": {"temperature": (1.0, 8.0), "sft": (10, 40), "beta": (0.1,), "lr": (12.0,)},
        "B": {"temperature": (1.0,), "sft": (20,), "beta": (0.05, 0.2), "lr": (6.0, 24.0)},
    },
    "paper": {
        "seeds": 32,
        "common": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6),
        "A": {"temperature": (1.0, 2.0, 8.0), "sft": (10, 20, 40), "beta": (0.1,), "lr": (12.0,)},
        "B": {"temperature": (1.0,), "sft": (20,), "beta": (0.05, 0.1, 0.2), "lr": (6.0, 12.0, 24.0)},
    },
}
AXES = ("temperature", "common", "sft", "beta", "lr")
# Panel: its columns, its rows, and how they are written.
CUT = {
    "A": ("temperature", "sft", "temperature of y⁻ {:g}", "SFT updates"),
    "B": ("beta", "lr", "β = {:g}", "η of DPO"),
}
FRAMES: dict[str, Any] = {"squeezing": "-", "displacement": (0, (2, 1.5))}
NAMES = ("d_chosen", "d_argmax", "d_rejected", "gap", "squeezed", "at_d_chosen", "at_d_argmax")
PREDICTORS = {
    "own": "its own push",
    "rejected": "push on y⁻",
    "other chosen": "other y⁺",
    "all of it": "all of them",
    "-c": "−c alone",
    "log y-": "log π(y⁻)",
}
TERMS = 4  # so many of them are first-order terms
RANKS = "rank correlation at equal c"
LIMIT = 30.0  # nats at the ends of the colour scale


def _grids(size: str, first: int = SEED) -> dict[str, Any]:
    from toyld.contexts.sweep import Grid

    given = SIZES[size]
    seeds = tuple(range(first, first + given["seeds"]))
    return {panel: Grid(common=given["common"], seeds=seeds, **given[panel], **SHARED) for panel in CUT}


def data(size: str) -> Table:
    """One row per panel, condition and outcome; then one per predictor and score."""
    from toyld.contexts.sweep import sweep

    return _table({panel: sweep(grid) for panel, grid in _grids(size).items()})


def _table(maps: Mapping[str, Mapping[str, Any]]) -> Table:
    from toyld.report.sweeps import summary

    made: list[tuple[Any, ...]] = []
    for panel, runs in maps.items():
        means = summary(runs)
        for i in range(len(means["seeds"])):
            where = [means[name][i] for name in AXES]
            for name in NAMES:
                values = [means[name + end][i] for end in ("", "_low", "_high")]
                made.append((panel, name, str(means["verdict"][i]), int(means["seeds"][i]), *where, *values))
    runs = _united(maps)
    seeds = len(np.unique(runs["seed"]))
    for score in ("auc", RANKS):
        for name in PREDICTORS:
            made.append(("C", name, score, seeds, *[np.nan] * len(AXES), *_over_seeds(runs, name, score)))
    names = ("panel", "name", "reading", "seeds", *AXES, "value", "low", "high")
    return {name: np.array(column) for name, column in zip(names, zip(*made, strict=True), strict=True)}


def _united(maps: Mapping[str, Mapping[str, Any]]) -> Table:
    """The runs of all maps, each condition once."""
    every = {name: np.concatenate([runs[name] for runs in maps.values()]) for name in maps["A"]}
    keys = np.stack([every[name] for name in (*AXES, "seed")], 1)
    once = np.sort(np.unique(keys, axis=0, return_index=True)[1])
    return {name: column[once] for name, column in every.items()}


def _predictor(runs: Mapping[str, Any], name: str) -> np.ndarray:
    """What is known before the first update of DPO; higher = chosen should rise."""
    return np.asarray(
        {
            "own": runs["term_own"],
            "rejected": runs["term_rejected"] + runs["term_other_rejected"],
            "other chosen": runs["term_other_chosen"],
            "all of it": runs["term_total"],
            "-c": -runs["common"],
            "log y-": runs["start_rejected"],
        }[name]
    )


def _over_seeds(runs: Mapping[str, Any], name: str, score: str) -> tuple[float, float, float]:
    """Mean and interval over seeds of how well a predictor tells Δchosen over the conditions of one seed."""
    from toyld.report.sweeps import interval

    x, y = _predictor(runs, name), runs["d_chosen"]
    found = []
    for seed in np.unique(runs["seed"]):
        mine = runs["seed"] == seed
        levels = [mine] if score == "auc" else [mine & (runs["common"] == c) for c in np.unique(runs["common"])]
        one = [_auc(x[at], y[at] > 0) if score == "auc" else _correlation(x[at], y[at]) for at in levels]
        found.append(np.mean(one))
    return interval(np.array(found))


def _auc(x: np.ndarray, up: np.ndarray) -> float:
    """Share of (rising, falling) pairs that x puts in the right order, ties one half; NaN without both."""
    if up.all() or not up.any():
        return float("nan")
    return float((np.sign(x[up][:, None] - x[~up][None]) / 2 + 0.5).mean())


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; 0 where x does not vary, for then it tells nothing."""
    from scipy.stats import rankdata

    ranks = [rankdata(v.round(12)) for v in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(r) for r in ranks) else 0.0


def draw(table: Mapping[str, Any]) -> Any:
    """Two rows of maps, then the curves and the scores."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 5.6))
    parts: Any = fig.subfigures(2, 1, height_ratios=(3.3, 2.3))
    above, below = parts
    wide = len(np.unique(rows(table, panel="A")["temperature"]))
    axes = above.subplots(2, wide, squeeze=False)
    for line, panel in zip(axes, CUT, strict=True):
        mesh = _maps(line, rows(table, panel=panel, name="d_chosen"), panel)
    _keys(above, axes, mesh)
    first, second, third = below.subplots(1, 3, gridspec_kw={"width_ratios": (1.4, 1, 1)})
    _curves(first, table)
    _scores(second, table, "auc", "D", "Will y⁺ rise?")
    _scores(third, table, RANKS, "E", "How much?")
    second.set_xlabel("AUC over the map")
    third.set_xlabel("rank correlation\nat equal c")
    names = list(PREDICTORS.values())
    second.set_yticks([-1, *range(len(names))], ["first-order term:", *names])
    third.set_yticks(range(len(names)), [])
    return fig


def _keys(figure: Any, axes: Any, mesh: Any) -> None:
    """What the colours and the frames mean."""
    from matplotlib.patches import Patch

    bar = figure.colorbar(mesh, ax=list(axes.ravel()), aspect=32, pad=0.01, ticks=[-20, -5, -1, 0, 1, 5])
    bar.ax.set_yticklabels(["−20", "−5", "−1", "0", "+1", "+5"])
    bar.ax.set_ylim(-LIMIT, 5.0)
    bar.ax.set_title("nats", fontsize=6.8, weight="normal")
    bar.outline.set_visible(False)
    words = Patch(fill=False, ec="none", label="Change of y⁺ by DPO. Framed:")
    frames = [Patch(fill=False, ec=INK, lw=0.9, ls=FRAMES[word], label=word) for word in FRAMES]
    figure.legend(handles=[words, *frames], loc="outside upper right", ncols=3)


def _maps(axes: Sequence[Any], one: Mapping[str, Any], panel: str) -> Any:
    """Small multiples: c to the right, the panel's rows upwards; the last of them, for the scale of its colours."""
    from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
    from matplotlib.patches import Rectangle

    ramp = LinearSegmentedColormap.from_list("toyld", [FALL, "#FFFFFF", "#4C86A8"])
    across, down, words, label = CUT[panel]
    x, y = np.unique(one["common"]), np.unique(one[down])
    for ax, value in zip(axes, np.unique(one[across]), strict=True):
        here = rows(one, **{across: value})
        z = np.full((len(y), len(x)), np.nan)
        at = np.searchsorted(y, here[down]), np.searchsorted(x, here["common"])
        z[at] = here["value"]
        mesh = ax.pcolormesh(
            np.arange(len(x) + 1) - 0.5,
            np.arange(len(y) + 1) - 0.5,
            z,
            cmap=ramp,
            norm=SymLogNorm(1.0, vmin=-LIMIT, vmax=LIMIT),
        )
        for j, i, change, reading in zip(*at, here["value"], here["reading"], strict=True):
            ax.text(i, j, _short(change), ha="center", va="center", fontsize=5.3, color=INK)
            if reading in FRAMES:
                ls = FRAMES[reading]
                ax.add_patch(Rectangle((i - 0.465, j - 0.44), 0.93, 0.88, fill=False, ec=INK, lw=0.9, ls=ls))
        ax.set_xticks(range(len(x)), [f"{c:g}".removeprefix("0") if c else "0" for c in x])
        ax.set_yticks(range(len(y)), [f"{v:g}" for v in y])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        title(ax, panel if ax is axes[0] else "", words.format(value))
    axes[0].set_ylabel(label)
    if panel == "B":
        for ax in axes:
            ax.set_xlabel("c, weight of what all share")
    return mesh


def _short(change: float) -> str:
    """Two digits: +.7, −13, 0."""
    if abs(change) < 0.05:
        return "0"
    text = f"{change:+.0f}" if abs(change) >= 9.95 else f"{change:+.1f}"
    return text.replace("0.", ".").replace("-", "−")


def _curves(ax: Any, table: Mapping[str, Any]) -> None:
    """Δchosen over c for every β and η: at the end, and at the same margin."""
    for name, color, lw in (("d_chosen", FALL, 0.7), ("at_d_chosen", RISE, 1.8)):
        one = rows(table, panel="B", name=name)
        for beta in np.unique(one["beta"]):
            for lr in np.unique(one["lr"]):
                line = rows(one, beta=beta, lr=lr)
                order = np.argsort(line["common"])
                ax.plot(line["common"][order], line["value"][order], color=color, lw=lw, alpha=0.8)
    ax.axhline(0, color=QUIET, lw=0.6, zorder=0)
    ax.set_xlabel("c")
    ax.set_ylabel("change of y⁺, nats")
    ax.set_ylim(top=6.0)
    note(ax, 0.97, 0.97, "at a margin of 10 nats", color=RISE, ha="right")
    note(ax, 0.03, 0.13, "after 100 updates", color=FALL)
    title(ax, "C", "all β and η of B")


def _scores(ax: Any, table: Mapping[str, Any], score: str, letter: str, words: str) -> None:
    one = rows(table, panel="C", reading=score)
    y = [list(PREDICTORS).index(name) for name in one["name"]]
    middle = 0.5 if score == "auc" else 0.0
    ax.axvline(middle, color=QUIET, lw=0.8, zorder=0)
    ax.hlines(y, one["low"], one["high"], color=RISE, lw=1.2)
    ax.plot(one["value"], y, "o", color=RISE, ms=3.5)
    ax.axhline(TERMS - 0.5, color=QUIET, lw=0.6, ls=(0, (1, 2)), zorder=0)
    ax.set_ylim(len(PREDICTORS) - 0.5, -1.4)
    ax.set_xlim(*((0.0, 1.02) if score == "auc" else (-1.02, 1.02)))
    ax.tick_params(axis="y", length=0)
    title(ax, letter, words)


# --- check ------------------------------------------------------------------------------------------------------------


def _size(table: Mapping[str, Any]) -> str:
    seeds = int(table["seeds"][0])
    return next(size for size, given in SIZES.items() if given["seeds"] == seeds)


def check(table: Mapping[str, Any]) -> None:
    """The caption's sentences; and one condition of the map anew, run by run, from the definition."""
    from toyld.report.sweeps import interval

    size = _size(table)
    grids, least, most = _grids(size), min(SIZES[size]["common"]), max(SIZES[size]["common"])
    for panel, grid in grids.items():
        one = rows(table, panel=panel, name="d_chosen")
        for axis in AXES:
            off = np.setdiff1d(np.unique(one[axis]), getattr(grid, axis))
            require(off.size == 0, f"{panel}: {axis} is {off[:3]}, expected {getattr(grid, axis)}")
        without, with_most = rows(one, common=least), rows(one, common=most)
        require((without["low"] > 0).all(), f"{panel}: chosen does not rise at c = {least}: {without['low'].min():.3g}")
        require(
            (with_most["high"] < 0).all(), f"{panel}: chosen does not fall at c = {most}: {with_most['high'].max():.3g}"
        )
    squeezing = float((rows(table, name="d_chosen", common=most)["reading"] == "squeezing").mean())
    require(squeezing > 0.5, f"at c = {most} {squeezing:.0%} of the cells read as squeezing")
    first = replace(grids["A"], common=(most,), temperature=grids["A"].temperature[:1], sft=grids["A"].sft[:1])
    anew = list(by_hand(first))
    cell = {"panel": "A", "temperature": first.temperature[0], "common": most, "sft": first.sft[0]}
    for name in ("d_chosen", "d_rejected", "d_argmax"):
        there = rows(table, name=name, **cell)
        for end, value in zip(("value", "low", "high"), interval(np.array([run[name] for run in anew])), strict=True):
            gone = abs(float(there[end][0]) - value)
            require(gone < 1e-8, f"{name} of one cell by hand is {value:.10g}, not {there[end][0]:.10g}")
    maps = {panel: rows(table, panel=panel, name="d_chosen") for panel in CUT}
    by_c, by_y = _spread(maps["A"], "common"), _spread(maps["A"], "temperature")
    require(by_y < by_c / 4, f"the temperature of y- moves chosen by {by_y:.3g} nats, c by {by_c:.3g}")
    last, equal = _within_c(maps["B"]), _within_c(rows(table, panel="B", name="at_d_chosen"))
    require(equal < last / 8, f"β and η move chosen by {equal:.3g} nats at equal margin, by {last:.3g} at the end")
    _check_scores(rows(table, panel="C"))


def _check_scores(scores: Mapping[str, Any]) -> None:
    """Who draws the boundary over the map, and who tells more at equal c."""
    score: dict[str, dict[str, tuple[float, float, float]]] = {"auc": {}, RANKS: {}}
    for name, reading, *ends in zip(*(scores[k] for k in ("name", "reading", "value", "low", "high")), strict=True):
        value, low, high = (float(end) for end in ends)
        score[reading][str(name)] = value, low, high
    auc, equal = score.values()
    cross = auc["other chosen"][0]
    require(cross > 0.85, f"cross-talk of chosen: AUC {auc['other chosen']}")
    for name in ("own", "all of it", "log y-"):
        require(auc[name][2] < cross, f"AUC of {name} {auc[name]}, of the cross-talk {auc['other chosen']}")
    require(auc["rejected"][2] < 0.5, f"push on y-: AUC {auc['rejected']}, expected the wrong way round")
    require(auc["-c"][0] > cross - 0.02, f"c alone: AUC {auc['-c']}, cross-talk {auc['other chosen']}")
    require(abs(equal["other chosen"][0]) < 0.3, f"at equal c, cross-talk: {equal['other chosen']}")
    require(equal["own"][1] > 0.3, f"at equal c, own push: {equal['own']}")
    require(equal["-c"] == (0.0, 0.0, 0.0), f"at equal c, c: {equal['-c']}, expected 0")


def _spread(one: Mapping[str, Any], axis: str) -> float:
    """The range of the means along one axis, the others fixed; its mean over them."""
    others = [name for name in AXES if name != axis]
    keys = np.unique(np.stack([one[name] for name in others], 1), axis=0)
    return float(np.mean([np.ptp(rows(one, **dict(zip(others, key, strict=True)))["value"]) for key in keys]))


def _within_c(one: Mapping[str, Any]) -> float:
    """The largest range of the means at one c."""
    return max(float(np.ptp(rows(one, common=c)["value"])) for c in np.unique(one["common"]))
