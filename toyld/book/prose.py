"""What the prose of a chapter says in numbers, and which of them no code holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from toyld.book.says import RAISED, numerals

__all__ = ["Text", "calls", "constants", "excused", "numbers", "prose", "unheld", "unnamed", "written"]

# Numbers that name a thing and measure nothing: places in a text, labels, names, and code.
_NAMES = re.compile(
    "|".join(
        [
            r"`[^`]*`",
            r"§+\s?\d+(\.\d+)*([-–]\d+(\.\d+)*)?",
            r"\b(Eqs?\.|App\.|Figs?\.|Figures?|Tables?|Propositions?|[Cc]hapters?|Sections?|Exercises?|Theorems?"
            r"|Claims?|Lemmas?|Thms?\.?|[Tt]rends?)"
            r"\s[A-Z]?\.?\d+(\.\d+)*[a-z]?((,| and| to|[-–]|, and)\s?\d+(\.\d+)*)*",
            r"\b[A-Z]\d+[a-f]?([-–]\d+)?\b",  # T7, F12, K4, P1a
            r"\(\d+\.\d+\)",  # the tag of an equation
            r"\b(ICLR|NeurIPS|ICML|arXiv)[\s:]\d[\d.]*",
            r"\((19|20)\d\d\)",
            r"\b\d+×\d+\b",  # a shape
            r"\b[A-Za-z]+-\d[\w.]*",  # GPT-2, Pythia-410M; not the e-9 of 1e-9
            r"^#+ \d+\.",  # the number of a chapter
        ]
    ),
    re.M,
)


def prose(path: Path, /) -> str:
    """The prose of a chapter: its markdown cells, their lines joined where a paragraph breaks them."""
    import jupytext

    cells = jupytext.read(path).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def calls(path: Path, /) -> Iterator[tuple[str, str, ast.Call]]:
    """Every `says(…)` and `formula(…)` of a chapter: the function's name, its phrase, the call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("says", "formula"):
            text = node.args[0]
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                msg = f"{path.name}:{node.lineno}: expected the phrase itself as first argument of {node.func.id}"
                raise ValueError(msg)
            yield node.func.id, text.value, node


def numbers(call: ast.Call, /) -> list[ast.Constant]:
    """The numbers written in the sides of a `formula(…)`, in order; those of indices do not count."""
    found: list[ast.Constant] = []

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            found.append(node)
        for name, child in ast.iter_fields(node):
            if isinstance(node, ast.Subscript) and name == "slice":
                continue
            for one in child if isinstance(child, list) else [child]:
                if isinstance(one, ast.AST):
                    walk(one)

    for side in call.args[1:]:
        walk(side)
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def constants(call: ast.Call, /) -> list[float]:
    """The values of those numbers."""
    return [float(node.value) for node in numbers(call)]  # type: ignore[arg-type]


def written(text: str, /) -> list[float]:
    """The numbers written in a formula, in order, the two of a fraction apart and exponents among them."""
    plain = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda raised: f" {raised.group().translate(RAISED)} ", text)
    return [float(x) for x in re.findall(r"(?<![A-Za-z_.\d])(?:\d+(?:\.\d+)?|\.\d+)", plain)]


# 0 and 1 count where a display formula compares with them: G ≥ 0, 0 ≤ ρ.
_COMPARED = re.compile(r"(?<=[<>≤≥])\s?[−-]?[01](?![\w.,/·])|(?<![\w.])[01](?=\s?[<>≤≥])")
_EDGE = "\u2003"  # white space of its own stands around a display formula, which lines indented by four spaces are


def _spaced(text: str, /) -> str:
    return re.sub(r"\s+", " ", text)


def _lined(text: str, /) -> str:
    """A text in one line, with `_EDGE` for the space before and after each display formula."""
    blocks = re.split(r"((?:^    .*(?:\n|$))+)", text, flags=re.M)
    return "".join(f"{_EDGE}{_spaced(b).strip()}{_EDGE}" if n % 2 else _spaced(b) for n, b in enumerate(blocks))


def _compared(text: str, /) -> set[int]:
    """Where the 0s and 1s stand that display formulas compare with."""
    shown = [(m.start(1), m[1]) for m in re.finditer(f"{_EDGE}([^{_EDGE}]*){_EDGE}", text)]
    return {start + m.end() - 1 for start, formula in shown for m in _COMPARED.finditer(formula)}


def excused(text: str, /) -> list[tuple[int, int]]:
    """Where the names of a text stand, whose numbers measure nothing: first and one past the last character of each.

    >>> text = "GPT-2 in chapter 4 has 1e-9 and 3"
    >>> [text[start:stop] for start, stop in excused(text)]
    ['GPT-2', 'chapter 4']
    """
    return [named.span() for named in _NAMES.finditer(text)]


def unnamed(text: str, /) -> str:
    """A text without the names that are `excused`, a space for each.

    >>> unnamed("chapter 4 has 3 of `x[2]`")
    '  has 3 of  '
    """
    return _NAMES.sub(" ", text)


class Text:
    """The prose of a chapter in one line, and its phrases: what is held is worked out once, so that many can be tried.

    `faults()` of the text as it stands, or of another one that is to be held by the same phrases.
    """

    def __init__(self, path: Path, /) -> None:
        self.text = _lined(prose(path))
        self.calls = [(function, phrase, call.lineno, constants(call)) for function, phrase, call in calls(path)]

    def excused(self, text: str | None = None, /) -> list[tuple[int, int]]:
        """Where names stand in it: `excused` of the text."""
        return excused(self.text if text is None else text)

    def faults(self, text: str | None = None, /) -> list[str]:
        """What is wrong with the numbers of the text, a line each."""
        text = self.text if text is None else text
        free = list(text)

        def blank(start: int, stop: int) -> None:
            free[start:stop] = " " * (stop - start)

        faults = []
        for function, phrase, line, sides in self.calls:
            wanted = _spaced(phrase)
            spaced = re.escape(wanted).replace(r"\ ", rf"[ {_EDGE}]+")
            places = [m.span() for m in re.finditer(rf"(?<![\w.]){spaced}(?![\w]|\.\d)", text)]
            if len(wanted) < 4 or not places:
                faults.append(f"line {line}: {function} has a phrase that the prose does not: “{phrase}”")
            if function == "formula" and sides != written(phrase):
                faults.append(f"line {line}: “{phrase}” has {written(phrase)}, its sides {sides}")
            for place in places:
                blank(*place)
        for span in self.excused(text):
            blank(*span)
        compared = _compared(text)
        for number in numerals("".join(free)):
            if number.text.lstrip("+−-") not in ("0", "1") or number.stop - 1 in compared:
                near = text[max(0, number.start - 40) : number.stop + 30]
                faults.append(f"nothing holds {number.text} in “…{near}…”")
        return faults


def unheld(path: Path, /) -> list[str]:
    """What is wrong with the numbers of a chapter's prose, a line each; empty if all of them are held by code.

    Held is a number that stands in the phrase of a `says` or a `formula`. Numbers are those in digits and those words
    that measure (one in nine, a third, twice as, six million: see `numerals`). Excused are 0 and 1, but not where a
    display formula compares with them (G ≥ 0), numbers that name (§3.1, chapter 4, T7, GPT-2, inline code), and those
    written as exponents.
    """
    return Text(path).faults()
