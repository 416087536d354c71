"""Preference pairs from plain texts, where nobody has judged anything: the true continuation of a text is preferred.

    python -c "from toyld.llm.stories import stories, write_rows; write_rows('pairs.jsonl', stories('texts.json'))"

The rejected response is how another text goes on at the same place, so both are good language and only one of them fits
the prompt; or what a model itself writes there. The first is off-policy, the second on-policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from toyld.checked import BadInput
from toyld.llm.opened import opened
from toyld.llm.sources import write_rows
from toyld.probes import Row
from toyld.probes.preference import records
from toyld.probes.recipes import Ring, draws

__all__ = ["sentences", "stories", "write_rows"]

# An end: its mark, closing quotes; behind it the text's end, or white space and no small letter ('"Why?" she asked.').
_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?…]+[\"'”’)]*(?=\s*\Z|\s+[^\sa-zß-öø-ÿ])")


def sentences(text: str, /) -> list[int]:
    """Where sentences end, as places in the text; the rest behind the last one is no sentence.

    >>> text = 'He ran. "Why?" she asked. Mr. Fox hid! And'
    >>> [text[a:b] for a, b in zip([0, *sentences(text)], sentences(text))]
    ['He ran.', ' "Why?" she asked.', ' Mr. Fox hid!']
    """
    return [match.end() for match in _END.finditer(text)]


def _cut(text: str, words: int) -> int | None:
    """The end of a sentence whose number of words is nearest to `words`, the shorter of two; None without an end."""
    best, count, place = None, 0, 0
    for match in _END.finditer(text):
        count += len(text[place : match.end()].split())  # an end is followed by white space
        place = match.end()
        if best is None or abs(count - words) < abs(best[1] - words):
            best = place, count
        if count >= words:
            break
    return None if best is None else best[0]


def stories(
    texts: Any,
    /,
    *,
    n: int | None = None,
    seed: int = 0,
    sampler: Callable[[str], str] | None = None,
    prompt: int = 25,
    response: int = 40,
) -> list[dict[str, str]]:
    """Rows {"id", "prompt", "chosen", "rejected"} of plain texts, in the texts' order; the same by the same seed.

    texts: strings, rows with `text`, or the path of such (a JSON list of strings, JSON lines, Parquet). Prompt: the
    first sentences, near to `prompt` words; chosen: those that follow, near to `response` words, with the white space
    before them. Rejected: the chosen continuation of another text, each given once (white space before it as chosen's,
    so that it gives nothing away); with a sampler (`toyld.probes.sampler_from_model(model, tokenizer)`), what that
    writes after the prompt, cut at the end of a sentence likewise. n: a random sample of the texts, where fewer are the
    first of more. The id is the text's number. Left out: texts too short for both parts, of a prompt that an earlier
    text had, and rows where the sampler wrote nothing or chosen again.

    Raises:
        BadInput: no strings; fewer usable texts than `n`; a single one without a sampler.

    >>> told = [f"{name} ran home. {name} slept. The end." for name in ("Ann", "Bob", "Cid")]
    >>> stories(told, prompt=3, response=2)[0]
    {'id': '0', 'prompt': 'Ann ran home.', 'chosen': ' Ann slept.', 'rejected': ' Cid slept.'}
    """
    for name, value in (("prompt", prompt), ("response", response), ("n", 1 if n is None else n)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"{name}: expected a whole number of at least 1, got {value!r}")
    rows = list(_parts(texts, prompt, response))
    if n is not None:
        if n > len(rows):
            raise BadInput(f"n: expected at most the {len(rows)} texts that are long enough, got {n}; ask for fewer")
        drawn = sorted(rows, key=lambda row: draws(seed, "story", row.id, count=1))[:n]
        rows = sorted(drawn, key=lambda row: int(row.id))
    ring = Ring(rows, seed=seed, kind="another story")
    out = []
    for row in rows:
        lead = row.chosen[: len(row.chosen) - len(row.chosen.lstrip())]
        if sampler is not None:
            said = sampler(row.prompt)
            end = _cut(said, response)
            other = said if end is None else said[:end]
        else:
            donor = ring.next(row.id, lambda other, row=row: other.chosen.split() != row.chosen.split())  # type: ignore[misc]
            other = "" if donor is None else lead + donor.chosen.lstrip()
        if other.strip() and other.split() != row.chosen.split():
            out.append({"id": row.id, "prompt": row.prompt, "chosen": row.chosen, "rejected": other})
    if not out:
        raise BadInput(f"expected at least two different texts of {prompt} and {response} words, got {len(rows)}")
    return out


def _parts(texts: Any, prompt: int, response: int) -> Iterable[Row]:
    """Every text that is long enough and whose prompt is new: its number, prompt and continuation."""
    seen = set()
    for number, record in enumerate(records(opened(texts))):
        text = record.get("text") if isinstance(record, dict) else record
        if not isinstance(text, str):
            got = str(record) if isinstance(record, BadInput) else ascii(record)[:60]
            raise BadInput(f"text {number}: expected a string, or a row with text, got {got}; convert it")
        first = _cut(text, prompt)
        last = None if first is None else _cut(text[first:], response)
        if first is None or last is None:
            continue
        start, chosen = text[:first], text[first : first + last]
        short = 2 * len(chosen.split()) < response or 2 * len(start.split()) < prompt
        if not short and " ".join(start.split()) not in seen:
            seen.add(" ".join(start.split()))
            yield Row(str(number), start, chosen, "")
