"""From changes of chosen, argmax and rejected to a class of behaviour: one rule for runs, one for single examples.

Directions: *up* if the whole interval lies above the floor, *down* if below its negative, else *flat*. With
G = argmax − chosen along the same contexts:

| chosen | argmax | further | class |
|---|---|---|---|
| up | up | G up, by a quarter of argmax's own rise or more | squeezing (chosen lags) |
| up | any | otherwise, rejected down | healthy |
| up | any | otherwise | sft-normal |
| flat | up | G up | squeezing |
| flat | any | otherwise, rejected down | rejection |
| flat | any | otherwise | not-learning |
| down | up, not small | | squeezing |
| down | down, not small | | divergence |
| down | any | otherwise | displacement |

*Small*: less than a quarter of chosen's fall, and of argmax's room below log 1 = 0. Unknown rejected is not down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.thresholds import DEFAULT, Thresholds

__all__ = ["CLASSES", "EXAMPLE_CLASSES", "SEVERITY", "Move", "classify", "classify_examples"]

Floats = NDArray[np.float64]

# From the most to the least severe.
SEVERITY: tuple[str, ...] = ("wrong-reference", "divergence", "squeezing", "displacement")
SEVERITY += ("rejection", "sft-normal", "healthy", "not-learning", "cannot-tell")
CLASSES = tuple(reversed(SEVERITY))
# `lagging`: chosen up or flat and argmax up by more. A run of such examples reads squeezing; one example is not enough.
EXAMPLE_CLASSES = (*CLASSES[1:-1], "lagging")


class Move(NamedTuple):
    """A change since the first evaluation: value, interval, and the floor below which it does not count."""

    value: Floats
    low: Floats
    high: Floats
    floor: Floats

    @classmethod
    def of(cls, value: Floats, floor: Floats | float = 0.0) -> Move:
        """A change without an interval (a mean without its examples, one resample)."""
        return cls(value, value, value, np.broadcast_to(np.asarray(floor, float), np.shape(value)))

    @property
    def up(self) -> NDArray[np.bool_]:
        """Beyond the floor, upwards."""
        return np.asarray(self.low > self.floor)

    @property
    def down(self) -> NDArray[np.bool_]:
        """Beyond the floor, downwards."""
        return np.asarray(self.high < -self.floor)


def classify(
    chosen: Move,
    argmax: Move,
    gap: Move,
    rejected: Move | None,
    room: Floats | float,
    /,
    *,
    thresholds: Thresholds = DEFAULT,
) -> NDArray[np.str_]:
    """The class of each entry (module docstring); all arrays of one shape, `room` = −argmax at the start, in nats.

    NaN in chosen or argmax, or in their intervals, gives cannot-tell; NaN in rejected counts as unknown.

    >>> def one(c, a):
    ...     return str(classify(Move.of(np.array(c)), Move.of(np.array(a)), Move.of(np.array(a - c)), None, 60.0))
    >>> one(60.0, 17.0), one(-4.0, 20.0), one(-25.0, 0.0), one(3.4, 7.2)
    ('sft-normal', 'squeezing', 'displacement', 'squeezing')
    """
    c, a = chosen.value, argmax.value
    fell = np.zeros(np.shape(c), bool) if rejected is None else rejected.down
    small = (np.abs(a) < thresholds.flat * np.abs(c)) & (a < thresholds.flat * np.asarray(room))
    lags = gap.up & argmax.up & (gap.low >= thresholds.flat * np.abs(a))
    unknown = np.isnan(c) | np.isnan(chosen.low) | np.isnan(a) | np.isnan(argmax.low)
    rules = [
        (unknown, "cannot-tell"),
        (chosen.down & argmax.up & ~small, "squeezing"),
        (chosen.down & argmax.down & ~small, "divergence"),
        (chosen.down, "displacement"),
        (lags, "squeezing"),
        (chosen.up & fell, "healthy"),
        (chosen.up, "sft-normal"),
        (argmax.up & gap.up, "squeezing"),
        (fell, "rejection"),
    ]
    return np.select([np.asarray(rule) for rule, _ in rules], [name for _, name in rules], "not-learning")


def classify_examples(
    chosen: Floats,
    argmax: Floats,
    rejected: Floats | None,
    floor: Floats | float,
    /,
    *,
    thresholds: Thresholds = DEFAULT,
) -> NDArray[np.str_]:
    """The class of each single example, by the signs of its changes; squeezing = chosen down and argmax up.

    `lagging`: chosen not down, argmax up by more than chosen. Floors in nats, one an example or one for all.

    >>> classify_examples(np.array([-1.0, 2.0, -4.0]), np.array([1.0, 1.0, -0.5]), None, 0.01).tolist()
    ['squeezing', 'sft-normal', 'displacement']
    """
    c, a, floor = chosen, argmax, np.asarray(floor)
    fell = np.zeros(np.shape(c), bool) if rejected is None else rejected < -floor
    small = np.abs(a) < thresholds.flat * np.abs(c)
    rules = [
        (np.isnan(c) | np.isnan(a), "cannot-tell"),
        ((c < -floor) & (a > floor), "squeezing"),
        ((c < -floor) & (a < -floor) & ~small, "divergence"),
        (c < -floor, "displacement"),
        ((a > floor) & (a - c > floor), "lagging"),
        ((c > floor) & fell, "healthy"),
        (c > floor, "sft-normal"),
        (fell, "rejection"),
    ]
    return np.select([np.asarray(rule) for rule, _ in rules], [name for _, name in rules], "not-learning")
