"""The three matrices of Proposition 1 themselves: A(x_o), K(x_o, x_u), G(x_u), and their product (§2, Eq. 3; Eq. 5, 7).

For sequences the causal mask makes logits at position l depend on tokens up to l alone, and the sum runs over pairs of
positions (m observed, l taught):

    [Δlog π(·|χ_o)]_m = −η Σ_l A_m K_{m,l} G_l + A_m J_m · drift + O(η²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toyld.checked import BadInput
from toyld.influence.kernel import kernel
from toyld.influence.lesson import IGNORED
from toyld.influence.model import Inputs, Model
from toyld.influence.predict import normalised
from toyld.influence.update import Update

__all__ = ["Blocks", "blocks"]


@dataclass(frozen=True)
class Blocks:
    """A (O, …, V, V), K (O, …, V, U, …, V) with the update's D in it, G (U, …, V); drift: A J · drift, (O, …, V).

    … are positions: none for a classifier, T for a sequence model. lr: the update's, 1 where that is 0.
    """

    A: Tensor
    K: Tensor
    G: Tensor
    drift: Tensor
    lr: float

    def __repr__(self) -> str:
        return f"Blocks({', '.join(f'{n} {tuple(getattr(self, n).shape)}' for n in 'AKG')})"

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

    Costs V backward passes (T·V for sequences) for all inputs together, see `kernel`; K has (O·T·V)(U·T·V) entries.
    That is dear for language models: one of 260,032 parameters and V = 512 took minutes for 2 × 11 observed tokens on
    11 taught ones. Ways out: `predict` (no K), `estimated` (‖K‖_F by projections), Model(module, parameters=…).

    Raises:
        BadInput: a kernel above 2 GiB, a step of another model.

    >>> from toyld.influence import Model, predict, teach, update
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    >>> x = torch.eye(4, dtype=torch.float64)
    >>> step = update(Model(net), teach(x[:1], torch.tensor([2])), lr=0.1)
    >>> found = blocks(Model(net), step, x)
    >>> found.K.shape, bool((found.change - predict(Model(net), step, x)).abs().max() < 1e-12)
    (torch.Size([4, 3, 1, 3]), True)
    """
    step.fits(model)
    if missing := model.parameters.keys() - step.gradient.keys():
        msg = f"step: expected an update of all parameters of the model, got one without {min(missing)}; "
        raise BadInput(msg + "make it with update(model, …)")
    z_o, z_u = model(observers), model(step.lesson.inputs)
    eye = torch.eye(z_o.shape[-1], dtype=z_o.dtype, device=z_o.device)
    normaliser = eye - torch.softmax(z_o, -1)[..., None, :]
    lr = step.lr or 1.0  # a schedule that starts at 0 still moves what has a rate of its own
    metric = {name: scale / lr for name, scale in step.scale.items()}
    found = kernel(model, observers, step.lesson.inputs, metric=metric)
    drift = torch.zeros_like(z_o)
    if step.drift:
        drift = normalised(*model.tangent(observers, step.drift))
    return Blocks(normaliser, found, step.lesson.residual(z_u), drift, lr)
