"""Policy gradients with a verifier, in trained networks: right answers that an update displaces, whose answers it used.

Tables of `toyld.tiny.experiments.policy`, designs `displacement` and `behaviour`; see `toyld.claims.reinforcement`.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.reinforcement import PAPER, arms, gained, pair_claim, policy_claim, seen, share_claim

__all__: list[str] = []

NTHR = "Deng et al. 2025, NTHR (arXiv 2505.18830)"
SPIRAL = "Deng et al. 2025, LLD death spiral (arXiv 2512.04220)"
_DISPLACED = (
    "of the prompts with both kinds of answers, one update of GRPO lowers the right ones' mean log-probability at more "
    "than its positive half does from the same answers"
)


@pair_claim(
    "reinforcement.displaces-the-taught",
    f"In models that answer nearly half of the questions right, {_DISPLACED}.",
    source=f"{NTHR}: lazy likelihood displacement, Def. 4.1 with ε = 0",
    premises=arms("displacement", "group", "group +", taught=80, rate=0.07),
    expect="holds",
    why="at half of them against one in nine; a good part of it is the size of the step",
)
def displaces_the_taught(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "fell", 0) - seen(control, "fell", 0)])


@pair_claim(
    "reinforcement.displaces-the-untaught",
    f"In models that answer one question in nine right, at the same rate, {_DISPLACED}.",
    source=NTHR,
    premises=arms("displacement", "group", "group +", taught=40, rate=0.07),
    expect="open",
    why="at 4 against 3 in a hundred, not sure: rare right answers gain more than others take from them",
)
def displaces_the_untaught(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "fell", 0) - seen(control, "fell", 0)])


@share_claim(
    "reinforcement.displacement-is-large-steps",
    "Of the taught models' displacement a good part is the size of the step: at a rate of .02 the same update lowers "
    "right answers at fewer prompts than at .07.",
    source=f"toyld, beside {NTHR}, whose account is gradient flow",
    premises=lambda ds, control: (
        arms("displacement", "group", taught=80, rate=0.07)(ds)
        or arms("displacement", "group", taught=80, rate=0.02)(control)
    ),
    takes="control",
    expect="holds",
    why="at 29 instead of 51 in a hundred: first order does not tell the one from the other",
)
def displacement_is_large_steps(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "fell", 0) - seen(control, "fell", 0)])


@policy_claim(
    "reinforcement.gwhes-ranks-prompts",
    "GWHES, computed from hidden states and errors before the update, ranks prompts by how much GRPO's update then "
    "gives their right answers: mean rank correlation of −GWHES with the gain above 0.",
    source=f"{NTHR}, Thm 4.4, whose features are free; here every layer trains",
    premises=lambda *tables: None if len(_graded(tables)) > 1 else "the designs of displacement are not there",
    takes="all",
    expect="holds",
    why=".58 in models taught for 40 updates, .25 and .33 (rates .07 and .02, one sample of answers) in the same ones "
    "taught for 80: one mean for each of 19 seeds, over 5.9 and 7.7 prompts; much of it −log π of the right answers "
    "tells as well (.40, .22, .27)",
    unit="(rank correlation)",
)
def gwhes_ranks_prompts(*tables: xr.Dataset) -> Effect:
    """Mean over the three tables, by seed."""
    return ranked([np.mean([seen(ds, "foretold", 0) for ds in _graded(tables)], 0)])


@policy_claim(
    "reinforcement.gwhes-beats-surprise",
    "GWHES ranks prompts by how much GRPO's update gives their right answers better than −log π of these answers "
    "before the update does: the mean rank correlation with the gain is larger.",
    source=f"toyld, beside {NTHR}: what is improbable has most to gain, which needs no theory",
    premises=lambda *tables: None if len(_graded(tables)) > 1 else "the designs of displacement are not there",
    takes="all",
    expect="open",
    why="by .09 [−.07, .24], not sure: .18, .04 and .06 in the three tables, of which two share models and answers",
    unit="(rank correlation)",
)
def gwhes_beats_surprise(*tables: xr.Dataset) -> Effect:
    """Mean over the three tables, by seed."""
    return ranked([np.mean([seen(ds, "foretold", 0) - seen(ds, "surprise", 0) for ds in _graded(tables)], 0)])


def _graded(tables: tuple[xr.Dataset, ...]) -> list[xr.Dataset]:
    return [ds for ds in tables if arms("displacement", "group")(ds) is None]


@pair_claim(
    "reinforcement.own-answers-avoid-valleys",
    "Fewer tokens of the wrong answers that a model samples lie in valleys than of those that it samples at "
    "temperature 2.",
    source=f"{PAPER} on on-policy negatives (B3), T7",
    premises=arms("behaviour", "hot", "own"),
    expect="holds",
    why="at the start: three in ten against six in ten",
)
def own_answers_avoid_valleys(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "valley", 0) - seen(control, "valley", 0)])


@pair_claim(
    "reinforcement.own-answers-squeeze-less",
    "At equal updates, fewer of the other tokens lose by a push on a model's own wrong answers than by one on those "
    "sampled at temperature 2.",
    source=f"{PAPER} on on-policy negatives (B3), T7: who gains and who loses breaks even in expectation on-policy",
    premises=arms("behaviour", "hot", "own"),
    expect="holds",
    why="in the first iteration, from the same models: six in ten of them (.59) against nine in ten (.93)",
)
def own_answers_squeeze_less(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "losers", 0) - seen(control, "losers", 0)])


@policy_claim(
    "reinforcement.own-answers-spare-held-out",
    "After 6 iterations held-out right answers have lost less by negatives of the models' own than by those sampled at "
    "temperature 2.",
    source=f"{PAPER} on on-policy negatives (B3)",
    premises=arms("behaviour", "own", "hot"),
    takes="control",
    expect="holds",
    why="half a nat against nine and a half, at as many updates on as many answers, of which nine in ten and nearly "
    "all are wrong",
)
def own_answers_spare_held_out(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "logp_new") - gained(control, "logp_new")])


@policy_claim(
    "reinforcement.own-answers-spare-the-taught",
    "Negatives of the models' own do not lower the log-probability of the answers that the models were taught.",
    source="natural reading of B3: what is sampled on-policy is safe",
    premises=arms("behaviour", "own"),
    expect="open",
    why="they lose .76 nat a response [−.06, 1.59], not sure; on 20 other seeds .25 [.15, .34], while as many of the "
    "sampled answers were right as before",
)
def own_answers_spare_the_taught(ds: xr.Dataset) -> Effect:
    return ranked([gained(ds, "logp_chosen")])


@policy_claim(
    "reinforcement.frozen-answers-spiral",
    "When the wrong answers are those of the models as they were at the start, the residual ‖π − e_y‖ of what is "
    "pushed down grows from iteration to iteration, by more than on the models' own answers.",
    source=f"{SPIRAL}: falling likelihood, larger gradients; {PAPER}: off-policy negatives",
    premises=arms("behaviour", "frozen", "own"),
    takes="control",
    expect="open",
    why="by .15 [.08, .22], p = 4e-4, which Holm's correction over the rung does not pass; it does not grow on the "
    "models' own, and both start from the same answers",
    unit="(norm)",
)
def frozen_answers_spiral(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    grown = gained(ds, "gap")
    return ranked([grown, grown - gained(control, "gap")])


@policy_claim(
    "reinforcement.ratio-ends-the-spiral",
    "PPO's ratio to the frozen models that answered keeps the residual ‖π − e_y‖ of what is pushed down from growing "
    "as it does without.",
    source=f"{PAPER} on PPO (B2): the ratio is taken to whoever sampled",
    premises=arms("behaviour", "frozen", "frozen, ppo"),
    takes="control",
    expect="open",
    why="by .15 [.08, .22], p = 3e-4, which Holm's correction over the rung does not pass: a token below .8 of what "
    "it was is pushed no more, however often it is sampled",
    unit="(norm)",
)
def ratio_ends_the_spiral(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "gap") - gained(control, "gap")])
