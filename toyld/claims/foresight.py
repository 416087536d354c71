"""Which pairs will be displaced: what scores that know the world before DPO are worth, in held-out worlds (K3).

Tables of `toyld.contexts.experiments.foresight`, and of `toyld.tiny.experiments.foresight`, where whole networks train
and the same scores are read off their heads: for each seed, the rank correlation over the pairs of a score with the
fall of log π(y⁺) under the DPO that follows. Every score is oriented so that a positive correlation means that it
foretells the fall. Statements are about both targets, at equal margin and at the end, and both regimes, pairs trained
together and each alone; an effect is the smaller of the two targets'. Responses have 3 to 7 tokens; AUCs are in the
tables.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim

__all__ = ["ENDS", "better", "foretells", "needs_scores", "rank"]

RAZIN = "Razin et al. 2025 (2410.08847), §5"
ENDS = ("", "_end")
BOTH = ("contexts", "tiny")


def needs_scores(*scores: str, regime: str | None = None) -> Callable[[xr.Dataset], str | None]:
    """Premises: a table of scores with these, of this regime if one is named."""

    def reason(ds: xr.Dataset, /) -> str | None:
        if ds.attrs["stage"] != "scores":
            return f"a run of stage {ds.attrs['stage']}; the claim is about scores of pairs"
        if lacking := [one for one in scores if any(f"eval_rank{end}_{one}" not in ds for end in ENDS)]:
            return f"not scored: {', '.join(lacking)}"
        if regime is not None and ds.attrs.get("regime") != regime:
            return f"pairs trained {ds.attrs.get('regime', 'one does not know how')}; the claim is about {regime}"
        return None

    return reason


def rank(ds: xr.Dataset, score: str, end: str, /) -> np.ndarray:
    """Rank correlations (seed,) of a score with the fall at the margin (end "") or at the end ("_end")."""
    return np.asarray(ds[f"eval_rank{end}_{score}"].isel(step=0).values, float)


def better(ds: xr.Dataset, score: str, /, *others: str) -> Effect:
    """The least lead of a score over the others, at both targets."""
    return ranked([rank(ds, score, end) - rank(ds, other, end) for other in others for end in ENDS])


def foretells(ds: xr.Dataset, score: str, /) -> Effect:
    """The lesser rank correlation of a score, at both targets."""
    return ranked([rank(ds, score, end) for end in ENDS])


@run_claim(
    "foresight.one-step-beats-ches",
    "One update in closed form (K3) ranks pairs by displacement better than CHES does, plain or length-normalised.",
    source=f"K3 against {RAZIN}",
    premises=needs_scores("k3", "ches", "ches_normalised"),
    expect="holds",
    why="by .2 to .5 in rank correlation under each of three kernels, pairs together and alone",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: surely in the head (by .6) and, through all layers, by plain descent (.4 to .7); by "
            "RMSprop by .1 to .3, not sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def one_step_beats_ches(ds: xr.Dataset) -> Effect:
    """Rank correlation of K3's total minus that of the better form of CHES."""
    return better(ds, "k3", "ches", "ches_normalised")


@run_claim(
    "foresight.one-step-beats-edit-distance",
    "One update in closed form (K3) ranks pairs by displacement better than their edit distance does.",
    source=f"K3; {RAZIN}: edit distance foretold nothing",
    premises=needs_scores("k3", "overlap"),
    expect="open",
    why="by .2 to .5 in five of six designs; for pairs alone under the kernel with the largest common part by .11 "
    "[.02, .20], which is not sure, nor is it on 32 further seeds (5000 to 5031): .10 [.00, .21]",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: surely in the head (by .5) and, through all layers, by plain descent (.4 to .5); by "
            "RMSprop by .2 to .3, not sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def one_step_beats_edit_distance(ds: xr.Dataset) -> Effect:
    """Rank correlation of K3's total minus that of 1 − edit distance."""
    return better(ds, "k3", "overlap")


@run_claim(
    "foresight.one-step-beats-likelihoods",
    "One update in closed form (K3) ranks pairs by displacement better than any of the log-probabilities of y⁻ (per "
    "token), of y⁺ (per token) and their margin.",
    source="K3",
    premises=needs_scores("k3", "improbability", "margin", "ease"),
    expect="holds",
    why="by .4 to .5 under each of three kernels, pairs together and alone",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: surely in the head and of pairs together by plain descent (.6 to .8); of pairs alone "
            "by .3, by RMSprop by .1 to .5, not sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def one_step_beats_likelihoods(ds: xr.Dataset) -> Effect:
    """Rank correlation of K3's total minus that of the best of the three."""
    return better(ds, "k3", "improbability", "margin", "ease")


@run_claim(
    "foresight.other-pairs-matter",
    "Where pairs are trained together, K3's terms of the other pairs improve the ranking by the pair's own two terms.",
    source="K3; Yuan et al. 2024 (2410.13828), Condition 1, looks at the pair alone",
    premises=needs_scores("k3", "pair", regime="many"),
    expect="open",
    why="by .4 and .5 under kernels with a component that all pairs share; by .03 [−.02, .07] under one of prefixes, "
    "where pairs hardly meet (32 further seeds, 5000 to 5031: .08 [.03, .14])",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: surely in the head (by .6) and through all layers by plain descent (.4); by RMSprop "
            "by .1 to .2, not sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def other_pairs_matter(ds: xr.Dataset) -> Effect:
    """Rank correlation of the total minus that of own + rejected."""
    return better(ds, "k3", "pair")


@run_claim(
    "foresight.few-updates-beat-one",
    "Eight large updates, each a quarter larger than the last, rank pairs by displacement better than one update does.",
    source="K3, `toyld.contexts.predict.foresee`",
    premises=needs_scores("foreseen", "k3"),
    expect="holds",
    why=".98 to .996 against .6 to .9: one update does not see that the pull of y⁺ fades while the push on y⁻ goes on",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: by .2 to .3 in the head, whose run the eight updates are (.97); through all layers "
            "they add nothing, −.1 to +.05",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def few_updates_beat_one(ds: xr.Dataset) -> Effect:
    """Rank correlation of what is foreseen minus that of K3's total."""
    return better(ds, "foreseen", "k3")


@run_claim(
    "foresight.few-updates-beat-a-beginning",
    "Eight large updates over the whole run, each a quarter larger than the last, rank pairs by displacement better "
    "than the run's own first eight do.",
    source="`toyld.contexts.predict.foresee`",
    premises=needs_scores("foreseen", "begun"),
    expect="holds",
    why="by .05 to .11; borderline for pairs together under the kernel with the largest common part: .07 [.03, "
    ".11], p = 5e-4; on 32 further seeds (5000 to 5031) .04 [.00, .09], p = .05, not sure there, nor, with p = "
    ".001, for pairs alone under the middle one; sure in the other four, by .05 to .10",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: by .08 to .15 in the head; through all layers the run has seen what no head foresees: "
            "−.03 to −.2",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def few_updates_beat_a_beginning(ds: xr.Dataset) -> Effect:
    """Rank correlation of what is foreseen minus that of the change so far."""
    return better(ds, "foreseen", "begun")


@run_claim(
    "foresight.growing-updates-beat-even-ones",
    "Eight large updates over the whole run rank pairs by displacement better if each is a quarter larger than the "
    "last than if all are equal.",
    source="`toyld.contexts.predict.foresee`: the push fades as the margin grows",
    premises=needs_scores("foreseen", "even"),
    expect="open",
    why="borderline: by .01 to .03 in all six designs, sure in two of them (p = 4e-4; the others 8e-4 to 1e-3); on 32 "
    "further seeds (5000 to 5031) by .01 to .04, not sure for pairs together under the kernel with the largest common "
    "part (.02 [−.01, .06]). Equal ones do well: .84 to .95 at the margin, .95 to .99 at the end",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: by .06 at the margin in the head; through all layers between −.02 and +.03: nothing",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def growing_updates_beat_even_ones(ds: xr.Dataset) -> Effect:
    """Rank correlation of what growing updates foresee minus that of equal ones."""
    return better(ds, "foreseen", "even")


@run_claim(
    "foresight.first-update-is-too-hopeful",
    "More chosen responses fall, by equal margin and by the end, than the first update lowers.",
    source="K3 and Condition 1 of Yuan et al. 2024 (2410.13828) at the start of a run",
    premises=needs_scores("k3"),
    expect="holds",
    why="the first update lowers up to 1 % of the chosen responses of pairs alone, and 0, 10, 32 % of pairs together; "
    "at a margin of 20 nats 9 to 25 % and 12, 50, 91 % have fallen",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: surely of pairs together, 14 % against 50 to 80 %, in the head and through all "
            "layers; of pairs alone hardly any fall, 1 % against 3 to 14 %",
        )
    },
    experiment="foresight",
    unit="of the responses",
)
def first_update_is_too_hopeful(ds: xr.Dataset) -> Effect:
    """Share of pairs that fall minus the share that the first update lowers."""
    first = ds["eval_fell_first"].isel(step=0).values
    return ranked([ds[f"eval_fell{end}"].isel(step=0).values - first for end in ENDS])


@run_claim(
    "foresight.ches-foretells",
    "The higher the CHES score of a pair, the further its chosen response falls.",
    source=RAZIN,
    premises=needs_scores("ches"),
    expect="open",
    why="rank correlations of .27 to .56 for pairs alone, each sure; for pairs together .43, .16 and 0, the less the "
    "more all contexts share",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: 0 to .14 for pairs together, .36 to .41 alone, where it is sure by RMSprop",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def ches_foretells(ds: xr.Dataset) -> Effect:
    """Rank correlation of CHES."""
    return foretells(ds, "ches")


@run_claim(
    "foresight.normalised-ches-foretells",
    "The higher the length-normalised CHES score of a pair, the further its chosen response falls.",
    source=RAZIN,
    premises=needs_scores("ches_normalised"),
    expect="open",
    why="between −.2 and +.2, of either sign, none sure; the longer y⁺, the higher it is (rank correlation .2 to .7)",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: between 0 and .25, none sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def normalised_ches_foretells(ds: xr.Dataset) -> Effect:
    """Rank correlation of normalised CHES."""
    return foretells(ds, "ches_normalised")


@run_claim(
    "foresight.overlap-foretells",
    "The fewer edits lead from the chosen to the rejected response, the further the chosen one falls.",
    source="Pal et al. 2024 (2402.13228), §3: pairs at small edit distance",
    premises=needs_scores("overlap"),
    expect="open",
    why="rank correlations of .43 to .58 for pairs alone, each sure; for pairs together .39, .22 and .10 ± .13",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: .13 to .24 for pairs together, .29 to .36 alone, few of them sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def overlap_foretells(ds: xr.Dataset) -> Effect:
    """Rank correlation of 1 − edit distance."""
    return foretells(ds, "overlap")


@run_claim(
    "foresight.improbability-foretells",
    "The more improbable the rejected response is per token, the further the chosen one of its pair falls.",
    source="Ren & Sutherland 2025, §3.3 trend 3 and §4.2, read pair by pair (K8)",
    premises=needs_scores("improbability"),
    expect="open",
    why="between −.23 and +.06; for pairs alone it leans the other way (−.14, −.19, −.23), the last one sure",
    rungs=BOTH,
    elsewhere={
        "tiny": (
            "open",
            "20 seeds: between −.19 and 0, none sure",
        )
    },
    experiment="foresight",
    unit="(rank correlation)",
)
def improbability_foretells(ds: xr.Dataset) -> Effect:
    """Rank correlation of −log π(y⁻)/|y⁻|."""
    return foretells(ds, "improbability")
