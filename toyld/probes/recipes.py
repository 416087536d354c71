"""How a response is made from others: shuffled, cut, drawn, borrowed; the same on every machine and in every order.

Every draw is a stretch of SHAKE-256 of the seed and of names (the kind, the example), never the state of a generator:
what one example gets depends neither on which others are asked for nor on the order, and no library can change it.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

from toyld.probes.errors import refuse, show
from toyld.probes.preference import Row

__all__ = ["Ring", "draws", "permute_words", "random_words", "truncate"]

_WORD = re.compile(r"\S+")


def draws(seed: int, *names: str | int, count: int) -> list[int]:
    """`count` uniform integers in [0, 2^64) named by the seed and the names.

    >>> draws(0, "a", "7", count=2) == draws(0, "a", "7", count=3)[:2]
    True
    """
    name = "\0".join(str(part).replace("\\", "\\\\").replace("\0", "\\0") for part in (seed, *names))
    stream = hashlib.shake_256(name.encode()).digest(8 * count)
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "big") for i in range(count)]


def permute_words(text: str, /, *, seed: int, key: Sequence[str]) -> str:
    """The words of a text in a random order that differs from theirs; white space stays where it is.

    Every other order is equally likely. Raises PreferenceError where no order differs: fewer than two distinct words.

    >>> permute_words(" one two", seed=0, key=("random_permute", "0"))
    ' two one'
    """
    words = _WORD.findall(text)
    if len(set(words)) < 2:
        refuse("two different words to permute", show(text), "leave this kind out for this example")
    shuffled, attempt = words, 0
    while shuffled == words:
        ranks = draws(seed, *key, attempt, count=len(words))
        shuffled = [words[i] for i in sorted(range(len(words)), key=ranks.__getitem__)]
        attempt += 1
    remaining = iter(shuffled)
    return _WORD.sub(lambda _: next(remaining), text)


def truncate(text: str, fraction: float, /) -> str:
    """The first ⌊fraction · words⌋ words of a text, white space before and between them included.

    Raises PreferenceError where nothing would be left, or nothing cut off.

    >>> truncate(" a b c d e", 0.5)
    ' a b'
    """
    ends = [match.end() for match in _WORD.finditer(text)]
    keep = int(fraction * len(ends))
    if not 0 < keep < len(ends):
        what = "truncated to nothing" if keep <= 0 else "nothing cut off"
        refuse("a part of the words left", f"{what} ({fraction:g} of {len(ends)} words)", "leave this kind out")
    return text[: ends[keep - 1]]


def random_words(text: str, /, *, vocabulary: Sequence[str], seed: int, key: Sequence[str]) -> str:
    """As many words as `text` has, uniform from `vocabulary`, not all its own; the white space stays where it is.

    Raises PreferenceError where the vocabulary holds no other word than the text's first.

    >>> random_words("a b", vocabulary=["x"], seed=0, key=("random_words", "0"))
    'x x'
    """
    words = _WORD.findall(text)
    if not set(vocabulary) - set(words[:1]):
        refuse("a vocabulary with another word than the text's first", show(list(vocabulary)), "add words")
    drawn, attempt = words, 0
    while words and drawn == words:
        drawn = [vocabulary[i % len(vocabulary)] for i in draws(seed, *key, attempt, count=len(words))]
        attempt += 1
    remaining = iter(drawn)
    return _WORD.sub(lambda _: next(remaining), text)


class Ring:
    """Donors of answers on a circle, each at a place named by the seed, the kind and its id.

    An example stands at its own place and takes the next donor clockwise that is allowed. Where the examples are the
    donors, each gives once (a cyclic derangement) as long as the next one is allowed. A row added to the data changes
    the donor of its neighbour alone.

    >>> ring = Ring([Row(str(i), "?", text, "no") for i, text in enumerate("ab")], seed=0, kind="irr_train")
    >>> ring.next("0", lambda row: row.chosen != "a").chosen, ring.next("1", lambda row: False)
    ('b', None)
    """

    def __init__(self, donors: Sequence[Row], /, *, seed: int, kind: str) -> None:
        self._seed, self._kind, self._donors = seed, kind, donors
        self._places = sorted((self._place(row.id), i) for i, row in enumerate(donors))

    def _place(self, name: str) -> int:
        return draws(self._seed, self._kind, name, count=1)[0]

    def next(self, example: str, allowed: Callable[[Row], bool], /) -> Row | None:
        """The first allowed donor after the example's own place; None where there is none."""
        size = len(self._donors)
        start = bisect_right(self._places, (self._place(example), size))
        around = (self._donors[self._places[(start + i) % size][1]] for i in range(size))
        return next(filter(allowed, around), None)
