"""Losses that treat each response by itself: SFT, extend, GA, NPO, NSR, AsymRE, TOPR, KTO (App. B.2; `source`).

c_± depends on the own response only (KTO's z0 on the batch), so there is no margin between y+ and y−.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import SequenceObjective, register
from .batch import Batch, ObjectiveError
from .stable import detach, positive_part, sigmoid, softplus

__all__ = ["GA", "KTO", "NPO", "NSR", "SFT", "TOPR", "AsymRE", "Extend"]

Array = Any


@register
@dataclass(frozen=True)
class SFT(SequenceObjective):
    """−ℓ_+, summed over tokens: c = (1, 0)."""

    name: ClassVar[str] = "sft"
    source: ClassVar[str] = "Ren & Sutherland 2025, Eq. 5"

    def loss(self, batch: Batch, /) -> Array:
        return -batch.total("chosen")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return batch.zeros() + 1.0, batch.zeros()


@register
@dataclass(frozen=True)
class Extend(SequenceObjective):
    """−ℓ_+ − ℓ_−, SFT on both responses before DPO: c = (1, 1)."""

    name: ClassVar[str] = "extend"
    source: ClassVar[str] = "Ren & Sutherland 2025, §4.3"

    def loss(self, batch: Batch, /) -> Array:
        return -batch.total("chosen") - batch.total("rejected")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return batch.zeros() + 1.0, batch.zeros() + 1.0


@register
@dataclass(frozen=True)
class GA(SequenceObjective):
    """+ℓ_−, gradient ascent on the NLL (unlearning): c_− = −1 for ever, loss unbounded below."""

    name: ClassVar[str] = "ga"
    source: ClassVar[str] = "Jang et al. 2023 (2210.01504)"

    def loss(self, batch: Batch, /) -> Array:
        return batch.total("rejected")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return batch.zeros(), batch.zeros() - 1.0


@register
@dataclass(frozen=True)
class NPO(SequenceObjective):
    """−(2/β) log σ(−β r_−): c_− = −W, W = 2ρ^β/(1 + ρ^β), ρ = π/π_ref; GA in the limit β → 0."""

    name: ClassVar[str] = "npo"
    source: ClassVar[str] = "Zhang et al. 2024 (2404.05868)"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        return (2.0 / self.beta) * softplus(self.beta * batch.log_ratio("rejected"))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return batch.zeros(), -2.0 * sigmoid(self.beta * batch.log_ratio("rejected"))


@register
@dataclass(frozen=True)
class NSR(SequenceObjective):
    """+π(y−), the loss on the probability itself: c_− = −π(y−); written on log π it is GA."""

    name: ClassVar[str] = "nsr"
    source: ClassVar[str] = "Zhu et al. 2025 (2506.01347)"

    def loss(self, batch: Batch, /) -> Array:
        return batch.xp.exp(batch.total("rejected"))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return batch.zeros(), -batch.xp.exp(batch.total("rejected"))


@register
@dataclass(frozen=True)
class TOPR(SequenceObjective):
    """−ℓ_+ + [π/µ]₀¹ ℓ_−, the truncated sequence ratio detached, µ = old policy: c = (1, −min(1, π/µ))."""

    name: ClassVar[str] = "topr"
    source: ClassVar[str] = "Le Roux et al. 2025 (2503.14286)"

    def loss(self, batch: Batch, /) -> Array:
        return -batch.total("chosen") + self._weight(batch) * batch.total("rejected")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return batch.zeros() + 1.0, -self._weight(batch)

    def _weight(self, batch: Batch) -> Array:
        log_ratio = detach(batch.total("rejected")) - batch.total("old_rejected")
        return batch.xp.exp(-positive_part(-log_ratio))


@register
@dataclass(frozen=True)
class AsymRE(SequenceObjective):
    """−(r_+ − V) ℓ_+ − (r_− − V) ℓ_−: c = r − V on either side.

    r is the reward, read from the batch's advantages, (B,) each; V a baseline (not the vocabulary). A little below
    the mean reward V^µ it is stable, at and above it the run collapses (policy.asymre-atoms); −0.1 suits rewards ±1.
    """

    name: ClassVar[str] = "asymre"
    source: ClassVar[str] = "Arnal et al. 2025 (2506.20520)"
    baseline: float = -0.1

    def loss(self, batch: Batch, /) -> Array:
        sides = ("chosen", "rejected")
        return -sum(((self._reward(batch, side) - self.baseline) * batch.total(side) for side in sides), batch.zeros())

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return self._reward(batch, "chosen") - self.baseline, self._reward(batch, "rejected") - self.baseline

    def _reward(self, batch: Batch, side: str) -> Array:
        reward = batch.advantage(side)
        if reward.shape[1] != 1:
            raise ObjectiveError(
                "asymre: expected one reward per response, (B,), got one per token; sum or average them"
            )
        return reward[:, 0]


@register
@dataclass(frozen=True)
class KTO(SequenceObjective):
    """λ_D [1 − σ(β(r_+ − z0))] + λ_U [1 − σ(β(z0 − r_−))], z0 = max(0, mean log-ratio), detached.

    c_+ = λ_D β σ(1−σ)(β(r_+ − z0)), c_− = −λ_U β σ(1−σ)(β(z0 − r_−)). z0 estimates KL(π‖π_ref) on the *anchor*,
    completions matched to other prompts, as the paper does; without an anchor on the batch's own responses, which
    costs no extra forward pass and is biased upwards once y+ has been learnt.
    """

    name: ClassVar[str] = "kto"
    source: ClassVar[str] = "Ethayarajh et al. 2024 (2402.01306), Eq. 7"
    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def loss(self, batch: Batch, /) -> Array:
        plus, minus = self._values(batch)
        return self.desirable * sigmoid(-plus) + self.undesirable * sigmoid(-minus)

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus, minus = self._values(batch)
        return (
            self.desirable * self.beta * sigmoid(plus) * sigmoid(-plus),
            -self.undesirable * self.beta * sigmoid(minus) * sigmoid(-minus),
        )

    def _values(self, batch: Batch) -> tuple[Array, Array]:
        sides = ("anchor",) if batch.has("anchor") else ("chosen", "rejected")
        z0 = positive_part(batch.xp.mean(batch.xp.concat([detach(batch.log_ratio(side)) for side in sides])))
        return self.beta * (batch.log_ratio("chosen") - z0), self.beta * (z0 - batch.log_ratio("rejected"))
