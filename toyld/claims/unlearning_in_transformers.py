"""GA and NPO on every layer of transformers: how fast the penalised answers fall, and what falls with them.

The tables are those of rung `tiny`, experiment `remedies`. Changes in nats a response since the start of the stage.
"""

from __future__ import annotations

from typing import Any

import xarray as xr

from toyld.claims.centring import ENOUGH, EXPERIMENT, crossing, mine, only
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim

__all__: list[str] = []

Array = Any
RUNG, UNTRAINED = "tiny", "test_chosen"


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
    values = ds.logp.sel(probe=probe).mean("example").transpose("step", "seed").values
    return crossing(_fall(ds), values - values[:1], target)


def _forgot(*tables: xr.Dataset) -> tuple[float, ...]:
    return tuple(f for f in FALLS if all((_fall(ds).max(0) >= f).mean() >= ENOUGH for ds in tables))


@run_claim(
    "unlearning.ga-speeds-up-in-networks",
    "Under plain descent on all layers of a transformer the answers that GA penalises fall faster and faster: by more "
    "in its last 12 updates than in its first 12.",
    source=f"{NPO}: GA diverges linearly, said of fixed features (unlearning.ga-linear)",
    premises=only("ga"),
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
    premises=only("npo-strong"),
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
    "Within 24 updates of plain descent, where the penalised answers of a transformer fall by 7 nats, NPO at its "
    "published β = .1, too, lets them fall by less in the last 12 updates than in the first 12.",
    source=f"{NPO} at the β of its own experiments",
    premises=only("npo"),
    expect="refuted",
    why="by 2.6 nats and then by 4.8, 7.4 together: at β = .1 the push fades over tens of nats only (W = .8 after a "
    "fall of 4), so that NPO is much like GA for a while; it does slow down later: on ten seeds from 5000 on the fall "
    "of 12 updates grows to 6.5 nats (24 to 36) and then shrinks to 5.7, 4.5 and 3.5, down by 28 after 72",
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
    "Where the penalised answers of a transformer have fallen by 1 nat (β = 1), or by 1 to 4 nats (β = .1), chosen, "
    "untrained and unrelated answers stand under NPO within a twentieth of that fall of where GA leaves them.",
    source=f"{NPO}; on one softmax both walk one path (unlearning.npo-same-path)",
    premises=_forgetting,
    expect="holds",
    why="within 1.2 % of the fall in each mean; near the reference so by construction, as NPO's push is GA's times W, "
    "1 there, and the gap grows: for β = 1 it is 2.7 % [1.3, 4.0] at 2 nats, where 17 seeds of 20 get",
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
