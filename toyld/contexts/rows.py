"""The training rows of one stage: which tokens they are, what the objective reads of them, what residual it gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from toyld.checked import BadInput
from toyld.contexts.measure import Statistics, blocks, flat, reach, statistics, token_log_probs
from toyld.contexts.world import Responses, on_host
from toyld.objectives import Batch, looks_across

__all__ = ["Reading", "Rows", "Scene"]

Array = Any


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side of all rows: flat places of its contexts (B·n) and labels (B·n·V), mask, reference, each (B, P, T)."""

    at: Array
    label: Array
    mask: Array
    reference: Array
    advantage: Array  # (B, P) or (B, P, T)

    def pick(self, index: Any) -> _Side:
        """The rows of one update."""
        return _Side(*(value[index] for value in (self.at, self.label, self.mask, self.reference, self.advantage)))


class Reading(NamedTuple):
    """The trained contexts at one moment: e^{z − max}, its sums, log Σ e^z, and log π of every row's tokens."""

    mass: Array  # (B, n, V)
    norm: Array  # (B, n)
    log_norm: Array  # (B, n)
    logp: dict[str, Array]  # side → (B, P, T); behind the end of a response any finite number


class Scene(Protocol):
    """What rows lie on: a `World`, or anything else with contexts; `logits` says library, dtype and device.

    One with an attribute `whole` that is true gives logits of all trained contexts and wants a residual of that size,
    also where no row reads the last of them.
    """

    @property
    def logits(self) -> Array: ...
    @property
    def responses(self) -> Mapping[str, Responses]: ...
    @property
    def trained(self) -> int: ...
    @property
    def size(self) -> tuple[int, int, int]: ...


class Rows:
    """The rows of a stage and what the objective makes of them.

    active: contexts beyond which no row has a token, so that the residual need not be larger. advantages: side → (P,),
    (B, P) or (B, P, T), by default 1 for chosen and −1 for rejected. groups: (P,) or (B, P), what GRPO compares within.
    of: the statistics of `before`, the reference's logits (B, C, V), where they are at hand.
    """

    def __init__(
        self,
        world: Scene,
        objective: Any,
        sides: Mapping[str, str],
        before: Array,
        /,
        *,
        of: Statistics | None = None,
        advantages: Mapping[str, Array] | None = None,
        groups: Array | None = None,
    ) -> None:
        xp, where = array_namespace(world.logits), device(world.logits)
        self.xp = xp
        used = _used(world, sides)
        self.active = world.trained if getattr(world, "whole", False) else max(reach(r) for r in used)
        if self.active > world.trained:
            msg = f"expected rows on the {world.trained} trained contexts, got one on context {self.active - 1}"
            raise BadInput(f"{msg}; name its kind in `train` when the trie is made")
        self.like, self.classes = world.logits, world.size[2]
        self.worlds, self.number = int(used[0].context.shape[0]), int(used[0].context.shape[1])
        of = statistics(before) if of is None else of
        if unknown := sorted(set(advantages or ()) - set(sides)):
            msg = f"advantages: expected sides among {', '.join(sides)}, got {', '.join(unknown)}; they would be lost"
            raise BadInput(msg)
        self.sides: dict[str, _Side] = {}
        for name, r in zip(sides, used, strict=True):
            at = flat(xp.where(r.mask, r.context, xp.zeros_like(r.context)), self.active)
            given = (advantages or {}).get(name, 1.0 if name == "chosen" else -1.0)
            given = xp.asarray(given, dtype=self.like.dtype, device=where)
            if given.ndim < 3:
                given = xp.broadcast_to(given, (self.worlds, self.number))
            self.sides[name] = _Side(at, at * self.classes + r.token, r.mask, token_log_probs(before, r, of=of), given)
        self.groups = None
        if groups is not None:
            self.groups = xp.broadcast_to(xp.asarray(groups, device=where), (self.worlds, self.number))
        self.target = getattr(objective, "kind", None) == "target"
        self._objective = objective
        self._parameters = _parameters(objective, self.like, self.worlds)
        self._known: dict[int, list[tuple[slice, Any]]] = {}
        self._whole: dict[int | None, Batch] = {}
        self.across = self.worlds > 1 and (groups is not None or looks_across(self._scalar(0)))
        self._together = self._all_at_once()

    def read(self, z: Array, /, *, out: Array | None = None) -> Reading:
        """Softmax and the rows' log-probabilities at logits z (B, active, V); `out`: where to write e^{z − max}."""
        if z.shape[1] != self.active:  # its places would be those of other worlds
            msg = f"logits: expected those of {self.active} contexts, got {z.shape[1]}; cut them"
            raise BadInput(msg)
        mass, norm, log_norm = _softmax(self.xp, z, out)
        logp = {name: z.take(side.label) - log_norm.take(side.at) for name, side in self.sides.items()}
        return Reading(mass, norm, log_norm, logp)

    def loss(self, z: Array, /, *, read: Reading | None = None) -> Array:
        """Mean loss over all rows, (B,), at logits z (B, active, V); `read`: what was read there, if it was."""
        read = self.read(z) if read is None else read
        each = []
        for worlds, one in self._tuned(self.number):
            if self.target:
                log_probs, labels, mask = self._beliefs(z, read.log_norm, self._only(self.sides), worlds)
                each.append(one.loss(log_probs, labels, mask=mask))
            else:
                each.append(one.loss(self._batch(self.sides, read.logp, worlds)))
        return self.xp.concat([self.xp.mean(one.reshape(-1, self.number), axis=-1) for one in each])

    def residual(
        self,
        z: Array,
        /,
        *,
        order: np.ndarray | None = None,
        out: Array | None = None,
        read: Reading | None = None,
        scale: Any = 1.0,
    ) -> Array:
        """R (B, active, V) of the mean loss at logits z (B, active, V), times `scale`, a number or (B,).

        R_c = Σ_{tokens at c} push (π_c − e_y)/rows = k_c π_c − Σ push e_y/rows. order: some of the rows, (m) or
        (B, m). out: an array of that shape to write into. read: what was read at z; its `mass` is overwritten.
        """
        read = self.read(z, out=out) if read is None else read
        index = self._index(order)
        sides = self.sides if index is None else {name: side.pick(index) for name, side in self.sides.items()}
        rows = int(next(iter(sides.values())).at.shape[1])
        scale = scale[:, None, None] / rows if getattr(scale, "ndim", 0) else scale / rows
        r, flat_r = read.mass, read.mass.reshape(-1)
        if self.target:
            side = self._only(sides)
            r[...] = 0.0
            for worlds, one in self._tuned(rows):
                log_probs, labels, mask = self._beliefs(z, read.log_norm, side, worlds)
                g = one.residual(log_probs, labels, mask=mask).reshape(-1, rows, *log_probs.shape[1:])
                own = scale[worlds][..., None] if getattr(scale, "ndim", 0) else scale
                _add_at(r.reshape(-1, self.classes), side.at[worlds].reshape(-1), (g * own).reshape(-1, self.classes))
            return r
        logp = read.logp if index is None else {name: value[index] for name, value in read.logp.items()}
        given = {name: push * scale for name, push in self._push(sides, logp, rows, index).items()}
        weight = self.xp.zeros_like(read.norm)
        for name, side in sides.items():
            _add_at(weight.reshape(-1), side.at.reshape(-1), given[name].reshape(-1))
        r *= (weight / read.norm)[..., None]
        for name, side in sides.items():
            _add_at(flat_r, side.label.reshape(-1), -given[name].reshape(-1))
        return r

    def check(self, order: Any, /) -> None:
        """Refuse an order, (steps, m) or (steps, B, m), that names rows which are not there."""
        given = on_host(order)
        shape = f"(steps, m) or (steps, {self.worlds}, m)"
        if given.dtype.kind not in "iu" or given.ndim not in (2, 3) or given.shape[1:-1] not in ((), (self.worlds,)):
            msg = f"order: expected the numbers of rows {shape}, got {given.dtype} of shape {given.shape}"
            raise BadInput(msg)
        if given.size and not 0 <= given.min() <= given.max() < self.number:
            got = f"{given.min()} to {given.max()}"
            msg = f"order: expected rows from 0 to {self.number - 1}, got {got}; there is one row a prompt"
            raise BadInput(msg)

    def _index(self, order: np.ndarray | None) -> Any:
        """The rows of one update as an index into (B, P, …); None = all of them."""
        if order is None:
            return None
        where = device(self.like)
        index = self.xp.asarray(order, device=where)
        return (slice(None) if index.ndim == 1 else self.xp.arange(self.worlds, device=where)[:, None], index)

    def _push(
        self, sides: Mapping[str, _Side], logp: Mapping[str, Array], rows: int, index: Any = None
    ) -> dict[str, Array]:
        """Push of every token, (B, m, T) a side."""
        each = [one.push(self._batch(sides, logp, worlds, index)) for worlds, one in self._tuned(rows)]
        parts = {name: [getattr(push, name) for push in each] for name in logp}
        return {
            name: (several[0] if len(several) == 1 else self.xp.concat(several, axis=0)).reshape(logp[name].shape)
            for name, several in parts.items()
        }

    def _batch(self, sides: Mapping[str, _Side], logp: Mapping[str, Array], worlds: slice, index: Any = None) -> Batch:
        """Rows of some worlds, one after the other, as the objectives read them."""
        now = {name: value[worlds].reshape(-1, value.shape[-1]) for name, value in logp.items()}
        whole = sides is self.sides
        if whole and worlds.start in self._whole:
            # Shapes and libraries were checked when this batch was first made; only log π is new.
            batch = copy.copy(self._whole[worlds.start])
            vars(batch).update(now)
            return batch
        fields: dict[str, Array] = {}
        for name, side in sides.items():
            fields |= {f"ref_{name}": side.reference, f"{name}_mask": side.mask}
            if name != "anchor":
                fields |= {f"old_{name}": side.reference, f"{name}_advantage": side.advantage}
        if self.groups is not None:
            fields["groups"] = self.groups if index is None else self.groups[index]
        batch = Batch(**now, **{key: value[worlds].reshape(-1, *value.shape[2:]) for key, value in fields.items()})
        if whole:
            self._whole[worlds.start] = batch
        return batch

    def _only(self, sides: Mapping[str, _Side]) -> _Side:
        """What a target objective reads: the rejected side, or the only one there is."""
        return sides["rejected"] if "rejected" in sides else next(iter(sides.values()))

    def _beliefs(self, z: Array, log_norm: Array, side: _Side, worlds: slice) -> tuple[Array, Array, Array]:
        """log π at the contexts of every token (N, T, V), the labels and the mask (N, T)."""
        at = side.at[worlds].reshape(-1, side.at.shape[-1])
        log_probs = z.reshape(-1, self.classes)[at] - log_norm.reshape(-1)[at][..., None]
        labels = side.label[worlds].reshape(at.shape) - at * self.classes
        return log_probs, labels, side.mask[worlds].reshape(at.shape)

    def _tuned(self, rows: int) -> list[tuple[slice, Any]]:
        """(worlds that are evaluated at once, the objective with their parameters), `rows` rows in each world."""
        if rows not in self._known:
            if self._together:
                self._known[rows] = [(slice(0, self.worlds), self._spread(rows))]
            else:
                self._known[rows] = [(slice(b, b + 1), self._scalar(b)) for b in range(self.worlds)]
        return self._known[rows]

    def _scalar(self, world: int) -> Any:
        """The objective of one world."""
        own = {name: value[world].item() for name, value in self._parameters.items()}
        return dataclasses.replace(self._objective, **own) if own else self._objective

    def _spread(self, rows: int) -> Any:
        """The objective with its parameters (B,) repeated for every row."""
        own = {name: self.xp.repeat(value, rows) for name, value in self._parameters.items()}
        return dataclasses.replace(self._objective, **own) if own else self._objective

    def _all_at_once(self) -> bool:
        """Whether one call serves all worlds: no row looks at another, and parameters may be arrays (rows,)."""
        if self.across or self.worlds == 1 or not self._parameters:
            return not self.across and self.worlds > 1
        if self._objective.kind != "sequence":  # tokens and targets would need (rows, 1)
            return False
        batch = self._batch(self.sides, {name: side.reference for name, side in self.sides.items()}, slice(None))
        try:
            one = self._spread(self.number)
            one.loss(batch)
            one.push(batch)
        except (TypeError, ValueError, RuntimeError):  # it branches on a parameter
            return False
        return True


def _used(world: Scene, sides: Mapping[str, str]) -> list[Responses]:
    """The responses of the sides, one row a prompt on each."""
    if missing := sorted(set(sides.values()) - set(world.responses)):
        msg = f"expected kinds among {', '.join(world.responses)}, got {', '.join(missing)}; name one that is there"
        raise BadInput(msg)
    used = [world.responses[kind] for kind in sides.values()]
    if len(counts := {int(r.context.shape[1]) for r in used}) != 1:
        what = "no side at all" if not counts else f"{sorted(counts)} responses"
        msg = f"expected as many responses on every side, got {what}; give each prompt one of each"
        raise BadInput(msg)
    return used


def _parameters(objective: Any, like: Array, worlds: int) -> dict[str, Array]:
    """The parameters of an objective that are arrays (B,), in the library of `like`."""
    xp, found = array_namespace(like), {}
    for field in dataclasses.fields(objective):
        value = getattr(objective, field.name)
        if isinstance(value, list):
            msg = (
                f"{field.name}: expected a number, or an array with one a world ({worlds},), got a list; wrap it in one"
            )
            raise BadInput(msg)
        if getattr(value, "ndim", 0):
            if tuple(value.shape) != (worlds,):
                msg = f"{field.name}: expected a number, or one a world ({worlds},), got {tuple(value.shape)}"
                raise BadInput(msg)
            given = xp.asarray(value, device=device(like))
            found[field.name] = xp.astype(given, like.dtype) if xp.isdtype(given.dtype, "real floating") else given
    return found


def _softmax(xp: Any, z: Array, out: Array | None) -> tuple[Array, Array, Array]:
    """(e^{z − max} written into `out` where one is given, Σ e^{z − max}, log Σ e^z), block by block of rows."""
    mass = xp.empty_like(z) if out is None else out
    rows, parts = z.reshape(-1, z.shape[-1]), mass.reshape(-1, z.shape[-1])
    top = xp.max(rows, axis=-1)
    norm, ones = xp.empty_like(top), xp.ones_like(rows[0])
    for piece in blocks(rows):
        part = parts[piece]
        xp.subtract(rows[piece], top[piece][:, None], out=part)
        xp.exp(part, out=part)
        norm[piece] = part @ ones
    return mass, norm.reshape(z.shape[:-1]), (top + xp.log(norm)).reshape(z.shape[:-1])


def _add_at(target: Array, index: Array, values: Array) -> None:
    """target[index] += values along the first axis, repeated indices added up."""
    if is_torch_array(target):
        target.index_add_(0, index, values)
    else:
        np.add.at(target, index, values)
