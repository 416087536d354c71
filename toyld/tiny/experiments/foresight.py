"""Which pairs will DPO displace? Scores known before it, against the runs of whole transformers that follow.

The design of `toyld.contexts.experiments.foresight`, with its names, where nothing is in closed form: SFT, then every
score of every pair (higher = the chosen response is to fall more), then DPO of all pairs together (*many*) or of every
pair alone from the same policy (*alone*), by plain descent and by RMSprop, through all layers; and once in the head
alone (*many*, plain descent), where K3 is exact. A score gets, in each seed, Spearman's rank correlation over the pairs
with the fall of log π(y⁺) where the mean margin of the seed reaches `MARGIN`, and at the end.

Scores: those of the closed form read off the last hidden states and the head (k3, pair, foreseen, even, ches, …), and

- *exact*: the first-order fall by one update of plain descent through all layers, −Σ_j (⟨g_i⁺, g_j⁺⟩ − ⟨g_i⁺, g_j⁻⟩);
- *exact_pair*: its terms of the pair's own (Condition 1 through all layers). Alone, exact is exact_pair.

- *signed*: the same by the first update of RMSprop, which is the sign of the gradient, −⟨g_i⁺, sign Σ_j (g_j⁺ − g_j⁻)⟩.

foreseen and even go on in the head by plain descent for `AHEAD` times the recipe's time, whatever the run then does:
what all layers learn is faster than what the head learns. begun is the fall in the run's own first tenth. The table of
the head alone has no exact, which is k3, and no signed.

Settings, fixed on seeds from 1000 on: the recipes of the shared worlds; updates such that the margin passes `MARGIN` in
nearly all seeds and DPO's push has faded to a fifth; 15 nats at β = .1 are a reward margin of 1.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.contexts import engine, predict
from toyld.contexts.experiments.foresight import alone, auc, fall_at, spearman
from toyld.contexts.experiments.foresight import scores as closed
from toyld.contexts.kernels import Gram
from toyld.contexts.world import Responses, World
from toyld.tiny.experiments._pairs import apart, gradients, members, scored, taught
from toyld.tiny.experiments._worlds import BETA, RECIPES
from toyld.tiny.models import Models
from toyld.tiny.stage import scene, train
from toyld.tiny.texts import Texts

__all__ = ["MARGIN", "SCORES", "head_world", "scores", "tables"]

MARGIN, AHEAD = 15.0, 4
# (optimiser, layers, regime) → updates
RUNS: Mapping[tuple[str, str, str], int] = {
    ("sgd", "head", "many"): 60,
    ("sgd", "all", "many"): 30,
    ("rmsprop", "all", "many"): 60,
    ("sgd", "all", "alone"): 24,
    ("rmsprop", "all", "alone"): 24,
}
TENTHS = (0, 1, 2, 4, 6, 8, 10)  # of a run: when it is measured
SCORES = (
    "exact", "exact_pair", "signed", "k3", "pair", "foreseen", "even", "begun", "ches", "ches_normalised", "overlap",
    "improbability", "margin", "ease",
)  # fmt: skip
Floats = np.ndarray[Any, np.dtype[np.float64]]


def head_world(models: Models, data: Texts, /) -> World:
    """The pairs as contexts whose kernel is measured: training the head of these models alone is exact in it (K1).

    >>> from toyld.tiny import Shape, Sizes, ask, draw, start, with_rejected
    >>> data = ask(draw(Sizes(), range(2)), prompts=4)
    >>> data = with_rejected(data, data.texts["random_words"])
    >>> head_world(start(Shape(39, 8), range(2)), data).size
    (2, 64, 39)
    """
    of = scene(data, ("chosen", "rejected"), models)
    phi = models.hidden(of.inputs).double().flatten(1, 2).cpu().numpy()
    with torch.no_grad():
        z = models.logits(of.inputs).double().flatten(1, 2).cpu().numpy()
    responses = {kind: Responses(*(a.cpu().numpy() for a in r)) for kind, r in of.responses.items()}
    return World(z, Gram(phi @ phi.swapaxes(1, 2)), responses, of.trained, models.seeds)


def scores(models: Models, data: Texts, /) -> dict[str, dict[str, Floats]]:
    """Regime → every score of every pair (S, P) that takes no run of the network; NAME_end where it differs there."""
    world = head_world(models, data)
    begin, shape = engine.start(world), data.prompts["chosen"].shape
    each = closed(world, begin)
    plus, minus = (gradients(models, data, kind) for kind in ("chosen", "rejected"))
    push = plus - minus
    gram = -(plus @ push.mT).double().cpu().numpy()
    own = np.diagonal(gram, axis1=1, axis2=2)
    whole = push.sum(1, keepdim=True).sign()
    signed = {"many": -(plus * whole).sum(-1), "alone": -(plus * push.sign()).sum(-1)}
    single = alone(world, begin)
    found = {}
    for regime, where, rate in (("many", world, 1.0), ("alone", single, 1.0 / shape[1])):
        found[regime] = each | {"exact": gram.sum(-1), "exact_pair": own, "signed": signed[regime].cpu().numpy()}
        time: dict[str, Any] = {"lr": rate * RECIPES["sgd"].dpo, "steps": AHEAD * RUNS["sgd", "all", "many"]}
        for name, growth in (("foreseen", 1.25), ("even", 1.0)):
            dpo = objectives.get("dpo", beta=BETA)
            seen = predict.foresee(where, engine.start(where), objective=dpo, growth=growth, **time)
            chosen, rejected = (seen[kind].reshape(-1, *shape) for kind in ("chosen", "rejected"))
            there, end = fall_at(MARGIN, chosen, rejected), -chosen[-1]
            # Where the few large updates do not get to the margin, their end is the best guess.
            found[regime] |= {name: np.where(np.isnan(there), end, there), f"{name}_end": end}
    found["alone"] |= {"k3": each["pair"], "exact": own}
    return found


def tables(
    seeds: Sequence[int] = range(20), size: str = "smoke", runs: Mapping[tuple[str, str, str], int] = RUNS
) -> dict[str, xr.Dataset]:
    """One table an optimiser, layers trained and regime: eval_rank_NAME and more, as in the closed form's experiment.

    eval_rank_NAME, eval_rank_end_NAME: Spearman at the margin and at the end; eval_auc_NAME, eval_auc_end_NAME.
    eval_fell, eval_fell_end: share of pairs that fall; eval_fell_first: that one update lowers, to first order.
    """
    models, data = taught(tuple(seeds), size)
    known, out = scores(models, data), {}
    for (name, layers, regime), updates in runs.items():
        chosen, rejected = _changes(models, data, name, layers, regime, updates)
        mine = known[regime] | {"begun": -chosen[1]}
        if layers == "head":
            mine = {one: value for one, value in mine.items() if not one.startswith(("exact", "signed"))}
        columns = {"fell_first": (mine["k3" if layers == "head" else "exact"] > 0).mean(-1)}
        for end, fall in {"": fall_at(MARGIN, chosen, rejected), "_end": -chosen[-1]}.items():
            columns[f"fell{end}"] = fell = np.where(np.isnan(fall).any(-1), np.nan, (fall > 0).mean(-1))
            for one in SCORES:
                if one in mine:
                    value = mine[f"{one}{end}" if f"{one}{end}" in mine else one]
                    columns[f"rank{end}_{one}"] = spearman(value, fall)
                    columns[f"auc{end}_{one}"] = np.where(np.isnan(fell), np.nan, auc(value, fall > 0))
        out[f"foresight: {regime}, {name}, {layers}"] = scored(
            columns, models.seeds, stage="scores", arm=regime, experiment="foresight", regime=regime, layers=layers,
            optimizer=name, updates=updates, margin=MARGIN,
        )  # fmt: skip
    return out


def _changes(models: Models, data: Texts, name: str, layers: str, regime: str, updates: int) -> tuple[Floats, Floats]:
    """Changes of log π of both sides, (evaluation, S, P), from 0 on; the second is at a tenth of the run."""
    recipe, shape = RECIPES[name], data.prompts["chosen"].shape
    lr = recipe.dpo
    if regime == "alone":
        models, data = models.take(members(*shape)), apart(data)
        lr = lr / shape[1] if name == "sgd" else lr  # an equal push a pair; RMSprop divides its size out
    at = [updates * k // 10 for k in TENTHS]
    run = train(
        models, data, objectives.get("dpo", beta=BETA), lr=lr, steps=updates, optimizer=recipe.optimizer,
        warmup=recipe.warmup, rejected="rejected", layers=layers, at=at, kinds=("chosen", "rejected"),
    )  # fmt: skip
    moved = (run.value("logp", kind) - run.value("logp", kind)[:1] for kind in ("chosen", "rejected"))
    chosen, rejected = (one.reshape(len(at), *shape) for one in moved)
    return chosen, rejected
