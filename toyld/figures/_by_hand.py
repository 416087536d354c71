"""Runs of SFT and DPO in one world at a time, written out from the definition: what checks of figures compare with.

Z ← Z − η S R with R from `softmax.residual`, the label's own formula: no batch, no dual form, none of `contexts.train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from toyld import softmax as sm

__all__ = ["Texts", "by_hand", "residual"]


def by_hand(grid: Any, /) -> Iterator[dict[str, float]]:
    """Changes over DPO, nats a response, of the runs of a grid of one condition (`toyld.contexts.sweep.Grid`)."""
    from toyld.contexts import languages

    kernel, beta = {**grid.kernel, "common": grid.common[0]}, grid.beta[0]
    for seed in grid.seeds:
        world = languages.facts(seeds=[seed], temperature=grid.temperature[0], kernel=kernel, **grid.world)
        n = slice(0, world.trained)
        z, gram = world.logits[0, n], np.asarray(world.kernel.block(n, n))[0]
        plus, minus = (Texts(*(a[0] for a in world.responses[kind][:2])) for kind in ("chosen", "rejected"))
        one = np.ones(len(plus.token))
        for _ in range(grid.sft[0]):
            z = z - grid.sft_lr * gram @ residual(z, (plus, one)) / len(one)
        first = z
        for _ in range(grid.steps):
            gained = plus.logp(z) - plus.logp(first) - minus.logp(z) + minus.logp(first)
            c = beta / (1.0 + np.exp(beta * gained))
            z = z - grid.lr[0] * gram @ residual(z, (plus, c), (minus, -c)) / len(one)
        yield {
            "d_chosen": float((plus.logp(z) - plus.logp(first)).mean()),
            "d_rejected": float((minus.logp(z) - minus.logp(first)).mean()),
            "d_argmax": float((plus.top(z) - plus.top(first)).mean()),
        }


class Texts(NamedTuple):
    """Contexts, labels and mask of the tokens of every response, (P, T); the mask may be left out."""

    context: np.ndarray
    token: np.ndarray
    mask: Any = 1.0

    def logp(self, z: np.ndarray) -> np.ndarray:
        """Summed log π, (P,)."""
        logs = sm.log_softmax(z)[self.context]
        return (np.take_along_axis(logs, self.token[..., None], -1)[..., 0] * self.mask).sum(-1)

    def top(self, z: np.ndarray) -> np.ndarray:
        """Summed log π of the likeliest token, (P,)."""
        return (sm.log_softmax(z).max(-1)[self.context] * self.mask).sum(-1)


def residual(z: np.ndarray, *pushes: tuple[Texts, np.ndarray]) -> np.ndarray:
    """R (contexts, classes), summed over rows, with a push (P,) on each response of every side."""
    r = np.zeros_like(z)
    for texts, c in pushes:
        push = c[:, None] * texts.mask * np.ones(texts.token.shape)
        np.add.at(r, texts.context, sm.residual(z[texts.context], texts.token, c=push))
    return r
