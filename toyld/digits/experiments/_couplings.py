"""Couplings of a few digits in a trained network: their kernels, what one update does to them, and sums over a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toyld import influence
from toyld.digits.data import CLASSES, Digits
from toyld.digits.ensemble import Ensemble, Recipe
from toyld.digits.experiments._stack import Stack
from toyld.digits.networks import Make, make
from toyld.digits.stacks import backward, forward
from toyld.digits.training import Trained, blocks

__all__ = ["couplings", "first_order", "moved", "pictures", "summed"]

Floats = NDArray[np.float64]
PICTURES = 31  # stream of random numbers


def pictures(data: Digits, index: Any, seeds: Sequence[int], each: int, /) -> tuple[Tensor, NDArray[np.int64]]:
    """Images (S, 2·10·each, 1, H, W), taught ones first, then held-out ones, class by class; their labels, one row.

    index (S, n): the training images of each seed.

    >>> from toyld.digits import embedded
    >>> images, labels = pictures(embedded(), torch.arange(1442)[None], [1000], 2)
    >>> images.shape, labels[:6].tolist()
    (torch.Size([1, 40, 1, 8, 8]), [0, 0, 1, 1, 2, 2])
    """
    labels, held, out = data.labels.numpy(), data.test_labels.numpy(), []
    for row, seed in zip(np.asarray(index), seeds, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PICTURES,)))
        taught = [rng.choice(row[labels[row] == c], each, replace=False) for c in range(CLASSES)]
        new = [rng.choice(np.flatnonzero(held == c), each, replace=False) for c in range(CLASSES)]
        out.append(torch.cat([data.images[np.concatenate(taught)], data.test_images[np.concatenate(new)]]))
    return torch.stack(out), np.tile(np.repeat(np.arange(CLASSES), each), 2)


def couplings(trained: Trained, place: int, images: Tensor, /) -> Iterator[tuple[int, Tensor, Tensor]]:
    """At every mark of one seed, by its place: the mark, logits (N, V) and K (N, V, N, V) among images (N, 1, H, W)."""
    model = influence.Model(trained.module(None, trained.seeds[place]))
    theta = model.theta
    for mark in trained.marks:
        for name, value in trained.parameters(update=mark).items():
            theta[name].copy_(value[place])
        yield mark, model(images), influence.kernel(model, images, images)


def first_order(z: Tensor, k: Tensor, labels: Any, /) -> Tensor:
    """‖A(x_o) K(x_o, x_u) G(x_u)‖ (O, U), G = π − e_y: logits z (O, V), taught ones first, K (O, V, U, V), labels (U,).

    >>> z, k = torch.zeros(1, 2), torch.eye(2).reshape(1, 2, 1, 2)                   # one softmax: A G = G
    >>> round(first_order(z, k, [0]).item() ** 2, 6)
    0.5
    """
    pi, y = z.softmax(-1), torch.as_tensor(labels)
    g = pi[: len(y)].clone()
    g.scatter_(-1, y[:, None], 0.0)
    g.scatter_(-1, y[:, None], -g.sum(-1, keepdim=True))  # π_y − 1 without cancellation where π_y is nearly 1
    dz = torch.einsum("ovuw,uw->ouv", k, g)
    return (dz - torch.einsum("ov,ouv->ou", pi, dz)[..., None]).norm(dim=-1)


def moved(trained: Trained, mark: int, place: int, images: Tensor, labels: Any, /) -> Tensor:
    """‖log π'(·|x_o) − log π(·|x_o)‖ (O, U): one plain update on each taught image alone, at the recipe's rate.

    place: of the seed. images (O, 1, H, W), the taught ones first, whose labels (U,) are given.
    """
    y, number = torch.as_tensor(labels), len(labels)
    theta = {name: value[place] for name, value in trained.parameters(update=mark).items()}
    copies = {name: value.expand(number, *value.shape) for name, value in theta.items()}
    kept: list[Any] = []
    g = forward(trained.architecture, copies, images[:number, None], keep=kept).softmax(-1)
    g[torch.arange(number), 0, y] -= 1.0
    into = {name: torch.zeros_like(value, memory_format=torch.contiguous_format) for name, value in copies.items()}
    backward(copies, kept, g, into)
    after = {name: value - trained.recipe.lr * into[name] for name, value in copies.items()}
    every = images.expand(number, *images.shape)
    before, now = (forward(trained.architecture, p, every).double().log_softmax(-1) for p in (copies, after))
    return (now - before).norm(dim=-1).T


def summed(
    data: Digits, network: str | Make, recipe: Recipe, seeds: Sequence[int], images: Tensor, at: Sequence[int], few: int
) -> tuple[Floats, Floats, Floats]:
    """First-order changes A J Δθ of a run added up, and the change of log π itself, both from the start: (S, T, O, 10).

    images (S, O, 1, H, W); at: T updates. Third, (S, O, 10): of `few` updates alone, each in the middle of its share of
    the run and standing for all of it.
    """
    build, first, found = make(network, data.side), 0, []
    for block in blocks(seeds, build):
        own = images[first : first + len(block)].transpose(0, 1)  # (O, S, …)
        first += len(block)
        run = Ensemble(data, build, block, recipe)
        model = influence.Model(Stack(run.module, run.theta))
        theta = model.theta
        start, last = model(own).log_softmax(-1), recipe.updates(run.n)
        total, sampled = (torch.zeros_like(start, dtype=torch.float64) for _ in range(2))
        share, sums, changes = last / few, [], []
        chosen = [int((k + 0.5) * share) for k in range(few)]
        for k in range(last + 1):
            if k in at:
                sums.append(total.clone())
                changes.append((run.logits(own.transpose(0, 1)).transpose(0, 1).log_softmax(-1) - start).double())
            if k == last:
                break
            before = [value.clone() for value in run.theta.values()]
            run.run(k + 1)
            step = {name: now - then for name, now, then in zip(theta, run.theta.values(), before, strict=True)}
            one = influence.normalised(*model.tangent(own, step)).double()
            total += one
            sampled += share * chosen.count(k) * one
            for p, now in zip(theta.values(), run.theta.values(), strict=True):
                p.copy_(now)
        found.append((torch.stack(sums), torch.stack(changes), sampled))
    sums_of, changes_of, sampled_of = (torch.cat(parts, -2) for parts in zip(*found, strict=True))
    moved_to = (x.permute(2, 0, 1, 3).numpy() for x in (sums_of, changes_of))
    return (*moved_to, sampled_of.transpose(0, 1).numpy())  # type: ignore[return-value]
