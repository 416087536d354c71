"""S networks as one module for `toyld.influence`: the seeds stand where a sequence has its positions.

Logits (N, S, 10) at images (N, S, 1, H, W). No seed's logits depend on another's parameters, so the gradient of a sum
over seeds is every seed's own, and one call predicts what one lesson a seed does in all S networks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from toyld import influence
from toyld.digits.stacks import forward
from toyld.digits.training import Trained

__all__ = ["Stack", "at"]


class Stack(nn.Module):
    """Networks of one architecture with parameters name → (S, …) as a module.

    >>> from toyld.digits.networks import mlp
    >>> from toyld.digits.stacks import stacked
    >>> nets = [mlp(4, width=3, depth=1, seed=seed) for seed in (0, 1)]
    >>> images = torch.ones(5, 2, 1, 2, 2)
    >>> z = Stack(nets[0], stacked(nets))(images)
    >>> z.shape, bool((z[:, 1] - nets[1](images[:, 1])).abs().max() < 1e-6)
    (torch.Size([5, 2, 10]), True)
    """

    def __init__(self, architecture: nn.Sequential, theta: Mapping[str, torch.Tensor], /) -> None:
        super().__init__()
        self._architecture = (architecture,)  # in a tuple: its own parameters are none of this module's
        self._names = {name.replace(".", "__"): name for name in theta}
        for own, name in self._names.items():
            self.register_parameter(own, nn.Parameter(theta[name].detach().clone()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, S, 10) at images (N, S, 1, H, W)."""
        theta = {name: getattr(self, own) for own, name in self._names.items()}
        return forward(self._architecture[0], theta, images.transpose(0, 1)).transpose(0, 1)


def at(trained: Trained, update: int, /) -> influence.Model:
    """All seeds' networks after so many updates, as one model whose every parameter trains."""
    return influence.Model(Stack(trained.architecture, trained.parameters(update=update)))
