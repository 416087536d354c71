"""Negative steps on single examples of networks that read digits: which guarantees hold there, and does K say so?

Tables of `toyld.digits.experiments.negative`: shares over the images of a seed. Bars, fixed beforehand: *always* is
99 % of the cases, *mostly* half, *K tells* 95 %. "The labels" are the true one, the likeliest wrong one, a wrong one
drawn at random and the rarest; where nothing else is said, a statement is about each of them (an effect is the least of
theirs) and about steps of all layers. Small steps have s = .01, moderate ones s = 1, in units of the closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.claims.tools import PAPER
from toyld.diagnosis.resample import known_mean

__all__ = ["needs_forgetting", "needs_pushes"]

LABELS = ("true", "likely", "random", "rare")
ALWAYS, MOSTLY, TOLD = 0.99, 0.5, 0.95
ABOUT: dict[str, Any] = {"rungs": ("digits",), "experiment": "negative"}
CASES, CLASSES, IMAGES = "of the cases", "of the classes", "of the images"


def needs_pushes(
    *, when: tuple[str, ...] = ("initial", "early", "late"), network: str | None = None
) -> Callable[[xr.Dataset], str | None]:
    """Premises: a table of single negative steps of all layers, at one of these stages, of this network if named."""

    def reason(ds: xr.Dataset, /) -> str | None:
        if ds.attrs["stage"] != "negative" or ds.attrs.get("layers") != "all":
            return f"a run of stage {ds.attrs['stage']} ({ds.attrs['arm']}); the claim is about steps of all layers"
        if ds.attrs.get("when") not in when:
            return f"steps of an {ds.attrs.get('when')} network; the claim is about {', '.join(when)}"
        if network is not None and ds.attrs.get("network") != network:
            return f"steps of an {ds.attrs.get('network')}; the claim is about {network}"
        return None

    return reason


def needs_forgetting(ds: xr.Dataset, /) -> str | None:
    """Premises: a table of an answer that was unlearnt."""
    return (
        None if ds.attrs["stage"] == "forget" else f"a run of stage {ds.attrs['stage']}; the claim is about forgetting"
    )


def _from_start_to_end(late: xr.Dataset, initial: xr.Dataset, /) -> str | None:
    """Premises: the same network after and before training."""
    for ds, when in ((late, "late"), (initial, "initial")):
        if (why := needs_pushes(when=(when,))(ds)) is not None:
            return why
    if late.attrs.get("network") != initial.attrs.get("network"):
        return "two networks; the claim is about one, after and before training"
    return None


def _some(*tables: xr.Dataset) -> str | None:
    """Premises: at least one table of steps of all layers."""
    return None if _pushes(tables) else "no steps of all layers"


def _pushes(tables: tuple[xr.Dataset, ...]) -> list[xr.Dataset]:
    return [ds for ds in tables if needs_pushes()(ds) is None]


def _units(ds: xr.Dataset, name: str) -> np.ndarray:
    """One number for each seed; NaN where there was no such case."""
    name = f"eval_{name}"
    return np.asarray(ds[name].isel(step=0).values, float) if name in ds else np.full(ds.sizes["seed"], np.nan)


def _above(ds: xr.Dataset, name: str, step: str, bar: float, labels: tuple[str, ...] = LABELS) -> Effect:
    """The least over labels of a share less a bar."""
    return ranked([_units(ds, f"{name}_{label}_{step}") - bar for label in labels])


@run_claim(
    "network.label-falls",
    "After a moderate negative step the label pushed falls, always (in 99 % of the cases, of each label).",
    source=f"{PAPER}, §3.3 guarantee 1",
    premises=needs_pushes(),
    expect="holds",
    why="in every case of the record; to first order it must (network.penalised-falls)",
    unit=CASES,
    **ABOUT,
)
def label_falls(ds: xr.Dataset) -> Effect:
    """Share of the cases in which log π_y falls, less 99 %."""
    return _above(ds, "falls", "moderate", ALWAYS)


@run_claim(
    "network.runner-up-always-rises",
    "After a small negative step y* rises, always: in 99 % of the cases, in every network, at every stage.",
    source=f"{PAPER}, §3.3 guarantee 2",
    premises=_some,
    expect="refuted",
    instead="network.runner-up-mostly-rises",
    why="in .87, .98, .99 of the cases (MLP before, after one pass, at the end) and .99, .90, .94 (LeNet): K is "
    "no multiple of I. With the head alone, where it is, always",
    takes="all",
    unit=CASES,
    **ABOUT,
)
def runner_up_always_rises(*tables: xr.Dataset) -> Effect:
    """Share of the cases in which log π_{y*} rises, of all labels, less 99 %: the least of networks and stages."""
    return ranked([_units(ds, "rises_any_small") - ALWAYS for ds in _pushes(tables)])


@run_claim(
    "network.runner-up-mostly-rises",
    "After a moderate negative step y* rises in most cases, of each label.",
    source=f"{PAPER}, §3.3 guarantee 2, weakened",
    premises=needs_pushes(),
    expect="holds",
    why="in .77 to 1 of the cases of each label",
    unit=CASES,
    **ABOUT,
)
def runner_up_mostly_rises(ds: xr.Dataset) -> Effect:
    """Share of the cases in which log π_{y*} rises, less a half."""
    return _above(ds, "rises", "moderate", MOSTLY)


@run_claim(
    "network.kernel-tells-signs",
    "K at the image pushed tells who gains and who loses by a small negative step: the sign of 95 % of the changes of "
    "the classes other than y, of each label.",
    source=f"{PAPER}, §2, Proposition 1",
    premises=needs_pushes(),
    expect="holds",
    why="of .991 to 1 of them",
    unit=CLASSES,
    **ABOUT,
)
def kernel_tells_signs(ds: xr.Dataset) -> Effect:
    """Share of the changes whose sign is right to first order, less 95 %."""
    return _above(ds, "first", "small", TOLD)


@run_claim(
    "network.kernel-beats-isotropy",
    "In a trained network K tells more winners and losers of a moderate step than the threshold law, which takes K for "
    "a multiple of I.",
    source="toyld, T1 with the network's K (network.score-law)",
    premises=needs_pushes(when=("early", "late")),
    expect="open",
    why=".998 to .999 of the signs against .96 after one pass and .985 at the end (MLP), .99 against .79 and .84 "
    "(LeNet). At the MLP's end by .015 [.005, .024], p = .004: not sure among all tests of the rung; sure in "
    "the other three. Before training s = 1 is large for K, too: .89 of the signs against .76 (MLP of 2×64)",
    unit=CLASSES,
    **ABOUT,
)
def kernel_beats_isotropy(ds: xr.Dataset) -> Effect:
    """Share of right signs by K less that by K ∝ I, of all labels together."""
    return ranked([_units(ds, "kernel_any_moderate") - _units(ds, "plain_any_moderate")])


@run_claim(
    "network.kernel-sees-failures",
    "Where y* falls after a moderate step, against the guarantee, K mostly says so beforehand (K ∝ I never does).",
    source="toyld, network.score-law",
    premises=_some,
    expect="holds",
    why="of .94 of them, a seed's mean over networks and stages; after a small step of .99 to 1",
    takes="all",
    unit=CASES,
    **ABOUT,
)
def kernel_sees_failures(*tables: xr.Dataset) -> Effect:
    """Share of the falls of y* that K tells, of all networks, stages and labels together, less a half."""
    each = np.stack([_units(ds, "told_falls_any_moderate") for ds in _pushes(tables)])
    return ranked([known_mean(each.T) - MOSTLY])


@run_claim(
    "network.rich-get-richer",
    "After training, a moderate step moves the log π of the others in the order of π: a rank correlation above 0, of "
    "each label.",
    source=f"{PAPER}, §3.3 trend 1; T3, where it is 1",
    premises=needs_pushes(when=("late",)),
    expect="holds",
    why="by .13 to .75 (MLP) and .26 to .29 (LeNet): a tendency, no order; before training −.08 to .29",
    unit="(rank correlation)",
    **ABOUT,
)
def rich_get_richer(ds: xr.Dataset) -> Effect:
    """Rank correlation of Δ log π with π over the classes other than y."""
    return _above(ds, "order", "moderate", 0.0)


@run_claim(
    "network.runner-up-gains-most",
    "After training, y* is mostly the one that gains most in log π by a moderate step, of each label.",
    source="toyld, T3, where it always is",
    premises=needs_pushes(when=("late",)),
    expect="open",
    why="MLP in .76 (true label) to .98 of the cases; LeNet in .42 to .63, of the label drawn at random .42 [.33, .53]",
    unit=CASES,
    **ABOUT,
)
def runner_up_gains_most(ds: xr.Dataset) -> Effect:
    """Share of the cases in which no other class than y* gains more, less a half."""
    return _above(ds, "top", "moderate", MOSTLY)


@run_claim(
    "network.training-squeezes",
    "Training makes a network squeeze: a moderate push on a wrong label lowers more of the rest (neither y nor y*) "
    "after training than before.",
    source=f"{PAPER}, §3.3 trend 2 (peakier squeezes more)",
    premises=_from_start_to_end,
    expect="holds",
    why="from .17 to .97 of them and more (MLP), from .09 to .73 and more (LeNet)",
    takes="control",
    unit=CLASSES,
    **ABOUT,
)
def training_squeezes(late: xr.Dataset, initial: xr.Dataset) -> Effect:
    """Share of the rest that falls, after training less before; the least of the wrong labels."""
    names = [f"losers_{label}_moderate" for label in LABELS[1:]]
    return ranked([_units(late, name) - _units(initial, name) for name in names])


@run_claim(
    "network.training-bends-kernel",
    "Training takes K(x, x) away from a multiple of I.",
    source="toyld: ‖PKP − κP‖_F/‖PKP‖_F of network.rows-and-columns-cancel",
    premises=_from_start_to_end,
    expect="holds",
    why="from .31 to .57 (MLP) and from .18 to .72 (LeNet); at most √(1 − 1/9) = .94. So far from it that the "
    "condition of network.near-isotropic-suffices is met in no case",
    takes="control",
    unit="of ‖PKP‖",
    **ABOUT,
)
def training_bends_kernel(late: xr.Dataset, initial: xr.Dataset) -> Effect:
    """Relative distance from a multiple of I after training less before."""
    return ranked([_units(late, "apart_all") - _units(initial, "apart_all")])


@run_claim(
    "network.favourite-spreads-mostly",
    "The y* of the image pushed mostly rises at images of other classes, too, after a moderate step.",
    source="toyld, network.favourite-spreads",
    premises=needs_pushes(),
    expect="holds",
    why="at .92 to .99 of the images (MLP), at .94, .62, .70 (LeNet before, after one pass, at the end)",
    unit=IMAGES,
    **ABOUT,
)
def favourite_spreads_mostly(ds: xr.Dataset) -> Effect:
    """Share of images of a third class at which log π_{y*} rises, of all labels together, less a half."""
    return _above(ds, "rises_rest", "moderate", MOSTLY, ("any",))


@run_claim(
    "network.kernel-tells-elsewhere",
    "K(x_o, x_u) tells whether y* of the image pushed rises at another image: 95 % of the signs after a small step, of "
    "each label.",
    source=f"{PAPER}, §2, Proposition 1",
    premises=needs_pushes(),
    expect="holds",
    why="at .998 to 1 of the images",
    unit=IMAGES,
    **ABOUT,
)
def kernel_tells_elsewhere(ds: xr.Dataset) -> Effect:
    """Share of the other images at which the sign of Δ log π_{y*} is as K says, less 95 %."""
    return _above(ds, "elsewhere_told", "small", TOLD)


@run_claim(
    "network.own-class-follows",
    "In a trained LeNet, whose features have both signs, the label pushed falls at another image of the class pushed "
    "at more often than at images of third classes.",
    source=f"{PAPER}, §2 (similar inputs move together)",
    premises=needs_pushes(when=("early", "late"), network="LeNet"),
    expect="holds",
    why=".95 against .74 after one pass, .97 against .75 at the end. In the MLP y falls nearly everywhere",
    unit=IMAGES,
    **ABOUT,
)
def own_class_follows(ds: xr.Dataset) -> Effect:
    """Share at the mate less that at the rest, of all labels together, after a moderate step."""
    return ranked([_units(ds, "falls_mate_any_moderate") - _units(ds, "falls_rest_any_moderate")])


@run_claim(
    "network.pushed-class-resists",
    "In a trained LeNet the rarest label, pushed down at one image, falls less often at the images that it is true of "
    "than at images of third classes.",
    source="toyld: network.favourite-spreads where ⟨h_o, h_u⟩ + 1 < 0",
    premises=needs_pushes(when=("early", "late"), network="LeNet"),
    expect="holds",
    why=".31 against .86 after one pass, .22 against .83 at the end: at most images of class y its probability rises",
    unit=IMAGES,
    **ABOUT,
)
def pushed_class_resists(ds: xr.Dataset) -> Effect:
    """Share at images of third classes less that at images of class y, after a moderate step."""
    return ranked([_units(ds, "falls_rest_rare_moderate") - _units(ds, "falls_label_rare_moderate")])


@run_claim(
    "network.valley-always-calms",
    "A small push on a label in a valley (log π_y ≤ −H) lowers the entropy, always: in 99 % of the cases, in every "
    "network, at every stage.",
    source="toyld, T6 (entropy.valley), read of a network",
    premises=_some,
    expect="open",
    instead="network.valley-mostly-calms",
    why="it leans to no: in .93 [.91, .97] of them in LeNet at the end (p = .0025, not sure among all tests of the "
    "rung), .98 to 1 elsewhere. K is no multiple of I (network.valley-calms-whatever-K)",
    takes="all",
    unit=CASES,
    **ABOUT,
)
def valley_always_calms(*tables: xr.Dataset) -> Effect:
    """Share of the valleys in which entropy falls, less 99 %: the least of networks and stages."""
    return ranked([_units(ds, "calmer_valley_any_small") - ALWAYS for ds in _pushes(tables)])


@run_claim(
    "network.valley-mostly-calms",
    "A moderate push on a label in a valley (log π_y ≤ −H) mostly lowers the entropy.",
    source="toyld, T6 (entropy.valley), weakened",
    premises=needs_pushes(),
    expect="holds",
    why="in .95 to 1 of them",
    unit=CASES,
    **ABOUT,
)
def valley_mostly_calms(ds: xr.Dataset) -> Effect:
    """Share of the valleys in which entropy falls, of all labels together, less a half."""
    return _above(ds, "calmer_valley", "moderate", MOSTLY, ("any",))


@run_claim(
    "network.forgetting-feeds-runner-up",
    "An answer unlearnt by repeated negative steps gives more than half of its mass to the y* of the start.",
    source=f"{PAPER}, §3.3, read of a whole run",
    premises=needs_forgetting,
    expect="open",
    why="sure in the MLP (after one pass and at the end) and in LeNet at the end; in LeNet after one pass, which "
    "believes in many classes, y* gets .17 of .29",
    unit="of probability",
    **ABOUT,
)
def forgetting_feeds_runner_up(ds: xr.Dataset) -> Effect:
    """What y* gains less half of what y loses."""
    lost = _units(ds, "label_before") - _units(ds, "label_after")
    return ranked([_units(ds, "star_after") - _units(ds, "star_before") - lost / 2.0])


@run_claim(
    "network.forgetting-feeds-runner-up-less",
    "y* ends lower than in the closed form (K ∝ I) that unlearns the same answer from the same start as far.",
    source="toyld: K is no multiple of I, and features change",
    premises=needs_forgetting,
    expect="open",
    why="by .14 [.07, .21] in LeNet after one pass; elsewhere by .01 to .08, not sure",
    unit="of probability",
    **ABOUT,
)
def forgetting_feeds_runner_up_less(ds: xr.Dataset) -> Effect:
    """π_{y*} of the closed form less that of the network, at the same π_y."""
    return ranked([_units(ds, "plain_after") - _units(ds, "star_after")])


@run_claim(
    "network.forgetting-spreads",
    "After an answer was unlearnt at one image, its y* stands higher at most other images.",
    source="toyld, network.favourite-spreads",
    premises=needs_forgetting,
    expect="open",
    why="at .97 to .99 of the images (MLP), at .71 (LeNet at the end); after one pass LeNet at .59 [.52, .67], "
    "not sure (p = .016)",
    unit=IMAGES,
    **ABOUT,
)
def forgetting_spreads(ds: xr.Dataset) -> Effect:
    """Share of the other images at which log π_{y*} ends higher, less a half."""
    return ranked([_units(ds, "spread") - MOSTLY])
