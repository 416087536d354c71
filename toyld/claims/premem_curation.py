"""Does choosing data by pre-memorisation accuracy save any (2411.07681)? Bought lessons, arm by arm, at equal budget.

The tables are those of the experiment `curation`: arms of one size, and i.i.d. lessons of several sizes. The ratio of
data efficiency is how many i.i.d. lessons would give the same test accuracy, over how many there are: on straight lines
of i.i.d. accuracy in log(size), one a seed,

    log₂ ratio = Σ_s (accuracy_s − line_s at its size) / Σ_s slope_s,      slope in accuracy for twice the data.

That it is above log₂ r is tested as Fieller does: over seeds, by accuracy_s − line_s − slope_s · log₂ r, in accuracy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim

__all__ = ["SAVED", "efficiency", "ratios"]

Floats = NDArray[np.float64]
KANG = "Kang et al. (2411.07681): data curation"
RIVALS = ("low-train", "low-before", "surprising")
SAVED = 1.5  # the least that the paper reports


def _end(ds: xr.Dataset) -> Floats:
    """Test accuracy (S,) after finetuning."""
    return np.asarray(ds.eval_test_accuracy.transpose("seed", "step").values[:, -1])


def _arms(tables: tuple[xr.Dataset, ...]) -> tuple[dict[str, Floats], int]:
    """Test accuracies of the arms of the size that is bought, by name, i.i.d. lessons first; that size."""
    (count,) = {int(ds.attrs["count"]) for ds in tables if ds.attrs["arm"] != "iid"}
    found = {str(ds.attrs["arm"]): _end(ds) for ds in tables if int(ds.attrs["count"]) == count}
    return {"iid": found["iid"]} | found, count


def _lines(tables: tuple[xr.Dataset, ...], count: int) -> tuple[Floats, Floats]:
    """(accuracy of the i.i.d. line at a size, its slope a doubling), (S,) each."""
    line = sorted((int(ds.attrs["count"]), _end(ds).tolist()) for ds in tables if ds.attrs["arm"] == "iid")
    x, y = np.log2([n for n, _ in line]), np.array([accuracy for _, accuracy in line])
    slope = ((x - x.mean())[:, None] * y).sum(0) / ((x - x.mean()) ** 2).sum()
    return y.mean(0) + slope * (np.log2(count) - x.mean()), slope


def efficiency(tables: tuple[xr.Dataset, ...], /, *, ratio: float = 1.0) -> dict[str, Floats]:
    """Arm → accuracy beyond that of `ratio` times as many i.i.d. lessons, (S,); see the module's docstring.

    i.i.d. lessons of the same size are an arm, too: 0 where accuracy is a line in log(size).
    """
    arms, count = _arms(tables)
    there, slope = _lines(tables, count)
    return {arm: after - there - slope * np.log2(ratio) for arm, after in arms.items()}


def ratios(tables: tuple[xr.Dataset, ...], /) -> dict[str, float]:
    """Arm → ratio of data efficiency, by the lines of all seeds together; i.i.d. lessons of the same size by their own.

    That of `iid` is 1 where accuracy is a line in log(size): how far it is off is how far the others may be, too.
    """
    arms, count = _arms(tables)
    there, slope = _lines(tables, count)
    return {arm: float(2.0 ** ((after - there).sum() / slope.sum())) for arm, after in arms.items()}


def _bought(*tables: xr.Dataset) -> str | None:
    """Premise: the arms beside i.i.d. lessons of three sizes at least, whose accuracy rises with their number."""
    for ds in tables:
        if ds.attrs.get("stage") != "finetune" or "eval_test_accuracy" not in ds or "count" not in ds.attrs:
            return "no finetuning with accuracies of held-out problems"
        if list(ds.seed.values) != list(tables[0].seed.values):
            return "other seeds"
    sizes = [(str(ds.attrs["arm"]), int(ds.attrs["count"])) for ds in tables]
    iid, bought = {n for arm, n in sizes if arm == "iid"}, {n for arm, n in sizes if arm != "iid"}
    if not {"low", "high", "any", *RIVALS} <= {arm for arm, _ in sizes} or len(iid) < 3:
        return "not all arms, or fewer than three sizes of i.i.d. lessons"
    if len(set(sizes)) < len(sizes) or len(bought) > 1 or not bought <= iid:
        return "an arm twice, or no i.i.d. lessons of the size that the others have"
    return None if _lines(tables, min(bought))[1].mean() > 0 else "more i.i.d. lessons do not help"


BOUGHT: dict[str, Any] = {
    "premises": _bought, "takes": "all", "rungs": ("tiny",), "experiment": "curation", "source": KANG,
    "unit": "of answers",
}  # fmt: skip


@run_claim(
    "premem.low-beats-high",
    "At equal data budget, relatives of the lessons of lowest pre-memorisation accuracy raise test accuracy more than "
    "relatives of those of the highest.",
    **BOUGHT,
    expect="open",
    why="by −.01 [−.06, .03] in the tests' world, which has one kind of problem; by .061 [.019, .104] in the "
    "recorded one, p .008, undecided among all trials of the rung: there 91 % of the relatives of low lessons "
    "are of the kind that the model knew least, 5 % of those of high ones",
)
def low_beats_high(*tables: xr.Dataset) -> Effect:
    """Difference of test accuracies."""
    arms, _ = _arms(tables)
    return ranked([arms["low"] - arms["high"]])


@run_claim(
    "premem.low-beats-any-relatives",
    "At equal data budget, relatives of the lessons of lowest pre-memorisation accuracy raise test accuracy more than "
    "relatives of lessons drawn by lot.",
    **{**BOUGHT, "source": f"a control to {KANG}"},
    expect="open",
    why="by −.01 [−.05, .04] in the tests' world; by .018 [−.001, .037] in the recorded one",
)
def low_beats_any_relatives(*tables: xr.Dataset) -> Effect:
    """Difference of test accuracies."""
    arms, _ = _arms(tables)
    return ranked([arms["low"] - arms["any"]])


@run_claim(
    "premem.curation-saves-data",
    "At equal data budget, relatives of the lessons of lowest pre-memorisation accuracy raise test accuracy more than "
    "i.i.d. lessons.",
    **BOUGHT,
    expect="open",
    why="by −.02 [−.06, .03] in the tests' world; by .007 [−.013, .028] in the recorded one, a ratio of 1.01",
)
def curation_saves_data(*tables: xr.Dataset) -> Effect:
    """Difference of test accuracies."""
    arms, _ = _arms(tables)
    return ranked([arms["low"] - arms["iid"]])


@run_claim(
    "premem.curation-saves-a-third",
    "Choosing data by low pre-memorisation accuracy is at least 1.5 times as data-efficient as i.i.d. data.",
    **BOUGHT,
    expect="open",
    why="by −.03 [−.08, .02] in the tests' world; by −.082 [−.098, −.065] in the recorded one, where it is refuted",
    instead="premem.curation-saves-data",
)
def curation_saves_a_third(*tables: xr.Dataset) -> Effect:
    """Test accuracy beyond that of 1.5 times as many i.i.d. lessons."""
    return ranked([efficiency(tables, ratio=SAVED)["low"]])


@run_claim(
    "premem.curation-beats-rivals",
    "Choosing data by low pre-memorisation accuracy raises test accuracy more than choosing by low training accuracy, "
    "by low accuracy before training or by high perplexity before it.",
    **{**BOUGHT, "source": f"{KANG}, beside cheaper rules"},
    expect="open",
    why="by −.03 [−.08, .05] in the tests' world, by −.005 [−.011, .004] in the recorded one: rules that need no "
    "first finetuning choose as well",
)
def curation_beats_rivals(*tables: xr.Dataset) -> Effect:
    """The least of three differences of test accuracies."""
    arms, _ = _arms(tables)
    return ranked([arms["low"] - arms[rival] for rival in RIVALS])
