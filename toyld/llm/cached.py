"""Responses behind a shared context by a key-value cache: the context once, then only the responses.

Contexts of several groups stand in one batch, padded on the left, so that the tokens behind them follow without a gap:
distances between tokens are what they are, for windows and for ALiBi, too. Responses are padded on the right. The cache
is read, never grown: a layer's keys are repeated over the responses while that layer computes, and dropped.

The first token of a response that begins where its context ends is predicted by the context's last position: one row
for all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from toyld.llm.encode import Encoded
from toyld.llm.padded import Found
from toyld.llm.reader import Reader
from toyld.llm.shared import Group
from toyld.llm.wanted import Wanted

__all__ = ["Unfit", "run"]

Tensor = Any
LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")  # keys and values of all, or of the last so many, tokens


class Unfit(Exception):
    """Why a model's cache does not serve, in words."""


def run(reader: Reader, encoded: Sequence[Encoded], found: Sequence[Group], /, *, size: int) -> Iterator[Found]:
    """(row, (6, tokens)) of the responses of each batch in turn: at most `size` of them."""
    for batch in _batches(found, size if _takes_padding(reader) else 1):
        last, cache, mask = _contexts(reader, [encoded[group.rows[0]].ids[: group.common] for group in batch])
        common = [group.common for group in batch]
        every = [(p, i) for p, group in enumerate(batch) for i in group.rows]
        for first in range(0, len(every), size):
            some = every[first : first + size]
            rows = [i for _, i in some]
            numbers = _responses(reader, [encoded[i] for i in rows], [p for p, _ in some], common, last, cache, mask)
            yield list(zip(rows, numbers, strict=True))


def _takes_padding(reader: Reader) -> bool:
    """Whether contexts may be padded on the left: positions can be told, and padding that may see nothing stays finite.

    Written-out attention hides by float64's lowest number where it then computes in float32: −inf, and nan.
    """
    eager = reader.config._attn_implementation == "eager"
    return "position_ids" in reader.accepts and not (eager and str(reader.dtype) == "torch.float64")


def _batches(found: Sequence[Group], size: int) -> Iterator[list[Group]]:
    """Groups of `size` responses together, at least one group; contexts of like length stand together."""
    batch: list[Group] = []
    for group in sorted(found, key=lambda group: (group.common, group.rows)):
        if batch and sum(len(g.rows) for g in (*batch, group)) > size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _contexts(reader: Reader, contexts: list[tuple[int, ...]]) -> tuple[Tensor, Any, Tensor]:
    """(features of each context's last token (P, ·), cache, mask (P, C))."""
    import torch

    length = max(map(len, contexts))
    ids = torch.zeros(len(contexts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for p, context in enumerate(contexts):
        ids[p, length - len(context) :] = torch.tensor(context)
        mask[p, length - len(context) :] = 1
    last, output = reader.run(
        lambda _, features: features[:, -1].clone(),  # a view would keep all the others
        keep=(length - 1, length),
        input_ids=ids.to(reader.device),
        attention_mask=mask.to(reader.device),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(reader.device),
        use_cache=True,
    )
    cache = getattr(output, "past_key_values", None)
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", [])}
    if not kinds or not kinds <= set(LAYERS) or getattr(cache, "offloading", False):
        raise Unfit(f"its cache holds {', '.join(sorted(kinds)) or type(cache).__name__}")
    return last, cache, mask


def _responses(
    reader: Reader,
    batch: list[Encoded],
    of: list[int],
    common: list[int],
    last: Tensor,
    cache: Any,
    mask: Tensor,
) -> list[Any]:
    import torch

    # The last token of a response predicts nothing that is asked for.
    lengths = [len(item.ids) - 1 - common[p] for item, p in zip(batch, of, strict=True)]
    longest = max(1, *lengths)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    wanted = Wanted()
    for b, (item, p, n) in enumerate(zip(batch, of, lengths, strict=True)):
        ids[b, :n] = torch.tensor(item.ids[common[p] : -1])
        before = len(common) + b * longest - common[p] - 1
        at = [p if t == common[p] else before + t for t in range(item.start, len(item.ids))]
        wanted.add(at, item.ids[item.start :])
    which = torch.tensor(of)
    # Padding takes the position of the last token: there may be none beyond.
    places = torch.tensor(common)[which, None] + torch.arange(longest)
    places = places.minimum(torch.tensor([len(item.ids) - 1 for item in batch])[:, None])
    found, _ = reader.run(
        lambda head, features: wanted.read(head, [last, features.flatten(0, 1)]),
        keep=(0, longest),
        input_ids=ids.to(reader.device),
        attention_mask=torch.cat([mask[which], torch.ones_like(ids)], 1).to(reader.device),
        position_ids=places.to(reader.device),
        past_key_values=_lent(cache, None if len(common) == 1 else which, len(batch)),
        use_cache=True,
    )
    return list(found)


def _lent(cache: Any, which: Tensor | None, n: int) -> Any:
    """The cache as n rows of a batch see it, each behind the context `which` (None: the only one there is)."""
    lent = copy.copy(cache)
    lent.layers = [_lent_layer(layer, which, n) for layer in cache.layers]
    return lent


def _lent_layer(layer: Any, which: Tensor | None, n: int) -> Any:
    """A layer of a cache whose `update` returns what it would, and keeps nothing."""

    def repeated(x: Tensor) -> Tensor:
        return x.expand(n, *x.shape[1:]) if which is None else x.index_select(0, which.to(x.device))

    def update(keys: Tensor, values: Tensor, *rest: Any, **options: Any) -> Any:
        grown = copy.copy(layer)
        grown.keys, grown.values = repeated(layer.keys), repeated(layer.values)
        return grown.update(keys, values, *rest, **options)

    lent = copy.copy(layer)
    lent.update = update
    return lent
