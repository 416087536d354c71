"""Centred updates and the other remedies in transformers at equal margin, and what makes GA and NPO differ there.

The tables are those of rung `tiny`, experiment `remedies`: the head alone trains (`hidden`; `common` with a constant
feature) or every layer does (`layers`). Changes in nats a response since the start of the stage, at margins of 5 and 10
nats where nine seeds of ten get there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from toyld.claims.centring import ENOUGH, EXPERIMENT, K6, leads, mine, pair, reached, updates_to
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.contexts.experiments.remedies import HALFWAY
from toyld.trajectory.matched import at_margin, margin

__all__: list[str] = []

Array = Any
RUNG, MARGINS, UNTRAINED = "tiny", (5.0, 10.0), "test_chosen"
SPARED = ("chosen", UNTRAINED)
OWN = ("hidden", "layers")  # kernels: the network's own
TAKEN_OFF = ("centred", "projected")


def _only(*arms: str) -> Callable[[xr.Dataset], str | None]:
    return lambda ds: mine(ds) or (None if ds.attrs["arm"] in arms else "the claim is about other arms")


def _level(ds: xr.Dataset, m: float, probe: str) -> Array:
    """log π of a probe, not its change, at a margin (seed,)."""
    start = ds.logp.sel(probe=probe).isel(step=0).mean("example").values
    return start + at_margin(ds, m, probe)


# --- centred updates --------------------------------------------------------------------------------------------------


@run_claim(
    "remedy.spares-chosen-in-head",
    "In a transformer whose head alone trains, updates with the mean hidden state subtracted or projected out leave "
    "the chosen answer higher at equal margin than plain ones.",
    source=K6,
    premises=pair(TAKEN_OFF, ["plain"], ["hidden"]),
    expect="open",
    why="by .07 to .15 nats at 5 and twice that at 10 nats, in each of four arms by its interval; p from 6e-6 to "
    "5e-4, not all enough for Holm's correction over the rung",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def spares_chosen_in_head(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of the chosen answer, centred minus plain."""
    return ranked(leads(ds, control, "chosen", margins=MARGINS))


@run_claim(
    "remedy.spares-untrained-in-head",
    "In a transformer whose head alone trains, updates with the mean hidden state subtracted or projected out leave "
    "an untrained answer higher at equal margin than plain ones.",
    source=K6,
    premises=pair(TAKEN_OFF, ["plain"], ["hidden"]),
    expect="open",
    why="by .08 [−.01, .19] and .13 [.01, .27] nats under plain descent, under RMSprop by −.01 [−.08, .06] and .03 "
    "[−.08, .11]: the mean is a seventh of the states' square",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def spares_untrained_in_head(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of an untrained answer, centred minus plain."""
    return ranked(leads(ds, control, UNTRAINED, margins=MARGINS))


@run_claim(
    "remedy.spares-chosen-in-all-layers",
    "Where all layers of a transformer train, updates with the mean input of every linear layer subtracted or "
    "projected out leave the chosen answer higher at equal margin than plain ones.",
    source=f"{K6}, layer by layer",
    premises=pair(TAKEN_OFF, ["plain"], ["layers"]),
    expect="open",
    why="by .10 [.07, .13] (subtracted) and .13 [.08, .18] nats (projected) under plain descent, by .06 [.04, .08] "
    "and .08 [.04, .12] under RMSprop, at 5 nats, more at 10; the latter do not survive Holm's correction over "
    "the rung",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def spares_chosen_in_all_layers(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of the chosen answer, centred minus plain."""
    return ranked(leads(ds, control, "chosen", margins=MARGINS))


@run_claim(
    "remedy.spares-untrained-in-all-layers",
    "Where all layers of a transformer train, updates with the mean input of every linear layer subtracted or "
    "projected out leave an untrained answer higher at equal margin than plain ones.",
    source=f"{K6}, layer by layer",
    premises=pair(TAKEN_OFF, ["plain"], ["layers"]),
    expect="open",
    why="by .06 to .13 nats of 1.5 at a margin of 5, each interval above 0, none by enough for Holm's correction",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def spares_untrained_in_all_layers(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of an untrained answer, centred minus plain."""
    return ranked(leads(ds, control, UNTRAINED, margins=MARGINS))


@run_claim(
    "remedy.spares-more-than-a-random-direction",
    "Where all layers train, taking the mean input off or out leaves chosen and untrained answers higher at equal "
    "margin than taking out a random direction.",
    source=f"{K6}, control",
    premises=pair(TAKEN_OFF, ["random-projected"], ["layers"]),
    expect="open",
    why="by .05 to .11 nats, as against plain updates, which a random direction does not change; not sure enough for "
    "Holm's correction",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def spares_more_than_random(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, centred minus control."""
    return ranked(leads(ds, control, *SPARED, margins=MARGINS))


@run_claim(
    "remedy.head-is-not-enough",
    "Where all layers train, centring every layer leaves an untrained answer higher at equal margin than centring the "
    "head alone.",
    source=f"{K6}, control",
    premises=pair(["centred"], ["centred-head"], ["layers"]),
    expect="open",
    why="by .06 nats [−.03, .11]",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def head_is_not_enough(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, every layer minus the head alone."""
    return ranked(leads(ds, control, UNTRAINED, margins=MARGINS))


PART = 0.2


@run_claim(
    "remedy.little-to-undo",
    "In a transformer with no constant feature added, taking the mean input off or out undoes less than a fifth of the "
    "fall of untrained answers at equal margin.",
    source=f"{K6}: what a common component causes is undone, and nothing else",
    premises=pair(TAKEN_OFF, ["plain"], OWN),
    expect="holds",
    why="it undoes 0 to 7 % of the fall; where a constant feature that is half of the square is added, centring "
    "undoes what that causes (centring.undoes-a-constant)",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def little_to_undo(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """A fifth of the plain fall minus what centring gains."""
    there = reached(ds, control, margins=MARGINS)
    fall = [-at_margin(control, m, UNTRAINED) for m in there]
    return ranked([PART * f - gain for f, gain in zip(fall, leads(ds, control, UNTRAINED, margins=there), strict=True)])


@run_claim(
    "remedy.mean-is-small",
    "The mean last hidden state of a transformer over the tokens it trains on carries less than a fifth of their mean "
    "square.",
    source="what centring has to work with",
    premises=lambda ds: _only("plain")(ds) or (None if "eval_mean_share" in ds else "not measured"),
    expect="holds",
    why="13 % of the square on average over seeds, 10 to 19 %; a mean cosine of .25, as small language models have, "
    "is twice that",
    unit="of the square",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def mean_is_small(ds: xr.Dataset) -> Effect:
    """A fifth minus ‖μ‖²/mean ‖h‖²."""
    return ranked([PART - ds.eval_mean_share.isel(step=0).values])


# --- the other remedies -----------------------------------------------------------------------------------------------


@run_claim(
    "remedy.nll-and-gate-raise-chosen",
    "Under DPO+NLL and Gate-DPO the chosen answer stands above its start at every margin compared.",
    source="Pang et al. 2024; Mouiche & Bahi 2026",
    premises=_only("rpo", "gate-dpo"),
    expect="open",
    why="under DPO+NLL it holds, by .53 [.44, .63] nats at 5 and 1.2 at 10 nats of margin; under Gate-DPO in 19 of 20 "
    "seeds at 5 nats, one of which lurches by −2.5 between two evaluations, and in all at 10",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def nll_and_gate_raise_chosen(ds: xr.Dataset) -> Effect:
    """Change of chosen."""
    return ranked([at_margin(ds, m) for m in reached(ds, margins=MARGINS)])


def _arms(tables: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Arm → table where every layer trains by RMSprop."""
    return {
        ds.attrs["arm"]: ds
        for ds in tables
        if mine(ds) is None and (ds.attrs["kernel"], ds.attrs["language"]) == ("layers", "network rmsprop")
    }


BESIDE = ("plain", "centred", "projected", "extend", "rpo", "gate-dpo", "length-normalised")


def _beside(best: str, others: Iterable[str]) -> Callable[..., str | None]:
    wanted = (best, *others)

    def reason(*tables: xr.Dataset) -> str | None:
        arms = _arms(tables)
        if missing := [name for name in wanted if name not in arms]:
            return f"about all of {', '.join(wanted)} at once; {missing[0]} is not there"
        if len({tuple(arms[name].seed.values.tolist()) for name in wanted}) > 1:
            return "of other seeds"
        slow = [name for name in wanted if reached(arms[name], margins=MARGINS) != MARGINS]
        return f"fewer than nine seeds of ten of {slow[0]} reach both margins" if slow else None

    return reason


def _ahead(tables: Sequence[xr.Dataset], best: str, others: Iterable[str], probe: str) -> list[Array]:
    arms = _arms(tables)
    return [at_margin(arms[best], m, probe) - at_margin(arms[name], m, probe) for name in others for m in MARGINS]


def _without(*arms: str) -> tuple[str, ...]:
    return tuple(name for name in BESIDE if name not in arms)


@run_claim(
    "remedy.nll-spares-chosen-most",
    "Where all layers train, DPO+NLL leaves the chosen answer higher at equal margin than DPO, DPO with centred or "
    "projected updates, DPO after extend, Gate-DPO and length-normalised DPO.",
    source="K6 beside the other remedies",
    premises=_beside("rpo", _without("rpo")),
    expect="open",
    why="by .4 nats and more in each comparison; beside Gate-DPO .39 [.09, .70], where one seed lurches, it does not "
    "survive Holm's correction",
    takes="all",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def nll_spares_chosen_most(*tables: xr.Dataset) -> Effect:
    """Change of chosen, DPO+NLL minus another arm: the least over arms and margins."""
    return ranked(_ahead(tables, "rpo", _without("rpo"), "chosen"))


@run_claim(
    "remedy.extend-spares-untrained-most",
    "Where all layers train, DPO after extend lets an untrained answer fall less during DPO, at equal margin, than DPO "
    "after SFT, centred, projected, with NLL, with a gate or normalised by length.",
    source="K6 beside the other remedies",
    premises=_beside("extend", _without("extend")),
    expect="open",
    why="by .6 nats and more in each of the twelve comparisons; the least, .62 [.17, 1.13] at 10 nats, does not "
    "survive Holm's correction",
    takes="all",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def extend_spares_untrained_most(*tables: xr.Dataset) -> Effect:
    """Change of the untrained answer, extend minus another arm: the least over arms and margins."""
    return ranked(_ahead(tables, "extend", _without("extend"), UNTRAINED))


_EXTEND = pair(["extend"], ["plain"], ["layers"])


@run_claim(
    "remedy.extend-pays-beforehand",
    "After SFT to the same loss of the chosen answers, an untrained answer stands lower where the rejected ones were "
    "taught too.",
    source="the price of extend, before DPO begins",
    premises=_EXTEND,
    expect="holds",
    why="by 1.25 nats [.90, 1.61]",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def extend_pays_beforehand(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """log π at the start of DPO, after SFT minus after extend."""
    return ranked([_level(control, 0.0, UNTRAINED) - _level(ds, 0.0, UNTRAINED)])


@run_claim(
    "remedy.extend-ends-higher",
    "At equal margin an untrained answer stands higher after extend and DPO than after SFT and DPO, what extend itself "
    "costs included.",
    source="§4.3, at equal margin",
    premises=_EXTEND,
    expect="open",
    why="lower, if anything: −.49 nats [−.99, .09] at 5; what extend spares during DPO it has cost before",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def extend_ends_higher(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """log π of the untrained answer, with extend minus without."""
    return ranked([_level(ds, m, UNTRAINED) - _level(control, m, UNTRAINED) for m in MARGINS])


NOTHING = 0.05  # of the margin


@run_claim(
    "remedy.reshaped-losses-change-nothing",
    "Under RMSprop length-normalised DPO, SimPO, and IPO halfway to its target leave chosen and untrained answers "
    "within a twentieth of the margin of where plain DPO leaves them.",
    source="losses of the margin alone: their pairs push as hard on chosen as on rejected",
    premises=lambda ds, control: _AS_PLAIN(ds, control),
    expect="open",
    why="it holds for IPO; length-normalised DPO and SimPO leave chosen lower by .1 and .2 nats at 5, too near to a "
    "twentieth of the margin to tell",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def reshaped_losses_change_nothing(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """A twentieth of the margin minus the difference, either way."""
    out = []
    for m in _compared(ds, control):
        for probe in SPARED:
            off = at_margin(ds, m, probe) - at_margin(control, m, probe)
            out += [NOTHING * m - off, NOTHING * m + off]
    return ranked(out)


def _compared(ds: xr.Dataset, control: xr.Dataset) -> tuple[float, ...]:
    return reached(ds, control, margins=(HALFWAY,) if ds.attrs["arm"] == "ipo" else MARGINS)


def _AS_PLAIN(ds: xr.Dataset, control: xr.Dataset) -> str | None:
    for table in (ds, control):
        if other := mine(table):
            return other
    if ds.attrs["arm"] not in ("length-normalised", "simpo", "ipo") or control.attrs["arm"] != "plain":
        return "the claim is about other arms"
    if any(ds.attrs[key] != control.attrs[key] for key in ("kernel", "language", "first_step")):
        return "of two worlds, or of two step sizes"
    return None if _compared(ds, control) else "fewer than nine seeds of ten reach a margin"


@run_claim(
    "remedy.remedies-are-slower",
    "At the same rate DPO+NLL, Gate-DPO and SimPO need more updates for the same margin than DPO.",
    source="growth of the margin per update",
    premises=pair(["rpo", "gate-dpo", "simpo"], ["plain"], ["layers"]),
    expect="holds",
    why="at 5 and 10 nats: DPO+NLL by a quarter, Gate-DPO by a seventh, SimPO by 44 %; after extend the margin grows "
    "faster",
    unit="log of the ratio",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def remedies_are_slower(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """log(updates of the remedy / updates of DPO)."""
    there = reached(ds, control, margins=MARGINS)
    return ranked([np.log(updates_to(ds, m) / updates_to(control, m)) for m in there])


@run_claim(
    "remedy.ipo-stops-at-its-target",
    "IPO's margin never comes a tenth beyond its target 1/(2β), 5 nats here, so it is not among the remedies at larger "
    "margins.",
    source="Azar et al. 2023, Eq. 17",
    premises=_only("ipo"),
    expect="holds",
    why="5.1 nats at most, on average over seeds",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def ipo_stops_at_its_target(ds: xr.Dataset) -> Effect:
    """1.1 of the target minus the largest margin."""
    return ranked([1.1 * 2.0 * HALFWAY - margin(ds).max(0)])


@run_claim(
    "remedy.dpop-is-far-behind",
    "After as many updates at the same rate DPOP has less than half of DPO's margin.",
    source="Pal et al. 2024",
    premises=lambda ds, control: _BEHIND(ds, control),
    expect="holds",
    why="4 nats beside 19 after 16 updates: its penalty pulls the chosen answer 51 times as hard as the pair pushes "
    "as soon as it falls",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def dpop_is_far_behind(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Half of DPO's margin minus DPOP's after the last update."""
    return ranked([0.5 * margin(control)[-1] - margin(ds)[-1]])


def _BEHIND(ds: xr.Dataset, control: xr.Dataset) -> str | None:
    for table in (ds, control):
        if other := mine(table):
            return other
    if ds.attrs["arm"] != "dpop" or control.attrs["arm"] != "plain":
        return "the claim is about other arms"
    keys = ("kernel", "language", "first_step")
    return None if all(ds.attrs[key] == control.attrs[key] for key in keys) else "of two worlds, or of two step sizes"


# --- unlearning -------------------------------------------------------------------------------------------------------

NPO, OTHERS, FALLS = "Zhang et al. 2024 (NPO)", ("chosen", UNTRAINED, "irr_hum"), (1.0, 2.0, 4.0)
SAME = 0.05  # of the fall


def _fall(ds: xr.Dataset) -> Array:
    """How far the penalised answers have fallen, (step, seed)."""
    path = ds.logp.sel(probe="rejected").mean("example").transpose("step", "seed").values
    return path[0] - path


def _fallen(ds: xr.Dataset, first: int, last: int) -> Array:
    """By how much they fall from one update to another, (seed,)."""
    steps = ds.step.values.tolist()
    return _fall(ds)[steps.index(last)] - _fall(ds)[steps.index(first)]


def _at_fall(ds: xr.Dataset, target: float, probe: str) -> Array:
    """Change of a probe where the penalised answers have first fallen so far, (seed,), linear between evaluations."""
    path, values = _fall(ds), ds.logp.sel(probe=probe).mean("example").transpose("step", "seed").values
    out = np.full(path.shape[1], np.nan)
    for s in range(path.shape[1]):
        there = np.flatnonzero(path[:, s] >= target)
        if len(there) and there[0]:
            k = int(there[0])
            out[s] = np.interp(target, path[k - 1 : k + 1, s], values[k - 1 : k + 1, s]) - values[0, s]
    return out


def _forgot(*tables: xr.Dataset) -> tuple[float, ...]:
    return tuple(f for f in FALLS if all((_fall(ds).max(0) >= f).mean() >= ENOUGH for ds in tables))


@run_claim(
    "unlearning.ga-speeds-up-in-networks",
    "Under plain descent on all layers of a transformer the answers that GA penalises fall faster and faster: by more "
    "in its last 12 updates than in its first 12.",
    source=f"{NPO}: GA diverges linearly, said of fixed features (unlearning.ga-linear)",
    premises=_only("ga"),
    expect="holds",
    why="by 2.9 nats and then by 8.0: its push stays at 1, and nothing holds the gradient",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def ga_speeds_up(ds: xr.Dataset) -> Effect:
    """Fall from update 12 to 24 minus that from 0 to 12."""
    return ranked([_fallen(ds, 12, 24) - _fallen(ds, 0, 12)])


@run_claim(
    "unlearning.npo-slows-down-in-networks",
    "Under plain descent on all layers of a transformer the answers that NPO with β = 1 penalises fall slower and "
    "slower: by less in its last 12 updates than in its first 12.",
    source=f"{NPO}: logarithmic, not linear",
    premises=_only("npo-strong"),
    expect="holds",
    why="by 1.5 nats and then by .9: the push W = 2ρ^β/(1 + ρ^β) fades as soon as ρ does",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def npo_slows_down(ds: xr.Dataset) -> Effect:
    """Fall from update 0 to 12 minus that from 12 to 24."""
    return ranked([_fallen(ds, 0, 12) - _fallen(ds, 12, 24)])


@run_claim(
    "unlearning.published-npo-slows-down-in-networks",
    "At its published β = .1, too, NPO lets the penalised answers of a transformer fall by less in its last 12 updates "
    "than in its first 12.",
    source=f"{NPO} at the β of its own experiments",
    premises=_only("npo"),
    expect="refuted",
    why="by 2.6 nats and then by 4.8: at β = .1 the push fades over tens of nats only (W = .8 after a fall of 4), so "
    "that NPO is much like GA for a while",
    instead="unlearning.npo-slows-down-in-networks",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def published_npo_slows_down(ds: xr.Dataset) -> Effect:
    """Fall from update 0 to 12 minus that from 12 to 24."""
    return ranked([_fallen(ds, 0, 12) - _fallen(ds, 12, 24)])


def _forgetting(ds: xr.Dataset, control: xr.Dataset) -> str | None:
    for table in (ds, control):
        if other := mine(table):
            return other
    if not ds.attrs["arm"].startswith("npo") or control.attrs["arm"] != "ga":
        return "the claim is about NPO beside GA"
    return None if _forgot(ds, control) else f"fewer than nine seeds of ten fall by {FALLS[0]:g} nat"


@run_claim(
    "unlearning.npo-spares-nothing-at-equal-fall",
    "Where the penalised answers of a transformer have fallen as far, chosen, untrained and unrelated answers stand "
    "under NPO within a twentieth of that fall of where GA leaves them.",
    source=f"{NPO}; on one softmax both walk one path (unlearning.npo-same-path)",
    premises=_forgetting,
    expect="holds",
    why="within 1.2 % of the fall in each mean: NPO goes along GA's path, slower",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def npo_spares_nothing(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """A twentieth of the fall minus the difference, either way."""
    out = []
    for fall in _forgot(ds, control):
        for probe in OTHERS:
            off = _at_fall(ds, fall, probe) - _at_fall(control, fall, probe)
            out += [SAME * fall - off, SAME * fall + off]
    return ranked(out)
