"""K6: centred features in the update, ΔZ_o = −η Σ_u ⟨φ_o, φ_u − μ⟩ R_u, against plain updates, controls and remedies.

The first claim is about one update (`toyld.claims.kernel_centred` has more on that), the others about the tables of
`toyld.contexts.experiments.remedies`: changes since the start of the preference stage, in nats a response, at
equal margin m = Δ(ℓ₊ − ℓ₋), at both of its margins unless an arm does not reach the larger one in nine seeds of ten
(a seed that does not is left out, and n counts the others).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from toyld.claims.base import Field, Margin, Premises, Without, claim, rounding
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.claims.spaces import constant, real
from toyld.contexts.experiments.remedies import MARGINS
from toyld.trajectory.matched import at_margin, margin

__all__ = [
    "AT_TINY",
    "CENTRED",
    "COMMON",
    "EXPERIMENT",
    "K6",
    "PLAIN",
    "crossing",
    "leads",
    "mine",
    "only",
    "pair",
    "reached",
    "updates_to",
]

Array = Any
K6, EXPERIMENT = "toyld, K6", "remedies"
CONTEXTS, FEATURES = 3, 2
PHI = Field(lambda size: CONTEXTS * FEATURES, lambda u, size, case: (8.0 * u - 4.0).reshape(-1, CONTEXTS, FEATURES))
RESIDUAL = Field(lambda size: CONTEXTS * size, lambda u, size, case: (2.0 * u - 1.0).reshape(-1, CONTEXTS, size))
WEIGHTS = Field(lambda size: CONTEXTS, lambda u, size, case: (u + 1e-3) / (u + 1e-3).sum(-1, keepdims=True))


@claim(
    "centring.projection-descends",
    "With the features' part along μ (or along any vector) projected out of the update, the loss still falls to first "
    "order, or stands: at the rate ‖(I − vvᵀ/‖v‖²)G‖², G = ΦᵀR.",
    source=K6,
    kind="theorem",
    rungs=("contexts",),
    premises=Premises({"phi": PHI, "r": RESIDUAL, "w": WEIGHTS, "k": constant(1.0)}),
    proof="The head moves by −η(I − vvᵀ/‖v‖²)G, and the loss by the inner product of G with that: a projection is "
    "symmetric and idempotent.",
    without=Without(
        "the part comes off once", Premises({"phi": PHI, "r": RESIDUAL, "w": WEIGHTS, "k": real(2.0, 4.0)})
    ),
)
def projection_descends(phi: Array, r: Array, w: Array, k: Array) -> Margin:
    g, v = np.swapaxes(phi, 1, 2) @ r, np.einsum("nc,ncd->nd", w, phi)
    along = np.einsum("nd,ndv->nv", v, g)
    rate = (g**2).sum((1, 2)) - k * (along**2).sum(-1) / np.maximum((v**2).sum(-1), np.finfo(float).tiny)
    return Margin(rate, rounding((1.0 + k) * (g**2).sum((1, 2)) + 1e-300))


# --- runs -------------------------------------------------------------------------------------------------------------

AT_TINY = "one world, its head alone with a constant feature that is half of the square, plain descent, at 5 nats only"
COMMON = ("common", "slight")  # all contexts share a constant component
ENOUGH = 0.9  # of the seeds
Premise = Callable[[xr.Dataset, xr.Dataset], str | None]


def reached(*tables: xr.Dataset, margins: Sequence[float] = MARGINS) -> tuple[float, ...]:
    """The margins that nine seeds of ten reach in every table."""
    most = [np.nanmax(margin(ds), axis=0) for ds in tables]
    return tuple(m for m in margins if all((peak >= m).mean() >= ENOUGH for peak in most))


def crossing(path: Array, values: Array, target: float, /) -> Array:
    """Values (step, seed) where a path (step, seed) first reaches `target`, (seed,), linear between evaluations.

    NaN for a seed whose path never gets there, or stands there from the start.

    >>> crossing(np.array([[0.0, 9.0], [4.0, 9.0]]), np.array([[1.0, 1.0], [3.0, 3.0]]), 2.0).tolist()
    [2.0, nan]
    """
    out = np.full(path.shape[1], np.nan)
    for s in range(path.shape[1]):
        there = np.flatnonzero(path[:, s] >= target)
        if len(there) and there[0]:
            k = int(there[0])
            out[s] = np.interp(target, path[k - 1 : k + 1, s], values[k - 1 : k + 1, s])
    return out


def updates_to(ds: xr.Dataset, target: float, /) -> Array:
    """Updates until the margin first reaches `target`, (seed,), linear between evaluations; NaN where it never does."""
    path = margin(ds)
    return crossing(path, np.repeat(ds.step.values.astype(float)[:, None], path.shape[1], 1), target)


def mine(ds: xr.Dataset) -> str | None:
    if ds.attrs.get("experiment") != EXPERIMENT:
        return "not a run of the experiment with remedies at equal margin"
    return None if ds.sizes["seed"] > 1 else "one seed: no interval over seeds"


def only(*arms: str) -> Callable[[xr.Dataset], str | None]:
    """Premises of a claim about some arms of the experiment."""
    return lambda ds: mine(ds) or (None if ds.attrs["arm"] in arms else "the claim is about other arms")


def pair(arms: Iterable[str], controls: Iterable[str], where: Iterable[str] | None = None) -> Premise:
    """Premises of a claim about an arm and its control in one world."""
    arms, controls, where = tuple(arms), tuple(controls), None if where is None else tuple(where)

    def reason(ds: xr.Dataset, control: xr.Dataset, /) -> str | None:
        for table in (ds, control):
            if other := mine(table):
                return other
        if ds.attrs["arm"] not in arms or control.attrs["arm"] not in controls:
            return "the claim is about other arms"
        if any(ds.attrs[key] != control.attrs[key] for key in ("kernel", "language", "first_step")):
            return "of two worlds, or of two step sizes"
        if where is not None and ds.attrs["kernel"] not in where:
            return f"the claim is about the kernels {', '.join(where)}"
        if ds.seed.values.tolist() != control.seed.values.tolist():
            return "of other seeds"
        return None if reached(ds, control) else f"fewer than nine seeds of ten reach the margin {MARGINS[0]:g}"

    return reason


def leads(ds: xr.Dataset, control: xr.Dataset, *probes: str, margins: Sequence[float] = MARGINS) -> list[Array]:
    """Change of each probe minus that in the control, at each margin that both reach, (seed,) each."""
    there = reached(ds, control, margins=margins)
    return [at_margin(ds, m, p) - at_margin(control, m, p) for m in there for p in probes]


CENTRED, PLAIN = ("centred", "centred-half"), ("plain", "plain-half")
_AGAINST_PLAIN = pair(CENTRED, PLAIN, COMMON)


@run_claim(
    "centring.spares-chosen",
    "Where all contexts share a constant component, DPO with centred updates leaves the chosen response higher than "
    "plain DPO at equal margin.",
    source=K6,
    premises=_AGAINST_PLAIN,
    expect="holds",
    why="in every language and at both margins; there centring is c = 0 (kernel.common-component-cancels)",
    takes="control",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={"tiny": ("holds", f"by .79 nats [.65, .93]; {AT_TINY}")},
)
def spares_chosen(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of chosen, centred minus plain, at the margin where that is least."""
    return ranked(leads(ds, control, "chosen"))


@run_claim(
    "centring.spares-untrained",
    "Where all contexts share a constant component, DPO with centred updates leaves an untrained test response higher "
    "than plain DPO at equal margin.",
    source=K6,
    premises=_AGAINST_PLAIN,
    expect="holds",
    why="in every language and at both margins",
    takes="control",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={"tiny": ("holds", f"by .62 nats [.33, .90], p = 2.2e-4; .60 [.36, .85] on seeds 5000-5019; {AT_TINY}")},
)
def spares_untrained(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of test_chosen, centred minus plain."""
    return ranked(leads(ds, control, "test_chosen"))


@run_claim(
    "centring.narrows-the-gap",
    "Where all contexts share a constant component, the argmax gains less on the chosen response under centred updates "
    "than under plain ones at equal margin.",
    source=f"{K6}; the gap is the paper's sign of squeezing",
    premises=_AGAINST_PLAIN,
    expect="holds",
    why="chosen no longer falls; the argmax itself rises by more, not by less",
    takes="control",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={"tiny": ("holds", f"by .62 nats [.45, .79]; {AT_TINY}")},
)
def narrows_the_gap(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Widening of argmax − chosen, plain minus centred."""
    gaps = []
    for m in reached(ds, control):
        wide = [at_margin(x, m, variable="argmax_logp") - at_margin(x, m) for x in (ds, control)]
        gaps.append(wide[1] - wide[0])
    return ranked(gaps)


@run_claim(
    "centring.spares-at-equal-updates",
    "Where all contexts share a constant component, centred updates leave chosen and untrained responses higher than "
    "plain ones also after as many updates as the plain run needs.",
    source=f"{K6}, at equal step",
    premises=_AGAINST_PLAIN,
    expect="holds",
    why="centred runs are slower as well, so equal updates flatter them; equal margin is the fair comparison",
    takes="control",
    rungs=("contexts", "tiny"),
    experiment=EXPERIMENT,
    elsewhere={"tiny": ("holds", f"by .70 nats [.55, .88] or more; {AT_TINY}")},
)
def spares_at_equal_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change at the plain run's number of updates, centred minus plain."""
    out = []
    for m in reached(ds, control):
        needed = updates_to(control, m)
        for probe in ("chosen", "test_chosen"):
            path = ds.logp.sel(probe=probe).mean("example").transpose("step", "seed").values
            there = [np.interp(k, ds.step.values, path[:, s]) - path[0, s] for s, k in enumerate(needed)]
            out.append(np.array(there) - at_margin(control, m, probe))
    return ranked(out)


@run_claim(
    "centring.needs-more-updates",
    "At the same rate centred updates need more of them for the same margin than plain ones.",
    source=f"{K6}, its price",
    premises=pair(CENTRED, PLAIN),
    expect="holds",
    why="in every kernel: 2.6 to 2.9 times as many where a constant component is half of every feature's square, 1.8 "
    "or 1.9 where it is an uneven one, 1.2 to 1.4 elsewhere",
    unit="log of the ratio",
    takes="control",
    rungs=("contexts", "tiny", "llm"),
    experiment=EXPERIMENT,
    elsewhere={
        "llm": (
            "holds",
            "1.3 times as many under plain descent, in the head and in all layers, 1.05 and 1.07 under RMSprop",
        ),
        "tiny": (
            "holds",
            "2.2 times as many where the head has a constant feature, 1.14 (head) and 1.11 (all layers) without under "
            "plain descent, 1.035 and 1.04 under RMSprop; at 5 nats, the head under RMSprop at 20 too",
        ),
    },
)
def needs_more_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """log(updates of centred / updates of plain)."""
    return ranked([np.log(updates_to(ds, m) / updates_to(control, m)) for m in reached(ds, control)])


@run_claim(
    "centring.keeps-descending",
    "Under centred updates the loss of DPO rises between fewer than one evaluation in twenty and the one before.",
    source=f"{K6}; descent is not guaranteed (kernel.centred-descends is refuted)",
    premises=lambda ds: mine(ds) or (None if ds.attrs["arm"] in CENTRED else "not the centred arm"),
    expect="holds",
    why="it rose between no two evaluations, in no kernel",
    unit="of the evaluations",
    rungs=("contexts", "tiny", "llm"),
    experiment=EXPERIMENT,
    elsewhere={
        "llm": ("open", "it rose between no two evaluations of 12 seeds, too few for the correction of this rung")
    },
)
def keeps_descending(ds: xr.Dataset) -> Effect:
    """One twentieth minus the share of evaluations with a higher loss than the one before."""
    loss = ds.loss.transpose("step", "seed").values
    return ranked([0.05 - (np.diff(loss, axis=0) > 0.0).mean(0)])
