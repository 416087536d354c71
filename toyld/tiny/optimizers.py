"""SGD, RMSprop and AdamW on stacked parameters (S, P): torch's own updates, a learning rate a member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from toyld.checked import BadInput

__all__ = ["Optimizer"]

Name = Literal["sgd", "rmsprop", "adamw"]


@dataclass(frozen=True)
class Optimizer:
    """One rule; the defaults are torch's but decay, which is 0. clip: the largest gradient norm of a member.

    rmsprop is the paper's. momentum: of sgd. alpha: of rmsprop. betas, decay (decoupled): of adamw. clip: None = none.

    >>> Optimizer("rmsprop").memory(torch.zeros(2, 5)).keys()
    dict_keys(['square'])
    """

    name: Name = "sgd"
    momentum: float = 0.0
    alpha: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            msg = f"optimizer: expected one of {', '.join(get_args(Name))}, got {self.name!r}; correct it"
            raise BadInput(msg)
        if self.clip is not None and not self.clip > 0:
            raise BadInput(f"clip: expected a norm > 0, got {self.clip}; leave it out for none")

    def memory(self, flat: torch.Tensor, /) -> dict[str, torch.Tensor]:
        """What it remembers of parameters (S, P), before the first update."""
        names = {"sgd": ["mean"] if self.momentum else [], "rmsprop": ["square"], "adamw": ["mean", "square"]}
        found = {name: torch.zeros_like(flat) for name in names[self.name]}
        return found | ({"count": torch.zeros(1, dtype=torch.int64)} if self.name == "adamw" else {})

    def resumed(self, flat: torch.Tensor, memory: dict[str, torch.Tensor] | None, /) -> dict[str, torch.Tensor]:
        """A copy of what it remembers of these parameters, fresh where `memory` is None; BadInput if it is not its own.

        >>> Optimizer("rmsprop").resumed(torch.zeros(2, 5), {})
        Traceback (most recent call last):
            ...
        toyld.checked.BadInput: memory: expected square (2, 5), got nothing; take it from a run of this optimiser
        """
        fresh = self.memory(flat)
        if memory is None:
            return fresh
        want, got = (", ".join(f"{k} {tuple(v.shape)}" for k, v in m.items()) or "nothing" for m in (fresh, memory))
        if want != got:
            msg = f"memory: expected {want}, got {got}; take it from a run of this optimiser"
            raise BadInput(msg)
        return {name: value.clone() for name, value in memory.items()}

    def step(self, flat: torch.Tensor, g: torch.Tensor, memory: dict[str, torch.Tensor], lr: torch.Tensor, /) -> None:
        """Move flat (S, P) by one update along the gradients g (S, P), in place; lr (S, 1)."""
        if self.clip is not None:
            g = g * (self.clip / (g.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        if self.name == "sgd":
            if self.momentum:
                g = memory["mean"].mul_(self.momentum).add_(g)
            flat.addcmul_(lr, g, value=-1.0)
        elif self.name == "rmsprop":
            square = memory["square"].mul_(self.alpha).addcmul_(g, g, value=1.0 - self.alpha)
            flat.addcmul_(lr, g / square.sqrt().add_(self.eps), value=-1.0)
        else:
            one, two = self.betas
            k = int(memory["count"].add_(1).item())
            mean = memory["mean"].lerp_(g, 1.0 - one)
            square = memory["square"].mul_(two).addcmul_(g, g, value=1.0 - two)
            size = square.sqrt().mul_((1.0 - two**k) ** -0.5).add_(self.eps)
            flat.mul_(1.0 - lr * self.decay).addcmul_(lr / (1.0 - one**k), mean / size, value=-1.0)
