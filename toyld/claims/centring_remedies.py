"""K6: centring against its controls, on other kernels, and against the other remedies, at equal margin.

See `toyld.claims.centring`; the tables are those of `toyld.contexts.experiments.remedies`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import xarray as xr

from toyld.claims.centring import COMMON, EXPERIMENT, K6, leads, mine, pair, reached
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.trajectory.matched import at_margin

__all__: list[str] = []

Array = Any
REMEDIES = ("extend", "rpo", "dpop", "gate-dpo", "length-normalised", "ipo", "npo+nll", "simpo")
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
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def direction_matters(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, centred minus control."""
    return ranked(leads(ds, control, "chosen", "test_chosen"))


UNEVEN, REAL = ("uneven", "measured"), ("measured",)


@run_claim(
    "centring.spares-everywhere",
    "Whatever the kernel, centred updates leave chosen and untrained responses higher than plain ones at equal margin.",
    source=f"{K6} read as a remedy for every kernel",
    premises=pair(["centred"], ["plain"]),
    expect="open",
    why="undecided in small worlds without a constant component; in larger ones it fails where responses are coupled "
    "within a prompt only, and helps little or not at all where they are coupled in four groups",
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
    expect="open",
    why="undecided in one of three small worlds after the correction for all trials; it holds in all 28 pairs of "
    "larger worlds, seven kernels of two languages",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
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
    rungs=("contexts",),
    experiment=EXPERIMENT,
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


_AGAINST_REMEDIES = pair(["centred"], REMEDIES, COMMON)


@run_claim(
    "centring.chosen-above-remedies",
    "Where all contexts share a constant component, centred DPO leaves the chosen response higher at equal margin than "
    "each other remedy at its published settings.",
    source=f"{K6} beside extend, DPO+NLL, DPOP, Gate-DPO, length-normalised DPO, IPO, NPO with NLL and SimPO",
    premises=_AGAINST_REMEDIES,
    expect="conditional",
    why="higher than under extend or length normalisation; DPO+NLL, which pulls chosen up by itself, ends above it",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def chosen_above_remedies(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of chosen, centred minus remedy."""
    return ranked(leads(ds, control, "chosen"))


@run_claim(
    "centring.untrained-above-remedies",
    "Where a constant component is half of every feature's square, centred DPO leaves an untrained test response "
    "higher at equal margin than each other remedy at its published settings.",
    source=f"{K6} beside extend, DPO+NLL, DPOP, Gate-DPO, length-normalised DPO, IPO, NPO with NLL and SimPO",
    premises=pair(["centred"], REMEDIES, ["common"]),
    expect="holds",
    why="none of the others touches what couples the responses; at a weaker component extend comes near",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def untrained_above_remedies(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of test_chosen, centred minus remedy."""
    return ranked(leads(ds, control, "test_chosen"))


@run_claim(
    "centring.projected-above-remedies",
    "Where contexts share a component unevenly, DPO with μ projected out of its updates leaves an untrained test "
    "response higher at equal margin than each other remedy at its published settings.",
    source=f"{K6}, by projection",
    premises=pair(["projected"], REMEDIES, ["uneven"]),
    expect="holds",
    why="at both margins; on real text not (centring.projected-on-real-text)",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def projected_above_remedies(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of test_chosen, projected minus remedy."""
    return ranked(leads(ds, control, "test_chosen"))


@run_claim(
    "centring.spares-real-text",
    "Fine-tuning the head alone on real text, where the kernel is that of a small language model's hidden states, "
    "updates with μ subtracted or projected out leave chosen and untrained responses higher than plain ones at equal "
    "margin.",
    source=f"{K6} on measured hidden states",
    premises=pair(["centred", "projected"], ["plain"], REAL),
    expect="open",
    why="its tables (`measured` of the experiment) need a model at hand; on 32 sets of texts with a 260 K model it "
    "held by .16 to 3.0 nats: subtraction undid a quarter of the fall of untrained text, projection half of it",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def spares_real_text(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change, centred minus plain."""
    return ranked(leads(ds, control, "chosen", "test_chosen"))


@run_claim(
    "centring.projected-on-real-text",
    "Fine-tuning the head alone on real text, DPO with μ projected out of its updates leaves an untrained test "
    "response higher at equal margin than each other remedy at its published settings.",
    source=f"{K6} on measured hidden states",
    premises=pair(["projected"], REMEDIES, REAL),
    expect="open",
    why="its tables need a model at hand; on 32 sets of texts with a 260 K model it was higher than under "
    "seven remedies by .43 to .79 nats or more, and at the smaller margin lower than after extend, by .31 ± .12",
    takes="control",
    rungs=("contexts",),
    experiment=EXPERIMENT,
)
def projected_on_real_text(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of test_chosen, projected minus remedy."""
    return ranked(leads(ds, control, "test_chosen"))


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
