"""The size of the coupling of two inputs, ‖K(x_o, x_u)‖_F: exact, or by random projections with an interval (App. C).

    ‖K_ou‖_F² = ‖J_o D J_uᵀ‖_F² = E ‖J_o D J_uᵀ r‖²,      r ∼ N(0, I) over the logits of x_u,

since E r rᵀ = I. J_o (D J_uᵀ r) is one backward pass at x_u and one forward-mode pass over all observers, so that no
Jacobian is formed and the cost does not grow with V.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from toyld.checked import BadInput
from toyld.influence.kernel import Metric, pairs, weights
from toyld.influence.model import Inputs, Model, count, plain_attention, split
from toyld.influence.recording import alone, apart, batched, footprint

__all__ = ["Estimate", "estimated", "frobenius"]

ROOM = 2**25  # numbers held by the directions and tangents of projections that go together


def frobenius(
    model: Model, observers: Inputs, taught: Inputs, /, *, metric: Metric | None = None, positions: bool = False
) -> Tensor:
    """‖K(x_o, x_u)‖_F for every pair of inputs, (O, U), over all their logits: for sequences, over all positions.

    positions: one number for every pair of positions instead, (O, …, U, …). metric as in `kernel`. K is made in
    blocks and not kept, so that its size is no limit.

    Raises:
        BadInput: a metric that does not fit; inputs that see each other.

    >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    >>> frobenius(Model(torch.nn.Linear(2, 4, bias=False)), x, x)      # |⟨x_o, x_u⟩| √V
    tensor([[50.,  6.],
            [ 6.,  2.]])
    """
    o, u = (tuple(alone(model, next(split(x, 1))).shape[1:-1]) for x in (observers, taught))
    a, b = (math.prod(o), math.prod(u)) if positions else (1, 1)
    number = count(observers), count(taught)
    found = torch.empty(number[0], a, number[1], b, dtype=model.dtype, device=model.device)
    for i, j, block in pairs(model, observers, taught, metric=metric):
        n, r, m, k = block.shape
        apart = block.reshape(n, a, r // a, m, b, k // b)
        found[i : i + n, :, j : j + m] = torch.linalg.vector_norm(apart, dim=(2, 5))
    return found.reshape(number[0], *o, number[1], *u) if positions else found[:, 0, :, 0]


@dataclass(frozen=True)
class Estimate:
    """‖K‖_F by random projections, each (O, U): the value, its standard error, and a 95 % interval.

    value² is unbiased for ‖K‖_F² (value itself is low by some error²/(2 value)). The interval is Student's on the
    logarithm of the mean square, so it is positive. It covers a little less than 95 % while projections are few and
    one direction of K outweighs the others: 92 % at 16, 93 % at 32 and 94 % at 128 for a K of rank one, 94-96 % for a
    flat spectrum (4,000 simulated estimates each).
    """

    value: Tensor
    error: Tensor
    low: Tensor
    high: Tensor


def estimated(
    model: Model,
    observers: Inputs,
    taught: Inputs,
    /,
    *,
    projections: int = 32,
    seed: int = 0,
    metric: Metric | None = None,
) -> Estimate:
    """‖K(x_o, x_u)‖_F from `projections` random vectors for each taught input, for modules whose V or T is large.

    Costs one backward pass at x_u and one forward-mode pass over all observers for each; the relative error is at most
    1/√(2 · projections), where K has rank one, and smaller the more directions it has. Observers share the vectors of
    a taught input, so their errors are correlated: comparisons between observers are better than each number.

    Raises:
        BadInput: fewer than 2 projections; inputs that see each other; operations without forward mode.

    >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    >>> found = estimated(Model(torch.nn.Linear(2, 400, bias=False)), x, x, projections=8)
    >>> bool(found.low[0, 0] < 25 * 400**0.5 < found.high[0, 0]), bool((found.error < 0.05 * found.value).all())
    (True, True)
    """
    if not isinstance(projections, int) or projections < 2:
        msg = f"projections: expected an integer ≥ 2, got {projections!r}; 32 give a relative error of at most 13 %"
        raise BadInput(msg)
    scale = weights(model, metric)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    logits, numbers = footprint(model, observers)
    for side in (observers,) if observers is taught else (observers, taught):
        if count(side) > 1:
            apart(model, side, model(side), every=True)
    room = ROOM // (sum(t.numel() for t in model.theta.values()) + count(observers) * (numbers // logits))
    columns = []
    for one in split(taught, 1):
        with plain_attention():
            z = model.attached(one)
        squares = []
        for start in range(0, projections, max(1, room)):
            size = min(max(1, room), projections - start)
            draw = (torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator) for _ in range(size))
            r = torch.stack(list(draw))  # one by one: torch's random numbers depend on how many are asked for
            with plain_attention():
                back = batched(z, list(model.parameters.values()), r)
            named = zip(model.theta, back, strict=True)
            along = {name: g * scale.get(name, 1.0) for name, g in named if g is not None}
            squares.append(_tangents(model, observers, along, size).flatten(2).square().sum(2))
        columns.append(torch.cat(squares).T)
    each = torch.stack(columns, 1)  # (O, U, projections)
    mean, spread = each.mean(-1), each.std(-1) / projections**0.5
    value = mean.sqrt()
    relative = torch.where(mean > 0.0, spread / mean, 0.0) / 2.0  # of the root
    reach = torch.exp(float(stats.t.ppf(0.975, projections - 1)) * relative)
    return Estimate(value, value * relative, value / reach, value * reach)


def _tangents(model: Model, inputs: Inputs, along: dict[str, Tensor], size: int) -> Tensor:
    """J d for `size` directions d (size, *shape) at once, (size, N, …, V); one by one where torch cannot batch them."""
    held = {name: theta for name, theta in model.theta.items() if name in along}

    def moved(d: dict[str, Tensor]) -> Tensor:
        return torch.func.jvp(lambda theta: model.at(theta, inputs), (held,), (d,))[1]

    try:
        first = model.tangent(inputs, {name: d[0] for name, d in along.items()})[1][None]
    except BadInput as bad:
        if not isinstance(bad.__cause__, NotImplementedError):
            raise
        raise BadInput(str(bad).rsplit(";", 1)[0] + "; use frobenius, which goes backward only") from bad
    if size == 1:
        return first
    rest = {name: d[1:] for name, d in along.items()}
    try:
        with torch.no_grad(), plain_attention(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.cat([first, torch.func.vmap(moved)(rest)])
    except (RuntimeError, NotImplementedError):
        each = [model.tangent(inputs, {name: d[k] for name, d in rest.items()})[1] for k in range(size - 1)]
        return torch.cat([first, torch.stack(each)])
