"""The three matrices of Proposition 1 themselves: A(x_o), K(x_o, x_u), G(x_u), and their product (§2, Eq. 3; Eq. 5, 7).

For sequences the causal mask makes logits at position l depend on tokens up to l alone, and the sum runs over pairs of
positions (m observed, l taught):

    [Δlog π(·|χ_o)]_m = −η Σ_l A_m K_{m,l} G_l + A_m J_m · drift + O(η²).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toyld.checked import BadInput
from toyld.influence.lesson import IGNORED
from toyld.influence.model import Inputs, Model, count, plain_attention, split
from toyld.influence.predict import normalised
from toyld.influence.update import Update

__all__ = ["Blocks", "blocks", "jacobian", "kernel"]

LARGEST = 2**31  # bytes of a Jacobian or kernel before it is refused


@dataclass(frozen=True)
class Blocks:
    """A (O, …, V, V), K (O, …, V, U, …, V) with the update's D in it, G (U, …, V); drift: A J · drift, (O, …, V).

    … are positions: none for a classifier, T for a sequence model.
    """

    A: Tensor
    K: Tensor
    G: Tensor
    drift: Tensor
    lr: float

    @property
    def terms(self) -> Tensor:
        """What every taught input and position does to every observed one: −η A K G, (O, …, V, U, …) in nats."""
        o, u = self.A.shape[:-1], self.G.shape[:-1]
        moved = torch.einsum("ovup,up->ovu", self.K.reshape(-1, o[-1], math.prod(u), self.G.shape[-1]), self._flat_g)
        return (-self.lr * (self.A.reshape(-1, o[-1], o[-1]) @ moved)).reshape(*o, *u)

    @property
    def change(self) -> Tensor:
        """The first-order Δlog π, (O, …, V) in nats: the sum of the terms and the drift."""
        return self.terms.reshape(*self.A.shape[:-1], -1).sum(-1) + self.drift

    def tokens(self, labels: Tensor, /) -> Tensor:
        """The influence of every taught position on log π of every observed label, (O, …, U, …) in nats.

        For one sequence on itself, labels (1, T): the token-to-token matrix (1, T, 1, T). A label −100 gives 0.
        """
        if labels.shape != self.A.shape[:-2]:
            msg = f"labels: expected shape {tuple(self.A.shape[:-2])}, one per observed row, got {tuple(labels.shape)}"
            raise BadInput(msg)
        terms = self.terms.reshape(math.prod(labels.shape), self.A.shape[-1], -1)
        known = (labels != IGNORED).reshape(-1)
        index = torch.where(known, labels.reshape(-1), 0)
        picked = terms[torch.arange(len(index)), index] * known[:, None]
        return picked.reshape(*labels.shape, *self.G.shape[:-1])

    @property
    def _flat_g(self) -> Tensor:
        return self.G.reshape(-1, self.G.shape[-1])


def blocks(model: Model, step: Update, observers: Inputs, /) -> Blocks:
    """A, K and G of one update on its lesson, seen from observers; their product is `predict`, to rounding.

    Costs V backward passes per input (and position); K has (O·T·V)(U·T·V) entries.

    Raises:
        BadInput: a kernel above 2 GiB.

    >>> from toyld.influence import Model, predict, teach, update
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    >>> x = torch.eye(4, dtype=torch.float64)
    >>> step = update(Model(net), teach(x[:1], torch.tensor([2])), lr=0.1)
    >>> found = blocks(Model(net), step, x)
    >>> found.K.shape, bool((found.change - predict(Model(net), step, x)).abs().max() < 1e-12)
    (torch.Size([4, 3, 1, 3]), True)
    """
    z_o, z_u = model(observers), model(step.lesson.inputs)
    eye = torch.eye(z_o.shape[-1], dtype=z_o.dtype, device=z_o.device)
    normaliser = eye - torch.softmax(z_o, -1)[..., None, :]
    metric = {name: scale / step.lr for name, scale in step.scale.items()}
    found = kernel(model, observers, step.lesson.inputs, metric=metric)
    drift = torch.zeros_like(z_o)
    if step.drift:
        drift = normalised(*model.tangent(observers, step.drift))
    return Blocks(normaliser, found, step.lesson.residual(z_u), drift, step.lr)


def kernel(
    model: Model, observers: Inputs, taught: Inputs, /, *, metric: Mapping[str, Tensor | float] | None = None
) -> Tensor:
    """K(x_o, x_u) = ∇_θ z(x_o) D ∇_θ z(x_u)ᵀ, (O, …, V, U, …, V), from Jacobians; D by name, the identity if left out.

    The empirical neural tangent kernel of the logits: K(x_o, x_u) = K(x_u, x_o)ᵀ, and positive semi-definite (D > 0).

    >>> from toyld.influence import Model
    >>> net = torch.nn.Linear(2, 3, bias=False)
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> kernel(Model(net), x, x)[0, :, 0]                          # ‖x‖² I: one softmax is this case
    tensor([[25.,  0.,  0.],
            [ 0., 25.,  0.],
            [ 0.,  0., 25.]])
    """
    o, u = tuple(model(observers).shape), tuple(model(taught).shape)
    _fits(math.prod(o) * math.prod(u), model, "K")
    right = jacobian(model, taught)
    if metric is not None:
        right = {name: j * metric[name] for name, j in right.items()}
    rows = []
    for part in split(observers, max(1, _chunk(model, o))):
        left = jacobian(model, part)
        rows.append(torch.stack([_flat(left[name], o) @ _flat(right[name], u).T for name in left]).sum(0))
    return torch.cat(rows).reshape(*o, *u)


def jacobian(model: Model, inputs: Inputs, /) -> dict[str, Tensor]:
    """J = ∂z/∂θ by name, each (N, …, V, *shape of the parameter), by V backward passes an input and position.

    >>> from toyld.influence import Model
    >>> jacobian(Model(torch.nn.Linear(2, 3)), torch.zeros(5, 2))["weight"].shape
    torch.Size([5, 3, 3, 2])
    """
    sizes = sum(t.numel() for t in model.theta.values())
    found: dict[str, list[Tensor]] = {name: [] for name in model.theta}
    for i, one in enumerate(split(inputs, 1)):
        with plain_attention():
            z = model.attached(one)[0]
            if i == 0:
                _fits(count(inputs) * z.numel() * sizes, model, "the Jacobian")
            rows = torch.eye(z.numel(), dtype=z.dtype, device=z.device).reshape(z.numel(), *z.shape)
            parts = torch.autograd.grad(
                z, list(model.parameters.values()), rows, is_grads_batched=True, allow_unused=True
            )
        for (name, theta), part in zip(model.theta.items(), parts, strict=True):
            j = theta.new_zeros((z.numel(), *theta.shape)) if part is None else part
            found[name].append(j.reshape(*z.shape, *theta.shape))
    return {name: torch.stack(js) for name, js in found.items()}


def _flat(j: Tensor, of: tuple[int, ...]) -> Tensor:
    return j.reshape(-1, math.prod(j.shape[len(of) :]))


def _chunk(model: Model, shape: tuple[int, ...]) -> int:
    """Inputs whose Jacobians fill a quarter of a gigabyte."""
    sizes = sum(t.numel() for t in model.theta.values())
    return 2**28 // (math.prod(shape[1:]) * sizes * torch.finfo(model.dtype).bits // 8)


def _fits(numbers: int, model: Model, what: str) -> None:
    if (size := numbers * torch.finfo(model.dtype).bits // 8) > LARGEST:
        msg = f"{what}: expected at most {LARGEST / 2**30:.0f} GiB, got {size / 2**30:.1f}; take fewer "
        raise BadInput(msg + "inputs or classes, or use predict, which forms neither")
