"""Policy gradients with a verifier, in trained networks: signs split, PPO's inner updates, displacement, whose answers.

Tables of `toyld.tiny.experiments.policy`: designs `signs`, `noise`, `inner`, `displacement`, `behaviour`, in which the
units are seeds. What holds for one softmax, exactly, is the chapter `policy`. A token lies in a valley where
log π ≤ −H(π). What follows is about models of which one answer in nine is right, unless said otherwise, under plain
descent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Effect, ranked
from toyld.claims.policy import NSR
from toyld.claims.runs import run_claim

__all__ = ["NAME", "arms", "gained", "seen"]

Floats = NDArray[np.float64]
Premise = Callable[..., str | None]
NAME = "policy"
NTHR = "Deng et al. 2025, NTHR (arXiv 2505.18830)"
PAPER = "Ren & Sutherland 2025, App. A.3"
SPIRAL = "Deng et al. 2025, LLD death spiral (arXiv 2512.04220)"

policy_claim = partial(run_claim, rungs=("tiny",), experiment=NAME)
_share_claim = partial(policy_claim, unit="(share)")
_pair_claim = partial(_share_claim, takes="control")


def arms(design: str, *names: str, **levels: float) -> Premise:
    """Premises of a claim about these arms of a design, one table each, in order; levels: attrs of all of them."""

    def reason(*tables: xr.Dataset) -> str | None:
        for ds, name in zip(tables, names, strict=True):
            if (ds.attrs.get("experiment"), ds.attrs.get("design"), ds.attrs["arm"]) != (NAME, design, name):
                return f"the claim is about {', '.join(names)} of the experiment {NAME}, design {design}"
            if any(not np.isclose(ds.attrs.get(key, np.nan), value) for key, value in levels.items()):
                return f"the claim is about {', '.join(f'{key} {value:g}' for key, value in levels.items())}"
        same = all(ds.seed.values.tolist() == tables[0].seed.values.tolist() for ds in tables)
        return None if same else "runs of other seeds"

    return reason


def seen(ds: xr.Dataset, name: str, k: int, /) -> Floats:
    """A column by seed, at its k-th evaluation with a value."""
    values = np.asarray(ds[f"eval_{name}"].transpose("step", "seed").values, float)
    return values[np.isfinite(values).any(1)][k]


def gained(ds: xr.Dataset, name: str, /) -> Floats:
    """Its change from the first to the last evaluation, by seed."""
    return seen(ds, name, -1) - seen(ds, name, 0)


@_share_claim(
    "reinforcement.raises-trained",
    "GRPO raises the share of right answers to the prompts it practises on.",
    source="toyld; what the verifier is for",
    premises=arms("signs", "group"),
    expect="holds",
    why="8 iterations of 8 answers double it, from .12",
)
def raises_trained(ds: xr.Dataset) -> Effect:
    return ranked([gained(ds, "right")])


@_share_claim(
    "reinforcement.raises-held-out",
    "GRPO raises the share of right answers to prompts that it never practised on.",
    source="toyld",
    premises=arms("signs", "group"),
    expect="open",
    why="by −.002 [−.008, .003], of .03; facts do not follow from each other here, so that form alone could help",
)
def raises_held_out(ds: xr.Dataset) -> Effect:
    return ranked([gained(ds, "right_new")])


@policy_claim(
    "reinforcement.signs-share-a-gradient",
    "Right answers pushed up and wrong ones pushed down give one direction, seen over 64 answers a prompt: their "
    "gradients have a cosine above 0.",
    source=f"{NSR}; policy.psr-equals-nsr in a network: E[∇log π] = 0 makes the expectations equal",
    premises=arms("noise", "signed +"),
    expect="holds",
    why="from 8 answers a prompt a fifth of that: the rest is sampling noise",
    unit="(cosine)",
)
def signs_share_a_gradient(ds: xr.Dataset) -> Effect:
    return ranked([seen(ds, "all", 0)])


@policy_claim(
    "reinforcement.negatives-are-noisier",
    "Where most answers are wrong, the gradient from wrong answers is the noisier one: those of two samples of 8 "
    "answers a prompt have a smaller cosine than those from right answers.",
    source="toyld: as E[∇log π] = 0, pushing down all but a few is one small difference of large noises",
    premises=arms("noise", "signed +", "signed −"),
    takes="control",
    expect="holds",
    why="the negatives' gradient is some four times as long and two of them hardly agree",
    unit="(cosine)",
)
def negatives_are_noisier(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """The cosine of the positives' gradients of two samples minus that of the negatives'."""
    return ranked([seen(ds, "draws", 0) - seen(control, "draws", 0)])


@_pair_claim(
    "reinforcement.positives-gain-more",
    "Where most answers are wrong, right ones pushed up raise the share of right answers by more than wrong ones "
    "pushed down, at equal iterations, answers and rate.",
    source=f"toyld, beside {NSR}",
    premises=arms("signs", "signed +", "signed −"),
    expect="open",
    why="by .07 [.04, .11], p = 4e-4, which Holm's correction over the rung does not pass; though the expected "
    "gradients are equal: with four times as many answers a prompt (12 other seeds, 15 "
    "iterations) wrong ones gain .13 instead of .02, right ones .18 instead of .17",
)
def positives_gain_more(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "right") - gained(control, "right")])


@_share_claim(
    "reinforcement.negatives-keep-pass",
    "Wrong answers alone, pushed down by 1, leave pass@16 on the practised prompts where it was or raise it.",
    source=f"{NSR}: NSR keeps pass@256 (96.9), with a base model that is right at 63 %",
    premises=arms("signs", "signed −"),
    expect="refuted",
    instead="reinforcement.negatives-are-noisier",
    why="from .72 to .49: where one answer in nine is right, the wrong ones are the many and the noisy; with four "
    "times as many answers a prompt (12 other seeds, 15 iterations, pass@32) it fell by .02 instead of .23",
)
def negatives_keep_pass(ds: xr.Dataset) -> Effect:
    return ranked([gained(ds, "pass")])


@_share_claim(
    "reinforcement.positives-lose-pass",
    "Right answers alone, pushed up by 1, lower pass@16 on the practised prompts.",
    source=f"{NSR}: PSR lowers pass@256 from 96.9 to 91.2",
    premises=arms("signs", "signed +"),
    expect="open",
    why="from .72 to .73 in 8 iterations: by −.007 [−.053, .038] less, not sure",
)
def positives_lose_pass(ds: xr.Dataset) -> Effect:
    return ranked([-gained(ds, "pass")])


_entropy_claim = partial(policy_claim, takes="control", unit="nats a token")


@_entropy_claim(
    "reinforcement.group-negatives-keep-entropy",
    "The negative half of GRPO leaves its models a higher entropy than the positive half, which has the same total "
    "weight.",
    source=f"{NSR}: NSR keeps entropy, here with GRPO's weights",
    premises=arms("signs", "group −", "group +"),
    expect="holds",
    why="by .13 nat, after equal iterations; it also gains far fewer right answers, and prompts without a right answer "
    "do not push it at all",
)
def group_negatives_keep_entropy(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "entropy") - gained(control, "entropy")])


@_entropy_claim(
    "reinforcement.signed-negatives-keep-entropy",
    "Wrong answers pushed down by 1 leave a higher entropy than right ones pushed up by 1, at equal iterations.",
    source=f"{NSR}, as published: rewards ±1, no baseline",
    premises=arms("signs", "signed −", "signed +"),
    expect="open",
    why="they leave .09 [−.00, .18] less, not sure, and gain a quarter as many right answers",
)
def signed_negatives_keep_entropy(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "entropy") - gained(control, "entropy")])


@policy_claim(
    "reinforcement.first-update-hits-valleys",
    "PPO's first inner update gives tokens of wrong answers that lie in a valley a larger residual ‖c(π − e_y)‖/|Â| "
    "than it gives those that do not.",
    source=f"{PAPER} on PPO (B2, F9), where PPO is said to spare them; policy.ppo-spares-valleys",
    premises=arms("inner", "ppo"),
    expect="holds",
    why="ρ = 1 for every token then, and ‖π − e_y‖ is above 1 where π_y is small",
    unit="(norm)",
)
def first_update_hits_valleys(ds: xr.Dataset) -> Effect:
    return ranked([seen(ds, "force_valley", 0) - seen(ds, "force_rest", 0)])


@_share_claim(
    "reinforcement.clip-stops-rare-tokens",
    "Within 6 inner updates the clip cuts off a larger share of the wrong answers' tokens in valleys than of their "
    "others.",
    source=f"{PAPER} on PPO (B2): what its ratio does protect",
    premises=arms("inner", "ppo"),
    expect="holds",
    why="a push moves log π_y by about its size times 1 − π_y: rare tokens fall faster and pass 1 − ε first",
)
def clip_stops_rare_tokens(ds: xr.Dataset) -> Effect:
    return ranked([seen(ds, "cut_valley", -1) - seen(ds, "cut_rest", -1)])


@policy_claim(
    "reinforcement.ppo-damps-inner-updates",
    "After 6 inner updates on one sample the wrong answers' tokens in valleys have fallen less under PPO than under "
    "the same pushes without ratio and clip.",
    source=f"{PAPER} on PPO (B2); policy.ppo-inner-epochs in a network",
    premises=arms("inner", "bare", "ppo"),
    takes="control",
    expect="holds",
    why="the first update is the same; then the push falls with ρ and stops below 1 − ε",
    unit="nats a token",
)
def ppo_damps_inner_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "fall_valley", -1) - seen(control, "fall_valley", -1)])


_DISPLACED = (
    "of the prompts with both kinds of answers, one update of GRPO lowers the right ones' mean log-probability at more "
    "than its positive half does from the same answers"
)


@_pair_claim(
    "reinforcement.displaces-the-taught",
    f"In models that answer nearly half of the questions right, {_DISPLACED}.",
    source=f"{NTHR}: lazy likelihood displacement, Def. 4.1 with ε = 0",
    premises=arms("displacement", "group", "group +", taught=80, rate=0.07),
    expect="holds",
    why="at half of them against one in nine; a good part of it is the size of the step",
)
def displaces_the_taught(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "fell", 0) - seen(control, "fell", 0)])


@_pair_claim(
    "reinforcement.displaces-the-untaught",
    f"In models that answer one question in nine right, at the same rate, {_DISPLACED}.",
    source=NTHR,
    premises=arms("displacement", "group", "group +", taught=40, rate=0.07),
    expect="open",
    why="at 4 against 3 in a hundred, not sure: rare right answers gain more than others take from them",
)
def displaces_the_untaught(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([seen(ds, "fell", 0) - seen(control, "fell", 0)])


@_share_claim(
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
    why="mean over models taught for as long or twice as long and two rates; over about 7 prompts a seed",
    unit="(rank correlation)",
)
def gwhes_ranks_prompts(*tables: xr.Dataset) -> Effect:
    """Mean over the settings, by seed."""
    return ranked([np.mean([seen(ds, "foretold", 0) for ds in _graded(tables)], 0)])


def _graded(tables: tuple[xr.Dataset, ...]) -> list[xr.Dataset]:
    return [ds for ds in tables if arms("displacement", "group")(ds) is None]


@_pair_claim(
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


@_pair_claim(
    "reinforcement.own-answers-squeeze-less",
    "At equal updates, fewer of the other tokens lose by a push on a model's own wrong answers than by one on those "
    "sampled at temperature 2.",
    source=f"{PAPER} on on-policy negatives (B3), T7: who gains and who loses breaks even in expectation on-policy",
    premises=arms("behaviour", "hot", "own"),
    expect="holds",
    why="in the first iteration, from the same models: half of them against nine in ten",
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
