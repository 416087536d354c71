"""What GRPO's update does to right answers, foretold from hidden states: GWHES (Deng et al. 2025, Thm 4.4)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.tiny.models import Models
from toyld.tiny.reinforce import Round

__all__ = ["gwhes", "of_right", "ranks"]

Floats = NDArray[np.float64]


def gwhes(one: Round, models: Models, weight: Floats, /) -> Floats:
    """GWHES of every prompt (S, P): −⟨W_i, Σ_j Â_j W_j⟩, mean over its right answers i, j its answers; NaN without.

    W_j = Σ_k h_k (e_{y_k} − π_k)ᵀ over the tokens of answer j is the gradient of log π(y_j) in the head: so this is
    minus what plain descent on the head gives log π of a right answer by its own prompt's answers, at first order and
    rate 1. weight (S, P, G): Â. Source: Deng et al. 2025 (2505.18830), Thm 4.4.
    """
    s, p, n = weight.shape
    error, *_ = one.errors(one.logits)
    told = -torch.where(one.mask[..., None], error, 0.0)
    states = models.hidden(one.inputs)[:, :, -told.shape[2] :]
    w = torch.einsum("satd,satv->sadv", states, told).reshape(s, p, n, -1)
    total = torch.einsum("spn,spnk->spk", torch.as_tensor(weight, dtype=w.dtype, device=w.device), w)
    score = -torch.einsum("spnk,spk->spn", w, total).double().cpu().numpy()
    return of_right(score, one.said.reward)


def of_right(values: Floats, reward: Floats) -> Floats:
    """Mean (S, P) of values (S, P, G) over right answers; NaN where all are right, or none is."""
    right, count = reward > 0, (reward > 0).sum(-1)
    mixed = (count > 0) & (count < reward.shape[-1])
    return np.where(mixed, np.where(right, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def ranks(a: Floats, b: Floats) -> Floats:
    """Spearman's rank correlation (S,) over the prompts where both are known, three or more."""
    from scipy.stats import rankdata

    found = []
    for x, y in zip(a, b, strict=True):
        there = np.isfinite(x) & np.isfinite(y)
        enough = there.sum() > 2
        found.append(np.corrcoef(rankdata(x[there]), rankdata(y[there]))[0, 1] if enough else np.nan)
    return np.array(found)
