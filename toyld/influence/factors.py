"""A Jacobian of logits as data: sums of outer products B ⊗ a where a weight matrix is, rows where it is anything else.

A weight matrix enters z through y_s = W a_s at every use and position s, so that with B_s = ∂z/∂y_s

    ∂z_r/∂W = Σ_s B_{r,s} ⊗ a_s                                                             (r: one logit of one input)

(a convolution: a_s the patches; an embedding: a_s one-hot; a bias: a_s = 1; a norm's weight: elementwise, as rows).
`toyld.influence.recording` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Factors", "Outer"]


@dataclass(frozen=True)
class Outer:
    """∂z_r/∂W = Σ_s moving[n, r, s] ⊗ fixed[n, s] for N inputs of R logits; W is (q, p), or (p, q) where turned.

    moving: (N, R, S, q). fixed: (N, S, p), its last column 1 where a bias is there; or indices (N, S) of one-hots.
    """

    weight: str
    bias: str | None
    shape: tuple[int, ...]  # of the weight
    turned: bool
    moving: Tensor
    fixed: Tensor

    @property
    def key(self) -> tuple[str, str | None]:
        return self.weight, self.bias

    @property
    def onehot(self) -> bool:
        return not self.fixed.is_floating_point()

    @property
    def width(self) -> int:
        """p, the bias's column included."""
        return self.shape[0] if self.onehot else int(self.fixed.shape[-1])

    def take(self, part: slice) -> Outer:
        return replace(self, moving=self.moving[part], fixed=self.fixed[part])

    def rows(self) -> dict[str, Tensor]:
        """The Jacobians themselves, (N, R, entries) by name."""
        n, r, s, q = self.moving.shape
        if self.onehot:
            full = self.moving.new_zeros(n, self.width, r, q)
            index = self.fixed[:, :, None, None].expand(n, s, r, q)
            return {self.weight: full.scatter_add_(1, index, self.moving.transpose(1, 2)).transpose(1, 2).flatten(2)}
        matrix = (self.moving.transpose(2, 3).reshape(n, r * q, s) @ self.fixed).reshape(n, r, q, -1)
        return self._parted(matrix)

    def along(self, c: Tensor) -> tuple[dict[str, Tensor], float]:
        """The gradient along logits c (N, R), flat by name, and the sum of its terms' sizes."""
        moved = torch.einsum("nr,nrsq->nsq", c, self.moving).flatten(0, 1)
        if self.onehot:
            gradient = moved.new_zeros(self.width, moved.shape[1]).index_add_(0, self.fixed.flatten(), moved)
            return {self.weight: gradient.flatten()}, float(torch.linalg.vector_norm(moved, dim=1).sum())
        fixed = self.fixed.flatten(0, 1)
        size = torch.linalg.vector_norm(moved, dim=1) @ torch.linalg.vector_norm(fixed, dim=1)
        return self._parted(moved.T @ fixed), float(size)

    def _parted(self, matrix: Tensor) -> dict[str, Tensor]:
        """(…, q, p) → (…, entries) of the weight, and of the bias."""
        weight = matrix if self.bias is None else matrix[..., :-1]
        parts = {self.weight: (weight.transpose(-1, -2) if self.turned else weight).flatten(-2)}
        return parts if self.bias is None else parts | {self.bias: matrix[..., -1]}


@dataclass
class Factors:
    """The Jacobian of the logits z (N, …, V), R to an input: outer products, and rows (N, R, entries)."""

    z: Tensor
    outers: dict[tuple[str, str | None], Outer] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.z)

    @property
    def logits(self) -> int:
        return self.z[0].numel()

    def take(self, part: slice) -> Factors:
        """Of some of the inputs."""
        outers = {key: outer.take(part) for key, outer in self.outers.items()}
        return Factors(self.z[part], outers, {name: rows[part] for name, rows in self.rows.items()})

    def add(self, rows: dict[str, Tensor]) -> None:
        for name, row in rows.items():
            self.rows[name] = self.rows[name] + row if name in self.rows else row

    def along(self, c: Tensor) -> dict[str, tuple[Tensor, float]]:
        """Gradient along logits c (N, R) and the size of its terms, by name."""
        found: dict[str, tuple[Tensor, float]] = {}
        for outer in self.outers.values():
            gradients, size = outer.along(c)
            found |= {name: (g, size) for name, g in gradients.items()}
        for name, rows in self.rows.items():
            size = float((c.abs() * torch.linalg.vector_norm(rows, dim=-1)).sum())
            found[name] = torch.einsum("nr,nrp->p", c, rows), size
        return found
