"""What DPO and SFT do to what a model says: facts lost, answers of other questions (S3), repetition, exact KL.

The tables are those of the experiment `alignment` of tiny transformers; see `toyld.claims.alignment` for the words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.alignment import BY_MODEL, GREEDY, HELD_OUT, SHARE, TABLE_1, TRAINED, changed, column, of
from toyld.claims.effects import Effect, peaked, ranked
from toyld.claims.runs import run_claim
from toyld.claims.tools import PAPER

__all__: list[str] = []

Floats = NDArray[np.float64]
S3 = f"{PAPER}, §4.1 (S3: facts of question B in the answer to question A)"
REPEATER = f"{PAPER}, §4.2 (the repeater)"


# --- what DPO does to answers -----------------------------------------------------------------------------------------


def _right(way: str, arm: str = "baseline") -> dict[str, Any]:
    return {"premises": of("dpo", f"right_{way}", arms=(arm,)), "source": TABLE_1, "unit": SHARE, **BY_MODEL}


@run_claim(
    "alignment.dpo-loses-facts",
    "DPO after plain SFT leaves fewer greedy answers to the trained prompts right than SFT alone.",
    **_right(GREEDY),
    expect="open",
    why="of all greedy answers .29 [.20, .37] and .56 [.46, .65] after the longer SFT of RMSprop and of plain "
    "descent, .21 [.13, .29] after the shorter one of plain descent; .21 [.09, .32] (p = .0014) after that of "
    "RMSprop, which is not sure among all trials of the rung; on 20 further seeds (5000 to 5019) .26, .48, .17 and .16",
)
def dpo_loses_facts(ds: xr.Dataset) -> Effect:
    """First less last."""
    return ranked([-changed(ds, f"right_{GREEDY}")])


@run_claim(
    "alignment.dpo-loses-held-out-facts",
    "DPO after plain SFT leaves fewer sampled answers to held-out prompts right than SFT alone.",
    **_right("heldout_sampled"),
    expect="open",
    why="from .02 right by .016 ± .008 with RMSprop, .011 ± .006 and .005 ± .010 with plain descent: most of what "
    "pretraining knew, of which little was there to lose",
)
def dpo_loses_held_out_facts(ds: xr.Dataset) -> Effect:
    """First less last."""
    return ranked([-changed(ds, "right_heldout_sampled")])


@run_claim(
    "alignment.dpo-first-repairs-extend",
    "After extended SFT, DPO first makes more greedy answers to the trained prompts right and then fewer.",
    **_right(GREEDY, "extend"),
    expect="open",
    why="by .16 [.06, .25] with RMSprop and .11 [.03, .19] of all answers with plain descent above both ends (p = .001 "
    "and .008); on 20 further seeds (5000 to 5019) .13 [.02, .23] and .06 [−.03, .15]; why they rise is not measured",
)
def dpo_first_repairs_extend(ds: xr.Dataset) -> Effect:
    """Height of the bell above the higher of its two ends."""
    return peaked([column(ds, f"right_{GREEDY}")])


# --- S3 in what is generated ------------------------------------------------------------------------------------------


def _lent(*ways: str) -> dict[str, Any]:
    names = [f"{what}_{way}" for what in ("borrowed", "unborrowed") for way in ways]
    return {"premises": of("sft", *names), "source": S3, "unit": SHARE, **BY_MODEL}


def _beyond(ds: xr.Dataset, *ways: str) -> Effect:
    """Rise of answers taught for other questions less that of as many untaught ones, greedy or sampled: the less."""
    return ranked([changed(ds, f"borrowed_{way}") - changed(ds, f"unborrowed_{way}") for way in ways])


@run_claim(
    "alignment.answers-of-other-questions",
    "After SFT, a trained prompt is answered wrongly with what was taught for another one more often, beyond what as "
    "many untaught answers of the same relations account for, greedy and sampled.",
    **_lent(*TRAINED),
    expect="open",
    why="+.047 and +.072 answers a generation, the lesser of greedy and sampled, with intervals that hold 0: a prompt "
    "that was taught its own answer seldom needs another's",
)
def answers_of_other_questions(ds: xr.Dataset) -> Effect:
    """Change over SFT, taught minus untaught."""
    return _beyond(ds, *TRAINED)


@run_claim(
    "alignment.untaught-questions-get-taught-answers",
    "After SFT, a held-out prompt is answered wrongly with what was taught for a trained one more often, beyond what "
    "as many untaught answers of the same relations account for, greedy and sampled.",
    **_lent(*HELD_OUT),
    expect="holds",
    why="sampled answers +.161 [.103, .229] with RMSprop, +.225 [.162, .298] with plain descent, greedy ones by more: "
    "half of them say what was taught for another question",
)
def untaught_questions_get_taught_answers(ds: xr.Dataset) -> Effect:
    """Change over SFT, taught minus untaught."""
    return _beyond(ds, *HELD_OUT)


# --- the repeater -----------------------------------------------------------------------------------------------------

ALL = ("baseline", "extend")


def _top(ds: xr.Dataset) -> Floats:
    """Mean of max π along the chosen contexts (evaluation, seed)."""
    return np.asarray(ds.top1.sel(probe="chosen").mean("example").transpose("step", "seed").values)


@run_claim(
    "alignment.dpo-repeats",
    "DPO makes greedy answers repeat themselves: of their bigrams, more have stood before in the same answer.",
    premises=of("dpo", *(f"repeats_{way}" for way in (TRAINED[0], HELD_OUT[0])), arms=ALL),
    source=REPEATER,
    expect="open",
    why="with plain descent by .06 [.03, .10] of all bigrams, with RMSprop by .01 ± .03; an answer of this language "
    "has six words, of which few can repeat",
    unit="of bigrams",
    **BY_MODEL,
)
def dpo_repeats(ds: xr.Dataset) -> Effect:
    """Last less first, mean of trained and held-out prompts."""
    return ranked([(changed(ds, f"repeats_{TRAINED[0]}") + changed(ds, f"repeats_{HELD_OUT[0]}")) / 2.0])


@run_claim(
    "alignment.repetition-follows-top1",
    "Along DPO, the more mass lies on the most probable token, the more greedy answers repeat themselves.",
    premises=of("dpo", f"repeats_{GREEDY}", arms=ALL),
    source=REPEATER,
    expect="open",
    why="rank correlation .57 [.32, .82] with plain descent after the shorter SFT; none is sure elsewhere, where the "
    "mass on the top hardly rises",
    unit="of rank correlation",
    **BY_MODEL,
)
def repetition_follows_top1(ds: xr.Dataset) -> Effect:
    """Spearman's correlation over the evaluations of a seed; one whose answers never repeat more or less has none."""
    from scipy.stats import rankdata

    repeats = np.asarray(ds[f"eval_repeats_{GREEDY}"].transpose("step", "seed").values)
    known = np.isfinite(repeats).all(1)
    a, b = (rankdata(x[known], axis=0) for x in (repeats, _top(ds)))
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return ranked([np.where(size > 0.0, (a * b).sum(0) / np.where(size > 0.0, size, 1.0), np.nan)])


@run_claim(
    "alignment.dpo-lowers-entropy-of-answers",
    "DPO lowers the entropy of π along what the model itself says to the trained prompts, greedily and sampled.",
    premises=of("dpo", *(f"entropy_{way}" for way in TRAINED), arms=ALL),
    source=REPEATER,
    expect="conditional",
    why="with plain descent by .46 nats a token after the shorter SFT and after extend; with RMSprop after the longer "
    "SFT it rises by .16 [.10, .21]: DPO spreads what SFT had made sure",
    unit="nats a token",
    **BY_MODEL,
)
def dpo_lowers_entropy_of_answers(ds: xr.Dataset) -> Effect:
    """The smaller of the two falls."""
    return ranked([-changed(ds, f"entropy_{way}") for way in TRAINED])


# --- distance from the language ---------------------------------------------------------------------------------------

TRUTH = "exact KL to a language that is known"
PLACES = ("trained", "heldout")


@run_claim(
    "alignment.sft-comes-nearer-first",
    "On the prompts trained on, SFT first brings π nearer to the language that knows all facts, then takes it away.",
    premises=of("sft", "kl_truth_trained"),
    source=TRUTH,
    expect="open",
    why="by .09 [.06, .19] nats in the first ten updates of RMSprop; with plain descent it goes away from the first "
    "two updates on, or nearly so",
    **BY_MODEL,
)
def sft_comes_nearer_first(ds: xr.Dataset) -> Effect:
    """Depth of the valley of KL(truth ‖ π) below the lower of its two ends."""
    return peaked([-column(ds, "kl_truth_trained")])


@run_claim(
    "alignment.sft-leaves-the-language",
    "SFT ends farther from the language than it began, from the one that knows all facts and from the one of "
    "pretraining, on trained and on held-out prompts.",
    premises=of("sft", *(f"kl_{knows}_{place}" for knows in ("truth", "source") for place in PLACES), arms=ALL),
    source=TRUTH,
    expect="holds",
    why="by 2.8 to 5.8 nats a response at least: one answer to a question is learnt by heart, with its style and its "
    "synonyms",
    **BY_MODEL,
)
def sft_leaves_the_language(ds: xr.Dataset) -> Effect:
    """The smallest of the four rises of KL."""
    return ranked([changed(ds, f"kl_{knows}_{place}") for knows in ("truth", "source") for place in PLACES])


@run_claim(
    "alignment.dpo-leaves-the-language",
    "DPO takes π farther from the language, from the one that knows all facts and from the one of pretraining, on "
    "trained and on held-out prompts.",
    premises=of("dpo", *(f"kl_{knows}_{place}" for knows in ("truth", "source") for place in PLACES), arms=ALL),
    source=TRUTH,
    expect="holds",
    why="by 5.7 to 14 nats a response at least, whichever optimiser and SFT",
    **BY_MODEL,
)
def dpo_leaves_the_language(ds: xr.Dataset) -> Effect:
    """The smallest of the four rises of KL."""
    return ranked([changed(ds, f"kl_{knows}_{place}") for knows in ("truth", "source") for place in PLACES])
