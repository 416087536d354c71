"""Where cases come from: logits over the whole simplex, labels, steps, as maps from the unit cube.

Logits cover the uniform distribution, exact ties, one-hot limits, valleys far below everything else and Gaussians from
nearly flat to ±300 nats. Steps are log-uniform over nine decades.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri

from toyld.claims.base import Field, Premises

__all__ = [
    "constant",
    "integers",
    "label",
    "logits",
    "negative_step",
    "other_label",
    "probabilities",
    "real",
    "reals",
    "step_size",
]

Array = Any


def _normal(u: np.ndarray) -> np.ndarray:
    return ndtri(np.clip(u, 1e-4, 1.0 - 1e-4))


def logits(*, low: float = 1e-3, high: float = 80.0) -> Field:
    """Logits (n, V): flat, tied, nearly one-hot, or Gaussian with a log-uniform scale in [low, high]."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        regime, scale, g = u[:, :1], low * (high / low) ** u[:, 1:2], _normal(u[:, 2:])
        tied = np.round(2.0 * g)
        spike = g + np.where(np.arange(size) == np.argmax(u[:, 2:], axis=1)[:, None], high * u[:, 1:2], 0.0)
        z = np.where(regime < 0.25, tied, np.where(regime < 0.4, spike, scale * g))
        return np.where(regime < 0.05, 0.0, z)

    return Field(lambda size: size + 2, decode)


def label(of: str = "z") -> Field:
    """A label (n,), uniform over ranks: u = 0 is the most likely class of `of`, u = 1 the least likely."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        rank = np.minimum((u[:, 0] * size).astype(int), size - 1)
        order = np.argsort(-case[of], axis=-1, kind="stable")
        return np.take_along_axis(order, rank[:, None], axis=-1)[:, 0]

    return Field(lambda size: 1, decode)


def other_label(than: str = "y") -> Field:
    """A label (n,) different from another one."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        shift = 1 + np.minimum((u[:, 0] * (size - 1)).astype(int), size - 2)
        return (case[than] + shift) % size

    return Field(lambda size: 1, decode)


def real(low: float, high: float) -> Field:
    """A number (n,) uniform in [low, high]; u = 0 is `low`."""
    return Field(lambda size: 1, lambda u, size, case: low + (high - low) * u[:, 0])


def reals(width: int | None = None, *, scale: float = 1.0) -> Field:
    """A Gaussian vector (n, width), by default of V entries."""
    return Field(lambda size: width or size, lambda u, size, case: scale * _normal(u))


def constant(x: float) -> Field:
    """The number x (n,): a premise that `without` lets vary."""
    return Field(lambda size: 0, lambda u, size, case: np.full(len(u), x))


def integers(low: int, high: int) -> Field:
    """An integer (n,) uniform in low … high; u = 0 is `low`."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        return np.minimum(low + (u[:, 0] * (high - low + 1)).astype(int), high)

    return Field(lambda size: 1, decode)


def step_size(low: float = 1e-6, high: float = 1e3) -> Field:
    """s = η‖x‖² (n,), log-uniform in [low, high]."""
    return Field(lambda size: 1, lambda u, size, case: low * (high / low) ** u[:, 0])


def probabilities(*, floor: float = 1e-6) -> Field:
    """A distribution (n, V): exponential weights (uniform on the simplex), no entry much below `floor`."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        w = -np.log(np.clip(1.0 - u, floor, 1.0)) + floor
        return w / w.sum(axis=-1, keepdims=True)

    return Field(lambda size: size, decode)


def negative_step(**rest: Any) -> Premises:
    """One softmax, a penalised label, a step: the premise of §3.3. Keyword arguments go to `Premises`."""
    return Premises({"z": logits(), "y": label(), "s": step_size()}, **rest)
