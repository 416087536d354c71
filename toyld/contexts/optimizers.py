"""How an update follows from the gradient: plain descent, heavy ball, RMSprop, Adam, as torch.optim has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace

from toyld.checked import BadInput

__all__ = ["Optimizer"]

Array = Any


@dataclass(frozen=True)
class Optimizer:
    """One of torch.optim's rules with its defaults; what it remembers stands in a dict that belongs to one run.

    sgd: v ← momentum·v + g, linear in g, so the kernel form has it too. rmsprop: g/(√E[g²] + eps) with decay `alpha`.
    adam: bias-corrected means with decays `betas`. The last two act on single weights: they need features, and give
    other runs in another basis of the same features.

    >>> Optimizer("rmsprop").needs_features, Optimizer("sgd", momentum=0.9).needs_features
    (True, False)
    """

    name: Literal["sgd", "rmsprop", "adam"] = "sgd"
    momentum: float = 0.0
    alpha: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "rmsprop", "adam"):
            msg = f"optimizer: expected sgd, rmsprop or adam, got {self.name!r}"
            raise BadInput(msg)

    @property
    def needs_features(self) -> bool:
        """Whether it acts on single weights."""
        return self.name != "sgd"

    @property
    def plain(self) -> bool:
        """Whether the direction is the gradient itself."""
        return self.name == "sgd" and not self.momentum

    def direction(self, g: Array, memory: dict[str, Array], /) -> Array:
        """What to subtract, before the learning rate; `memory` is updated."""
        xp = array_namespace(g)
        if self.name == "rmsprop":
            square = memory["square"] = self.alpha * memory.get("square", 0.0) + (1.0 - self.alpha) * g * g
            g = g / (xp.sqrt(square) + self.eps)
        if self.name == "adam":
            count = memory["count"] = memory.get("count", 0) + 1
            first, second = self.betas
            mean = memory["mean"] = first * memory.get("mean", 0.0) + (1.0 - first) * g
            square = memory["square"] = second * memory.get("square", 0.0) + (1.0 - second) * g * g
            return mean / (1.0 - first**count) / (xp.sqrt(square / (1.0 - second**count)) + self.eps)
        if self.momentum:
            g = memory["velocity"] = self.momentum * memory.get("velocity", 0.0) + g
        return g
