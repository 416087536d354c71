"""Similar or improbable: what of a rejected answer y⁻ harms untrained ones, in transformers? Three designs (K8).

All start from one policy a seed, after SFT (`_pairs.taught`), and give DPO other y⁻:

- *texts*: real texts in which three factors are set apart that go together otherwise (`_negatives`): probable or rare
  under the policy × contexts near to those of test answers or far × next tokens shared with test answers in like
  contexts or not, 2 × 2 × 2 (what is shared with chosen answers is not matched); crossed with a feature common to all
  hidden states (none, or half of the mean square of a hidden state), the optimiser (SGD, RMSprop) and what trains (the
  head alone, all layers): 64 tables. eval_text_* of update 0 say what was measured of the texts.
- *sampled*: y⁻ as it comes: the model's own answers (temperature 1), those at temperature 16, the right answer to a
  prompt that is neither trained nor tested, y⁺ in another order.
- *factorial*: interventions on the head alone, exact: the Gram matrix of the hidden states, own answers as y⁻; at the
  contexts that y⁻ alone visits, log π(y⁻) is set and the kernel to all other contexts is scaled
  (`toyld.contexts.experiments.similarity`, where each is described).

All cells of a setting have one learning rate, so that they are compared after equal updates, and, read where the margin
Δ(ℓ₊ − ℓ₋) first reaches attr `margin`, at equal preference learnt.

Settings, each with its reason, fixed on seeds from 1000 on: a margin of 8 nats, where DPO prefers y⁺ with σ(.8) = .69
at β = .1. Rates take every cell of *texts* there within the updates, and none much beyond half of it in the first.
Under SGD a common feature speeds all cells up, so that its rates are two thirds with it; RMSprop's first updates are
large, so its rates rise over four. Six prompts of the world's eight, eight updates: cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.contexts.experiments import similarity as held
from toyld.contexts.kernels import Gram
from toyld.contexts.world import World, trie
from toyld.tiny.experiments._negatives import CELLS, FACTORS, MEASURES, measured, picked, pool
from toyld.tiny.experiments._pairs import taught
from toyld.tiny.experiments._worlds import BETA, RECIPES
from toyld.tiny.models import Models
from toyld.tiny.stage import train
from toyld.tiny.texts import Texts

__all__ = [
    "MARGIN",
    "SETTINGS",
    "SIZES",
    "Setting",
    "Size",
    "common_size",
    "coupled",
    "factorial",
    "first",
    "held_still",
    "negatives",
    "tables",
]

NAME = "similarity"
MARGIN = 8.0
KINDS = ("chosen", "rejected", "test_chosen", "chosen_gptsemantic")
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Setting:
    """What trains, and how: rates by share of the common feature, updates over which they rise."""

    optimizer: str
    layers: str
    rates: Mapping[float, float]
    warmup: int = 0


HALF = 0.5  # of the mean square of a hidden state with its common feature: that feature's
SETTINGS = (
    Setting("sgd", "head", {0.0: 0.65, HALF: 0.4}),
    Setting("rmsprop", "head", {0.0: 3e-3, HALF: 3e-3}, 4),
    Setting("sgd", "all", {0.0: 0.33, HALF: 0.22}),
    Setting("rmsprop", "all", {0.0: 8e-4, HALF: 8e-4}, 4),
)
# Answers as they come are tried where they are cheap and exact, and where it is done in practice.
SAMPLED = (("sgd", "head", 0.0), ("sgd", "head", HALF), ("rmsprop", "all", 0.0))
SHARES = (0.0, 0.2, HALF)  # of the interventions, as in other worlds
LONG = {"smoke": 28, "paper": 56}  # updates of the interventions: twice those of other worlds, coupling is slower here


@dataclass(frozen=True)
class Size:
    """How much is run: prompts, candidates of a kind a prompt, updates, and after which of them to measure.

    pace: of all rates; wider hidden states are longer, so that each update takes the logits further.
    """

    prompts: int
    each: int
    steps: int
    at: tuple[int, ...]
    pace: float = 1.0


SIZES = {
    "smoke": Size(6, 12, 8, (0, 1, 3, 5, 8)),
    "paper": Size(8, 16, 12, (0, 1, 2, 4, 6, 9, 12), 0.7),
}


def first(data: Texts, prompts: int, /) -> Texts:
    """The first prompts of each kind, and their responses."""
    return replace(
        data,
        prompts={kind: value[:, :prompts] for kind, value in data.prompts.items()},
        texts={kind: value[:, :prompts] for kind, value in data.texts.items()},
    )


def negatives(models: Models, data: Texts, /) -> dict[str, Ints]:
    """Rejected answers as they come, by name, (S, P, T)."""
    asked = data.prompts["chosen"]
    said = {f"temperature {t:g}": models.sample(data.language, asked, seed=3, temperature=t) for t in (1.0, 16.0)}
    taken = np.concatenate([data.prompts["chosen"], data.prompts["test_chosen"]], 1)
    rngs = [np.random.default_rng([seed, 72]) for seed in models.seeds]
    every = np.arange(data.language.sizes.prompts)
    other = np.stack(
        [rng.choice(np.setdiff1d(every, row), asked.shape[1]) for rng, row in zip(rngs, taken, strict=True)]
    )
    answers = data.language.sample(other, rngs, knowledge=1.0)
    return {**said, "another answer": answers, "permutation": data.texts["random_permute"]}


def _ordered(models: Models, data: Texts, each: int) -> tuple[dict[Any, Ints], dict[Any, dict[str, np.ndarray]]]:
    """By cell: the texts (S, P, T), and what was measured of them, (S,) each."""
    texts = pool(models, data, each=each)
    found = measured(models, data, texts)
    chosen, means = {}, {}
    for cell, at in zip(CELLS, picked(found), strict=True):
        chosen[cell] = np.take_along_axis(texts, at[..., None, None], 2)[:, :, 0]
        means[cell] = {name: np.take_along_axis(found[name], at[..., None], 2).mean((1, 2)) for name in MEASURES}
    return chosen, means


def common_size(models: Models, data: Texts, share: float, /) -> np.ndarray:
    """Size c (S,) of a common feature that has `share` a of the mean square of a hidden state: a = c² / (c² + ‖h‖²).

    ‖h‖²: mean over the contexts of chosen. 0 ≤ a < 1.
    """
    language, prompt, text = data.language, data.prompts["chosen"], data.texts["chosen"]
    rows = np.concatenate([language.ask(prompt), np.maximum(text[..., :-1], 0)], -1)
    h = models.hidden(torch.from_numpy(rows))[:, :, 1:].double().numpy()
    there = text >= 0
    size = np.sqrt(((h**2).sum(-1) * there).sum((1, 2)) / there.sum((1, 2)))
    return np.asarray(np.sqrt(share / (1.0 - share)) * size)


def _trained(models: Models, data: Texts, size: Size) -> Iterator[xr.Dataset]:
    """The designs *texts* and *sampled*: all conditions of a setting in one call."""
    ordered, means = _ordered(models, data, size.each)
    asis, seeds = negatives(models, data), len(models)
    sizes = {share: common_size(models, data, share) for share in (0.0, HALF)}
    for setting in SETTINGS:
        plan: list[tuple[float, Ints, dict[str, Any], dict[str, np.ndarray]]] = []
        for share in setting.rates:
            for cell, text in ordered.items():
                plan.append((share, text, {"design": "texts", **dict(zip(FACTORS, cell, strict=True))}, means[cell]))
            if (setting.optimizer, setting.layers, share) in SAMPLED:
                plan += [(share, text, {"design": "sampled", "text": name}, {}) for name, text in asis.items()]
        members = np.tile(np.arange(seeds), len(plan)).tolist()
        common = np.concatenate([sizes[share] for share, *_ in plan])
        run = train(
            models.take(members, common=common.tolist()),
            data.take(members).also({"rejected": np.concatenate([text for _, text, *_ in plan])}),
            objectives.get("dpo", beta=BETA),
            lr=np.repeat([size.pace * setting.rates[share] for share, *_ in plan], seeds),
            steps=size.steps, at=size.at, warmup=setting.warmup, rejected="rejected", kinds=KINDS,
            optimizer=RECIPES[setting.optimizer].optimizer, layers=setting.layers,
        )  # fmt: skip
        for i, (share, _, attrs, told) in enumerate(plan):
            arm = attrs.get("text") or " ".join(attrs[name] for name in FACTORS)
            ds = run.table(
                "dpo", arm, members=range(i * seeds, (i + 1) * seeds), experiment=NAME, margin=MARGIN, language="tiny",
                anisotropy=share, optimizer=setting.optimizer, layers=setting.layers, **attrs,
            )  # fmt: skip
            later = np.full((seeds, ds.sizes["step"] - 1), np.nan)
            for name, value in told.items():
                ds[f"eval_text_{name}"] = (("seed", "step"), np.concatenate([value[:, None], later], 1))
            yield ds


def held_still(models: Models, data: Texts, /) -> World:
    """The contexts of chosen, rejected and test answers as a world in float64: logits, Gram matrix of hidden states.

    Unlike positions of rows, answers that begin alike share contexts, so that those of y⁻ alone can be told.
    """
    kinds = ("chosen", "rejected", "test_chosen")
    asked = {kind: data.language.ask(data.prompt(kind)) for kind in kinds}
    found = trie(asked, {kind: data.texts[kind] for kind in kinds}, train=("chosen", "rejected"))
    last = torch.from_numpy((found.tokens >= 0).sum(-1) - 1)
    with torch.no_grad():
        h = models.hidden(torch.from_numpy(np.maximum(found.tokens, 0)))
        h = h.gather(2, last[..., None, None].expand(-1, -1, 1, h.shape[-1]))[:, :, 0].double()
        z = models.read_out(models.flat[:, models.shape.head :].double(), h[:, :, None])[:, :, 0]
    phi = h.numpy()
    gram = phi @ phi.transpose(0, 2, 1)
    return World(z.numpy(), Gram(0.5 * (gram + gram.transpose(0, 2, 1))), found.responses, found.trained, models.seeds)


def coupled(world: World, at: np.ndarray, rho: float, share: float, /) -> World:
    """The measured kernel, plus what makes `share` of its diagonal common; ρ times it between `at` and the rest."""
    every = slice(0, world.size[1])
    s = world.kernel.block(every, every)
    s = s + share / (1.0 - share) * np.diagonal(s, axis1=1, axis2=2).mean(1)[:, None, None]
    side = np.zeros(world.size[:2], bool)
    b, p, t = np.nonzero(at)
    side[b, world.responses["rejected"].context[b, p, t]] = True
    return replace(world, kernel=Gram(s * np.where(side[:, :, None] == side[:, None, :], 1.0, rho)))


def factorial(models: Models, data: Texts, /, *, size: str = "smoke") -> Iterator[xr.Dataset]:
    """Interventions on probability and coupling of y⁻ (own answers), and on the peak around it: a table a cell."""
    plan = replace(held.SIZES[size], steps=LONG[size], every=4)
    world = held_still(models, data.also({"rejected": negatives(models, data)["temperature 1"]}))
    at = held.own(world)
    fixed: dict[str, Any] = {"language": "tiny", "variant": "plain", "optimizer": "sgd", "layers": "head"}
    for share in SHARES:
        for rho in (0.0, 1.0):
            for level in (1.3, 12.7):
                one = coupled(held.unlikely(world, at, level), at, rho, share)
                levels = {"anisotropy": share, "coupling": rho, "level": level}
                yield held.run(one, f"coupling {rho:g} level {level:g}", plan, design="factorial", **levels, **fixed)
    for power in (0.0, 1.0):
        one = coupled(held.unlikely(world, at, held.MIDDLE, power=power), at, 1.0, 0.2)
        levels = {"anisotropy": 0.2, "level": held.MIDDLE, "power": power}
        yield held.run(one, f"power {power:g}", plan, design="peak", **levels, **fixed)


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """All runs by name, `similarity DESIGN, OPTIMIZER, LAYERS, a=SHARE: ARM`."""
    chosen = SIZES[size]
    models, data = taught(tuple(seeds), size)
    data = first(data, chosen.prompts)
    out = {}
    for part in (_trained(models, data, chosen), factorial(models, data, size=size)):
        for ds in part:
            where = ds.attrs
            name = f"{where['design']}, {where['optimizer']}, {where['layers']}, a={where['anisotropy']:g}"
            out[f"similarity {name}: {where['arm']}"] = ds
    return out
