"""Where the numbers of a chapter come from: marks in its prose, which become spans with a title that tells the code."""

from __future__ import annotations

import ast
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

from toyld.book.prose import calls, written
from toyld.book.says import numerals

__all__ = ["Marks"]

# A number's mark is a character of private use that counts them, and one that ends it: markdown leaves both alone.
_FIRST, _END, _MOST = 0xE001, "\ue000", 0xF8FF - 0xE001


@dataclass
class Marks:
    """The held phrases of a script; `mark` puts marks around their numbers, `spans` makes HTML of the marks."""

    path: Path
    titles: list[str] = field(default_factory=list)

    def mark(self, markdown: str, /) -> str:
        """A markdown cell with a mark around each number that code holds."""
        places: dict[tuple[int, int], str] = {}
        for function, phrase, call in calls(self.path):
            spaced = r"\s+".join(map(re.escape, phrase.split()))
            for found in re.finditer(rf"(?<![\w.]){spaced}(?![\w]|\.\d)", markdown):
                printed = numerals(found.group())
                if function == "says":
                    told = [ast.unparse(value) for value in call.args[1:]]
                    if len(told) != len(printed):  # says("…", *values)
                        told = [", ".join(told)] * len(printed)
                    titles = [f"held to the code: {code} (line {call.lineno})" for code in told]
                elif function == "formula" and written(found.group()):
                    titles = [f"a formula held to the code: its sides agree (line {call.lineno})"] * len(printed)
                else:
                    continue
                for number, title in zip(printed, titles, strict=True):
                    places[found.start() + number.start, found.start() + number.stop] = title
        out, last = "", 0
        for (start, stop), title in sorted(places.items()):
            if start < last or len(self.titles) >= _MOST:
                continue
            out += f"{markdown[last:start]}{chr(_FIRST + len(self.titles))}{markdown[start:stop]}{_END}"
            self.titles.append(title)
            last = stop
        return out + markdown[last:]

    def spans(self, page: str, /) -> str:
        """HTML with the marks as spans."""

        def opened(found: re.Match[str]) -> str:
            return f'<span class="held" title="{html.escape(self.titles[ord(found.group()) - _FIRST])}">'

        return re.sub("[\ue001-\uf8ff]", opened, page).replace(_END, "</span>")
