"""One step of many networks at once, and where it leads: lessons, observers, and the change for every length of step.

Seeds stand where a sequence has its positions (`_stack`), so that a number by seed is (S,) and a change (O, S, V).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toyld import influence
from toyld.digits.data import CLASSES, draw
from toyld.digits.experiments._stack import Stack
from toyld.digits.training import Trained

__all__ = ["LESSONS", "Path", "Scene", "reached", "scaled", "scene", "size"]

Floats = NDArray[np.float64]
LESSONS, EACH = 4, 2
STREAM = 7  # of random numbers


@dataclass(frozen=True)
class Scene:
    """S networks of one stage and what they are asked: lessons (U, S, 1, H, W), observers (O, S, …), a batch (B, S, …).

    labels, classes, taught: the labels of each. images, marked: the seeds' own images (n, S, …) with theirs.
    """

    model: influence.Model
    lessons: Tensor
    labels: Tensor
    observers: Tensor
    classes: Tensor
    images: Tensor
    marked: Tensor
    batch: int

    def lesson(self, u: int, /) -> influence.Lesson:
        """One image of every seed with its label."""
        return influence.teach(self.lessons[u : u + 1], self.labels[u : u + 1])

    def taught(self, k: int, /) -> influence.Lesson:
        """The k-th batch of every seed's images, in their order."""
        at = slice(k * self.batch, (k + 1) * self.batch)
        return influence.teach(self.images[at], self.marked[at])


def scene(trained: Trained, update: int, /) -> Scene:
    """The networks after so many updates, in float64; the same images in every stage.

    >>> from toyld import digits
    >>> recipe = digits.Recipe(images=64, batch=16, epochs=1)
    >>> found = digits.train(digits.embedded(), seeds=[1000, 1001], recipe=recipe)
    >>> at = scene(found, 0)
    >>> at.lessons.shape, at.observers.shape, at.model(at.observers).shape
    (torch.Size([4, 2, 1, 8, 8]), torch.Size([20, 2, 1, 8, 8]), torch.Size([20, 2, 10]))
    """
    theta = {name: p.double() for name, p in trained.parameters(update=update).items()}
    data, own, marked = trained.data, trained.images.double().transpose(0, 1), trained.labels.T
    at, seen = [], []
    for s, seed in enumerate(trained.seeds):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAM,)))
        known = [np.flatnonzero(trained.labels[s].numpy() == c) for c in rng.permutation(CLASSES)]
        at.append([int(rng.choice(places)) for places in known if len(places)][:LESSONS])
        seen.append(draw(data.test_labels.numpy(), EACH * CLASSES, seed=seed, stream=STREAM))
    lesson, observer = torch.tensor(at).T, torch.from_numpy(np.stack(seen, 1))
    each = torch.arange(len(trained.seeds))
    return Scene(
        influence.Model(Stack(trained.architecture, theta)),
        own[lesson, each], marked[lesson, each], data.test_images[observer].double(), data.test_labels[observer],
        own, marked, trained.recipe.batch,
    )  # fmt: skip


def scaled(step: influence.Update, by: Tensor, /) -> influence.Update:
    """The step of a stack with each network's times a number of its own, by (S,)."""

    def times(x: Any, like: Tensor) -> Tensor:
        return x * by.view(-1, *[1] * (like.ndim - 1))

    scale = {name: times(x, step.gradient[name]) for name, x in step.scale.items()}
    return influence.Update(step.lesson, step.lr, step.gradient, scale, {n: times(x, x) for n, x in step.drift.items()})


class Path:
    """Where a step of any length leads, seen by observers.

    first: the change of log π (O, S, V) that first order foretells of η = 1; top: its largest at any observer and
    class, (S,). spread: of the change of logits, max − min over classes (O, S). before: log π, (O, S, V).
    """

    def __init__(self, model: influence.Model, step: influence.Update, observers: Tensor) -> None:
        self.model, self.step, self.observers = model, step, observers
        z, dz = model.tangent(observers, step.displacement)
        self.first, self.before = influence.normalised(z, dz), torch.log_softmax(z, -1)
        self.spread = dz.amax(-1) - dz.amin(-1)  # (O, S)
        self.top = self.first.abs().amax((0, 2))  # (S,)

    def at(self, eta: Tensor, /) -> Tensor:
        """The change of log π itself, (O, S, V), at a rate of each network's own (S,)."""
        moved = self.model.moved(scaled(self.step, eta).displacement)
        with torch.no_grad():
            return torch.log_softmax(self.model.at(moved, self.observers), -1) - self.before

    def off(self, nats: float, /) -> tuple[Tensor, Tensor, Tensor]:
        """(η, change, error) of a step that first order says to move the most moved log π by so many nats."""
        eta = nats / self.top
        change = self.at(eta)
        return eta, change, change - self.first * eta[:, None]


def size(x: Tensor) -> Floats:
    """‖x‖ over observers and classes, (O, S, V) → (S,)."""
    return np.asarray(torch.linalg.vector_norm(x, dim=(0, 2)))


def reached(level: float, x: Sequence[float], y: Floats, /) -> Floats:
    """The first x (n,) at which y (n, S) is above a level, between two of them by log x; the last x where none is.

    >>> reached(0.5, [1.0, 4.0], np.array([[0.0, 0.0, 0.6], [1.0, 0.4, 1.0]])).tolist()
    [2.0, 4.0, 1.0]
    """
    out = np.full(y.shape[1], float(x[-1]))
    for s in np.flatnonzero((y > level).any(0)):
        k = int(np.argmax(y[:, s] > level))
        share = 1.0 if k == 0 else (level - y[k - 1, s]) / (y[k, s] - y[k - 1, s])
        out[s] = x[max(k - 1, 0)] ** (1.0 - share) * x[k] ** share
    return out
