"""The pairs of one update of a language model, their reference and their loss: what it pushes on every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld import objectives
from toyld.checked import BadInput
from toyld.llm.encode import Encoded

__all__ = ["Pairs", "pushes"]

Floats = NDArray[np.float64]
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pairs:
    """The batch of an update: B chosen responses, as many rejected ones where the loss reads them.

    ref_chosen, ref_rejected: their log-probabilities under the reference policy, one sum a response (B,) as
    `score_encoded` gives it, or one array of its tokens each; left out, the reference is the policy as it is now.
    """

    chosen: Sequence[Encoded] = ()
    rejected: Sequence[Encoded] = ()
    ref_chosen: Sequence[Any] | Floats | None = None
    ref_rejected: Sequence[Any] | Floats | None = None
    objective: Any = field(default_factory=lambda: objectives.get("dpo"))

    @property
    def sides(self) -> dict[str, list[Encoded]]:
        """The responses by side, those that are there."""
        return {name: list(getattr(self, name)) for name in SIDES if len(getattr(self, name))}

    def checked(self) -> Pairs:
        """The same; BadInput for sides of different sizes or an objective without a push on every token."""
        if getattr(self.objective, "push", None) is None or getattr(self.objective, "kind", None) == "target":
            name = getattr(self.objective, "name", self.objective)
            raise BadInput(f"objective: expected one with a push on every token, got {name}; take another")
        if len({len(side) for side in self.sides.values()}) != 1:
            got = " and ".join(f"{len(side)} {name}" for name, side in self.sides.items()) or "none"
            raise BadInput(f"lesson: expected as many chosen as rejected responses, at least one, got {got}")
        return self


def pushes(lesson: Pairs, logps: Sequence[Floats], /) -> list[Floats]:
    """−∂(mean loss over the pairs)/∂log π_t of every response's tokens, chosen first, then rejected.

    logps: log π of their tokens now, in this order.

    >>> item = Encoded((1, 2, 3), 1)
    >>> pushes(Pairs([item], [item]), [np.array([-1.0, -2.0]), np.array([-1.0, -2.0])])     # ±β/2 at π = π_ref
    [array([0.05, 0.05]), array([-0.05, -0.05])]
    """
    names, count = list(lesson.sides), len(next(iter(lesson.sides.values())))
    parts: dict[str, Any] = {}
    for k, name in enumerate(names):
        mine = logps[k * count : (k + 1) * count]
        reference = getattr(lesson, f"ref_{name}")
        parts[name], parts[f"{name}_mask"] = _table(mine)
        parts[f"ref_{name}"] = parts[name] if reference is None else _table(_spread(reference, mine, lesson, name))[0]
        parts[f"old_{name}"] = parts[name]
        parts[f"{name}_advantage"] = np.full(count, 1.0 if name == "chosen" else -1.0)
    push = lesson.objective.push(objectives.Batch(**parts))
    found: list[Floats] = []
    for name in names:
        side = getattr(push, name)
        table = np.zeros(parts[name].shape) if side is None else np.asarray(side) / count
        found += [row[known] for row, known in zip(table, parts[f"{name}_mask"], strict=True)]
    if not all(np.isfinite(row).all() for row in found):
        raise BadInput("expected finite pushes, got others; look at the log-probabilities of policy and reference")
    return found


def _spread(reference: Any, mine: Sequence[Floats], lesson: Pairs, name: str) -> list[Floats]:
    """The reference's log-probabilities per token; a sum is spread evenly, which only sums may read."""
    if len(reference) != len(mine):
        raise BadInput(f"ref_{name}: expected one a response, {len(mine)}, got {len(reference)}")
    found = []
    for given, own in zip(reference, mine, strict=True):
        row = np.asarray(given, np.float64)
        if row.ndim == 0:
            if getattr(lesson.objective, "kind", None) == "token":
                msg = f"ref_{name}: expected one number a token for {lesson.objective.name}, got sums; give arrays"
                raise BadInput(msg)
            row = np.full(len(own), row / len(own))
        if row.shape != own.shape:
            raise BadInput(f"ref_{name}: expected {len(own)} tokens or their sum, got shape {row.shape}")
        found.append(row)
    return found


def _table(rows: Sequence[Floats]) -> tuple[Floats, NDArray[np.bool_]]:
    """Ragged rows as (B, T) and a mask; 0 where there is none."""
    known = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    table = np.zeros(known.shape)
    table[known] = np.concatenate(rows)
    return table, known
