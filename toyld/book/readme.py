"""The tables of theory/README.md, made from chapters and exercises; `python -m toyld.book.readme` renews them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from toyld.book import chapters, exercises
from toyld.book.chapters import Chapter
from toyld.book.exercises import Sheet
from toyld.files import write_whole

__all__ = ["filled", "main", "tables"]


def _asked(chapter: Chapter) -> str:
    """The first sentence of a chapter's question that asks something, with enough before it to stand alone."""
    parts = re.split(r"(?<!App\.)(?<=[.?!])\s+(?=[A-Z])", chapter.question)
    last = next((i for i, part in enumerate(parts) if part.endswith("?")), len(parts) - 1)
    first = last
    while first and len(" ".join(parts[first : last + 1]).split()) < 12:
        first -= 1
    return " ".join(parts[first : last + 1]).replace("|", "\\|")


def _titles(sheet: Sheet | None, numbers: slice) -> str:
    chosen = sheet.exercises[numbers] if sheet else ()
    return "; ".join(f"{one.number}. {one.title}" for one in chosen)


def tables(folder: Path, /) -> dict[str, str]:
    """By name: `chapters` (title, question, minutes), `term` (a chapter a week), `minutes` (of reading in all)."""
    book = [chapters.read(path) for path in chapters.found(folder)]
    sheets = [exercises.sheet(where) if (where := exercises.of(c.path)).exists() else None for c in book]
    rows = ["| no. | chapter | asks | minutes |", "|--:|---|---|--:|"]
    rows += [f"| {c.number} | [{c.title}]({c.path.name}) | {_asked(c)} | {c.minutes} |" for c in book]
    weeks = ["| week | chapter | in class | at home |", "|--:|---|---|---|"]
    weeks += [_week(c, s) for c, s in zip(book, sheets, strict=True)]
    total = sum(c.minutes for c in book)
    said = f"{len(book)} chapters, {sum(len(s.exercises) for s in sheets if s)} exercises, {total} minutes of reading."
    return {"chapters": "\n".join(rows), "term": "\n".join(weeks), "minutes": said}


def _week(chapter: Chapter, sheet: Sheet | None) -> str:
    link = f"[{chapter.number}](solutions/{chapter.path.name})"
    return f"| {chapter.number} | {link} | {_titles(sheet, slice(0, 1))} | {_titles(sheet, slice(1, None))} |"


def filled(text: str, made: dict[str, str], /) -> str:
    """A text with its tables between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, table in made.items():
        first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if first in text and last in text:
            text = f"{text.partition(first)[0]}{first}\n{table}\n\n{last}{text.partition(last)[2]}"
    return text


def main(arguments: Sequence[str] = (), /) -> None:
    """Renew theory/README.md, or the README of the folder given."""
    folder = Path(arguments[0]) if arguments else Path("theory")
    path = folder / "README.md"
    write_whole(path, filled(path.read_text(encoding="utf-8"), tables(folder)).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
