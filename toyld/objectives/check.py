"""Random batches, and the check every objective must pass: push = −autograd of loss.

`check` is what the generated tests run over the registry; a loss of your own passes it the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from .base import Objective
from .batch import Batch, ObjectiveError, Push
from .target import TargetObjective

__all__ = ["PushError", "check", "convert", "random_batch", "random_contexts"]

SIDES = ("chosen", "rejected", "anchor")


class PushError(ObjectiveError):
    """The push of an objective is not minus the gradient of its loss."""


def random_batch(seed: int, /, *, size: int = 4, tokens: int = 6, spread: float = 1.0) -> Batch:
    """A ragged numpy batch with every side filled, nan behind the masks, and log-probabilities of size `spread`.

    size = B; tokens = the largest T (T differs between sides and rows, ≥ 1); spread = 1 gives tokens around −1 nat,
    1e4 gives log-probabilities to −1e4 and margins to ±1e4·T. Same seed, same batch.

    >>> random_batch(0, size=2).chosen.shape[0]
    2
    """
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {"groups": rng.integers(0, 2, size)}
    for side in SIDES:
        width = int(rng.integers(1, tokens + 1))
        lengths = rng.integers(1, width + 1, size)
        lengths[rng.integers(size)] = width
        mask = np.arange(width) < lengths[:, None]

        def logp(scale: float, mask: np.ndarray = mask) -> np.ndarray:
            # Never exactly 0: a probability of 1 has no complement (unlikelihood, ORPO).
            return np.where(
                mask, -scale * np.clip(rng.exponential(size=mask.shape), 1e-3, 1.0 if scale > 9 else 9.0), np.nan
            )

        given[f"{side}_mask"] = mask
        given[side] = logp(spread)
        given[f"ref_{side}"] = logp(spread)
        if side != "anchor":
            given[f"old_{side}"] = given[side] + np.where(mask, rng.normal(0.0, 0.3, mask.shape), np.nan)
            given[f"old_{side}"] = np.minimum(given[f"old_{side}"], -1e-3) if spread <= 9 else logp(spread)
            given[f"{side}_advantage"] = rng.normal(size=size)
    return Batch(**given)


def random_contexts(seed: int, /, *, size: int = 3, tokens: int = 4, vocab: int = 9) -> tuple[Any, Any, Any]:
    """Logits (B, T, V), labels (B, T) and mask (B, T) for objectives with a target distribution."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 3.0, (size, tokens, vocab))
    return logits, rng.integers(0, vocab, (size, tokens)), rng.random((size, tokens)) < 0.8


def convert(batch: Batch, asarray: Any, /) -> Batch:
    """The same batch in another array library: asarray is applied to every array that is there.

    >>> import torch
    >>> convert(random_batch(0), torch.asarray).chosen.dtype
    torch.float64
    """
    given = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(**{name: asarray(array) for name, array in given.items() if array is not None})


def check(objective: Objective | TargetObjective, /, *, seeds: Iterable[int] = range(12)) -> float:
    """Compare push (or residual) with −autograd in float64 on random batches; the worst error in units of tolerance.

    Ragged batches with B from 1 to 5 and T from 1 to 7, log-probabilities around −1 and, in every third, to −1e4.
    Tolerance per row: 256 eps (1 + Σ|log π|) of its largest push, because a margin that sums log-probabilities carries
    a rounding error of eps Σ|log π|, and e^margin that error relative; and exactly 0 on masked positions. Raises
    PushError in one line, with the first batch that fails.

    >>> from toyld.objectives import get
    >>> check(get("dpo")) < 1
    True
    """
    return max(_check_one(objective, seed) for seed in seeds)


def _check_one(objective: Objective | TargetObjective, seed: int) -> float:
    if isinstance(objective, TargetObjective):
        pairs, size = _target_pairs(objective, seed)
    else:
        shape = {"size": 1 + seed % 5, "tokens": 1 + seed % 7}
        pairs, size = _push_pairs(objective, random_batch(seed, spread=1e4 if seed % 3 == 2 else 1.0, **shape))
    # The largest push of each row, over all sides: c_+ may be the small difference of numbers like c_−.
    scale = np.max([np.abs([ours, auto]).max(axis=(0, *range(2, ours.ndim + 1))) for _, _, ours, auto in pairs], axis=0)
    eps = np.finfo(np.float64).eps
    worst = 0.0
    for side, mask, ours, automatic in pairs:
        if not (np.isfinite(ours).all() and np.isfinite(automatic).all()):
            raise PushError(f"{objective.name}: expected finite numbers, got nan or inf on {side} (seed {seed})")
        if np.any(ours[~mask]) or np.any(automatic[~mask]):
            raise PushError(f"{objective.name}: expected no push on masked positions of {side} (seed {seed})")
        tolerance = 256 * eps * (1.0 + size) * scale + eps**2
        error = np.abs(ours - automatic) / tolerance.reshape(-1, *(1,) * (ours.ndim - 1))
        if not error.max() <= 1.0:
            at = np.unravel_index(np.argmax(error), error.shape)
            raise PushError(
                f"{objective.name}: expected push = −∂loss/∂log π = {automatic[at]:.6g} on {side}{list(map(int, at))}, "
                f"got {ours[at]:.6g} (seed {seed})"
            )
        worst = max(worst, float(error.max()))
    return worst


def _push_pairs(objective: Objective, batch: Batch) -> tuple[list[tuple[str, Any, Any, Any]], Any]:
    import torch

    mine = objective.push(batch)
    leaves = {side: torch.asarray(getattr(batch, side)).requires_grad_() for side in SIDES if batch.has(side)}
    loss = objective.loss(replace(convert(batch, torch.asarray), **leaves))
    rows = tuple(loss.shape)
    if rows != (batch.zeros().shape[0],):
        raise PushError(f"{objective.name}: expected a loss per row, shape {batch.zeros().shape}, got {rows}")
    if loss.requires_grad:
        loss.sum().backward()
    size = sum(np.abs(batch.tokens(prefix + side)).sum(axis=1) for prefix in ("", "ref_") for side in SIDES)
    pairs = [
        (side, np.asarray(batch.mask(side)), _side(mine, side, objective), _gradient(leaf))
        for side, leaf in leaves.items()
    ]
    return pairs, np.max(size)  # of the batch, not the row: sorted and averaged losses mix rows


def _side(push: Push, side: str, objective: Objective) -> Any:
    array = getattr(push, side)
    if array is None:
        raise PushError(f"{objective.name}: expected a push on every side of the batch, got None on {side}")
    return np.asarray(array)


def _gradient(leaf: Any) -> Any:
    return np.zeros(tuple(leaf.shape)) if leaf.grad is None else -leaf.grad.numpy()


def _target_pairs(objective: TargetObjective, seed: int) -> tuple[list[tuple[str, Any, Any, Any]], Any]:
    import torch

    logits, labels, mask = random_contexts(seed)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mine = objective.residual(logp, labels, mask=mask)
    leaf = torch.asarray(logits).requires_grad_()
    loss = objective.loss(torch.log_softmax(leaf, -1), torch.asarray(labels), mask=torch.asarray(mask))
    loss.sum().backward()
    pairs = [("logits", np.broadcast_to(mask[..., None], mine.shape), np.asarray(mine), -_gradient(leaf))]
    return pairs, np.abs(logp).max()
