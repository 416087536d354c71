"""Token by token in whole networks: where DPO squeezes (T10), and what π, K and gradients foretell of single steps.

Tables of `toyld.tiny.experiments.tokens`; units are seeds. A context of a pair lies *before*, *at* or *after* the first
token in which y⁺ and y⁻ differ. y*: the likeliest class that is not trained there; *gap*: Δlog π(y*) less the mean of
Δlog π over all classes that are not trained there, so that the rich get richer where it is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.counted import in_most
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim

__all__ = ["SHARED", "asks", "last", "over", "pick"]

Floats = NDArray[np.float64]
T6, T10 = "toyld, T6 (valley theorem)", "toyld, T10 (DPO at a shared context)"
YUAN = "Yuan et al. 2024 (2410.13828), Condition 1"
SHARED = (0, 1, 2, 3, 4)
GUARANTEE, MOST, EXCEPTIONS, NEARLY, MARKED = 1e-9, 0.8, 0.99, 0.95, 0.05

token_claim = partial(run_claim, rungs=("tiny",), experiment="tokens")
_all_claim = partial(token_claim, takes="all")


def pick(tables: Sequence[xr.Dataset], /, **where: Any) -> list[xr.Dataset]:
    """The tables with these attributes."""
    return [ds for ds in tables if all(ds.attrs.get(key) == value for key, value in where.items())]


def asks(*cells: Mapping[str, Any]) -> Callable[..., str | None]:
    """Premises of a claim about several tables: each of these is there once."""

    def reason(*tables: xr.Dataset) -> str | None:
        for cell in cells:
            if len(pick(tables, **cell)) != 1:
                return f"not there: a table of {', '.join(f'{key} {value}' for key, value in cell.items())}"
        return None

    return reason


def last(ds: xr.Dataset, name: str, /) -> Floats:
    """eval_NAME (seed,) at the last evaluation."""
    return np.asarray(ds[f"eval_{name}"].transpose("step", "seed").values[-1], float)


def over(tables: Sequence[xr.Dataset], cells: Sequence[Mapping[str, Any]], name: str, /) -> Floats:
    """eval_NAME (seed,), mean over these tables; a table without the number does not count."""
    from toyld.diagnosis.resample import known_mean

    return np.asarray(known_mean(np.stack([last(pick(tables, **cell)[0], name) for cell in cells], -1)), float)


def _positions(regime: str, shared: int, **where: Any) -> dict[str, Any]:
    return {"design": "positions", "regime": regime, "shared": shared, "optimizer": "sgd", "layers": "all", **where}


ALONE = [_positions("alone", k) for k in SHARED]
HEAD = _positions("alone", 2, layers="head")
TOGETHER = {name: _positions("many", 2, optimizer=name) for name in ("sgd", "rmsprop")}


# --- T10: before, at and after the divergence


@_all_claim(
    "tokens.rich-gain-after-divergence",
    "Where DPO trains a pair alone through all layers, the likeliest other class gains more on the rest at y⁻'s "
    "contexts after the first token in which the pair differs than at that token (mean over 0 to 4 shared tokens).",
    source=T10,
    premises=asks(*ALONE),
    expect="holds",
    why="20 seeds: the gap is +.15 after, −.05 at and +.01 before it; by .20 [.15, .25] more after than at (p 2e-7); "
    "on 20 further seeds (5000 to 5019) by .18 [.10, .27], p 3e-4, which is not sure among all trials of the rung",
)
def rich_gain_after_divergence(*tables: xr.Dataset) -> Effect:
    """Gap after minus gap at."""
    after, at = (over(tables, ALONE, f"rejected_gap_{region}") for region in ("after", "at"))
    return ranked([after - at])


@_all_claim(
    "tokens.argmax-rises-after-divergence",
    "There that class rises itself, not only against the rest: squeezing.",
    source=f"{T10}; Ren & Sutherland 2025, Claim 2",
    premises=asks(*ALONE),
    expect="open",
    why="20 seeds: +.06 [.00, .11] nats, not sure; two development sets +.04 each: K couples the contexts of one "
    "response",
)
def argmax_rises_after_divergence(*tables: xr.Dataset) -> Effect:
    """Δlog π(y*) after the divergence."""
    return ranked([over(tables, ALONE, "rejected_top_after")])


@_all_claim(
    "tokens.argmax-rises-in-the-head",
    "Where DPO trains a pair alone in the head, the likeliest other class rises after the first token in which the "
    "pair differs (2 shared), and gains less on the rest at that token.",
    source=f"{T10}; Ren & Sutherland 2025, Claim 2",
    premises=asks(HEAD),
    expect="holds",
    why="20 seeds: +.17 nats, near the threshold (p 2e-4; two development sets +.19 each, p 1e-6); gap +.50 after "
    "against +.05 at",
)
def argmax_rises_in_the_head(*tables: xr.Dataset) -> Effect:
    """The lesser of Δlog π(y*) after the divergence, and of the gap after minus the gap at."""
    (ds,) = pick(tables, **HEAD)
    return ranked([last(ds, "rejected_top_after"), last(ds, "rejected_gap_after") - last(ds, "rejected_gap_at")])


@token_claim(
    "tokens.head-keeps-the-ratios",
    "Where a pair differs in its last token alone, one DPO update of the head, however large, keeps the ratios among "
    "all other classes there.",
    source=T10,
    premises=lambda ds: None if pick([ds], stage="cut", layers="head") else "the claim is about cut pairs, in the head",
    expect="holds",
    why="a theorem; to rounding, 1e-16, while the log odds of the two tokens move by 1.8 nats",
    unit="decades",
)
def head_keeps_the_ratios(ds: xr.Dataset) -> Effect:
    """Decades by which the spread of Δlog π over the others lies below 1e-9 of the move of the two."""
    return ranked([np.log10(GUARANTEE * last(ds, "moved") / last(ds, "spread"))])


@token_claim(
    "tokens.all-layers-reorder-the-rest",
    "Where a pair differs in its last token alone, a DPO update of all layers reorders the other classes there: their "
    "changes spread by more than a twentieth of what the log odds of the two tokens move.",
    source=f"{T10}, whose premise K ∝ I fails",
    premises=lambda ds: None if pick([ds], stage="cut", layers="all") else "the claim is about cut pairs, all layers",
    expect="holds",
    why="20 seeds: by .16 [.12, .19] of it, .09 of .53 nats",
    unit="of the move",
)
def all_layers_reorder_the_rest(ds: xr.Dataset) -> Effect:
    """Spread over move, minus a twentieth."""
    return ranked([last(ds, "spread") / last(ds, "moved") - MARKED])


@_all_claim(
    "tokens.divergence-is-spared-of-reordering",
    "Through all layers DPO of a pair alone reorders the classes that it does not train half as much at the first "
    "token in which the pair differs as after it, or less.",
    source=T10,
    premises=asks(*ALONE),
    expect="refuted",
    instead="tokens.rich-gain-after-divergence",
    why="20 seeds: .29 at against .34 after: what the other tokens of the pair teach reorders the classes there, "
    "too. The ratios change, but the rich do not gain",
)
def divergence_is_spared(*tables: xr.Dataset) -> Effect:
    """Half of the spread after, minus the spread at."""
    after, at = (over(tables, ALONE, f"rejected_spread_{region}") for region in ("after", "at"))
    return ranked([after / 2.0 - at])


@_all_claim(
    "tokens.chosen-rises-at-the-divergence",
    "Where DPO trains a pair alone, y⁺'s token rises where the pair differs, and its tokens after that, too (mean over "
    "0 to 4 shared tokens).",
    source=T10,
    premises=asks(*ALONE),
    expect="holds",
    why="20 seeds: by .35 and .12 nats a token",
)
def plus_rises(*tables: xr.Dataset) -> Effect:
    """The lesser of the changes at and after the divergence."""
    return ranked([over(tables, ALONE, f"chosen_label_{region}") for region in ("at", "after")])


@_all_claim(
    "tokens.shared-beginning-pays",
    "The tokens that y⁺ shares with y⁻ fall, whether DPO trains a pair alone (1 to 4 shared) or all pairs together, by "
    "plain descent or RMSprop (2 shared), though there both residuals cancel.",
    source=f"{T10}; Razin et al. 2025 (2410.08847)",
    premises=asks(*ALONE[1:], *TOGETHER.values()),
    expect="holds",
    why="20 seeds: by .06 [.04, .08] nats a token alone, .57 together by plain descent, .24 by RMSprop: no residual "
    "is left there, they fall by what later contexts of y⁻ teach, through K",
)
def shared_beginning_pays(*tables: xr.Dataset) -> Effect:
    """The least fall of the three."""
    each = [ALONE[1:], *([cell] for cell in TOGETHER.values())]
    return ranked([-over(tables, cells, "chosen_label_before") for cells in each])


@_all_claim(
    "tokens.chosen-rises-in-company",
    "Where all pairs are trained together, y⁺'s token still rises where a pair differs (2 shared), by plain descent "
    "and by RMSprop.",
    source=f"{T10}, with other pairs about",
    premises=asks(*TOGETHER.values()),
    expect="open",
    why="20 seeds: +.03 by plain descent, −.17 by RMSprop, neither sure: other pairs reach that context",
)
def plus_rises_in_company(*tables: xr.Dataset) -> Effect:
    """The lesser change at the divergence."""
    return ranked([over(tables, [cell], "chosen_label_at") for cell in TOGETHER.values()])


@_all_claim(
    "tokens.rmsprop-favours-the-tail",
    "After the divergence the likeliest other class gains less on the rest under RMSprop than under plain descent (all "
    "pairs together, 2 shared).",
    source="toyld: RMSprop divides the size of each parameter's gradient out, so that rare classes move as fast",
    premises=asks(*TOGETHER.values()),
    expect="holds",
    why="20 seeds: it gains .61 by plain descent and loses .62 by RMSprop",
)
def rmsprop_favours_the_tail(*tables: xr.Dataset) -> Effect:
    """Gap under plain descent minus gap under RMSprop."""
    sgd, rmsprop = (over(tables, [cell], "rejected_gap_after") for cell in TOGETHER.values())
    return ranked([sgd - rmsprop])


# --- T6: entropy at each penalised token


def _valley(layers: str) -> Callable[[xr.Dataset], str | None]:
    where = f"single negative steps, {layers}"
    return lambda ds: None if pick([ds], stage="valley", layers=layers) else f"the claim is about {where}"


_share_claim = partial(token_claim, unit="of the tokens")


@partial(token_claim, unit="of the seeds, less half")(
    "tokens.law-is-exact-in-the-head",
    "In the head the sign of the change of entropy at a penalised token is, for a small step, the one that its π "
    "tells, −Cov_π(log π, π) + π_y(log π_y + H); and however large the step, entropy falls where log π_y ≤ −H.",
    source=T6,
    premises=_valley("head"),
    expect="holds",
    why="a theorem: every token of every seed, at steps of 1e-4 and of 1",
)
def law_is_exact_in_the_head(ds: xr.Dataset) -> Effect:
    """Seeds in which every token is so."""
    return in_most([last(ds, name) for name in ("law_tiny", "valley_tiny", "valley_moderate")], 1.0)


@_share_claim(
    "tokens.law-serves-all-layers",
    "Through all layers, too, the sign that π tells is right more often than the better of the guesses that entropy "
    "always falls or always rises, at small steps and at moderate ones (s = 1e-4 and 1).",
    source=f"{T6}, whose premise K ∝ I fails",
    premises=_valley("all"),
    expect="holds",
    why="20 seeds: .93 and .89 of the tokens against .6 to .7",
)
def law_serves_all_layers(ds: xr.Dataset) -> Effect:
    """Share that is right minus the share that a blind guess gets, the lesser of both steps."""
    each = []
    for s in ("tiny", "moderate"):
        falls = last(ds, f"falls_{s}")
        each.append(last(ds, f"law_{s}") - np.maximum(falls, 1.0 - falls))
    return ranked(each)


@_share_claim(
    "tokens.valley-has-no-exceptions",
    "Through all layers entropy falls at 99 of 100 penalised tokens with log π_y ≤ −H, at small and at moderate steps.",
    source=f"{T6}, without its premise K ∝ I",
    premises=_valley("all"),
    expect="open",
    why="20 seeds: .92 and .92, below the bar by .07 [.03, .11], not sure (p 3e-3; two development sets by .08 each, "
    "p 4e-4 and 5e-5); in the head it is all of them, so that K alone is to blame",
)
def valley_has_no_exceptions(ds: xr.Dataset) -> Effect:
    """Share of those tokens minus .99, mean over both steps."""
    return ranked([(last(ds, "valley_tiny") + last(ds, "valley_moderate")) / 2.0 - EXCEPTIONS])


@_share_claim(
    "tokens.valley-mostly-holds",
    "Through all layers entropy falls at more than four in five penalised tokens with log π_y ≤ −H, at small steps.",
    source=f"{T6}, without its premise K ∝ I",
    premises=_valley("all"),
    expect="holds",
    why="20 seeds: at .92; of the other tokens at .18",
)
def valley_mostly_holds(ds: xr.Dataset) -> Effect:
    """Share of those tokens minus .8."""
    return ranked([last(ds, "valley_tiny") - MOST])


STEPS = [
    {"stage": "step", "optimizer": name, "layers": layers}
    for name, layers in (("sgd", "head"), ("sgd", "all"), ("rmsprop", "all"))
]


@_all_claim(
    "tokens.valley-tells-in-dpo",
    "After one DPO update on all pairs entropy has fallen at more of the tokens of y⁻ behind the divergence with "
    "log π_y ≤ −H than of the others (mean over plain descent in the head, in all layers, and RMSprop).",
    source=T6,
    premises=asks(*STEPS),
    expect="holds",
    why="20 seeds: .96 against .83 in the head, .91 against .77 in all layers, .78 against .56 by RMSprop",
    unit="of the tokens",
)
def valley_tells_in_dpo(*tables: xr.Dataset) -> Effect:
    """Share that falls in the valley minus share that falls outside."""
    return ranked([over(tables, STEPS, "valley") - over(tables, STEPS, "outside")])


@_share_claim(
    "tokens.law-beats-a-guess-in-dpo",
    "After one DPO update on all pairs the sign that π tells is right more often than the better blind guess.",
    source=T6,
    premises=lambda ds: None if ds.attrs["stage"] == "step" else "the claim is about one DPO update on all pairs",
    expect="open",
    why="20 seeds: by plain descent .67 and .68 against .84 and .89 (all fall), worse than the guess and surely so; "
    "by RMSprop level with it: other contexts push entropy down nearly everywhere, which no one context's π knows",
)
def law_beats_a_guess_in_dpo(ds: xr.Dataset) -> Effect:
    """Share that is right minus the share that a blind guess gets."""
    falls = last(ds, "falls")
    return ranked([last(ds, "law") - np.maximum(falls, 1.0 - falls)])


# --- Condition 1 of gradient entanglement

POLICIES = [{"stage": "entanglement", "policy": policy} for policy in ("sft", "dpo")]


@partial(token_claim, unit="of the seeds, less half")(
    "tokens.condition-1-decides-alone",
    "After a small DPO step on one pair alone, log π(y⁺) has risen if and only if ⟨g₊, g₋⟩ < ‖g₊‖², and log π(y⁻) "
    "fallen if and only if ⟨g₊, g₋⟩ < ‖g₋‖².",
    source=YUAN,
    premises=lambda ds: None if ds.attrs["stage"] == "entanglement" else "the claim is about Condition 1",
    expect="holds",
    why="first order, exact: all pairs of all seeds; log π(y⁺) is to fall for 3 % of them after SFT, for 23 % after "
    "DPO",
)
def condition_1_decides_alone(ds: xr.Dataset) -> Effect:
    """Seeds in which every pair is so, on both sides."""
    return in_most([last(ds, f"{side}_small") for side in ("chosen", "rejected")], 1.0)


@_all_claim(
    "tokens.condition-1-decides-in-company",
    "After a small DPO step on all pairs, too, whose responses share their first three tokens, the pair's own ⟨g₊, g₋⟩ "
    "< ‖g₊‖² tells for 95 in 100 pairs whether log π(y⁺) has risen (mean over models after SFT and after DPO).",
    source=YUAN,
    premises=asks(*POLICIES),
    expect="refuted",
    instead="tokens.all-gradients-decide",
    why="20 seeds: for .80 after SFT and .83 after DPO, below the bar by .136 [.08, .19], p 1e-4; on 20 further seeds "
    "(5000 to 5019) for .83 and .74, by .17 [.11, .23]: the other pairs' gradients outweigh the pair's own",
    unit="of the pairs",
)
def condition_1_decides_in_company(*tables: xr.Dataset) -> Effect:
    """Share of pairs minus .95, mean over the policies after SFT and after DPO."""
    return ranked([over(tables, POLICIES, "chosen_batch") - NEARLY])


@partial(token_claim, unit="of the seeds, less half")(
    "tokens.all-gradients-decide",
    "After a small DPO step on all pairs, the sign of Σ_j ⟨g_i, g_j⁺ − g_j⁻⟩ over all pairs j tells whether a response "
    "i has risen.",
    source="K3, first order, with the gradients of all layers",
    premises=lambda ds: None if ds.attrs["stage"] == "entanglement" else "the claim is about gradients of pairs",
    expect="holds",
    why="first order, exact: all responses of all seeds",
)
def all_gradients_decide(ds: xr.Dataset) -> Effect:
    """Seeds in which every response is so, on both sides."""
    return in_most([last(ds, f"{side}_sum_batch") for side in ("chosen", "rejected")], 1.0)


@_all_claim(
    "tokens.condition-1-lasts",
    "After a DPO step on one pair alone, of three shared tokens, that moves its margin by 5 nats (to first order), "
    "⟨g₊, g₋⟩ < ‖g₊‖² at its start still tells for 95 in 100 pairs whether log π(y⁺) has risen.",
    source=f"{YUAN}, beyond first order",
    premises=asks(*POLICIES),
    expect="refuted",
    instead="tokens.condition-1-decides-alone",
    why="20 seeds: for .66 and .72 of them; it foretells too many rises",
    unit="of the pairs",
)
def condition_1_lasts(*tables: xr.Dataset) -> Effect:
    """Share of pairs minus .95, mean over the policies after SFT and after DPO."""
    return ranked([over(tables, POLICIES, "chosen_large") - NEARLY])
