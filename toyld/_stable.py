"""Sums of exponentials that leave the largest class out: what keeps log π and 1 − π exact near certainty."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from array_api_compat import device

__all__ = ["cgf", "col", "logsumexp", "parts", "pick"]

Array = Any


def col(a: Any, /) -> Any:
    """A per-context number as a column that broadcasts against (..., V)."""
    return a[..., None] if getattr(a, "ndim", 0) else a


def pick(xp: ModuleType, at: Array, a: Array) -> Array:
    """The entry of a (..., V) where the one-hot mask `at` is, shape (..., 1); the others may be infinite."""
    return xp.sum(xp.where(at, a, xp.zeros_like(a)), axis=-1, keepdims=True)


def parts(xp: ModuleType, z: Array) -> tuple[Array, Array, Array, Array]:
    """(mask of the largest logit, max z, z − max z, Σ over the *other* classes of e^{z − max z})."""
    top = xp.arange(z.shape[-1], device=device(z)) == col(xp.argmax(z, axis=-1))
    largest = pick(xp, top, z)
    shifted = z - largest
    rest = xp.sum(xp.where(top, xp.zeros_like(z), xp.exp(shifted)), axis=-1, keepdims=True)
    return top, largest, shifted, rest


def logsumexp(xp: ModuleType, z: Array) -> Array:
    """log Σ e^z over the last axis, shape (...)."""
    _, largest, _, rest = parts(xp, z)
    return (largest + xp.log1p(rest))[..., 0]


def cgf(xp: ModuleType, logp: Array, d: Array) -> Array:
    """log Σ_j p_j e^{d_j} (...), relative accuracy kept when it is tiny.

    1 + Σ p expm1(d) is exact to rounding while it stays above ½ and finite; logsumexp serves the rest.
    """
    huge = d > 600.0
    near = xp.sum(xp.exp(logp) * xp.expm1(xp.where(huge, xp.zeros_like(d), d)), axis=-1)
    fits = (near > -0.5) & ~xp.any(huge, axis=-1)
    return xp.where(fits, xp.log1p(xp.where(fits, near, xp.zeros_like(near))), logsumexp(xp, logp + d))
