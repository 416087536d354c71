"""What one update does to other inputs' beliefs: predicted to first order without K, and as it is (§2, Proposition 1).

    Δlog π(·|x_o) = A(x_o) J(x_o) (θ' − θ) + O(η²),     J(x_o) = ∇_θ z(x_o),

which is −η A K G with K = J(x_o) D J(x_u)ᵀ (`toyld.influence.blocks` has the three matrices). One backward pass at x_u
gives θ' − θ, one forward-mode pass each batch of observers the rest; no Jacobian is formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from toyld.checked import BadInput
from toyld.influence.lesson import Lesson
from toyld.influence.model import Inputs, Model, split
from toyld.influence.update import Update, update

__all__ = ["Errors", "actual", "errors", "normalised", "predict", "safe_step"]


def normalised(z: Tensor, dz: Tensor, /) -> Tensor:
    """A dz = dz − ⟨π, dz⟩: a change of logits as a change of log-probabilities, to first order, (…, V).

    >>> normalised(torch.zeros(2), torch.tensor([1.0, 0.0]))
    tensor([ 0.5000, -0.5000])
    """
    return dz - (torch.softmax(z, -1) * dz).sum(-1, keepdim=True)


def predict(
    model: Model,
    step: Update,
    observers: Inputs,
    /,
    *,
    mode: Literal["forward", "difference"] = "forward",
    batch: int | None = None,
) -> Tensor:
    """First-order Δlog π(·|x_o), (O, …, V) in nats: A(x_o) J(x_o) (θ' − θ).

    mode: "forward" is exact (forward-mode differentiation, some two forward passes). "difference": the central
    difference of log π along the step, for modules without forward mode: over ±.003 ‖θ‖, or as much less as keeps the
    change of logits below some ε^⅓ max(1, |z|). Measured ‖error‖/‖Δlog π‖: 1e-5 to 1e-3 in float32, 1e-8 to 5e-5 in
    float64 (small networks, some of them steep); 6e-3 and 2e-3 on an MLP trained on 8×8 digits, at kinks of its ReLU;
    3e-4 and 1e-4 on a language model of 260,032 parameters. In bfloat16 it is useless.
    batch: how many observers go through the module at once, by default all; fewer need less memory, and less time where
    their activations fit in a cache.

    Raises:
        BadInput: observers of another device or dtype, outputs that are not logits, a step of another model.

    >>> from toyld.influence import Model, teach, update
    >>> net = torch.nn.Linear(3, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(net.weight)
    >>> x = torch.tensor([[1.0, 2.0, 2.0]])
    >>> predict(Model(net), update(Model(net), teach(x, torch.tensor([0])), lr=0.1), x)    # η‖x‖² (e_y − π), centred
    tensor([[ 0.4500, -0.4500]])
    """
    step.fits(model)
    if mode == "forward":
        direction, size = step.direction
        parts = [model.tangent(part, direction) for part in _batches(model, observers, batch)]
        changes = [normalised(z, size * dz) for z, dz in parts]  # not in place: dz may be the gradient itself
        return changes[0] if len(changes) == 1 else torch.cat(changes)
    if mode != "difference":
        msg = f"mode: expected 'forward' or 'difference', got {mode!r}"
        raise BadInput(msg)
    direction = step.displacement
    length = _norm(direction.values())
    h = 3e-3 * _norm(model.theta.values()) / length if length else 1.0
    small = max(torch.finfo(model.dtype).eps, 1e-9) ** (1 / 3)  # 1e-9: norms of float64 models often run in float32
    up, down = _sides(model, direction, observers, h, batch)
    for _ in range(8):
        want = small * max(1.0, float(up.abs().max()))
        got = float((up - down).abs().max()) / 2.0
        if got <= 2.0 * want:
            break
        h *= want / got
        up, down = _sides(model, direction, observers, h, batch)
    return (torch.log_softmax(up, -1) - torch.log_softmax(down, -1)) / (2.0 * h)


def _sides(
    model: Model, direction: Mapping[str, Tensor], observers: Inputs, h: float, size: int | None
) -> list[Tensor]:
    """The logits at θ ± h d."""
    sides = []
    with torch.no_grad():
        for sign in (h, -h):
            theta = model.moved(direction, by=sign)
            sides.append(torch.cat([model.checked(model.at(theta, part)) for part in _batches(model, observers, size)]))
    return sides


def _batches(model: Model, inputs: Inputs, size: int | None) -> Iterable[Inputs]:
    model.accepts(inputs)
    if size is None:
        return [inputs]
    if size < 1:
        msg = f"batch: expected a number of observers ≥ 1, got {size}; leave it out for all at once"
        raise BadInput(msg)
    return split(inputs, size)


def _norm(tensors: Any) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors])))


def actual(model: Model, step: Update, observers: Inputs, /) -> Tensor:
    """The change itself, log π(·|x_o; θ') − log π(·|x_o; θ), (O, …, V) in nats; the module keeps its parameters.

    >>> from toyld.influence import Model, teach, update
    >>> net = torch.nn.Linear(3, 2)
    >>> x, before = torch.ones(1, 3), net.weight.clone()
    >>> change = actual(Model(net), update(Model(net), teach(x, torch.tensor([0])), lr=0.1), x)
    >>> bool(change[0, 0] > 0 > change[0, 1]), torch.equal(net.weight, before)
    (True, True)
    """
    step.fits(model)
    model.accepts(observers)
    with torch.no_grad():
        before, after = (model.checked(model.at(t, observers)) for t in ({}, model.moved(step.displacement)))
        return torch.log_softmax(after, -1) - torch.log_softmax(before, -1)


@dataclass(frozen=True)
class Errors:
    """Size of the change and error of its first-order prediction over learning rates; the last two axes of norms.

    lr, change, error: (n,), change = ‖Δlog π‖ and error = ‖Δlog π − predicted‖ over all observers and classes, nats.
    """

    lr: np.ndarray
    change: np.ndarray
    error: np.ndarray

    @property
    def order(self) -> float:
        """Slope of log error against log η by least squares: 2 where Proposition 1 holds, as η → 0."""
        return float(np.polyfit(np.log(self.lr), np.log(self.error), 1)[0])

    @property
    def relative(self) -> np.ndarray:
        """error/change, (n,)."""
        return self.error / self.change


def errors(model: Model, lesson: Lesson, observers: Inputs, /, *, lrs: Sequence[float]) -> Errors:
    """First order beside the truth for plain gradient descent at several rates, from one gradient and one tangent.

    The order is 2 while ‖error‖ stands above rounding, some ε‖z‖√(OV) at dtype's ε: use float64 for small rates. The
    constant holds the curvature of log π(x_o) along the step, which Proposition 1 hides in ‖∇_θ z(x_u)‖²; it is not
    uniform over networks.

    Raises:
        BadInput: fewer than two different rates, a rate that is not finite and > 0.

    >>> from toyld.influence import Model, teach
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    >>> x = torch.eye(4, dtype=torch.float64)
    >>> found = errors(Model(net), teach(x[:1], torch.tensor([2])), x, lrs=[1e-3, 1e-2])
    >>> round(found.order, 1)
    2.0
    """
    try:
        rates = [float(lr) for lr in lrs]
    except (TypeError, ValueError):
        rates = []
    if len(set(rates)) < 2 or not all(0.0 < lr < float("inf") for lr in rates):
        msg = f"lrs: expected at least two different finite rates > 0, got {lrs!r}; the order is a slope between rates"
        raise BadInput(msg)
    unit = update(model, lesson, lr=1.0)
    first = predict(model, unit, observers)
    change, error = [], []
    for lr in rates:
        step = Update(lesson, lr, unit.gradient, dict.fromkeys(unit.gradient, lr), {})
        moved = actual(model, step, observers)
        change.append(float(torch.linalg.vector_norm(moved)))
        error.append(float(torch.linalg.vector_norm(moved - lr * first)))
    return Errors(np.array(rates), np.array(change), np.array(error))


def safe_step(model: Model, step: Update, observers: Inputs, /) -> Tensor:
    """How many times this update fits into the Taylor radius of log π(·|x_o), (O, …): π/(max a − min a).

    a = J (θ' − θ) is its change of the logits, to first order. Within the radius the Taylor series of log π along a
    converges *for logits that are linear in θ* (theorem T11; Sao 2026, arXiv 2603.13552); a network bends its logits,
    too, so that this is a guide there and no guarantee. inf where all logits move alike. Convergence is not accuracy:
    half-way there first order can be off by half.

    >>> from toyld.influence import Model, teach, update
    >>> net = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(net.weight)
    >>> x = torch.ones(1, 1)
    >>> round(float(safe_step(Model(net), update(Model(net), teach(x, torch.tensor([0])), lr=1.0), x)), 3)  # π/1
    3.142
    """
    step.fits(model)
    _, dz = model.tangent(observers, step.displacement)
    low, high = torch.aminmax(dz, dim=-1)
    return torch.pi / (high - low)
