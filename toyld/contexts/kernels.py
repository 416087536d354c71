"""Kernels between contexts: S[c, c'] = ⟨φ_c, φ_c'⟩, as a Gram matrix, as features, or as a mixture with named weights.

A kernel answers `block(rows, cols)`, S between two runs of contexts of every world, shape (B, rows, cols); engines ask
for the trained block and for probes against trained contexts, never for all of S. One with `features` Φ (B, C, D) and
an optional `diagonal` d (B, C) is S = ΦΦᵀ + diag(d) and never needs C² numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace, device

from toyld.checked import BadInput

__all__ = ["COMPONENTS", "Features", "Gram", "Kernel", "Mixture", "centred", "measured"]

Array = Any


class Kernel(Protocol):
    """What engines ask of a kernel."""

    @property
    def features(self) -> Array | None:
        """Φ (B, C, D) where S = ΦΦᵀ + diag(diagonal), else None."""

    @property
    def diagonal(self) -> Array | None:
        """d (B, C) of the above; None = 0."""

    def block(self, rows: slice, cols: slice, /) -> Array:
        """S between two runs of contexts, (B, rows, cols)."""

    def take(self, worlds: Any, /) -> Kernel:
        """The kernel of some of the worlds: integers, repeats allowed."""


def _eye(like: Array, rows: slice, cols: slice, total: int) -> Array:
    """1 where the context is the same, (rows, cols)."""
    xp = array_namespace(like)
    every = xp.arange(total, device=device(like))
    return xp.astype(every[rows, None] == every[None, cols], like.dtype)


def _meet(rows: slice, cols: slice) -> bool:
    return rows.start < cols.stop and cols.start < rows.stop


@dataclass(frozen=True)
class Gram:
    """S itself, (B, C, C): symmetric, positive semidefinite, of any origin; BadInput where it is not symmetric.

    >>> kernel = Gram(np.eye(3)[None])
    >>> kernel.block(slice(0, 2), slice(1, 3)).tolist()
    [[[0.0, 0.0], [1.0, 0.0]]]
    """

    matrix: Array
    features: None = None
    diagonal: None = None

    def __post_init__(self) -> None:
        xp, shape = array_namespace(self.matrix), tuple(self.matrix.shape)
        if len(shape) != 3 or shape[1] != shape[2]:
            msg = f"matrix: expected S (B, C, C), got shape {shape}; one world has B = 1"
            raise BadInput(msg)
        several = max(1, 2**20 // max(1, shape[1] ** 2))  # a part at a time: no second copy of them all
        for b in range(0, shape[0], several):
            s = self.matrix[b : b + several]
            gap = xp.max(xp.abs(s - xp.matrix_transpose(s)), axis=(1, 2))
            # Half of the digits: inner products of features are alike on both sides to rounding.
            within = gap <= float(xp.finfo(s.dtype).eps) ** 0.5 * xp.max(xp.abs(s), axis=(1, 2))
            if not bool(xp.all(within & xp.isfinite(gap))):
                worst = int(xp.argmax(xp.astype(~(within & xp.isfinite(gap)), xp.int8)))
                msg = f"matrix: expected a finite symmetric S, got {float(gap[worst]):.3g} between S and its transpose"
                raise BadInput(f"{msg} in world {b + worst}; inner products of features are symmetric")

    def block(self, rows: slice, cols: slice, /) -> Array:
        """S[:, rows, cols]."""
        return self.matrix[:, rows, cols]

    def take(self, worlds: Any, /) -> Gram:
        """The Gram matrices of some of the worlds."""
        return Gram(self.matrix[worlds])


@dataclass(frozen=True)
class Features:
    """S = ΦΦᵀ + diag(d), Φ (B, C, D); a model's last hidden states are such features (`measured`).

    >>> kernel = Features(np.ones((1, 3, 1)), np.full((1, 3), 0.5))
    >>> kernel.block(slice(0, 1), slice(0, 3)).tolist()
    [[[1.5, 1.0, 1.0]]]
    """

    features: Array
    diagonal: Array | None = None

    def block(self, rows: slice, cols: slice, /) -> Array:
        """Φ[rows] Φ[cols]ᵀ, with the diagonal where rows and columns meet."""
        xp, phi = array_namespace(self.features), self.features
        out = phi[:, rows, :] @ xp.matrix_transpose(phi[:, cols, :])
        if self.diagonal is None or not _meet(rows, cols):
            return out
        return out + self.diagonal[:, rows, None] * _eye(phi, rows, cols, phi.shape[1])

    def take(self, worlds: Any, /) -> Features:
        """The features of some of the worlds."""
        return Features(self.features[worlds], None if self.diagonal is None else self.diagonal[worlds])


def measured(hidden: Array, /) -> Features:
    """The kernel of head-only fine-tuning of a model: Gram matrix of hidden states (C, D) or (B, C, D).

    A head with a bias adds the constant feature 1: append a column of ones.

    >>> measured(np.array([[1.0, 0.0], [1.0, 1.0]])).block(slice(0, 2), slice(0, 2)).tolist()
    [[[1.0, 1.0], [1.0, 2.0]]]
    """
    if hidden.ndim not in (2, 3):
        msg = f"hidden: expected states (C, D) or (B, C, D), got shape {tuple(hidden.shape)}; flatten the positions"
        raise BadInput(msg)
    return Features(hidden if hidden.ndim == 3 else hidden[None])


COMPONENTS = ("identity", "common", "prompt", "token", "prefix", "position")


@dataclass(frozen=True)
class Mixture:
    """Σ_k w_k S_k over named components, each with ones on its diagonal, so that Σ w_k is the diagonal of S.

    identity: 1[same context] · common: 1 (anisotropy) · prompt: cosine of the prompts' mean token vectors · token:
    cosine of the last tokens' vectors, older ones fading by `decay` · prefix: length of the common prefix over the
    geometric mean of the two lengths · position: 1[same place in the response].

    weights: component → w ≥ 0, a number or one a world (B,). tokens: contexts (B, C, L) as [prompt | response so far],
    padded with −1 behind. vectors: unit vectors of the tokens (V, d) or (B, V, d).

    >>> tokens = np.array([[[0, 1, -1], [0, 1, 1], [2, 1, -1]]])   # prompts of two tokens, then the response so far
    >>> kernel = Mixture(tokens, 2, {"identity": 0.5, "prefix": 0.5}, np.eye(3))
    >>> kernel.block(slice(0, 3), slice(0, 3)).round(3).tolist()
    [[[1.0, 0.408, 0.0], [0.408, 1.0, 0.0], [0.0, 0.0, 1.0]]]
    """

    tokens: Array
    prompt_length: int
    weights: Mapping[str, Any]
    vectors: Array
    decay: float = 0.5
    lags: int = 3
    like: Array | None = None  # an array whose library and device the blocks shall have; numpy by default
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(COMPONENTS)):
            msg = f"weights: expected components among {', '.join(COMPONENTS)}, got {', '.join(unknown)}; rename them"
            raise BadInput(msg)
        if any(np.any(~np.isfinite(w) | (np.asarray(w) < 0)) for w in self.weights.values()):
            msg = f"weights: expected finite numbers >= 0, got {dict(self.weights)}; a kernel has no negative weights"
            raise BadInput(msg)

    def _weight(self, name: str) -> np.ndarray:
        """w as (B,)."""
        return np.broadcast_to(np.asarray(self.weights.get(name, 0.0), float), (len(self.tokens),))

    def _columns(self) -> np.ndarray:
        """The features of every component that has finitely many, (B, C, D), computed once."""
        if "columns" not in self._cache:
            self._cache["columns"] = self._make_columns()
        return self._cache["columns"]

    def _make_columns(self) -> np.ndarray:
        worlds, contexts, length = self.tokens.shape
        vectors = np.broadcast_to(self.vectors, (worlds, *self.vectors.shape[-2:]))
        here = np.arange(worlds)[:, None, None]
        size = (self.tokens >= 0).sum(-1)
        parts = []
        if np.any(self._weight("common")):
            parts.append(self._scaled("common", np.ones((worlds, contexts, 1))))
        if np.any(self._weight("position")):
            place = size - self.prompt_length
            slots = np.arange(length - self.prompt_length + 1)
            parts.append(self._scaled("position", (place[..., None] == slots).astype(float)))
        if np.any(self._weight("prompt")):
            mean = vectors[here, self.tokens[..., : self.prompt_length]].mean(2)
            parts.append(self._scaled("prompt", _unit(mean)))
        if np.any(self._weight("token")):
            recent = []
            for lag in range(min(self.lags, length)):
                at = np.clip(size - 1 - lag, 0, None)
                token = np.take_along_axis(self.tokens, at[..., None], axis=2)[..., 0]
                known = (size - 1 - lag >= 0)[..., None]
                recent.append(self.decay ** (lag / 2) * known * vectors[here[..., 0], token])
            parts.append(self._scaled("token", _unit(np.concatenate(recent, -1))))
        return np.concatenate(parts, -1) if parts else np.zeros((worlds, contexts, 0))

    def _scaled(self, name: str, columns: np.ndarray) -> np.ndarray:
        return np.sqrt(self._weight(name))[:, None, None] * columns

    @property
    def features(self) -> Array | None:
        """Φ, None where the prefix component has a weight (its features are as many as prefixes)."""
        return None if np.any(self._weight("prefix")) else self._out(self._columns())

    @property
    def diagonal(self) -> Array | None:
        """The weight of identity at every context, (B, C)."""
        if np.any(self._weight("prefix")) or not np.any(self._weight("identity")):
            return None
        return self._out(np.repeat(self._weight("identity")[:, None], self.tokens.shape[1], 1))

    def block(self, rows: slice, cols: slice, /) -> Array:
        """Σ_k w_k S_k[rows, cols]."""
        phi = self._columns()
        out = phi[:, rows] @ np.swapaxes(phi[:, cols], 1, 2)
        if np.any(self._weight("identity")) and _meet(rows, cols):
            out += self._weight("identity")[:, None, None] * _eye(out, rows, cols, self.tokens.shape[1])
        for b in np.flatnonzero(self._weight("prefix")):
            out[b] += self._weight("prefix")[b] * _overlap(self.tokens[b, rows], self.tokens[b, cols])
        return self._out(out)

    def _out(self, array: np.ndarray) -> Array:
        if self.like is None:
            return array
        return array_namespace(self.like).asarray(array, dtype=self.like.dtype, device=device(self.like))

    def take(self, worlds: Any, /) -> Mixture:
        """The kernel of some of the worlds."""
        weights = {name: self._weight(name)[worlds] for name in self.weights}
        vectors = self.vectors if self.vectors.ndim == 2 else self.vectors[worlds]
        return Mixture(self.tokens[worlds], self.prompt_length, weights, vectors, self.decay, self.lags, self.like)


def _unit(columns: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(columns, axis=-1, keepdims=True)
    return columns / np.where(norm > 0, norm, 1.0)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|common prefix| / √(|a| |b|) of token rows padded with −1, (rows, cols)."""
    same = (a[:, None] == b[None]) & (a[:, None] >= 0)
    common = np.cumprod(same, axis=-1).sum(-1)
    return common / np.sqrt((a >= 0).sum(-1)[:, None] * (b >= 0).sum(-1)[None])


def centred(weights: Array, /) -> Array:
    """The preconditioner P = I − w 1ᵀ, (B, n, n): an update with features minus their mean μ = Σ_u w_u φ_u.

    ΔZ_o = −η Σ_u ⟨φ_o, φ_u − μ⟩ R_u = −η S P R: centring the features is taking w_u of the total residual off every
    context. weights (B, n) ≥ 0 sum to 1 in each world.

    >>> centred(np.array([[0.5, 0.5]])).tolist()
    [[[0.5, -0.5], [-0.5, 0.5]]]
    """
    xp = array_namespace(weights)
    n = weights.shape[-1]
    eye = xp.eye(n, dtype=weights.dtype, device=device(weights))
    return eye - weights[..., None] * xp.ones_like(weights)[..., None, :]
