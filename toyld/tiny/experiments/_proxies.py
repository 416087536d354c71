"""Is the influence of a lesson on other responses stable through SFT, and what do LBK and SignDelta say (App. C.2)?

At checkpoints of SFT, equally far apart in updates, one step of plain SFT descent on each of `LESSONS` chosen responses
u alone, so small that it is first order, is observed at all others o: chosen ones, and as many that are held out.

- LBK = ‖Δlog π_o‖²/(‖A_o‖² ‖G_u‖²) (`toyld.influence.lbk`), to first order at most η²‖K_uo‖²;
- ‖K_uo‖ by `PROJECTIONS` random vectors for each u, shared by its observers, as `toyld.influence.estimated` has it;
- SignDelta = mean over classes and places of Δlog π_o.

eval_lbk_K, eval_norm_K, eval_sign_K: Spearman's correlation over the observers between checkpoints K and K + 1, means
over u; eval_same_lbk: of LBK with ‖K‖ at the last checkpoint; eval_room: least decades of η²‖K‖² above LBK.

*signs*: SignDelta of whole DPO runs by kind of response, twice: as App. C.2 prints it (all classes alike), and of the
labels alone, as its notebook has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.influence.proxies import normaliser_norm2, sign_delta
from toyld.influence.stability import standing
from toyld.tiny.experiments._pairs import apart, beliefs, double, members, scored
from toyld.tiny.experiments._worlds import BETA, RECIPES, world
from toyld.tiny.models import Models
from toyld.tiny.stage import scene, train
from toyld.tiny.texts import PAD, Texts

__all__ = ["CHECKPOINTS", "LESSONS", "PROJECTIONS", "influence", "tables"]

CHECKPOINTS = (0, 20, 40)  # updates of SFT
PROJECTIONS, LESSONS = 3, 3
STEP = 1e-5  # of plain descent: what it changes is first order to five digits
OBSERVERS = ("chosen", "test_chosen")
DPO = {"sgd": 15, "rmsprop": 20}
KINDS = (
    "chosen", "rejected", "chosen_gptsemantic", "chosen_gptformat", "reject_gptsemantic", "reject_gptformat",
    "test_chosen", "irr_train", "irr_hum", "random_permute", "random_nonhum", "random_words",
)  # fmt: skip
Floats = np.ndarray[Any, np.dtype[np.float64]]


def tables(models: Models, data: Texts, seeds: Sequence[int], size: str, /) -> dict[str, xr.Dataset]:
    """influence along SFT, and signs of DPO by two optimisers."""
    out = {"influence": scored(_stable(world(tuple(seeds), size).models, data), seeds, stage="influence", arm="sft")}
    for recipe in RECIPES:
        out[f"signs, {recipe}"] = scored(
            _signs(models, data, recipe), seeds, stage="signs", arm=recipe, optimizer=recipe
        )
    return out


def influence(models: Models, data: Texts, /) -> dict[str, Floats]:
    """lbk, norm, sign (S, u, o) of one small step on each chosen response, o ≠ u among `OBSERVERS`; NaN at o = u."""
    (seeds, prompts), lessons = data.prompts["chosen"].shape, LESSONS
    few = replace(
        data,
        prompts={"chosen": data.prompts["chosen"][:, :lessons]},
        texts={"chosen": data.texts["chosen"][:, :lessons]},
    )
    many = double(models.take(members(seeds, lessons)))
    taught = scene(apart(few), ("chosen",), many)
    shown = data.take(members(seeds, lessons))
    r = taught.responses["chosen"]
    context, mask = r.context[:, 0], r.mask[:, 0, :, None]
    leaf = many.flat.detach().requires_grad_()
    z = many.logits(taught.inputs, leaf).flatten(1, 2)
    rows = z.gather(1, context[..., None].expand(-1, -1, z.shape[-1]))
    residual = rows.detach().softmax(-1)
    residual.scatter_add_(2, r.token[:, 0, :, None], -torch.ones_like(residual[..., :1]))
    pushes = [torch.where(mask, residual, 0.0)]
    for k in range(PROJECTIONS):
        rngs = [np.random.default_rng([seed, k, 89]) for seed in models.seeds]
        draw = torch.as_tensor(np.stack([rng.normal(size=(lessons, *residual.shape[1:])) for rng in rngs]))
        pushes.append(torch.where(mask, draw.flatten(0, 1), 0.0))
    changes, jumps = [], []
    of = scene(shown, OBSERVERS, many)
    with torch.no_grad():
        before = many.logits(of.inputs)
    there = torch.cat([of.responses[kind].mask for kind in OBSERVERS], 1)
    for k, push in enumerate(pushes):
        (g,) = torch.autograd.grad(rows, leaf, push, retain_graph=True)
        with torch.no_grad():
            moved = many.logits(of.inputs, many.flat - STEP * g)[:, :, 1:]
        if k == 0:
            logp = moved.log_softmax(-1) - before[:, :, 1:].log_softmax(-1)
            changes.append(torch.where(there[..., None], logp, 0.0))
        else:
            jump = torch.where(there[..., None], moved - before[:, :, 1:], 0.0) / STEP
            jumps.append(jump.square().sum((2, 3)))
    change = changes[0]
    p = before[:, :, 1:].softmax(-1).numpy()
    size = np.where(there.numpy(), normaliser_norm2(p), 0.0).sum(-1)
    pushed = pushes[0].square().sum((1, 2)).numpy()
    count = there.sum(-1).numpy() * p.shape[-1]
    found = {
        "lbk": change.square().sum((2, 3)).numpy() / (size * pushed[:, None]) / STEP**2,
        "norm": torch.stack(jumps).mean(0).sqrt().numpy(),
        "sign": change.sum((2, 3)).numpy() / count / STEP,
    }
    own = np.tile(np.eye(lessons, 2 * prompts, dtype=bool), (seeds, 1))
    return {name: np.where(own, np.nan, value).reshape(seeds, lessons, -1) for name, value in found.items()}


def _stable(models: Models, data: Texts) -> dict[str, Floats]:
    """Correlations between checkpoints of SFT."""
    recipe, path, memory = RECIPES["rmsprop"], [], None
    for k, done in enumerate(CHECKPOINTS):
        if k:
            run = train(
                models, data, objectives.get("sft"), lr=recipe.sft, steps=done - CHECKPOINTS[k - 1], at=(),
                optimizer=recipe.optimizer, memory=memory, warmup=recipe.warmup, done=CHECKPOINTS[k - 1],
                kinds=("chosen",),
            )  # fmt: skip
            models, memory = run.models, run.memory
        path.append(influence(models, data))
    out: dict[str, Floats] = {}
    for name in ("lbk", "norm", "sign"):
        ranks = [_ranks(one[name]) for one in path]
        for k in range(len(ranks) - 1):
            out[f"{name}_{k}"] = (ranks[k] * ranks[k + 1]).sum(-1).mean(-1)
        out[f"{name}_ends"] = (ranks[0] * ranks[-1]).sum(-1).mean(-1)
    out["same_lbk"] = (_ranks(path[-1]["lbk"]) * _ranks(path[-1]["norm"])).sum(-1).mean(-1)
    room = [np.nanmin(2.0 * np.log10(one["norm"]) - np.log10(one["lbk"]), axis=(1, 2)) for one in path]
    out["room"] = np.min(room, axis=0)
    return out


def _ranks(values: Floats) -> Floats:
    """Standing of the observers (S, u, o − 1) of every u."""
    seeds, prompts, _ = values.shape
    return standing(values[np.isfinite(values)].reshape(seeds, prompts, -1))


def _signs(models: Models, data: Texts, recipe: str) -> dict[str, Floats]:
    """SignDelta by kind, (S,), over a DPO run."""
    way = RECIPES[recipe]
    run = train(
        models, data, objectives.get("dpo", beta=BETA), lr=way.dpo, steps=DPO[recipe], optimizer=way.optimizer,
        warmup=way.warmup, rejected="rejected", kinds=("chosen",), at=(),
    )  # fmt: skip
    before, after = (beliefs(one, data, KINDS) for one in (models, run.models))
    out = {}
    for kind in KINDS:
        text, change = data.texts[kind], after[kind] - before[kind]
        there = text != PAD
        label = np.take_along_axis(change, np.maximum(text, 0)[..., None], -1)[..., 0]
        out[f"label_{kind}"] = (label * there).sum((1, 2)) / there.sum((1, 2))
        each = [sign_delta(one[mask][None])[0] for one, mask in zip(change, there, strict=True)]
        out[f"all_{kind}"] = np.array(each)
    return out
