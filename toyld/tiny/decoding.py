"""Answers of many stacked models, token by token: keys and values of what was said before are kept, not computed again.

The same answers as `Models.sample` gives with the same random numbers, at a quarter of the cost for answers of this
length: a policy-gradient run samples more than it trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from toyld.tiny.language import PAD, drawn
from toyld.tiny.models import Models
from toyld.tiny.stacks import linear, normed, views

__all__ = ["Decoder", "answers"]

Ints = NDArray[np.int64]


class Decoder:
    """Reads one token of each of (S, N) texts at a time and gives the logits (S, N, V) of the next.

    >>> from toyld.tiny import Shape, start
    >>> Decoder(start(Shape(40, 9), range(2)), 5).read(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 40])
    """

    def __init__(self, models: Models, texts: int) -> None:
        shape, self.models, self.at = models.shape, models, 0
        self.theta = views(shape, models.flat[:, : shape.parameters])
        size = len(models) * texts, shape.heads, shape.places, shape.width // shape.heads
        self.kept = [[models.flat.new_empty(size) for _ in range(2)] for _ in range(shape.depth)]

    def read(self, token: torch.Tensor, /) -> torch.Tensor:
        """Logits (S, N, V) of what follows token (S, N), which stands behind all that was read before."""
        shape, theta, (s, n) = self.models.shape, self.theta, token.shape

        def layer(name: str, x: torch.Tensor) -> torch.Tensor:
            return linear(theta[f"{name}.weight"], theta.get(f"{name}.bias"), x, None, None)

        def norm(name: str, x: torch.Tensor) -> torch.Tensor:
            return normed(theta[f"{name}.weight"], theta[f"{name}.bias"], x)

        with torch.no_grad():
            place = torch.arange(s, device=token.device)[:, None] * shape.classes
            x = functional.embedding(token + place, theta["tokens.weight"].reshape(-1, shape.width))
            x = x + theta["places.weight"][:, self.at, None]
            for i, kept in enumerate(self.kept):
                block = f"blocks.{i}"
                q, *new = layer(f"{block}.qkv", norm(f"{block}.before", x)).view(s * n, 3, shape.heads, 1, -1).unbind(1)
                for memory, value in zip(kept, new, strict=True):
                    memory[:, :, self.at : self.at + 1] = value
                keys, values = (memory[:, :, : self.at + 1] for memory in kept)
                mixed = functional.scaled_dot_product_attention(q, keys, values)
                x = x + layer(f"{block}.out", mixed.reshape(s, n, -1))
                x = x + layer(f"{block}.down", functional.gelu(layer(f"{block}.up", norm(f"{block}.middle", x))))
            self.at += 1
            z = layer("head", norm("last", x))
            common = self.models.common
            return z if common is None else z + (common[:, None] * self.models.flat[:, shape.parameters :])[:, None]

    def repeat(self, copies: int, /) -> None:
        """Go on with so many texts for each one that was read so far, (S, N·copies), side by side."""
        self.kept = [[memory.repeat_interleave(copies, 0) for memory in kept] for kept in self.kept]


def answers(
    models: Models, language: Any, prompt: Ints, rngs: Sequence[np.random.Generator], /, *, copies: int = 1,
    temperature: Any = 1.0,
) -> Ints:  # fmt: skip
    """Answers (S, N·copies, T) to prompts by number (S, N), padded with −1 behind END.

    language: a `Language`, or what has its `sizes.length` and `ask`, such as `toyld.tiny.sums.Sums`. copies: answers to
    each, side by side; a prompt is read once but for its last token. temperature: > 0, one or (S,).

    >>> from toyld.tiny import Shape, Sizes, draw, start
    >>> language, rngs = draw(Sizes(), range(2)), [np.random.default_rng(i) for i in range(2)]
    >>> answers(start(Shape(39, 8), range(2)), language, np.zeros((2, 3), int), rngs).shape
    (2, 3, 7)
    """
    asked = language.ask(np.asarray(prompt))
    s, n = asked.shape[0], asked.shape[1] * copies
    heat = np.broadcast_to(np.asarray(temperature, float), (s,))[:, None, None]
    reader, device = Decoder(models, asked.shape[1]), models.flat.device
    text, done = np.full((s, n, language.sizes.length), PAD), np.zeros((s, n), bool)
    *before, last = np.moveaxis(asked, -1, 0)
    for token in before:
        reader.read(torch.from_numpy(token.copy()).to(device))
    reader.repeat(copies)
    last = np.repeat(last, copies, axis=1)
    for t in range(language.sizes.length):
        z = reader.read(torch.from_numpy(last).to(device)).double().cpu().numpy()
        p = np.exp((z - z.max(-1, keepdims=True)) / heat)
        u = np.stack([rng.random(n) for rng in rngs])[..., None] * p.sum(-1, keepdims=True)
        token = drawn(p, u)
        text[..., t] = np.where(done, PAD, token)
        done |= token == 0
        if done.all():
            break
        last = token
    return text
