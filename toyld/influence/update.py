"""One step of an optimiser as −scale · gradient + drift, parameter by parameter: the D of the kernel ∇z D ∇zᵀ.

Proposition 1 is about plain gradient descent, D = I. RMSprop and Adam divide by a root of mean squares, which makes
the kernel ∇_θ z(x_o) D ∇_θ z(x_u)ᵀ with D as of *after* this gradient has entered the mean; momentum and weight decay
move θ without this lesson: drift.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toyld.checked import BadInput
from toyld.influence.lesson import Lesson
from toyld.influence.model import LOCK, Model

__all__ = ["Update", "update"]


@dataclass(frozen=True)
class Update:
    """θ' − θ = −scale · gradient + drift, by name; `scale` holds η D, a number or a tensor per parameter.

    gradient: ∇_θ L of the lesson (before clipping, which is in `scale`). drift: what would move without this lesson.
    lr: η, so that D = scale/η.
    """

    lesson: Lesson
    lr: float
    gradient: Mapping[str, Tensor]
    scale: Mapping[str, Tensor | float]
    drift: Mapping[str, Tensor]

    def __repr__(self) -> str:
        return f"Update(lr={self.lr:g}, {len(self.gradient)} parameters)"

    def fits(self, model: Model, /) -> None:
        """Raise BadInput unless the model has the parameters that this update moves, of the same shapes."""
        for name, g in self.gradient.items():
            p = model.parameters.get(name)
            if p is None or p.shape != g.shape:
                got = "no such parameter" if p is None else f"shape {tuple(p.shape)}"
                msg = f"step: expected an update of this model, got one of {name} {tuple(g.shape)} where the model has "
                raise BadInput(msg + f"{got}; make it with update(model, …)")

    @property
    def displacement(self) -> dict[str, Tensor]:
        """θ' − θ, by name."""
        moved = {name: g * -self.scale[name] for name, g in self.gradient.items()}
        return moved | {name: moved[name] + d for name, d in self.drift.items()}

    @property
    def direction(self) -> tuple[Mapping[str, Tensor], float]:
        """(d, s) with θ' − θ = s d, by name; plain descent computes nothing here: d is the gradient and s = −η."""
        one = next(iter(self.scale.values()))
        if self.drift or not all(isinstance(s, float) and s == one for s in self.scale.values()):
            return self.displacement, 1.0
        return self.gradient, -float(one)


def update(
    model: Model,
    lesson: Lesson,
    /,
    *,
    lr: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    clip: float | None = None,
    gradient: Mapping[str, Tensor | None] | None = None,
) -> Update:
    """The step that one update on this lesson would take: one forward and backward pass at x_u; nothing is changed.

    lr: plain gradient descent, θ' = θ − lr ∇L. optimizer: torch's SGD, RMSprop, Adam or AdamW with all their options
    and their present state; parameters that it does not hold, or that the loss does not reach, stay. clip: largest norm
    of the gradient, as torch.nn.utils.clip_grad_norm_ does it before the step. gradient: ∇L by name of parameter where
    it is known, say name → p.grad after a backward pass; then nothing is run, and what is None or left out is what the
    loss does not reach.

    Raises:
        BadInput: neither or both of lr and optimizer, a clip that is not a number > 0, an optimiser of another kind or
            of other parameters, a loss that is not finite.

    >>> net = torch.nn.Linear(3, 2)
    >>> from toyld.influence import teach
    >>> step = update(Model(net), teach(torch.ones(1, 3), torch.tensor([0])), lr=0.5)
    >>> {name: tuple(d.shape) for name, d in step.displacement.items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    if (lr is None) == (optimizer is None):
        msg = f"expected lr= or optimizer=, got {'neither' if lr is None else 'both'}; an optimiser has its own lr"
        raise BadInput(msg)
    if lr is not None and not (isinstance(lr, float | int) and 0.0 < lr < float("inf")):
        msg = f"lr: expected a finite number > 0, got {lr!r}; a negative gradient is a lesson of negative weight"
        raise BadInput(msg)
    if clip is not None and not (isinstance(clip, float | int) and 0.0 < clip < float("inf")):
        msg = f"clip: expected a finite number > 0, got {clip!r}; leave it out for no clipping"
        raise BadInput(msg)
    if gradient is None:
        gradient, reached = _gradient(model, lesson)
    else:
        gradient, reached = _given(model, gradient)
    factor = 1.0 if clip is None else _clipped(gradient, clip)
    if optimizer is None:
        assert lr is not None
        return Update(lesson, float(lr), gradient, dict.fromkeys(gradient, lr * factor), {})
    rule = next((rule for rule in _RULES if isinstance(optimizer, rule[0])), None)
    if rule is None:
        known = ", ".join(kind.__name__ for kind, _ in _RULES)
        msg = f"optimizer: expected one of torch's {known}, got {type(optimizer).__name__}; use lr= for plain descent"
        raise BadInput(msg)
    if inspect.unwrap(type(optimizer).step) is not inspect.unwrap(rule[0].step):
        msg = f"optimizer: expected torch's own step, got {type(optimizer).__name__}, which has another; use "
        raise BadInput(msg + "lr= for plain descent")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in groups for p in model.parameters.values()):
        msg = (
            "optimizer: expected one of the module's parameters, got other parameters; make it from module.parameters()"
        )
        raise BadInput(msg)
    scale: dict[str, Tensor | float] = {}
    drift: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, p in model.parameters.items():
            if (group := groups.get(id(p))) is None or name not in reached:  # torch skips what has no grad
                scale[name] = 0.0
                continue
            sign = -1.0 if group["maximize"] else 1.0
            scale[name], moved = rule[1](p, sign * factor * gradient[name], group, optimizer.state.get(p, {}))
            scale[name] = scale[name] * (sign * factor)
            if moved is not None:
                drift[name] = moved
    return Update(lesson, float(optimizer.param_groups[0]["lr"]), gradient, scale, drift)


def _gradient(model: Model, lesson: Lesson) -> tuple[dict[str, Tensor], set[str]]:
    """∇_θ L by name, and the names that the loss reaches."""
    z = model.attached(lesson.inputs)
    model.checked(z.detach())
    if not z.requires_grad:
        msg = "module: expected logits that depend on the parameters, got some without a graph; drop no_grad, "
        msg += "inference_mode and detach"
        raise BadInput(msg)
    with torch.enable_grad():
        loss = lesson.value(z)
        with LOCK:  # a checkpointed module runs again here
            found = torch.autograd.grad(loss, list(model.parameters.values()), allow_unused=True)
    if not math.isfinite(loss.item()):
        msg = f"loss: expected a finite number, got {float(loss)}; look at the labels' log-probabilities"
        raise BadInput(msg)
    parts = dict(zip(model.parameters, found, strict=True))
    gradient = {n: torch.zeros_like(model.parameters[n]) if g is None else g for n, g in parts.items()}
    sparse = {n: g.to_dense() for n, g in gradient.items() if g.is_sparse}  # nn.Embedding(sparse=True)
    return gradient | sparse, {n for n, g in parts.items() if g is not None}


def _given(model: Model, gradient: Mapping[str, Tensor | None]) -> tuple[dict[str, Tensor], set[str]]:
    known = {name: g.detach() for name, g in gradient.items() if g is not None}
    for name, g in known.items():
        p = model.parameters.get(name)
        if p is None or p.shape != g.shape:
            got = "no such parameter" if p is None else f"shape {tuple(p.shape)}"
            msg = f"gradient: expected that of the model's parameters, got one of {name} {tuple(g.shape)} where the "
            raise BadInput(msg + f"model has {got}; name them as the module does")
    return {name: torch.zeros_like(p) for name, p in model.parameters.items()} | known, set(known)


def _clipped(gradient: Mapping[str, Tensor], clip: float) -> float:
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradient.values()]))
    return min(1.0, clip / (float(norm) + 1e-6))  # torch.nn.utils.clip_grad_norm_ adds the same 1e-6


Rule = Callable[[Tensor, Tensor, Mapping[str, Any], Mapping[str, Any]], tuple[Any, Tensor | None]]


def _sgd(p: Tensor, g: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
    """b' = μ b + (1 − dampening)(g + λθ), b' = g + λθ at first; θ' = θ − η b', with Nesterov − η (g + λθ + μ b')."""
    lr, mu, decay = group["lr"], group["momentum"], group["weight_decay"]
    before = state.get("momentum_buffer") if mu else None
    enters = 1.0 if before is None else 1.0 - group["dampening"]
    share = 1.0 + mu * enters if group["nesterov"] else enters if mu else 1.0
    carried = None if before is None else -lr * (mu * mu if group["nesterov"] else mu) * before
    return lr * share, _sum(carried, -lr * share * decay * p if decay else None)


def _rmsprop(p: Tensor, g: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
    """v' = αv + (1 − α)(g + λθ)², centred: − ḡ'²; b' = μ b + (g + λθ)/(√v' + ε); θ' = θ − η b'."""
    lr, alpha, decay = group["lr"], group["alpha"], group["weight_decay"]
    g = g + decay * p
    mean = alpha * state.get("square_avg", torch.zeros_like(p)) + (1.0 - alpha) * g * g
    if group["centered"]:
        mean = mean - (alpha * state.get("grad_avg", torch.zeros_like(p)) + (1.0 - alpha) * g) ** 2
    scale = lr / (mean.sqrt() + group["eps"])
    buffer = state.get("momentum_buffer") if group["momentum"] else None
    carried = None if buffer is None else -lr * group["momentum"] * buffer
    return scale, _sum(carried, -scale * decay * p if decay else None)


def _adam(p: Tensor, g: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
    """m' = β₁m + (1 − β₁)g, v' = β₂v + (1 − β₂)g²; θ' = θ − η m̂/(√v̂ + ε), decay in g (Adam) or apart (AdamW)."""
    lr, (b1, b2), decay = group["lr"], group["betas"], group["weight_decay"]
    apart = group.get("decoupled_weight_decay", False)
    g = g if apart else g + decay * p
    t = float(state.get("step", 0.0)) + 1.0
    mean = b2 * state.get("exp_avg_sq", torch.zeros_like(p)) + (1.0 - b2) * g * g
    if group["amsgrad"]:
        mean = torch.maximum(mean, state.get("max_exp_avg_sq", mean))
    rate = lr / (1.0 - b1**t) / (mean.sqrt() / (1.0 - b2**t) ** 0.5 + group["eps"])
    carried = -rate * b1 * state["exp_avg"] if "exp_avg" in state else None
    lost = -lr * decay * p if apart else -rate * (1.0 - b1) * decay * p
    return rate * (1.0 - b1), _sum(carried, lost if decay else None)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first + second


_RULES: tuple[tuple[type[torch.optim.Optimizer], Rule], ...] = (
    (torch.optim.SGD, _sgd),
    (torch.optim.RMSprop, _rmsprop),
    (torch.optim.Adam, _adam),  # AdamW is a kind of Adam
)
