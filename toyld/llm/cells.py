"""Every response of a probe set as tokens, and its place in the table: what is scored at each evaluation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.llm.encode import Encoded, encode
from toyld.llm.score import Scores
from toyld.probes import ProbeSet

__all__ = ["Cells", "cells"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """Encoded responses and the (kind, example) of each; shape = how many kinds and examples there are."""

    kinds: tuple[str, ...]
    examples: tuple[str, ...]
    items: list[Encoded]
    where: list[tuple[int, int]]

    @property
    def n_cut(self) -> int:
        """How many responses lost their end."""
        return sum(item.cut > 0 for item in self.items)

    @property
    def rows(self) -> list[int]:
        """The example of each response, by number."""
        return [example for _, example in self.where]

    @property
    def fingerprint(self) -> str:
        """Of all tokens and boundaries."""
        tokens = [[item.start, *item.ids] for item in self.items]
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]

    def of(self, kind: str, /) -> list[int]:
        """The places of one kind's responses in `items`."""
        return [i for i, (k, _) in enumerate(self.where) if self.kinds[k] == kind]

    def spread(self, values: Floats, /) -> Floats:
        """(N,) into (kind, example); NaN where there is no response."""
        out = np.full((len(self.kinds), len(self.examples)), np.nan)
        out[tuple(np.array(self.where).T)] = values
        return out

    def table(self, scores: Scores, reference: Floats | None = None, /) -> dict[str, Floats]:
        """One evaluation's variables, as `toyld.trajectory.trajectory` takes them; reference: (kind, example)."""
        out = {name: self.spread(values)[None, None] for name, values in vars(scores).items()}
        out["n_tokens"] = out["n_tokens"][:, 0]
        return out if reference is None else {**out, "ref_logp": reference[None]}


def cells(tokenizer: Any, probes: ProbeSet, /, *, max_length: int = 512, eos: bool = True) -> Cells:
    """The responses of a probe set through a tokenizer; see `encode` for `max_length` and `eos`.

    Raises:
        BadInput: what `encode` refuses, kind and example named.

    >>> class Letters:
    ...     eos_token_id = 0
    ...     def __call__(self, text, add_special_tokens=True):
    ...         return {"input_ids": [ord(c) for c in text]}
    >>> found = cells(Letters(), ProbeSet(("a",), ("x",), {"chosen": ("yz",)}), eos=False)
    >>> found.items, found.where
    ([Encoded(ids=(120, 121, 122), start=1, cut=0)], [(0, 0)])
    """
    row = {example: i for i, example in enumerate(probes.ids)}
    kind = {name: k for k, name in enumerate(probes.responses)}
    items, where = [], []
    for one in probes.items():
        prompt = one.prompt if one.messages is None else list(one.messages)
        try:
            items += encode(tokenizer, [prompt], [one.response], max_length=max_length, eos=eos)
        except BadInput as bad:
            raise BadInput(f"{one.kind} of example {one.example}, {bad}") from None
        where.append((kind[one.kind], row[one.example]))
    return Cells(tuple(kind), tuple(row), items, where)
