"""K8: is what DPO does to untrained responses driven by how improbable y⁻ is, or by what its contexts are coupled to?

About the tables of `toyld.contexts.experiments.similarity`. There one factor at a time is changed while Z, S and the
labels stand; changes are of the mean test response (`test_chosen`: of the same language, never trained on) from the
start of DPO, in nats a response, where the margin Δ(ℓ₊ − ℓ₋) reaches the table's attr `margin`; a seed that does not
get there does not count, and two runs are not compared where fewer than nine seeds of ten do. "First update": exact
rates, in nats per unit of learning rate.

What is certain on this rung: the coupling of y⁻'s contexts carries the damage to untrained responses, and the more so,
the larger the component that all contexts share; its probability hardly matters to them, saturates at a token in 55,
and at equal margin the improbable y⁻ harms them *less*. It does not spare the chosen response itself, which mostly ends
a little lower (`similarity.improbable-costs-chosen`). Of the spread between the cells of the factorial
(`decomposition`; 12 prompts, seeds of record) the share of the common component has 29 and 45 %, coupling 41 and 27 %,
their interaction 27 and 26 %, and all that involves probability 2.4 and 1.4 %. What is not certain: how labels weigh,
which turns with the language; and any of this in a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld import softmax as sm
from toyld.claims.base import Margin, Premises, Without, claim, identity
from toyld.claims.centring import reached
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.claims.spaces import constant, label, logits, real
from toyld.claims.tools import at
from toyld.trajectory.matched import at_margin, margin

__all__ = [
    "FACTORS",
    "K8",
    "NAME",
    "SHARED",
    "STRONG",
    "change",
    "decomposition",
    "differing",
    "effects",
    "kernel_claim",
    "rate",
    "squeezed",
]

Array = Any
Floats = NDArray[np.float64]
K8 = "toyld, K8"
NAME = "similarity"
TEST = "test_chosen"
FACTORS = (
    *("language", "anisotropy", "coupling", "level", "power", "bag", "order", "text"),
    *("variant", "optimizer", "layers"),
)
LIKELY, RARE = 1.3, 12.7  # −log π per token of y⁻: a token in four, a token in 300,000
Premise = Callable[..., str | None]


def change(ds: xr.Dataset, probe: str = TEST, /, *, variable: str = "logp") -> Floats:
    """Change of a probe's mean at the table's own margin, (seed,), in nats; NaN for a seed that does not reach it."""
    return at_margin(ds, float(ds.attrs["margin"]), probe, variable=variable)


def rate(ds: xr.Dataset, probe: str = TEST, /) -> Floats:
    """Exact dℓ/dη of a probe's mean, or of the "margin", at the first update, (seed,), in nats per unit of η."""
    return np.asarray(ds[f"eval_rate_{probe}"].transpose("step", "seed").values[0], float)


def squeezed(ds: xr.Dataset, probe: str = TEST, /) -> Floats:
    """Share of the responses that fell while the argmax along them rose, at the table's margin, (seed,)."""
    path = margin(ds)
    moved = {
        name: (ds[name].sel(probe=probe) - ds[name].sel(probe=probe).isel(step=0)).transpose("step", "seed", "example")
        for name in ("logp", "argmax_logp")
    }
    out = np.full(path.shape[1], np.nan)
    for s in range(path.shape[1]):
        there = np.flatnonzero(path[:, s] >= ds.attrs["margin"])
        if len(there):
            k = int(there[0])
            part = (ds.attrs["margin"] - path[k - 1, s]) / (path[k, s] - path[k - 1, s])
            label, top = ((1.0 - part) * m.values[k - 1, s] + part * m.values[k, s] for m in moved.values())
            out[s] = float(np.mean((label < 0.0) & (top > 0.0)))
    return out


def _factors(ds: xr.Dataset, design: str) -> dict[str, Any] | None:
    """The factors of a run of this design; None for any other table."""
    if ds.attrs.get("experiment") != NAME or ds.attrs.get("design") != design:
        return None
    return {factor: ds.attrs.get(factor) for factor in FACTORS}


def differing(
    design: str, mine: Mapping[str, Any], other: Mapping[str, Any], *, share: float = 0.0, **rest: Any
) -> Premise:
    """Premises of a claim about two runs of a design that differ in one factor.

    `share`: the least common component that it speaks of; `rest`: levels that both runs have.
    """

    def reason(ds: xr.Dataset, control: xr.Dataset, /) -> str | None:
        one, two = _factors(ds, design), _factors(control, design)
        if one is None or two is None:
            return f"the claim is about two runs of the experiment {NAME}, design {design}"
        for found, wanted in ((one, mine), (two, other)):
            if any(found[factor] != value for factor, value in {**wanted, **rest}.items()):
                return "the claim is about other levels of the factors"
        if any(one[factor] != two[factor] for factor in FACTORS if factor not in mine):
            return "two runs that differ in more than one factor"
        if one["anisotropy"] < share:
            return f"the claim is about kernels with a common component of {share:g} of the diagonal or more"
        if ds.seed.values.tolist() != control.seed.values.tolist():
            return "two runs of other seeds"
        enough = reached(ds, control, margins=[float(ds.attrs["margin"])])
        return None if enough else "fewer than nine seeds of ten reach the margin"

    return reason


def _grid(tables: Sequence[xr.Dataset], design: str, *levels: Mapping[str, Any]) -> list[list[xr.Dataset]]:
    """By setting (all other factors equal), the run at each of the levels; settings without one of them left out."""
    varied = {factor for level in levels for factor in level}
    found: dict[tuple[Any, ...], dict[int, xr.Dataset]] = {}
    for ds in tables:
        cell = _factors(ds, design)
        for i, level in enumerate(levels if cell is not None else ()):
            if cell is not None and all(cell[factor] == value for factor, value in level.items()):
                key = tuple(cell[factor] for factor in FACTORS if factor not in varied)
                found.setdefault(key, {})[i] = ds
    return [[one[i] for i in range(len(levels))] for one in found.values() if len(one) == len(levels)]


def _complete(*tables: xr.Dataset) -> str | None:
    """Premise of claims about the whole factorial: its corners where contexts share a component, at two shares."""
    found = {runs[0].attrs["anisotropy"] for runs in _grid(tables, "factorial", *_FOUR)}
    shared = any(share >= SHARED for share in found)
    enough = shared and len(found) > 1
    return None if enough else f"the corners of the experiment {NAME}, design factorial, at two shares are not there"


SHARED, STRONG = 0.2, 0.5  # of the diagonal of S: about the mean cosine of a small model's hidden states; a strong one
_FOUR = tuple({"coupling": rho, "level": level} for rho in (1.0, 0.0) for level in (LIKELY, RARE))


def effects(
    tables: Sequence[xr.Dataset], read: Callable[[xr.Dataset], Floats] = change, /
) -> dict[str, dict[str, Floats]]:
    """By setting "language a=share": mean, main effects and interaction of coupling × probability, (seed,) each.

    coupling: ρ = 1 minus ρ = 0; improbability: rare minus likely; interaction: half of the difference that coupling
    makes to the effect of improbability. Each is a mean over the levels of the other factor.
    """
    out = {}
    for runs in _grid(tables, "factorial", *_FOUR):
        likely, rare, likely_alone, rare_alone = map(read, runs)
        where = runs[0].attrs
        setting = f"{where['language']} a={where['anisotropy']:g}"
        out[setting if where["variant"] == "plain" else f"{setting}, {where['variant']}"] = {
            "mean": (likely + rare + likely_alone + rare_alone) / 4.0,
            "coupling": (likely + rare - likely_alone - rare_alone) / 2.0,
            "improbability": (rare + rare_alone - likely - likely_alone) / 2.0,
            "interaction": (rare - likely - rare_alone + likely_alone) / 2.0,
        }
    return out


def decomposition(tables: Sequence[xr.Dataset], language: str, /) -> dict[str, Floats]:
    """What of the spread of a language's cells is whose: shares (seed,) of the sum of squares, which sum to 1.

    Cells: coupling 1 and 0 × likely and rare × all shares of the common component. Orthogonal, so the parts add up:
    "common" (the share), "coupling", "common x coupling", and "probability" with all that it takes part in.
    """
    runs = [r for r in _grid(tables, "factorial", *_FOUR) if r[0].attrs["language"] == language]
    found = [next(iter(effects(r).values())) for r in runs if r[0].attrs["variant"] == "plain"]
    mean, coupling, rare, both = (
        np.stack([one[name] for one in found]) for name in ("mean", "coupling", "improbability", "interaction")
    )
    parts = {
        "common": 4.0 * mean.var(0),
        "coupling": coupling.mean(0) ** 2,
        "common x coupling": coupling.var(0),
        "probability": (rare**2 + both**2).mean(0),
    }
    whole = sum(parts.values())
    return {name: part / whole for name, part in parts.items()}


@claim(
    "similarity.probability-scales-the-push",
    "While the other tokens keep their proportions q, the probability of y⁻ only scales what an update on y⁻ does: "
    "e_y − π = (1 − π_y)(e_y − q), by less than 1.4 from a token in four to one in 300,000.",
    source=f"{K8}: why improbability saturates",
    kind="identity",
    premises=Premises({"z": logits(high=8.0), "y": label(), "up": real(0.0, 8.0), "tilt": constant(0.0)}),
    proof="π_j = (1 − π_y) q_j for j ≠ y and q_y = 0, so e_y − π has 1 − π_y at y and −(1 − π_y) q_j elsewhere.",
    without=Without(
        "the other tokens keep their proportions",
        Premises({"z": logits(high=8.0), "y": label(), "up": real(0.0, 8.0), "tilt": real(0.5, 1.0)}),
    ),
)
def probability_scales_the_push(z: Array, y: Array, up: Array, tilt: Array) -> Margin:
    """Residuals of two policies that differ in π_y, each times the other one's 1 − π_y."""
    other = (1.0 + tilt)[:, None] * z + np.where(sm.one_hot(z, y), up[:, None], 0.0)
    left, right = (sm.residual(one, y, c=1.0) for one in (z, other))
    rest_left, rest_right = (-np.expm1(at(sm.log_softmax(one), y))[:, None] for one in (z, other))
    return identity(left * rest_right, right * rest_left, 1.0 + np.abs(z).max(-1)[:, None] + up[:, None])


kernel_claim = partial(run_claim, rungs=("contexts", "tiny"), experiment=NAME)  # a run claim of this chapter


@kernel_claim(
    "similarity.coupling-displaces",
    "Where contexts share a component: with Z fixed, an untrained response falls less at equal margin once the "
    "contexts of y⁻ alone are uncoupled from all others.",
    source=f"{K8}: scaling the cross-kernel of y⁻ by 1 or 0",
    premises=differing("factorial", {"coupling": 1.0}, {"coupling": 0.0}, share=SHARED),
    expect="holds",
    why="in both languages, by .5 to 3.2 nats of .8 to 3.9; at 12 prompts also with another local kernel, after "
    "longer SFT and at half the rate; where nothing is common to all (a share of 0) by .18 and .08 nats only; "
    "on the hidden states of transformers by 7.2 to 10.6 nats of 8.4 to 11.9",
    takes="control",
)
def coupling_displaces(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Fall with the coupling minus fall without."""
    return ranked([change(control) - change(ds)])


@kernel_claim(
    "similarity.improbable-displaces-more",
    "With S fixed, an untrained response falls more at equal margin if y⁻ is improbable (a token in 300,000) than if "
    "it is likely (one in four).",
    source=f"{K8}; the reading of squeezing in which improbable rejected responses do the damage",
    premises=differing("factorial", {"level": RARE}, {"level": LIKELY}),
    expect="refuted",
    why="an untrained response falls less, by .03 to .73 nats, in both languages, at every share and with or "
    "without coupling; at 12 prompts also with another local kernel, after longer SFT and at half the rate: the "
    "probability scales the push on all others and, squared, the margin's own rise "
    "(similarity.probability-scales-the-push); on the hidden states of transformers less by .25 to 1.3 nats",
    instead="similarity.coupling-displaces",
    takes="control",
)
def improbable_displaces_more(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Fall with the improbable y⁻ minus fall with the likely one."""
    return ranked([change(control) - change(ds)])


@kernel_claim(
    "similarity.improbable-costs-chosen",
    "With S fixed, the chosen response, other than an untrained one, ends lower at equal margin if y⁻ is improbable (a "
    "token in 300,000) than if it is likely (one in four).",
    source=f"{K8}; the improbable y⁻ itself makes more of the margin",
    premises=differing("factorial", {"level": RARE}, {"level": LIKELY}),
    expect="conditional",
    why="by .06 to .26 nats in eleven of twelve settings, most where nothing is common to all: y⁻ makes more of the "
    "margin. Where half is common and y⁻ coupled it spares chosen by .25 [.15, .35] in the language of facts, "
    "and costs it .06 [.03, .09] in the chain, which is borderline (p = 5e-4; on 32 further seeds, 5000 to "
    "5031, .04, p = 5e-4, the other eleven as here; at 12 prompts it spares it by .08 there). After longer SFT "
    "the chain's cost is below .04",
    takes="control",
    elsewhere={
        "tiny": (
            "open",
            "in transformers it costs .02 to .05 nats uncoupled, spares .28 to .51 coupled (p = 2e-4, 4e-4)",
        )
    },
)
def improbable_costs_chosen(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change of chosen with the likely y⁻ minus that with the improbable one."""
    return ranked([change(control, "chosen") - change(ds, "chosen")])


@kernel_claim(
    "similarity.coupling-outweighs-probability",
    "Where contexts share a component, uncoupling y⁻'s own contexts changes the fall of an untrained response at equal "
    "margin more than twice as much as making y⁻ improbable does, in whichever direction.",
    source=K8,
    premises=_complete,
    expect="holds",
    why="mean effects differ by factors of 4.0 to 6.7 (p = 2e-5; 7e-5 on 32 further seeds, 5000 to 5031); at 12 "
    "prompts by 5 to 9, also with another local kernel, after longer SFT and at half the rate; early (a quarter "
    "of this margin) by 2 to 4 only; on the hidden states of transformers by 11 and 13 (all 20 seeds get there)",
    takes="all",
)
def coupling_outweighs_probability(*tables: xr.Dataset) -> Effect:
    """Half of the effect of coupling minus that of improbability, and plus it, in the setting where that is least."""
    parts = []
    for one in effects([ds for ds in tables if ds.attrs.get("anisotropy", 0.0) >= SHARED]).values():
        half, other = -one["coupling"] / 2.0, one["improbability"]
        parts += [half - other, half + other]
    return ranked(parts)


@kernel_claim(
    "similarity.common-amplifies-coupling",
    "The larger the component that contexts share, the more the coupling of y⁻'s own contexts lowers an untrained "
    "response at equal margin.",
    source=f"{K8}, K4",
    premises=_complete,
    expect="holds",
    why="coupling costs .18, .87, 2.9 nats in one language and .08, .49, 2.0 in the other at shares 0, .2, .5; "
    "on the hidden states of transformers 6.5, 7.7, 10.1",
    takes="all",
)
def common_amplifies_coupling(*tables: xr.Dataset) -> Effect:
    """Effect of coupling at one share minus that at the next larger one."""
    by_share: dict[tuple[Any, ...], dict[float, Floats]] = {}
    for runs in _grid(tables, "factorial", *_FOUR):
        where, one = runs[0].attrs, next(iter(effects(runs).values()))
        by_share.setdefault((where["language"], where["variant"]), {})[where["anisotropy"]] = one["coupling"]
    parts = []
    for found in by_share.values():
        each = [found[share] for share in sorted(found)]
        parts += [less - more for less, more in pairwise(each)]
    return ranked(parts)


@kernel_claim(
    "similarity.coupling-squeezes",
    "Where half of every feature's square is common: with Z fixed, coupling y⁻'s own contexts to the others makes more "
    "of the untrained responses fall while the argmax along them rises, at equal margin.",
    source=K8,
    premises=differing("factorial", {"coupling": 1.0}, {"coupling": 0.0}, share=STRONG),
    expect="holds",
    why="by a share of .17 to .36 of the responses; improbability changes that share by about .02",
    takes="control",
    unit="of the responses",
    elsewhere={"tiny": ("open", "in transformers by .22 [.12, .31] and .23 [.11, .34] (p = 1e-4, 6e-4)")},
)
def coupling_squeezes(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Share of squeezed responses with the coupling minus that without."""
    return ranked([squeezed(ds) - squeezed(control)])


def _saturated(ds: xr.Dataset, control: xr.Dataset, /) -> str | None:
    rare, middle = _factors(ds, "factorial"), _factors(control, "peak")
    if rare is None or middle is None:
        return f"the claim is about a run of the factorial and one of the peaks of the experiment {NAME}"
    if (rare["level"], rare["coupling"], rare["variant"], middle["power"]) != (RARE, 1.0, "plain", 1.0):
        return "the claim is about other levels of the factors"
    same = all(rare[factor] == middle[factor] for factor in ("language", "anisotropy"))
    return None if same else "two runs that differ in more than one factor"


@kernel_claim(
    "similarity.improbability-saturates",
    "Once y⁻ has a token in 55, making it improbable beyond that (a token in 300,000) changes the fall of an untrained "
    "response at equal margin by less than a twentieth.",
    source=f"{K8}: ‖π − e_y‖ stops growing once π_y ≪ 1",
    premises=_saturated,
    expect="holds",
    why="the push on y⁻ is 98 % of its largest there (similarity.probability-scales-the-push)",
    takes="control",
)
def improbability_saturates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """A twentieth of the fall minus the difference, either way."""
    rare, middle = change(ds), change(control)
    return ranked([-middle / 20.0 - (rare - middle), -middle / 20.0 + (rare - middle)])


@kernel_claim(
    "similarity.first-update-coupling",
    "Where contexts share a component, the first update already lowers an untrained response more if y⁻'s own contexts "
    "are coupled, at one learning rate.",
    source=f"{K8}, per step",
    premises=differing("factorial", {"coupling": 1.0}, {"coupling": 0.0}, share=SHARED),
    expect="open",
    why="rates differ in sign between the languages and hardly from 0: what coupling does builds up along the "
    "run; at 12 prompts the chain shows it at the first update, too, the language of facts does not; "
    "on the hidden states of transformers it lowers the rate, if anything",
    takes="control",
    unit="nats per unit of η",
)
def first_update_coupling(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rate of the fall with the coupling minus that without."""
    return ranked([rate(control) - rate(ds)])


@kernel_claim(
    "similarity.first-update-improbable",
    "With S fixed, the first update lowers an untrained response more if y⁻ is improbable, at one learning rate.",
    source=f"{K8}, per step: ‖π − e_y‖ is larger",
    premises=differing("factorial", {"level": RARE}, {"level": LIKELY}, coupling=1.0),
    expect="open",
    why="as for the coupling (similarity.first-update-coupling): improbability multiplies whatever y⁻ does at the "
    "first update by less than 1.4, and that has either sign; in transformers less by .06 to .09, not surely",
    takes="control",
    unit="nats per unit of η",
)
def first_update_improbable(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rate of the fall with the improbable y⁻ minus that with the likely one."""
    return ranked([rate(control) - rate(ds)])
