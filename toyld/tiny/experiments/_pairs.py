"""Preference pairs one at a time: where DPO begins, every pair as a member of its own, gradients of every response.

A member is a model with the data it learns from, so that P pairs of S seeds, each alone, are S·P members of one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.tiny.experiments._worlds import RECIPES, world
from toyld.tiny.models import Models
from toyld.tiny.stage import probe, scene, train
from toyld.tiny.texts import Texts
from toyld.trajectory import trajectory

__all__ = ["apart", "beliefs", "double", "gradients", "heads", "members", "scored", "taught"]

# Updates of SFT with the paper's optimiser: chosen keeps half of its surprise, .9 nats a token, room to rise and fall.
SFT = 40
Floats = np.ndarray[Any, np.dtype[np.float64]]


def taught(seeds: Sequence[int], size: str = "smoke") -> tuple[Models, Texts]:
    """The shared world's models after SFT on chosen, and its data; seeds a tuple."""
    start, recipe = world(tuple(seeds), size), RECIPES["rmsprop"]
    run = train(
        start.models, start.data, objectives.get("sft"), lr=recipe.sft, steps=SFT, optimizer=recipe.optimizer,
        warmup=recipe.warmup, at=(), kinds=("chosen",),
    )  # fmt: skip
    return run.models, start.data


def members(seeds: int, prompts: int, /) -> list[int]:
    """The seed of every pair, pair by pair: 0, 0, …, 1, 1, …

    >>> members(2, 3)
    [0, 0, 0, 1, 1, 1]
    """
    return np.repeat(np.arange(seeds), prompts).tolist()


def apart(data: Texts, /) -> Texts:
    """The same pairs, each the only one of a member of its own (S·P members, one prompt each).

    >>> from toyld.tiny import Sizes, ask, draw
    >>> apart(ask(draw(Sizes(), range(2)), prompts=4)).texts["chosen"].shape
    (8, 1, 7)
    """
    seeds, prompts = data.prompts["chosen"].shape
    one = data.take(members(seeds, prompts))
    here, own = np.arange(seeds * prompts), np.tile(np.arange(prompts), seeds)

    def mine(kinds: Mapping[str, Any]) -> dict[str, Any]:
        return {kind: value[here, own][:, None] for kind, value in kinds.items()}

    return replace(one, prompts=mine(one.prompts), texts=mine(one.texts))


def double(models: Models, /) -> Models:
    """The same in float64: where signs of small changes are read."""
    return replace(models, flat=models.flat.double())


def heads(models: Models, g: torch.Tensor, /) -> torch.Tensor:
    """A gradient (S, P) with the part of the head alone left."""
    head = models.shape.classes * models.shape.width
    return torch.cat([torch.zeros_like(g[:, :-head]), g[:, -head:]], 1)


def beliefs(models: Models, data: Texts, kinds: Sequence[str], /) -> dict[str, Floats]:
    """Kind → log π (S, P, T, V) along its responses; of no meaning behind their end."""
    of = scene(data, kinds, models)
    _, z = probe(models, of, variables=False)
    logp = z.log_softmax(-1).cpu().numpy()
    here = np.arange(len(logp))[:, None, None]
    return {kind: logp[here, r.context.cpu().numpy()] for kind, r in of.responses.items()}


def gradients(models: Models, data: Texts, kind: str, /) -> torch.Tensor:
    """∂ log π(y|x)/∂θ of every response of a kind, (S, P, parameters), through all layers.

    >>> from toyld.tiny import Shape, Sizes, ask, draw, start
    >>> gradients(start(Shape(39, 8), range(2)), ask(draw(Sizes(), range(2)), prompts=4), "chosen").shape
    torch.Size([2, 4, 28224])
    """
    seeds, prompts = data.prompts["chosen"].shape
    many, one = models.take(members(seeds, prompts)), apart(data)
    of = scene(one, (kind,), many)
    leaf = many.flat.detach().requires_grad_()
    r = of.responses[kind]
    logp = many.logits(of.inputs, leaf).flatten(1, 2).log_softmax(-1)
    rows = logp.gather(1, r.context[:, 0, :, None].expand(-1, -1, logp.shape[-1]))
    own = rows.gather(2, r.token[:, 0, :, None])[..., 0]
    (g,) = torch.autograd.grad(torch.where(r.mask[:, 0], own, 0.0).sum(), leaf)
    return g.unflatten(0, (seeds, prompts))


def scored(columns: Mapping[str, Any], seeds: Sequence[int], /, *, stage: str, arm: str, **attrs: Any) -> xr.Dataset:
    """A table of one number a seed: eval_NAME (S,) at its only step 0."""
    return trajectory(
        {f"eval_{name}": np.asarray(value, float)[:, None] for name, value in columns.items()},
        step=[0], probe=["chosen"], seed=list(seeds), world="tiny", stage=stage, arm=arm, attrs=attrs,
    )  # fmt: skip
