"""The training rows of one stage: which tokens they are, what the objective reads of them, what residual it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from toyld.checked import BadInput
from toyld.contexts.measure import token_log_probs
from toyld.contexts.world import World
from toyld.objectives import Batch, looks_across

__all__ = ["Rows"]

Array = Any


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of all rows: flat places of its contexts (B·n) and labels (B·n·V), mask, reference, each (B, P, T)."""

    at: Array
    label: Array
    mask: Array
    reference: Array

    def pick(self, index: Any) -> _Side:
        """The rows of one update."""
        return _Side(*(value[index] for value in (self.at, self.label, self.mask, self.reference)))


class Rows:
    """The rows of a stage and what the objective makes of them.

    active: contexts beyond which no row has a token, so that the residual need not be larger.
    """

    def __init__(self, world: World, objective: Any, sides: Mapping[str, str], before: Array, /) -> None:
        if getattr(objective, "kind", None) == "target":
            msg = f"{objective.name}: expected an objective with a push; a target distribution is not trained here yet"
            raise BadInput(msg)
        xp = array_namespace(world.logits)
        used = [world.responses[kind] for kind in sides.values()]
        self.active = 1 + max(int(xp.max(xp.where(r.mask, r.context, xp.zeros_like(r.context)))) for r in used)
        if self.active > world.trained:
            msg = f"expected rows on the {world.trained} trained contexts, got one on context {self.active - 1}"
            raise BadInput(f"{msg}; name its kind in `train` when the trie is made")
        self.objective, self.world = objective, world
        self.worlds, _, self.classes = world.size
        self.sides: dict[str, _Side] = {}
        for name, r in zip(sides, used, strict=True):
            offset = xp.arange(self.worlds, dtype=r.context.dtype, device=device(r.context)) * self.active
            at = xp.where(r.mask, r.context, xp.zeros_like(r.context)) + offset[:, None, None]
            ref = token_log_probs(before, r)
            self.sides[name] = _Side(at, at * self.classes + r.token, r.mask, ref)
        self.number = int(used[0].context.shape[1])
        self.across = self.worlds > 1 and looks_across(type(objective)())

    def _now(self, order: np.ndarray | None) -> dict[str, _Side]:
        """The rows of one update: all, or `order` (m) or (B, m)."""
        if order is None:
            return self.sides
        xp, where = array_namespace(self.world.logits), device(self.world.logits)
        index = xp.asarray(order, device=where)
        here = slice(None) if index.ndim == 1 else xp.arange(self.worlds, device=where)[:, None]
        return {name: side.pick((here, index)) for name, side in self.sides.items()}

    def _tuned(self, worlds: slice, rows: int) -> Any:
        """The objective, its parameters (B,) spread over the rows of these worlds."""
        own = {}
        for field in dataclasses.fields(self.objective):
            value = getattr(self.objective, field.name)
            if getattr(value, "ndim", 0):
                if tuple(value.shape) != (self.worlds,):
                    msg = f"{field.name}: expected a number, or one a world ({self.worlds},), got {tuple(value.shape)}"
                    raise BadInput(msg)
                xp = array_namespace(value)
                own[field.name] = xp.repeat(value[worlds], rows)
        return dataclasses.replace(self.objective, **own) if own else self.objective

    def _batch(self, sides: Mapping[str, _Side], logp: Mapping[str, Array], worlds: slice) -> Batch:
        """Rows of some worlds, one after the other, as the objectives read them."""
        fields: dict[str, Array] = {}
        for name, side in sides.items():
            parts = {name: logp[name], f"ref_{name}": side.reference, f"old_{name}": side.reference}
            parts[f"{name}_mask"] = side.mask
            for key, value in parts.items():
                fields[key] = value[worlds].reshape(-1, value.shape[-1])
            first = fields[name][:, 0]
            fields[f"{name}_advantage"] = first * 0.0 + (1.0 if name == "chosen" else -1.0)
        return Batch(**fields)

    def residual(self, z: Array, /, *, order: np.ndarray | None = None, out: Array | None = None) -> Array:
        """R (B, active, V) of the mean loss at logits z (B, active, V); `out`: an array of that shape to write into.

        R_c = Σ_{tokens at c} push (π_c − e_y)/rows = k_c π_c − Σ push e_y/rows.
        """
        xp = array_namespace(z)
        mass, log_norm, norm = _softmax_parts(xp, z, out)
        sides = self._now(order)
        logp = {name: _take(z, side.label) - _take(log_norm, side.at) for name, side in sides.items()}
        rows = next(iter(sides.values())).at.shape[1]
        push = self._push(sides, logp, rows)
        weight = xp.zeros_like(log_norm)
        given = {name: push[name] / rows for name in sides}
        for name, side in sides.items():
            _add_at(weight, side.at, given[name])
        mass *= (weight / norm)[..., None]
        for name, side in sides.items():
            _add_at(mass, side.label, -given[name])
        return mass

    def _push(self, sides: Mapping[str, _Side], logp: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Push of every token, (B, m, T) a side."""
        xp = array_namespace(self.world.logits)
        blocks = [slice(b, b + 1) for b in range(self.worlds)] if self.across else [slice(None)]
        parts: dict[str, list[Array]] = {name: [] for name in sides}
        for worlds in blocks:
            push = self._tuned(worlds, rows).push(self._batch(sides, logp, worlds))
            for name in sides:
                parts[name].append(getattr(push, name))
        return {name: xp.concat(values, axis=0).reshape(logp[name].shape) for name, values in parts.items()}

    def loss(self, z: Array, /) -> Array:
        """Mean loss over all rows, (B,), at logits z (B, active, V)."""
        xp = array_namespace(z)
        _, log_norm, _ = _softmax_parts(xp, z, None)
        logp = {name: _take(z, side.label) - _take(log_norm, side.at) for name, side in self.sides.items()}
        blocks = [slice(b, b + 1) for b in range(self.worlds)]
        each = [self._tuned(w, self.number).loss(self._batch(self.sides, logp, w)) for w in blocks]
        return xp.stack([xp.mean(one) for one in each])


def _softmax_parts(xp: Any, z: Array, out: Array | None) -> tuple[Array, Array, Array]:
    """(e^{z − max}, log Σ e^z, Σ e^{z − max}); the first written into `out` where one is given."""
    top = xp.max(z, axis=-1, keepdims=True)
    if out is None:
        mass = xp.exp(z - top)
    else:
        xp.subtract(z, top, out=out)
        mass = xp.exp(out, out=out)
    norm = xp.sum(mass, axis=-1)
    return mass, top[..., 0] + xp.log(norm), norm


def _take(values: Array, index: Array) -> Array:
    """values.ravel()[index]."""
    return values.reshape(-1)[index]


def _add_at(target: Array, index: Array, values: Array) -> None:
    """target.ravel()[index] += values, repeated indices added up."""
    if is_torch_array(target):
        target.view(-1).index_add_(0, index.reshape(-1), values.reshape(-1))
    else:
        np.add.at(target.reshape(-1), index.reshape(-1), values.reshape(-1))
