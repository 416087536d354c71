"""S transformers of one shape as one: stacked parameters, logits of all in batched products.

Parameters are views of one tensor (S, P), so that an optimiser, a gradient norm, a copy is one line. Where a gradient
is wanted, autograd gives it; `centre` changes what the weights of linear layers are told (K6): each example's gradient
b·aᵀ is replaced by b·(a − μ)ᵀ or b·(a − μμᵀa/‖μ‖²)ᵀ, μ the mean input of that layer over the update. The forward pass
and what flows back through the layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional

from toyld.checked import BadInput
from toyld.tiny.network import Shape, Transformer

__all__ = ["Centre", "begin", "forward", "linear", "normed", "views"]

Theta = Mapping[str, torch.Tensor]
Where = Literal["head", "all"]
How = Literal["subtract", "project", "random"]


@dataclass(frozen=True)
class Centre:
    """Which linear layers learn from centred inputs: `where` the head alone or all; `how` the mean leaves them.

    subtract: a − μ. project: a without its part along μ. Both are K6 for that layer. random: their control, a without
    its part along a direction that is drawn once for all layers of a width.
    """

    where: Where = "head"
    how: How = "subtract"

    def __post_init__(self) -> None:
        if self.where not in get_args(Where) or self.how not in get_args(How):
            there = f"{' or '.join(get_args(Where))}, and {', '.join(get_args(How))}"
            raise BadInput(f"centre: expected {there}, got {self.where!r} and {self.how!r}; correct it")


def begin(shape: Shape, seeds: list[int] | tuple[int, ...] | range, /) -> torch.Tensor:
    """Parameters (S, P) of untrained models, one a seed.

    >>> begin(Shape(classes=40, places=9), [0, 1]).shape
    torch.Size([2, 28320])
    """
    rows = [torch.cat([p.detach().flatten() for p in Transformer(shape, seed=seed).parameters()]) for seed in seeds]
    return torch.stack(rows)


def views(shape: Shape, flat: torch.Tensor, /) -> dict[str, torch.Tensor]:
    """Parameter name → (S, …), views of a tensor (S, P)."""
    sizes = {name: torch.Size(size) for name, size in shape.sizes.items()}
    parts = flat.split([size.numel() for size in sizes.values()], dim=1)
    return {name: part.unflatten(1, size) for (name, size), part in zip(sizes.items(), parts, strict=True)}


def forward(
    shape: Shape,
    theta: Theta,
    tokens: torch.Tensor,
    /,
    *,
    centre: Centre | None = None,
    mask: torch.Tensor | None = None,
    hidden: bool = False,
) -> torch.Tensor:
    """Logits (S, N, T, V) at tokens (S, N, T); with `hidden`, the last hidden states (S, N, T, d) instead.

    mask: true (S, N, T) where an input counts towards μ; all by default. No token sees those behind it, so padding on
    the right touches nothing before it. Token ids are not looked at: one that is none reads another member's row.

    >>> shape = Shape(classes=40, places=9)
    >>> theta = views(shape, begin(shape, [0, 1]))
    >>> forward(shape, theta, torch.zeros(2, 5, 7, dtype=torch.long)).shape
    torch.Size([2, 5, 7, 40])
    """
    s, n, t = tokens.shape
    if t > shape.places:
        raise BadInput(f"tokens: expected up to {shape.places} in a row, got {t}; make models with more places")
    every = centre if centre is not None and centre.where == "all" else None
    rows = None if mask is None else mask.reshape(s, n * t, 1)

    def layer(name: str, x: torch.Tensor, how: Centre | None = every) -> torch.Tensor:
        return linear(theta[f"{name}.weight"], theta.get(f"{name}.bias"), x, how, rows)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return normed(theta[f"{name}.weight"], theta[f"{name}.bias"], x)

    place = torch.arange(s, device=tokens.device)[:, None] * shape.classes
    table = theta["tokens.weight"].reshape(-1, shape.width)
    x = functional.embedding(tokens.reshape(s, -1) + place, table)
    x = (x.unflatten(1, (n, t)) + theta["places.weight"][:, None, :t]).flatten(1, 2)  # (S, N·T, d)
    for i in range(shape.depth):
        block = f"blocks.{i}"
        qkv = layer(f"{block}.qkv", norm(f"{block}.before", x)).view(s * n, t, 3, shape.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + layer(f"{block}.out", mixed.transpose(1, 2).reshape(s, n * t, -1))
        x = x + layer(f"{block}.down", functional.gelu(layer(f"{block}.up", norm(f"{block}.middle", x))))
    x = norm("last", x)
    if hidden:
        return x.view(s, n, t, -1)
    return layer("head", x, centre).view(s, n, t, -1)


def normed(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, /) -> torch.Tensor:
    """LayerNorm of x (S, M, d) with weight and bias (S, d)."""
    return torch.addcmul(bias[:, None], functional.layer_norm(x, x.shape[-1:]), weight[:, None])


def linear(
    weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, centre: Centre | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """x Wᵀ + b for (S, M, in); with `centre` the weight hears of centred inputs, everything else is as without."""
    if centre is None:
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
    held = x.detach()
    if centre.how == "random":
        drawn = torch.randn(held.shape[-1], generator=torch.Generator().manual_seed(held.shape[-1]))
        mean = drawn.to(held).expand(len(held), 1, -1)
    elif mask is None:
        mean = held.mean(1, keepdim=True)
    else:
        mean = torch.where(mask, held, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    if centre.how == "subtract":
        told = held - mean
    else:
        unit = functional.normalize(mean, dim=-1)
        told = held - (held @ unit.mT) * unit
    # The value of the second product is 0; its gradient is what the weight is told.
    y = torch.bmm(x, weight.detach().mT) + torch.bmm(told, (weight - weight.detach()).mT)
    return y if bias is None else y + bias[:, None]
