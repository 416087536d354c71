"""The worlds that the experiments share: a language a seed, a model pretrained on it, pairs against its own answers.

Settings, each with its reason, fixed on seeds from 1000 on. Pretraining ends where a model has the grammar, the
popularity of concepts and a part of the facts (exact KL to its source about 1 nat of 10 a response): room to be taught,
and answers of its own that are fluent and mostly wrong. SFT at these rates leaves chosen between two thirds (15
updates) and a tenth of its surprise, as the experiments tell; DPO lets the margin grow beyond it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toyld.tiny.language import Language, Sizes, draw
from toyld.tiny.models import Models, pretrain, start
from toyld.tiny.network import Shape
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.texts import Texts, ask, with_rejected

__all__ = ["BETA", "RECIPES", "SIZES", "Recipe", "World", "world"]

BETA = 0.1


@dataclass(frozen=True)
class Recipe:
    """An optimiser with the rates of both stages, and the updates over which they rise."""

    optimizer: Optimizer
    sft: float
    dpo: float
    warmup: int = 0


# RMSprop, which divides the size of a push out, is the paper's; under plain descent DPO's push is β/2 or less.
RECIPES: Mapping[str, Recipe] = {
    "rmsprop": Recipe(Optimizer("rmsprop"), sft=3e-4, dpo=2e-4, warmup=10),
    "sgd": Recipe(Optimizer("sgd"), sft=0.03, dpo=0.3),
}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"language": {}, "model": {}, "steps": 300, "lr": 6e-3, "prompts": 8},
    "paper": {
        "language": {"entities": 12, "concepts": 12}, "model": {"width": 64, "depth": 3, "heads": 4},
        "steps": 600, "lr": 4e-3, "prompts": 12,
    },
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """Languages, the models pretrained on them, and the data; rejected are samples of these models, one a prompt."""

    language: Language
    models: Models
    data: Texts


def world(seeds: Sequence[int], size: str = "smoke") -> World:
    """The shared world of these seeds; computed once in a process."""
    return _world(tuple(seeds), size)


@functools.cache
def _world(seeds: tuple[int, ...], size: str) -> World:
    torch.set_num_threads(1)
    plan = SIZES[size]
    language = draw(Sizes(**plan["language"]), seeds)
    shape = Shape(language.sizes.classes, language.sizes.places, **plan["model"])
    models, _ = pretrain(start(shape, seeds), language, steps=plan["steps"], lr=plan["lr"])
    data = ask(language, prompts=plan["prompts"])
    asked = data.prompts["chosen"]
    own, first = (models.sample(language, asked, seed=seed) for seed in (0, 1))
    return World(language, models, with_rejected(data, own, initial=first))
