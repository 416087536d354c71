"""Fine-tuning the head in closed form: Z ← Z − η S R(Z), any objective, whole runs, many worlds at once.

With fixed features φ_c and a trained head W the logits of all contexts are Z = Φ Wᵀ, and every gradient step is exactly

    Z ← Z − η S R(Z),   S = ΦΦᵀ,   R_c = Σ_{tokens trained at c} push · (π_c − e_y) / rows.

A run is kept in *dual* form, Z = Z0 − S A with A = η Σ_t R(t) on the trained contexts, so that any other context is
one skinny product away whenever it is to be probed. *Kernel form* multiplies by the trained block of S (n × n),
*feature form* by Φ twice (n × D); they give the same numbers to rounding, and `form="auto"` takes the cheaper one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from array_api_compat import array_namespace

from toyld.checked import BadInput
from toyld.contexts.measure import measure, token_log_probs
from toyld.contexts.optimizers import Optimizer
from toyld.contexts.rows import Rows
from toyld.contexts.world import World
from toyld.trajectory import trajectory

__all__ = ["Form", "Run", "State", "logits", "start", "train"]

Array = Any
Form = Literal["auto", "kernel", "feature"]


@dataclass(frozen=True)
class State:
    """A policy: Z on the trained contexts (B, n, V), the dual A (B, n, V) and the ΔW (B, D, V) of other optimisers.

    Everywhere Z = Z0 − S A + Φ ΔW.
    """

    logits: Array
    dual: Array
    weights: Array | None = None


@dataclass(frozen=True)
class Run:
    """What one stage gave: the policy after it, and what was measured on the way.

    values: variable → (evaluation, B, kind, P); loss: (evaluation, B); reference: log π_ref (B, kind, P).
    """

    world: World
    state: State
    steps: tuple[int, ...]
    kinds: tuple[str, ...]
    values: dict[str, np.ndarray]
    loss: np.ndarray
    reference: np.ndarray

    def value(self, variable: str, kind: str, /) -> np.ndarray:
        """One variable of one kind, (evaluation, B, P)."""
        return self.values[variable][:, :, self.kinds.index(kind)]

    def table(self, stage: str, arm: str, /, *, worlds: Sequence[int] | None = None, **attrs: Any) -> xr.Dataset:
        """The Trajectory of these worlds (all by default); each is a seed."""
        at = list(range(len(self.world.seeds))) if worlds is None else list(worlds)
        columns = {name: np.moveaxis(value[:, at], 0, 1) for name, value in self.values.items()}
        lengths = [self.world.responses[kind].mask for kind in self.kinds]
        columns["n_tokens"] = np.stack([np.asarray(mask).sum(-1)[at] for mask in lengths], axis=1).astype(float)
        columns["ref_logp"] = self.reference[at]
        columns["loss"] = self.loss[:, at].T
        return trajectory(
            columns,
            step=self.steps,
            probe=self.kinds,
            example=[f"prompt {i}" for i in range(self.reference.shape[-1])],
            seed=[self.world.seeds[i] for i in at],
            world="contexts",
            stage=stage,
            arm=arm,
            attrs={"vocab_size": self.world.size[2], **self.world.attrs, **attrs},
        )


def start(world: World, /) -> State:
    """The policy before any training."""
    xp = array_namespace(world.logits)
    own = world.logits[:, : world.trained, :]
    return State(xp.asarray(own, copy=True), xp.zeros_like(own))


def logits(world: World, state: State, /) -> Array:
    """Z of every context, (B, C, V)."""
    xp, n, contexts = array_namespace(world.logits), world.trained, world.size[1]
    if contexts == n:
        return state.logits
    rest = world.logits[:, n:, :] - world.kernel.block(slice(n, contexts), slice(0, n)) @ state.dual
    if state.weights is not None:
        rest = rest + _features(world)[:, n:, :] @ state.weights
    return xp.concat([state.logits, rest], axis=1)


def _features(world: World) -> Array:
    phi = world.kernel.features
    if phi is None or world.kernel.diagonal is not None:
        msg = "expected a kernel with features alone, got one without: only plain and heavy-ball descent need none"
        raise BadInput(msg)
    return phi


def _product(world: World, active: int, form: Form) -> Callable[[Array], Array]:
    """R ↦ S R between the active contexts, in kernel or in feature form."""
    xp, phi, own = array_namespace(world.logits), world.kernel.features, slice(0, active)
    if form == "feature" and phi is None:
        msg = "form: expected a kernel with features, got one that only has S; take form='kernel'"
        raise BadInput(msg)
    if form == "feature" or (form == "auto" and phi is not None and 2 * phi.shape[-1] < active):
        phi, diagonal = phi[:, own, :], world.kernel.diagonal  # type: ignore[index]
        across = xp.asarray(xp.matrix_transpose(phi), copy=True)
        if diagonal is None:
            return lambda r: phi @ (across @ r)
        return lambda r: phi @ (across @ r) + diagonal[:, own, None] * r
    gram = world.kernel.block(own, own)
    return lambda r: gram @ r


def train(
    world: World,
    objective: Any,
    /,
    *,
    lr: Any,
    steps: int,
    state: State | None = None,
    reference: State | None = None,
    chosen: str | None = "chosen",
    rejected: str | None = None,
    at: Iterable[int] | None = None,
    kinds: Sequence[str] | None = None,
    order: np.ndarray | None = None,
    optimizer: Optimizer | None = None,
    precondition: Array | None = None,
    until: float | None = None,
    form: Form = "auto",
) -> Run:
    """Train the head on the mean of `objective` over the rows of every world, and measure on the way.

    Args:
        world: where; its `responses` are the rows (`chosen`, `rejected`) and the probes.
        objective: of `toyld.objectives`; a parameter may be an array (B,), one value a world.
        lr: η, a number or one a world (B,).
        steps: updates.
        state: the policy to start from; by default the one before any training.
        reference: π_ref and π_old; by default the policy at the start of this stage.
        chosen, rejected: kinds of the two sides; None = the objective reads no such side.
        at: updates after which to measure; by default the first and the last.
        kinds: what to measure; by default everything.
        order: rows of each update, (steps, m) or (steps, B, m), for stochastic descent; all rows by default.
        optimizer: plain gradient descent by default; RMSprop and Adam need a kernel with features.
        precondition: P (B, n, n) over the trained contexts: Z ← Z − η S P R (`kernels.centred`).
        until: a world whose mean loss has come down to this number is left as it is from then on.
        form: kernel form, feature form, or the cheaper one.

    Raises:
        BadInput: rows on contexts that do not train, a form or an optimiser that the kernel cannot serve.

    >>> from toyld import objectives
    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=range(3), vocab=8, prompts=4, length=3)
    >>> sft = train(world, objectives.get("sft"), lr=1.0, steps=50)
    >>> dpo = train(world, objectives.get("dpo"), lr=5.0, steps=50, state=sft.state, rejected="rejected")
    >>> bool((sft.value("logp", "chosen")[-1] > sft.value("logp", "chosen")[0]).all())   # (evaluation, world, prompt)
    True
    """
    xp, n = array_namespace(world.logits), world.trained
    marks = sorted({0, steps} if at is None else {int(k) for k in at})
    if marks and not 0 <= marks[0] <= marks[-1] <= steps:
        msg = f"at: expected updates from 0 to {steps}, got {marks[0]} to {marks[-1]}"
        raise BadInput(msg)
    state = start(world) if state is None else state
    kinds = tuple(world.responses) if kinds is None else tuple(kinds)
    sides = {side: kind for side, kind in (("chosen", chosen), ("rejected", rejected)) if kind is not None}
    before = logits(world, state if reference is None else reference)
    rows = Rows(world, objective, sides, before)
    active = n if precondition is not None else rows.active
    eta = xp.reshape(lr, (-1, 1, 1)) if getattr(lr, "ndim", 0) else lr
    optimizer = Optimizer() if optimizer is None else optimizer
    weights = state.weights
    if optimizer.needs_features:
        phi = _features(world)[:, :active, :]
        up = xp.matrix_transpose(phi)
        weights = xp.zeros_like(up @ state.logits[:, :active]) if weights is None else xp.asarray(weights, copy=True)
    product = None if optimizer.needs_features else _product(world, active, form)

    z, dual = xp.asarray(state.logits[:, :active], copy=True), xp.asarray(state.dual, copy=True)
    scratch = xp.empty_like(z[:, : rows.active])
    found: list[tuple[dict[str, Array], Array]] = []

    def policy() -> State:
        if active == n:
            return State(z, dual, weights)
        # Contexts that this stage does not train follow when they are asked for.
        late = slice(active, n)
        rest = world.logits[:, late, :] - world.kernel.block(late, slice(0, n)) @ dual
        if weights is not None:
            rest = rest + _features(world)[:, late, :] @ weights
        return State(xp.concat([z, rest], axis=1), dual, weights)

    memory: dict[str, Array] = {}
    for step in range(steps + 1):
        if step in marks:
            found.append((measure(logits(world, policy()), world.responses, kinds), rows.loss(z[:, : rows.active])))
        if step == steps:
            break
        if until is not None:
            eta = xp.where(rows.loss(z[:, : rows.active])[:, None, None] <= until, 0.0 * eta, eta)
        r = rows.residual(z[:, : rows.active], order=None if order is None else order[step], out=scratch)
        if precondition is not None:
            r = precondition[..., :, : rows.active] @ r
        if product is None:
            change = -eta * optimizer.direction(up @ r, memory)
            weights += change
            z += phi @ change
        else:
            r = eta * optimizer.direction(r, memory)
            dual[:, :active] += r
            z -= product(r)
    ref = [xp.sum(token_log_probs(before, world.responses[kind]), axis=-1) for kind in kinds]
    return Run(
        world,
        policy(),
        tuple(marks),
        kinds,
        {name: np.stack([_numpy(v[name]) for v, _ in found]) for name in found[0][0]} if found else {},
        np.stack([_numpy(loss) for _, loss in found]) if found else np.zeros((0, world.size[0])),
        np.stack([_numpy(one) for one in ref], axis=1),
    )


def _numpy(array: Array) -> np.ndarray:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
