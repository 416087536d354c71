"""S networks while they are trained: SGD with momentum on stacked parameters, by the paper's recipe.

    m ← μ m + ∇L + λ θ,   θ ← θ − η_t m,   η_t = η (1 + cos(π t/T))/2        L: mean loss of a batch

A seed has its own images, initial weights, and order of the data, from streams of random numbers of its own, so its
result does not depend (but for rounding) on the seeds beside it. The order of epoch e is drawn from (seed, e) alone:
the number of updates, θ and m say all about where training stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from toyld.checked import BadInput
from toyld.digits.data import CLASSES, Digits, draw
from toyld.digits.networks import Make
from toyld.digits.stacks import backward, forward, stacked

__all__ = ["Ensemble", "Recipe", "logits", "per_image", "picked"]

ORDER = 4  # stream of random numbers
ROWS = 1000  # images that go forward at once where logits of many are asked for


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's for Figure 1.

    lr: η. momentum: μ. weight_decay: λ. batch: images an update; an epoch's last batch may be smaller. images: so many
    are drawn for each seed out of the training part, its classes evenly; None = all. epochs: may be fractional. cosine:
    η_t falls to 0 by the last update; else it stays η.

    >>> Recipe().updates(2000), Recipe(epochs=2).rate(0, 2000)
    (3200, 0.001)
    """

    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 64
    images: int | None = 2000
    epochs: float = 100
    cosine: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "epochs"):
            if not 0 < getattr(self, name) < np.inf:
                msg = f"{name}: expected a finite number > 0, got {getattr(self, name)}; correct it"
                raise BadInput(msg)
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < np.inf):
            got = f"{self.momentum}, {self.weight_decay}"
            msg = f"momentum, weight_decay: expected 0 ≤ μ < 1 and a finite λ ≥ 0, got {got}; correct them"
            raise BadInput(msg)

    def per_epoch(self, n: int, /) -> int:
        """Updates in an epoch of n images."""
        return math.ceil(n / self.batch)

    def updates(self, n: int, /, epoch: float | None = None) -> int:
        """Updates up to an epoch (the last by default), of n images."""
        return round((self.epochs if epoch is None else epoch) * self.per_epoch(n))

    def rate(self, update: int, n: int, /) -> float:
        """η_t of an update, counted from 0."""
        return self.lr * (1 + math.cos(math.pi * update / self.updates(n))) / 2 if self.cosine else self.lr


def picked(data: Digits, recipe: Recipe, seeds: Iterable[int], /) -> torch.Tensor:
    """Places (S, n) in the training part of the images that each seed is trained on.

    >>> from toyld.digits.data import embedded
    >>> picked(embedded(), Recipe(images=20), [0, 1]).shape
    torch.Size([2, 20])
    """
    if recipe.images is None:
        whole = torch.arange(len(data.labels))
        return whole.expand(len(list(seeds)), -1)
    labels = data.labels.numpy()
    return torch.from_numpy(np.stack([draw(labels, recipe.images, seed=seed) for seed in seeds]))


class Ensemble:
    """S networks of one architecture at some update of their training; `run` goes on.

    build: seed → module. labels, weights: (S, n) or (n,), for the images in the order of `picked`; an example's loss is
    multiplied by its weight, which may be negative. start: parameters name → (S, …) instead of the modules' own.

    update: updates done. theta: name → (S, …); flat, memory: θ and m as one tensor each, in the order of theta.
    losses: (S,) of each update, before it. labels (S, n): what is taught.

    >>> from toyld.digits import embedded, networks
    >>> both = Ensemble(embedded(), networks.make("mlp", 8), [0, 1], Recipe(images=100))
    >>> both.run(3)
    >>> both.update, both.logits(both.data.test_images).shape
    (3, torch.Size([2, 355, 10]))
    """

    def __init__(
        self,
        data: Digits,
        build: Make,
        seeds: Iterable[int],
        recipe: Recipe,
        /,
        *,
        labels: Any = None,
        weights: Any = None,
        start: Mapping[str, torch.Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.data, self.recipe, self.seeds, self.dtype = data, recipe, tuple(int(seed) for seed in seeds), dtype
        self.index = picked(data, recipe, self.seeds)
        shape = len(self.seeds), self.n
        self.labels = data.labels[self.index] if labels is None else per_image("labels", labels, shape).long()
        self.weights = None if weights is None else per_image("weights", weights, shape).to(dtype)
        modules = [build(seed) for seed in self.seeds]
        if recipe.updates(self.n) < 1:
            msg = f"epochs: expected at least one update of {recipe.batch} images, got {recipe.epochs:g} epochs; more"
            raise BadInput(msg)
        self.module = modules[0].requires_grad_(False)
        first = {name: value.to(dtype) for name, value in _begin(modules, start).items()}
        self._shapes = {name: value.shape for name, value in first.items()}
        self.flat = torch.cat([value.flatten() for value in first.values()])
        self.memory = torch.zeros_like(self.flat)
        self.theta, self._memory = self.views(self.flat), self.views(self.memory)
        _tried(self)
        self.update, self.losses = 0, list[torch.Tensor]()
        self._images, self._drawn = data.images.flatten(1), (-1, self.index)

    @property
    def n(self) -> int:
        """Images that a seed is trained on."""
        return self.index.shape[1]

    def views(self, flat: torch.Tensor, /) -> dict[str, torch.Tensor]:
        """Parameter name → (S, …), views of a tensor like `flat`."""
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def logits(self, images: torch.Tensor, /) -> torch.Tensor:
        """(S, N, classes) at images (N, 1, H, W), or (S, N, 1, H, W) where each seed has its own."""
        return logits(self.module, self.theta, images)

    def run(self, until: int, /) -> None:
        """Train up to so many updates in all."""
        with torch.no_grad():
            while self.update < until:
                self._step(self._batch())

    def _batch(self) -> torch.Tensor:
        """Places (S, b) of the next batch among each seed's images."""
        epoch, k = divmod(self.update, self.recipe.per_epoch(self.n))
        if epoch != self._drawn[0]:
            keys = [np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)) for seed in self.seeds]
            order = np.stack([np.random.default_rng(key).permutation(self.n) for key in keys])
            self._drawn = epoch, torch.from_numpy(order)
        return self._drawn[1][:, k * self.recipe.batch : (k + 1) * self.recipe.batch]

    def _step(self, at: torch.Tensor) -> None:
        recipe, kept = self.recipe, list[Any]()
        rows = self._images.index_select(0, self.index.gather(1, at).flatten()).to(self.dtype)
        z = forward(self.module, self.theta, rows.view(*at.shape, *self.data.images.shape[1:]), keep=kept)
        loss, g = self._asked(z, at)
        if self.weights is not None:
            weight = self.weights.gather(1, at)
            loss, g = loss * weight, g * weight[..., None]
        self.losses.append(loss.mean(1))
        # The products that give ∇L add μ m on their way: no pass over the parameters of its own.
        backward(self.theta, kept, g / at.shape[1], self._memory, decay=recipe.momentum)
        if recipe.weight_decay:
            self.memory.add_(self.flat, alpha=recipe.weight_decay)
        self.flat.add_(self.memory, alpha=-recipe.rate(self.update, self.n))
        self.update += 1

    def _asked(self, z: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (S, b) and G = ∂loss/∂z (S, b, classes) of every image of a batch, from its logits z and places `at`."""
        # Classes before images: ten numbers in a row are too few for a softmax along them to be quick.
        y, logp = self.labels.gather(1, at)[:, None], z.mT.contiguous().log_softmax(1)
        loss, g = -logp.gather(1, y), logp.exp()
        g.scatter_add_(1, y, -torch.ones_like(loss))
        return loss[:, 0], g.mT


def logits(module: nn.Sequential, theta: Mapping[str, torch.Tensor], images: torch.Tensor, /) -> torch.Tensor:
    """(S, N, classes) of stacked parameters at images (N, 1, H, W) or (S, N, 1, H, W), in the parameters' dtype."""
    some = next(iter(theta.values()))
    images = images.to(some.dtype)
    if images.ndim == 4:
        images = images.expand(len(some), *images.shape)
    with torch.no_grad():
        return torch.cat([forward(module, theta, part) for part in images.split(ROWS, 1)], 1)


def per_image(name: str, values: Any, shape: tuple[int, int], /) -> torch.Tensor:
    """Labels or weights for each image of each seed, of shape (S, n); given (n,), they serve all seeds.

    Raises BadInput for another shape, and for labels that are no classes.

    >>> per_image("weights", [1.0, 2.0], (3, 2)).shape
    torch.Size([3, 2])
    """
    given = torch.as_tensor(values)
    if given.shape not in (shape, shape[1:]):
        msg = f"{name}: expected shape {shape}, seeds × images, got {tuple(given.shape)}; see `picked`"
        raise BadInput(msg)
    if name == "labels" and not bool(((given >= 0) & (given < CLASSES)).all()):
        wrong = given[(given < 0) | (given >= CLASSES)]
        msg = f"labels: expected 0 to {CLASSES - 1}, got {wrong.flatten()[0]}; weight an image by 0 to leave it out"
        raise BadInput(msg)
    return given.expand(shape)


def _tried(some: Ensemble) -> None:
    """Raise BadInput where the networks make no logits (S, N, classes) of an image."""
    side, wanted = some.data.side, (len(some.seeds), 1, CLASSES)
    try:
        got = str(shape := tuple(some.logits(some.data.images[:1]).shape))
    except RuntimeError as error:  # torch's word on sizes that do not fit
        shape, got = (), str(error).partition("\n")[0]
    if shape != wanted:
        msg = f"network: expected logits {wanted} of an image of {side}×{side} pixels, got {got}; change its layers"
        raise BadInput(msg)


def _begin(modules: list[nn.Sequential], start: Mapping[str, torch.Tensor] | None) -> Mapping[str, torch.Tensor]:
    """The parameters to start from: the modules' own, or those given, which must fit."""
    own = stacked(modules)
    if start is None:
        return own
    wanted, got = ({name: tuple(value.shape) for name, value in those.items()} for those in (own, start))
    if wanted != got:
        here, there = (", ".join(f"{name} {shape}" for name, shape in those.items()) for those in (wanted, got))
        msg = f"start: expected parameters {here}, got {there}; take those of the same network and as many seeds"
        raise BadInput(msg)
    return {name: start[name] for name in own}
