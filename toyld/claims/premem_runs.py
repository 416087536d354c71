"""Does pre-memorisation accuracy foretell test accuracy, and which answers are robust (2411.07681)? A grid of recipes.

The tables are those of the experiment `premem`: one a recipe, its seeds as units. How much of the differences in test
accuracy a number explains is

    R² = 1 − E/D,      E = Σ (test − prediction)²,      D = Σ (test − mean test)²

over all recipes and seeds. The prediction is the number itself, or the best straight line in it. A seed's share is what
moves R² if there were more like it, to first order: R² − S·(E_s − (1 − R²)·D_s)/D over S seeds, with E_s and D_s its
part of the sums. R² is the mean of these shares, and its interval Student's t over them. Rivals are compared by their
lines, in the number or in its logarithm, whichever explains more.

Prompt by prompt, only runs count that copied half of their lessons or more, and only wordings that training did not
use: a run that reorders its problems at every pass has seen them reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.premem import copied, of_table, perplexities

__all__ = ["REPORTED", "ends", "explained"]

Floats = NDArray[np.float64]
KANG = "Kang et al. (2411.07681)"
REPORTED = 0.9  # R² of the paper's abstract: around or exceeding
R2, RHO = "of R²", "of rank correlation"
COPIED, HALF = 0.5, 0.5


def explained(test: Floats, number: Floats, /, *, line: bool) -> Floats:
    """(S,) whose mean is R² of a number (C, S) for test accuracies (C, S), of itself or of its best straight line.

    See the module's docstring for what the entries are.

    >>> test = np.array([[0.0, 0.2], [0.4, 0.6]])
    >>> explained(test, test, line=False).tolist(), round(float(explained(test, 2.0 * test + 1.0, line=True).mean()), 9)
    ([1.0, 1.0], 1.0)
    """
    fit = number
    if line:
        away = number - number.mean()
        size = float((away**2).sum())
        slope = (away * test).sum() / size if size else 0.0  # a number that is the same everywhere explains nothing
        fit = test.mean() + slope * away
    errors, spread = ((test - fit) ** 2).sum(0), ((test - test.mean()) ** 2).sum(0)
    left = errors.sum() / spread.sum()  # 1 − R²
    return 1.0 - left - test.shape[1] * (errors - left * spread) / spread.sum()


def ends(tables: tuple[xr.Dataset, ...], /, *, threshold: float | None = None) -> dict[str, Floats]:
    """What the recipes C ended with, (C, S): test, PreMem, and what else might foretell test accuracy.

    threshold: another than the tables' own.
    """

    def last(ds: xr.Dataset, name: str) -> Floats:
        return np.asarray(ds[name].transpose("seed", "step").values[:, -1])

    def premem(ds: xr.Dataset) -> Floats:
        return of_table(ds, threshold=threshold or float(ds.attrs["threshold"]))[:, -1].mean(-1)

    read: dict[str, Callable[[xr.Dataset], Floats]] = {
        "test": lambda ds: last(ds, "eval_test_accuracy"),
        "premem": premem,
        "train": lambda ds: _accuracy(ds, "chosen").mean(-1),
        "loss": lambda ds: last(ds, "loss"),
        "grad_norm": lambda ds: last(ds, "grad_norm"),
        "distance": lambda ds: last(ds, "eval_distance"),
    }
    return {name: np.stack([one(ds) for ds in tables]) for name, one in read.items()}


def _accuracy(ds: xr.Dataset, probe: str, step: int = -1) -> Floats:
    """Accuracies (S, W) of a probe at one checkpoint."""
    return np.asarray(ds.accuracy.sel(probe=probe).transpose("seed", "step", "example").values[:, step])


ASKED = ("accuracy", "logp", "n_tokens", "loss", "grad_norm", "eval_test_accuracy", "eval_distance")


def _grid(*tables: xr.Dataset) -> str | None:
    """Premise: recipes of one grid with what is asked of them, of the same seeds."""
    for ds in tables:
        told = {"threshold", "count", "reorder"} <= set(ds.attrs) and set(ASKED) <= set(ds.data_vars)
        if ds.attrs.get("stage") != "finetune" or not told:
            return "no finetuning with sampled accuracies of lessons and of held-out problems"
        if not {"chosen", "reordered", "reframed"} <= set(map(str, ds.probe.values)):
            return "lessons that were not asked in other wordings"
    if len(tables) < 10 or any(len(ds.seed) < 2 for ds in tables):
        return "fewer than 10 recipes, or one seed alone"
    return None if all(list(ds.seed.values) == list(tables[0].seed.values) for ds in tables) else "other seeds"


WHOLE: dict[str, Any] = {
    "premises": _grid, "takes": "all", "rungs": ("tiny",), "experiment": "premem", "source": KANG, "unit": R2,
}  # fmt: skip


@run_claim(
    "premem.foretells-test-accuracy",
    "Over recipes and models, the pre-memorisation accuracy of a run is its test accuracy, with an R² of .9 or more.",
    **WHOLE,
    expect="open",
    why="R² is .78 [.58, .99] over the 16 recipes and 6 seeds of the tests, .78 [.73, .84] over 108 recipes and "
    "12 seeds, below .9 with a two-sided p of .0007, which is undecided among all trials of the rung",
    instead="premem.ranks-runs-best",
)
def foretells_test_accuracy(*tables: xr.Dataset) -> Effect:
    """R² of the number itself, less .9."""
    end = ends(tables)
    return ranked([explained(end["test"], end["premem"], line=False) - REPORTED])


@run_claim(
    "premem.explains-test-accuracy",
    "Over recipes and models, a straight line in pre-memorisation accuracy explains nine tenths of the differences in "
    "test accuracy or more.",
    **WHOLE,
    expect="open",
    why="r² is .85 [.74, .97] in the tests' grid, .80 [.74, .85] in the recorded one, where it is below .9 with a "
    "two-sided p of .002: undecided among all trials of the rung",
    instead="premem.ranks-runs-best",
)
def explains_test_accuracy(*tables: xr.Dataset) -> Effect:
    """r² less .9."""
    end = ends(tables)
    return ranked([explained(end["test"], end["premem"], line=True) - REPORTED])


@run_claim(
    "premem.nearer-than-train-accuracy",
    "Pre-memorisation accuracy is nearer to test accuracy than training accuracy is.",
    **WHOLE,
    expect="open",
    why="by .52 [.17, .86] of R² in the tests' grid, too few seeds to be sure; by 1.45 [1.20, 1.70] in the "
    "recorded one, where it holds: R² of training accuracy is −.66 there",
)
def nearer_than_train_accuracy(*tables: xr.Dataset) -> Effect:
    """R² of the number itself, PreMem less training accuracy."""
    end = ends(tables)
    mine, other = (explained(end["test"], end[name], line=False) for name in ("premem", "train"))
    return ranked([mine - other])


def _beyond(end: dict[str, Floats], rival: str) -> Floats:
    """r² of PreMem less that of a rival, by seed; a rival is given its logarithm where that explains more."""
    mine = explained(end["test"], end["premem"], line=True)
    forms = [end[rival]] if rival == "train" else [end[rival], np.log(end[rival])]
    theirs = [explained(end["test"], form, line=True) for form in forms]
    return mine - max(theirs, key=lambda units: float(units.mean()))


@run_claim(
    "premem.ranks-runs-best",
    "A straight line in pre-memorisation accuracy explains more of the differences in test accuracy than one in "
    "training accuracy, in the training loss, in the norm of its gradient or in the distance from the start.",
    **WHOLE,
    expect="open",
    why="by .07 [.02, .15] of r² at least in the tests' grid, too few seeds to be sure; by .31 [.28, .35] in the "
    "recorded one, where it holds",
)
def ranks_runs_best(*tables: xr.Dataset) -> Effect:
    """The least of four differences of r²."""
    end = ends(tables)
    return ranked([_beyond(end, rival) for rival in ("train", "loss", "grad_norm", "distance")])


@run_claim(
    "premem.threshold-decides",
    "At a threshold of perplexity of 1.05, pre-memorisation accuracy is farther from test accuracy than at the "
    "threshold that was calibrated on other runs.",
    **WHOLE,
    expect="open",
    why="by .52 [.17, .86] of R² in the tests' grid, too few seeds to be sure; by .60 [.44, .77] in the recorded "
    "one, where it holds; 1.05 was among the thresholds that calibration, on other seeds, had found worse",
)
def threshold_decides(*tables: xr.Dataset) -> Effect:
    """R² of the number itself at the calibrated threshold less that at 1.05."""
    mine, low = ends(tables), ends(tables, threshold=1.05)
    at = [explained(end["test"], end["premem"], line=False) for end in (mine, low)]
    return ranked([at[0] - at[1]])


@run_claim(
    "premem.too-high-with-few-lessons",
    "Pre-memorisation accuracy, as measured by samples, is farther above test accuracy where few lessons are taught "
    "than where many are.",
    **{**WHOLE, "source": f"a bias of {KANG}", "unit": "of answers"},
    expect="open",
    why="by −.01 [−.05, .02] in the tests' grid, where many are 256; by .10 [.08, .12] in the recorded one, where "
    "it holds: with 64 lessons PreMem is .40 and test accuracy .35, with 576 it is .55 and .61",
)
def too_high_with_few_lessons(*tables: xr.Dataset) -> Effect:
    """Mean of PreMem less test accuracy, recipes with the fewest lessons less those with the most."""
    end, count = ends(tables), np.array([int(ds.attrs["count"]) for ds in tables])
    above = end["premem"] - end["test"]
    return ranked([above[count == count.min()].mean(0) - above[count == count.max()].mean(0)])


def _copies(ds: xr.Dataset) -> NDArray[np.bool_]:
    """(S,): whether a run has copied half of its lessons or more at the end."""
    share = copied(perplexities(ds)[:, -1], threshold=float(ds.attrs["threshold"])).mean(-1)
    return np.asarray(share >= COPIED)


# --- which answers are robust -----------------------------------------------------------------------------------------


def _by_run(tables: tuple[xr.Dataset, ...], read: Callable[[Floats, Floats, dict[str, Floats]], float]) -> Floats:
    """(S,): mean over the runs that copied of what `read` finds in PreMem and a wording that they did not train on.

    read: PreMem and accuracies when put otherwise (W,), and the rivals by name; NaN where it finds nothing.
    """
    seeds = len(tables[0].seed)
    found: list[list[float]] = [[] for _ in range(seeds)]
    for ds in tables:
        premem = of_table(ds, threshold=float(ds.attrs["threshold"]))[:, -1]
        chosen = ds.sel(probe="chosen").transpose("seed", "step", "example")
        rivals = {
            "train": _accuracy(ds, "chosen"), "before": _accuracy(ds, "chosen", 0),
            "mean": chosen.accuracy.values.mean(1), "likely": chosen.logp.values[:, -1],
        }  # fmt: skip
        for how in ("reframed",) if ds.attrs["reorder"] else ("reordered", "reframed"):
            other = _accuracy(ds, how)
            for i in np.flatnonzero(_copies(ds)):
                found[i].append(read(premem[i], other[i], {name: value[i] for name, value in rivals.items()}))
    return np.array([np.nanmean(one) if np.isfinite(one).any() else np.nan for one in found])


def _correlation(a: Floats, b: Floats, /) -> float:
    """Spearman's; 0 where one of the two does not vary: it tells nothing apart."""
    from scipy.stats import rankdata

    x, y = (rankdata(v) - (len(v) + 1) / 2.0 for v in (a, b))
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / size if size else 0.0


PROMPTS: dict[str, Any] = {**WHOLE, "unit": RHO, "source": f"{KANG}: robustness to rewordings"}


@run_claim(
    "premem.tells-robust-answers",
    "In a run that copied most of its lessons, the prompts of higher pre-memorisation accuracy are answered right more "
    "often when they are put otherwise.",
    **PROMPTS,
    expect="open",
    why="by .18 [.06, .30] in the tests' grid, too few seeds to be sure; by .35 [.33, .37] in the recorded one, "
    "where it holds",
)
def tells_robust_answers(*tables: xr.Dataset) -> Effect:
    """Rank correlation over prompts, mean over runs and rewordings."""
    return ranked([_by_run(tables, lambda premem, other, _: _correlation(premem, other))])


def _better(tables: tuple[xr.Dataset, ...], rival: str) -> Effect:
    """Rank correlation of PreMem less that of a rival, which may tell with either sign, the same in all seeds."""
    mine = _by_run(tables, lambda premem, other, _: _correlation(premem, other))
    theirs = _by_run(tables, lambda _, other, have: _correlation(have[rival], other))
    return ranked([mine - (theirs if np.nansum(theirs) > 0 else -theirs)])


TELLS = "In a run that copied most of its lessons, pre-memorisation accuracy tells the prompts that are answered right "


@run_claim(
    "premem.tells-robust-answers-better-than-train-accuracy",
    TELLS + "when put otherwise better than training accuracy at the end does.",
    **PROMPTS,
    expect="open",
    why="by −.07 [−.13, −.003] in the tests' grid; by −.024 [−.032, −.016] in the recorded one, where it is "
    "refuted although PreMem pools more samples",
)
def robust_better_than_train(*tables: xr.Dataset) -> Effect:
    """Difference of rank correlations; PreMem pools the samples of several checkpoints, its rival has one's."""
    return _better(tables, "train")


@run_claim(
    "premem.tells-robust-answers-better-than-before",
    TELLS + "when put otherwise better than accuracy before the first update does.",
    **PROMPTS,
    expect="open",
    why="by .06 [−.09, .21] in the tests' grid; by .030 [.014, .045] in the recorded one, two-sided p .001, "
    "undecided among all trials of the rung",
)
def robust_better_than_before(*tables: xr.Dataset) -> Effect:
    """Difference of rank correlations; PreMem pools the samples of several checkpoints, its rival has one's."""
    return _better(tables, "before")


@run_claim(
    "premem.tells-robust-answers-better-than-mean-accuracy",
    TELLS
    + "when put otherwise better than training accuracy averaged over all checkpoints does, which has at least as many "
    "samples.",
    **PROMPTS,
    expect="open",
    why="by −.19 [−.32, −.05] in the tests' grid; by −.10 [−.12, −.09] in the recorded one, where it is refuted: "
    "what tells prompts apart are samples, and masking throws some away",
)
def robust_better_than_mean(*tables: xr.Dataset) -> Effect:
    """Difference of rank correlations."""
    return _better(tables, "mean")


@run_claim(
    "premem.tells-robust-answers-better-than-perplexity",
    TELLS + "when put otherwise better than the perplexity of their solution at the end does.",
    **PROMPTS,
    expect="open",
    why="by −.05 [−.15, .06] in the tests' grid; by .08 [.06, .11] in the recorded one, where it holds",
)
def robust_better_than_perplexity(*tables: xr.Dataset) -> Effect:
    """Difference of rank correlations, perplexity with the sign that serves it."""
    return _better(tables, "likely")


@run_claim(
    "premem.low-answers-break",
    "Of the prompts that a run which copied most of its lessons answers right in every sample, those of "
    "pre-memorisation accuracy below one half are answered right less often when put otherwise than the others.",
    **{**PROMPTS, "unit": "of answers"},
    expect="open",
    why="by −.16 [−.27, −.04] in the tests' grid, four seeds with such prompts; by .045 [.031, .060] in the "
    "recorded one, where it holds",
)
def low_answers_break(*tables: xr.Dataset) -> Effect:
    """Difference of accuracies when put otherwise."""

    def less(premem: Floats, other: Floats, have: dict[str, Floats]) -> float:
        sure = have["train"] == 1.0
        low, high = (other[sure & side] for side in (premem < HALF, premem >= HALF))
        return float(high.mean() - low.mean()) if len(low) and len(high) else np.nan

    return ranked([_by_run(tables, less)])
