"""Which responses share the beginning of their tokens, so that it is computed once: prompts, mostly.

A group is responses whose contexts `ids[:start]` agree on their first c tokens: n forwards of the whole become c tokens
once and the rest n times, a saving of (n − 1) c tokens. Responses behind the same prompt may begin at different tokens
(one was merged over the boundary); then c is what all of them have in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from toyld.llm.encode import Encoded

__all__ = ["Group", "groups", "saving"]

Run = tuple[int, int, int, tuple[tuple[int, int, int], ...]]

LEAST = 0.1  # of a group's tokens that it must save: two forwards in place of one have a price


@dataclass(frozen=True)
class Group:
    """`rows` of the list that was given, whose contexts agree on their first `common` tokens."""

    rows: tuple[int, ...]
    common: int

    def split(self, size: int, /) -> list[Group]:
        """At most `size` rows a piece."""
        return [Group(self.rows[i : i + size], self.common) for i in range(0, len(self.rows), size)]


def groups(encoded: Sequence[Encoded], /) -> list[Group]:
    """The partition that leaves the fewest tokens to compute, among those that a tree of common beginnings offers.

    In order of the first row; within a group the shorter responses come first. A response that shares too little is a
    group of its own, whose context is all its own.

    >>> same = [Encoded((1, 5, 6, 7, 8), 3), Encoded((1, 5, 9, 9), 2), Encoded((1, 5, 6, 4), 3), Encoded((2, 3, 4), 2)]
    >>> groups(same)
    [Group(rows=(1, 2, 0), common=2), Group(rows=(3,), common=2)]
    """
    order = sorted(range(len(encoded)), key=lambda i: encoded[i].ids[: encoded[i].start])
    contexts = [encoded[i].ids[: encoded[i].start] for i in order]
    shared = [_common(a, b) for a, b in itertools.pairwise(contexts)]
    tokens = [0, *itertools.accumulate(len(encoded[i].ids) for i in order)]
    # Runs of neighbours by where they begin and end, each (begin, end, tokens saved, its groups); joined from the
    # longest common beginning to the shortest. What is best for a run is one group or what was best for its halves.
    runs: list[Run] = [(i, i + 1, 0, ((i, i + 1, len(context)),)) for i, context in enumerate(contexts)]
    begins, ends = {run[0]: run for run in runs}, {run[1]: run for run in runs}
    for i in sorted(range(1, len(order)), key=lambda i: -shared[i - 1]):
        left, right, common = ends.pop(i), begins.pop(i), shared[i - 1]
        begin, end = left[0], right[1]
        parts, whole = left[2] + right[2], (end - begin - 1) * common
        if whole > parts and whole >= LEAST * (tokens[end] - tokens[begin]):
            run: Run = (begin, end, whole, ((begin, end, common),))
        else:
            run = (begin, end, parts, left[3] + right[3])
        begins[begin] = ends[end] = run
    found = [
        Group(tuple(sorted((order[i] for i in range(a, b)), key=lambda i: (len(encoded[i].ids), i))), common)
        for run in begins.values()
        for a, b, common in run[3]
    ]
    return sorted(found, key=lambda group: min(group.rows))


def saving(found: Sequence[Group], encoded: Sequence[Encoded], /) -> float:
    """The share of all tokens that need not be computed."""
    spared = sum((len(group.rows) - 1) * group.common for group in found)
    return spared / sum(len(item.ids) for item in encoded)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
