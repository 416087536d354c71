"""Numbers in the prose of a chapter: `says` and `formula` hold them to what the code beside them computes."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Numeral", "formula", "numerals", "says"]

# 12, 1,000, 4.25, .5, 2/3, 36 %, 10⁻⁶, 2·10⁻⁷; a sign counts where nothing stands before it (3-5 is a range).
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMERAL = re.compile(
    rf"(?<![\w.])(?P<sign>(?<![\d)\]])[−+-])?(?P<number>{_PLAIN})"
    r"(?:e(?P<e>[−-]?\d+)|·10(?P<ten>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)|/(?P<under>\d+)(?![\d.])|(?P<only>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?"
    r"(?P<percent>\s?%|\sper cent)?"
)
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Numeral(NamedTuple):
    """A number as it is printed: its text, its place in the text, its value, and half a unit of its last digit."""

    text: str
    start: int
    stop: int
    value: float
    half: float


def _numeral(found: re.Match[str]) -> Numeral:
    digits = found["number"].replace(",", "")
    value, places = Fraction(digits), len(digits.partition(".")[2])
    unit = Fraction(1, 10**places)
    power = found["e"] or (found["ten"] or "").translate(_RAISED)
    if power:
        scale = Fraction(10) ** int(power.replace("−", "-"))
        value, unit = value * scale, unit * scale
    elif found["under"]:
        value, unit = value / int(found["under"]), Fraction(0)
    elif found["only"]:
        value, unit = value ** int(found["only"].translate(_RAISED)), Fraction(0)
    if found["percent"]:
        value, unit = value / 100, unit / 100
    if found["sign"] in ("-", "−"):
        value = -value
    return Numeral(found.group(), *found.span(), float(value), float(unit) / 2)


def numerals(text: str, /) -> list[Numeral]:
    """The numbers printed in a text, in order; fractions and powers are exact, all others rounded.

    >>> [(n.text, n.value, n.half) for n in numerals("from .195 to 1/2, in 36 % of 1,000 runs, 10⁻⁶ at least")]
    [('.195', 0.195, 0.0005), ('1/2', 0.5, 0.0), ('36 %', 0.36, 0.005), ('1,000', 1000.0, 0.5), ('10⁻⁶', 1e-06, 0.0)]
    """
    return [_numeral(found) for found in _NUMERAL.finditer(text)]


def says(text: str, /, *values: Any) -> None:
    """Hold the numbers of a phrase of the prose, in order, to values: each must round to what is printed.

    `theory/test_book.py` asks that the phrase stands in the chapter's prose, and that every number of the prose stands
    in such a phrase. A fraction (1/2) or a power (10⁻⁶) is exact, to a relative 1e-9; 36 % is the value .36.

    >>> says("the share is 98", 98.42)
    >>> says("between .195 and 1/2", 0.19512, 0.5)
    >>> says("the share is 97", 98.42)
    Traceback (most recent call last):
    AssertionError: “the share is 97”: 97 is printed where the code gives 98.42

    Raises:
        AssertionError: a value that does not round to its number, or more or fewer values than numbers.
    """
    printed = numerals(text)
    if len(printed) != len(values):
        msg = f"“{text}”: expected a value for each of {[n.text for n in printed]}, got {len(values)}"
        raise AssertionError(msg)
    for number, value in zip(printed, values, strict=True):
        got = float(value)
        if not abs(got - number.value) <= number.half + 1e-9 * abs(number.value):
            msg = f"“{text}”: {number.text} is printed where the code gives {got:.10g}"
            raise AssertionError(msg)


def formula(text: str, /, *sides: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Hold a formula of the prose to arrays: all sides, left to right as printed, are equal up to rtol and atol.

    `theory/test_book.py` asks that the constants written in the sides' code are the numbers of the formula, in order
    (exponents such as ² among them), so that neither can change alone.

    >>> P = np.linspace(0, 1, 5)
    >>> formula("P − P² − (1 − P)² = (1 − P)(2P − 1)", P - P**2 - (1 - P)**2, (1 - P) * (2 * P - 1))
    >>> formula("P − P² = (1 − P)(2P − 1)", P - P**2, (1 - P) * (2 * P - 1))
    Traceback (most recent call last):
    AssertionError: “P − P² = (1 − P)(2P − 1)”: its sides differ by up to 1

    Raises:
        AssertionError: sides that differ, or fewer than two of them.
    """
    if len(sides) < 2:
        msg = f"“{text}”: expected two sides or more, got {len(sides)}"
        raise AssertionError(msg)
    first = np.asarray(sides[0], dtype=float)
    for side in sides[1:]:
        other = np.asarray(side, dtype=float)
        if not np.allclose(first, other, rtol=rtol, atol=atol):
            off = np.abs(first - other)
            msg = f"“{text}”: its sides differ by up to {np.nanmax(off) if off.size else math.nan:.4g}"
            raise AssertionError(msg)
