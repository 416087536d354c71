"""Students of soft labels: an `Ensemble` whose targets are distributions, G = π − q; else it trains as all do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toyld.digits.data import Digits
from toyld.digits.ensemble import Ensemble, Recipe
from toyld.digits.networks import Make
from toyld.digits.training import blocks

__all__ = ["Soft", "students"]


class Soft(Ensemble):
    """An ensemble that is taught targets q (S, n, classes) in place of labels: L = −Σ_v q_v log π_v."""

    targets: torch.Tensor

    def _asked(self, z: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp, q = z.log_softmax(-1), torch.take_along_dim(self.targets, at[..., None], 1)
        return -(q * logp).sum(-1), logp.exp() - q


def students(
    data: Digits, build: Make, seeds: Sequence[int], recipe: Recipe, targets: torch.Tensor, /, **options: Any
) -> torch.Tensor:
    """Logits (S, N, classes) at the held-out images of networks trained on targets (S, n, classes) to the end.

    Each seed has the images, the initial weights and the order of the data that `train` gives it.

    >>> from toyld.digits import embedded, networks
    >>> q = torch.full((2, 50, 10), 0.1)
    >>> students(embedded(), networks.make("mlp", 8), [0, 1], Recipe(images=50, epochs=1), q).shape
    torch.Size([2, 355, 10])
    """
    out, first = [], 0
    for block in blocks(seeds, build):
        some = Soft(data, build, block, recipe, **options)
        some.targets = targets[first : first + len(block)].to(some.dtype)
        first += len(block)
        some.run(recipe.updates(some.n))
        out.append(some.logits(data.test_images))
    return torch.cat(out)
