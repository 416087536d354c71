"""What SFT does to each kind of response, run by run: S1 to S6 of Ren & Sutherland 2025, §4.1 and Figure 3.

Changes are of summed log-probabilities, in nats per response, from the first evaluation to the last. A plural ("the
similar responses") means each of those that the run measured.
"""

from __future__ import annotations

from itertools import pairwise

import xarray as xr

from toyld.claims.effects import Effect, Part, peaked, ranked
from toyld.claims.runs import run_claim
from toyld.claims.tables import (
    ARGMAX,
    MODELS,
    PLAIN,
    RUNGS,
    SHUFFLED,
    SIMILAR,
    STAGES,
    change,
    curves,
    first_reason,
    measured,
    needs,
    observed,
)
from toyld.claims.tools import PAPER

__all__: list[str] = []
_PLAIN = needs("sft", "chosen", arm=PLAIN)
_NO_RUN = "no released SFT log with values per example measured them: nothing at hand can test it"


@run_claim(
    "supervised.chosen-rises",
    "During SFT the mean log-probability of the chosen response rises from every evaluation to the next.",
    source=f"{PAPER}, §4.1, Fig. 3 (S1)",
    premises=needs("sft", "chosen", evaluations=3, arm=PLAIN),
    rungs=RUNGS,
    experiment=STAGES,
    expect="holds",
    why="for each of three kernels; the smallest rise, of the last ten updates, is .5 nats",
    elsewhere={
        "tiny": ("holds", "the smallest rise between evaluations is .9 nats with RMSprop, .6 with plain descent"),
        "published": (
            "holds",
            "in the one released SFT log with values per example all of 39 rises stand out of its jitter, but only "
            "just: "
            "the smallest is 0.5 nats, the jitter 0.11; with 0.12 it would be undecided",
        ),
    },
)
def chosen_rises(ds: xr.Dataset) -> Effect:
    """The smallest rise between two evaluations."""
    chosen = curves(ds, ["chosen"])["chosen"]
    return ranked([chosen.between(k, k + 1) for k in range(len(chosen) - 1)])


def _similar(ds: xr.Dataset) -> list[str]:
    """The similar responses measured but for the policy's own, which must fall in expectation whatever is taught.

    Attr `own_answers` names, by blanks, the probes that are known to be answers of the policy that SFT starts from.
    """
    own = str(ds.attrs.get("own_answers", "")).split()
    return [p for p in measured(ds, SIMILAR) if p not in own]


def _bell_testable(ds: xr.Dataset) -> str | None:
    plain = needs("sft", "chosen", some=SIMILAR, evaluations=3, arm=PLAIN)(ds)
    return plain or (None if _similar(ds) else "of similar responses only the policy's own answers were measured")


@run_claim(
    "supervised.similar-bell",
    "During SFT the responses similar to the chosen one (rephrases, the rejected one, the model's first answer) first "
    "rise and then fall.",
    source=f"{PAPER}, §4.1, Fig. 3 (S2)",
    premises=_bell_testable,
    rungs=RUNGS,
    experiment=STAGES,
    expect="refuted",
    why="for each of three kernels rejected responses and the model's first answer never rise, and the same in other "
    "words as chosen still rises where SFT ends",
    elsewhere={
        "tiny": (
            "open",
            "not testable on rejected ones, their rephrases and the first answer: these are the starting policy's own, "
            "which must fall whatever SFT teaches; the rephrases of chosen rise by .1 ± .25 nats before they fall",
        ),
        "published": ("open", _NO_RUN),
    },
    instead="supervised.closer-rises-more",
)
def similar_bell(ds: xr.Dataset) -> Effect:
    """Height of the flattest bell above the higher of its two ends, at the best inner evaluation."""
    return peaked(list(curves(ds, _similar(ds)).values()))


@run_claim(
    "supervised.other-answers-rise",
    "SFT raises, for one training prompt, the chosen response of another training prompt.",
    source=f"{PAPER}, §4.1, Fig. 3 (S3)",
    premises=needs("sft", "irr_train", arm=PLAIN),
    rungs=RUNGS,
    experiment=STAGES,
    expect="holds",
    why="+1.9 to +3.0 nats, the most with a large common part of the kernel",
    elsewhere={
        "tiny": (
            "open",
            "+2.1 ± .8 nats with RMSprop, +1.8 ± 1.0 under plain descent (p = .001; 1.5 ± .9 on 20 other seeds), where "
            "chosen has kept a quarter of its loss; the latter is past its height (2.4) and falls: .4 ± 1.3 at 9 %",
        ),
        "published": ("open", _NO_RUN),
    },
)
def other_answers_rise(ds: xr.Dataset) -> Effect:
    """Last minus first."""
    return ranked(change(ds, "irr_train"))


@run_claim(
    "supervised.other-answers-rise-early",
    "In the first half of SFT the chosen response of another training prompt rises.",
    source=f"{PAPER}, §4.1, Fig. 3 (S3), before SFT has taught all it can",
    premises=needs("sft", "irr_train", evaluations=3, arm=PLAIN),
    rungs=("tiny", "llm"),
    experiment=STAGES,
    expect="holds",
    why="+2.4 nats in 50 updates of RMSprop and in 25 of plain descent (+2.3 and +2.1 on 20 other seeds)",
)
def other_answers_rise_early(ds: xr.Dataset) -> Effect:
    """The last evaluation up to half of the updates minus the first."""
    curve = curves(ds, ["irr_train"])["irr_train"]
    half = int((ds.step.values <= ds.step.values[-1] / 2).sum()) - 1
    return ranked([curve.between(0, half)])


@run_claim(
    "supervised.untaught-rise-less",
    "SFT raises the chosen response of a test prompt, which was never taught, less than that of another training "
    "prompt, or lowers it.",
    source=f"{PAPER}, §4.1, Fig. 3 (S4)",
    premises=needs("sft", "irr_train", "irr_test", arm=PLAIN),
    rungs=RUNGS,
    experiment=STAGES,
    expect="holds",
    why="by 2.3 to 3.0 nats; they end where they began, within .5",
    elsewhere={
        "tiny": ("holds", "by 6.6 nats with RMSprop, by 8.9 with plain descent: untaught ones fall"),
        "published": ("open", _NO_RUN),
    },
)
def untaught_rise_less(ds: xr.Dataset) -> Effect:
    """The difference of the two changes, prompt by prompt."""
    taught, untaught = change(ds, "irr_train", "irr_test")
    return ranked([taught - untaught])


@run_claim(
    "supervised.shuffled-fall",
    "SFT lowers the responses with shuffled words.",
    source=f"{PAPER}, §4.1, Fig. 3 (S5); as a consequence of push-down alone see F11",
    premises=needs("sft", "chosen", some=SHUFFLED, arm=PLAIN),
    rungs=RUNGS,
    experiment=STAGES,
    expect="refuted",
    why="for each of three kernels the shuffled chosen response gains 2.8 to 3.7 nats: its words are the ones taught, "
    "and to go up they need not be in place",
    elsewhere={
        "tiny": (
            "open",
            "with RMSprop no: the shuffled chosen response has gained 2.0 nats; under plain descent it rises by .5 and "
            "has lost 2.0 ± 1.1 (p = 4e-4; 1.2 ± 1.0 on 20 other seeds) where chosen has kept a quarter of its loss",
        ),
        "published": ("open", _NO_RUN),
    },
    instead="supervised.taught-words-outlast",
)
def shuffled_fall(ds: xr.Dataset) -> Effect:
    """The smaller fall."""
    return ranked([-x for x in change(ds, *measured(ds, SHUFFLED))])


@run_claim(
    "supervised.argmax-rises-too",
    "Plain SFT, too, raises the argmax along the chosen contexts: a rising argmax alone is no sign of squeezing.",
    source="the authors' logs after their fix of argmax (F1b)",
    premises=needs("sft", "chosen", argmax=True, arm=PLAIN),
    rungs=RUNGS,
    experiment=STAGES,
    expect="holds",
    why="+2.7 to +4.3 nats, for each of three kernels",
    elsewhere={
        "tiny": ("holds", "+4.7 nats with RMSprop, +4.5 with plain descent"),
        "published": ("holds", "+17 nats in the one released SFT log with values per example"),
    },
)
def argmax_rises_too(ds: xr.Dataset) -> Effect:
    """Last minus first."""
    return ranked(change(ds, ARGMAX))


@run_claim(
    "supervised.extend-lifts-rejected",
    "SFT on chosen and rejected responses (extend) raises the rejected one.",
    source=f"{PAPER}, §4.3, Fig. 5 (D7, first half)",
    premises=needs("sft", "rejected", arm="extend"),
    rungs=RUNGS,
    experiment=STAGES,
    expect="holds",
    why="+1.9 to +3.3 nats in 20 updates",
    elsewhere={
        "tiny": ("holds", "+3.7 nats in 30 updates, with either optimiser"),
        "published": ("open", "no log at hand is of extended SFT"),
    },
)
def extend_lifts_rejected(ds: xr.Dataset) -> Effect:
    """Last minus first."""
    return ranked(change(ds, "rejected"))


def _directions(ds: xr.Dataset, *, shuffled: bool = True) -> list[Part]:
    """What S1 and S3-S5 (without `shuffled` S3, S4) say must be positive, by unit, for whatever this run measured."""
    known = measured(ds)
    parts = change(ds, "chosen")
    if "irr_train" in known:
        parts += change(ds, "irr_train")
    if {"irr_train", "irr_test"} <= set(known):
        taught, untaught = change(ds, "irr_train", "irr_test")
        parts.append(taught - untaught)
    return parts + [-x for p in measured(ds, SHUFFLED) for x in change(ds, p) if shuffled]


def _several_models(*runs: xr.Dataset) -> str | None:
    plain = needs("sft", "chosen", arm=PLAIN)
    reasons = {i: plain.contents(ds) for i, ds in enumerate(runs) if plain.labels(ds) is None}
    models = {str(runs[i].attrs.get("model", "unknown")) for i, why in reasons.items() if why is None} - {"unknown"}
    if len(models) < 2:
        return f"SFT runs of {len(models)} known model(s), at least 2 are needed"
    return first_reason(*reasons.values())


@run_claim(
    "supervised.trends-everywhere",
    "In every model trained by SFT the chosen response ends higher (S1), other training prompts' answers rise (S3), "
    "untaught ones rise less (S4), and shuffled ones fall (S5).",
    source=f"{PAPER}, §4.1 and App. D (S6)",
    premises=_several_models,
    rungs=RUNGS,
    experiment=STAGES,
    expect="refuted",
    why="the part on shuffled responses fails for every kernel",
    elsewhere={
        "tiny": ("refuted", "the part on shuffled responses fails under RMSprop"),
        "published": ("open", "the released SFT logs with values per example are of one model"),
    },
    takes="all",
    instead="supervised.answers-everywhere",
)
def trends_everywhere(*runs: xr.Dataset) -> Effect:
    """The weakest of all these changes in all SFT runs."""
    plain = needs("sft", "chosen", arm=PLAIN)
    return ranked([part for ds in runs if plain.labels(ds) is None for part in _directions(ds)])


@run_claim(
    "supervised.closer-rises-more",
    "SFT raises a response the more, the closer it is to the chosen one: chosen more than the same in other words, "
    "that "
    "more than another meaning in the same form.",
    source="what stands of §4.1, Fig. 3 (S2) in closed form",
    premises=needs("sft", "chosen", "chosen_gptsemantic", "chosen_gptformat", arm=PLAIN),
    rungs=MODELS,
    experiment=STAGES,
    expect="holds",
    why="by 3.4 nats at least; whatever the negatives, the prompts, the step size",
    elsewhere={
        "tiny": (
            "open",
            "chosen rises by 10 to 12 nats more than both, but the same in other words ends no higher than another "
            "meaning in the same form: −.6 ± 1.0 and .2 ± 1.4",
        )
    },
)
def closer_rises_more(ds: xr.Dataset) -> Effect:
    """The smaller of the two differences."""
    parts = change(ds, "chosen", "chosen_gptsemantic", "chosen_gptformat")
    return ranked([a - b for a, b in pairwise(parts)])


@run_claim(
    "supervised.chosen-rises-most",
    "SFT raises the chosen response by more than any other that is observed.",
    source="what stands of §4.1, Fig. 3 (S2) in tiny transformers",
    premises=lambda ds: (
        _PLAIN(ds)
        or (None if len(observed(ds)) >= 4 else f"{len(observed(ds))} response(s) measured, at least 4 needed")
    ),
    rungs=("tiny", "llm"),
    experiment=STAGES,
    expect="holds",
    why="by 6.2 nats with either optimiser, other prompts' taught answers or the shuffled chosen one coming next",
)
def chosen_rises_most(ds: xr.Dataset) -> Effect:
    """The smallest difference."""
    chosen, *rest = change(ds, "chosen", *(p for p in observed(ds) if p != "chosen"))
    return ranked([chosen - x for x in rest])


@run_claim(
    "supervised.form-twin-bell",
    "During SFT the response that has the form of the chosen one but another meaning first rises and then falls.",
    source="what stands of §4.1, Fig. 3 (S2) in closed form",
    premises=needs("sft", "chosen_gptformat", evaluations=3, arm=PLAIN),
    rungs=MODELS,
    experiment=STAGES,
    expect="holds",
    why="by .4 and .5 nats, with a large common part of the kernel by .1",
    elsewhere={
        "tiny": ("open", "it rises by .1 ± .2 nats at first, too little to be sure (on 20 other seeds by .3 ± .25)")
    },
)
def form_twin_bell(ds: xr.Dataset) -> Effect:
    """Height of the bell above the higher of its two ends, at the best inner evaluation."""
    return peaked(list(curves(ds, ["chosen_gptformat"]).values()))


@run_claim(
    "supervised.taught-words-outlast",
    "SFT raises the shuffled chosen response, whose words it teaches, by more than the shuffled answer to a test "
    "prompt, "
    "or lowers it by less.",
    source="what stands of §4.1, Fig. 3 (S5) in closed form",
    premises=needs("sft", "random_permute", "random_nonhum", arm=PLAIN),
    rungs=MODELS,
    experiment=STAGES,
    expect="holds",
    why="by 3.2 to 3.6 nats, for each of three kernels",
    elsewhere={
        "tiny": (
            "holds",
            "by 2.6 and 4.7 nats; with RMSprop on the edge of a verdict among all trials of the rung (p = 1e-4; 3.5, "
            "p = 8e-8, on 20 other seeds)",
        )
    },
)
def taught_words_outlast(ds: xr.Dataset) -> Effect:
    """The difference of the two changes."""
    taught, untaught = change(ds, "random_permute", "random_nonhum")
    return ranked([taught - untaught])


@run_claim(
    "supervised.answers-everywhere",
    "In every model trained by SFT the chosen response ends higher (S1), other training prompts' answers rise (S3), "
    "and "
    "untaught ones rise less (S4).",
    source="what stands of §4.1 and App. D (S6) in closed form",
    premises=_several_models,
    rungs=MODELS,
    experiment=STAGES,
    expect="holds",
    why="the weakest is the rise of other prompts' answers without a common part of the kernel, 1.9 nats",
    takes="all",
    elsewhere={
        "tiny": (
            "open",
            "the weakest is the rise of other prompts' answers under plain descent, 1.8 ± 1.0 nats (p = .001), on its "
            "way back",
        )
    },
)
def answers_everywhere(*runs: xr.Dataset) -> Effect:
    """The weakest of all these changes in all SFT runs."""
    plain = needs("sft", "chosen", arm=PLAIN)
    return ranked([part for ds in runs if plain.labels(ds) is None for part in _directions(ds, shuffled=False)])
