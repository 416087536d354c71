"""Does SFT on both responses (extend) improve alignment? Win rates by length of DPO, judged by the language itself.

The tables are those of the experiment `alignment` of tiny transformers (columns `eval_*` by seed and evaluation). A win
is an answer that is right where the other is not (every concept true, well formed, ended), or one with the higher
log-probability under the language that knows all facts; ties count half. Extended SFT stands beside two controls:
plain SFT of as many *passes* over the chosen answers (half the updates; the paper's own comparison) and of as many
*updates* (twice the passes). Answers are greedy or sampled at temperature 1, to prompts trained on or held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.claims.tools import PAPER

__all__ = ["BY_MODEL", "GREEDY", "HELD_OUT", "SHARE", "TABLE_1", "TRAINED", "changed", "column", "of"]

Floats = NDArray[np.float64]
EXPERIMENT = "alignment"
RUNGS = ("tiny",)
EVEN = 0.5
SHARE = "of answers"
TABLE_1 = f"{PAPER}, §4.3, Table 1, with the language as the judge"
GREEDY = "trained_greedy"
TRAINED, HELD_OUT = (tuple(f"{place}_{how}" for how in ("greedy", "sampled")) for place in ("trained", "heldout"))
EXT = ("extend",)
MARGIN = "at_margin_"
BY_MODEL: Mapping[str, Any] = {"rungs": RUNGS, "experiment": EXPERIMENT}


def column(ds: xr.Dataset, name: str, /) -> Floats:
    """Values (evaluation, seed) of `eval_NAME`; evaluations at which no seed was measured are left out.

    >>> from toyld.trajectory import trajectory
    >>> ds = trajectory({"eval_right": [[0.1, float("nan"), 0.4]]}, step=[0, 1, 2], probe=["chosen"])
    >>> column(ds, "right").tolist()
    [[0.1], [0.4]]
    """
    values = np.asarray(ds[f"eval_{name}"].transpose("step", "seed").values, float)
    return values[np.isfinite(values).any(1)]


def of(stage: str, *names: str, arms: Sequence[str] = ("baseline",)) -> Callable[[xr.Dataset], str | None]:
    """Premises: a run of this stage and one of these arms, with these columns."""

    def reason(ds: xr.Dataset, /) -> str | None:
        if ds.attrs["stage"] != stage:
            return f"a run of stage {ds.attrs['stage']}; the claim is about {stage}"
        if ds.attrs["arm"] not in arms:
            return f"its arm is {ds.attrs['arm']}; the claim is about {', '.join(arms)}"
        lacking = [name for name in names if f"eval_{name}" not in ds]
        return f"not measured: {', '.join(lacking)}" if lacking else None

    return reason


def _beats(control: str, judge: str, way: str, *, at: str = "") -> str:
    return f"beats_{at}{control}_{judge}_{way}"


def _wins(control: str, *ways: str, judge: str = "right", at: str = "") -> dict[str, Any]:
    """Premises of a claim about win rates of extend, and what such claims have in common."""
    names = [_beats(control, judge, way, at=at) for way in ways]
    return {"premises": of("dpo", *names, arms=("extend",)), "source": TABLE_1, "unit": SHARE, **BY_MODEL}


def _lead(ds: xr.Dataset, control: str, way: str, *, judge: str = "right", at: str = "") -> Floats:
    """Win rate of extend less one half (evaluation, seed), at the evaluations that all seeds have."""
    path = column(ds, _beats(control, judge, way, at=at)) - EVEN
    return path[np.isfinite(path).all(1)]


def changed(ds: xr.Dataset, name: str, /) -> Floats:
    """Last less first evaluation of `eval_NAME` (seed,)."""
    path = column(ds, name)
    return np.asarray(path[-1] - path[0])


# --- win rates of extend ----------------------------------------------------------------------------------------------


@run_claim(
    "alignment.extend-loses-before-dpo",
    "Before any DPO, greedy answers to the trained prompts are right less often after extended SFT than after plain "
    "SFT of as many passes over the chosen answers.",
    **_wins("passes", GREEDY),
    expect="open",
    why="by .047 [.009, .085] of a win rate with RMSprop (p = .02), .081 [.043, .119] with plain descent (p = .0003), "
    "not sure among all trials of the rung; on 20 further seeds (5000 to 5019) by .016 [−.040, .071] and .037 [−.003, "
    ".078]",
)
def extend_loses_before_dpo(ds: xr.Dataset) -> Effect:
    """One half less the win rate at the first evaluation."""
    return ranked([-_lead(ds, "passes", GREEDY)[0]])


@run_claim(
    "alignment.short-dpo-favours-extend",
    "A short DPO raises the rate at which greedy answers to the trained prompts win after extended SFT over those "
    "after plain SFT of as many passes over the chosen answers.",
    **_wins("passes", GREEDY),
    expect="open",
    why="by .053 [−.013, .120] with RMSprop, .066 [.024, .108] with plain descent; on 20 further seeds (5000 to 5019) "
    ".056 [.015, .098] and .031 [−.006, .069], on the 20 on which the lengths were chosen .163 and .069",
)
def short_dpo_favours_extend(ds: xr.Dataset) -> Effect:
    """The win rate at the second evaluation less that before DPO."""
    lead = _lead(ds, "passes", GREEDY)
    return ranked([lead[1] - lead[0]])


@run_claim(
    "alignment.short-dpo-favours-extend-at-equal-updates",
    "A short DPO raises the rate at which answers to the trained prompts win after extended SFT over those after plain "
    "SFT of as many updates, greedy ones and sampled ones.",
    **_wins("updates", *TRAINED),
    expect="open",
    why="greedy and sampled by .032 [.018, .049] or more with plain descent, .011 [−.006, .021] with RMSprop; on 20 "
    "further seeds (5000 to 5019) .020 [.008, .034] and .014 [.006, .024]",
)
def short_dpo_favours_extend_at_equal_updates(ds: xr.Dataset) -> Effect:
    """The win rate at the second evaluation less that before DPO, greedy or sampled: the less."""
    leads = [_lead(ds, "updates", way) for way in TRAINED]
    return ranked([lead[1] - lead[0] for lead in leads])


@run_claim(
    "alignment.extend-wins-after-some-dpo",
    "After some length of DPO, greedy answers to the trained prompts are right more often after extended SFT than "
    "after plain SFT of as many passes over the chosen answers.",
    **_wins("passes", GREEDY),
    expect="open",
    why="the best of three lengths is .516 [.442, .574] with RMSprop, .513 [.465, .550] with plain descent; on 20 "
    "further seeds (5000 to 5019) .544 [.475, .604] and .525 [.495, .549], on the 20 on which the lengths were chosen "
    ".572 and .522",
)
def extend_wins_after_some_dpo(ds: xr.Dataset) -> Effect:
    """The largest of the win rates after some DPO, less one half."""
    later = list(_lead(ds, "passes", GREEDY)[1:])
    return ranked(later, len(later))


@run_claim(
    "alignment.extend-wins-at-equal-margin",
    "After some length of DPO, greedy answers to the trained prompts are right more often after extended SFT than "
    "after plain SFT of as many passes over the chosen answers and a DPO that has come to the same margin.",
    **_wins("passes", GREEDY, at=MARGIN),
    expect="open",
    why="the best is .523 [.464, .581] with RMSprop, .506 [.467, .539] with plain descent; on the 20 seeds on which "
    "the lengths were chosen .585 and .503",
)
def extend_wins_at_equal_margin(ds: xr.Dataset) -> Effect:
    """The largest of the win rates after some DPO, less one half, of the margins that the control of each seed has."""
    later = list(_lead(ds, "passes", GREEDY, at=MARGIN)[1:])
    return ranked(later, len(later))


@run_claim(
    "alignment.extend-wins-after-long-dpo",
    "After a long DPO, greedy answers to the trained prompts are right more often after extended SFT than after plain "
    "SFT of as many passes over the chosen answers.",
    **_wins("passes", GREEDY),
    expect="open",
    why=".516 [.457, .574] with RMSprop, .481 [.458, .505] with plain descent: not by much either way",
)
def extend_wins_after_long_dpo(ds: xr.Dataset) -> Effect:
    """The win rate at the last evaluation, less one half."""
    return ranked([_lead(ds, "passes", GREEDY)[-1]])


@run_claim(
    "alignment.extend-wins-at-equal-updates",
    "Answers to the trained prompts are right more often after extended SFT and DPO than after plain SFT of as many "
    "updates and DPO, greedy ones or sampled ones, on average over lengths of DPO.",
    **_wins("updates", *TRAINED),
    expect="refuted",
    why="sampled answers win .456 [.445, .466] with RMSprop and .451 [.438, .463] with plain descent, greedy ones "
    "less: twice the passes over chosen answers teach more than one pass over both",
    instead="alignment.longer-sft-wins",
)
def extend_wins_at_equal_updates(ds: xr.Dataset) -> Effect:
    """The mean win rate after some DPO, less one half, greedy or sampled: the larger."""
    return ranked([_lead(ds, "updates", way)[1:].mean(0) for way in TRAINED], len(TRAINED))


@run_claim(
    "alignment.longer-sft-wins",
    "Answers to the trained prompts are right more often after plain SFT of as many updates and DPO than after "
    "extended SFT and DPO, greedy ones and sampled ones, on average over lengths of DPO and over margins.",
    premises=of("dpo", *(_beats("updates", "right", way, at=at) for way in TRAINED for at in ("", MARGIN)), arms=EXT),
    source=TABLE_1,
    expect="holds",
    why="extend's win rate lies .044 [.034, .057] below one half or more with RMSprop, .049 [.037, .064] with plain "
    "descent, greedy or sampled, after as many updates of DPO or at its margin",
    unit=SHARE,
    **BY_MODEL,
)
def longer_sft_wins(ds: xr.Dataset) -> Effect:
    """One half less the mean win rate of extend after some DPO: the least of greedy or sampled, updates or margins."""
    return ranked([-_lead(ds, "updates", way, at=at)[1:].mean(0) for way in TRAINED for at in ("", MARGIN)])


@run_claim(
    "alignment.extend-knows-more-held-out-facts",
    "Sampled answers to held-out prompts are right more often after extended SFT and DPO than after plain SFT of as "
    "many passes over the chosen answers and DPO, on average over lengths of DPO.",
    **_wins("passes", "heldout_sampled"),
    expect="open",
    why="win rates of .500 [.498, .501] and .504 [.499, .509]: what neither was taught neither knows",
)
def extend_knows_more_held_out_facts(ds: xr.Dataset) -> Effect:
    """The mean win rate after some DPO, less one half."""
    return ranked([_lead(ds, "passes", "heldout_sampled")[1:].mean(0)])


@run_claim(
    "alignment.extend-is-likelier-under-the-truth",
    "Sampled answers to held-out prompts are likelier under the language that knows all facts after extended SFT and "
    "DPO than after plain SFT of as many passes over the chosen answers and DPO, on average over lengths of DPO.",
    **_wins("passes", "heldout_sampled", judge="likely"),
    expect="open",
    why=".522 [.473, .571] with RMSprop, .521 [.475, .566] with plain descent",
)
def extend_is_likelier_under_the_truth(ds: xr.Dataset) -> Effect:
    """The mean win rate after some DPO, less one half."""
    return ranked([_lead(ds, "passes", "heldout_sampled", judge="likely")[1:].mean(0)])
