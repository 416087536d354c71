"""Which lessons to buy more of: those like the ones of low pre-memorisation accuracy, or others (2411.07681)?

A model is finetuned on first lessons, and each of them gets its numbers: pre-memorisation accuracy (`toyld.premem`),
training accuracy, and before training accuracy and perplexity. Then as many more are bought, *relatives* of a quarter
of the first ones (kind kept, half of the numbers drawn anew), and the pretrained model is finetuned on both. Arms:

- `low`, `high`: relatives of the quarter with the lowest, the highest pre-memorisation accuracy;
- `any`: relatives of a quarter drawn by lot, the matched control: what relatives alone do;
- `low-train`, `low-before`, `surprising`: of the lowest training accuracy, of the lowest accuracy and of the highest
  perplexity before any finetuning, the rivals; the last two cost no first finetuning;
- `iid`: no relatives, fresh problems, for several sizes of the whole.

Every arm takes as many passes over as many lessons by the same recipe, so that sizes differ in updates, too, as they do
where data are bought. Every table is one arm of one size, with `eval_test_accuracy` before and after, the mean over
replicates (other orders of the lessons, other relatives), and `eval_weak`: share of the second half that is of the kind
which the corpus had least of. Units are seeds.

Settings, each with its reason, fixed on seeds from 1000 on: accuracy is nearly a line in log(size) over the sizes
taken; a quarter is what the arms differ by most for. `THRESHOLD` and the world are those of `premem`. Problems are
drawn with replacement: at paper size a quarter of the second 192 i.i.d. lessons ask what one of the first asked, at
smoke size a third of the second 48; 2 and 5 % of relatives have the very numbers of their lesson. Test answers of all
arms are drawn by the same random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.premem import pre_memorisation
from toyld.tiny.experiments._sums import School, examine, school
from toyld.tiny.experiments.premem import THRESHOLD
from toyld.tiny.finetune import Lessons, finetune
from toyld.trajectory import trajectory

__all__ = ["ARMS", "PLAN", "scores", "tables"]

EXPERIMENT = "curation"
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BOUGHT, LOT = 71, 72  # streams of random numbers
ARMS = ("low", "high", "any", "low-train", "low-before", "surprising")  # whose relatives are bought
PLAN: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "first": 48, "iid": (48, 96, 192), "passes": 16, "lr": 4e-3, "batch": 32, "replicates": 1, "samples": 8,
        "seeds": 6,
    },
    "paper": {
        "first": 192, "iid": (192, 288, 384, 576, 768), "passes": 24, "lr": 3e-3, "batch": 32, "replicates": 3,
        "samples": 8, "seeds": 16,
    },
}  # fmt: skip


def scores(here: School, size: str, /) -> dict[str, Floats]:
    """Arm → a number (S, first) for every first lesson, the lowest of whom are to have relatives."""
    plan = PLAN[size]
    lessons = here.lessons.take(range(len(here.models)), count=plan["first"])
    course = finetune(
        here.models, lessons, lr=plan["lr"], updates=plan["first"] * plan["passes"] // plan["batch"],
        batch=plan["batch"], lot=1000, watch=plan["first"], samples=plan["samples"],
    )  # fmt: skip
    before_copying = pre_memorisation(course.accuracy, course.perplexity, threshold=THRESHOLD)[-1]
    lot = np.stack([np.random.default_rng([seed, LOT]).random(plan["first"]) for seed in here.models.seeds])
    return {
        "low": before_copying, "high": -before_copying, "any": lot, "low-train": course.accuracy[-1],
        "low-before": course.accuracy[0], "surprising": -course.perplexity[0],
    }  # fmt: skip


def _bought(here: School, score: Floats, size: str, replicate: int) -> Lessons:
    """The first lessons and as many relatives of the quarter that scores lowest; ties by lot."""
    plan, sums = PLAN[size], here.lessons.sums
    first, prompts, solutions = plan["first"], [], []
    for i, seed in enumerate(sums.seeds):
        rng = np.random.default_rng([seed, replicate, BOUGHT])
        lowest = np.lexsort((rng.random(first), score[i]))[: first // 4]
        own = here.lessons.prompt[i, :first]
        new = sums.relatives(seed, rng.choice(own[lowest], first), rng)
        prompts.append(np.concatenate([own, new]))
        solutions.append(np.concatenate([here.lessons.solution[i, :first], sums.solve(new, rng)]))
    return Lessons(sums, np.stack(prompts), np.stack(solutions), np.full(len(prompts), 2 * first))


def tables(seeds: Sequence[int] = range(6), size: str = "smoke") -> dict[str, xr.Dataset]:
    """A table an arm and size, by name. A dear design: of the seeds it takes the first 6 (smoke) or 16 (paper).

    Attributes: experiment "curation", stage "finetune", arm, count (lessons in all), threshold.

    >>> found = tables([1000, 1001])
    >>> list(found)[:4]
    ['tiny sums 48 iid', 'tiny sums 96 iid', 'tiny sums 192 iid', 'tiny sums 96 low']
    """
    plan = PLAN[size]
    here = school(tuple(seeds)[: plan["seeds"]], size)
    s = len(here.models)
    sets = {("iid", n): [here.lessons.take(range(s), count=n)] * plan["replicates"] for n in plan["iid"]}
    for arm, score in scores(here, size).items():
        sets[arm, 2 * plan["first"]] = [_bought(here, score, size, r) for r in range(plan["replicates"])]
    weak = int(np.argmin(here.lessons.sums.sizes.shares))
    out = {}
    for count in sorted({n for _, n in sets}):  # what takes equally many updates is one stack
        these = {arm: sets[arm, count] for arm, n in sets if n == count}
        for arm, after in zip(these, _after(here, list(these.values()), count, size), strict=True):
            second = np.stack([one.prompt[:, count // 2 : count] for one in these[arm]])
            share = (here.lessons.sums.parts(second)[1] == weak).mean((0, 2))
            out[f"tiny sums {count} {arm}"] = _table(here, arm, count, after, share, size)
    order = [f"tiny sums {n} {arm}" for arm, n in sets]
    return {name: out[name] for name in order}


def _after(here: School, arms: list[list[Lessons]], count: int, size: str) -> list[Floats]:
    """Test accuracies (S,) after finetuning on the lessons of every arm, mean over its replicates."""
    plan, s = PLAN[size], len(here.models)
    every = [one for arm in arms for one in arm]
    members = list(range(s)) * len(every)
    sums = here.lessons.take(members).sums
    prompt = np.concatenate([one.prompt[:, :count] for one in every])
    solution = np.concatenate([one.solution[:, :count] for one in every])
    course = finetune(
        here.models.take(members), Lessons(sums, prompt, solution, np.full(len(members), count)), lr=plan["lr"],
        updates=count * plan["passes"] // plan["batch"], batch=plan["batch"], watch=1, samples=1, checkpoints=2,
        lot=np.repeat(np.arange(len(every)) % plan["replicates"], s),
    )  # fmt: skip
    after = examine(course.models, sums, here.tests[members], lot=1).mean(1)
    return list(after.reshape(len(arms), plan["replicates"], s).mean(1))


def _table(here: School, arm: str, count: int, after: Floats, weak: Floats, size: str) -> xr.Dataset:
    plan, seeds = PLAN[size], here.models.seeds
    tested = np.stack([here.before, after], 1)
    return trajectory(
        {"eval_test_accuracy": tested, "eval_weak": np.stack([np.full(len(seeds), np.nan), weak], 1)},
        step=(0, count * plan["passes"] // plan["batch"]), probe=("chosen",), seed=seeds, world="tiny sums",
        stage="finetune", arm=arm,
        attrs={
            "experiment": EXPERIMENT, "count": count, "first": plan["first"], "passes": plan["passes"],
            "lr": plan["lr"], "threshold": THRESHOLD, "size": size,
        },
    )  # fmt: skip
