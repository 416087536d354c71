"""Faults planted in the book: wrong numbers, copied values, claims in the wrong line; what lets one pass, it tells."""

from __future__ import annotations

import ast
import linecache
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from toyld.book.chapters import BOX, Chapter, box, ids
from toyld.book.prose import calls, numbers
from toyld.book.says import another, compared, numerals
from toyld.claims import Claim, RunClaim

__all__ = ["copied", "fits", "misplaced", "moved", "others", "placed", "watch", "wrong"]

_DIGIT = re.compile(r"\d")
_TURNED = str.maketrans("<>≤≥", "><≥≤")
# What holds as the step → 0, or with a remainder that the statement gives.
_LIMIT = re.compile(r"first[- ]order|→|O\(|[sη]²|\bsmall|remainder|limit", re.I)


def others(number: str, /) -> Iterator[str]:
    """A printed number with its first or its last digit, or its last word, another one; never one that is 0 or 1.

    >>> list(others("0.25")), list(others("0")), list(others("a third"))
    (['1.25', '0.26'], ['3'], ['a tenth'])
    """
    digits = list(_DIGIT.finditer(number))
    if not digits:
        yield another(number)
        return
    for place in sorted({digits[0].start(), digits[-1].start()}):
        for step in (1, 3):
            changed = number[:place] + str((int(number[place]) + step) % 10) + number[place + 1 :]
            if changed.lstrip("+−-") not in ("0", "1"):
                yield changed
                break


def wrong(text: str, excused: Sequence[tuple[int, int]], /) -> Iterator[tuple[str, str]]:
    """Every number of a prose made wrong, one at a time: what was changed, and the whole text with it."""
    for number in numerals(text):
        if number.text.lstrip("+−-") in ("0", "1") or any(a <= number.start and number.stop <= b for a, b in excused):
            continue
        for changed in others(number.text):
            near = text[max(0, number.start - 30) : number.stop + 20]
            yield f"{number.text} → {changed} in “…{near}…”", text[: number.start] + changed + text[number.stop :]


def _wrongly_printed(real: Any, phrase: str, values: Sequence[Any], /) -> list[str]:
    """The numbers of a phrase that could be printed wrongly beside the same values."""
    passed = []
    for number in numerals(phrase):
        for changed in others(number.text):
            try:
                real(phrase[: number.start] + changed + phrase[number.stop :], *values)
            except AssertionError:
                continue
            passed.append(f"“{phrase}”: {number.text} could be {changed}")
    return passed


def _wrongly_written(real: Any, phrase: str, frame: Any, /) -> list[str]:
    """The constants in the sides of a formula that could be others: each plus one, evaluated where the call stands.

    Not of an inequality: a bound may be true with other constants, too, and is a claim's business. There the signs
    are turned.
    """
    source = "".join(linecache.getlines(frame.f_code.co_filename))
    (call,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "formula"
        and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno)
        and ast.literal_eval(node.args[0]) == phrase
    ]
    names = {**frame.f_globals, **frame.f_locals}
    options = {k.arg: eval(ast.unparse(k.value), dict(names)) for k in call.keywords if k.arg}
    if compared(phrase, len(call.args) - 1):
        sides = [eval(ast.unparse(side), dict(names)) for side in call.args[1:]]
        try:
            real(phrase.translate(_TURNED), *sides, **options)
        except AssertionError:
            return []
        return [f"“{phrase}”: its signs could be turned"]
    passed = []
    for which, constant in enumerate(numbers(call)):
        kept = constant.value
        constant.value = kept + 1  # type: ignore[operator]
        try:
            sides = [eval(ast.unparse(side), dict(names)) for side in call.args[1:]]
            with np.errstate(all="ignore"):
                real(phrase, *sides, **options)
            passed.append(f"“{phrase}”: its constant number {which + 1}, {kept!r}, could be one more")
        except (ArithmeticError, AssertionError, ValueError):
            pass
        finally:
            constant.value = kept
    return passed


def watch(patch: Any, module: ModuleType, /) -> dict[str, list[str]]:
    """Let `says` and `formula` of a module try wrong numbers at each call: phrase → those that would have passed.

    patch: pytest's monkeypatch, or what has its `setattr`.
    """
    tried: dict[str, list[str]] = {}
    says, formula = module.says, module.formula

    def watched_says(phrase: str, /, *values: Any) -> None:
        says(phrase, *values)
        tried.setdefault(phrase, []).extend(_wrongly_printed(says, phrase, values))

    def watched_formula(phrase: str, /, *sides: Any, **options: Any) -> None:
        formula(phrase, *sides, **options)
        tried.setdefault(phrase, []).extend(_wrongly_written(formula, phrase, sys._getframe(1)))

    patch.setattr(module, "says", watched_says)
    patch.setattr(module, "formula", watched_formula)
    return tried


def copied(path: Path, /) -> list[str]:
    """The calls of `says` and `formula` that hold a number to a second copy of itself, a line each.

    A copy is a value without a name in it, or one whose names are assigned from constants and used nowhere else. What
    others report can only be typed in: under a name that starts with REPORTED.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    held = [call for _, _, call in calls(path)]
    inside = {(node.lineno, node.col_offset) for call in held for node in ast.walk(call) if isinstance(node, ast.Name)}
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    used = {node.id for node in names if (node.lineno, node.col_offset) not in inside}
    reported = {node.id for node in names if node.id.startswith("REPORTED")}
    idle = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and not any(isinstance(part, ast.Name) for part in ast.walk(node.value))
        for target in node.targets
        if isinstance(target, ast.Name) and target.id not in used | reported
    }
    faults = []
    for name, phrase, call in calls(path):
        sides = [{n.id for n in ast.walk(side) if isinstance(n, ast.Name)} - idle for side in call.args[1:]]
        if not (any(sides) if name == "formula" else all(sides)):
            faults.append(f"line {call.lineno}: “{phrase}” is held to a number typed in, not to one computed")
    return faults


def placed(chapter: Chapter, known: Mapping[str, Claim], /) -> dict[str, str]:
    """The claims in the box of a chapter, each with the first line that it stands in."""
    return {id: line for line, text in reversed(box(chapter).items()) for id in ids(text) if id in known}


def fits(claim: Claim, line: str, /) -> bool:
    """Whether a claim may stand in a line of the box, by its kind and by what the registry expects of it."""
    expected = {claim.expect}
    if isinstance(claim, RunClaim):
        expected = {claim.expected(rung) for rung in claim.rungs}
    if line == "Refuted or open":
        return bool(expected & {"refuted", "open"})
    if line == "Measured":
        return claim.about == "run" and bool(expected & {"holds", "conditional"})
    if claim.kind not in ("theorem", "identity") or claim.expect != "holds":
        return False
    if "to first order" in claim.statement.lower():
        return line == "First order"
    return line == "Proved" or bool(_LIMIT.search(claim.statement))


def misplaced(chapter: Chapter, known: Mapping[str, Claim], /) -> list[str]:
    """What is wrong with the box of a chapter, a line each: claims missing, twice, unknown, or in a line not theirs."""
    lines = box(chapter)
    named = {id for cell in chapter.cells for id in ids(cell.source) if id in known}
    faults = []
    for name, text in lines.items():
        told = ids(text, marks="`")
        if not told and "nothing" not in text:
            faults.append(f"{name}: expected claims, or the word “nothing”, got {text!r}")
        for one in told:
            if one not in known:
                faults.append(f"{name}: no claim has the id {one}")
            elif not fits(known[one], name):
                faults.append(f"{name}: {one} is {known[one].kind}, expected: {known[one].expect}; see `fits`")
    for one in sorted(named):
        there = [name for name, text in lines.items() for _ in range(text.count(f"`{one}`"))]
        if len(there) != 1:
            faults.append(f"{one}: expected in exactly one line of the box, got {there}")
    return faults


def moved(chapter: Chapter, id: str, line: str, /) -> Chapter:
    """A chapter with a claim of its box put into another line of it."""
    lines = {name: re.sub(rf",?\s*`{re.escape(id)}`", "", text) for name, text in box(chapter).items()}
    lines[line] += f" `{id}`"
    text = "\n".join([BOX, "", *(f"- **{name}**: {said or 'nothing'}" for name, said in lines.items())])
    cells = [replace(c, source=text) if not c.code and c.source.startswith(BOX) else c for c in chapter.cells]
    return replace(chapter, cells=tuple(cells))
