"""What the responses of a file are, told by their content: whose words, borrowed from where, empty, unparsed (F17).

The paper's released probing sets are read here as they lie, and so is any other file of the same layout. What a kind is
called says little: "random English words" (§4's y_rnd, released as `random_nonhum`) hold exactly the words of a natural
response, `irr_test`. A *word* is a longest stretch without white space (`str.split`). Splitting at single spaces
instead, as some counts do, makes an empty word of every double space and one word of two around a line break: then 474
of the 500 rows of `random_permute` hold the words of chosen, where by words all 500 do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toyld.probes.errors import PreferenceError, refuse, show
from toyld.probes.kinds import KINDS
from toyld.probes.preference import plain_text, records
from toyld.probes.probeset import ProbeSet

__all__ = ["UNPARSED", "Audit", "Facts", "audit", "compare"]

UNPARSED = "@@@"  # what separates the parts of an answer in the authors' own rephrases
OWN = "a text of its own"
_RANDOM = ("random_nonhum", "random_words")  # said to be random words
_SAID = {
    "permutation of": "the words of {} in some order",
    "beginning of": "the first words of {}",
    "borrowed": "{} of another row",
}


@dataclass(frozen=True)
class Facts:
    """One kind of a file. texts: how many rows have one; empty: rows without; words: their mean number;
    distinct: different texts; spaced: texts that begin with white space; unparsed: texts that hold '@@@';
    relations: (relation, of which kind) → rows, where relation is one of "copy of" (equal words), "permutation of"
    (the same words in another order), "beginning of" (a proper one), "borrowed" (verbatim from another row).
    """

    key: str
    texts: int
    empty: tuple[int, ...]
    words: float
    distinct: int
    spaced: int
    unparsed: int
    relations: Mapping[tuple[str, str], tuple[int, ...]]

    @property
    def relation(self) -> tuple[str, str] | None:
        """What at least half of the texts are, as a key of `relations`; None where that is nothing.

        A permutation that happens to keep the order counts as one, where more texts change it.
        """
        counts = {key: len(rows) for key, rows in self.relations.items()}
        for (relation, other), count in list(counts.items()):
            kept = counts.get(("copy of", other), 0)
            if relation == "permutation of" and count > kept:
                counts[relation, other] += kept
        best = max(counts, key=counts.__getitem__, default=None)
        return None if best is None or 2 * counts[best] < self.texts else best

    @property
    def what(self) -> str:
        """`relation` in words: "permutation of chosen", "borrowed chosen", … or `OWN`."""
        return OWN if self.relation is None else " ".join(self.relation)


@dataclass(frozen=True)
class Audit:
    """A file's kinds as `Facts`, in the order of `KINDS`; findings {code, text} in the form of `check_pairs`."""

    rows: int
    kinds: Mapping[str, Facts]
    findings: tuple[Mapping[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{'kind':20}{'texts':>6}{'words':>7}{'different':>10}  what they are"]
        for facts in self.kinds.values():
            number = f"{facts.key:20}{facts.texts:>6}{facts.words:>7.1f}{facts.distinct:>10}  {facts.what}"
            lines.append(number)
        return "\n".join([*lines, *(f"{finding['code']}: {finding['text']}" for finding in self.findings)])


def _rows(source: Any) -> Iterator[dict[str, str]]:
    """Texts by kind, row by row; "" where there is none."""
    if isinstance(source, ProbeSet):
        for i in range(len(source)):
            yield {key: texts[i] or "" for key, texts in source.responses.items()}
        return
    for number, record in enumerate(records(source)):
        try:
            if isinstance(record, PreferenceError):
                raise record
            if not isinstance(record, Mapping):
                refuse("a row as a mapping of columns", show(record), "pass one split")
            yield {
                key: "" if record.get(key) is None else plain_text(record[key], key) for key in KINDS if key in record
            }
        except PreferenceError as error:
            raise PreferenceError(f"row {number}: {error}") from None


def audit(source: object, /) -> Audit:
    """What every kind of a file is, by content alone: of `ProbeSet`s, rows, or the path of the released JSON lines.

    Relations are looked for between a kind and those before it in `KINDS`, so that a permutation of chosen is not told
    twice; white space at the ends is ignored. Findings: empty, unparsed (texts that are no responses), permutation,
    borrowed, copies (a text that says nothing beyond another one), not-random-words (a kind said to be random words
    whose words are those of another kind: F17), shared-start (pairs that begin with the same word), leading-space
    (kinds that begin with white space beside others that do not: their first token behind the prompt is another one).

    Raises:
        PreferenceError: a row that cannot be read; no row with a response.

    >>> texts = ["It is blue.", "No, I am here.", "Ask a map."]
    >>> rows = [{"chosen": a, "irr_train": b, "random_nonhum": " ".join(b.split()[::-1])}
    ...         for a, b in zip(texts, texts[1:] + texts[:1])]
    >>> print(audit(rows))
    kind                 texts  words different  what they are
    chosen                   3    3.3         3  a text of its own
    irr_train                3    3.3         3  borrowed chosen
    random_nonhum            3    3.3         3  permutation of irr_train
    borrowed: irr_train is chosen of another row, in 3 of 3 texts (3 different ones)
    permutation: random_nonhum is the words of irr_train in some order, in 3 of 3 texts
    not-random-words: random_nonhum is said to be random words, and its words are those of irr_train
    """
    rows = list(_rows(source))
    keys = [key for key in KINDS if any(row.get(key, "").strip() for row in rows)]
    if not keys:
        refuse(f"rows with responses among {', '.join(KINDS)}", f"{len(rows)} without", "rename the columns")
    columns = {key: _Column([row.get(key, "") for row in rows]) for key in keys}
    kinds = {key: columns[key].facts(key, {k: columns[k] for k in keys[:i]}) for i, key in enumerate(keys)}
    return Audit(len(rows), kinds, tuple(_findings(kinds, columns)))


class _Column:
    """The texts of one kind, and their words in order, counted, and where each text stands."""

    def __init__(self, texts: list[str]) -> None:
        self.raw = texts
        self.texts = [text.strip() for text in texts]
        self.words = [text.split() for text in texts]
        self.bags = [Counter(words) for words in self.words]
        self.homes: dict[str, set[int]] = {}
        for i, text in enumerate(self.texts):
            self.homes.setdefault(text, set()).add(i)

    def facts(self, key: str, earlier: Mapping[str, _Column]) -> Facts:
        there = [i for i, text in enumerate(self.texts) if text]
        found = {(how, name): at for name, other in earlier.items() for how, at in self._relations(other, there) if at}
        return Facts(
            key,
            len(there),
            tuple(i for i, text in enumerate(self.texts) if not text),
            sum(len(self.words[i]) for i in there) / len(there),
            len({self.texts[i] for i in there}),
            sum(self.raw[i][0].isspace() for i in there),
            sum(UNPARSED in self.texts[i] for i in there),
            found,
        )

    def _relations(self, other: _Column, there: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
        mine, theirs = self.words, other.words
        differ = [i for i in there if mine[i] != theirs[i]]
        yield "copy of", tuple(i for i in there if mine[i] == theirs[i])
        yield "permutation of", tuple(i for i in differ if self.bags[i] == other.bags[i])
        yield "beginning of", tuple(i for i in differ if mine[i] == theirs[i][: len(mine[i])])
        yield "borrowed", tuple(i for i in there if other.homes.get(self.texts[i], set()) - {i})


def _findings(kinds: Mapping[str, Facts], columns: Mapping[str, _Column]) -> Iterator[dict[str, str]]:
    for key, facts in kinds.items():
        size = facts.texts + len(facts.empty)
        if facts.empty:
            yield {
                "code": "empty",
                "text": f"{key} has no text in {len(facts.empty)} of {size} rows{_some(facts.empty)}",
            }
        if facts.unparsed:
            text = f"{key} holds {UNPARSED} in {facts.unparsed} of {facts.texts} texts: unparsed output, no response"
            yield {"code": "unparsed", "text": text}
        for (relation, other), at in facts.relations.items():
            if relation == "copy of":
                text = f"{key} has the words of {other}, in the same order, in {len(at)} of {facts.texts} texts"
                yield {"code": "copies", "text": text + _some(at)}
            elif (relation, other) == facts.relation:
                more = len(facts.relations.get(("copy of", other), ())) if relation == "permutation of" else 0
                text = f"{key} is {_SAID[relation].format(other)}, in {len(at) + more} of {facts.texts} texts"
                text += f" ({facts.distinct} different ones)" if relation == "borrowed" else ""
                yield {"code": relation.removesuffix(" of"), "text": text}
                if key in _RANDOM:
                    text = f"{key} is said to be random words, and its words are those of {other}"
                    yield {"code": "not-random-words", "text": text}
    if "chosen" in columns and "rejected" in columns:
        both = zip(columns["chosen"].words, columns["rejected"].words, strict=True)
        same = tuple(i for i, (a, b) in enumerate(both) if a and b and a[0] == b[0])
        if same:
            text = f"chosen and rejected begin with the same word in {len(same)} rows{_some(same)}"
            yield {"code": "shared-start", "text": text}
    spaced = [key for key, facts in kinds.items() if 2 * facts.spaced > facts.texts]
    bare = [key for key in kinds if key not in spaced]
    if spaced and bare:
        text = f"most texts of {', '.join(spaced)} begin with white space, most of {', '.join(bare)} do not: "
        yield {"code": "leading-space", "text": text + "behind one prompt their first tokens differ for that alone"}


def _some(rows: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f" (row{'s' * (len(rows) > 1)} {shown}{', …' if len(rows) > 5 else ''}, from 0)"


def compare(theirs: Audit, ours: Audit, /) -> tuple[tuple[str, str, str, bool], ...]:
    """(kind, what theirs is, what ours is, whether that is the same) for the kinds that both hold.

    >>> rows = [{"chosen": "a b", "random_permute": "b a"}, {"chosen": "c d", "random_permute": "d c"}]
    >>> compare(audit(rows), audit([row | {"random_permute": "e"} for row in rows]))[1]
    ('random_permute', 'permutation of chosen', 'a text of its own', False)
    """
    both = [key for key in theirs.kinds if key in ours.kinds]
    return tuple(
        (k, theirs.kinds[k].what, ours.kinds[k].what, theirs.kinds[k].what == ours.kinds[k].what) for k in both
    )
