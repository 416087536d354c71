"""All 15 `loss_type`s of TRL's DPOTrainer under the name `trl.<loss_type>`, as its code computes them.

Read in TRL 1.16 (`trainer/dpo_trainer.py`, `_compute_loss`) with `f_divergence_type="reverse_kl"`; parameters carry
`DPOConfig`'s names and defaults, except `label_smoothing` of `robust` and `exo_pair`, which default to what
the config's docstring recommends (0.1, 1e-3): 0 makes the first DPO, and TRL refuses it for the second. TRL averages
the rows (the mean of `loss`). Where a paper's loss is the same function the class is made from it (`sigmoid` is
DPO, `nca_pair` NCA, `sppo_hard` SPPO with η = 1/β); `ipo` and `sigmoid_norm` divide each log-ratio by its |y| and
`sft` averages over the tokens of the batch, so these are not `ipo`, `dpo` and `sft`. `label_smoothing` is not applied
to `sigmoid`: that would be `cdpo`. `ld_alpha` is `ld-dpo`, and a list of losses with weights is a `Mix`.
Notation: D_± = r_± = log π/π_ref, u = βh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from .base import MarginObjective, Objective, SequenceObjective, register
from .batch import Batch, ObjectiveError, Push
from .pairs import CDPO, DPO, IPO, NCA, SPPO
from .stable import positive_part, sigmoid, softplus

__all__ = [
    "AOT", "AOTUnpaired", "APODown", "APOZero", "BCOPair", "DiscoPOP", "EXOPair", "Hinge", "Mix", "NCAPair", "Robust",
    "SPPOHard", "Sigmoid", "SigmoidNorm", "TokenMeanIPO", "TokenMeanSFT",
]  # fmt: skip

Array = Any


@register
@dataclass(frozen=True)
class Sigmoid(DPO):
    """−log σ(u), DPO."""

    name: ClassVar[str] = "trl.sigmoid"
    source: ClassVar[str] = "TRL sigmoid; Rafailov et al. 2023 (2305.18290), Eq. 7"


@register
@dataclass(frozen=True)
class Hinge(MarginObjective):
    """max(0, 1 − u): c = ±β 1[h < 1/β]; the papers' SLiC, `slic`, has no reference."""

    name: ClassVar[str] = "trl.hinge"
    source: ClassVar[str] = "TRL hinge; Zhao et al. 2023 (2305.10425), Liu et al. 2023 (2309.06657)"
    beta: float = 0.1

    def value(self, h: Array, /) -> Array:
        return positive_part(1.0 - self.beta * h)

    def strength(self, h: Array, /) -> Array:
        return self.beta * array_namespace(h).astype(self.beta * h < 1.0, h.dtype)


@register
@dataclass(frozen=True)
class TokenMeanIPO(IPO):
    """(D_+/|y+| − D_−/|y−| − 1/2β)²: the length-normalised IPO its authors ran."""

    name: ClassVar[str] = "trl.ipo"
    source: ClassVar[str] = "TRL ipo; Azar et al. 2023 (2310.12036), Eq. 17 per token"
    normalised: ClassVar[bool] = True


@register
@dataclass(frozen=True)
class EXOPair(MarginObjective):
    """KL([σ(u), σ(−u)] ‖ [1−ε, ε]): c = ±β σ(u)σ(−u)(u* − u), u* = log((1−ε)/ε).

    Reverses beyond the target u*, and vanishes for badly wrong pairs (u → −∞) as well as for u → ∞.
    """

    name: ClassVar[str] = "trl.exo_pair"
    source: ClassVar[str] = "TRL exo_pair; Ji et al. 2024 (2402.00856), Eq. 16"
    beta: float = 0.1
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.label_smoothing < 1.0:
            raise ObjectiveError(f"trl.exo_pair: expected 0 < label_smoothing < 1, got {self.label_smoothing}")

    def value(self, h: Array, /) -> Array:
        u = self.beta * h
        win, lose = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        return sigmoid(u) * (-softplus(-u) - win) + sigmoid(-u) * (-softplus(u) - lose)

    def strength(self, h: Array, /) -> Array:
        u = self.beta * h
        target = math.log1p(-self.label_smoothing) - math.log(self.label_smoothing)
        return self.beta * sigmoid(u) * sigmoid(-u) * (target - u)


@register
@dataclass(frozen=True)
class NCAPair(NCA):
    """−log σ(βD_+) − ½ log σ(−βD_+) − ½ log σ(−βD_−), NCA."""

    name: ClassVar[str] = "trl.nca_pair"
    source: ClassVar[str] = "TRL nca_pair; Chen et al. 2024 (2402.05369)"


@register
@dataclass(frozen=True)
class Robust(MarginObjective):
    """[−(1−ε) log σ(u) + ε log σ(−u)]/(1 − 2ε): c = ±β[(1−ε)(1−a) + εa]/(1−2ε), never below βε/(1−2ε)."""

    name: ClassVar[str] = "trl.robust"
    source: ClassVar[str] = "TRL robust; Chowdhury et al. 2024 (2403.00409)"
    beta: float = 0.1
    label_smoothing: float = 0.1

    def value(self, h: Array, /) -> Array:
        u, e = self.beta * h, self.label_smoothing
        return ((1.0 - e) * softplus(-u) - e * softplus(u)) / (1.0 - 2.0 * e)

    def strength(self, h: Array, /) -> Array:
        u, e = self.beta * h, self.label_smoothing
        return self.beta * ((1.0 - e) * sigmoid(-u) + e * sigmoid(u)) / (1.0 - 2.0 * e)


@register
@dataclass(frozen=True)
class BCOPair(SequenceObjective):
    """−log σ(βD_+) − log σ(−βD_−): c = (βσ(−βD_+), −βσ(βD_−))."""

    name: ClassVar[str] = "trl.bco_pair"
    source: ClassVar[str] = "TRL bco_pair; Jung et al. 2024 (2404.04656)"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        return softplus(-self.beta * batch.log_ratio("chosen")) + softplus(self.beta * batch.log_ratio("rejected"))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus, minus = (self.beta * batch.log_ratio(side) for side in ("chosen", "rejected"))
        return self.beta * sigmoid(-plus), -self.beta * sigmoid(minus)


@register
@dataclass(frozen=True)
class SPPOHard(SequenceObjective):
    """(D_+ − 1/2β)² + (D_− + 1/2β)²: c = −2(D_± ∓ 1/2β); SPPO with η = 1/β."""

    name: ClassVar[str] = "trl.sppo_hard"
    source: ClassVar[str] = "TRL sppo_hard; Wu et al. 2024 (2405.00675), Eq. 4.7"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        return SPPO(1.0 / self.beta).loss(batch)

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        return SPPO(1.0 / self.beta).coefficients(batch)


@dataclass(frozen=True)
class _Sorted(SequenceObjective):
    """cDPO of the differences of two sorted batches; rank i of one is compared with rank i of the other.

    A row's loss is that of the rank its y+ has; only the mean over the batch is TRL's.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def _sorted(self, values: Array, xp: Any) -> tuple[Array, Array]:
        """Values in ascending order, and the rank of every row."""
        order = xp.argsort(values)
        return xp.take(values, order, axis=0), xp.argsort(order)

    def _pair(self) -> CDPO:
        return CDPO(self.beta, self.label_smoothing)


@register
@dataclass(frozen=True)
class AOT(_Sorted):
    """Logistic loss of sorted(ℓ_+ − ℓ_−) − sorted(its reference): c = ±β(1 − a) of the row's *rank*."""

    name: ClassVar[str] = "trl.aot"
    source: ClassVar[str] = "TRL aot; Melnyk et al. 2024 (2406.05882)"

    def loss(self, batch: Batch, /) -> Array:
        delta, rank = self._delta(batch)
        return batch.xp.take(self._pair().value(delta), rank, axis=0)

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        delta, rank = self._delta(batch)
        strength = batch.xp.take(self._pair().strength(delta), rank, axis=0)
        return strength, -strength

    def _delta(self, batch: Batch) -> tuple[Array, Array]:
        policy, rank = self._sorted(batch.total("chosen") - batch.total("rejected"), batch.xp)
        reference, _ = self._sorted(batch.total("ref_chosen") - batch.total("ref_rejected"), batch.xp)
        return policy - reference, rank


@register
@dataclass(frozen=True)
class AOTUnpaired(_Sorted):
    """Logistic loss of sorted(D_+) − sorted(D_−): c_± = ±β(1 − a) of the response's rank on its own side."""

    name: ClassVar[str] = "trl.aot_unpaired"
    source: ClassVar[str] = "TRL aot_unpaired; Melnyk et al. 2024 (2406.05882)"

    def loss(self, batch: Batch, /) -> Array:
        delta, plus, _ = self._delta(batch)
        return batch.xp.take(self._pair().value(delta), plus, axis=0)

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        delta, plus, minus = self._delta(batch)
        strength = self._pair().strength(delta)
        return batch.xp.take(strength, plus, axis=0), -batch.xp.take(strength, minus, axis=0)

    def _delta(self, batch: Batch) -> tuple[Array, Array, Array]:
        chosen, plus = self._sorted(batch.log_ratio("chosen"), batch.xp)
        rejected, minus = self._sorted(batch.log_ratio("rejected"), batch.xp)
        return chosen - rejected, plus, minus


@register
@dataclass(frozen=True)
class APOZero(SequenceObjective):
    """1 − σ(βD_+) + σ(βD_−): c = (βσσ'(βD_+), −βσσ'(βD_−)) with σσ' = σ(1−σ), fading in both directions."""

    name: ClassVar[str] = "trl.apo_zero"
    source: ClassVar[str] = "TRL apo_zero; D'Oosterlinck et al. 2024 (2408.06266), Eq. 7"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        return sigmoid(-self.beta * batch.log_ratio("chosen")) + sigmoid(self.beta * batch.log_ratio("rejected"))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus, minus = (self.beta * batch.log_ratio(side) for side in ("chosen", "rejected"))
        return self.beta * sigmoid(plus) * sigmoid(-plus), -self.beta * sigmoid(minus) * sigmoid(-minus)


@register
@dataclass(frozen=True)
class APODown(SequenceObjective):
    """σ(βD_+) + 1 − σ(u): c_− = −βσ(1−σ)(u), c_+ = −c_− − βσ(1−σ)(βD_+); y+ is pushed down as well."""

    name: ClassVar[str] = "trl.apo_down"
    source: ClassVar[str] = "TRL apo_down; D'Oosterlinck et al. 2024 (2408.06266), Eq. 8"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        plus = self.beta * batch.log_ratio("chosen")
        return sigmoid(plus) + sigmoid(self.beta * batch.log_ratio("rejected") - plus)

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        plus = self.beta * batch.log_ratio("chosen")
        u = plus - self.beta * batch.log_ratio("rejected")
        apart = self.beta * sigmoid(u) * sigmoid(-u)
        return apart - self.beta * sigmoid(plus) * sigmoid(-plus), -apart


@register
@dataclass(frozen=True)
class DiscoPOP(MarginObjective):
    """(1−m)(−log σ(u)) + m e^{−u}, m = σ(u/τ).

    Pulls the margin the wrong way for −.119 < u < .072 at τ = .05: a single pair started at π_ref (u = 0) is driven
    to u ≈ −.119 and stays. Finite for u → −∞ (τ < 1), where e^{−u} m is 0 · ∞ if multiplied out.
    """

    name: ClassVar[str] = "trl.discopop"
    source: ClassVar[str] = "TRL discopop; Lu et al. 2024 (2406.08414), Eq. 5"
    beta: float = 0.1
    discopop_tau: float = 0.05

    def value(self, h: Array, /) -> Array:
        u, v, exponential = self._parts(h)
        return sigmoid(-v) * softplus(-u) + exponential

    def strength(self, h: Array, /) -> Array:
        u, v, exponential = self._parts(h)
        # −d/du of the two terms; dm/du = σ(v)σ(−v)/τ.
        logistic = sigmoid(-v) * (sigmoid(v) / self.discopop_tau * softplus(-u) + sigmoid(-u))
        return self.beta * (logistic + exponential * (1.0 - sigmoid(-v) / self.discopop_tau))

    def _parts(self, h: Array) -> tuple[Array, Array, Array]:
        u = self.beta * h
        v = u / self.discopop_tau
        # m e^{−u} in log space.
        return u, v, _sigmoid_times_exp(v, -u)


def _sigmoid_times_exp(v: Array, w: Array, /) -> Array:
    """σ(v) e^w without forming either factor."""
    return array_namespace(v).exp(w - softplus(-v))


@register
@dataclass(frozen=True)
class TokenMeanSFT(SequenceObjective):
    """NLL of y+ averaged over all chosen tokens of the batch, in every row: c_+ = B/Σ|y+|."""

    name: ClassVar[str] = "trl.sft"
    source: ClassVar[str] = "TRL sft"

    def loss(self, batch: Batch, /) -> Array:
        nll = -batch.xp.sum(batch.total("chosen")) / self._count(batch)
        return batch.zeros() + nll

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        zeros = batch.zeros()
        return zeros + zeros.shape[0] / self._count(batch), zeros

    def _count(self, batch: Batch) -> Array:
        xp = batch.xp
        return xp.sum(xp.astype(batch.mask("chosen"), batch.zeros().dtype))


@register
@dataclass(frozen=True)
class SigmoidNorm(DPO):
    """−log σ(β(D_+/|y+| − D_−/|y−|)), length-normalised DPO: c = ±(β/|y_±|)(1 − a)."""

    name: ClassVar[str] = "trl.sigmoid_norm"
    source: ClassVar[str] = "TRL sigmoid_norm"
    normalised: ClassVar[bool] = True


@register
@dataclass(frozen=True)
class Mix(Objective):
    """Weighted sum of objectives, as TRL's list of losses with `loss_weights`; by default MPO (TRL's example)."""

    name: ClassVar[str] = "mpo"
    source: ClassVar[str] = "TRL loss_weights; Wang et al. 2024 (2411.10442)"
    kind: ClassVar[Any] = "token"
    parts: tuple[Objective, ...] = (Sigmoid(), BCOPair(), TokenMeanSFT())
    weights: tuple[float, ...] = (0.8, 0.2, 1.0)

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.weights) or not self.parts:
            message = f"mpo: expected one weight per part, got {len(self.parts)} parts and {len(self.weights)} weights"
            raise ObjectiveError(message)

    def loss(self, batch: Batch, /) -> Array:
        return sum(w * part.loss(batch) for w, part in zip(self.weights, self.parts, strict=True))

    def push(self, batch: Batch, /) -> Push:
        pushes = [part.push(batch) for part in self.parts]
        mixed: list[Array | None] = []
        for side in zip(*pushes, strict=True):
            given = [w * p for w, p in zip(self.weights, side, strict=True) if p is not None]
            mixed.append(sum(given[1:], start=given[0]) if given else None)
        return Push(*mixed)
