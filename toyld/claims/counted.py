"""How many units reach a bar: effects of counts, by the binomial and exactly, where a mean of shares has no spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toyld.claims.effects import Effect
from toyld.diagnosis.thresholds import DEFAULT

__all__ = ["in_most"]

HALF = 0.5


def in_most(parts: Sequence[np.ndarray], bar: float, /) -> Effect:
    """Share of the units (n,) whose value is at least a bar, less half: the least of K parts; NaN = not a unit.

    Of each part an exact test of k of n against ½ and Clopper & Pearson's interval (1934, Biometrika 26:404). All parts
    must hold: p is the largest of theirs; p_below is Bonferroni's, as the upper end is. n: fewest units of a part. The
    effect keeps whether each unit reaches the bar (1, 0, NaN), with `rank` 0: from these it follows.

    >>> e = in_most([np.ones(32)], 1.0)
    >>> e.value, round(e.low, 3), e.high, e.p == 2.0**-32
    (0.5, 0.391, 0.5, True)
    """
    from scipy.special import bdtr, bdtrc, betaincinv

    tail, each = (1.0 - DEFAULT.level) / 2.0, []
    # Means of booleans are exact but for rounding.
    reached = tuple(np.where(np.isnan(part), np.nan, np.asarray(part) >= bar - 1e-9) for part in parts)
    for part in reached:
        n, k = int(np.isfinite(part).sum()), int(np.nansum(part))
        if n < 2:
            return Effect(k / n - HALF if n else np.nan, np.nan, np.nan, n, np.nan, np.nan, reached, 0)
        low = betaincinv(k, n - k + 1, tail) if k else 0.0
        high = betaincinv(k + 1, n - k, 1.0 - tail / len(parts)) if k < n else 1.0
        each.append((k / n, low, high, n, bdtrc(k - 1, n, HALF) if k else 1.0, bdtr(k, n, HALF)))
    value, low, high, known, p, below = np.array(each).T
    value, low, high = (float(x.min()) - HALF for x in (value, low, high))
    return Effect(
        value, low, high, int(known.min()), float(p.max()), min(1.0, len(parts) * float(below.min())), reached, 0
    )
