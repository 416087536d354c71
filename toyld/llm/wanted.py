"""Which rows of a model's features are read for which labels: the same row may stand before several responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "Wanted"]

Tensor = Any
Floats = NDArray[np.float64]


class Rows:
    """Rows `at` (ascending) of tensors (n, d) that lie behind each other; a slice of them is copied when asked for."""

    def __init__(self, tensors: Sequence[Tensor], at: NDArray[np.int64]) -> None:
        self.tensors, self.at = tensors, at
        self.device, self.width = tensors[-1].device, tensors[-1].shape[-1]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, part: slice) -> Tensor:
        import torch

        at, before, found = self.at[part], 0, []
        for tensor in self.tensors:
            mine = at[(at >= before) & (at < before + len(tensor))] - before
            found.append(tensor[torch.from_numpy(mine).to(tensor.device)].to(self.device))
            before += len(tensor)
        return found[0] if len(found) == 1 else torch.cat(found)


class Wanted:
    """Collects, response by response, the places of features that predict its tokens, and the tokens."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.labels: list[int] = []
        self.ends: list[int] = []

    def add(self, at: Sequence[int], labels: Sequence[int], /) -> None:
        if len(at) != len(labels):
            raise AssertionError("every response token is predicted once")
        self.at += at
        self.labels += labels
        self.ends.append(len(self.at))

    def read(self, head: Any, tensors: Sequence[Tensor], /) -> list[Floats]:
        """Per response (6, tokens), as `statistics.numbers`; `tensors` (n, d) lie behind each other."""
        import torch

        places, row = np.unique(np.array(self.at), return_inverse=True)
        order = np.argsort(row, kind="stable")
        labels = torch.tensor(self.labels)[torch.from_numpy(order)]
        found = head.scan(Rows(tensors, places), torch.from_numpy(row[order]), labels)
        values = np.empty((6, len(order)))
        values[:, order] = found.numpy()
        return np.split(values, self.ends[:-1], axis=1)
