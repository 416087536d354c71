"""K(x_o, x_u) = ∇_θ z(x_o) D ∇_θ z(x_u)ᵀ, exact: the empirical neural tangent kernel of the logits (§2, Proposition 1).

Weight Jacobians are sums of outer products B ⊗ a (`toyld.influence.recording`), so that a layer's share of K is

    Σ_{s,t} ⟨a_s, a_t⟩ ⟨B_{r,s}, B_{r',t}⟩,    or with D    Σ_{s,t,i} B_{r,s,i} (Σ_j a_{s,j} D_{ij} a_{t,j}) B_{r',t,i}.

This never forms ∇_θ z; where rows of Jacobians are cheaper (convolutions: few weights, many positions) they are formed
and multiplied. The choice is made parameter by parameter from the number of multiplications.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from toyld.checked import BadInput
from toyld.influence.dual import linear as times  # x @ w.T
from toyld.influence.factors import Factors, Outer
from toyld.influence.model import Inputs, Model, count, split, stack
from toyld.influence.recording import alone, factors, footprint, rows_of

__all__ = ["jacobian", "kernel", "pairs", "weights"]

LARGEST = 2**31  # bytes of a Jacobian or kernel before it is refused
ROOM = 2**28  # bytes of factors held at a time
ROWS = 0.5  # cost of a multiplication in one large product, beside one in many small ones

Metric = Mapping[str, Tensor | float]


def kernel(model: Model, observers: Inputs, taught: Inputs, /, *, metric: Metric | None = None) -> Tensor:
    """K(x_o, x_u) = ∇_θ z(x_o) D ∇_θ z(x_u)ᵀ, (O, …, V, U, …, V).

    metric: D by name, a number or a tensor of the parameter's shape; 1 for those left out. K(x_o, x_u) = K(x_u, x_o)ᵀ,
    and K of inputs with themselves is positive semi-definite (D ≥ 0). Costs one forward pass, and one backward pass per
    logit of an input, for all inputs together. Layers of torch.nn (Linear, Embedding, Conv1d, Conv2d, norms) are taken
    apart into factors; parameters used in another way cost that many passes for *each* input, and so do all in
    bfloat16 and float16: convert the module to float32 where it fits.

    Raises:
        BadInput: a kernel above 2 GiB; a metric that does not fit; inputs that see each other.

    >>> net = torch.nn.Linear(2, 3, bias=False)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> kernel(Model(net), x, x)[0, :, 0]                          # ‖x‖² I: one softmax is this case
    tensor([[25.,  0.,  0.],
            [ 0., 25.,  0.],
            [ 0.,  0., 25.]])
    """
    o, u = (tuple(alone(model, next(split(x, 1))).shape[1:]) for x in (observers, taught))
    number = count(observers), count(taught)
    _fits(math.prod((*number, *o, *u)), model, "K")
    whole = number[0], math.prod(o), number[1], math.prod(u)
    found = None
    for i, j, block in pairs(model, observers, taught, metric=metric):
        if block.shape == whole:
            return block.reshape(number[0], *o, number[1], *u)
        found = block.new_empty(whole) if found is None else found
        found[i : i + block.shape[0], :, j : j + block.shape[2]] = block
    assert found is not None
    return found.reshape(number[0], *o, number[1], *u)


def pairs(
    model: Model, observers: Inputs, taught: Inputs, /, *, metric: Metric | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """K in blocks (first observer, first taught, K (o, R, u, R')), the logits of an input flat; together they are K.

    >>> net = torch.nn.Linear(2, 3)
    >>> [(i, j, block.shape) for i, j, block in pairs(Model(net), torch.zeros(4, 2), torch.zeros(5, 2))]
    [(0, 0, torch.Size([4, 3, 5, 3]))]
    """
    known = weights(model, metric)
    room = ROOM // (torch.finfo(model.dtype).bits // 8)
    (r, left_size), (k, right_size) = (footprint(model, x) for x in (observers, taught))
    m = max(1, min(count(taught), math.isqrt(room // 4) // k))
    n = max(1, room // 4 // (r * m * k))
    lefts, rights = max(1, room // left_size), max(1, room // right_size)
    for j, right in _parts(taught, rights):
        there, beside = _beside(model, right, observers, min(lefts, rights))
        for i, left in _parts(observers, lefts):
            here = beside or factors(model, left)
            for row in range(0, here.count, n):
                mine = here.take(slice(row, row + n))
                for column in range(0, there.count, m):
                    yield i + row, j + column, _product(mine, there.take(slice(column, column + m)), known)


def _beside(model: Model, taught: Inputs, observers: Inputs, room: int) -> tuple[Factors, Factors | None]:
    """Factors of the taught inputs, and of the observers where the two are one or fit into one run of the module."""
    if observers is taught:
        there = factors(model, taught)
        return there, there
    number = count(taught)
    if number + count(observers) > room or _form(taught) != _form(observers):
        return factors(model, taught), None
    both = factors(model, stack(taught, observers))
    return both.take(slice(0, number)), both.take(slice(number, None))


def _form(inputs: Inputs) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _form(x) for name, x in inputs.items()}
    return [_form(x) for x in inputs] if isinstance(inputs, tuple | list) else (inputs.dtype, inputs.shape[1:])


def _parts(inputs: Inputs, size: int) -> Iterator[tuple[int, Inputs]]:
    if count(inputs) <= size:
        yield 0, inputs
    else:
        yield from zip(itertools.count(0, size), split(inputs, size), strict=False)


def jacobian(model: Model, inputs: Inputs, /) -> dict[str, Tensor]:
    """J = ∂z/∂θ by name, each (N, …, V, *shape of the parameter), by autograd alone, one input at a time.

    Raises:
        BadInput: a Jacobian above 2 GiB.

    >>> jacobian(Model(torch.nn.Linear(2, 3)), torch.zeros(5, 2))["weight"].shape
    torch.Size([5, 3, 3, 2])
    """
    shape = tuple(model(next(split(inputs, 1))).shape[1:])
    theta = model.theta
    size = sum(t.numel() for t in theta.values())
    _fits(count(inputs) * math.prod(shape) * size, model, "the Jacobian")
    found = rows_of(model, inputs, list(theta))
    return {name: j.reshape(count(inputs), *shape, *theta[name].shape) for name, j in found.items()}


def _product(left: Factors, right: Factors, metric: Metric) -> Tensor:
    """(o, R, u, R')."""
    rows: list[dict[str, Tensor]] = [dict(left.rows), dict(right.rows)]
    found = None
    for key in dict.fromkeys([*left.outers, *right.outers]):  # in a fixed order: sums round alike in every process
        mine, other = left.outers.get(key), right.outers.get(key)
        if mine is not None and other is not None:
            scale = _scale(mine, metric)
            if _cheaper(mine, other, scale):
                found = _ghost(found, mine, other, scale)
                continue
        for outer, side in ((mine, rows[0]), (other, rows[1])):
            if outer is not None:
                side |= outer.rows()
    names = sorted(rows[0].keys() & rows[1].keys())
    if names:
        flat = torch.cat([rows[0][name] for name in names], -1).flatten(0, 1)
        scaled = torch.cat([_scaled(rows[1][name], metric.get(name, 1.0)) for name in names], -1).flatten(0, 1)
        product = times(flat, scaled, None).reshape(left.count, left.logits, right.count, right.logits)
        found = product if found is None else found.add_(product)
    return left.z.new_zeros(left.count, left.logits, right.count, right.logits) if found is None else found


def _cheaper(left: Outer, right: Outer, scale: Tensor | float) -> bool:
    """Whether the products of factors take fewer multiplications than rows do."""
    (n, r, s, q), (m, k, t, _) = left.moving.shape, right.moving.shape
    p = left.width
    middle = s * t * (p * q if isinstance(scale, Tensor) else 0 if left.onehot else p)
    ghost = n * m * (middle + r * s * t * q + r * k * t * q) if s * t > 1 else n * m * (middle + r * k * q)
    return ghost < ROWS * p * q * (n * m * r * k + n * r * s + m * k * t)


def _ghost(found: Tensor | None, left: Outer, right: Outer, scale: Tensor | float) -> Tensor:
    """found, in place, + Σ_{s,t} ⟨a_s, D a_t⟩ ⟨B_s, B_t⟩; one left input at a time if there are positions or a D."""
    (n, r, s, q), (m, k, t, _) = left.moving.shape, right.moving.shape
    a, b = left.fixed, right.fixed
    if not isinstance(scale, Tensor) and s == t == 1:
        gram = times(a[:, 0], b[:, 0], None) if not left.onehot else (a == b.T).to(left.moving)
        gram = (gram * scale)[:, None, :, None]
        product = times(left.moving.reshape(n * r, q), right.moving.reshape(m * k, q), None).reshape(n, r, m, k)
        return product.mul_(gram) if found is None else found.addcmul_(product, gram)
    found = left.moving.new_zeros(n, r, m, k) if found is None else found
    flat = right.moving.transpose(1, 2)  # (m, t, k, q)
    for i in range(n):
        if isinstance(scale, Tensor):
            if left.onehot:
                same = a[i][:, None, None] == b  # (s, m, t)
                weight = scale.T[a[i]][:, None, None, :] * same[..., None]
            else:
                weight = (a[i][:, None, None, :] * b) @ scale.T  # (s, m, t, q)
            moved = torch.einsum("rsq,smtq->mrtq", left.moving[i], weight)
        else:
            gram = (a[i][:, None, None] == b).to(left.moving) if left.onehot else (b @ a[i].T).permute(2, 0, 1)
            moved = torch.einsum("rsq,smt->mrtq", left.moving[i], gram * scale)
        product = torch.bmm(moved.reshape(m, r, t * q), flat.transpose(1, 2).reshape(m, k, t * q).transpose(1, 2))
        found[i] += product.transpose(0, 1)
    return found


def _scale(outer: Outer, metric: Metric) -> Tensor | float:
    """D of a weight and its bias: one number, or (q, p)."""
    weight = metric.get(outer.weight, 1.0)
    bias = None if outer.bias is None else metric.get(outer.bias, 1.0)
    if not isinstance(weight, Tensor) and not isinstance(bias, Tensor) and bias in (None, weight):
        return weight
    q, like = outer.moving.shape[-1], outer.moving
    p = outer.width - (bias is not None)
    if isinstance(weight, Tensor):
        weight = weight.reshape(p, q).T if outer.turned else weight.reshape(q, p)
    else:
        weight = like.new_full((q, p), weight)
    if bias is None:
        return weight
    column = bias.reshape(q, 1) if isinstance(bias, Tensor) else like.new_full((q, 1), bias)
    return torch.cat([weight, column], 1)


def _scaled(rows: Tensor, by: Tensor | float) -> Tensor:
    return rows * (by.flatten() if isinstance(by, Tensor) else by)


def weights(model: Model, metric: Metric | None, /) -> dict[str, Tensor | float]:
    """D by name, each a number or a tensor of the parameter's shape.

    Raises:
        BadInput: a name that the model does not have, or a tensor of another shape.

    >>> weights(Model(torch.nn.Linear(2, 3)), {"bias": torch.tensor(2.0)})
    {'bias': 2.0}
    """
    found: dict[str, Tensor | float] = {}
    theta = model.theta
    for name, by in (metric or {}).items():
        if name not in theta:
            names = ", ".join(list(theta)[:6]) + (", …" if len(theta) > 6 else "")
            msg = f"metric: expected names among {names}, got {name!r}; leave out what does not train"
            raise BadInput(msg)
        if isinstance(by, Tensor) and by.numel() > 1 and by.shape != theta[name].shape:
            want = tuple(theta[name].shape)
            msg = f"metric: expected for {name} a number or shape {want}, got shape {tuple(by.shape)}; reshape it"
            raise BadInput(msg)
        found[name] = by if isinstance(by, Tensor) and by.numel() > 1 else float(by)
    return found


def _fits(numbers: int, model: Model, what: str) -> None:
    if (size := numbers * torch.finfo(model.dtype).bits // 8) > LARGEST:
        msg = f"{what}: expected at most {LARGEST / 2**30:.0f} GiB, got {size / 2**30:.1f}; take fewer "
        raise BadInput(msg + "inputs or classes, or use predict, which forms neither")
