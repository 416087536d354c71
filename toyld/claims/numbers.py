"""What an effect was computed from, as the numbers of a file and back: of every unit, or no more than the test asks.

    per_seed               an array a part (of `peaked`: a curve, evaluation by evaluation)
    per_example, shared    the same of examples; beside each part the deviation that its evaluations' jitter gives every
                           example alike, and the degrees of freedom with which that is known. A curve holds its own
    moments                of a part [n, mean, deviation, shared deviation, its degrees of freedom]; of a curve two such
                           (above the first evaluation, above the last one) at each inner evaluation

All three follow one another downwards and give the same effect, interval and p-value, up to the rounding of a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from toyld.claims.counted import in_most
from toyld.claims.effects import Curve, Effect, Moments, Peak, Sample, peak, peaked, ranked

__all__ = ["DIGITS", "FORMS", "again", "array", "count", "largest", "plain", "read", "rounded", "short", "summarised"]

DIGITS = 6  # significant, of what is written
FORMS = ("per_seed", "per_example", "moments")


def short(x: Any, digits: int = DIGITS, /) -> Any:
    """A number, or nested lists or an array of them, to so many significant digits; None for what is no number.

    >>> short([0.12345678, float("nan"), 20.0], 3)
    [0.123, None, 20.0]
    """
    if isinstance(x, np.ndarray | list | tuple):
        return [short(one, digits) for one in x]
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def array(values: Any, /) -> np.ndarray:
    """An array of numbers as they are written: None becomes NaN."""
    return np.array(values, dtype=float)


def again(effect: Effect, /) -> Effect:
    """The effect, its interval and p-values computed once more from what it keeps."""
    assert effect.parts is not None
    if effect.rank is None:
        return peaked(effect.parts)
    return ranked(effect.parts, effect.rank) if effect.rank else in_most(effect.parts, 1.0)


def _values(part: Any) -> np.ndarray:
    """All numbers of a part of units."""
    return part.units if isinstance(part, Sample) else part.values if isinstance(part, Curve) else np.asarray(part)


def _moments(part: Any) -> list[Moments]:
    if isinstance(part, Peak):
        return [one if isinstance(one, Moments) else Moments.of(one) for pair in part.pairs for one in pair]
    return [part] if isinstance(part, Moments) else [Moments.of(part)]


def count(effect: Effect, /) -> int:
    """How many numbers of units an effect keeps; 0 where it keeps moments alone.

    >>> count(ranked([np.ones(3), np.ones(4)]))
    7
    """
    return sum(_values(part).size for part in effect.parts or () if not isinstance(part, Moments | Peak))


def largest(effect: Effect, /) -> float:
    """The largest size of a number that it keeps: by how much rounding in the arithmetic may move its mean."""
    sizes = [0.0]
    for part in effect.parts or ():
        if isinstance(part, Moments | Peak):
            sizes += [abs(one.mean) + one.deviation for one in _moments(part)]
        else:
            sizes.append(float(np.nanmax(np.abs(_values(part)), initial=0.0)))
    return max(sizes)


def summarised(effect: Effect, /) -> Effect:
    """An effect of examples that keeps moments alone; of seeds, who are few, as it is."""
    if effect.parts is None or not all(isinstance(part, Sample | Curve) for part in effect.parts):
        return effect
    if effect.rank is not None:
        return replace(effect, parts=tuple(Moments.of(part) for part in effect.parts))
    return replace(effect, parts=tuple(_pairs(_moments(peak(part))) for part in effect.parts))


def rounded(effect: Effect, digits: int, /) -> Effect:
    """The effect of its numbers rounded to so many digits; an effect without them as it is."""
    if effect.parts is not None:
        kept = tuple(_part(_plain(part, digits), type(part)) for part in effect.parts)
        effect = again(replace(effect, parts=kept))
    numbers = [effect.value, effect.low, effect.high, effect.p, effect.below]
    value, low, high, p, below = (float(x) for x in array(short(numbers)))
    return Effect(value, low, high, effect.n, p, below, effect.parts, effect.rank)


def _row(one: Moments | Sample) -> list[Any]:
    own = one if isinstance(one, Moments) else Moments.of(one)
    return [own.n, own.mean, own.deviation, *_common(own)]


def _common(one: Moments | Sample) -> tuple[float, float]:
    return one.variance**0.5, one.df


def _plain(part: Any, digits: int) -> Any:
    """A part in lists: units; units and what they share; a curve; rows of moments."""
    if isinstance(part, Moments):
        return short(_row(part), digits)
    if isinstance(part, Peak):
        return [short(_row(one), digits) for one in _moments(part)]
    if isinstance(part, Sample):
        return short(part.units, digits), short(_common(part), digits)
    return short(_values(part), digits)


def _known(sd: float | None, df: float | None) -> tuple[float, float]:
    """Variance and degrees of freedom, as they were written: no deviation = not known, no df = for sure."""
    return math.nan if sd is None else sd**2, math.inf if df is None else df


def _as_moments(row: Any) -> Moments:
    n, mean, deviation, *common = row
    mean, deviation = (math.nan if x is None else x for x in (mean, deviation))
    return Moments(int(n), mean, deviation, *_known(*common))


def _pairs(every: list[Moments]) -> Peak:
    return Peak(tuple(zip(every[::2], every[1::2], strict=True)))


def _part(written: Any, kind: type) -> Any:
    """The part that `_plain` wrote."""
    if kind is Moments:
        return _as_moments(written)
    if kind is Peak:
        return _pairs([_as_moments(row) for row in written])
    if kind is Sample:
        return Sample(array(written[0]), *_known(*written[1]))
    return Curve(array(written)) if kind is Curve else array(written)


def plain(effect: Effect, /) -> dict[str, Any]:
    """What a file says of the numbers; {"per_seed": None} where an effect keeps none.

    >>> plain(ranked([Sample(np.array([1.0, 2.0]), 0.25, 3.0)]))
    {'per_example': [[1.0, 2.0]], 'shared': [[0.5, 3.0]]}
    """
    if effect.parts is None:
        return {"per_seed": None}
    lists, (kind, *others) = [_plain(part, DIGITS) for part in effect.parts], [type(part) for part in effect.parts]
    if any(other is not kind for other in others):
        msg = f"expected parts of one kind, got {kind.__name__} beside {others}"
        raise TypeError(msg)
    if kind is Sample:
        units, common = zip(*lists, strict=True)
        return {"per_example": list(units), "shared": [list(one) for one in common]}
    return {"moments" if kind in (Moments, Peak) else "per_example" if kind is Curve else "per_seed": lists}


def read(
    entry: Mapping[str, Any], rank: int | None, /, *, seeds: int, examples: int = 0, least: int = 1
) -> tuple[Any, ...] | None:
    """The parts that a file's entry of this rank holds, of at most so many units; None where it holds none.

    Raises:
        ValueError: numbers that do not make parts, or of fewer or more units.

    >>> read({"moments": [[9, 1.0, 2.0, 0.5, 3.0]]}, 1, seeds=1, examples=9)
    (Moments(n=9, mean=1.0, deviation=2.0, variance=0.25, df=3.0),)
    """
    (form,) = (name for name in FORMS if name in entry)
    if form == "per_seed" and entry[form] is None:
        return None
    lists: list[Any] = list(entry[form])
    kind: type = np.ndarray
    if form == "moments":
        kind = Peak if rank is None else Moments
    elif form == "per_example":
        kind = Curve if rank is None else Sample
        lists = lists if rank is None else list(zip(lists, entry["shared"], strict=True))
    parts = tuple(_part(one, kind) for one in lists)
    many = [one.n for part in parts if isinstance(part, Moments | Peak) for one in _moments(part)]
    many += [_values(part).shape[-1] for part in parts if not isinstance(part, Moments | Peak)]
    most, named = (seeds, "seeds") if form == "per_seed" else (examples, "examples")
    if not many or not least <= min(many) <= max(many) <= most:
        raise ValueError(f"numbers of other than {most} {named}")
    return parts
