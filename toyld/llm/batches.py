"""Rows as batches for TRL's trainers, cut as the probes are: what is too long loses the beginning of its prompt first.

TRL itself cuts at the end of the row and so trains prompts without their answers; the released code of the paper keeps
the end of the prompt, as here. The tokens are TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toyld.llm.encode import Encoded, _cut

__all__ = ["Answers", "PairsOfAnswers"]

IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """Collates {"input_ids", "labels"} for SFTTrainer: labels are IGNORED on the prompt."""

    longest: int
    pad: int
    bos: int | None

    def __call__(self, rows: Sequence[Mapping[str, Any]], /) -> dict[str, Any]:
        """input_ids, attention_mask and labels, (B, T) each."""
        batch = _padded([self.cut(row["input_ids"], _prompt(row["labels"])) for row in rows], self.pad)
        taught = batch.pop("completion_mask")
        return {**batch, "labels": batch["input_ids"].masked_fill(taught == 0, IGNORED)}

    def cut(self, ids: Sequence[int], start: int, /) -> Encoded:
        """A prompt of `start` tokens with its answer, at most `longest` of them."""
        return _cut(list(ids), start, self.longest, self.bos)


@dataclass(frozen=True)
class PairsOfAnswers(Answers):
    """Collates {"prompt_ids", "chosen_ids", "rejected_ids"} for DPOTrainer: the chosen rows, then the rejected ones."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], /) -> dict[str, Any]:
        """input_ids, attention_mask and completion_mask, (2B, T) each."""
        sides = [
            self.cut([*row["prompt_ids"], *row[side]], len(row["prompt_ids"]))
            for side in ("chosen_ids", "rejected_ids")
            for row in rows
        ]
        return _padded(sides, self.pad)


def _prompt(labels: Sequence[int]) -> int:
    return next(i for i, label in enumerate(labels) if label != IGNORED)


def _padded(rows: Sequence[Encoded], pad: int) -> dict[str, Any]:
    import torch

    width = max(len(row.ids) for row in rows)

    def filled(values: Sequence[Sequence[int]], rest: int) -> Any:
        return torch.tensor([[*one, *[rest] * (width - len(one))] for one in values])

    return {
        "input_ids": filled([row.ids for row in rows], pad),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
        "completion_mask": filled([[0] * row.start + [1] * (len(row.ids) - row.start) for row in rows], 0),
    }
