"""The data that `toyld probe` scores: a probe set's file or preference pairs, and which rows of them were left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toyld.checked import BadInput
from toyld.llm.opened import opened
from toyld.probes import Preferences, ProbeSet, Row, make, read_preference, resolve
from toyld.probes.preference import records

__all__ = ["LeftOut", "read_pairs", "read_probes"]

# Reasons of toyld.probes in fewer words; any other is given as it is, less what to do.
_REASONS = (
    (re.compile(r"expected two responses, got an empty (chosen|rejected) "), r"\1 is empty"),
    (re.compile(r"expected two responses, got chosen = rejected = "), "chosen and rejected are empty"),
    (re.compile(r"expected two different responses, got "), "chosen equals rejected"),
    (re.compile(r"expected one JSON object a line, got "), "not valid JSON"),
)
_MANY = "a response is not one message of the assistant"


@dataclass(frozen=True)
class LeftOut:
    """Rows of the data that cannot be scored, as (row, reason), rows counted from 0; how many rows there are.

    >>> print(LeftOut(((3, "chosen is empty"), (5, "chosen equals rejected")), 6))
    2 of 6 rows left out: row 3, chosen is empty; row 5, chosen equals rejected (rows counted from 0)
    """

    rows: tuple[tuple[int, str], ...]
    of: int

    @classmethod
    def named(cls, refused: Iterable[tuple[int, str]], of: int, /) -> LeftOut:
        """From (row, a line as `toyld.probes` has it), in the rows' order and in fewer words."""
        return cls(tuple(sorted((number, _reason(words)) for number, words in refused)), of)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        shown = "; ".join(f"row {row}, {reason}" for row, reason in self.rows[:5])
        more = f"; and {len(self) - 5} more" if len(self) > 5 else ""
        return f"{len(self)} of {self.of} rows left out: {shown}{more} (rows counted from 0)"


def read_pairs(source: Any, /) -> tuple[Preferences, LeftOut]:
    """The pairs of a source (see `toyld.llm.opened`) behind whose prompts any text can be scored; the rows left out.

    >>> rows = [{"prompt": "Sky?", "chosen": "Blue.", "rejected": text} for text in ("Green.", "")]
    >>> pairs, left_out = read_pairs(rows)
    >>> len(pairs), left_out.rows
    (1, ((1, 'rejected is empty'),))
    """
    pairs = read_preference(opened(source), on_bad="skip")
    rows = tuple(row for row in pairs.rows if _one_answer(row))
    if not rows:
        msg = "expected conversations whose responses are one message of the assistant, got none"
        raise BadInput(msg + "; give prompt, chosen and rejected as text")
    bad = [*pairs.refused, *((int(row.id), _MANY) for row in pairs.rows if not _one_answer(row))]  # ids are numbers
    return Preferences(rows, pairs.refused, pairs.sha256), LeftOut.named(bad, len(pairs) + len(pairs.refused))


def read_probes(
    data: str | Path, /, *, kinds: Sequence[str] = (), held_out: bool = False, n: int = 128, seed: int = 0
) -> tuple[ProbeSet, LeftOut]:
    """What to score, and which rows of the data are of no use: a ProbeSet's file, or preference pairs.

    `kinds`: keys or short names of `toyld.probes.KINDS`; by default chosen, rejected, every kind that the data carry,
    another prompt's answer and permuted words. `held_out`: the run does not train on these pairs. `n`: examples at
    most, a random sample by `seed`.

    >>> import json, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pairs.jsonl"
    >>> row = {"prompt": "Sky?", "chosen": "It is blue.", "rejected": "Green."}
    >>> _ = path.write_text(json.dumps(row) + "\\n" + json.dumps(row | {"chosen": ""}))
    >>> probes, left_out = read_probes(path)
    >>> list(probes.responses), left_out.rows
    (['chosen', 'rejected', 'random_permute'], ((1, 'chosen is empty'),))
    """
    if n < 1:
        raise BadInput(f"--n: expected at least 1, got {n}")
    wanted = {"chosen", *resolve(kinds, held_out=held_out)}
    source = opened(data)
    first = next(iter(records(source)), None)
    if isinstance(first, dict) and "probe_set" in first:
        probes = ProbeSet.from_jsonl(data)
        left_out = LeftOut((), len(probes))
        probes = probes.take(min(n, len(probes)))
    else:
        kept, left_out = read_pairs(source)
        extra = wanted if kinds else {"other_prompt", "permuted", *(key for row in kept.rows for key in row.extra)}
        probes = make(kept, extra, seed=seed, n=min(n, len(kept)), held_out=held_out)
    if kinds:
        if absent := sorted(wanted - set(probes.responses)):
            why = probes.missing.get(absent[0], "the data hold none")
            raise BadInput(f"--kinds: expected responses of kind {absent[0]}, got none ({why}); leave it out")
        probes = replace(probes, responses={key: texts for key, texts in probes.responses.items() if key in wanted})
    return probes, left_out


def _one_answer(row: Row) -> bool:
    """Whether other texts can take the response's place: it is text, or one message of the assistant."""
    replies = [row.messages[side] for side in ("chosen", "rejected")] if row.messages else []
    return all(len(reply) == 1 and reply[0]["role"] == "assistant" for reply in replies)


def _reason(words: str) -> str:
    for pattern, short in _REASONS:
        if match := pattern.match(words):
            return match.expand(short)
    return words.rpartition(": ")[0] or words
