"""Preference losses of a pair as their papers write them (App. B.2.2; the paper of each is its `source`).

Notation: ℓ_± summed log-probabilities, ℓ̄ = ℓ/|y|, r = log π/π_ref, h = r_+ − r_−, a = each loss's own sigmoid.
TRL's versions, where they differ, are in `toyld.objectives.trl` under `trl.…`: `ipo` there is length-normalised,
`hinge` has a reference, `sft` averages over the tokens of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import MarginObjective, SequenceObjective, register
from .batch import Batch, Push
from .stable import detach, log1mexp, positive_part, sigmoid, softplus

__all__ = [
    "CDPO", "CPO", "CWDPO", "DPO", "DPOP", "IPO", "NCA", "ORPO", "RPO", "SPPO", "DPOShift", "GateDPO", "SLiC", "SimPO",
]  # fmt: skip

Array = Any


@register
@dataclass(frozen=True)
class DPO(MarginObjective):
    """−log σ(βh): c = ±β(1 − a), a = σ(βh); ±β/2 at π = π_ref."""

    name: ClassVar[str] = "dpo"
    source: ClassVar[str] = "Rafailov et al. 2023 (2305.18290), Eq. 7"
    beta: float = 0.1

    def value(self, h: Array, /) -> Array:
        return softplus(-self.beta * h)

    def strength(self, h: Array, /) -> Array:
        return self.beta * sigmoid(-self.beta * h)


@register
@dataclass(frozen=True)
class CDPO(MarginObjective):
    """−(1−ε) log σ(βh) − ε log σ(−βh), labels flipped with probability ε: c = ±β(1 − ε − a)."""

    name: ClassVar[str] = "cdpo"
    source: ClassVar[str] = "Mitchell 2023 (note on cDPO), Eq. 3"
    beta: float = 0.1
    epsilon: float = 0.1

    def value(self, h: Array, /) -> Array:
        return (1.0 - self.epsilon) * softplus(-self.beta * h) + self.epsilon * softplus(self.beta * h)

    def strength(self, h: Array, /) -> Array:
        # (1−ε)(1−a) − εa, not 1−ε−a: for ε = 0 the difference would lose 1−a at large margins.
        u = self.beta * h
        return self.beta * ((1.0 - self.epsilon) * sigmoid(-u) - self.epsilon * sigmoid(u))


@register
@dataclass(frozen=True)
class IPO(MarginObjective):
    """(h − 1/2β)² of *summed* log-ratios: c = ∓2(h − 1/2β), zero at the target, reversed beyond it (F3).

    TRL's `ipo` divides each log-ratio by its |y|: that is `trl.ipo`.
    """

    name: ClassVar[str] = "ipo"
    source: ClassVar[str] = "Azar et al. 2023 (2310.12036), Eq. 17"
    beta: float = 0.1

    def value(self, h: Array, /) -> Array:
        return (h - 0.5 / self.beta) ** 2

    def strength(self, h: Array, /) -> Array:
        return -2.0 * (h - 0.5 / self.beta)


@register
@dataclass(frozen=True)
class SLiC(SequenceObjective):
    """max(0, δ − ℓ_+ + ℓ_−) − λ ℓ_ref: c = ±1[ℓ_+ − ℓ_− < δ], and λ on the third response y_ref (F4).

    y_ref is the batch's anchor; λ = 0 drops the term and needs none.
    """

    name: ClassVar[str] = "slic"
    source: ClassVar[str] = "Zhao et al. 2023 (2305.10425)"
    delta: float = 1.0
    weight: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        hinge = positive_part(self._gap(batch))
        return hinge - self.weight * batch.total("anchor") if self.weight else hinge

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        active = batch.xp.astype(self._gap(batch) > 0, batch.zeros().dtype)
        return active, -active

    def push(self, batch: Batch, /) -> Push:
        return super().push(batch)._replace(anchor=batch.spread(batch.zeros() + self.weight, "anchor"))

    def _gap(self, batch: Batch) -> Array:
        return self.delta - batch.total("chosen") + batch.total("rejected")


@register
@dataclass(frozen=True)
class SimPO(SequenceObjective):
    """−log σ(β ℓ̄_+ − β ℓ̄_− − γ), no reference: c = ±(β/|y_±|)(1 − a)."""

    name: ClassVar[str] = "simpo"
    source: ClassVar[str] = "Meng et al. 2024 (2405.14734)"
    beta: float = 2.0
    gamma: float = 0.5

    def loss(self, batch: Batch, /) -> Array:
        return softplus(-self._logit(batch))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.beta * sigmoid(-self._logit(batch))
        return strength / batch.length("chosen"), -strength / batch.length("rejected")

    def _logit(self, batch: Batch) -> Array:
        return self.beta * (batch.mean("chosen") - batch.mean("rejected")) - self.gamma


@register
@dataclass(frozen=True)
class SPPO(SequenceObjective):
    """(r_+ − η/2)² + (r_− + η/2)², winner 1 and loser 0: c = −2(r_± ∓ η/2), i.e. (+η, −η) at π_ref (F5).

    y− is pushed down until r_− = −η/2 and pulled back beyond. TRL's `sppo_hard` is η = 1/β.
    """

    name: ClassVar[str] = "sppo"
    source: ClassVar[str] = "Wu et al. 2024 (2405.00675), Eq. 4.7"
    eta: float = 10.0

    def loss(self, batch: Batch, /) -> Array:
        plus, minus = self._errors(batch)
        return plus**2 + minus**2

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus, minus = self._errors(batch)
        return -2.0 * plus, -2.0 * minus

    def _errors(self, batch: Batch) -> tuple[Array, Array]:
        return batch.log_ratio("chosen") - 0.5 * self.eta, batch.log_ratio("rejected") + 0.5 * self.eta


@register
@dataclass(frozen=True)
class DPOP(SequenceObjective):
    """−log σ(β(h − λ max(0, −r_+))), Smaug: c = (β(1−a)(1 + λ 1[r_+ < 0]), −β(1−a)); a includes the penalty."""

    name: ClassVar[str] = "dpop"
    source: ClassVar[str] = "Pal et al. 2024 (2402.13228)"
    beta: float = 0.3
    weight: float = 50.0

    def loss(self, batch: Batch, /) -> Array:
        return softplus(-self._logit(batch))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.beta * sigmoid(-self._logit(batch))
        fallen = batch.xp.astype(batch.log_ratio("chosen") < 0, strength.dtype)
        return strength * (1.0 + self.weight * fallen), -strength

    def _logit(self, batch: Batch) -> Array:
        plus = batch.log_ratio("chosen")
        return self.beta * (plus - self.weight * positive_part(-plus) - batch.log_ratio("rejected"))


@register
@dataclass(frozen=True)
class RPO(SequenceObjective):
    """DPO − α ℓ̄_+ (DPO+NLL): c = (β(1−a) + α/|y_+|, −β(1−a))."""

    name: ClassVar[str] = "rpo"
    source: ClassVar[str] = "Pang et al. 2024 (2404.19733)"
    beta: float = 0.1
    alpha: float = 1.0

    def loss(self, batch: Batch, /) -> Array:
        return DPO(self.beta).loss(batch) - self.alpha * batch.mean("chosen")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus, minus = DPO(self.beta).coefficients(batch)
        return plus + self.alpha / batch.length("chosen"), minus


@register
@dataclass(frozen=True)
class CPO(SequenceObjective):
    """−log σ(β(ℓ_+ − ℓ_−)) − λ ℓ_+, no reference: c = (β(1−a) + λ, −β(1−a))."""

    name: ClassVar[str] = "cpo"
    source: ClassVar[str] = "Xu et al. 2024 (2401.08417)"
    beta: float = 0.1
    weight: float = 1.0

    def loss(self, batch: Batch, /) -> Array:
        return softplus(-self._logit(batch)) - self.weight * batch.total("chosen")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.beta * sigmoid(-self._logit(batch))
        return strength + self.weight, -strength

    def _logit(self, batch: Batch) -> Array:
        return self.beta * (batch.total("chosen") - batch.total("rejected"))


@register
@dataclass(frozen=True)
class ORPO(SequenceObjective):
    """−ℓ̄_+ − λ log σ(log OR), odds P/(1−P) of P = e^ℓ̄.

    c_+ = 1/|y+| + λ(1−a)/(|y+|(1−P_+)), c_− = −λ(1−a)/(|y−|(1−P_−)), a = σ(log OR). Needs ℓ̄ < 0 strictly.
    """

    name: ClassVar[str] = "orpo"
    source: ClassVar[str] = "Hong et al. 2024 (2403.07691), Eq. 4 and 7"
    weight: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        return -batch.mean("chosen") + self.weight * softplus(-self._log_odds_ratio(batch))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        # (1 − a)/(1 − P) in log space: as P → 1 both vanish together and the quotient stays finite.
        fading = -softplus(self._log_odds_ratio(batch))
        n_plus, n_minus = batch.length("chosen"), batch.length("rejected")
        plus, minus = (batch.xp.exp(fading - log1mexp(batch.mean(side))) for side in ("chosen", "rejected"))
        return (1.0 + self.weight * plus) / n_plus, -self.weight * minus / n_minus

    def _log_odds_ratio(self, batch: Batch) -> Array:
        plus, minus = batch.mean("chosen"), batch.mean("rejected")
        return (plus - log1mexp(plus)) - (minus - log1mexp(minus))


@register
@dataclass(frozen=True)
class NCA(SequenceObjective):
    """−log σ(βr_+) − ½ log σ(−βr_+) − ½ log σ(−βr_−).

    c_+ = β[1 − 3/2 σ(βr_+)], which reverses at βr_+ = ln 2; c_− = −½ β σ(βr_−).
    """

    name: ClassVar[str] = "nca"
    source: ClassVar[str] = "Chen et al. 2024 (2402.05369)"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        plus, minus = (self.beta * batch.log_ratio(side) for side in ("chosen", "rejected"))
        return softplus(-plus) + 0.5 * softplus(plus) + 0.5 * softplus(minus)

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus, minus = (self.beta * batch.log_ratio(side) for side in ("chosen", "rejected"))
        return self.beta * (sigmoid(-plus) - 0.5 * sigmoid(plus)), -0.5 * self.beta * sigmoid(minus)


@register
@dataclass(frozen=True)
class DPOShift(SequenceObjective):
    """−log σ(β(r_+ − f r_−)), 0 < f ≤ 1: c = (β(1−a), −fβ(1−a)); f = 1 is DPO."""

    name: ClassVar[str] = "dpo-shift"
    source: ClassVar[str] = "Yang et al. 2025 (2502.07599)"
    beta: float = 0.1
    shift: float = 0.75

    def loss(self, batch: Batch, /) -> Array:
        return softplus(-self._logit(batch))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.beta * sigmoid(-self._logit(batch))
        return strength, -self.shift * strength

    def _logit(self, batch: Batch) -> Array:
        return self.beta * (batch.log_ratio("chosen") - self.shift * batch.log_ratio("rejected"))


@register
@dataclass(frozen=True)
class GateDPO(SequenceObjective):
    """DPO whose gradient on y− is multiplied by g = σ(α(p − τ)), detached: c = (β(1−a), −gβ(1−a)).

    p is the geometric mean of y−'s token probabilities, or their `quantile` (linear interpolation; the authors use
    0.1) where one is given. The value of the loss is DPO's. α and τ are not given in the sources we could read:
    10 and 0.1 are ours; at p = 0 they leave σ(−ατ) = 27 % of the push.
    """

    name: ClassVar[str] = "gate-dpo"
    source: ClassVar[str] = "Mouiche & Bahi 2026 (2605.02626)"
    beta: float = 0.1
    alpha: float = 10.0
    tau: float = 0.1
    quantile: float | None = None

    def loss(self, batch: Batch, /) -> Array:
        minus, gate = batch.log_ratio("rejected"), self.gate(batch)
        gated = gate * minus + (1.0 - gate) * detach(minus)
        return softplus(-self.beta * (batch.log_ratio("chosen") - gated))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.beta * sigmoid(-self.beta * (batch.log_ratio("chosen") - batch.log_ratio("rejected")))
        return strength, -self.gate(batch) * strength

    def gate(self, batch: Batch, /) -> Array:
        """g, (B,), detached."""
        return detach(sigmoid(self.alpha * (self._probability(batch) - self.tau)))

    def _probability(self, batch: Batch) -> Array:
        xp = batch.xp
        if self.quantile is None:
            return xp.exp(batch.mean("rejected"))
        tokens = batch.tokens("rejected")
        # Masked positions sort to the end (probability 2 > 1), so the first |y−| entries are the response's own.
        ordered = xp.sort(xp.where(batch.mask("rejected"), xp.exp(tokens), xp.full_like(tokens, 2.0)), axis=1)
        place = self.quantile * (batch.length("rejected") - 1.0)
        low = xp.floor(place)
        at = [xp.take_along_axis(ordered, xp.expand_dims(xp.astype(i, xp.int64), axis=1), axis=1)[:, 0]
              for i in (low, xp.ceil(place))]  # fmt: skip
        return at[0] + (place - low) * (at[1] - at[0])


@register
@dataclass(frozen=True)
class CWDPO(SequenceObjective):
    """−log σ(β(r_+ − w r_−)), w = σ((ℓ̄_− − floor)/τ) a cooling weight: c = (β(1−a), −wβ(1−a)).

    Stage 2 of CW-DPO (stage 1 is SFT with smoothed negatives). Unlike Gate-DPO's gate, w also enters a. w is
    detached here: the paper means it to scale y−'s gradient, and the sources we could read do not say. floor is in
    nats per token (the authors take a mean log-probability of the data); −3 and τ = 1 are ours.
    """

    name: ClassVar[str] = "cw-dpo"
    source: ClassVar[str] = "Zhang et al. 2025 (2510.11978), §4.2"
    beta: float = 0.1
    floor: float = -3.0
    tau: float = 1.0

    def loss(self, batch: Batch, /) -> Array:
        return softplus(-self._logit(batch))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.beta * sigmoid(-self._logit(batch))
        return strength, -self._weight(batch) * strength

    def _weight(self, batch: Batch) -> Array:
        return detach(sigmoid((batch.mean("rejected") - self.floor) / self.tau))

    def _logit(self, batch: Batch) -> Array:
        return self.beta * (batch.log_ratio("chosen") - self._weight(batch) * batch.log_ratio("rejected"))
