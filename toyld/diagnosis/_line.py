"""The line log π_t = ref + r_t / β through logged rewards and log-probabilities of one fixed set of examples.

One slope 1/β for both sides, an intercept each. The only errors are the rounding of the logged digits and float32, so
a point either fits within what they allow or does not belong.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.thresholds import Thresholds

__all__ = ["FLOAT32", "Points", "Recovered", "half_unit", "proportional", "recover"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
FLOAT32 = 8.0 * float(np.finfo(np.float32).eps)  # relative: log π and log π_ref, each rounded four times on its way
_TINY = 1e-12  # nats: keeps weights finite where nothing was rounded
_ROUNDS = 50  # of reweighting, towards least absolute deviations; what fits is decided afterwards, by least squares


def half_unit(values: Floats, /) -> float:
    """Half a unit of the last printed decimal; the column's median, since trailing zeros do not print.

    >>> half_unit(np.array([0.4598, -1.604, 2.31, -0.5712, 0.1234]))
    5e-05
    """
    some = values[np.isfinite(values) & (values != 0)][:1000]
    places = sorted(len(np.format_float_positional(x, trim="-").partition(".")[2]) for x in some)
    return 0.5 * 10.0 ** -places[len(places) // 2] if places else 0.0


class Points(NamedTuple):
    """Rewards x and log-probabilities y of all evaluations and sides, with the rounding of each."""

    x: Floats
    y: Floats
    side: NDArray[np.int64]
    step: NDArray[np.int64]
    dx: Floats
    dy: Floats

    def allowed(self, slope: float) -> Floats:
        """The largest |y − ref − slope x| that rounding explains."""
        return self.dy + abs(slope) * self.dx


class Recovered(NamedTuple):
    """β with its interval and the reference of each side with its half width; `beta` None where no line fits.

    `off`: points that do not fit; `excess`: |residual| in units of what is allowed; `residual` in nats; `checked`:
    more points than unknowns.
    """

    beta: float | None
    low: float
    high: float
    ref: dict[int, tuple[float, float]]
    off: Bools
    excess: Floats
    residual: Floats
    checked: bool


class _Fit(NamedTuple):
    slope: float
    ref: dict[int, float]
    residual: Floats
    centred: Floats  # x − its side's mean
    sxx: float
    mean: dict[int, float]
    weight: dict[int, float]


def _fit(p: Points, weight: Floats) -> _Fit | None:
    """Weighted least squares; None where the rewards do not move or a side has no weight."""
    centred, level = np.zeros_like(p.x), np.zeros_like(p.y)
    mean, top, total = {}, {}, {}
    for s in np.unique(p.side).tolist():
        here = p.side == s
        total[s] = float(weight[here].sum())
        if not total[s] > 0:
            return None
        mean[s] = float(np.average(p.x[here], weights=weight[here]))
        top[s] = float(np.average(p.y[here], weights=weight[here]))
        centred[here], level[here] = p.x[here] - mean[s], p.y[here] - top[s]
    sxx = float((weight * centred**2).sum())
    if not sxx > 0:
        return None
    slope = float((weight * centred * level).sum()) / sxx
    return _Fit(slope, {s: top[s] - slope * mean[s] for s in mean}, level - slope * centred, centred, sxx, mean, total)


def _limit(p: Points, fit: _Fit, weight: Floats) -> Floats:
    """The largest residual that rounding explains: least squares leaves (1 − H) e, so |r| ≤ (1 + Σ|H|) allowed."""
    allowed = p.allowed(fit.slope)
    own = np.zeros_like(allowed)
    for s, total in fit.weight.items():
        own[p.side == s] = float((weight * allowed)[p.side == s].sum()) / total
    pull = float((weight * np.abs(fit.centred) * allowed).sum()) / fit.sxx
    return np.maximum(allowed + own + np.abs(fit.centred) * pull, _TINY)


def recover(p: Points, /, *, thresholds: Thresholds) -> Recovered | None:
    """β and the references from the line that most points share; None where the rewards hardly move.

    Least absolute deviations find the majority's line, least squares on what fits it gives the numbers. Intervals: the
    rounding of each value as uniform and independent. Not recovered where rounding blurs the rewards so much that the
    slope would shrink by more than its interval.

    >>> x = np.array([0.1, -0.2, -0.5, -0.1, -0.9, -1.4])
    >>> p = Points(x, -200 + 10 * x, np.zeros(6, int), np.arange(6), np.full(6, 5e-5), np.full(6, 5e-5))
    >>> found = recover(p, thresholds=Thresholds())
    >>> round(found.beta, 6), round(found.ref[0][0], 6), bool(found.off.any())
    (0.1, -200.0, False)
    """
    unknowns = len(np.unique(p.side)) + 1
    if p.x.size < unknowns:
        return None
    no_line = Recovered(None, math.nan, math.nan, {}, np.ones(p.x.shape, bool), np.ones_like(p.x), p.y, True)
    fit = _fit(p, np.ones_like(p.x))
    if fit is None:  # constant rewards: a line only where the log-probabilities are constant too
        level = np.zeros_like(p.y)
        for s in np.unique(p.side):
            level[p.side == s] = np.median(p.y[p.side == s])
        excess = np.abs(p.y - level) / np.maximum(2.0 * p.dy, _TINY)
        return no_line._replace(off=excess > 1, excess=excess, residual=p.y - level) if (excess > 1).any() else None
    for _ in range(_ROUNDS):
        weight = 1.0 / np.maximum(np.abs(fit.residual), np.maximum(p.allowed(fit.slope), _TINY))
        fit = _fit(p, weight) or fit
    near = np.abs(fit.residual) <= thresholds.near * np.maximum(p.allowed(fit.slope), _TINY)
    # the variance of an error that is uniform within ± d is d² / 3
    weight = np.where(near, 3.0 / np.maximum(p.dy**2 + (fit.slope * p.dx) ** 2, _TINY**2), 0.0)
    last = _fit(p, weight)
    if last is None:
        excess = np.abs(fit.residual) / np.maximum(p.allowed(fit.slope), _TINY)
        return no_line._replace(off=~near, excess=excess, residual=fit.residual)
    excess = np.abs(last.residual) / _limit(p, last, weight)
    off = excess > 1.0
    fitting = int((~off).sum())
    few = fitting <= thresholds.majority * off.size or fitting < unknowns + thresholds.spare_points
    if off.any() and few:
        return no_line._replace(off=off, excess=excess, residual=last.residual)
    z = NormalDist().inv_cdf(0.5 + thresholds.level / 2)
    half = z / math.sqrt(last.sxx)
    # errors of x with variance dx² / 3 shrink a least-squares slope by their share of the variance of x
    blur = float(p.dx.max()) / math.sqrt(3.0) * math.sqrt(sum(last.weight.values()) / last.sxx)
    if last.slope < -half:  # rewards that rise where log-probabilities fall
        return no_line._replace(residual=last.slope * p.x)
    if not last.slope > half or not math.isfinite(last.slope) or blur**2 * last.slope > half:
        return None
    ref = {s: (a, z * math.hypot(last.weight[s] ** -0.5, last.mean[s] * last.sxx**-0.5)) for s, a in last.ref.items()}
    beta, low, high = (1.0 / slope for slope in (last.slope, last.slope + half, last.slope - half))
    return Recovered(beta, low, high, ref, off, excess, last.residual, p.x.size > unknowns)


def proportional(p: Points, /, *, thresholds: Thresholds) -> float | None:
    """β of r = β log π, rewards without a reference (ORPO, SimPO, CPO); None where they are not proportional.

    >>> y = np.array([-1.0, -1.2, -1.1, -1.4])
    >>> side, step, zero = np.array([0, 0, 1, 1]), np.arange(4), np.full(4, 1e-9)
    >>> round(proportional(Points(2.0 * y, y, side, step, zero, zero), thresholds=Thresholds()), 6)
    2.0
    """
    precise = np.abs(p.x) > thresholds.precise * p.dx
    # one value is proportional to anything
    if precise.sum() < 2 or precise.sum() < thresholds.majority * p.x.size or (p.y >= 0).any():
        return None
    weight = precise / p.y**2
    slope = float((weight * p.x * p.y).sum() / (weight * p.x**2).sum())
    allowed = p.allowed(slope)
    pull = float((weight * np.abs(p.x) * allowed).sum() / (weight * p.x**2).sum())
    fits = np.abs(p.y - slope * p.x) <= np.maximum(allowed + np.abs(p.x) * pull, _TINY)
    return 1.0 / slope if slope > 0 and bool(fits.all()) else None
