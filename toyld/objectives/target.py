"""Objectives with a target distribution in place of a label: BS-T unlearning (Li et al. 2026; F12).

Their gradient on the logits is not a multiple of π − e_y, so they give a residual G with z' = z − s G instead of a
push, and read whole log-probability vectors instead of a `Batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from .base import Kind, register
from .stable import detach

__all__ = ["BST", "TargetObjective"]

Array = Any


@dataclass(frozen=True)
class TargetObjective(ABC):
    """Minimises sign · ⟨t, log π⟩ for a detached target t that sums to 1: G = sign · (t − π)."""

    name: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[Kind] = "target"
    sign: ClassVar[float] = 1.0

    @abstractmethod
    def target(self, log_probs: Array, labels: Array, /) -> Array:
        """t, shape of log_probs (..., V); labels are integers (...)."""

    def loss(self, log_probs: Array, labels: Array, /, *, mask: Array | None = None) -> Array:
        """sign · ⟨t, log π⟩ summed over the response: log_probs (B, T, V), labels and mask (B, T) → (B,)."""
        xp = array_namespace(log_probs)
        each = self.sign * xp.sum(self.target(log_probs, labels) * log_probs, axis=-1)
        return xp.sum(each if mask is None else xp.where(xp.astype(mask, xp.bool), each, xp.zeros_like(each)), axis=-1)

    def residual(self, log_probs: Array, labels: Array, /, *, mask: Array | None = None) -> Array:
        """G = ∂loss/∂z on the logits, (..., V); exactly 0 on masked positions."""
        xp = array_namespace(log_probs)
        g = self.sign * (self.target(log_probs, labels) - xp.exp(log_probs))
        if mask is None:
            return g
        return xp.where(xp.expand_dims(xp.astype(mask, xp.bool), axis=-1), g, xp.zeros_like(g))


@register
@dataclass(frozen=True)
class BST(TargetObjective):
    """+⟨t, log π⟩ with t = λ q + (1−λ) e_y, q = π restricted to its top k and renormalised, detached.

    G = (1−λ) e_y + λ q − π, so G[v] = G_GA[v] + λ q[v] for v ≠ y (G_GA = e_y − π): the model's own favourites are
    pushed down together with y. The paper's Theorem 5.2 prints the opposite overall sign (F12). Tokens tied with the
    k-th largest all belong to the top k. λ = 0 is GA. k = 5 and λ = 0.5 are ours.

    >>> import numpy as np
    >>> logp = np.log([[[.6, .3, .1]]])
    >>> BST(weight=.5, k=2).residual(logp, np.asarray([[2]])).round(4).tolist()
    [[[-0.2667, -0.1333, 0.4]]]
    """

    name: ClassVar[str] = "bs-t"
    source: ClassVar[str] = "Li et al. 2026 (2510.19422), Thm 5.2 corrected"
    weight: float = 0.5
    k: int = 5

    def target(self, log_probs: Array, labels: Array, /) -> Array:
        xp, logp = array_namespace(log_probs), detach(log_probs)
        vocab = logp.shape[-1]
        ordered = xp.sort(logp, axis=-1)
        least = ordered[..., vocab - min(self.k, vocab) : vocab - min(self.k, vocab) + 1]
        kept = xp.where(logp >= least, xp.exp(logp - ordered[..., -1:]), xp.zeros_like(logp))
        belief = kept / xp.sum(kept, axis=-1, keepdims=True)
        one_hot = xp.astype(xp.arange(vocab, device=device(logp)) == xp.expand_dims(labels, axis=-1), logp.dtype)
        return self.weight * belief + (1.0 - self.weight) * one_hot
