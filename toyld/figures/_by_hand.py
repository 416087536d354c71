"""Runs of SFT and DPO in one world at a time, written out from the definition: what checks of figures compare with.

Z ← Z − η S R with R from `softmax.residual`, the label's own formula: no batch, no dual form, none of `contexts.train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from toyld import softmax as sm

__all__ = ["by_hand"]


def by_hand(grid: Any, /) -> Iterator[dict[str, float]]:
    """Changes over DPO, nats a response, of the runs of a grid of one condition (`toyld.contexts.sweep.Grid`)."""
    from toyld.contexts import languages

    kernel, beta = {**grid.kernel, "common": grid.common[0]}, grid.beta[0]
    for seed in grid.seeds:
        world = languages.facts(seeds=[seed], temperature=grid.temperature[0], kernel=kernel, **grid.world)
        n = slice(0, world.trained)
        z, gram = world.logits[0, n], np.asarray(world.kernel.block(n, n))[0]
        plus, minus = (_Texts(*(a[0] for a in world.responses[kind][:2])) for kind in ("chosen", "rejected"))
        one = np.ones(len(plus.token))
        for _ in range(grid.sft[0]):
            z = z - grid.sft_lr * gram @ _residual(z, [(plus, one)])
        first = z
        for _ in range(grid.steps):
            gained = plus.logp(z) - plus.logp(first) - minus.logp(z) + minus.logp(first)
            c = beta / (1.0 + np.exp(beta * gained))
            z = z - grid.lr[0] * gram @ _residual(z, [(plus, c), (minus, -c)])
        yield {
            "d_chosen": float((plus.logp(z) - plus.logp(first)).mean()),
            "d_rejected": float((minus.logp(z) - minus.logp(first)).mean()),
            "d_argmax": float((plus.top(z) - plus.top(first)).mean()),
        }


class _Texts(NamedTuple):
    """Contexts and labels of the tokens of every response, (P, T)."""

    context: np.ndarray
    token: np.ndarray

    def logp(self, z: np.ndarray) -> np.ndarray:
        """Summed log π, (P,)."""
        logs = sm.log_softmax(z)[self.context]
        return np.take_along_axis(logs, self.token[..., None], -1)[..., 0].sum(-1)

    def top(self, z: np.ndarray) -> np.ndarray:
        """Summed log π of the likeliest token, (P,)."""
        return sm.log_softmax(z).max(-1)[self.context].sum(-1)


def _residual(z: np.ndarray, pushes: list[tuple[_Texts, np.ndarray]]) -> np.ndarray:
    """R (n, V) of the mean over rows."""
    r = np.zeros_like(z)
    for texts, c in pushes:
        push = np.repeat(c[:, None], texts.token.shape[1], 1)
        np.add.at(r, texts.context, sm.residual(z[texts.context], texts.token, c=push) / len(c))
    return r
