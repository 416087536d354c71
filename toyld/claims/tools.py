"""Small pieces that the checks of several chapters share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact

__all__ = ["PAPER", "THREE_OR_MORE", "agree", "at", "least", "not_the_top", "others", "realised", "span"]

Array = Any
PAPER = "Ren & Sutherland 2025"
THREE_OR_MORE = (3, 4, 8, 50)


def at(a: Array, i: Array, /) -> Array:
    """a[..., i] for a batch of labels."""
    return np.take_along_axis(a, np.asarray(i)[..., None], axis=-1)[..., 0]


def others(z: Array, *labels: Array) -> Array:
    """Mask (n, V) of the classes that are none of the labels."""
    mask = np.ones(z.shape, dtype=bool)
    for y in labels:
        mask &= ~sm.one_hot(z, y)
    return mask


def realised(z: Array, y: Array, s: Array, c: Any = -1.0) -> Array:
    """log p' − log p (n, V) of an update really taken: not the closed form that the claims are about."""
    return sm.log_softmax(sm.step(z, sm.residual(z, y, c=c), s=s)) - sm.log_softmax(z)


def span(z: Array, s: Array, *logs: Array) -> Array:
    """Size (n, 1) of the numbers that a log-ratio is made of, for its rounding bound."""
    largest = 1.0 + np.abs(s) + np.max(np.abs(z), axis=-1)
    for a in logs:
        largest = largest + np.max(np.abs(a), axis=-1)
    return largest[..., None]


def agree(a: Array, b: Array) -> Array:
    """Positive where a and b have the same sign, by the smaller of the two."""
    return np.sign(a) * np.sign(b) * np.minimum(np.abs(a), np.abs(b))


def not_the_top(z: Array, y: Array, **_: Array) -> Array:
    """Premise: some class is strictly more likely than y."""
    return np.max(z, axis=-1) > at(z, y)


def least(values: Iterable[Any], /) -> Any:
    """The smallest of some balls, by midpoint; 1 if there are none."""
    return min(values, default=exact.ball(1), key=lambda a: float(a.mid()))
