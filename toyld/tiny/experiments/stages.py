"""The paper's own stages in tiny transformers: SFT, then DPO, beside extended SFT, fair controls and on-policy pairs.

Every table is one stage of one arm of one *model*: a recipe, "rmsprop" (the paper's) or "sgd". Units are seeds, each a
language and a network of its own, the same ones for both recipes. Arms are those of the closed form (experiment
`stages` at rung contexts):

- `baseline`: SFT on the chosen answers for `sft_updates` updates, then DPO on the pairs;
- `extend`: SFT on chosen and rejected answers as rows of their own (§4.3), then the same DPO. All rows are in every
  update, and the chosen ones have half the weight that they have in plain SFT. So it is compared with plain SFT of as
  many *updates* and with plain SFT of half as many, *equal weight on the chosen answers*: rate times weight, summed
  over the updates. Attr `sft_passes` counts that weight, in updates of plain SFT: where answers come in batches it is
  the number of passes over them. Equal weight is not equal learning: log π of chosen where DPO starts is −7.5 and −7.4
  after extend and after plain SFT of equal weight with RMSprop, −7.4 and −6.6 under plain descent (means over the
  seeds of record), −6.2 and −4.7 after as many updates;
- `on-policy`: SFT as `baseline`, then DPO against answers that the trained model itself gives, drawn by the same random
  numbers as those of the untrained one.

Settings, each with its reason, fixed on seeds from 1000 on:

- SFT of 15 and 30 updates before DPO leaves 68 and 57 % of the loss of the chosen answer under RMSprop, 60 and 41 %
  under plain descent; released logs of the paper's models end at 61 and 66 %, a reproduction of another at 46 %. SFT
  itself is followed further, for what a response does late differs from what it does at first, and with both recipes to
  the same share of that loss, 22 % (23 and 26 % on the seeds of record): 100 updates of RMSprop, 50 of plain descent.
- RMSprop warms up, over the first third of the updates before DPO (5 of 15, 10 of 30, extended or not), so that half
  as many updates have half the summed rate (.51); the longer SFT begins as that of 30 does.
- Extended SFT is the mean over 2P rows. The objective `extend` is the sum over a pair, its mean over P pairs twice
  that mean: plain descent takes half the rate. RMSprop divides such a factor out and keeps its rate.
- DPO of 100 updates under RMSprop and of 30 under plain descent: both let the margin grow by 23 to 30 nats, more than
  twice the first loss of the chosen answer. At 1.3 times it, which is what the reproduction reached, shuffled words and
  other prompts' answers have hardly moved under RMSprop, and the argmax is where it stays.
- `first_push` (attr of plain stages): rate times the loss's first push on chosen, 1 in SFT, β/2 in DPO; RMSprop divides
  the push out. The stages do not push alike (SFT twice as hard under plain descent, 1.5 times with RMSprop), so that
  after as many updates they are not compared.
- `own_answers` (attr of SFT): the probes that are answers of the policy SFT starts from, or rephrases of such. Their
  mean log-ratio is −KL(π_0 ‖ π) in expectation whatever SFT teaches: that they fall is no finding, only how far.
- Evaluations: a tenth of DPO and then more and more seldom; in SFT from where responses of the model's own have moved
  by half a nat, for before that a bell and no bell look alike (after 3 and 6 updates of RMSprop they had moved by −.03
  ± .02 and −.10 ± .06).
- Negatives are the pretrained model's own answers at temperature 1, one a prompt; on-policy ones are the trained one's.
  Rephrases of the former say nothing of the latter and are left out there.
- `sampled`, measured in DPO, are fresh answers of the policy that DPO starts from, which nobody trains on: their mean
  log-ratio is −KL(π_ref ‖ π) in expectation, whatever the objective.

What the trained models *say* is counted before SFT and at its end, in 16 answers a question: of the places
where an answer has a concept that is wrong, the share that is a fact of another taught question of the same relation
(`eval_borrowed`, of another relation: `eval_borrowed_elsewhere`) and the share that is a fact of an untaught one
(`eval_guessed`), each where that question's fact is not the asked one's own: so many chances, so many hits. The same
for answers to questions that were not taught (`eval_test_…`); `eval_right`, `eval_test_right`: share of concepts that
are true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld import objectives
from toyld.tiny.experiments._worlds import BETA, RECIPES, Recipe, World, world
from toyld.tiny.language import PAD, Language
from toyld.tiny.models import Models
from toyld.tiny.stage import Run, train
from toyld.tiny.texts import Texts

__all__ = ["DPO_AT", "SFT_AT", "SFT_UPDATES", "borrowed", "said", "tables"]

EXPERIMENT = "stages"
SFT_UPDATES = (15, 30)
SFT_AT: Mapping[str, Sequence[int]] = {"rmsprop": (0, 15, 22, 30, 50, 70, 100), "sgd": (0, 4, 8, 15, 25, 30, 50)}
DPO_AT: Mapping[str, Sequence[int]] = {"rmsprop": (0, 10, 22, 45, 70, 100), "sgd": (0, 3, 6, 12, 20, 30)}
OWN, FRESH, SAID = 0, 2, 3  # draws of a model: on-policy negatives (as `_worlds` draws the others), `sampled`, counted
ANSWERS = 16  # a question: with 8, luck in drawing them is as large as what differs between seeds
UNSEEN = ("random_words",)  # not probed; test_chosen in SFT alone
STALE = ("reject_gptsemantic", "reject_gptformat")  # rephrases of another answer than the on-policy one
FIRST = ("chosen_initial", "rejected", *STALE)  # answers of the policy that SFT starts from, and their rephrases
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _warmup(recipe: Recipe, updates: int) -> int:
    """A third of the updates, at most the recipe's own: half as many updates have half the summed rate."""
    return min(recipe.warmup, recipe.warmup * updates // SFT_UPDATES[-1])


def _sft(models: Models, data: Texts, recipe: Recipe, updates: int, **options: Any) -> Run:
    return train(
        models, data, objectives.get("sft"), lr=recipe.sft, steps=updates, optimizer=recipe.optimizer,
        warmup=_warmup(recipe, updates), **options,
    )  # fmt: skip


def _extend(models: Models, data: Texts, recipe: Recipe, updates: int, **options: Any) -> Run:
    """The mean over 2P rows; RMSprop does not see the factor."""
    half = 1.0 if recipe.optimizer.name == "rmsprop" else 0.5
    return train(
        models, data, objectives.get("extend"), lr=half * recipe.sft, steps=updates, optimizer=recipe.optimizer,
        warmup=_warmup(recipe, updates), rejected="rejected", **options,
    )  # fmt: skip


def _dpo(models: Models, data: Texts, recipe: Recipe, at: Sequence[int], *, leave: Sequence[str] = ()) -> Run:
    data = data.also({"sampled": models.sample(data.language, data.prompts["chosen"], seed=FRESH)})
    kinds = [kind for kind in data.texts if kind not in (*UNSEEN, *leave, "test_chosen")]
    return train(
        models, data, objectives.get("dpo", beta=BETA), lr=recipe.dpo, steps=at[-1], optimizer=recipe.optimizer,
        warmup=recipe.warmup, rejected="rejected", at=at, kinds=kinds,
    )  # fmt: skip


def borrowed(language: Language, prompt: Ints, text: Ints, other: Ints, /) -> tuple[Floats, Floats]:
    """Of the wrong concepts of answers, shares (S,) that are facts of other questions: same relation, another one.

    prompt (S, N): numbers of the questions; text (S, N, T): answers; other (S, Q): questions whose facts are looked
    for, the asked one left out. A chance is a place with a concept that is not the asked question's fact, beside one
    of the other questions whose fact there is not the asked one's either; a hit, where the two agree.

    >>> from toyld.tiny import Sizes, draw
    >>> language, prompt = draw(Sizes(slip=0.0), [0]), np.arange(32)[None]
    >>> truth = language.sample(prompt, [np.random.default_rng(0)], knowledge=1.0)
    >>> swapped = np.roll(truth, 1, axis=1)  # every question is answered by the one before it
    >>> inside, _ = borrowed(language, prompt[:, 1:2], swapped[:, 1:2], prompt[:, :1])
    >>> float(inside[0])
    1.0
    """
    s = np.arange(len(prompt))[:, None]
    said, own, facts = language.concepts(text)[:, :, None], language.facts[s, prompt][:, :, None], language.facts
    theirs = facts[s, other][:, None]
    another = (prompt[:, :, None] != other[:, None])[..., None]
    chance = (said != PAD) & (said != own) & (theirs != own) & another
    entities = language.sizes.entities
    kin = (prompt[:, :, None] // entities == other[:, None] // entities)[..., None]

    hit = chance & (said == theirs)
    return _share(hit & kin, chance & kin), _share(hit & ~kin, chance & ~kin)


def _share(hits: NDArray[np.bool_], chances: NDArray[np.bool_], /) -> Floats:
    """(S,): hits of chances; NaN where there was none."""
    taken, all_ = (a.reshape(len(a), -1).sum(1) for a in (hits, chances))
    return np.where(all_ > 0, taken / np.maximum(all_, 1), np.nan)


def said(models: Models, data: Texts) -> dict[str, Floats]:
    """What models say when asked the taught and the untaught questions, counted: columns of SFT by name, (S,).

    >>> from toyld.tiny.experiments import _worlds
    >>> world = _worlds.world((1000, 1001))
    >>> sorted(said(world.models, world.data))[:3]
    ['eval_borrowed', 'eval_borrowed_elsewhere', 'eval_guessed']
    """
    language, taught, untaught = data.language, data.prompts["chosen"], data.prompts["test_chosen"]
    out: dict[str, Floats] = {}
    for where, asked in (("", taught), ("test_", untaught)):
        prompt = np.repeat(asked, ANSWERS, axis=1)
        text = models.sample(language, prompt, seed=SAID)
        inside, elsewhere = borrowed(language, prompt, text, taught)
        out[f"eval_{where}borrowed"], out[f"eval_{where}borrowed_elsewhere"] = inside, elsewhere
        out[f"eval_{where}guessed"], out[f"eval_{where}guessed_elsewhere"] = borrowed(language, prompt, text, untaught)
        said, own = language.concepts(text), language.facts[np.arange(len(prompt))[:, None], prompt]
        out[f"eval_{where}right"] = _share((said == own) & (said != PAD), said != PAD)
    return out


def _counted(run: Run, before: Mapping[str, Floats]) -> Run:
    """The run with what its models said at its first and last evaluation; NaN between."""
    after = said(run.models, run.data)
    blank = np.full((len(run.steps) - 2, len(run.models)), np.nan)
    columns = {name: np.concatenate([value[None], blank, after[name][None]]) for name, value in before.items()}
    return replace(run, extra=columns)


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """Every stage of every arm of both recipes, by name, with the seeds as units.

    Attributes: experiment "stages", model (the recipe), stage, arm, and of a DPO stage `sft_updates` and `sft_passes`
    before it; an update of extended SFT counts as half a pass. Plain stages have `first_push`, SFT `own_answers`.

    >>> from toyld.tiny.experiments import run
    >>> found = run("stages", seeds=[1000, 1001])
    >>> found["tiny rmsprop dpo extend after 30"].attrs["sft_passes"], found["tiny sgd sft baseline"].sizes["seed"]
    (15.0, 2)
    """
    return _tables(world(tuple(seeds), size))


def _tables(base: World) -> dict[str, xr.Dataset]:
    out: dict[str, xr.Dataset] = {}
    before = said(base.models, base.data)
    seen = [kind for kind in base.data.texts if kind not in UNSEEN]
    long = SFT_UPDATES[-1]

    for name, recipe in RECIPES.items():

        def keep(run: Run, stage: str, arm: str, name: str = name, **attrs: Any) -> None:
            after = f" after {attrs['sft_updates']}" if "sft_updates" in attrs else ""
            told = {"experiment": EXPERIMENT, "model": name, **attrs}
            out[f"tiny {name} {stage} {arm}{after}"] = run.table(stage, arm, **told)

        begin, first = base.models, " ".join(kind for kind in FIRST if kind in seen)
        whole = _sft(begin, base.data, recipe, SFT_AT[name][-1], at=SFT_AT[name], kinds=seen)
        keep(_counted(whole, before), "sft", "baseline", own_answers=first, first_push=recipe.sft)
        push = recipe.dpo if recipe.optimizer.name == "rmsprop" else recipe.dpo * BETA / 2.0
        for updates in SFT_UPDATES:
            models = _sft(begin, base.data, recipe, updates, at=[], kinds=["chosen"]).models
            told: dict[str, Any] = {"sft_updates": updates, "sft_passes": float(updates)}
            keep(_dpo(models, base.data, recipe, DPO_AT[name]), "dpo", "baseline", **told, first_push=push)
        own = {"rejected": models.sample(base.language, base.data.prompts["chosen"], seed=OWN)}
        keep(_dpo(models, base.data.also(own), recipe, DPO_AT[name], leave=STALE), "dpo", "on-policy", **told)
        both = _extend(begin, base.data, recipe, long, at=(0, *SFT_UPDATES), kinds=["chosen", "rejected"])
        keep(both, "sft", "extend", own_answers="rejected")
        told = {"sft_updates": long, "sft_passes": long / 2.0}
        keep(_dpo(both.models, base.data, recipe, DPO_AT[name]), "dpo", "extend", **told)
    return out
