"""Policy gradients with a verifier, in trained networks: signs split, PPO's inner updates.

Tables of `toyld.tiny.experiments.policy`, designs `signs`, `noise`, `inner`, in which the units are seeds. What holds
for one softmax, exactly, is the chapter `policy`. A token lies in a valley where log π ≤ −H(π). What follows is about
models of which one answer in nine is right, unless said otherwise, under plain descent at the rates of that experiment:
.1 for answers pushed by ±1, .07 for GRPO's advantages, .05 for inner updates.
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

__all__ = ["NAME", "PAPER", "arms", "gained", "pair_claim", "policy_claim", "seen", "share_claim"]

Floats = NDArray[np.float64]
Premise = Callable[..., str | None]
NAME = "policy"
PAPER = "Ren & Sutherland 2025, App. A.3"

policy_claim = partial(run_claim, rungs=("tiny",), experiment=NAME)
share_claim = partial(policy_claim, unit="(share)")
pair_claim = partial(share_claim, takes="control")


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


@share_claim(
    "reinforcement.raises-trained",
    "GRPO raises the share of right answers to the prompts it practises on.",
    source="toyld; what the verifier is for",
    premises=arms("signs", "group"),
    expect="holds",
    why="8 iterations of 8 answers double it, from .12",
)
def raises_trained(ds: xr.Dataset) -> Effect:
    return ranked([gained(ds, "right")])


@share_claim(
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


@pair_claim(
    "reinforcement.positives-gain-more",
    "Where most answers are wrong, right ones pushed up raise the share of right answers by more than wrong ones "
    "pushed down, at equal iterations, answers and rate (8, 8, .1).",
    source=f"toyld, beside {NSR}",
    premises=arms("signs", "signed +", "signed −"),
    expect="open",
    why="by .07 [.04, .11], p = 4e-4, which Holm's correction over the rung does not pass; the expected gradients are "
    "equal, the noise is not: in four times as many steps of a quarter of the rate wrong ones gain .08 instead of .02, "
    "right ones .10; with four times as many answers a prompt (12 other seeds, 15 iterations) wrong ones .13 instead "
    "of .02, right ones .18 instead of .17",
)
def positives_gain_more(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "right") - gained(control, "right")])


@share_claim(
    "reinforcement.negatives-keep-pass",
    "Wrong answers alone, pushed down by 1 for 8 iterations at the rate .1, leave pass@16 on the practised prompts "
    "where it was or raise it.",
    source=f"{NSR}: NSR keeps pass@256 (96.9), with a base model that is right at 63 %",
    premises=arms("signs", "signed −"),
    expect="refuted",
    instead="reinforcement.small-steps-spare-pass",
    why="from .72 to .49, by the size of the step: where one answer in nine is right the wrong ones are the many and "
    "the noisy, and their gradient is four times as long; 8 iterations lose .08 [.02, .14] at half of the rate, none "
    "(.00 [−.04, .05]) at a quarter; with four times as many answers a prompt (12 other seeds, 15 iterations at .1, "
    "pass@32) .02 instead of .23",
)
def negatives_keep_pass(ds: xr.Dataset) -> Effect:
    return ranked([gained(ds, "pass")])


@pair_claim(
    "reinforcement.small-steps-spare-pass",
    "Wrong answers alone, pushed down by 1, lose less of pass@16 in 32 iterations at the rate .025, where a step is as "
    "long as one of right answers at .1, than in 8 iterations at .1.",
    source=f"toyld, beside {NSR}: an equal sum of rates and of expected steps, each from new answers, with less noise",
    premises=arms("signs", "signed −, small steps", "signed −"),
    expect="holds",
    why="they lose .04 [−.01, .09], not sure, instead of .24 [.17, .30], and gain .08 [.04, .12] right answers, nearly "
    "what right ones gain at .1 (.10); they see four times as many answers",
)
def small_steps_spare_pass(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    return ranked([gained(ds, "pass") - gained(control, "pass")])


@share_claim(
    "reinforcement.positives-lose-pass",
    "Right answers alone, pushed up by 1 for 8 iterations at the rate .1, lower pass@16 on the practised prompts.",
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
    "Wrong answers pushed down by 1 leave a higher entropy than right ones pushed up by 1, at equal iterations and "
    "rate (8, .1).",
    source=f"{NSR}, as published: rewards ±1, no baseline",
    premises=arms("signs", "signed −", "signed +"),
    expect="open",
    why="they leave .09 [−.00, .18] less, not sure, and gain a quarter as many right answers; in 32 small steps they "
    "leave .02 more and gain four fifths as many",
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


@share_claim(
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
