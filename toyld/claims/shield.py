"""B4: the size of DPO's pushes, β/2 at the reference, as what protects a model, and what optimisers make of it.

The tables are those of rung `tiny`, experiment `shield`: the first updates of SFT and of DPO from the same models, at
the same rate within an optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim

__all__: list[str] = []

Array = Any
RUNG, EXPERIMENT, B4 = "tiny", "shield", "Ren & Sutherland 2025, App. A.3 (B4)"
BETA = 0.1
SCALED = ("rmsprop", "adamw")  # rules that divide the size of a gradient out


def _change(ds: xr.Dataset, probe: str, at: int) -> Array:
    """Change of log π since the start, (seed,)."""
    path = ds.logp.sel(probe=probe).mean("example").transpose("step", "seed").values
    return path[at] - path[0]


def _moved(ds: xr.Dataset, at: int) -> Array:
    return ds.train_moved.transpose("step", "seed").values[at]


def _sizes(ds: xr.Dataset, at: int) -> list[Array]:
    """How far parameters moved, and how far log π of rejected did, (seed,) each."""
    return [_moved(ds, at), np.abs(_change(ds, "rejected", at))]


def _pair(
    optimizers: Sequence[str], start: str, control: str, beta: float | None = None
) -> Callable[[xr.Dataset, xr.Dataset], str | None]:
    """Premises: DPO (at this β, any by default) beside a control arm, of one optimiser and start."""

    def reason(ds: xr.Dataset, other: xr.Dataset, /) -> str | None:
        for table in (ds, other):
            if table.attrs.get("experiment") != EXPERIMENT:
                return "not a run of first updates"
            if table.attrs["optimizer"] not in optimizers or table.attrs["start"] != start:
                return "the claim is about another optimiser or start"
        if "beta" not in ds.attrs or other.attrs["arm"] != control or ds.attrs["arm"] == control:
            return "the claim is about other arms"
        if beta is not None and ds.attrs["beta"] != beta:
            return f"the claim is about β = {beta:g}"
        if any(ds.attrs[key] != other.attrs[key] for key in ("optimizer", "rate")):
            return "of two optimisers or rates"
        return None if ds.seed.values.tolist() == other.seed.values.tolist() else "of other seeds"

    return reason


NEAR = 0.1  # of a logarithm


@run_claim(
    "shield.sgd-scales-with-beta",
    "Under plain descent DPO's first update grows in proportion to β: parameters and rejected answers move β/.1 times "
    "as far as at β = .1, within 10 %.",
    source=f"{B4}; c = β/2 at the reference",
    premises=_pair(["sgd"], "taught", f"dpo {BETA}"),
    expect="holds",
    why="parameters exactly; rejected answers but for second order, 2 % at β = .5",
    takes="control",
    unit="of the ratio's logarithm",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def sgd_scales_with_beta(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """.1 − |log(ratio of sizes) − log(ratio of β)|, either way."""
    wanted = np.log(ds.attrs["beta"] / BETA)
    off = [np.log(a / b) - wanted for a, b in zip(_sizes(ds, 1), _sizes(control, 1), strict=True)]
    return ranked([NEAR + sign * x for x in off for sign in (1.0, -1.0)])


@run_claim(
    "shield.rmsprop-divides-beta-out",
    "Under RMSprop and AdamW β changes neither DPO's first update nor the first four: parameters and rejected answers "
    "move as far as at β = .1, within 10 %.",
    source=f"{B4}; an update is divided by the size of its gradient",
    premises=_pair(SCALED, "taught", f"dpo {BETA}"),
    expect="holds",
    why="the first update is the same to rounding; over four a large β fades a little sooner, by 4 % at β = .5",
    takes="control",
    unit="of the ratio's logarithm",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def rmsprop_divides_beta_out(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """.1 − |log(ratio of sizes)|, either way, after one update and after four."""
    out = []
    for at in (1, -1):
        for a, b in zip(_sizes(ds, at), _sizes(control, at), strict=True):
            out += [NEAR + np.log(a / b), NEAR - np.log(a / b)]
    return ranked(out)


TENFOLD = float(np.log(10.0))


def _shorter(ds: xr.Dataset, control: xr.Dataset) -> Array:
    """log of how many times further SFT's first update goes, (seed,)."""
    return np.log(_moved(control, 1) / _moved(ds, 1))


@run_claim(
    "shield.sgd-tenfold-before-sft",
    "Under plain descent from a pretrained model DPO's first update (β = .1) moves the parameters less than a tenth as "
    "far as SFT's at the same rate.",
    source=f"{B4}; 2/β = 20 but for the second answer",
    premises=_pair(["sgd"], "pretrained", "sft", BETA),
    expect="holds",
    why="14 times as far [13, 15]: 20 divided by √2, as there are two answers, of about equal gradients",
    takes="control",
    unit="log of the ratio",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def sgd_tenfold_before_sft(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """log(SFT's length / DPO's) − log 10."""
    return ranked([_shorter(ds, control) - TENFOLD])


@run_claim(
    "shield.sgd-tenfold-after-sft",
    "Also after SFT, where DPO begins in practice, DPO's first update (β = .1) moves the parameters less than a tenth "
    "as far as one more of SFT at the same rate of plain descent.",
    source=f"{B4} at the start of DPO",
    premises=_pair(["sgd"], "taught", "sft", BETA),
    expect="refuted",
    why="5.5 times as far [4.8, 6.2] only: SFT has shrunk the gradient of the chosen answer and enlarged that of the "
    "rejected one",
    instead="shield.sgd-tenfold-before-sft",
    takes="control",
    unit="log of the ratio",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def sgd_tenfold_after_sft(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """log(SFT's length / DPO's) − log 10."""
    return ranked([_shorter(ds, control) - TENFOLD])


@run_claim(
    "shield.rmsprop-takes-it-away",
    "Under RMSprop and AdamW DPO's first update (β = .1) moves the parameters as far as SFT's at the same rate, within "
    "10 %.",
    source=f"{B4}; every entry of a first update is η or −η, whatever the loss",
    premises=_pair(SCALED, "taught", "sft", BETA),
    expect="holds",
    why="to .3 %, whatever the gradients are",
    takes="control",
    unit="of the ratio's logarithm",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def rmsprop_takes_it_away(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """.1 − |log(SFT's length / DPO's)|, either way."""
    ratio = _shorter(ds, control)
    return ranked([NEAR - ratio, NEAR + ratio])


def _spared(ds: xr.Dataset, control: xr.Dataset) -> list[Array]:
    """By how much less DPO lowers an untrained answer than SFT, after one update and after four, (seed,) each."""
    return [_change(ds, "test_chosen", at) - _change(control, "test_chosen", at) for at in (1, -1)]


@run_claim(
    "shield.sgd-spares-untrained",
    "Under plain descent after SFT the first updates of DPO (β = .1) lower an untrained answer by less than as many "
    "more of SFT at the same rate.",
    source=B4,
    premises=_pair(["sgd"], "taught", "sft", BETA),
    expect="holds",
    why="by .20 nats [.14, .28] after one update, .71 after four",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def sgd_spares_untrained(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of the untrained answer, DPO minus SFT."""
    return ranked(_spared(ds, control))


@run_claim(
    "shield.rmsprop-harms-untrained",
    "Under RMSprop and AdamW after SFT the first updates of DPO (β = .1) lower an untrained answer by more than as "
    "many more of SFT at the same rate.",
    source=f"{B4}, the other way round: with the shield divided out, the negative gradient shows",
    premises=_pair(SCALED, "taught", "sft", BETA),
    expect="open",
    why="by .03 nats [.02, .05] after one update, .08 (RMSprop) and .11 (AdamW) after four, the rejected answer "
    "falling many times as far; from a pretrained model neither lowers it by a hundredth",
    takes="control",
    rungs=(RUNG,),
    experiment=EXPERIMENT,
)
def rmsprop_harms_untrained(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of the untrained answer, SFT minus DPO."""
    return ranked([-x for x in _spared(ds, control)])
