"""Answers that networks unlearn by repeated negative steps: who gets the mass, and what other images make of it.

Tables *forget* of `toyld.digits.experiments.negative`; means over the two images of a seed. Data, seeds and what an
interval is over: `toyld.claims.negative_steps`.
"""

from __future__ import annotations

import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.negative_steps import ABOUT, IMAGES, MOSTLY, units
from toyld.claims.runs import run_claim
from toyld.claims.tools import PAPER

__all__ = ["needs_forgetting"]


def needs_forgetting(ds: xr.Dataset, /) -> str | None:
    """Premises: a table of an answer that was unlearnt."""
    return (
        None if ds.attrs["stage"] == "forget" else f"a run of stage {ds.attrs['stage']}; the claim is about forgetting"
    )


@run_claim(
    "network.forgetting-feeds-runner-up",
    "An answer unlearnt by repeated negative steps gives more than half of its mass to the y* of the start.",
    source=f"{PAPER}, §3.3, read of a whole run",
    premises=needs_forgetting,
    expect="open",
    why="sure in the MLP (after one pass and at the end) and in LeNet at the end; in LeNet after one pass by .03 "
    "[−.05, .11], on other seeds (5000 to 5031) by .16 [.10, .21], where all four are sure: not settled. It depends on "
    "the settings: with rates of .1 and 24 passes LeNet has .08 and .07, not sure, and after 20 passes the MLP is so "
    "sure of its answers that 50 steps unlearn nothing, .00 (16 seeds, 5000 on)",
    unit="of probability",
    **ABOUT,
)
def forgetting_feeds_runner_up(ds: xr.Dataset) -> Effect:
    """What y* gains less half of what y loses."""
    lost = units(ds, "label_before") - units(ds, "label_after")
    return ranked([units(ds, "star_after") - units(ds, "star_before") - lost / 2.0])


@run_claim(
    "network.forgetting-feeds-runner-up-less",
    "y* ends lower than in the closed form (K ∝ I) that unlearns the same answer from the same start as far.",
    source="toyld: K is no multiple of I, and features change",
    premises=needs_forgetting,
    expect="open",
    why="by .14 [.07, .21] in LeNet after one pass; elsewhere by .01 to .08, not sure. On other seeds (5000 to 5031) "
    "by .09 and .13 in LeNet, both sure, and by .01 and −.00 in the MLP",
    unit="of probability",
    **ABOUT,
)
def forgetting_feeds_runner_up_less(ds: xr.Dataset) -> Effect:
    """π_{y*} of the closed form less that of the network, at the same π_y."""
    return ranked([units(ds, "plain_after") - units(ds, "star_after")])


@run_claim(
    "network.forgetting-spreads",
    "After an answer was unlearnt at one image, its y* stands higher at most other images.",
    source="toyld, network.favourite-spreads",
    premises=needs_forgetting,
    expect="open",
    why="at .97 to .99 of the images (MLP), at .71 (LeNet at the end); after one pass LeNet at .59 [.52, .67], "
    "not sure (p = .016); on other seeds (5000 to 5031) at .66 [.59, .73], where all four are sure",
    unit=IMAGES,
    **ABOUT,
)
def forgetting_spreads(ds: xr.Dataset) -> Effect:
    """Share of the other images at which log π_{y*} ends higher, less a half."""
    return ranked([units(ds, "spread") - MOSTLY])
