"""K8 in transformers: texts whose probability, contexts and words are set apart, per update and at equal margin.

About the designs *texts* and *sampled* of `toyld.tiny.experiments.similarity`: 2 × 2 × 2 rejected texts (likely or
rare; contexts near to other answers' or far; next tokens shared with them in like contexts or not) in eight settings
(SGD or RMSprop; head or all layers; without or with a feature common to all hidden states). Effects are main effects by
seed, upper level minus lower, in nats of the mean untrained answer. The texts are matched as well as texts can be, and
what is left of the other factors is taken out (`cleared`): with M[f, g] the mean effect of factor g on the measure of
factor f, effects e = Mᵀβ have slopes β = M⁻ᵀe, and a factor's own part is β_f M[f, f]. What a factor does at all is its
mean over the settings; the practitioner's answer stands with `similarity.shared-labels-displace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.claims.similarity import K8, NAME, change, differing

__all__ = ["LEVELS", "cleared", "contrasts", "moved", "settings", "text"]

Floats = NDArray[np.float64]
Read = Callable[[xr.Dataset], Floats]
Setting = tuple[str, str, float]
TEST = "test_chosen"
LEVELS = {"probability": ("likely", "rare"), "contexts": ("far", "near"), "labels": ("other", "shared")}
MEASURED = {"probability": "logp", "contexts": "test", "labels": "labels"}


def settings(tables: Sequence[xr.Dataset], /) -> dict[Setting, dict[tuple[str, ...], xr.Dataset]]:
    """(optimizer, layers, share) → cell → run of the design *texts*; settings that lack one of the 8 left out."""
    found: dict[Setting, dict[tuple[str, ...], xr.Dataset]] = {}
    for ds in tables:
        if ds.attrs.get("experiment") == NAME and ds.attrs.get("design") == "texts":
            where: Setting = (ds.attrs["optimizer"], ds.attrs["layers"], float(ds.attrs["anisotropy"]))
            found.setdefault(where, {})[tuple(ds.attrs[factor] for factor in LEVELS)] = ds
    return {where: runs for where, runs in sorted(found.items()) if len(runs) == 8}


def moved(ds: xr.Dataset, k: int = -1, probe: str = TEST, /) -> Floats:
    """Change of a probe's mean at the k-th evaluation, after equal updates, (seed,), in nats."""
    path = ds.logp.sel(probe=probe).mean("example").transpose("step", "seed").values
    return np.asarray(path[k] - path[0], float)


def text(measure: str, /) -> Read:
    """Reads what was measured of a cell's texts, (seed,)."""
    return lambda ds: np.asarray(ds[f"eval_text_{measure}"].transpose("step", "seed").values[0], float)


def contrasts(runs: Mapping[tuple[str, ...], xr.Dataset], read: Read, /) -> dict[str, Floats]:
    """Mean, main effects and two-way interactions ("probability x labels") of the cells of a setting, (seed,) each.

    A main effect is upper minus lower level; an interaction half of the difference that one makes to the other.
    """
    names, values = list(LEVELS), {cell: read(ds) for cell, ds in runs.items()}
    side = {cell: {f: 1.0 if cell[i] == LEVELS[f][1] else -1.0 for i, f in enumerate(names)} for cell in values}

    def against(*factors: str) -> Floats:
        return np.sum([np.prod([side[c][f] for f in factors]) * v for c, v in values.items()], 0) / 4.0

    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    out = {"mean": np.mean(list(values.values()), 0)} | {f: against(f) for f in names}
    return out | {f"{a} x {b}": against(a, b) for a, b in pairs}


def cleared(runs: Mapping[tuple[str, ...], xr.Dataset], read: Read, /) -> dict[str, Floats]:
    """Main effects (seed,) of a setting without what is left in the texts of the other factors."""
    told = [contrasts(runs, text(MEASURED[f])) for f in LEVELS]
    m = np.array([[np.nanmean(one[g]) for g in LEVELS] for one in told])
    raw = contrasts(runs, read)
    slopes = np.linalg.solve(m.T, np.stack([raw[f] for f in LEVELS]))
    return {f: slopes[i] * m[i, i] for i, f in enumerate(LEVELS)}


def _complete(*tables: xr.Dataset) -> str | None:
    """Premise: all eight settings are there."""
    return None if len(settings(tables)) == 8 else f"the eight settings of {NAME}, design texts, are not there"


def _each(tables: Sequence[xr.Dataset], factor: str, read: Read = change, **only: Any) -> list[Floats]:
    """The cleared effect of a factor in every setting (of an optimizer, of layers)."""
    names = ("optimizer", "layers", "anisotropy")
    return [
        cleared(runs, read)[factor]
        for where, runs in settings(tables).items()
        if all(dict(zip(names, where, strict=True))[name] == value for name, value in only.items())
    ]


def _over(tables: Sequence[xr.Dataset], factor: str, read: Read = change) -> Floats:
    """Its mean over the settings, (seed,)."""
    return np.mean(_each(tables, factor, read), 0)


def _at_margin_of(probe: str, ds: xr.Dataset) -> Floats:
    return change(ds, probe)


_claim = partial(run_claim, rungs=("tiny",), experiment=NAME, source=K8)
_all_claim = partial(_claim, premises=_complete, takes="all")


@_all_claim(
    "similarity.texts-set-apart",
    "Among rejected texts chosen for it, log π, nearness of contexts and shared next tokens each differ between their "
    "own two levels more than twice as much as between those of another factor.",
    expect="holds",
    why="log π a token differs by 1.74 [1.65, 1.83] nats between likely (−2.4) and rare (−4.1), by .44 between the "
    "levels of labels and .19 between those of contexts; cosines to test contexts by .07 of .13; shared next tokens by "
    ".017 of .037, by .002 between likely and rare, which go together in texts as they come",
    unit="of its own difference",
)
def texts_set_apart(*tables: xr.Dataset) -> Effect:
    """Half of a measure's own difference less what another factor makes, either way, over the own difference."""
    runs, parts = next(iter(settings(tables).values())), []
    for f in LEVELS:
        told = contrasts(runs, text(MEASURED[f]))
        own = np.nanmean(told[f])
        parts += [told[f] / own / 2.0 - sign * told[g] / own for g in LEVELS if g != f for sign in (1.0, -1.0)]
    return ranked(parts)


@_all_claim(
    "similarity.shared-labels-displace",
    "Of rejected texts equally probable and with contexts as near, those that share more next tokens with untrained "
    "answers in like contexts lower these more at equal margin, over all settings.",
    expect="holds",
    why="by 1.30 [1.03, 1.56] nats of a mean fall of 2.1: similarity of what is said where, not of contexts, not "
    "improbability, decides whom a rejected text harms. A practitioner with a choice of rejected texts at equal "
    "preference learnt should take those that say least of what must stay, likely or not. It would be the other way "
    "round if training ended with its first update (similarity.rare-first-push), if the push on y⁻ did not fade with "
    "the margin, or if likely tokens had π near 1, where 1 − π, and with it their push, goes to 0",
)
def shared_labels_displace(*tables: xr.Dataset) -> Effect:
    """Minus the effect of shared next tokens, mean over the settings."""
    return ranked([-_over(tables, "labels")])


@_all_claim(
    "similarity.shared-labels-displace-everywhere",
    "Shared next tokens lower untrained answers more at equal margin in each setting: SGD or RMSprop, in the head or "
    "in all layers, without or with a feature common to all hidden states.",
    expect="holds",
    why="least with all layers under RMSprop, .79 [.47, 1.11] nats, most in the head under SGD with the common "
    "feature, 1.96 [1.54, 2.38]",
)
def shared_labels_displace_everywhere(*tables: xr.Dataset) -> Effect:
    """Minus the effect of shared next tokens, in the setting where it is least."""
    return ranked([-x for x in _each(tables, "labels")])


@_all_claim(
    "similarity.shared-labels-displace-per-update",
    "Of rejected texts equally probable and with contexts as near, those that share more next tokens with untrained "
    "answers in like contexts lower these more after equally many updates at one learning rate, over all settings.",
    expect="holds",
    why="by 2.69 [1.82, 3.56] nats of 6.6 after eight updates, and by .46 [.32, .60] after the first",
)
def shared_labels_displace_per_update(*tables: xr.Dataset) -> Effect:
    """Minus the effect of shared next tokens after the last update, mean over the settings."""
    return ranked([-_over(tables, "labels", moved)])


@_all_claim(
    "similarity.rare-texts-displace",
    "Of rejected texts alike in contexts and next tokens, rare ones (a token in 60) lower untrained answers more at "
    "equal margin than likely ones (one in 11), over all settings.",
    expect="open",
    why="they lower them less by .14 [−.09, .36] nats, which is not sure; a factor of five in probability a token "
    "changes less than a third of what shared next tokens do. Without taking out that likely texts share more of "
    "these, rare ones seem to spare by .2 to .6",
)
def rare_texts_displace(*tables: xr.Dataset) -> Effect:
    """Minus the effect of improbability, mean over the settings."""
    return ranked([-_over(tables, "probability")])


@_all_claim(
    "similarity.rare-texts-displace-per-update",
    "Of rejected texts alike in contexts and next tokens, rare ones (a token in 60) lower untrained answers more after "
    "equally many updates at one learning rate than likely ones (one in 11), over all settings.",
    expect="open",
    why="−.20 [−.80, .41] nats after eight updates; signs differ: they spare by 1.4 with all layers under RMSprop and "
    "cost .9 in the head under SGD without a common feature",
)
def rare_texts_displace_per_update(*tables: xr.Dataset) -> Effect:
    """Minus the effect of improbability after the last update, mean over the settings."""
    return ranked([-_over(tables, "probability", moved)])


@_all_claim(
    "similarity.rare-first-push",
    "The first update of the head alone, at one learning rate, lowers untrained answers more if the rejected texts are "
    "rare (a token in 60) than if they are likely (one in 11), under either optimiser.",
    expect="holds",
    why="by .13 [.08, .18] to .50 [.35, .65] nats of .3 to 1.6, p = 1e-4 in the least of the four: what remains of the "
    "story that improbable answers do the harm, ‖e − π‖ being larger; it is gone by the time a margin is learnt",
)
def rare_first_push(*tables: xr.Dataset) -> Effect:
    """Minus the effect of improbability after one update, in the setting of the head where it is least."""
    return ranked([-x for x in _each(tables, "probability", lambda ds: moved(ds, 1), layers="head")])


@_all_claim(
    "similarity.rare-texts-spare-chosen",
    "At equal margin, chosen answers and their rephrases end higher if the rejected texts are rare (a token in 60) "
    "than if they are likely (one in 11), over all settings.",
    expect="holds",
    why="by .42 [.33, .51] and .96 [.68, 1.24] nats; what texts share of next tokens with these two was not set apart",
)
def rare_texts_spare_chosen(*tables: xr.Dataset) -> Effect:
    """Effect of improbability on chosen, and on what says the same in other words, mean over the settings."""
    kinds = ("chosen", "chosen_gptsemantic")
    return ranked([_over(tables, "probability", partial(_at_margin_of, kind)) for kind in kinds])


@_all_claim(
    "similarity.near-contexts-displace",
    "Of rejected texts equally probable and alike in next tokens, those whose contexts are near to other answers' "
    "(mean cosine of hidden states) lower untrained ones more at equal margin, over all settings.",
    expect="open",
    why=".03 [−.27, .34] nats for cosines of .16 against .09: nearness alone does nothing that can be seen. It takes "
    "next tokens in common: the push on y⁻'s label moves another answer's by S times ⟨e − π, e' − π'⟩, which is near 0 "
    "where labels and beliefs differ. Uncoupling y⁻ altogether does very much (similarity.coupling-displaces)",
)
def near_contexts_displace(*tables: xr.Dataset) -> Effect:
    """Minus the effect of near contexts, mean over the settings."""
    return ranked([-_over(tables, "contexts")])


@_all_claim(
    "similarity.near-contexts-displace-under-descent",
    "Of rejected texts equally probable and alike in next tokens, those with contexts near to other answers' lower "
    "untrained ones more after equally many updates of SGD at one learning rate.",
    expect="open",
    why="by 1.8 [.4, 3.1] nats, p = .02, on other seeds by 1.1 [.3, 1.9]; their margins grow faster, too",
)
def near_contexts_displace_under_descent(*tables: xr.Dataset) -> Effect:
    """Minus the effect of near contexts after the last update, mean over the settings of SGD."""
    return ranked([-np.mean(_each(tables, "contexts", moved, optimizer="sgd"), 0)])


@_all_claim(
    "similarity.labels-outweigh-probability",
    "What a rejected text shares of next tokens changes the fall of untrained answers at equal margin more than its "
    "probability does, in whichever direction, over all settings.",
    expect="holds",
    why="1.30 against .14 nats; more than twice as much is likely, not sure (p = .002)",
)
def labels_outweigh_probability(*tables: xr.Dataset) -> Effect:
    """Fall by shared next tokens minus the effect of improbability, and plus it, mean over the settings."""
    labels, rare = -_over(tables, "labels"), _over(tables, "probability")
    return ranked([labels - rare, labels + rare])


@_all_claim(
    "similarity.labels-outweigh-nearness",
    "What a rejected text shares of next tokens changes the fall of untrained answers at equal margin more than the "
    "nearness of its contexts does, in whichever direction, over all settings.",
    expect="holds",
    why="1.30 against .03 nats; more than twice as much is likely, not sure (p = 1e-3)",
)
def labels_outweigh_nearness(*tables: xr.Dataset) -> Effect:
    """Fall by shared next tokens minus the effect of nearness, and plus it, mean over the settings."""
    labels, near = -_over(tables, "labels"), _over(tables, "contexts")
    return ranked([labels - near, labels + near])


def _more(tables: Sequence[xr.Dataset], place: int, low: str | float, high: str | float) -> Floats:
    """Effect of shared next tokens at a setting's level `low` minus that at `high`, mean over all others, (seed,)."""
    found = {where: cleared(runs, change)["labels"] for where, runs in settings(tables).items()}
    parts = [[x for where, x in found.items() if where[place] == level] for level in (low, high)]
    return np.asarray(np.mean(parts[0], 0) - np.mean(parts[1], 0), float)


@_all_claim(
    "similarity.common-amplifies-shared-labels",
    "A feature common to all hidden states makes shared next tokens cost untrained answers more at equal margin, over "
    "optimisers and what trains.",
    expect="holds",
    why="by .35 [.24, .45] nats of 1.3, on 20 other seeds by .25 [.16, .34]; .5 to .6 under SGD, .06 to .2 under "
    "RMSprop, where it hardly changes anything",
)
def common_amplifies_shared_labels(*tables: xr.Dataset) -> Effect:
    """Effect of shared next tokens without the feature minus with half of the mean square common."""
    return ranked([_more(tables, 2, 0.0, 0.5)])


@_all_claim(
    "similarity.head-feels-shared-labels-more",
    "Shared next tokens cost untrained answers more at equal margin where the head alone trains than in all layers, "
    "over optimisers and common features.",
    expect="holds",
    why="by .55 [.30, .80] nats, on 20 other seeds by .41 [.06, .75]",
)
def head_feels_shared_labels_more(*tables: xr.Dataset) -> Effect:
    """Effect of shared next tokens with all layers minus with the head alone."""
    return ranked([_more(tables, 1, "all", "head")])


@_all_claim(
    "similarity.descent-feels-shared-labels-more",
    "Shared next tokens cost untrained answers more at equal margin under SGD than under RMSprop, over what trains and "
    "common features.",
    expect="open",
    why="by .28 [.02, .54] nats, on 20 other seeds by .10 [−.14, .34]",
)
def descent_feels_shared_labels_more(*tables: xr.Dataset) -> Effect:
    """Effect of shared next tokens under RMSprop minus under SGD."""
    return ranked([_more(tables, 0, "rmsprop", "sgd")])


@_all_claim(
    "similarity.depth-spares",
    "Trained in all layers, a model lowers untrained answers less at equal margin than trained in the head alone, "
    "under either optimiser, with a common feature or without.",
    expect="holds",
    why="by .78 [.61, .96] to 1.1 nats of 2.0 to 3.4, mean over all rejected texts",
)
def depth_spares(*tables: xr.Dataset) -> Effect:
    """Mean change over the cells with all layers minus with the head alone, where that is least."""
    found = {where: contrasts(runs, change)["mean"] for where, runs in settings(tables).items()}
    return ranked([x - found[(where[0], "head", where[2])] for where, x in found.items() if where[1] == "all"])


@_all_claim(
    "similarity.normalising-spares",
    "Under RMSprop untrained answers fall less at equal margin than under SGD, in the head and in all layers, with a "
    "common feature or without.",
    expect="holds",
    why="by .47 [.30, .65] to 1.15 nats of 1.7 to 3.4; a common feature, which costs .6 to .8 more under SGD, costs "
    ".04 to .2 under RMSprop, which divides the size of its gradient out",
)
def normalising_spares(*tables: xr.Dataset) -> Effect:
    """Mean change over the cells under RMSprop minus under SGD, where that is least."""
    found = {where: contrasts(runs, change)["mean"] for where, runs in settings(tables).items()}
    return ranked([x - found[("sgd", *where[1:])] for where, x in found.items() if where[0] == "rmsprop"])


_OWN, _RANDOM, _OTHER, _ORDER = (
    {"text": name} for name in ("temperature 1", "temperature 16", "another answer", "permutation")
)


def _practice(mine: Mapping[str, Any], other: Mapping[str, Any]) -> Callable[..., str | None]:
    """Premises: two runs of a setting without a common feature that differ in what is rejected."""
    return differing("sampled", mine, other, language="tiny", anisotropy=0.0)


@_claim(
    "similarity.own-answers-displace",
    "At equal margin, a model's own answers as rejected ones lower untrained answers more than nearly random text "
    "does, in the head under SGD as in all layers under RMSprop.",
    premises=_practice(_OWN, _RANDOM),
    expect="open",
    why="by 2.8 [2.1, 3.5] nats and 2.2 [1.1, 3.2] (p = 3e-4), 3 and 8 times as much; on 20 other seeds 2.3 and 1.6 "
    "(p = 5e-5): what is said most is what other answers say",
    takes="control",
)
def own_answers_displace(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Fall with the model's own answers minus fall with random text."""
    return ranked([change(control) - change(ds)])


@_claim(
    "similarity.another-answer-displaces",
    "At equal margin, the right answer to another prompt as rejected one, well-formed but not the model's own, lowers "
    "untrained answers more than y⁺ in another order does.",
    premises=_practice(_OTHER, _ORDER),
    expect="open",
    why="by 1.9 [1.4, 2.5] nats with all layers under RMSprop (2.2 against .3: as much as the model's own answers do); "
    "in the head under SGD by .81 [.29, 1.33], p = .004, on 20 other seeds .93 [.56, 1.30]",
    takes="control",
)
def another_answer_displaces(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Fall with another answer minus fall with the permutation."""
    return ranked([change(control) - change(ds)])
