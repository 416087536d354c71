"""The batch every objective reads: per-token log-probabilities of two (at most three) responses to each prompt.

`chosen` is y+, `rejected` is y−, `anchor` a third response where a loss needs one (SLiC's y_ref, KTO's mismatched y
for z0). Each has a twin under the reference policy (`ref_…`) and under the policy that sampled it (`old_…`, π_old of
PPO, µ of TOPR). All are (B, T) arrays of one library, T may differ between sides; ragged responses are padded with
anything (nan too) and masked. What an objective does not use stays None.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_array_api_obj

from toyld.checked import BadInput

from .stable import detach

__all__ = ["Batch", "MissingSideError", "ObjectiveError", "Push", "pair_batch"]

Array = Any
_SIDES = ("chosen", "rejected", "anchor")
_WHAT = {
    "ref_": "per-token log-probabilities under the reference policy",
    "old_": "per-token log-probabilities under the policy that sampled the response",
    "": "per-token log-probabilities under the policy",
}


class ObjectiveError(BadInput):
    """Bad use of an objective: one line with what was expected, what came, and what to do."""


class MissingSideError(ObjectiveError):
    """The objective reads a side of the batch that is None."""


class Push(NamedTuple):
    """−∂(Σ_b loss_b)/∂log π_t per side, each (B, T) or None where the batch has no such side; positive pulls up."""

    chosen: Array | None
    rejected: Array | None
    anchor: Array | None = None


def _one_library(arrays: dict[str, Any], /) -> Any:
    """The one array library of these arrays; ObjectiveError where one is no array or where there are several."""
    for name, array in arrays.items():
        if not is_array_api_obj(array):
            got = type(array).__name__
            raise ObjectiveError(f"{name}: expected an array (numpy, torch, …), got {got}; pass numpy.asarray({name})")
    if not arrays:
        return None
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        got = ", ".join(f"{name} {type(a).__module__.split('.')[0]}" for name, a in arrays.items())
        msg = f"expected arrays of one library in a batch, got {got}; convert them to one, e.g. with torch.asarray"
        raise ObjectiveError(msg) from None


@dataclass(frozen=True)
class Batch:
    """B prompts, each with a chosen and/or a rejected response, as per-token log-probabilities.

    Log-probabilities, reference, old-policy twins and masks: (B, T) per side; a mask is true (or 1) on response
    tokens, None = all of them. Advantages: (B,), or (B, T) where they differ along the response; AsymRE reads the
    reward there. `groups`: (B,) integers, the prompt each row belongs to (GRPO normalises within one), None = one
    group. A side whose mask is empty in a row does not exist in that row (unpaired data, unequal groups).

    Raises ObjectiveError where shapes or array libraries disagree. Values are not looked at: they must be ≤ 0 and
    finite where unmasked.

    >>> import numpy as np
    >>> batch = Batch(chosen=np.log([[.5, .5, .1]]), chosen_mask=np.asarray([[1, 1, 0]]))
    >>> batch.total("chosen").round(4).tolist(), batch.length("chosen").tolist()
    ([-1.3863], [2.0])
    """

    chosen: Array | None = None
    rejected: Array | None = None
    anchor: Array | None = None
    ref_chosen: Array | None = None
    ref_rejected: Array | None = None
    ref_anchor: Array | None = None
    old_chosen: Array | None = None
    old_rejected: Array | None = None
    chosen_mask: Array | None = None
    rejected_mask: Array | None = None
    anchor_mask: Array | None = None
    chosen_advantage: Array | None = None
    rejected_advantage: Array | None = None
    groups: Array | None = None

    def __post_init__(self) -> None:
        _one_library({name: a for name, a in vars(self).items() if a is not None})
        sizes: set[int] = set()
        for side in _SIDES:
            array = getattr(self, side)
            shape = None if array is None else tuple(array.shape)
            if shape is not None:
                if len(shape) != 2:
                    raise ObjectiveError(f"{side}: expected per-token log-probabilities (B, T), got shape {shape}")
                sizes.add(shape[0])
            for twin in (f"ref_{side}", f"old_{side}", f"{side}_mask"):
                other = getattr(self, twin, None)
                if other is not None and shape is None:
                    raise ObjectiveError(f"{twin}: given without {side}; pass {side}= too, or leave {twin} out")
                if other is not None and tuple(other.shape) != shape:
                    raise ObjectiveError(f"{twin}: expected the shape of {side}, {shape}, got {tuple(other.shape)}")
            advantage = getattr(self, f"{side}_advantage", None)
            if advantage is not None and (shape is None or tuple(advantage.shape) not in (shape, shape[:1])):
                got = tuple(advantage.shape)
                raise ObjectiveError(f"{side}_advantage: expected (B,) or the shape of {side}, {shape}, got {got}")
        if len(sizes) != 1:
            found = "no side at all" if not sizes else f"sizes {sorted(sizes)}"
            raise ObjectiveError(f"a batch needs at least one side, and one B for all of them; got {found}")
        if self.groups is not None and tuple(self.groups.shape) != tuple(sizes):
            raise ObjectiveError(f"groups: expected shape (B,) = {tuple(sizes)}, got {tuple(self.groups.shape)}")

    @cached_property
    def xp(self) -> Any:
        """The array library of this batch."""
        return array_namespace(*(a for side in _SIDES if (a := getattr(self, side)) is not None))

    def has(self, side: str, /) -> bool:
        """Whether the batch holds this side at all."""
        return getattr(self, side) is not None

    def mask(self, side: str, /) -> Array:
        """True on response tokens: bool (B, T)."""
        mask, xp = getattr(self, f"{side}_mask"), self.xp
        if mask is None:
            return xp.ones_like(self._array(side), dtype=xp.bool)
        return xp.astype(mask, xp.bool, copy=False)

    def tokens(self, name: str, /) -> Array:
        """(B, T) log-probabilities `chosen`, `ref_chosen`, `old_chosen`, …, exactly 0 on masked positions."""
        array = self._array(name)
        return self.xp.where(self.mask(name.split("_")[-1]), array, self.xp.zeros_like(array))

    def total(self, name: str, /) -> Array:
        """ℓ = Σ_t log π_t over the response, (B,)."""
        return self.xp.sum(self.tokens(name), axis=1)

    def length(self, side: str, /) -> Array:
        """|y|, the number of response tokens, (B,) in the dtype of the log-probabilities; 1 where there is none."""
        count = self.xp.sum(self.xp.astype(self.mask(side), self._array(side).dtype), axis=1)
        return self.xp.where(count > 0, count, self.xp.ones_like(count))

    def mean(self, name: str, /) -> Array:
        """ℓ̄ = ℓ/|y|, (B,)."""
        return self.total(name) / self.length(name.split("_")[-1])

    def log_ratio(self, side: str, /) -> Array:
        """r = log π(y)/π_ref(y), (B,)."""
        return self.total(side) - self.total(f"ref_{side}")

    def advantage(self, side: str, /) -> Array:
        """Advantages as a column or matrix that broadcasts against (B, T)."""
        array = self._array(f"{side}_advantage")
        return array if array.ndim == 2 else self.xp.expand_dims(array, axis=1)

    def zeros(self) -> Array:
        """(B,) zeros in the dtype of the log-probabilities."""
        first = next(a for side in _SIDES if (a := getattr(self, side)) is not None)
        return self.xp.zeros_like(first[:, 0])

    def spread(self, values: Array, side: str, /) -> Array | None:
        """Per-response (B,) or per-token (B, T) values on the response tokens of a side, exactly 0 elsewhere."""
        if getattr(self, side) is None:
            return None
        xp, mask = self.xp, self.mask(side)
        values = values if values.ndim == 2 else xp.expand_dims(values, axis=1)
        return xp.where(mask, values, xp.zeros_like(values))

    def _array(self, name: str) -> Array:
        array = getattr(self, name)
        if array is None:
            prefix = next((p for p in ("ref_", "old_") if name.startswith(p)), "")
            what = "one number per response" if name.endswith("_advantage") else _WHAT[prefix]
            raise MissingSideError(f"this objective reads batch.{name}, which is None: pass {name}= ({what})")
        return array


def pair_batch(chosen: Array, rejected: Array, ref_chosen: Array | None = None, ref_rejected: Array | None = None, /,
               **sides: Any) -> Batch:  # fmt: skip
    """The full batch for sequences taken as one token each: (B,) log-probabilities in, every side filled.

    Left out, the reference equals the policy (π = π_ref, detached); the sampling policy equals the reference; the
    anchor is y+ under the reference, at log-ratio 0; advantages are +1 and −1. `sides` overrides any field of Batch.

    >>> import numpy as np
    >>> pair_batch(np.asarray([-1.0]), np.asarray([-2.0])).log_ratio("chosen").tolist()
    [0.0]
    """
    given = {"chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    xp = _one_library({name: a for name, a in given.items() if a is not None})
    # Detached: a reference that is the policy itself must not carry its gradient.
    ref_chosen = detach(chosen) if ref_chosen is None else ref_chosen
    ref_rejected = detach(rejected) if ref_rejected is None else ref_rejected
    plus, minus, ref_plus, ref_minus = (xp.expand_dims(a, axis=1) for a in (chosen, rejected, ref_chosen, ref_rejected))
    fields = {
        "chosen": plus, "rejected": minus, "anchor": ref_plus,
        "ref_chosen": ref_plus, "ref_rejected": ref_minus, "ref_anchor": ref_plus,
        "old_chosen": ref_plus, "old_rejected": ref_minus,
        "chosen_advantage": xp.ones_like(chosen), "rejected_advantage": -xp.ones_like(rejected),
    }  # fmt: skip
    return Batch(**(fields | sides))
