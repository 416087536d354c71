"""Intervals over examples, p-values with Holm's correction, and the run's own evaluation-to-evaluation jitter."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.thresholds import DEFAULT, Thresholds

__all__ = ["bootstrap_means", "holm", "interval", "jitter", "known_mean", "number", "p_value", "running_jitter"]

Floats = NDArray[np.float64]
_BLOCK = 1 << 22  # entries of the table of counts held at once
_PER_SIGMA = 0.6744897501960817 * 6**0.5  # median |second difference| of white noise of deviation 1


def number(x: float | np.floating[Any] | Floats, /) -> float | None:
    """A number for a JSON file: six decimals, None where it is not finite.

    >>> number(np.float64(0.1234567)), number(np.nan)
    (0.123457, None)
    """
    return round(float(x), 6) if np.isfinite(x) else None


def known_mean(values: Floats, /) -> Floats:
    """Mean over the last axis of what is finite; NaN where nothing is.

    >>> known_mean(np.array([[1.0, np.nan, 3.0], [np.nan] * 3])).tolist()
    [2.0, nan]
    """
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.asarray(np.where(count > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan))


def bootstrap_means(
    variables: Mapping[str, Floats], /, *, seed: int = 0, thresholds: Thresholds = DEFAULT
) -> dict[str, Floats]:
    """Means over examples of each variable [step, example] in each resample: name -> [resample, step].

    One resample draws the same examples for every variable and every step, so that differences keep their pairing. A
    NaN is left out of its mean; fewer than two known examples have no spread: NaN in every resample. Source: Efron &
    Tibshirani 1993, §13.3 (percentile intervals).

    >>> means = bootstrap_means({"x": np.array([[1.0, 3.0]])}, seed=0)
    >>> means["x"].shape, float(means["x"].mean().round(1))
    ((1000, 1), 2.0)
    """
    arrays = {name: np.asarray(a, float) for name, a in variables.items()}
    (n,) = {a.shape[1] for a in arrays.values()}
    rng, total = np.random.default_rng(seed), int(thresholds.resamples)
    out: dict[str, list[Floats]] = {name: [] for name in arrays}
    block = max(1, _BLOCK // n)
    for start in range(0, total, block):
        size = min(block, total - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        # The multinomial counts, five times as fast as drawing them one by one.
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)
        for name, a in arrays.items():
            known = np.isfinite(a)
            weight = np.where(known.sum(1) < 2, 0.0, counts @ known.T)
            with np.errstate(invalid="ignore", divide="ignore"):
                out[name].append(counts @ np.where(known, a, 0.0).T / np.where(weight > 0, weight, np.nan))
    return {name: np.concatenate(parts) for name, parts in out.items()}


def interval(means: Floats, /, *, thresholds: Thresholds = DEFAULT) -> tuple[Floats, Floats]:
    """Percentile interval (low, high) along the first axis; a NaN (a resample without a known example) is left out.

    >>> low, high = interval(np.arange(101.0))
    >>> float(low.round(3)), float(high.round(3))
    (2.5, 97.5)
    """
    tail = (1.0 - thresholds.level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    some = np.isnan(low) & ~np.isnan(means).all(0)
    if some.any():  # the fast way has given NaN for the whole column
        low, high = np.array(low), np.array(high)
        low[some], high[some] = np.nanquantile(means[:, some], [tail, 1.0 - tail], axis=0)
    return low, high


def jitter(series: Floats, /, *, thresholds: Thresholds = DEFAULT) -> float:
    """Evaluation-to-evaluation noise of a curve, nats: median |second difference| / (0.6745 √6); 0 if too short.

    A straight line has none; white noise of deviation σ gives σ, since a second difference has variance 6σ².

    >>> jitter(np.arange(10.0))
    0.0
    """
    known = series[np.isfinite(series)]
    if len(known) < thresholds.jitter_evaluations:
        return 0.0
    return float(np.median(np.abs(np.diff(known, 2))) / _PER_SIGMA)


def running_jitter(series: Floats, /, *, least: float | None = None, thresholds: Thresholds = DEFAULT) -> Floats:
    """The jitter of each beginning of a curve, [evaluation]: what was known of it at that evaluation.

    Entry t is `jitter(series[:t + 1])`, for all t in one pass (a running median of two heaps); `least` evaluations are
    needed, `jitter_evaluations` unless another number is given.

    >>> running_jitter(np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])).round(3).tolist()[6:]
    [0.0, 1.211, 1.211]
    """
    out = np.zeros(len(series))
    least = thresholds.jitter_evaluations if least is None else least
    below: list[float] = []  # the smaller half, negated
    above: list[float] = []
    last: list[float] = []
    count = 0
    for t, value in enumerate(np.asarray(series, float).tolist()):
        if np.isfinite(value):
            count += 1
            last = [*last[-2:], value]
            if count >= 3:
                bend = abs((last[2] - last[1]) - (last[1] - last[0]))
                heapq.heappush(above, -heapq.heappushpop(below, -bend))
                if len(above) > len(below):
                    heapq.heappush(below, -heapq.heappop(above))
        if count >= least and below:
            middle = -below[0] if len(below) > len(above) else (above[0] - below[0]) / 2.0
            out[t] = middle / _PER_SIGMA
    return out


def p_value(units: Floats, /) -> float:
    """One-sided p-value of mean > 0 (positive = as stated; the other side: `p_value(-units)`), from Student's t.

    p = P(t_{n−1} ≥ mean/(s/√n)) over the n finite units. Exact for normal units; otherwise off by O(skewness/√n), as
    sign flips are, but with no seed and no floor at 1/(number of flips). Units that are all equal have no spread to
    compare with: then p = 2⁻ⁿ for a positive value, as for signs alone, and 1 otherwise. Fewer than two units: NaN.

    >>> round(p_value(np.array([1.0, 2.0, 3.0, np.nan])), 4), p_value(np.array([0.5, 0.5, 0.5]))
    (0.0371, 0.125)
    """
    from scipy.special import stdtr

    known = np.asarray(units, float)
    known = known[np.isfinite(known)]
    n = len(known)
    if n < 2:
        return float("nan")
    mean, spread = float(known.mean()), float(known.std(ddof=1))
    if spread <= float(np.finfo(float).eps) * n * abs(mean):
        return 2.0**-n if mean > 0 else 1.0
    return float(stdtr(n - 1, -mean / (spread / n**0.5)))


def holm(p: Floats, /) -> Floats:
    """P-values adjusted for one family (Holm's step-down): those ≤ α hold together with error ≤ α, any dependence.

    Sorted ascending, p̃_(i) = min(1, max_{j ≤ i} (m − j + 1) p_(j)). NaN (not tested) stays NaN and is not counted in m.
    Source: Holm 1979, Scand. J. Statist. 6:65.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    out = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    out[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(order), 0, -1) * values[order]))
    return out
