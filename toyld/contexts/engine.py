"""Fine-tuning the head in closed form: Z ← Z − η S R(Z), any objective, whole runs, many worlds at once.

With fixed features φ_c and a trained head W the logits of all contexts are Z = Φ Wᵀ, and every gradient step is exactly

    Z ← Z − η S R(Z),   S = ΦΦᵀ,   R_c = Σ_{tokens trained at c} push · (π_c − e_y) / rows.

A run is kept in *dual* form, Z = Z0 − S A with A = η Σ_t R(t) on the trained contexts, so that any other context is
one skinny product away whenever it is to be probed. *Kernel form* multiplies by the trained block of S (n × n),
*feature form* by Φ twice (n × D); they give the same numbers to rounding, and `form="auto"` takes the cheaper one.
The head itself has moved by ΔW = −Φᵀ A (`head`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from array_api_compat import array_namespace, device

from toyld.checked import BadInput
from toyld.contexts.measure import measure, reach, statistics
from toyld.contexts.optimizers import Optimizer
from toyld.contexts.rows import Rows, Scene
from toyld.contexts.world import World, in_rows, on_host
from toyld.trajectory import trajectory

__all__ = ["Form", "Run", "State", "check_stage", "head", "logits", "marked", "start", "train"]

Array = Any
Form = Literal["auto", "kernel", "feature"]
_PASS = 16  # multiplications in a matrix product that take as long as one number read and written
_CACHED = 2**20  # numbers in the columns of Z that are updated at once


@dataclass(frozen=True)
class State:
    """A policy: Z on the trained contexts (B, n, V), the dual A (B, n, V) and the ΔW (B, D, V) of other optimisers.

    Everywhere Z = Z0 − S A + Φ ΔW.
    """

    logits: Array
    dual: Array
    weights: Array | None = None

    def __post_init__(self) -> None:
        for name in ("logits", "dual"):
            object.__setattr__(self, name, in_rows(getattr(self, name)))


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
        """One variable of one kind, (evaluation, B, P); BadInput where there is none of that name."""
        for what, name, there in (("variable", variable, tuple(self.values)), ("kind", kind, self.kinds)):
            if name not in there:
                msg = f"{what}: expected one of {', '.join(there) or 'none, nothing was measured'}, got {name!r}"
                raise BadInput(msg)
        return self.values[variable][:, :, self.kinds.index(kind)]

    def table(self, stage: str, arm: str, /, *, worlds: Sequence[int] | None = None, **attrs: Any) -> xr.Dataset:
        """The Trajectory of these worlds (all by default); each is a seed."""
        at = list(range(len(self.world.seeds))) if worlds is None else list(worlds)
        columns = {name: np.moveaxis(value[:, at], 0, 1) for name, value in self.values.items()}
        lengths = [self.world.responses[kind].mask for kind in self.kinds]
        columns["n_tokens"] = np.stack([on_host(mask).sum(-1)[at] for mask in lengths], axis=1).astype(float)
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
    return State(xp.asarray(own, copy=True), xp.zeros(own.shape, dtype=own.dtype, device=device(own)))


def logits(world: World, state: State, /) -> Array:
    """Z of every context, (B, C, V)."""
    return _whole(state, _follow(world, world.trained, world.size[1]))


def head(world: World, state: State, /) -> Array:
    """ΔW (B, D, V), by how much the head has moved: Z = Z0 + Φ ΔW. Needs a kernel with features alone.

    >>> from toyld import objectives
    >>> from toyld.contexts import from_hidden
    >>> world = from_hidden({"chosen": (np.eye(3)[None], np.array([[0, 1, 2]]))}, weight=np.ones((4, 3)))
    >>> run = train(world, objectives.get("sft"), lr=1.0, steps=1)
    >>> head(world, run.state)[0, :2].round(3).tolist()
    [[-0.25, 0.75, -0.25, -0.25], [-0.25, -0.25, 0.75, -0.25]]
    """
    xp, phi = array_namespace(world.logits), _features(world)[:, : world.trained, :]
    moved = -(xp.matrix_transpose(phi) @ state.dual)
    return moved if state.weights is None else moved + state.weights


def _features(world: World) -> Array:
    phi = world.kernel.features
    if phi is None or world.kernel.diagonal is not None:
        msg = "expected a kernel with features alone, got one without: only plain and heavy-ball descent need none"
        raise BadInput(msg)
    return phi


def _product(world: World, rows: slice, cols: slice, form: Form = "auto") -> Callable[[Array], Array]:
    """R ↦ S[rows, cols] R, in kernel or in feature form."""
    phi = world.kernel.features
    if form == "feature" and phi is None:
        msg = "form: expected a kernel with features, got one that only has S; take form='kernel'"
        raise BadInput(msg)
    if form == "feature" or (form == "auto" and phi is not None and _features_pay(world, rows, cols)):
        return _twice(world, rows, cols)
    gram = world.kernel.block(rows, cols)
    return lambda r: gram @ r


def _features_pay(world: World, rows: slice, cols: slice) -> bool:
    """Whether Φ (Φᵀ R) + d R costs less than S R: multiplications, and the passes over memory around them."""
    phi, diagonal = world.kernel.features, world.kernel.diagonal
    n, m = rows.stop - rows.start, cols.stop - cols.start
    passes = 0 if diagonal is None else 2 * _PASS * n
    return phi.shape[-1] * (n + m) + passes < n * m  # type: ignore[union-attr]


def _twice(world: World, rows: slice, cols: slice) -> Callable[[Array], Array]:
    """R ↦ Φ (Φᵀ R) + d R."""
    xp, phi, diagonal = array_namespace(world.logits), world.kernel.features, world.kernel.diagonal
    left, right = phi[:, rows, :], xp.asarray(xp.matrix_transpose(phi[:, cols, :]), copy=True)  # type: ignore[index]
    both = slice(max(rows.start, cols.start), min(rows.stop, cols.stop))
    meet = diagonal is not None and both.start < both.stop
    here, there = (slice(both.start - s.start, both.stop - s.start) for s in (rows, cols))

    def product(r: Array) -> Array:
        out = left @ (right @ r)
        if meet:
            out[:, here, :] += diagonal[:, both, None] * r[:, there, :]  # type: ignore[index]
        return out

    return product


def _follow(world: World, first: int, last: int) -> Callable[[State], Array] | None:
    """State ↦ Z of the contexts from `first` to `last`, which follow the trained ones; None where there are none."""
    if first >= last:
        return None
    late = slice(first, last)
    product = _product(world, late, slice(0, world.trained))

    def follow(state: State) -> Array:
        z = world.logits[:, late, :] - product(state.dual)
        return z if state.weights is None else z + _features(world)[:, late, :] @ state.weights

    return follow


def _whole(state: State, follow: Callable[[State], Array] | None) -> Array:
    """Z of the contexts that the state holds and of those that follow."""
    if follow is None:
        return state.logits
    return array_namespace(state.logits).concat([state.logits, follow(state)], axis=1)


def marked(at: Iterable[int] | None, steps: int, /) -> list[int]:
    """The updates after which to measure, in order: by default the first and the last."""
    given = sorted({0, steps} if at is None else set(at))
    if given and not (0 <= given[0] <= given[-1] <= steps and all(k == int(k) for k in given)):
        msg = f"at: expected updates from 0 to {steps}, got {given[0]} to {given[-1]}; whole numbers of them"
        raise BadInput(msg)
    return [int(k) for k in given]


def check_stage(world: Scene, objective: Any, numbers: Mapping[str, Any], /, *states: State | None) -> None:
    """Refuse what is of another kind or of another world, before anything is computed."""
    if isinstance(objective, type) or not hasattr(objective, "loss"):
        msg = f"objective: expected one of toyld.objectives, got {objective!r}; write objectives.get(NAME)"
        msg += ", or register one of your own"
        raise BadInput(msg)
    for name, value in numbers.items():
        got = np.zeros(()) if value is None else on_host(value)
        if got.shape not in ((), world.size[:1]) or got.dtype.kind not in "iuf" or not np.isfinite(got).all():
            shown = f"{got.dtype} {got.shape}, {' '.join(str(got).split())[:40]}" if got.ndim else value
            msg = f"{name}: expected a finite number, or one a world ({world.size[0]},), got {shown}"
            raise BadInput(msg)
    here = (world.size[0], world.trained, world.size[2])
    for state in states:
        if state is not None and (tuple(state.logits.shape), tuple(state.dual.shape)) != (here, here):
            msg = f"state, reference: expected the policy of this world, {here}, got {tuple(state.logits.shape)}"
            raise BadInput(f"{msg}; `World.take` and `with_texts` make other worlds")


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
    anchor: str | None = None,
    advantages: Mapping[str, Any] | None = None,
    groups: Any = None,
    at: Iterable[int] | None = None,
    kinds: Sequence[str] | None = None,
    order: np.ndarray | None = None,
    optimizer: Optimizer | None = None,
    precondition: Array | None = None,
    until: Any = None,
    form: Form = "auto",
) -> Run:
    """Train the head on the mean of `objective` over the rows of every world, and measure on the way.

    Args:
        world: where; its `responses` are the rows (`chosen`, `rejected`) and the probes.
        objective: of `toyld.objectives`; a parameter may be an array (B,), one value a world. A target objective
            (`bs-t`) works on the rejected side, or on the only one.
        lr: η, a number or one a world (B,).
        steps: updates.
        state: the policy to start from; by default the one before any training.
        reference: π_ref and π_old; by default the policy at the start of this stage.
        chosen, rejected, anchor: kinds of the sides; None = the objective reads no such side.
        advantages: side → (P,), (B, P) or (B, P, T); by default 1 for chosen and −1 for rejected.
        groups: (P,) or (B, P) integers, the prompt a row belongs to, where GRPO compares within prompts.
        at: updates after which to measure; by default the first and the last.
        kinds: what to measure; by default everything.
        order: rows of each update, (steps, m) or (steps, B, m), for stochastic descent; all rows by default.
        optimizer: plain gradient descent by default; RMSprop and Adam need a kernel with features.
        precondition: P (B, n, n) over the trained contexts: Z ← Z − η S P R (`kernels.centred`).
        until: a world whose mean loss has come down to this, a number or one a world (B,), stays as it is then.
        form: kernel form, feature form, or the cheaper one.

    Raises:
        BadInput: rows on contexts that do not train, a side that the objective reads and the stage lacks, a form or
            an optimiser that the kernel cannot serve, a rate that is not finite, the policy of another world.

    >>> from toyld import objectives
    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=range(3), vocab=8, prompts=4, length=3)
    >>> sft = train(world, objectives.get("sft"), lr=1.0, steps=50)
    >>> dpo = train(world, objectives.get("dpo"), lr=5.0, steps=50, state=sft.state, rejected="rejected")
    >>> bool((sft.value("logp", "chosen")[-1] > sft.value("logp", "chosen")[0]).all())   # (evaluation, world, prompt)
    True
    """
    xp, n, like = array_namespace(world.logits), world.trained, world.logits
    check_stage(world, objective, {"lr": lr, "until": until}, state, reference)
    if not isinstance(optimizer, Optimizer | None):
        msg = f"optimizer: expected an Optimizer, got {optimizer!r}; write contexts.Optimizer(NAME)"
        raise BadInput(msg)
    if form not in get_args(Form):
        msg = f"form: expected one of {', '.join(get_args(Form))}, got {form!r}"
        raise BadInput(msg)
    if precondition is not None and tuple(precondition.shape) not in ((n, n), (world.size[0], n, n)):
        msg = f"precondition: expected P ({world.size[0]}, {n}, {n}), got {tuple(precondition.shape)}; see `centred`"
        raise BadInput(msg)
    marks = marked(at, steps)
    if order is not None and len(order) < steps:
        msg = f"order: expected the rows of {steps} updates, got {len(order)}; give (steps, m) or (steps, B, m)"
        raise BadInput(msg)
    fresh, state = state is None, start(world) if state is None else state
    kinds = tuple(world.responses) if kinds is None else tuple(kinds)
    if missing := [kind for kind in kinds if kind not in world.responses]:
        msg = f"kinds: expected some of {', '.join(world.responses)}, got {', '.join(missing)}; name what is there"
        raise BadInput(msg)
    given = {"chosen": chosen, "rejected": rejected, "anchor": anchor}
    sides = {side: kind for side, kind in given.items() if kind is not None}
    contexts = max([n, *(reach(world.responses[kind]) for kind in kinds)])
    before = _whole(state if reference is None else reference, _follow(world, n, contexts))
    known = statistics(before)
    rows = Rows(world, objective, sides, before, of=known, advantages=advantages, groups=groups)
    if order is not None:
        rows.check(order)
    ref = measure(before, world.responses, kinds, of=known).get("logp", before[:, :0, 0])
    del before
    active = n if precondition is not None else rows.active
    optimizer = Optimizer() if optimizer is None else optimizer
    memory: dict[str, Array] = {}
    eta = lr
    if until is not None or not isinstance(lr, int | float):
        eta = xp.asarray(lr, dtype=like.dtype, device=device(like)) + xp.zeros_like(like[:, 0, 0])
    goal = None if until is None else xp.asarray(until, dtype=like.dtype, device=device(like))
    z = xp.asarray(state.logits[:, :active, :], copy=not fresh or active < n)
    dual = xp.asarray(state.dual, copy=not fresh)
    weights = None if state.weights is None else xp.asarray(state.weights, copy=True)
    if optimizer.needs_features:
        phi = _features(world)[:, :active, :]
        up = xp.matrix_transpose(phi)
        weights = xp.zeros_like(up @ z) if weights is None else weights
    else:
        product, pieces = _product(world, slice(0, active), slice(0, active), form), _columns(z)
    now, follow, found = State(z, dual, weights), _follow(world, active, contexts), []
    own, scratch = z[:, : rows.active, :], xp.empty_like(z[:, : rows.active, :])

    for step in range(steps + 1):
        if step in marks:
            found.append((measure(_whole(now, follow), world.responses, kinds), rows.loss(own)))
        if step == steps:
            break
        read = rows.read(own, out=scratch)
        if goal is not None:
            eta = xp.where(rows.loss(own, read=read) <= goal, xp.zeros_like(eta), eta)
        # Plain descent is linear in R, so that η can go where it costs nothing: into the push.
        scale = eta if optimizer.plain else 1.0
        r = rows.residual(own, order=None if order is None else order[step], read=read, scale=scale)
        if precondition is not None:
            r = precondition[..., :, : rows.active] @ r
        if optimizer.needs_features:
            moved = _column(eta) * optimizer.direction(up @ r, memory)
            weights -= moved
            z -= phi @ moved
        else:
            r = r if optimizer.plain else _column(eta) * optimizer.direction(r, memory)
            for piece in pieces:
                dual[:, :active, piece] += r[..., piece]
                z[..., piece] -= product(r[..., piece])
    return Run(
        world,
        State(_whole(now, _follow(world, active, n)), dual, weights),
        tuple(marks),
        kinds,
        {name: np.stack([on_host(v[name]) for v, _ in found]) for name in found[0][0]} if found else {},
        np.stack([on_host(loss) for _, loss in found]) if found else np.zeros((0, world.size[0])),
        on_host(ref),
    )


def _column(eta: Any) -> Any:
    """η as (B, 1, 1) where every world has its own."""
    return eta[:, None, None] if getattr(eta, "ndim", 0) else eta


def _columns(z: Array) -> list[slice]:
    """Slices of the classes of z (B, n, V), so wide that what belongs to one stays in the cache."""
    worlds, n, classes = z.shape
    width = max(64, _CACHED // (worlds * n)) if str(device(z)).startswith("cpu") else classes
    return [slice(v, v + width) for v in range(0, classes, width)] if classes > 2 * width else [slice(None)]
