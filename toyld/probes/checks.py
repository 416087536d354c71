"""What to know about pairs before training on them: cheap checks that need no model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from toyld.probes.preference import Preferences, Row, read_preference

__all__ = ["check_pairs", "faults"]


def _named(ids: Iterable[str]) -> str:
    names = sorted(set(ids), key=lambda name: (len(name), name))
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def check_pairs(source: object, /, *, id_key: str | None = None) -> list[dict[str, str]]:
    """Findings {code, text} on preference rows, in the form of the tables' notes; an empty list where there is none.

    refused-rows: cannot be used (an empty side, equal sides, no prompt, …); duplicate-pairs: a pair given more than
    once; contradictory-pairs: a pair that also comes with its sides exchanged; prompt-repeated: both responses begin
    with the prompt that is also given apart, so a trainer would show it twice; shared-start: pairs whose responses
    begin with the same word, where the two pushes meet at the same context and partly cancel. White space at the ends
    is ignored.

    >>> rows = [{"prompt": "Sky?", "chosen": a, "rejected": b} for a, b in ("xy", "yx", "zw", "zz")]
    >>> [finding["code"] for finding in check_pairs(rows)]
    ['refused-rows', 'contradictory-pairs']
    """
    data = read_preference(source, on_bad="skip", id_key=id_key)
    found: list[dict[str, str]] = []
    size = len(data) + len(data.refused)
    for code, ids, what in faults(data):
        found.append({"code": code, "text": f"{len(ids)} of {size} rows {what}: {_named(ids)}"})
        if code == "refused-rows":
            found[-1]["text"] += f" (row {data.refused[0][0]}: {data.refused[0][1]})"
    return found


def faults(data: Preferences, /) -> list[tuple[str, list[str], str]]:
    """(code, rows, what) of every finding of `check_pairs`, the rows by their ids (refused ones by their numbers).

    >>> data = read_preference([{"prompt": "Sky?", "chosen": "Is blue.", "rejected": "Is red."}])
    >>> faults(data)
    [('shared-start', ['0'], 'begin both responses with the same word')]
    """
    found = [("refused-rows", [str(number) for number, _ in data.refused], "cannot be used")]
    pairs: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in data.rows:
        pairs[_key(row)].append(row.id)
    found.append(("duplicate-pairs", [name for ids in pairs.values() for name in ids[1:]], "repeat an earlier pair"))
    turned = [name for (prompt, a, b), ids in pairs.items() if (prompt, b, a) in pairs for name in ids]
    found.append(("contradictory-pairs", turned, "also come with chosen and rejected exchanged"))
    twice = [row.id for row in data.rows if _repeats(row)]
    found.append(("prompt-repeated", twice, "begin both responses with the prompt that is given apart"))
    same = [row.id for row in data.rows if row.chosen.split(None, 1)[0] == row.rejected.split(None, 1)[0]]
    found.append(("shared-start", same, "begin both responses with the same word"))
    return [one for one in found if one[1]]


def _key(row: Row) -> tuple[str, str, str]:
    return row.prompt.strip(), row.chosen.strip(), row.rejected.strip()


def _repeats(row: Row) -> bool:
    if row.messages is not None:
        prompt = row.messages["prompt"]
        return all(row.messages[side][: len(prompt)] == prompt for side in ("chosen", "rejected"))
    return all(side.strip().startswith(row.prompt.strip()) for side in (row.chosen, row.rejected))
