"""Each response with its prompt in a row of its own, padded on the right: what every causal language model can do.

Padded lengths are multiples of a number (at most the model's last position) and batches have a fixed number of rows, so
that the shape in which a response is scored depends on its own length alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.llm.encode import Encoded
from toyld.llm.reader import Reader
from toyld.llm.wanted import Wanted

__all__ = ["run"]

Found = list[tuple[int, NDArray[np.float64]]]


def run(
    reader: Reader, encoded: Sequence[Encoded], rows: Sequence[int], /, *, size: int, multiple: int, room: int | None
) -> Iterator[Found]:
    """(row, (6, tokens)) of the responses of each batch in turn."""
    for batch, length in _batches(encoded, rows, size, multiple, room):
        yield list(zip(batch, _batch(reader, [encoded[i] for i in batch], size, length), strict=True))


def _batches(
    encoded: Sequence[Encoded], rows: Sequence[int], size: int, multiple: int, room: int | None
) -> Iterator[tuple[list[int], int]]:
    """(rows, padded length): rows of one padded length, in order, `size` at a time; never longer than `room`."""
    by_length: dict[int, list[int]] = {}
    for i in rows:
        length = -(-len(encoded[i].ids) // multiple) * multiple
        by_length.setdefault(length if room is None else min(length, room), []).append(i)
    for length, mine in sorted(by_length.items()):
        for first in range(0, len(mine), size):
            yield mine[first : first + size], length


def _batch(reader: Reader, batch: list[Encoded], size: int, length: int) -> list[Any]:
    import torch

    ids = torch.zeros(size, length, dtype=torch.long)
    for b in range(size):
        row = batch[min(b, len(batch) - 1)].ids  # a short batch repeats its last row: the shape stays
        ids[b, : len(row)] = torch.tensor(row)
    # What stands at position t predicts the token at t + 1.
    first = min(item.start for item in batch) - 1
    last = max(len(item.ids) for item in batch) - 1
    wanted = Wanted()
    for b, item in enumerate(batch):
        before = b * (last - first) - first - 1
        wanted.add(range(before + item.start, before + len(item.ids)), item.ids[item.start :])
    found, _ = reader.run(
        lambda head, features: wanted.read(head, [features.flatten(0, 1)]),
        keep=(first, last),
        input_ids=ids.to(reader.device),
        # Nothing is hidden: no token looks ahead to the padding. (Padding that may look at nothing can become nan.)
        attention_mask=torch.ones_like(ids).to(reader.device),
        use_cache=False,
    )
    return list(found)
