"""The limit of small steps: gradient flow dZ/dt = −S R(Z) over whole stages, by scipy's stiff integrators (K7).

What `train` does in `steps` updates of size η, the flow does in time t = η·steps without any step. The dual form stays,

    Z = Z0 − S A,   dA/dt = R(Z0 − S A),

so that the result is a `Run` like any other. Worlds never touch and have clocks of their own, so each is integrated by
itself with its own steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from toyld.checked import BadInput
from toyld.contexts.engine import Run, State, check_stage, logits, marked, start
from toyld.contexts.measure import measure, token_log_probs
from toyld.contexts.rows import Rows
from toyld.contexts.world import World

__all__ = ["Method", "flow"]

Array = Any
Method = Literal["LSODA", "BDF", "Radau", "RK45", "DOP853"]


def flow(
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
    precondition: Array | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    method: Method = "LSODA",
) -> Run:
    """The stage that `train` with these arguments tends to as η → 0 at constant η·steps; its clock counts updates.

    Args:
        world: where, with numpy arrays.
        objective: of `toyld.objectives`; a parameter may be an array (B,), one value a world.
        lr: η, a number or one a world (B,): dZ/dt = −S R in time t = η·steps.
        steps: length of the stage in updates of size η.
        state, reference, chosen, rejected, anchor, advantages, groups, kinds, precondition: as in `train`.
        at: times at which to measure, in updates, whole numbers of them; by default the first and the last.
        rtol, atol: local error allowed in A, relative and absolute.
        method: of `scipy.integrate.solve_ivp`. LSODA turns to stiff formulas by itself; these, BDF and Radau solve
            for n·V unknowns with a dense Jacobian, so worlds of thousands of them want RK45 or DOP853.

    Raises:
        BadInput: rows on contexts that do not train, arrays other than numpy's, or an integrator that gives up.

    >>> from toyld import objectives
    >>> from toyld.contexts import languages, train
    >>> world = languages.markov(seeds=range(2), vocab=5, prompts=2, length=2)
    >>> limit = flow(world, objectives.get("sft"), lr=1.0, steps=8).value("logp", "chosen")[-1]
    >>> runs = [train(world, objectives.get("sft"), lr=1.0 / k, steps=8 * k) for k in (1, 8)]
    >>> coarse, fine = (float(abs(r.value("logp", "chosen")[-1] - limit).max()) for r in runs)
    >>> 7 < coarse / fine < 9.5    # an eighth of the step, an eighth of the distance
    True
    """
    if not isinstance(world.logits, np.ndarray):
        msg = f"world: expected numpy arrays, got {type(world.logits).__name__}; integrate a numpy world"
        raise BadInput(msg)
    check_stage(world, objective, {"lr": lr}, state, reference)
    worlds, n = world.size[0], world.trained
    marks = marked(at, steps)
    state = start(world) if state is None else state
    kinds = tuple(world.responses) if kinds is None else tuple(kinds)
    before = logits(world, state if reference is None else reference)
    given = {"chosen": chosen, "rejected": rejected, "anchor": anchor}
    sides = {side: kind for side, kind in given.items() if kind is not None}
    eta = np.broadcast_to(np.asarray(lr, dtype=float), (worlds,))
    matrix = None if precondition is None else np.broadcast_to(precondition, (worlds, n, n))

    values: list[list[dict[str, Array]]] = []
    losses, finals = [], []
    for b in range(worlds):
        one, here = world.take([b]), slice(b, b + 1)
        own = {side: _of_world(a, b, flat=1) for side, a in (advantages or {}).items()}
        within = _of_world(groups, b, flat=1)
        rows = Rows(one, _tuned(objective, b), sides, before[here], advantages=own, groups=within)
        trains = slice(0, n if matrix is not None else rows.active)
        gram = np.asarray(one.kernel.block(slice(0, n), trains))[0]
        begin, dual = state.logits[b], state.dual[b]
        weights = None if state.weights is None else state.weights[here]

        def rate(_: float, a: Array, *, b: int = b, rows: Rows = rows, gram: Array = gram, z: Array = begin) -> Array:
            now = z[: rows.active] - gram[: rows.active] @ a.reshape(gram.shape[1], -1)
            r = rows.residual(now[None])[0]
            return eta[b] * (r if matrix is None else matrix[b][:, : rows.active] @ r).reshape(-1)

        found = _integrate(rate, gram.shape[1] * world.size[2], (*marks, steps), rtol=rtol, atol=atol, method=method)
        policies = []
        for a in found.reshape(len(marks) + 1, gram.shape[1], -1):
            total = dual.copy()
            total[trains] += a
            policies.append(State((begin - gram @ a)[None], total[None], weights))
        values.append([measure(logits(one, policy), one.responses, kinds) for policy in policies[:-1]])
        losses.append([rows.loss(policy.logits[:, : rows.active])[0] for policy in policies[:-1]])
        finals.append(policies[-1])
    measured = {
        name: np.stack([np.concatenate([v[k][name] for v in values]) for k in range(len(marks))])
        for name in (values[0][0] if marks else ())
    }
    return Run(
        world,
        State(np.concatenate([f.logits for f in finals]), np.concatenate([f.dual for f in finals]), state.weights),
        tuple(marks),
        kinds,
        measured,
        np.asarray(losses, dtype=float).reshape(worlds, len(marks)).T,
        np.stack([token_log_probs(before, world.responses[kind]).sum(-1) for kind in kinds], axis=1),
    )


def _of_world(value: Any, b: int, *, flat: int = 0) -> Any:
    """One world's part, (1, …), of an array with one value a world; what has `flat` dimensions or fewer is for all."""
    return value[b : b + 1] if np.ndim(value) > flat else value


def _tuned(objective: Any, b: int) -> Any:
    """The objective with its parameters (B,) cut down to one world's."""
    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    own = {name: _of_world(value, b) for name, value in fields.items() if getattr(value, "ndim", 0)}
    return dataclasses.replace(objective, **own) if own else objective


def _integrate(rate: Any, size: int, marks: Sequence[int], *, rtol: float, atol: float, method: str) -> Array:
    """a (marks, size) at times in rising order, from da/dt = rate(t, a), a(0) = 0."""
    from scipy.integrate import solve_ivp

    if marks[-1] == 0:
        return np.zeros((len(marks), size))
    times, place = np.unique(np.asarray(marks, dtype=float), return_inverse=True)
    done = solve_ivp(rate, (0.0, times[-1]), np.zeros(size), method=method, t_eval=times, rtol=rtol, atol=atol)
    if not done.success:
        msg = f"expected a flow that can be followed to update {marks[-1]}, got: {done.message}; take another method"
        raise BadInput(msg)
    return np.asarray(done.y).T[place]
