"""Objectives whose push differs along the response: PPO-clip, GRPO, token TOPR, unlikelihood, LD-DPO.

Each class names its `source`; on PPO see also App. A.3 of the paper (B2). PPO's ratio ρ is taken against `old_…`, the
policy that sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from .base import Kind, Objective, register
from .batch import Batch, MissingSideError, Push
from .pairs import DPO
from .stable import detach, exp_saturating, log1mexp, positive_part

__all__ = ["GRPO", "LDDPO", "PPO", "TOPRToken", "Unlikelihood", "group_advantages"]

Array = Any


def group_advantages(rewards: Array, /, *, groups: Array | None = None, present: Array | None = None) -> Array:
    """GRPO's advantages (r − mean)/std within each group, population std; 0 where a group's rewards are all equal.

    Rewards (N,) float, groups (N,) integers (None: one group), present (N,) bool (absent rows get 0 and do not
    count). Binary rewards with a share p of ones give +(1−p)/√(p(1−p)) and −p/√(p(1−p)): Lemma 4.2 of Deng et al.
    2025 (2505.18830), so N⁺p⁺ = N⁻p⁻. (TRL takes the sample std and adds 1e-4.) Source: Shao et al. 2024 (2402.03300).

    >>> import numpy as np
    >>> group_advantages(np.asarray([1.0, 0.0, 0.0, 0.0])).round(4).tolist()
    [1.7321, -0.5774, -0.5774, -0.5774]
    """
    xp = array_namespace(rewards)
    here = xp.ones_like(rewards) if present is None else xp.astype(present, rewards.dtype)
    key = xp.zeros_like(rewards) if groups is None else groups
    # One matrix of who shares a group with whom: rows look at columns. N is a batch, so N² is small.
    same = xp.astype(xp.expand_dims(key, axis=1) == xp.expand_dims(key, axis=0), rewards.dtype) * here
    count = xp.sum(same, axis=1)
    count = xp.where(count > 0, count, xp.ones_like(count))
    mean = xp.sum(same * rewards, axis=1) / count
    difference = xp.expand_dims(rewards, axis=0) - xp.expand_dims(mean, axis=1)
    variance = xp.sum(same * difference**2, axis=1) / count
    varied = variance > 0
    std = xp.sqrt(xp.where(varied, variance, xp.ones_like(variance)))
    return here * xp.where(varied, (rewards - mean) / std, xp.zeros_like(rewards))


def _clipped(batch: Batch, side: str, advantage: Array, clip: float) -> tuple[Array, Array]:
    """Per-token PPO-clip loss −min(ρA, clip(ρ)A) and push Aρ·1[unclipped], (B, T) each."""
    xp = batch.xp
    value, slope = exp_saturating(batch.tokens(side) - detach(batch.tokens(f"old_{side}")))
    advantage = advantage + xp.zeros_like(value)
    bound = xp.where(advantage < 0, xp.full_like(value, 1.0 - clip), xp.full_like(value, 1.0 + clip))
    # A > 0 stops pulling above 1 + ε, A < 0 stops pushing below 1 − ε; on the other side neither is ever clipped.
    inside = advantage * (value - bound) <= 0
    ratio = xp.where(inside, value, bound)
    return -advantage * ratio, xp.where(inside, advantage * slope, xp.zeros_like(value))


@dataclass(frozen=True)
class _Clipped(Objective):
    """PPO-clip on every side the batch has, given the advantages."""

    kind: ClassVar[Kind] = "token"
    clip: float = 0.2

    def _advantages(self, batch: Batch) -> dict[str, Array]:
        raise NotImplementedError

    def _scale(self, batch: Batch, side: str) -> Array:
        return batch.zeros() + 1.0

    def _sides(self, batch: Batch) -> dict[str, Array]:
        advantages = self._advantages(batch)
        if not advantages:
            message = f"{self.name} reads batch.chosen or batch.rejected and both are None: pass at least one"
            raise MissingSideError(message)
        return advantages

    def loss(self, batch: Batch, /) -> Array:
        total = batch.zeros()
        for side, advantage in self._sides(batch).items():
            tokens = batch.spread(_clipped(batch, side, advantage, self.clip)[0], side)
            total = total + batch.xp.sum(tokens, axis=1) * self._scale(batch, side)
        return total

    def push(self, batch: Batch, /) -> Push:
        pushes = {
            side: batch.spread(
                _clipped(batch, side, advantage, self.clip)[1] * batch.xp.expand_dims(self._scale(batch, side), axis=1),
                side,
            )
            for side, advantage in self._sides(batch).items()
        }
        return Push(pushes.get("chosen"), pushes.get("rejected"), batch.spread(batch.zeros(), "anchor"))


@register
@dataclass(frozen=True)
class PPO(_Clipped):
    """−Σ_t min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π/π_old per token: push Aρ where unclipped, 0 where clipped.

    Reads the advantages of whichever sides the batch has; their signs decide, not the side's name. For A < 0 the
    push falls linearly with π down to (1−ε)π_old and is 0 below; at ρ = 1 it is A however small π is (F9).
    """

    name: ClassVar[str] = "ppo"
    source: ClassVar[str] = "Schulman et al. 2017 (1707.06347), Eq. 7"

    def _advantages(self, batch: Batch) -> dict[str, Array]:
        return {side: batch.advantage(side) for side in ("chosen", "rejected") if batch.has(side)}


@register
@dataclass(frozen=True)
class GRPO(_Clipped):
    """PPO-clip with group-normalised binary rewards, 1 for every chosen and 0 for every rejected response of a prompt.

    A = +(1−p)/√(p(1−p)) and −p/√(p(1−p)), p the share of chosen responses among those present in the group
    (`Batch.groups`; an empty mask is an absent response), divided by |y| where `per_token_mean` (Dr. GRPO: False).
    Other rewards: `group_advantages` gives the advantages, PPO the loss. No KL term (TRL's default, too).
    """

    name: ClassVar[str] = "grpo"
    source: ClassVar[str] = "Shao et al. 2024 (2402.03300); Deng et al. 2025 (2505.18830), Lemma 4.2"
    per_token_mean: bool = True

    def _advantages(self, batch: Batch) -> dict[str, Array]:
        xp = batch.xp
        sides = [side for side in ("chosen", "rejected") if batch.has(side)]
        if not sides:
            return {}
        rewards = xp.concat([batch.zeros() + (1.0 if side == "chosen" else 0.0) for side in sides])
        present = xp.concat([xp.any(batch.mask(side), axis=1) for side in sides])
        groups = None if batch.groups is None else xp.concat([batch.groups for _ in sides])
        advantages = group_advantages(rewards, groups=groups, present=present)
        size = advantages.shape[0] // len(sides)
        return {side: xp.expand_dims(advantages[i * size : (i + 1) * size], axis=1) for i, side in enumerate(sides)}

    def _scale(self, batch: Batch, side: str) -> Array:
        return 1.0 / batch.length(side) if self.per_token_mean else super()._scale(batch, side)


@register
@dataclass(frozen=True)
class TOPRToken(Objective):
    """TOPR with the truncated ratio taken token by token: push 1 on y+, −min(1, π_t/µ_t) on token t of y−.

    The paper's ratio is of whole sequences (`topr`); per token is the lower-variance form.
    """

    name: ClassVar[str] = "topr-token"
    source: ClassVar[str] = "after Le Roux et al. 2025 (2503.14286)"
    kind: ClassVar[Kind] = "token"

    def loss(self, batch: Batch, /) -> Array:
        return -batch.total("chosen") + batch.xp.sum(self._weight(batch) * batch.tokens("rejected"), axis=1)

    def push(self, batch: Batch, /) -> Push:
        zero = batch.zeros()
        return Push(
            batch.spread(zero + 1.0, "chosen"),
            batch.spread(-self._weight(batch), "rejected"),
            batch.spread(zero, "anchor"),
        )

    def _weight(self, batch: Batch) -> Array:
        return batch.xp.exp(-positive_part(batch.tokens("old_rejected") - detach(batch.tokens("rejected"))))


@register
@dataclass(frozen=True)
class Unlikelihood(Objective):
    """−Σ_t log(1 − π_t) on y−: push −π_t/(1 − π_t) on token t; needs π_t < 1 strictly."""

    name: ClassVar[str] = "unlikelihood"
    source: ClassVar[str] = "Welleck et al. 2020 (1908.04319)"
    kind: ClassVar[Kind] = "token"

    def loss(self, batch: Batch, /) -> Array:
        xp = batch.xp
        return -xp.sum(batch.spread(log1mexp(self._logp(batch)), "rejected"), axis=1)

    def push(self, batch: Batch, /) -> Push:
        xp, logp, zero = batch.xp, self._logp(batch), batch.zeros()
        odds = xp.exp(logp) / -xp.expm1(logp)
        return Push(batch.spread(zero, "chosen"), batch.spread(-odds, "rejected"), batch.spread(zero, "anchor"))

    def _logp(self, batch: Batch) -> Array:
        # Masked tokens read 0, i.e. π = 1, where log(1 − π) is −inf: give them π = 1/e instead; spread drops them.
        tokens = batch.tokens("rejected")
        return batch.xp.where(batch.mask("rejected"), tokens, batch.xp.full_like(tokens, -1.0))


@register
@dataclass(frozen=True)
class LDDPO(Objective):
    """DPO on ℓ = Σ_{t ≤ n} log π_t + α Σ_{t > n} log π_t, n = min(|y+|, |y−|): push ±β(1−a), α times that beyond n.

    The reference is reduced the same way. α = 1 is DPO; TRL's `ld_alpha`.
    """

    name: ClassVar[str] = "ld-dpo"
    source: ClassVar[str] = "Liu et al. 2024 (2409.06411)"
    kind: ClassVar[Kind] = "token"
    beta: float = 0.1
    alpha: float = 0.5

    def loss(self, batch: Batch, /) -> Array:
        return DPO(self.beta).value(self._margin(batch))

    def push(self, batch: Batch, /) -> Push:
        strength = batch.xp.expand_dims(DPO(self.beta).strength(self._margin(batch)), axis=1)
        return Push(
            batch.spread(strength * self._weights(batch, "chosen"), "chosen"),
            batch.spread(-strength * self._weights(batch, "rejected"), "rejected"),
            batch.spread(batch.zeros(), "anchor"),
        )

    def _weights(self, batch: Batch, side: str) -> Array:
        xp = batch.xp
        plus, minus = batch.length("chosen"), batch.length("rejected")
        shared = xp.expand_dims(xp.where(plus < minus, plus, minus), axis=1)
        place = xp.cumulative_sum(xp.astype(batch.mask(side), plus.dtype), axis=1)
        ones = xp.ones_like(place)
        return xp.where(place <= shared, ones, self.alpha * ones)

    def _margin(self, batch: Batch) -> Array:
        reduced = [
            batch.xp.sum(self._weights(batch, side) * (batch.tokens(side) - batch.tokens(f"ref_{side}")), axis=1)
            for side in ("chosen", "rejected")
        ]
        return reduced[0] - reduced[1]
