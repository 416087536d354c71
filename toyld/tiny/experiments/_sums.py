"""The worlds of worked solutions that experiments share: an arithmetic, models pretrained on it, how they are asked.

Settings, each with its reason, fixed on seeds from 1000 on. Pretraining ends where a model solves a quarter of the
problems that it is tested with (`paper`: .35 of the kind that its corpus is full of, near chance of the other): room to
be taught. Test problems are of those held out from finetuning, in the frame that it uses.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.tiny.finetune import Lessons, accuracy, teach
from toyld.tiny.models import Models, pretrain, start
from toyld.tiny.network import Shape
from toyld.tiny.sums import Sums, SumSizes

__all__ = ["SIZES", "WIDE", "School", "examine", "school"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
TEST, SAT = 68, 69  # streams of random numbers
SAMPLES = 2  # answers to a test problem
WIDE: Mapping[str, Any] = {"width": 48, "depth": 3, "heads": 4}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "sums": {"numbers": 7, "terms": 4, "factors": (1,), "shares": (1.0,)}, "model": {"width": 24, "depth": 2},
        "steps": 700, "lr": 1e-2, "lessons": 256, "tests": 128,
    },
    "paper": {
        "sums": {}, "model": {"width": 32, "depth": 2}, "steps": 1500, "lr": 6e-3, "lessons": 768, "tests": 512,
    },
}  # fmt: skip


@dataclass(frozen=True)
class School:
    """Models pretrained on an arithmetic, one a seed, lessons to teach them, held-out problems (S, N) to test them."""

    models: Models
    lessons: Lessons
    tests: Ints

    @functools.cached_property
    def before(self) -> Floats:
        """Test accuracy (S,) of the pretrained models, by the random numbers of lot 0."""
        return examine(self.models, self.lessons.sums, self.tests).mean(1)


def school(seeds: Sequence[int], size: str = "smoke", /, *, wide: bool = False) -> School:
    """The shared world of these seeds; computed once in a process. wide: models of more and wider layers."""
    return _school(tuple(seeds), size, wide)


@functools.cache
def _school(seeds: tuple[int, ...], size: str, wide: bool) -> School:
    torch.set_num_threads(1)
    plan = SIZES[size]
    sums = Sums(SumSizes(**plan["sums"]), seeds)
    shape = Shape(sums.sizes.classes, sums.sizes.places, **(WIDE if wide else plan["model"]))
    models, _ = pretrain(start(shape, seeds), sums, steps=plan["steps"], lr=plan["lr"] * (0.5 if wide else 1.0))
    tests = [sums.problems(seed, np.random.default_rng([seed, TEST]), plan["tests"], held=True) for seed in seeds]
    return School(models, teach(sums, count=plan["lessons"]), np.stack(tests))


def examine(models: Models, sums: Sums, prompt: Ints, /, *, lot: int = 0, samples: int = SAMPLES) -> Floats:
    """Accuracies (S, N) at problems (S, N), by `samples` answers each, drawn from (seed, lot)."""
    rngs = [np.random.default_rng([seed, lot, SAT]) for seed in sums.seeds]
    return accuracy(models, sums, prompt, rngs, samples=samples)
