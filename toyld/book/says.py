"""Numbers in the prose of a chapter: `says` and `formula` hold them to what the code beside them computes."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

__all__ = ["RAISED", "Numeral", "another", "compared", "formula", "numerals", "says"]

# 12, 1,000, 4.25, .5, 2/3, 36 %, 10⁻⁶, 2·10⁻⁷; a sign counts where nothing stands before it (3-5 is a range).
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMERAL = re.compile(
    rf"(?<![\w.])(?P<sign>(?<![\d)\]])[−+-])?(?P<number>{_PLAIN})"
    r"(?:e(?P<e>[−-]?\d+)|·10(?P<ten>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)|/(?P<under>\d+)(?![\d.])|(?P<only>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?"
    r"(?P<percent>\s?%|\sper cent)?"
)
RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")  # of exponents: for str.translate

# Words that measure: shares (one in nine, nine of ten), parts (a third, four fifths, half of), multiples (twice as,
# four times), large numbers (ten thousand, six million), and cardinals above ten. Small ones count: one softmax.
_SMALL = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_TEENS = ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {"third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
_PARTS |= {name[:-1] + "ieth": 20 + 10 * n for n, name in enumerate(_TENS)} | {"twelfth": 12, "ten-thousandth": 10**4}
_PARTS |= {name + "th": n for name, n in _LARGE.items()}
_CARDINALS = {name: n for n, name in enumerate(_SMALL + _TEENS, 1)} | {
    name: 20 + 10 * n for n, name in enumerate(_TENS)
}
_ONE = rf"(?:(?:{'|'.join(_TENS)})-(?:{'|'.join(_SMALL[:-1])})|{'|'.join(sorted(_CARDINALS, key=len, reverse=True))})"
_BIG = rf"(?:(?:{_ONE}|an?)\s(?:{'|'.join(_LARGE)})(?:\s(?:{'|'.join(_LARGE)}))?)"
_MANY = rf"(?:{'|'.join([*_TEENS, *_TENS])})"
_AFTER = r"(?=\s(?:of|to|after|as|more|less|from|is|has|in|at)\b|[^\w\s-]|\s*$)"  # a third token is no part
_WORDS = re.compile(
    rf"(?<![\w-])(?:(?P<share>{_BIG}|{_ONE}|once)(?P<joined>(?:\s(?:times|[a-z]+))?\sin|(?:\sout)?\sof(?:\sthe)?)"
    rf"\s(?P<among>{_BIG}|{_ONE})(?!\stimes|\s(?:hundred|thousand|million)s)"
    rf"|(?P<parts>{_ONE}|an?)[\s-](?P<part>quarter|ten-thousandth|(?:{'|'.join(_PARTS)})(?:s|{_AFTER}))s?"
    r"|(?P<half>one\shalf|(?<=\bby\s)half|(?<=\babout\s)half|half(?=\s(?:of|the|as)\b))"
    r"|(?P<twice>twice(?=\s(?:as|the|that|what|its|[^\W\d_](?:[₀-₉][^\W\d_]?)?)(?!\w)))"
    rf"|(?P<times>{_BIG}|{_ONE})\stimes"
    rf"|(?P<large>{_BIG}|{_MANY}(?:-(?:{'|'.join(_SMALL[:-1])}))?))(?![\w-])",
    re.I,
)


class Numeral(NamedTuple):
    """A number as it is printed: its text, its place, its value, and the least and largest that it stands for."""

    text: str
    start: int
    stop: int
    value: float
    low: float
    high: float


def _numeral(found: re.Match[str]) -> Numeral:
    digits = found["number"].replace(",", "")
    value, places = Fraction(digits), len(digits.partition(".")[2])
    unit = Fraction(1, 10**places)
    power = found["e"] or (found["ten"] or "").translate(RAISED)
    if power:
        scale = Fraction(10) ** int(power.replace("−", "-"))
        value, unit = value * scale, unit * scale
    elif found["under"]:
        value, unit = value / int(found["under"]), Fraction(0)
    elif found["only"]:
        value, unit = value ** int(found["only"].translate(RAISED)), Fraction(0)
    if found["percent"]:
        value, unit = value / 100, unit / 100
    if found["sign"] in ("-", "−"):
        value = -value
    return Numeral(found.group(), *found.span(), float(value), float(value - unit / 2), float(value + unit / 2))


def _counted(words: str) -> int:
    """The value of a cardinal: nine, twenty-five, ten thousand, a million."""
    total = 0
    for word in re.split(r"[\s-]+", words.lower()):
        if word in _LARGE:
            total *= _LARGE[word]
        else:
            total += 1 if word in ("a", "an", "once") else _CARDINALS[word]
    return total


def _share(over: int, under: int) -> tuple[float, float, float]:
    """Value, least and largest of one in nine (one in 9.5 to 8.5), nine in ten (half of a tenth off), one in 1000."""
    value = over / under
    if under >= 100:
        return value, 0.95 * value, 1.05 * value
    if over == 1:
        return value, 1 / (under + 0.5), 1 / (under - 0.5)
    return value, (over - 0.5) / under, (over + 0.5) / under


def _worded(found: re.Match[str]) -> Numeral | None:
    if found["share"]:
        over, under = _counted(found["share"]), _counted(found["among"])
        if over > under or under < 2 or (over == 1 and "in" not in found["joined"].split()):
            return None  # one of two, two in one
        value = _share(over, under)
    elif found["part"]:
        over = _counted(found["parts"])
        name = found["part"].lower()
        value = _share(over, _PARTS.get(name) or _PARTS[name.removesuffix("s")])
    elif found["half"]:
        value = _share(1, 2)
    elif found["twice"] or found["times"]:
        n = 2 if found["twice"] else _counted(found["times"])
        value = (n, min(n - 0.5, 0.95 * n) if n >= 100 else n - 0.5, max(n + 0.5, 1.05 * n) if n >= 100 else n + 0.5)
    else:
        n = _counted(found["large"])
        value = (n, 0.95 * n, 1.05 * n) if n >= 100 else (n, n - 0.5, n + 0.5)
    return Numeral(found.group(), *found.span(), *map(float, value))


def numerals(text: str, /) -> list[Numeral]:
    """The numbers printed in a text, in order; fractions and powers of digits are exact, all others rounded.

    Words count where they measure, and stand for what rounds to them: one in nine and a ninth for 1/9.5 to 1/8.5, nine
    in ten and nine tenths for .85 to .95, twice as and four times for half a time more or less, a hundred, ten thousand
    and six million for 5 % more or less (parts of a hundred or more, too), other cardinals above ten for themselves.
    Words for one to ten alone, and ordinals (the third class), are no numbers here; they count things or name them.

    >>> [(n.text, n.value) for n in numerals("from .195 to 1/2, in 36 % of 1,000 runs, 10⁻⁶ at least")]
    [('.195', 0.195), ('1/2', 0.5), ('36 %', 0.36), ('1,000', 1000.0), ('10⁻⁶', 1e-06)]
    >>> [(n.text, n.value) for n in numerals("one in four of ten thousand, a fifth of the third, twice as many of one")]
    [('one in four', 0.25), ('ten thousand', 10000.0), ('a fifth', 0.2), ('twice', 2.0)]
    """
    found = [_numeral(one) for one in _NUMERAL.finditer(text)]
    place = 0
    while one := _WORDS.search(text, place):
        number = _worded(one)
        place = one.end() if number else one.start() + 1
        if number:
            found.append(number)
    return sorted(found, key=lambda number: number.start)


def another(number: str, /) -> str:
    """A number in words with its last word that can be another one: what it stands for is far off.

    >>> another("one in nine"), another("a third"), another("twice"), another("six million")
    ('one in forty', 'a tenth', 'forty times', 'six thousand')
    """
    if number.lower() == "twice":
        return "forty times"
    names = [*_PARTS, "half", *_LARGE, *sorted(_CARDINALS, key=len, reverse=True)]
    *_, last = re.finditer("|".join(names), number, re.I)
    name = last.group().lower()
    other = "tenth" if name in ("half", *_PARTS) else "thousand" if name in _LARGE else "forty"
    if other == name:
        other = {"tenth": "third", "thousand": "million", "forty": "seventeen"}[name]
    return number[: last.start()] + other + number[last.end() :]


def says(text: str, /, *values: Any) -> None:
    """Hold the numbers of a phrase of the prose, in order, to values: each must round to what is printed.

    `theory/test_book.py` asks that the phrase stands in the chapter's prose, and that every number of the prose stands
    in such a phrase. A fraction (1/2) or a power (10⁻⁶) is exact, to a relative 1e-9; 36 % is the value .36; what words
    stand for (one in nine, twice as) tells `numerals`.

    >>> says("the share is 98", 98.42)
    >>> says("between .195 and 1/2", 0.19512, 0.5)
    >>> says("one in nine is four times as much", 0.113, 4.2)
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
        got, slack = float(value), 1e-9 * abs(number.value)
        if not number.low - slack <= got <= number.high + slack:
            msg = f"“{text}”: {number.text} is printed where the code gives {got:.10g}"
            raise AssertionError(msg)


def compared(text: str, sides: int, /) -> list[str] | None:
    """The signs between the sides of a formula, left to right, if it is a chain with an inequality; None if not.

    >>> compared("−η aᵀKa = Δ ≤ 0", 3), compared("x + y = 1", 2), compared("x for x > 0", 1)
    (['=', '≤'], None, None)
    """
    signs = re.findall("[=<>≤≥]", text)
    return signs if len(signs) == sides - 1 and set(signs) != {"="} else None


def formula(text: str, /, *sides: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Hold a formula of the prose to arrays: its sides, left to right as printed, stand to each other as its signs say.

    Equal is up to rtol and atol, and so are ≤ and ≥; < and > are strict. Where a formula has more signs than sides (a
    condition: “for x > 0”), the sides are equal. `theory/test_book.py` asks that the constants written in the sides'
    code are the numbers of the formula, in order (exponents such as ² among them), so that neither can change alone.

    >>> P = np.linspace(0, 1, 5)
    >>> formula("P − P² − (1 − P)² = (1 − P)(2P − 1)", P - P**2 - (1 - P)**2, (1 - P) * (2 * P - 1))
    >>> formula("P² ≤ P", P**2, P)
    >>> formula("P − P² = (1 − P)(2P − 1)", P - P**2, (1 - P) * (2 * P - 1))
    Traceback (most recent call last):
    AssertionError: “P − P² = (1 − P)(2P − 1)”: its sides differ by up to 1

    Raises:
        AssertionError: sides that do not stand so to each other, or fewer than two of them.
    """
    if len(sides) < 2:
        msg = f"“{text}”: expected two sides or more, got {len(sides)}"
        raise AssertionError(msg)
    signs = compared(text, len(sides))
    arrays = [np.asarray(side, dtype=float) for side in sides]
    lefts = arrays[:-1] if signs else [arrays[0]] * (len(arrays) - 1)
    for sign, left, right in zip(signs or "=" * len(lefts), lefts, arrays[1:], strict=True):
        slack = atol + rtol * np.abs(right)
        fits = {
            "=": np.abs(left - right) <= slack,
            "≤": left <= right + slack,
            "≥": left >= right - slack,
            "<": left < right,
            ">": left > right,
        }[sign]
        if not np.all(fits):
            off = np.abs(left - right)
            told = f"its sides differ by up to {np.nanmax(off) if off.size else math.nan:.4g}"
            if sign != "=":
                told = f"{sign} does not hold in {np.size(fits) - np.count_nonzero(fits)} of {np.size(fits)} cases"
            msg = f"“{text}”: {told}"
            raise AssertionError(msg)
