"""Accuracy before copying foretells test accuracy far better than training accuracy does, short of the R² reported

Tiny transformers finetuned on worked sums by 108 recipes: 64, 192 or 576 lessons (colours), passes, learning rates,
reordered problems, two sizes of model; 12 seeds. A, B: every run. R² is the share of the differences in test accuracy
that a number explains as it stands (the line: both are equal), r² what the best straight line explains, in the number
or, of the last three rivals, in its logarithm where that is more. A: how often the model's answers to its lessons are
right. Runs that know their lessons by heart are at 1, however they do on new problems: R² is −.66 [−.92, −.46]. B:
pre-memorisation accuracy, which does not count what is right by copying, is nearer
(`premem.nearer-than-train-accuracy`). Its R² is .78 [.73, .82], not the .9 that was reported
(`premem.foretells-test-accuracy`); nor is that of a straight line (`premem.explains-test-accuracy`). With few lessons
it is too high (`premem.too-high-with-few-lessons`), with many too low. C: R² by the perplexity up to which a solution
counts as copied. The threshold was calibrated on other seeds (dotted); one near 1 does worse
(`premem.threshold-decides`), and none comes to what was reported. D: a line in it explains more than one in each rival
(`premem.ranks-runs-best`): .80 [.74, .84] beside .48 [.44, .53] in training accuracy. Bands and bars are 95 % intervals
by resampling seeds, with lines fitted anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from toyld.claims.premem_runs import REPORTED, explained
from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, note, require, title
from toyld.figures._premem import THRESHOLDS, column, load
from toyld.figures._table import Table, rows

__all__ = ["SEED", "TAGS", "check", "data", "draw"]

TAGS = ("tiny", "premem")
SEED = 0  # of the resampling; seeds count from here, too
SEEDS = {"smoke": 3, "paper": 12}
RESAMPLES = 4000
RECIPES = 108
RECIPE = ("wide", "count", "passes", "rate_e4", "reorder")
RIVALS = {"train": "training accuracy", "distance": "distance from start", "loss": "training loss",
          "grad_norm": "gradient norm"}  # fmt: skip
BOTH = "both"  # models' runs together
RUN = ("test", "train", "loss", "grad_norm", "distance", *map(column, THRESHOLDS))
# What explains: the number itself, a line in it, a line in its logarithm.
ITSELF, LINE, LOG = "itself", "line", "log line"
COUNTS = ((SOFT, "o"), (FALL, "^"), (RISE, "s"))  # few, some, many lessons
LOOKS: dict[str, tuple[str, str, Any]] = {"smaller": (RISE, "o", "-"), "larger": (FALL, "s", (0, (4, 1.5)))}


def data(size: str) -> Table:
    """A row a run of the first seeds, and then one for every share explained: `what` is run, itself, line or log line.

    Shares: `of` which number (premem: at its `threshold`), over the runs of which `model`; value, low, high. Runs:
    threshold is the calibrated one; `rate_e4` the peak rate in ten-thousandths.
    """
    found = load()
    keep = np.isin(found["seed"], np.unique(found["seed"])[: SEEDS[size]])
    grid: Table = {name: values[keep] for name, values in found.items()}
    n = int(keep.sum())
    out: dict[str, list[Any]] = {"what": ["run"] * n, "of": ["run"] * n}
    out["model"] = ["larger" if wide else "smaller" for wide in grid["wide"]]
    out |= {name: grid[name].tolist() for name in ("wide", "count", "passes", "reorder", "seed")}
    out["rate_e4"] = [round(1e4 * lr) for lr in grid["lr"]]
    out |= {name: grid[name].tolist() for name in ("threshold", *RUN)}
    out |= {name: [np.nan] * n for name in ("value", "low", "high")}
    runs: Table = {name: np.array(values) for name, values in out.items()}
    for what, of, model, threshold in _asked(float(grid["threshold"][0])):
        test, number = _numbers(runs, of, model, threshold)
        value, low, high = _share(test, number, what)
        row = {"what": what, "of": of, "model": model, "threshold": threshold, "value": value, "low": low, "high": high}
        for name, values in out.items():
            values.append(row.get(name, np.nan if name in RUN else -1))
    return {name: np.array(values) for name, values in out.items()}


def _asked(calibrated: float) -> Iterator[tuple[str, str, str, float]]:
    """What explains, of which number, over which models' runs, at which threshold."""
    yield ITSELF, "train", BOTH, np.nan
    for model in LOOKS:
        for p in THRESHOLDS:
            yield ITSELF, "premem", model, p
    for what in (ITSELF, LINE):
        yield what, "premem", BOTH, calibrated
    for rival in RIVALS:
        for what in (LINE,) if rival == "train" else (LINE, LOG):
            yield what, rival, BOTH, np.nan


def _numbers(table: Mapping[str, Any], of: str, model: str, threshold: float) -> tuple[Any, Any]:
    """Test accuracies and a number (recipes C, seeds S), of the runs of some models."""
    runs = rows(table, what="run")
    runs = runs if model == BOTH else rows(runs, model=model)
    require(len(runs["seed"]), f"expected runs of the {model} model, got 0; record the whole grid")
    order = np.lexsort((runs["seed"], *(runs[name] for name in RECIPE)))
    seeds = len(np.unique(runs["seed"]))
    name = column(threshold) if of == "premem" else of
    require(name in runs, f"{of} at a threshold of {threshold}: no such column")
    test, number = (np.asarray(runs[key])[order].reshape(-1, seeds) for key in ("test", name))
    return test, number


def _share(test: Any, number: Any, what: str) -> tuple[float, float, float]:
    """R² or r² of a number, with the ends of its interval by resampling seeds."""
    x = np.log(number) if what == LOG else number
    value = float(explained(test, x, line=what != ITSELF).mean())
    n, seeds = test.shape
    # How often each seed is drawn; every sum over runs is one over seeds.
    drawn = np.random.default_rng(SEED).multinomial(seeds, np.full(seeds, 1.0 / seeds), RESAMPLES)
    whole = np.concatenate([np.ones((1, seeds), int), drawn])
    t, xs, tt, xx, tx = (whole @ each.sum(0) / (n * seeds) for each in (test, x, test**2, x**2, test * x))
    spread = tt - t**2
    shares = 1.0 - (tt - 2.0 * tx + xx) / spread if what == ITSELF else (tx - t * xs) ** 2 / (spread * (xx - xs**2))
    require(abs(shares[0] - value) < 1e-6, f"{what}: {shares[0]:.8f} by sums, {value:.8f} by errors")
    low, high = np.quantile(shares[1:], (0.025, 0.975))
    return value, float(low), float(high)


def draw(table: Mapping[str, Any]) -> Any:
    """Runs against training accuracy and against PreMem; shares by threshold; shares of PreMem and of its rivals."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fig = Figure(figsize=(5.5, 4.9))
    axes = fig.subplots(2, 2).ravel()
    runs = rows(table, what="run")
    calibrated = float(runs["threshold"][0])
    low = float(min(runs[name].min() for name in ("test", "train", column(calibrated)))) - 0.02
    for ax, name in zip(axes[:2], ("train", column(calibrated)), strict=True):
        for count, (color, marker) in zip(np.unique(runs["count"]), COUNTS, strict=True):
            one = rows(runs, count=count)
            ax.plot(one[name], one["test"], ls="", marker=marker, ms=2.3, color=color, mew=0.0, alpha=0.55)
        ax.plot([low, 1.0], [low, 1.0], color=INK, lw=0.8)
        ax.set_xlim(low, 1.02)
        ax.set_ylim(low, 1.02)
        ax.set_ylabel("test accuracy")
    for ax, of in zip(axes[:2], ("train", "premem"), strict=True):
        share = float(rows(table, what=ITSELF, of=of, model=BOTH)["value"][0])
        note(ax, 0.03, 0.97, f"R² = {_printed(share)}")
    axes[0].set_xlabel("training accuracy")
    axes[1].set_xlabel("pre-memorisation accuracy")
    _by_threshold(axes[2], table, calibrated)
    _beside_rivals(axes[3], table)
    words = ("Training accuracy", "Pre-memorisation accuracy", "By the threshold", "A line in each number")
    for ax, letter, text in zip(axes, "ABCD", words, strict=True):
        title(ax, letter, text)
    solid = [
        Line2D([], [], ls="", marker=marker, color=color, mew=0.0, ms=4.0, label=f"{count} lessons")
        for count, (color, marker) in zip(np.unique(runs["count"]), COUNTS, strict=True)
    ]
    fig.legend(handles=solid, loc="outside lower center", ncols=3, handletextpad=0.3)
    return fig


def _printed(share: float) -> str:
    """.64, −1.06."""
    return (
        f"{share:.2f}".replace("-", "−").replace("0.", ".", 1) if abs(share) < 1 else f"{share:.2f}".replace("-", "−")
    )


def _by_threshold(ax: Any, table: Mapping[str, Any], calibrated: float) -> None:
    for model, (color, marker, dashes) in LOOKS.items():
        one = rows(table, what=ITSELF, of="premem", model=model)
        ax.fill_between(one["threshold"], one["low"], one["high"], color=color, alpha=0.15, lw=0)
        ax.plot(one["threshold"], one["value"], color=color, marker=marker, ls=dashes, lw=1.3, ms=3.0,
                label=f"{model} model")  # fmt: skip
    ax.axhline(REPORTED, color=INK, lw=0.8)
    ax.axhline(0.0, color=QUIET, lw=0.6, zorder=0)
    ax.axvline(calibrated, color=INK, lw=0.8, ls=(0, (1, 1.5)), zorder=0)
    ax.set_ylim(top=1.1)
    ax.text(THRESHOLDS[0], REPORTED + 0.02, "reported", fontsize=6.5, color=INK, va="bottom")
    ax.text(calibrated + 0.008, -0.02, "calibrated", fontsize=6.5, color=INK, va="top")
    ax.set_xlabel("threshold of perplexity")
    ax.set_ylabel("R² of the number itself")
    ax.legend(loc="lower right", fontsize=6.5, frameon=True, facecolor="white", edgecolor="none", framealpha=1.0)


def _beside_rivals(ax: Any, table: Mapping[str, Any]) -> None:
    names = {"premem": "pre-memorisation accuracy", **RIVALS}
    for place, (of, name) in enumerate(names.items()):
        what, value, low, high = _best(table, of)
        color = RISE if of == "premem" else FALL
        ax.plot([low, high], [place, place], color=color, lw=1.3, solid_capstyle="butt")
        ax.plot([value], [place], color=color, marker="o" if of == "premem" else "s", ms=4.0)
        name = f"{name} (logarithm)" if what == LOG else name
        ax.text(0.02, place - 0.28, name, fontsize=6.8, color=INK, va="center")
    ax.axvline(REPORTED, color=INK, lw=0.8)
    ax.text(REPORTED - 0.02, len(names) - 1.0, "reported", fontsize=6.5, color=INK, ha="right", va="center")
    ax.set_yticks([])
    ax.set_ylim(len(names) - 0.5, -0.75)
    ax.set_xlim(0.0, 1.0)
    ax.set_xlabel("r² of the best straight line")


def _best(table: Mapping[str, Any], of: str) -> tuple[str, float, float, float]:
    """The line that explains most: in the number or in its logarithm, with its share and interval."""
    found = [rows(table, what=what, of=of, model=BOTH) for what in (LINE, LOG)]
    best = max((one for one in found if len(one["value"])), key=lambda one: float(one["value"][0]))
    return str(best["what"][0]), float(best["value"][0]), float(best["low"][0]), float(best["high"][0])


def check(table: Mapping[str, Any]) -> None:
    """Every share made again from the runs, and what the caption says of them."""
    runs = rows(table, what="run")
    recipes = len(np.unique(np.stack([runs[name] for name in RECIPE]), axis=1).T)
    seeds = len(np.unique(runs["seed"]))
    require(recipes == RECIPES and len(runs["seed"]) == recipes * seeds, f"{recipes} recipes, not {RECIPES}")
    wide = (runs["model"] == "larger") == (runs["wide"] == 1)
    require(wide.all(), f"{(~wide).sum()} runs of one model under the name of the other")
    calibrated = float(runs["threshold"][0])
    asked = list(_asked(calibrated))
    told = {name: values[np.asarray(table["what"]) != "run"] for name, values in table.items()}
    require(len(told["what"]) == len(asked), f"expected {len(asked)} shares, got {len(told['what'])}")
    for i, (what, of, model, p) in enumerate(asked):
        have = (str(told["what"][i]), str(told["of"][i]), str(told["model"][i]))
        require(have == (what, of, model), f"share {i}: expected {what} {of} {model}, got {' '.join(have)}")
        if of == "premem":
            require(abs(told["threshold"][i] - p) < 1e-9, f"share {i}: threshold {told['threshold'][i]}, not {p}")
        again = _share(*_numbers(table, of, model, p), what)
        for name, value in zip(("value", "low", "high"), again, strict=True):
            have_ = float(told[name][i])
            require(abs(have_ - value) < 1e-6, f"{what} of {of}, {model}: {name} {have_:.4f}, from runs {value:.4f}")
    _says(table, calibrated)


def _says(table: Mapping[str, Any], calibrated: float, /) -> None:
    """What the caption says of the shares."""

    def itself(of: str, model: str = BOTH) -> dict[str, Any]:
        return rows(table, what=ITSELF, of=of, model=model)

    mine, train = itself("premem"), itself("train")
    require(train["high"][0] < 0.0, f"training accuracy: R² {train['value'][0]:.3f}, not surely below 0")
    require(mine["low"][0] > 0.0, f"PreMem: R² {mine['value'][0]:.3f}, not surely above 0")
    require(mine["high"][0] < REPORTED, f"PreMem: R² comes to {mine['high'][0]:.3f}, {REPORTED} was reported")
    for model in LOOKS:
        one = itself("premem", model)
        share = dict(zip(one["threshold"].tolist(), one["value"].tolist(), strict=True))
        best = max(share.values())
        require(best < REPORTED, f"{model}: R² comes to {best:.3f} at some threshold, {REPORTED} was reported")
        at, near = share[calibrated], share[THRESHOLDS[0]]
        require(at > near + 0.2, f"{model}: R² {at:.3f} at {calibrated}, {near:.3f} at {THRESHOLDS[0]}")
    runs = rows(table, what="run")
    above = runs[column(calibrated)] - runs["test"]
    few, many = (float(above[runs["count"] == n].mean()) for n in (runs["count"].min(), runs["count"].max()))
    require(few > 0.0 > many, f"PreMem: {few:+.3f} too high with few lessons, {many:+.3f} with many")
    _, value, low, high = _best(table, "premem")
    require(high < REPORTED, f"PreMem: r² comes to {high:.3f}, {REPORTED} was reported")
    for rival in RIVALS:
        theirs = _best(table, rival)[1]
        require(value > theirs, f"PreMem: r² {value:.3f}, of {rival} {theirs:.3f}")
    require(low > 0.0, f"PreMem: r² from {low:.3f}")
