"""K6: centring against its controls, on other kernels, and against the other remedies, at equal margin.

See `toyld.claims.centring`; the tables are those of `toyld.contexts.experiments.remedies`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from toyld.claims.centring import AT_TINY, COMMON, ENOUGH, EXPERIMENT, K6, leads, mine, pair, reached
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.contexts.experiments.remedies import HALFWAY, REMEDIES
from toyld.trajectory.matched import at_margin, margin

__all__: list[str] = []

Array = Any
CONTROLS = ("random", "random-projected", "top-component")


@run_claim(
    "centring.direction-matters",
    "Where all contexts share a constant component, centring leaves chosen and untrained responses higher at equal "
    "margin than taking off a random vector of the length of μ, a random direction, or the first principal component.",
    source=f"{K6}, controls",
    premises=pair(["centred"], CONTROLS, COMMON),
    expect="holds",
    why="the first principal component, being one of φ − μ, is not the common one",
    takes="control",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={
        "tiny": (
            "open",
            "by .62 nats [.33, .96], p = 2.5e-4, beyond the edge of Holm's correction over the rung; .61 [.36, .80] "
            "on seeds 5000-5019, and at paper size it holds by .74 [.59, .92]; beside one control only, a random "
            f"direction projected out; {AT_TINY}",
        )
    },
)
def direction_matters(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, centred minus control."""
    return ranked(leads(ds, control, "chosen", "test_chosen"))


UNEVEN, REAL = ("uneven", "measured"), ("measured",)
NOT_CONSTANT = ("local", "uneven", "clusters", "position", "prompt")


@run_claim(
    "centring.spares-everywhere",
    "Also where contexts share no constant component, but one unevenly, in groups, by place, by prompt, or none, "
    "centred updates leave chosen and untrained responses higher than plain ones at equal margin.",
    source=f"{K6} read as a remedy for every kernel",
    premises=pair(["centred"], ["plain"], NOT_CONSTANT),
    expect="open",
    why="undecided in the four small worlds; of ten larger ones it holds in three, all of the chain: with an uneven "
    "component by .35 nats, with groups and places by .04 and .02",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def spares_everywhere(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, centred minus plain."""
    return ranked(leads(ds, control, "chosen", "test_chosen"))


NOTHING = 0.05  # of the margin


@run_claim(
    "centring.random-changes-nothing",
    "Taking a random vector of the length of μ off the features, or a random direction out of them, moves chosen and "
    "untrained responses by less than a twentieth of the margin.",
    source=f"{K6}, controls",
    premises=pair(["random", "random-projected"], ["plain"]),
    expect="holds",
    why="by .18 nats and more of the .25 that a twentieth is; with other random numbers one of three small worlds was "
    "undecided; it holds in all 28 pairs of larger worlds, seven kernels of two languages",
    takes="control",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={
        "tiny": (
            "holds",
            "by .24 nats of the .25 that a twentieth is; a random direction projected out, no vector taken off, where "
            "the head trains with a constant feature (plain descent) or all layers do (both rules), at 5 nats only",
        ),
    },
)
def random_changes_nothing(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """A twentieth of the margin minus the difference, either way."""
    out = []
    for m in reached(ds, control):
        for probe in ("chosen", "test_chosen"):
            off = at_margin(ds, m, probe) - at_margin(control, m, probe)
            out += [NOTHING * m - off, NOTHING * m + off]
    return ranked(out)


@run_claim(
    "centring.projection-spares-more",
    "Where contexts share a component unevenly, drawn or measured, projecting μ out of the features leaves chosen and "
    "untrained responses higher at equal margin than subtracting μ.",
    source=K6,
    premises=pair(["projected"], ["centred"], UNEVEN),
    expect="holds",
    why="φ_u − μ keeps what context u has of the common direction above or below the mean; a projection keeps none",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def projection_spares_more(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, projected minus subtracted."""
    return ranked(leads(ds, control, "chosen", "test_chosen"))


def _worlds(tables: Sequence[xr.Dataset]) -> dict[tuple[str, str], dict[str, xr.Dataset]]:
    """Arm → table by (language, kernel)."""
    out: dict[tuple[str, str], dict[str, xr.Dataset]] = {}
    for ds in tables:
        if mine(ds) is None:
            out.setdefault((ds.attrs["language"], ds.attrs["kernel"]), {})[ds.attrs["arm"]] = ds
    return out


THREE = ("plain", "centred", "without-component")


def _share_undone(tables: Sequence[xr.Dataset], where: Sequence[str]) -> list[Array]:
    """By world, margin and probe: what centring gains minus half of what dropping the component exactly gains."""
    out = []
    for (_, kernel), arms in _worlds(tables).items():
        if kernel in where and set(THREE) <= set(arms):
            plain, centred, without = (arms[name] for name in THREE)
            for m in reached(plain, centred, without):
                for probe in ("chosen", "test_chosen"):
                    base, some, full = (at_margin(x, m, probe) for x in (plain, centred, without))
                    out.append((some - base) - 0.5 * (full - base))
    return out


def _some(where: Sequence[str]) -> Callable[..., str | None]:
    return lambda *tables: None if _share_undone(tables, where) else f"no runs on the kernels {', '.join(where)}"


OTHERS = ("uneven", "clusters", "position")


@run_claim(
    "centring.undoes-a-constant",
    "Where all contexts share a constant component, centring undoes more than half of the fall that the component "
    "causes in chosen and untrained responses, at equal margin.",
    source=K6,
    premises=_some(COMMON),
    expect="holds",
    why="all of it, and a little more: it also takes off what the local parts have in common",
    takes="all",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={
        "tiny": (
            "open",
            "all of it in the mean, .35 nats [.16, .57] above half: too few seeds to be sure over the rung",
        )
    },
)
def undoes_a_constant(*tables: xr.Dataset) -> Effect:
    """The least over languages, kernels, margins and probes."""
    return ranked(_share_undone(tables, COMMON))


@run_claim(
    "centring.undoes-any-component",
    "Whatever component contexts share (unevenly, in groups, by position), centring undoes more than half of the fall "
    "that the component causes in chosen and untrained responses, at equal margin.",
    source=f"{K6} read beyond the constant component",
    premises=_some(OTHERS),
    expect="refuted",
    why="one vector has no hold on four groups or on uneven loadings",
    takes="all",
    instead="centring.undoes-a-constant",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def undoes_any_component(*tables: xr.Dataset) -> Effect:
    """The least over languages, kernels, margins and probes."""
    return ranked(_share_undone(tables, OTHERS))


# --- beside every other remedy ----------------------------------------------------------------------------------------
#
# A claim about all of them is about all at once: where one was not run, or reaches no margin, nothing is claimed.

# In words, what `REMEDIES` lists.
EIGHT = (
    "DPO after extend, DPO+NLL, DPOP, Gate-DPO, length-normalised DPO, IPO and SimPO at their published settings, and "
    "this project's NPO+NLL"
)
# Pairs whose push on chosen is as hard as that on rejected, token by token or after division by the lengths.
BALANCED = ("extend", "length-normalised", "ipo", "simpo")


def _compared(ds: xr.Dataset, control: xr.Dataset) -> tuple[float, ...]:
    """The margins at which a remedy is compared: those that both reach; halfway to its target for IPO."""
    if control.attrs["arm"] != "ipo":
        return reached(ds, control)
    there = all((np.nanmax(margin(x), axis=0) >= HALFWAY).mean() >= ENOUGH for x in (ds, control))
    return (HALFWAY,) if there else ()


def _every(arm: str, kernel: str, remedies: Sequence[str] = REMEDIES) -> Callable[..., str | None]:
    """Premises of a claim about an arm beside all of these remedies in every world of a kernel."""

    def reason(*tables: xr.Dataset) -> str | None:
        worlds = {key: arms for key, arms in _worlds(tables).items() if key[1] == kernel}
        if not worlds:
            return f"no runs on the kernel {kernel}"
        for (language, _), arms in worlds.items():
            if missing := [name for name in (arm, *remedies) if name not in arms]:
                return f"about all of {arm}, {', '.join(remedies)} at once; {language} {kernel} lacks {missing[0]}"
            for name in remedies:
                if arms[name].seed.values.tolist() != arms[arm].seed.values.tolist():
                    return f"{language} {kernel}: {name} of other seeds than {arm}"
                if not _compared(arms[arm], arms[name]):
                    return f"{language} {kernel}: fewer than nine seeds of ten of {name} and {arm} reach a margin"
        return None

    return reason


def _ahead(tables: Sequence[xr.Dataset], arm: str, kernel: str, remedies: Sequence[str], probe: str) -> list[Array]:
    """By world, remedy and margin: change of the probe, arm minus remedy, (seed,) each."""
    return [
        at_margin(arms[arm], m, probe) - at_margin(arms[name], m, probe)
        for (_, one), arms in _worlds(tables).items()
        if one == kernel
        for name in remedies
        for m in _compared(arms[arm], arms[name])
    ]


MARGINS_OF = "at margins of 5 and 20 nats where nine seeds of ten get there, IPO at 2.5"


@run_claim(
    "centring.chosen-above-remedies",
    "Where a constant component is half of every feature's square, centred DPO leaves the chosen response higher at "
    f"equal margin than each of {EIGHT}.",
    source=f"{K6}; {MARGINS_OF}",
    premises=_every("centred", "common"),
    expect="refuted",
    why="DPO+NLL, which pulls chosen up by itself, ends above it by .4 to .7 nats at both margins in both languages, "
    "again on 32 further seeds; DPOP in most worlds of the chain",
    takes="all",
    instead="centring.spares-chosen",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def chosen_above_remedies(*tables: xr.Dataset) -> Effect:
    """Change of chosen, centred minus remedy: the least over worlds, remedies and margins."""
    return ranked(_ahead(tables, "centred", "common", REMEDIES, "chosen"))


@run_claim(
    "centring.chosen-above-balanced",
    "Where a constant component is half of every feature's square, centred DPO leaves the chosen response higher at "
    "equal margin than each of the remedies that push chosen as hard as rejected: DPO after extend, length-normalised "
    "DPO, IPO and SimPO.",
    source=f"{K6}; {MARGINS_OF}",
    premises=_every("centred", "common", BALANCED),
    expect="open",
    why="higher than length-normalised DPO, IPO and SimPO by .3 nats or more in both languages, than DPO after extend"
    " by .7 nats in facts, but by .04 [−.01, .09] only in the chain at the smaller margin; on 32 further seeds "
    ".09 [.00, .18]. In larger worlds it is refuted, by .20 [.15, .23]",
    takes="all",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def chosen_above_balanced(*tables: xr.Dataset) -> Effect:
    """Change of chosen, centred minus remedy: the least over worlds, remedies and margins."""
    return ranked(_ahead(tables, "centred", "common", BALANCED, "chosen"))


@run_claim(
    "centring.untrained-above-remedies",
    "Where a constant component is half of every feature's square, centred DPO leaves an untrained test response "
    f"higher at equal margin than each of {EIGHT}.",
    source=f"{K6}; {MARGINS_OF}",
    premises=_every("centred", "common"),
    expect="open",
    why="borderline: higher in all 26 comparisons, in 25 by .42 nats or more with p < 2e-6; one, with DPO after "
    "extend in the chain at the smaller margin, .54 [.25, .84], fails Holm's correction (p = 7e-4); on 32 further"
    " seeds it is .80 [.47, 1.13] (p = 3e-5). In larger worlds it holds, by .58 [.40, .72]. At a weaker component"
    " extend comes near. SimPO in the chain: 29 of 32 seeds",
    takes="all",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def untrained_above_remedies(*tables: xr.Dataset) -> Effect:
    """Change of test_chosen, centred minus remedy: the least over worlds, remedies and margins."""
    return ranked(_ahead(tables, "centred", "common", REMEDIES, "test_chosen"))


@run_claim(
    "centring.projected-above-remedies",
    "Where contexts share a component unevenly, DPO with μ projected out of its updates leaves an untrained test "
    f"response higher at equal margin than each of {EIGHT}.",
    source=f"{K6}, by projection; {MARGINS_OF}",
    premises=_every("projected", "uneven"),
    expect="holds",
    why="in all 13 comparisons in facts, least above IPO, .3 nats, and Gate-DPO at the smaller margin, .6; on real "
    "text not (centring.projected-on-real-text)",
    takes="all",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def projected_above_remedies(*tables: xr.Dataset) -> Effect:
    """Change of test_chosen, projected minus remedy: the least over worlds, remedies and margins."""
    return ranked(_ahead(tables, "projected", "uneven", REMEDIES, "test_chosen"))


@run_claim(
    "centring.spares-real-text",
    "Fine-tuning the head alone on real text, where the kernel is that of a small language model's hidden states, "
    "updates with μ subtracted or projected out leave chosen and untrained responses higher than plain ones at equal "
    "margin.",
    source=f"{K6} on measured hidden states",
    premises=pair(["centred", "projected"], ["plain"], (*REAL, "hidden")),
    expect="open",
    why="its tables (`measured` of the experiment) need a model at hand; on 32 sets of texts with a 260 K model it "
    "held by .16 to 3.0 nats: subtraction undid a quarter of the fall of untrained text, projection half of it",
    takes="control",
    rungs=("contexts", "llm"),
    experiment=EXPERIMENT,
    elsewhere={
        "llm": (
            "open",
            "head alone, its fine-tuning run as it is: in each of four arms for chosen, under plain descent for "
            "untrained text as well (.16 to .20 at 5 nats, 1.8 and 2.4 of 5.3 at 20), under RMSprop surely at 20 "
            "alone (.40 of 2.3)",
        )
    },
)
def spares_real_text(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, centred minus plain."""
    return ranked(leads(ds, control, "chosen", "test_chosen"))


@run_claim(
    "centring.projected-on-real-text",
    "Fine-tuning the head alone on real text, DPO with μ projected out of its updates leaves an untrained test "
    f"response higher at equal margin than each of {EIGHT}.",
    source=f"{K6} on measured hidden states; {MARGINS_OF}",
    premises=_every("projected", "measured"),
    expect="open",
    why="its tables need a model at hand; on 32 sets of texts with a 260 K model it was refuted: lower than after "
    "extend at the smaller margin, by .32 ± .11 nats; higher than under the seven others, by .17 (IPO) to 3.7",
    takes="all",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def projected_on_real_text(*tables: xr.Dataset) -> Effect:
    """Change of test_chosen, projected minus remedy: the least over remedies and margins."""
    return ranked(_ahead(tables, "projected", "measured", REMEDIES, "test_chosen"))


@run_claim(
    "centring.adds-to-nll",
    "Where all contexts share a constant component, centred updates leave an untrained test response higher at equal "
    "margin under DPO+NLL too.",
    source=f"{K6}: a remedy for the update goes with one for the loss",
    premises=pair(["rpo-centred"], ["rpo"], COMMON),
    expect="holds",
    why="and chosen ends where DPO+NLL takes it; on an uneven component not so",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def adds_to_nll(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of test_chosen, centred minus plain."""
    return ranked(leads(ds, control, "test_chosen"))
