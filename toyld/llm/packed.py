"""Responses behind a shared context in one row: [context | r1 | r2 | …], by a mask.

Positions begin again behind the context for each response, and a token attends to what is before it in the context and
in its own response: the same numbers as with each response alone, for models that take positions and a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from toyld.llm.encode import Encoded
from toyld.llm.padded import Found
from toyld.llm.reader import Reader
from toyld.llm.shared import Group
from toyld.llm.wanted import Wanted

__all__ = ["run"]

Tensor = Any


def run(reader: Reader, encoded: Sequence[Encoded], found: Sequence[Group], /, *, size: int) -> Iterator[Found]:
    """(row, (6, tokens)) of the responses of each batch in turn: at most `size` of them."""
    batch: list[Group] = []
    for piece in (piece for group in found for piece in group.split(size)):
        if batch and sum(len(group.rows) for group in (*batch, piece)) > size:
            yield _batch(reader, encoded, batch)
            batch = []
        batch.append(piece)
    if batch:
        yield _batch(reader, encoded, batch)


def _batch(reader: Reader, encoded: Sequence[Encoded], batch: list[Group]) -> Found:
    import torch

    packs = [_pack([encoded[i] for i in group.rows], group.common) for group in batch]
    longest = max(len(ids) for ids, _, _ in packs)
    ids, places = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(2))
    part = torch.full_like(ids, -1)  # padding sees contexts and padding, and nobody sees it
    wanted = Wanted()
    for g, (group, (tokens, at, parts)) in enumerate(zip(batch, packs, strict=True)):
        ids[g, : len(tokens)], places[g, : len(tokens)] = torch.tensor(tokens), torch.tensor(at)
        part[g, : len(tokens)] = torch.tensor(parts)
        begin = g * longest + group.common
        for i in group.rows:
            item, common = encoded[i], group.common
            at = [
                g * longest + common - 1 if t == common else begin + t - common - 1
                for t in range(item.start, len(item.ids))
            ]
            wanted.add(at, item.ids[item.start :])
            begin += len(item.ids) - 1 - common
    numbers, _ = reader.run(
        lambda head, features: wanted.read(head, [features.flatten(0, 1)]),
        keep=(0, longest),
        input_ids=ids.to(reader.device),
        attention_mask=_mask(reader, part.to(reader.device)),
        position_ids=places.to(reader.device),
        use_cache=False,
    )
    return list(zip((i for group in batch for i in group.rows), numbers, strict=True))


def _pack(items: list[Encoded], common: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, positions, and parts (0 = context) of a row; the last token of a response predicts nothing asked for."""
    tokens, at, parts = list(items[0].ids[:common]), list(range(common)), [0] * common
    for k, item in enumerate(items, start=1):
        tokens += item.ids[common:-1]
        at += range(common, len(item.ids) - 1)
        parts += [k] * (len(item.ids) - 1 - common)
    return tokens, at, parts


def _mask(reader: Reader, part: Tensor) -> Tensor:
    """(B, 1, L, L): who may attend to whom; as numbers to add where attention is written out."""
    import torch

    length = part.shape[1]
    seen = (part[:, None, :] == part[:, :, None]) | (part == 0)[:, None, :]
    seen = (seen & torch.ones(length, length, dtype=torch.bool, device=part.device).tril())[:, None]
    if reader.config._attn_implementation == "sdpa":
        return seen
    dtype = reader.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=part.device).masked_fill_(~seen, torch.finfo(dtype).min)
