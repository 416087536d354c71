"""Token by token: where in a pair DPO squeezes (T10), and three laws of single tokens and pairs in a whole network.

*positions*: pairs whose first k tokens are shared, y⁻ being the model's own continuation of them. A context on the path
of y⁻ (or of y⁺) lies before, at or after the first token in which the two differ. There the residuals of y⁺ and y⁻
cancel (before), add up to c(e₋ − e₊) (at), or are those of one response (after). Every pair *alone*, by plain descent,
k = 0 … 4 through all layers and k = 2 in the head; and *many*, all pairs of k = 2 together, by plain descent and by
RMSprop, where other pairs reach every context, too. Tables hold log π token by token (logp_token, argmax_logp_token of
chosen and rejected) before DPO and after it, and means over the contexts of a region:

- eval_SIDE_label_REGION: Δlog π of the path's own token;
- eval_SIDE_top_REGION, eval_SIDE_rest_REGION: of y*, the likeliest class but those trained there, and the mean over all
  classes that are not trained there; gap = top − rest: above 0 the rich get richer;
- eval_SIDE_spread_REGION: standard deviation of Δlog π over the same classes, weighted by π: 0 where DPO keeps their
  ratios.

*cut*: the same pairs (k = 2) ending at the token that differs, each alone, one update in the head or in all layers:
there T10 is a theorem for the head (eval_spread; eval_moved: |Δ log odds of the two tokens|).

The other tables are `_valley`'s (T6, Condition 1 of gradient entanglement) and `_proxies`' (LBK, SignDelta).

Settings, fixed on seeds from 1000 on: updates of the shared recipes until the margin has grown by about 10 nats. In
*cut* a rate that moves the log odds by about 2 nats in the head, which is no small step, and a fifth of it in all
layers, which learn some five times as fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from toyld import objectives
from toyld.tiny.experiments import _proxies, _valley
from toyld.tiny.experiments._pairs import apart, beliefs, double, members, scored, taught
from toyld.tiny.experiments._worlds import BETA, RECIPES
from toyld.tiny.models import Models
from toyld.tiny.stage import train
from toyld.tiny.texts import PAD, Texts, with_rejected
from toyld.trajectory import trajectory

__all__ = ["DESIGN", "REGIONS", "SHARED", "by_region", "cut", "diverging", "positions", "regions", "shared_pairs",
           "tables"]  # fmt: skip

SHARED, MIDDLE = (0, 1, 2, 3, 4), 2
REGIONS = ("before", "at", "after")
# (regime, optimiser, layers, tokens shared) → updates
DESIGN: Mapping[tuple[str, str, str, int], int] = {
    **{("alone", "sgd", "all", k): 6 for k in SHARED},
    ("alone", "sgd", "head", MIDDLE): 20,
    ("many", "sgd", "all", MIDDLE): 15,
    ("many", "rmsprop", "all", MIDDLE): 20,
}
SIDES = ("chosen", "rejected")
Floats = np.ndarray[Any, np.dtype[np.float64]]


def shared_pairs(models: Models, data: Texts, shared: int, /) -> Texts:
    """The data with the model's own continuations of the first `shared` tokens of chosen as rejected."""
    prefix = data.texts["chosen"][..., :shared]
    own = models.sample(data.language, data.prompts["chosen"], seed=10 + shared, prefix=prefix)
    return with_rejected(data, own, shared=shared)


def diverging(data: Texts, /) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first place at which chosen and rejected differ, (S, P); the length of texts where they do not."""
    differ = data.texts["chosen"] != data.texts["rejected"]
    return np.where(differ.any(-1), differ.argmax(-1), differ.shape[-1])


def regions(data: Texts, kind: str, /) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Region → which tokens (S, P, T) of a side lie there; none of a pair whose responses are one."""
    text, first = data.texts[kind], diverging(data)[..., None]
    place = np.arange(text.shape[-1])
    there = (text != PAD) & (first < text.shape[-1])
    return {"before": there & (place < first), "at": there & (place == first), "after": there & (place > first)}


def by_region(before: Mapping[str, Floats], after: Mapping[str, Floats], data: Texts, /) -> dict[str, Floats]:
    """SIDE_label_REGION, …: what happened to log π (S, P, T, V) along both paths, means over contexts, (S,)."""
    out: dict[str, Floats] = {}
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        text, logp = np.maximum(data.texts[side], 0), before[side]
        change, place = after[side] - logp, regions(data, side)
        classes = np.arange(change.shape[-1])
        both = (place["before"] | place["at"])[..., None]  # there the other side trains the same context
        free = (classes != text[..., None]) & ~(both & (classes == np.maximum(data.texts[other], 0)[..., None]))
        star = np.where(free, logp, -np.inf).argmax(-1)[..., None]
        found = {
            "label": np.take_along_axis(change, text[..., None], -1)[..., 0],
            "top": np.take_along_axis(change, star, -1)[..., 0],
            "rest": np.where(free, change, 0.0).sum(-1) / free.sum(-1),
            "spread": _spread(np.where(free, np.exp(logp), 0.0), change),
        }
        found["gap"] = found["top"] - found["rest"]
        for region, mask in place.items():
            count = mask.sum((1, 2))
            for name, value in found.items():
                total = np.where(mask, value, 0.0).sum((1, 2))
                out[f"{side}_{name}_{region}"] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def _spread(weight: Floats, change: Floats) -> Floats:
    """Weighted standard deviation over classes, (…, V) twice → (…,)."""
    q = weight / weight.sum(-1, keepdims=True)
    mean = (q * change).sum(-1, keepdims=True)
    return np.sqrt((q * (change - mean) ** 2).sum(-1))


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """All tables of this experiment; see the module."""
    models, data = taught(tuple(seeds), size)
    out, moved = {}, models
    for plan in DESIGN:
        out[", ".join(map(str, (*plan[:3], f"{plan[3]} shared")))], end = positions(models, data, plan)
        moved = end if plan[:2] == ("many", "sgd") else moved
    out |= {f"cut, {layers}": cut(models, data, layers) for layers in ("head", "all")}
    out |= _valley.tables(models, moved, data, shared_pairs(models, data, MIDDLE + 1)) | _proxies.tables(
        models, data, tuple(seeds), size
    )
    return {f"tokens: {name}": ds.assign_attrs(experiment="tokens") for name, ds in out.items()}


def positions(models: Models, data: Texts, plan: tuple[str, str, str, int], /) -> tuple[xr.Dataset, Models]:
    """One DPO run of the design, and the models after it (of each pair, where pairs are alone)."""
    regime, name, layers, shared = plan
    way, shape = RECIPES[name], data.prompts["chosen"].shape
    pairs = shared_pairs(models, data, shared)
    alone = regime == "alone"
    start, own = (models.take(members(*shape)), apart(pairs)) if alone else (models, pairs)
    run = train(
        start, own, objectives.get("dpo", beta=BETA), lr=way.dpo / (shape[1] if alone else 1), steps=DESIGN[plan],
        optimizer=way.optimizer, warmup=way.warmup, rejected="rejected", layers=layers, kinds=SIDES, at=(),
    )  # fmt: skip
    before, after = (
        {side: logp.reshape(*shape, *logp.shape[2:]) for side, logp in beliefs(one, own, SIDES).items()}
        for one in (start, run.models)
    )
    columns: dict[str, Any] = _by_token(before, after, pairs)
    columns["n_tokens"] = np.stack([(pairs.texts[side] != PAD).sum(-1) for side in SIDES], 1)
    columns["logp"], columns["argmax_logp"] = (
        np.nansum(columns[f"{one}_token"], -1) for one in ("logp", "argmax_logp")
    )
    columns["ref_logp"] = columns["logp"][:, 0]
    for one, value in by_region(before, after, pairs).items():
        columns[f"eval_{one}"] = np.stack([np.full(shape[0], np.nan), value], 1)
    ds = trajectory(
        columns, step=[0, DESIGN[plan]], probe=SIDES, example=[f"prompt {i}" for i in range(shape[1])],
        seed=models.seeds, world="tiny", stage="dpo", arm=f"{regime}, {shared} shared",
        attrs={"design": "positions", "regime": regime, "optimizer": name, "layers": layers, "shared": shared,
               "vocab_size": models.shape.classes, "beta": BETA},
    )  # fmt: skip
    return ds, run.models


def _by_token(before: Mapping[str, Floats], after: Mapping[str, Floats], data: Texts) -> dict[str, Floats]:
    """logp_token and argmax_logp_token (S, 2, side, P, T), NaN behind the end of a response."""
    out = {}
    for name in ("logp_token", "argmax_logp_token"):
        sides = []
        for side in SIDES:
            text, both = data.texts[side][:, None], np.stack([before[side], after[side]], 1)
            label = np.broadcast_to(np.maximum(text, 0)[..., None], (*both.shape[:-1], 1))
            value = np.take_along_axis(both, label, -1)[..., 0] if name == "logp_token" else both.max(-1)
            sides.append(np.where(text != PAD, value, np.nan))
        out[name] = np.stack(sides, 2)
    return out


def cut(models: Models, data: Texts, layers: str, /) -> xr.Dataset:
    """Pairs that end at the first token in which they differ, each alone: one update of DPO, in float64."""
    shape = data.prompts["chosen"].shape
    pairs = shared_pairs(models, data, MIDDLE)
    first, place = diverging(pairs), np.arange(data.texts["chosen"].shape[-1])
    pairs = pairs.also({side: np.where(place <= first[..., None], pairs.texts[side], PAD) for side in SIDES})
    many, one = double(models.take(members(*shape))), apart(pairs)
    # A head that reads states of ‖h‖² ≈ d is moved by ηβ‖h‖² in the log odds of the two tokens.
    lr = 1.0 / (BETA * many.shape.width) / (1.0 if layers == "head" else 5.0)
    run = train(
        many, one, objectives.get("dpo", beta=BETA), lr=lr, steps=1, rejected="rejected", layers=layers,
        kinds=("chosen",), at=(),
    )  # fmt: skip
    start, end = (beliefs(m, one, ("chosen",))["chosen"].reshape(*shape, len(place), -1) for m in (many, run.models))
    at = np.minimum(first, len(place) - 1)[..., None]
    logp, change = (np.take_along_axis(x, at[..., None], 2)[:, :, 0] for x in (start, end - start))
    labels = [np.take_along_axis(np.maximum(pairs.texts[side], 0), at, 2) for side in SIDES]
    q = np.exp(logp)
    for label in labels:
        np.put_along_axis(q, label, 0.0, -1)
    plus, minus = (np.take_along_axis(change, label, -1)[..., 0] for label in labels)
    found = {"spread": _spread(q, change), "moved": np.abs(plus - minus)}
    known = first < len(place)  # a continuation may be that of chosen itself
    columns = {name: np.nanmean(np.where(known, value, np.nan), -1) for name, value in found.items()}
    return scored(columns, models.seeds, stage="cut", arm=layers, layers=layers)
