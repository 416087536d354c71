"""A decoder-only transformer in plain torch: pre-norm, learned positions, causal attention, an untied linear head.

    x = E[token] + P[place];   x ← x + Attention(LN(x));   x ← x + W₂ gelu(W₁ LN(x));   z = U LN(x)

No dropout: a model in training is the model that is probed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from toyld.checked import BadInput

__all__ = ["Shape", "Transformer"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: classes V, positions L, width d, depth (blocks), heads, hidden units of an MLP over d.

    >>> Shape(classes=40, places=9).parameters
    28320
    """

    classes: int
    places: int
    width: int = 32
    depth: int = 2
    heads: int = 2
    expand: int = 4

    def __post_init__(self) -> None:
        for name in ("classes", "places", "width", "depth", "heads", "expand"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}; correct it"
                raise BadInput(msg)
        if self.width % self.heads:
            msg = f"width: expected a multiple of the {self.heads} heads, got {self.width}; correct one of them"
            raise BadInput(msg)

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter, in the order of `Transformer.named_parameters`."""
        d, hidden = self.width, self.width * self.expand
        found: dict[str, tuple[int, ...]] = {"tokens.weight": (self.classes, d), "places.weight": (self.places, d)}
        for i in range(self.depth):
            block: dict[str, tuple[int, ...]] = {
                "before": (d,), "qkv": (3 * d, d), "out": (d, d),
                "middle": (d,), "up": (hidden, d), "down": (d, hidden),
            }  # fmt: skip
            for name, weight in block.items():
                found[f"blocks.{i}.{name}.weight"] = weight
                found[f"blocks.{i}.{name}.bias"] = weight[:1]
        return found | {"last.weight": (d,), "last.bias": (d,), "head.weight": (self.classes, d)}

    @property
    def parameters(self) -> int:
        """How many numbers a model is made of."""
        return sum(torch.Size(size).numel() for size in self.sizes.values())

    @property
    def head(self) -> int:
        """The parameter at which the head begins, which is the last."""
        return self.parameters - self.classes * self.width


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.heads = shape.heads
        self.before, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.middle, self.up, self.down = (
            nn.LayerNorm(d),
            nn.Linear(d, shape.expand * d),
            nn.Linear(shape.expand * d, d),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2).unbind(-3)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.middle(x))))


class Transformer(nn.Module):
    """One model: token ids (N, T) with T ≤ L → logits (N, T, V) of the token that comes next.

    Weights start as N(0, 1/inputs), those that write into the residual stream smaller by √(2·depth), embeddings as
    N(0, 1), positions as N(0, ¼), the head at 0: an untrained model believes in every token alike. `seed` draws them.

    >>> model = Transformer(Shape(classes=40, places=9), seed=0)
    >>> model(torch.zeros(5, 7, dtype=torch.long)).shape
    torch.Size([5, 7, 40])
    """

    def __init__(self, shape: Shape, /, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.tokens, self.places = nn.Embedding(shape.classes, shape.width), nn.Embedding(shape.places, shape.width)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.last, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.classes, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith(("tokens", "places")):
                    parameter.normal_(generator=generator).mul_(1.0 if name.startswith("tokens") else 0.5)
                elif parameter.ndim == 2:
                    deep = (2 * shape.depth) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                    parameter.normal_(generator=generator).mul_(deep * parameter.shape[1] ** -0.5)
                elif name.endswith("bias"):
                    parameter.zero_()
            self.head.weight.zero_()

    def hidden(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Last hidden states (N, T, d): what the head reads."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.last(x)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(tokens))
