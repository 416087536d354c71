"""What one update teaches: inputs x_u and a loss of their logits, hence the residual G = ∂L/∂z (§2, §3.1).

A lesson is any loss of logits. `teach` is SFT, `from_objective` any loss of `toyld.objectives` with its reference.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toyld import objectives
from toyld.checked import BadInput
from toyld.influence.model import Inputs, Model, count, frozen, stack

__all__ = ["IGNORED", "Lesson", "from_objective", "log_probs", "teach"]

IGNORED = -100  # a label that is not taught, as in torch's cross-entropy


@dataclass(frozen=True)
class Lesson:
    """Inputs x_u (U, …) and the loss L: logits (U, …, V) ↦ scalar; one update minimises L.

    >>> margin = Lesson(torch.zeros(1, 3), lambda z: -(z[:, 0] - z[:, 1]).mean())
    >>> margin.residual(torch.zeros(1, 3))
    tensor([[-1.,  1.,  0.]])
    """

    inputs: Inputs
    loss: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        x = self.inputs
        parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else (x,)
        return f"Lesson(inputs {', '.join(str(tuple(part.shape)) for part in parts)})"

    def residual(self, z: Tensor, /) -> Tensor:
        """G = ∂L/∂z at logits z, in their shape (U, …, V)."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(self.value(z), z)
        return g

    def value(self, z: Tensor, /) -> Tensor:
        """L at logits z, a scalar that depends on them."""
        loss = self.loss(z)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            msg = f"loss: expected one number (a tensor without axes), got {got}; take its mean"
            raise BadInput(msg)
        if z.requires_grad and not loss.requires_grad:
            msg = (
                "loss: expected a function of the logits, got a constant; compute it from its argument, without detach"
            )
            raise BadInput(msg)
        return loss


def log_probs(z: Tensor, labels: Tensor, /) -> Tensor:
    """log π_y at every position, shape of the labels; 0 where the label is −100.

    Raises:
        BadInput: labels of another shape or device than the logits' positions, no integers, or out of range.

    >>> log_probs(torch.zeros(2, 4), torch.tensor([3, -100])).round(decimals=4)
    tensor([-1.3863,  0.0000])
    """
    _integers(labels)
    if labels.shape != z.shape[:-1]:
        want = tuple(z.shape[:-1])
        msg = f"labels: expected shape {want}, one per row of logits, got {tuple(labels.shape)}; shift and pad them so"
        raise BadInput(msg)
    if labels.device != z.device:
        msg = f"labels: expected them on the device of the logits, {z.device}, got {labels.device}; move them"
        raise BadInput(msg)
    taught = labels != IGNORED
    index = torch.where(taught, labels, 0).long()
    low, high = (int(x) for x in torch.aminmax(index))
    if low < 0 or high >= z.shape[-1]:
        msg = f"labels: expected 0 … {z.shape[-1] - 1}, or −100 for none, got {low if low < 0 else high}; "
        raise BadInput(msg + "does the module return logits of all classes?")
    picked = torch.log_softmax(z, -1).gather(-1, index[..., None])[..., 0]
    return torch.where(taught, picked, 0.0)


def _integers(labels: Any) -> None:
    if not isinstance(labels, Tensor):
        msg = f"labels: expected a tensor of integers, got {type(labels).__name__}; convert with torch.as_tensor"
        raise BadInput(msg)
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        msg = f"labels: expected integers, got {labels.dtype}; convert with .long()"
        raise BadInput(msg)


def _taught(*labels: Tensor) -> None:
    if not any(y.is_meta or bool((y != IGNORED).any()) for y in labels):
        msg = "labels: expected some that are taught, got −100 (none) everywhere; give a label to one position at least"
        raise BadInput(msg)


def teach(inputs: Inputs, labels: Tensor, /, *, weight: float | Tensor = 1.0) -> Lesson:
    """SFT: L = −weight · mean over examples of Σ_l log π(y_l | x), hence G = weight (π − e_y)/U.

    labels: (U,), or (U, T) for logits (U, T, V), label l being what position l should predict; −100 = not taught.
    Labels are not shifted here, unlike Hugging Face: pass inputs ids[:, :-1] and labels ids[:, 1:].
    weight: a number, or one per example (U,); −1 is the negative gradient, which pushes y down.

    Raises:
        BadInput: labels that are no tensor of integers, or all −100; a weight that is neither a number nor (U,).

    >>> lesson = teach(torch.zeros(1, 3), torch.tensor([0]), weight=-1.0)
    >>> lesson.residual(torch.zeros(1, 4))
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    >>> ids = torch.tensor([[3, 1, 2]])                                 # a sequence: 3 → 1, and 3 1 → 2
    >>> teach(ids[:, :-1], ids[:, 1:]).residual(torch.zeros(1, 2, 4))
    tensor([[[ 0.2500, -0.7500,  0.2500,  0.2500],
             [ 0.2500,  0.2500, -0.7500,  0.2500]]])
    """
    number = count(inputs)
    _integers(labels)
    _taught(labels)
    fits = tuple(weight.shape) in ((), (number,)) if isinstance(weight, Tensor) else isinstance(weight, numbers.Real)
    if not fits:
        got = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        msg = f"weight: expected a number or a tensor of shape ({number},), one per example, got {got}"
        raise BadInput(msg)

    def loss(z: Tensor) -> Tensor:
        each = log_probs(z, labels).reshape(number, -1).sum(-1)
        return -(weight * each).mean()

    return Lesson(inputs, loss)


def from_objective(
    objective: Any,
    /,
    *,
    chosen: tuple[Inputs, Tensor] | None = None,
    rejected: tuple[Inputs, Tensor] | None = None,
    reference: Model | nn.Module | None = None,
    old: Model | nn.Module | None = None,
    advantages: Mapping[str, Tensor] | None = None,
) -> Lesson:
    """A lesson of any registered objective: the mean over pairs of its loss of per-token log-probabilities.

    objective: a name, or an instance for other parameters (`objectives.get("dpo", beta=0.3)`). chosen, rejected:
    (inputs, labels) of B responses, labels as in `teach`; both sides of one shape, since they go through the module
    together: the lesson's inputs are chosen, then rejected (U = 2B). reference, old: the policies π_ref and π_old,
    where the loss reads them. advantages: side → (B,), by default +1 for chosen and −1 for rejected; only for
    objectives that read them (GRPO makes its own of the rewards +1 and −1).

    Raises:
        BadInput: a side or a reference that the objective reads is missing; sides that do not go together; advantages
            that nothing reads.

    >>> net = torch.nn.Linear(3, 4)
    >>> x, good, bad = torch.ones(1, 3), torch.tensor([0]), torch.tensor([1])
    >>> lesson = from_objective("dpo", chosen=(x, good), rejected=(x, bad), reference=net)
    >>> lesson.residual(net(lesson.inputs)).sum(0).abs().max() < 0.06      # ±β/2 on the two labels, π cancels
    tensor(True)
    """
    one = objectives.get(objective) if isinstance(objective, str) else objective
    sides = {name: side for name, side in (("chosen", chosen), ("rejected", rejected)) if side is not None}
    if not sides:
        msg = "expected chosen=(inputs, labels), rejected=(inputs, labels) or both, got neither"
        raise BadInput(msg)
    advantages = dict(advantages or {})
    if unknown := sorted(advantages.keys() - sides.keys()):
        msg = f"advantages: expected sides among {', '.join(sides)}, got {unknown[0]!r}; pass that side or drop it"
        raise BadInput(msg)
    fixed: dict[str, Tensor] = {}
    for _, labels in sides.values():
        _integers(labels)
    _taught(*(labels for _, labels in sides.values()))
    for name, (inputs, labels) in sides.items():
        wide = labels if labels.ndim > 1 else labels[:, None]
        fixed[f"{name}_mask"] = wide != IGNORED
        for prefix, policy in (("ref", reference), ("old", old)):
            if policy is not None:
                view = policy if isinstance(policy, Model) else _reference(policy)
                fixed[f"{prefix}_{name}"] = log_probs(view(inputs), labels).reshape(wide.shape)
        given = advantages.get(name)
        sign = 1.0 if name == "chosen" else -1.0
        fixed[f"{name}_advantage"] = torch.full((len(wide),), sign) if given is None else given
    inputs = stack(*(inputs for inputs, _ in sides.values()))
    sizes = [len(labels) for _, labels in sides.values()]

    def loss(z: Tensor) -> Tensor:
        parts = dict(zip(sides, z.split(sizes), strict=True))
        labels = {name: side[1] for name, side in sides.items()}
        if getattr(one, "kind", None) == "target":
            if len(sides) > 1:
                msg = f"{one.name}: expected one side, got chosen and rejected; drop one"
                raise BadInput(msg)
            ((name, logits),) = parts.items()
            logp = torch.log_softmax(logits, -1)
            shape = (*fixed[f"{name}_mask"].shape, logits.shape[-1])
            known = torch.where(labels[name] == IGNORED, 0, labels[name]).reshape(shape[:-1])
            return one.loss(logp.reshape(shape), known, mask=fixed[f"{name}_mask"]).mean()
        read = {name: log_probs(part, labels[name]).reshape(len(part), -1) for name, part in parts.items()}
        like = {n: x.to(z) if n.endswith("advantage") else x for n, x in fixed.items()}
        return one.loss(objectives.Batch(**read, **like)).mean()

    _try(one, fixed, sides, advantages)
    return Lesson(inputs, loss)


def _reference(module: nn.Module) -> Model:
    if not isinstance(module, nn.Module):
        msg = f"reference: expected a torch.nn.Module or a Model, got {type(module).__name__}"
        raise BadInput(msg)
    return frozen(module)


def _try(one: Any, fixed: Mapping[str, Tensor], sides: Mapping[str, Any], advantages: Mapping[str, Any]) -> None:
    """Ask the objective for its loss once, on −1 nat a token: what it misses, or leaves unread, is said at once."""
    unread = f"advantages: expected none, got some for {getattr(one, 'name', one)}, which does not read them; drop them"
    if getattr(one, "kind", None) == "target":
        if advantages:
            raise BadInput(unread)
        return
    fill = {n: torch.full(fixed[f"{n}_mask"].shape, -1.0) for n in sides}
    twins = {n: x.cpu() if x.dtype == torch.bool else x.float().cpu() for n, x in fixed.items()}
    try:
        one.loss(objectives.Batch(**fill, **twins))
    except objectives.MissingSideError as missing:
        wanted = str(missing)
        hint = next((f"pass {n}= (the module before training)" for p, n in (("ref_", "reference"), ("old_", "old"))
                     if f"batch.{p}" in wanted), "pass chosen= or rejected=, whichever is missing")  # fmt: skip
        msg = f"{one.name}: {wanted.split(':')[0]}; {hint}"
        raise BadInput(msg) from None
    if advantages:
        with contextlib.suppress(objectives.MissingSideError):
            one.loss(objectives.Batch(**fill, **{n: x for n, x in twins.items() if not n.endswith("advantage")}))
            raise BadInput(unread)
