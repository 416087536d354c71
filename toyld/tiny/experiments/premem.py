"""Does pre-memorisation accuracy foretell test accuracy (2411.07681)? One finetuning for every recipe of a grid.

Every table is one recipe: how many lessons, how many passes over them, the peak rate, whether problems are reordered at
every pass (augmentation), and the model's size. Units are seeds: each has an arithmetic's problems and a pretrained
network of its own, the same ones for all recipes. Random numbers of training, and of the answers while it lasts, are
another recipe's own; those of the tests at its end are a seed's.

Rows are checkpoints, examples the watched lessons. Probe `chosen` is the taught solution to each (`logp`, `n_tokens`)
with the accuracy of the model's own answers; `reordered` and `reframed` are the same problems put otherwise, asked at
the end. Of the whole: `eval_test_accuracy` (held-out problems, before and after), `loss`, `grad_norm` (of the watched
lessons), `eval_distance` (from the pretrained weights).

Settings, each with its reason, fixed on seeds from 1000 on:

- The grid spans what one would try: a few lessons to hundreds, four passes (nothing is copied) to 64 (everything is),
  rates over an order of magnitude. At its ends training accuracy is that of the test, and 1.
- `THRESHOLD`, the perplexity at which a solution counts as copied, was calibrated on seeds from 1000 on: of 1.05, 1.1,
  … 1.5 the best for R² of PreMem itself over five networks at paper size (three smaller, two larger; R² there .52 at
  1.2, .60, .64, .66 at 1.35, .62, .52 at 1.45). That sets its mean error near 0, too. A solver who does not copy has
  1.49 along one of the 24 orders of four different numbers, 1.36 where two of them are equal, 1.19 where three are: so
  on 8 % of the problems at paper size, 12 % at smoke size, he counts as copying whatever he does.
- At paper size eight answers to each of 128 lessons (fewer where fewer are taught), 1,024 to the 512 test problems.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.tiny.experiments._sums import SIZES, School, examine, school
from toyld.tiny.finetune import Course, finetune
from toyld.tiny.sums import REWORDINGS
from toyld.trajectory import trajectory

__all__ = ["GRID", "THRESHOLD", "Setting", "settings", "tables"]

EXPERIMENT = "premem"
Floats = NDArray[np.float64]
PUT = 70  # stream of random numbers
THRESHOLD = 1.35
GRID: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "count": (32, 256), "passes": (4, 20), "lr": (1.5e-3, 5e-3), "reorder": (False, True), "wide": (False,),
        "batch": 32, "watch": 32, "samples": 4, "seeds": 6,
    },
    "paper": {
        "count": (64, 192, 576), "passes": (4, 16, 64), "lr": (5e-4, 1.5e-3, 4.5e-3), "reorder": (False, True),
        "wide": (False, True), "batch": 32, "watch": 128, "samples": 8, "seeds": 12,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One recipe of the grid."""

    count: int
    passes: int
    lr: float
    reorder: bool
    wide: bool

    @property
    def name(self) -> str:
        """How its table is called."""
        model = "wide " if self.wide else ""
        return f"tiny {model}sums {self.count} lessons × {self.passes} lr {self.lr:g}{' reordered' * self.reorder}"


def settings(size: str, /) -> list[Setting]:
    """Every recipe of a size.

    >>> len(settings("smoke")), len(settings("paper"))
    (16, 108)
    """
    names = ("count", "passes", "lr", "reorder", "wide")
    return [Setting(*one) for one in itertools.product(*(GRID[size][name] for name in names))]


def tables(seeds: Sequence[int] = range(6), size: str = "smoke") -> dict[str, xr.Dataset]:
    """A table a recipe, by name. A dear design: of the seeds it takes the first 6 (smoke) or 12 (paper).

    Attributes: experiment "premem", stage "finetune", count, passes, lr, reorder, wide, threshold, parameters.

    >>> one, *_ = tables([1000, 1001]).values()
    >>> dict(one.sizes)["example"], one.attrs["threshold"], float(one.accuracy.sel(probe="reframed")[:, 0].count())
    (32, 1.35, 0.0)
    """
    plan, out = GRID[size], {}
    seeds, every = tuple(seeds)[: plan["seeds"]], settings(size)
    for wide, count, passes in itertools.product(plan["wide"], plan["count"], plan["passes"]):
        # what takes equally many updates is one stack
        these = [one for one in every if (one.wide, one.count, one.passes) == (wide, count, passes)]
        out.update(_stack(school(seeds, size, wide=wide), these, [every.index(one) for one in these], size))
    return out


def _stack(here: School, these: Sequence[Setting], lots: Sequence[int], size: str) -> dict[str, xr.Dataset]:
    """The tables of recipes that take equally many updates of models of one shape."""
    plan, s = GRID[size], len(here.models)
    watch = min(plan["watch"], these[0].count)
    members = list(range(s)) * len(these)
    lot = np.repeat(lots, s)
    models, lessons = here.models.take(members), here.lessons.take(members, count=these[0].count)
    course = finetune(
        models, lessons, lr=np.repeat([one.lr for one in these], s), lot=lot, batch=plan["batch"],
        reorder=np.repeat([one.reorder for one in these], s), watch=watch, samples=plan["samples"],
        updates=these[0].count * these[0].passes // plan["batch"],
    )  # fmt: skip
    after = examine(course.models, lessons.sums, here.tests[members], lot=1).mean(1)
    asked, _ = lessons.watched(watch)
    put: dict[str, Floats] = {}
    for how in REWORDINGS:
        rngs = [np.random.default_rng([seed, PUT]) for seed in lessons.sums.seeds]
        other = np.stack([lessons.sums.reworded(own, how, rng) for own, rng in zip(asked, rngs, strict=True)])
        put[how] = examine(course.models, lessons.sums, other, lot=2, samples=plan["samples"])
    return {
        one.name: _table(one, here, course, slice(i * s, (i + 1) * s), after, put, size) for i, one in enumerate(these)
    }


def _table(
    one: Setting, here: School, course: Course, own: slice, after: Floats, put: Mapping[str, Floats], size: str,
) -> xr.Dataset:  # fmt: skip
    """What the members `own` of a stack did."""
    length, (m, _, w) = here.lessons.sums.sizes.length, course.accuracy.shape
    seeds = here.models.seeds
    probes = ("chosen", *REWORDINGS)
    right = np.full((len(seeds), m, len(probes), w), np.nan)
    logp, tokens = right.copy(), np.full((len(seeds), len(probes), w), np.nan)
    right[:, :, 0] = course.accuracy[:, own].swapaxes(0, 1)
    logp[:, :, 0], tokens[:, 0] = -length * np.log(course.perplexity[:, own]).swapaxes(0, 1), length
    for i, how in enumerate(REWORDINGS, 1):
        right[:, -1, i] = put[how][own]
    tested = np.full((len(seeds), m), np.nan)
    tested[:, 0], tested[:, -1] = here.before, after[own]
    columns = {"loss": course.loss, "grad_norm": course.grad_norm, "eval_distance": course.distance}
    return trajectory(
        {"accuracy": right, "logp": logp, "n_tokens": tokens, "eval_test_accuracy": tested}
        | {name: value[:, own].T for name, value in columns.items()},
        step=course.steps, probe=probes, example=[str(i) for i in range(w)], seed=seeds, world="tiny sums",
        stage="finetune", arm="grid",
        attrs={
            "experiment": EXPERIMENT, "count": one.count, "passes": one.passes, "lr": one.lr, "reorder": one.reorder,
            "wide": one.wide, "threshold": THRESHOLD, "parameters": here.models.shape.parameters, "size": size,
            "batch": GRID[size]["batch"], "optimizer": "adamw", "pretrained": SIZES[size]["steps"],
        },
    )  # fmt: skip
