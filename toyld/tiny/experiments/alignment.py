"""Does SFT on both responses (extend) improve alignment? What models say after DPO, judged by the language itself.

Three arms of SFT, each followed by the same DPO; extended SFT teaches chosen and rejected answers as rows of their own,
so that one pass over the chosen ones takes it two updates:

- `baseline` of n updates: as many passes over the chosen answers as extend, the paper's own comparison;
- `baseline` of 2n updates: as many updates as extend;
- `extend` of 2n updates.

Columns of a table (see `_generations`), for each way of asking WAY = {trained, heldout}_{greedy, sampled}:

- `eval_right_WAY`: share of right answers (sampled ones: the probability of a right one); `eval_likely_WAY`:
  log-probability under the truth (κ = 1), mean, nats;
- `eval_repeats_WAY`: bigrams that stood in the same answer before; `eval_entropy_WAY`: of π along them, nats a token;
- `eval_borrowed_WAY`: how often an answer is one that was taught for another question, wrong here, and
  `eval_unborrowed_WAY`: how often it is one of as many answers of the same relations that were not taught;
- `eval_kl_{truth,source}_{trained,heldout}`: exact KL from the language that knows all facts, or from the one of
  pretraining, to π, nats a response;
- extend's alone, CONTROL = {passes, updates}: `eval_beats_CONTROL_JUDGE_WAY`, the share of answers that win over those
  of the control after as many updates of DPO, and `eval_beats_at_margin_CONTROL_JUDGE_WAY` over those of the control
  where its margin is as large as extend's now (linear between its evaluations; NaN where it never is).

Settings, each with its reason, fixed on seeds from 1000 on:

- n of SFT leaves 37 % of the surprise of chosen with RMSprop and 44 % with plain descent (released logs of the paper's
  models end at 61 and 66 %, a reproduction of another at 46 %). With twice of it greedy answers to the trained prompts
  are nearly all right (.92 and .76), and what DPO does to them is the same and larger.
- The longest DPO widens the margin by 1.7 to 2.5 times the first loss of chosen; 1.3 is what a reproduction of the
  paper's DPO reached. The short ones lie where win rates turn: at margins of 1 to 12 nats.
- Four answers a prompt at temperature 1: most of the spread of seeds is in their facts, not in the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.tiny.experiments._generations import (
    JUDGES,
    PLACES,
    WAYS,
    Spoken,
    Told,
    columns,
    distances,
    speak,
    told,
    wins,
)
from toyld.tiny.experiments._worlds import BETA, RECIPES, World, world
from toyld.tiny.models import Models
from toyld.tiny.stage import Run, train
from toyld.tiny.texts import Texts

__all__ = ["CONTROLS", "PLANS", "Plan", "tables"]

EXPERIMENT = "alignment"
KINDS = ("chosen", "rejected", "test_chosen")
TRUE = 52  # stream of random numbers
BRIEF = ("trained_greedy",)
CONTROLS = ("passes", "updates")  # what extend's control has as many of


@dataclass(frozen=True)
class Plan:
    """Updates. sft: n; early: where distances alone are read; dpo: where models are asked; between: where they are
    asked greedily about trained prompts alone.
    """

    sft: int
    early: tuple[int, ...]
    dpo: tuple[int, ...]
    between: tuple[int, ...]


SAMPLES = {"trained": 4, "heldout": 4}  # answers at temperature 1 to a prompt
PLANS: Mapping[str, Mapping[str, Plan]] = {
    "smoke": {
        "rmsprop": Plan(60, (5, 10, 20), (0, 8, 16, 48), (4, 28)),
        "sgd": Plan(30, (2, 5, 10), (0, 1, 4, 16), (2, 8)),
    },
    "paper": {
        "rmsprop": Plan(30, (3, 6, 12), (0, 8, 16, 48), (4, 28)),
        "sgd": Plan(45, (2, 5, 10), (0, 2, 6, 24), (4, 12)),
    },
}


def tables(
    seeds: Sequence[int] = range(20), size: str = "smoke", *, plans: Mapping[str, Plan] | None = None
) -> dict[str, xr.Dataset]:
    """SFT of both arms and DPO after three, for each optimiser; the seeds are units.

    Attributes: experiment "alignment", model (the optimiser), stage, arm, and of a DPO stage `sft_updates` and
    `sft_passes` before it. plans: of other lengths, by optimiser.
    """
    w = world(tuple(seeds), size)
    out: dict[str, xr.Dataset] = {}
    for name, plan in (PLANS[size] if plans is None else plans).items():
        out |= _Pipeline(w, name, plan, told(w.data)).tables()
    return out


@dataclass(frozen=True)
class _Stage:
    """A stage: its run, and at the marks where models were asked, they and what they said."""

    run: Run
    models: Mapping[int, Models]
    spoken: Mapping[int, Spoken]


@dataclass(frozen=True)
class _Pipeline:
    """All stages with one optimiser."""

    world: World
    name: str
    plan: Plan
    told: Told

    def tables(self) -> dict[str, xr.Dataset]:
        """Tables by name."""
        n, data, s, out = self.plan.sft, self.world.data, len(self.world.models), {}
        plain = self._sft("sft", (*self.plan.early, n, 2 * n), asked=(0, n, 2 * n))
        both = self._sft("extend", (n, 2 * n), asked=(0, 2 * n), first=plain.spoken[0])
        for arm, stage in (("baseline", plain), ("extend", both)):
            out[f"alignment {self.name} sft {arm}"] = self._table(stage.run, "sft", arm)
        arms = (("baseline", n, plain), ("baseline", 2 * n, plain), ("extend", 2 * n, both))
        before = [stage.models[updates] for _, updates, stage in arms]
        said = [stage.spoken[updates] for _, updates, stage in arms]
        first = {way: said[0][way].joined(*(one[way] for one in said[1:])) for way in WAYS}
        dpo = self._dpo(_joined(before), data.take(list(range(s)) * len(arms)), first)
        parts = [slice(i * s, (i + 1) * s) for i in range(len(arms))]
        for (arm, updates, _), part in zip(arms, parts, strict=True):
            passes = updates / 2.0 if arm == "extend" else float(updates)
            table = self._table(dpo.run, "dpo", arm, part, sft_updates=updates, sft_passes=passes)
            if arm == "extend":
                for control, other in zip(CONTROLS, parts[:2], strict=True):
                    found = _compared(dpo, part, other, control)
                    table = table.assign({name: (("seed", "step"), value.T) for name, value in found.items()})
            out[f"alignment {self.name} dpo {arm} after {updates}"] = table
        return out

    def _table(self, run: Run, stage: str, arm: str, part: slice = slice(None), **attrs: Any) -> xr.Dataset:
        members = range(len(run.models))[part]
        return run.table(stage, arm, members=members, experiment=EXPERIMENT, model=self.name, **attrs)

    def _sft(
        self, objective: str, marks: Sequence[int], *, asked: Sequence[int], first: Spoken | None = None
    ) -> _Stage:
        both, recipe = objective == "extend", RECIPES[self.name]
        # `extend` is minus the sum of both log-probabilities of a pair: at half the rate, one update of it is one of
        # the mean over 2P rows. RMSprop divides the size of the loss out; there the rate stays.
        rate = recipe.sft * (0.5 if both and recipe.optimizer.name == "sgd" else 1.0)
        sides: dict[str, Any] = {"rejected": "rejected"} if both else {}
        return self._stage(
            self.world.models, self.world.data, objectives.get(objective), (0, *marks), asked, (), first, lr=rate,
            **sides,
        )  # fmt: skip

    def _dpo(self, models: Models, data: Texts, first: Spoken) -> _Stage:
        objective, plan, rate = objectives.get("dpo", beta=BETA), self.plan, RECIPES[self.name].dpo
        marks = sorted({*plan.dpo, *plan.between})
        return self._stage(models, data, objective, marks, plan.dpo, plan.between, first, lr=rate, rejected="rejected")

    def _stage(
        self, models: Models, data: Texts, objective: Any, marks: Sequence[int], asked: Sequence[int],
        briefly: Sequence[int], first: Spoken | None, **options: Any,
    ) -> _Stage:  # fmt: skip
        """One stage, stopped at the marks. first: what the models said before, where that is known."""
        recipe, copies = RECIPES[self.name], len(models) // len(self.world.models)
        true = _true(self.world, copies)
        given = self.told.take(list(range(len(self.world.models))) * copies)
        now, memory, done = models, None, 0
        runs, kept, spoken, extra = [], {}, {}, []
        for mark in marks:
            part = train(
                now, data, objective, steps=mark - done, done=done, memory=memory, reference=models, at=[mark - done],
                kinds=KINDS, optimizer=recipe.optimizer, warmup=recipe.warmup, **options,
            )  # fmt: skip
            now, memory, done = part.models, part.memory, mark
            runs.append(part)
            found = distances(now, data, true)
            if mark in asked:
                kept[mark] = now
                spoken[mark] = speak(now, data, samples=SAMPLES) if mark or first is None else first
                found |= columns(now, data, spoken[mark], given)
            elif mark in briefly:
                found |= columns(now, data, speak(now, data, samples=SAMPLES, ways=BRIEF), given)
            extra.append(found)
        run = replace(
            runs[-1],
            steps=tuple(marks),
            values={name: np.concatenate([one.values[name] for one in runs]) for name in runs[0].values},
            loss=np.concatenate([one.loss for one in runs]),
            extra=_filled(extra, len(models)),
        )
        return _Stage(run, kept, spoken)


def _filled(found: Sequence[Mapping[str, np.ndarray]], members: int) -> dict[str, np.ndarray]:
    """Columns (evaluation, S); NaN where one was not measured."""
    nothing = np.full(members, np.nan)
    names = dict.fromkeys(name for one in found for name in one)
    return {name: np.stack([one.get(name, nothing) for one in found]) for name in names}


def _true(w: World, copies: int) -> dict[str, np.ndarray]:
    """A fresh text of the language to each prompt, by what it knows and place, the same in each copy."""
    rngs = [np.random.default_rng([seed, TRUE]) for seed in w.language.seeds]
    out = {}
    for knows, knowledge in (("truth", 1.0), ("source", None)):
        for place, kind in PLACES.items():
            text = w.language.sample(w.data.prompt(kind), rngs, knowledge=knowledge)
            out[f"{knows}_{place}"] = np.concatenate([text] * copies)
    return out


def _joined(stack: Sequence[Models]) -> Models:
    seeds = tuple(seed for models in stack for seed in models.seeds)
    return replace(stack[0], seeds=seeds, flat=torch.cat([models.flat for models in stack]))


def _margins(run: Run) -> np.ndarray:
    """m = Δ(ℓ₊ − ℓ₋), mean over pairs, (evaluation, S)."""
    gap = run.value("logp", "chosen") - run.value("logp", "rejected")
    return np.asarray((gap - gap[:1]).mean(-1))


def _compared(stage: _Stage, mine: slice, theirs: slice, control: str) -> dict[str, np.ndarray]:
    """Columns (evaluation, S): how often mine win, evaluation by evaluation and at equal margin."""
    out, spoken = {}, list(stage.spoken.values())
    rows = [stage.run.steps.index(mark) for mark in stage.spoken]
    margin = _margins(stage.run)[rows]
    for judge in JUDGES:
        for way in WAYS:
            each = np.stack(
                [[wins(a[way].take(mine), b[way].take(theirs), judge) for b in spoken] for a in spoken]
            )  # (mine at, theirs at, S)
            found = {
                f"eval_beats_{control}_{judge}_{way}": np.stack([each[i, i] for i in range(len(spoken))]),
                f"eval_beats_at_margin_{control}_{judge}_{way}": _at_equal(each, margin[:, mine], margin[:, theirs]),
            }
            for name, value in found.items():
                out[name] = np.full((len(stage.run.steps), value.shape[1]), np.nan)
                out[name][rows] = value
    return out


def _at_equal(each: np.ndarray, margin: np.ndarray, other: np.ndarray) -> np.ndarray:
    """each[i, ·, s] at the place of the second axis where `other` first reaches margin[i, s]; linear between."""
    found = np.full(margin.shape, np.nan)
    for i, s in np.ndindex(margin.shape):
        reached = np.flatnonzero(other[:, s] >= margin[i, s])
        if len(reached):
            k = int(reached[0])
            low, high = other[max(k - 1, 0), s], other[k, s]
            share = (margin[i, s] - low) / (high - low) if k and high > low else 1.0
            found[i, s] = (1.0 - share) * each[i, max(k - 1, 0), s] + share * each[i, k, s]
    return found
