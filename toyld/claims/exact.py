"""One softmax in ball arithmetic: what certifies a counterexample.

Probabilities are exact rationals and come back as python-flint balls (`arb`), whose comparisons are true only if
true for every point of the ball: a certified sign is a proof, not a rounding accident. Written from the definition
p'_i ∝ p_i e^{d_i}, independently of `toyld.softmax`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from toyld.claims.base import CERTAIN, as_floats

__all__ = [
    "STEPS",
    "ball",
    "balls",
    "distributions",
    "entropy",
    "log_alphas",
    "push",
    "smallest",
    "threshold",
    "tilt",
]

Rational = Fraction | int
ctx.dps = 50

STEPS: tuple[Fraction, ...] = tuple(Fraction(2) ** k for k in (0, 1, -1, 2, -2, 3, -3, 4, -4))
"""The steps that `smallest` tries, in this order: 1, 2, 1/2, 4, 1/4, 8, 1/8, 16, 1/16."""


def ball(x: Rational, /) -> arb:
    """A rational as a ball."""
    x = Fraction(x)
    return arb(fmpq(x.numerator, x.denominator))


def balls(p: Sequence[Rational], /) -> list[arb]:
    """A probability vector as balls.

    Raises:
        ValueError: it does not sum to exactly 1.
    """
    if sum(map(Fraction, p)) != 1:
        msg = f"expected rationals that sum to 1, got {tuple(map(str, p))} with sum {sum(map(Fraction, p))}"
        raise ValueError(msg)
    return [ball(x) for x in p]


def tilt(p: Sequence[arb], d: Sequence[arb], /) -> list[arb]:
    """p'_i = p_i e^{d_i} / Σ_j p_j e^{d_j}."""
    w = [a * b.exp() for a, b in zip(p, d, strict=True)]
    total = sum(w, arb(0))
    return [a / total for a in w]


def push(p: Sequence[Rational], y: int, s: Rational, c: Rational = -1, /) -> list[arb]:
    """π' after one update with coefficient c on label y: d_i = −s c (p_i − 1[i = y]).

    >>> from fractions import Fraction as F
    >>> [round(float(x.mid()), 4) for x in push([F(7, 10), F(2, 10), F(8, 100), F(2, 100)], 3, 1)]
    [0.8064, 0.1397, 0.0496, 0.0043]
    """
    b = balls(p)
    return tilt(b, [-ball(s) * ball(c) * (a - (1 if i == y else 0)) for i, a in enumerate(b)])


def log_alphas(p: Sequence[Rational], y: int, s: Rational, c: Rational = -1, /) -> list[arb]:
    """log α_i = log(π'_i/π_i)."""
    return [(after / before).log() for after, before in zip(push(p, y, s, c), balls(p), strict=True)]


def entropy(p: Sequence[Any], /) -> arb:
    """H = −Σ p log p of balls or rationals, no zero entries."""
    return -sum((b * b.log() for b in (a if isinstance(a, arb) else ball(a) for a in p)), arb(0))


def threshold(p: Sequence[Rational], y: int, s: Rational, /) -> arb:
    """τ(s) = (1/s) log Σ_j p_j e^{s(p_j − 1[j = y])}."""
    b = balls(p)
    total = sum((a * (ball(s) * (a - (1 if i == y else 0))).exp() for i, a in enumerate(b)), arb(0))
    return total.log() / ball(s)


def distributions(size: int, denominator: int, /) -> Iterator[tuple[Fraction, ...]]:
    """Positive p with least common denominator exactly `denominator`, classes in falling order, flattest first.

    Up to the names of the classes these are all of them.

    >>> [tuple(map(str, p)) for p in distributions(3, 5)]
    [('2/5', '2/5', '1/5'), ('3/5', '1/5', '1/5')]
    """

    def parts(count: int, total: int, most: int) -> Iterator[tuple[int, ...]]:
        if count == 1:
            if total <= most:
                yield (total,)
            return
        for first in range(-(-total // count), min(most, total - count + 1) + 1):
            for rest in parts(count - 1, total - first, first):
                yield (first, *rest)

    for numerators in parts(size, denominator, denominator):
        if math.gcd(*numerators) == 1:
            yield tuple(Fraction(n, denominator) for n in numerators)


def _cases(
    case: dict[str, Any], arguments: Sequence[tuple[str, Callable[..., Iterable[Any]] | Iterable[Any]]]
) -> Iterator[dict[str, Any]]:
    """Every completion of a case, the last argument changing fastest."""
    if not arguments:
        yield case
        return
    (name, values), *rest = arguments
    for value in values(**case) if callable(values) else values:
        yield from _cases({**case, name: value}, rest)


def _doubtful(check: Callable[..., Any], cases: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Mask of the cases that float64 does not see to hold with room."""
    return np.asarray(check(**as_floats(cases)).score()) <= CERTAIN


def smallest(
    margin: Callable[..., arb],
    /,
    *,
    check: Callable[..., Any] | None = None,
    where: Callable[..., bool] | None = None,
    classes: Iterable[int] = range(2, 6),
    denominators: Iterable[int] = range(2, 13),
    **arguments: Callable[..., Iterable[Any]] | Iterable[Any] | None,
) -> dict[str, Any] | None:
    """The first rational case of one softmax whose `margin` (an arb) is certainly negative; None if there is none.

    The order, the first changing slowest:

    1. V = number of classes, 2, 3, … (`classes`);
    2. N = least common denominator of p, 2, 3, … 12 (`denominators`);
    3. p, classes in falling order, the flattest first (`distributions`);
    4. the label `y` = 0 … V − 1, the most likely class first;
    5. the step `s` in `STEPS`: 1, 2, 1/2, 4, 1/4, 8, …;
    6. further arguments as given by name: an iterable in its own order, or a function of the case so far (its
       arguments by name) that returns one.

    Naming `y` or `s` in `arguments` replaces its list in its place (order 4, 5), None leaves it out. `where` is the
    premise, `margin` and `where` get the case by name (p a tuple of Fractions). `check`, the float check of a claim,
    only saves time: a case that it sees to hold by ten of its bounds is not evaluated in balls.

    >>> from fractions import Fraction as F
    >>> found = smallest(lambda p, y, s: log_alphas(p, y, s)[0] if y else arb(1), where=lambda p, y, s: len(p) > 2)
    >>> found is None  # the top class never loses when another one is pushed
    True
    >>> found = smallest(lambda p, y, s: log_alphas(p, y, s)[1] if y != 1 else arb(1))
    >>> [str(x) for x in found["p"]], found["y"], str(found["s"])
    (['1/2', '1/4', '1/4'], 2, '2')
    """
    named: dict[str, Any] = {"y": lambda p: range(len(p)), "s": STEPS, **arguments}
    order = [(name, values) for name, values in named.items() if values is not None]
    sizes, least = list(classes), list(denominators)
    for size in sizes:
        for denominator in least:
            cases = [
                case
                for p in distributions(size, denominator)
                for case in _cases({"p": p}, order)
                if where is None or where(**case)
            ]
            if check is not None and cases:
                doubtful = _doubtful(check, cases)
                cases = [case for case, doubt in zip(cases, doubtful, strict=True) if doubt]
            for case in cases:
                if margin(**case) < 0:
                    return case
    return None
