"""Effects of runs with their intervals: means over units that share every evaluation's jitter, and compound statements.

The units of a run are its examples, or its seeds where it has several. Examples are spread around the run's mean, and
all of them share what happens to an evaluation as a whole: where the mean curve jitters by σ_j from evaluation to
evaluation, a difference of two evaluations has the variance s²/n + 2σ_j², however many examples were probed. Seeds
jitter each on its own, so that their spread holds it already.

σ_j is a median, of what most evaluations do. A rare lurch many times as large is not in it and can pass for a change if
it hits the first or the last evaluation; nor is a slow drift without cause, which is a change of that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.resample import jitter, known_mean, p_value
from toyld.diagnosis.thresholds import DEFAULT

__all__ = [
    "Curve",
    "Effect",
    "Moments",
    "Part",
    "Peak",
    "Sample",
    "never_below",
    "peak",
    "peaked",
    "ranked",
    "untested",
]

Floats = NDArray[np.float64]
NAN = float("nan")
MEAN = "a mean without its examples: no interval, no verdict"
JITTER = (
    f"jitter not known (under {DEFAULT.jitter_evaluations:g} evaluations, no several seeds): no interval, no verdict"
)
FLOOR = -1e4  # below every logarithm of a float
# Student's t with (m − 2)/3 degrees of freedom is wider than the change of a curve of m evaluations of white noise over
# its own jitter (a median of m − 2 second differences), in every tail from 5 % to 0.05 % and for every m from 8 to 137:
# simulated, those distributions have (m − 2)/1.4 to (m − 2)/3.0. The tests simulate it again.
DIFFERENCES_A_DEGREE = 3.0


@dataclass(frozen=True)
class Effect:
    """`value` > 0 = as stated, with its 95 % interval, over `n` units; `p` one-sided against value ≤ 0.

    `p_below`: one-sided against value ≥ 0; 1 − p unless the statement is compound. NaN where nothing can be tested.
    `parts`: what it was computed from, and can be again: of `ranked` an array (unit,) a part, of `peaked` (`rank`
    None) an array (evaluation, unit) a curve, of counts (`rank` 0, `toyld.claims.counted`) 1 or 0 a unit. Examples, who
    share their evaluations' jitter, are a `Sample` (or its `Moments`) a part and a `Curve` (or its `Peak`) a curve.
    Two effects of equal numbers are equal, whatever these.

    >>> round(Effect(1.0, 0.5, 1.5, 20, 0.001).two_sided, 6)
    0.002
    """

    value: float
    low: float
    high: float
    n: int
    p: float
    p_below: float | None = None
    parts: tuple[Any, ...] | None = field(default=None, compare=False, repr=False)
    rank: int | None = field(default=None, compare=False, repr=False)

    @property
    def below(self) -> float:
        """One-sided p-value of the opposite."""
        return 1.0 - self.p if self.p_below is None else self.p_below

    @property
    def two_sided(self) -> float:
        """min(1, 2 min(p, p_below)); NaN where nothing was tested."""
        return float(np.minimum(1.0, 2.0 * np.minimum(self.p, self.below)))


def untested(effect: Effect, /) -> str | None:
    """Why an effect has no p-value; None if it has one.

    >>> untested(Effect(1.0, NAN, NAN, 1, NAN))
    'a mean without its examples: no interval, no verdict'
    """
    if not np.isnan(effect.two_sided):
        return None
    return MEAN if effect.n < 2 else JITTER


@dataclass(frozen=True)
class Part:
    """A number for each unit, read off a curve at one or two evaluations, and the curve for its jitter.

    `weight`: sum of the squared weights of the evaluations, 2 for the difference of two of them. A difference of two
    parts (of two probes, or of a run and its control) is read off the difference of their curves, so that a shift which
    both share cancels.
    """

    units: Floats  # [unit]
    curve: Floats  # [evaluation, unit]
    weight: float
    seeds: bool = False

    def __neg__(self) -> Part:
        return replace(self, units=-self.units)

    def __sub__(self, other: Part) -> Part:
        if (self.weight, self.seeds, self.curve.shape) != (other.weight, other.seeds, other.curve.shape):
            msg = "expected two parts of the same units at the same evaluations"
            raise ValueError(msg)
        return replace(self, units=self.units - other.units, curve=self.curve - other.curve)

    def shifted(self, by: float, /) -> Part:
        """The same with a constant added."""
        return replace(self, units=self.units + by)


@dataclass(frozen=True)
class Curve:
    """Values [evaluation, unit] of one probe of one run; `seeds`: its units are seeds, not examples.

    >>> Curve(np.array([[0.0, 1.0], [2.0, 5.0]])).between(0, -1).units.tolist()
    [2.0, 4.0]
    """

    values: Floats
    seeds: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def at(self, k: int, /) -> Part:
        """One evaluation."""
        return Part(self.values[k], self.values, 1.0, self.seeds)

    def between(self, first: int, last: int, /) -> Part:
        """Evaluation `last` minus evaluation `first`."""
        return Part(self.values[last] - self.values[first], self.values, 2.0, self.seeds)


@dataclass(frozen=True)
class Sample:
    """Finite units (n,) of one number, and the variance that all of them share, known with `df` degrees of freedom.

    Their mean has t = mean/se, se² = s²/n + variance (Welch & Satterthwaite); a variance of NaN is not known.
    """

    units: Floats
    variance: float = 0.0
    df: float = float("inf")

    @property
    def n(self) -> int:
        """How many."""
        return len(self.units)

    @property
    def value(self) -> float:
        """Their mean."""
        return float(self.units.mean()) if self.n else NAN

    @property
    def noise(self) -> tuple[float, float]:
        """Standard error and degrees of freedom."""
        own = float(self.units.var(ddof=1)) / self.n
        both = own + self.variance
        if not self.variance > 0.0:
            return both**0.5, self.n - 1.0
        return both**0.5, both**2 / (own**2 / (self.n - 1) + self.variance**2 / self.df)

    def p(self, sign: float, /) -> float:
        """One-sided p-value of sign · mean > 0."""
        from scipy.special import stdtr

        if self.variance == 0.0 or self.n < 2:
            return p_value(sign * self.units)
        se, df = self.noise
        return float(stdtr(df, -sign * self.value / se))

    def bound(self, sign: float, tail: float, /) -> float:
        """Lower (sign −1) or upper (+1) bound of the mean that fails with probability `tail`."""
        from scipy.special import stdtrit

        if self.n < 2:
            return NAN
        se, df = self.noise
        return self.value + sign * float(stdtrit(df, 1.0 - tail)) * se


@dataclass(frozen=True)
class Moments:
    """All that `ranked` and `peaked` ask of a sample: how many units, their mean and deviation (n − 1), what is shared.

    >>> one = Sample(np.array([1.0, 2.0, 6.0]), 0.25, 4.0)
    >>> ranked([Moments.of(one)]) == ranked([one]), Moments.of(one).mean
    (True, 3.0)
    """

    n: int
    mean: float
    deviation: float
    variance: float = 0.0
    df: float = float("inf")

    @classmethod
    def of(cls, sample: Sample, /) -> Moments:
        """Those of a sample."""
        deviation = float(sample.units.std(ddof=1)) if sample.n > 1 else NAN
        return cls(sample.n, sample.value, deviation, sample.variance, sample.df)

    def sample(self) -> Sample:
        """A sample that has them: half of it above the mean, half of it below."""
        half = self.n // 2
        away = self.deviation * (1.0 if self.n % 2 else ((self.n - 1) / self.n) ** 0.5) if half else 0.0
        signs = np.concatenate([np.ones(half), -np.ones(half), np.zeros(self.n % 2)])
        return Sample(self.mean + away * signs, self.variance, self.df)


def _shared(curve: Floats, weight: float, seeds: bool) -> tuple[float, float]:
    """weight · σ_j² of the mean curve, and its degrees of freedom; NaN where examples are too short to know it."""
    if seeds:
        return 0.0, float("inf")
    # Summing mean increments, not taking means: which units were measured at which evaluation shifts nothing.
    path = np.cumsum(np.concatenate([[0.0], known_mean(np.diff(curve, axis=0))]))
    known = int(np.isfinite(path).sum())
    if known < DEFAULT.jitter_evaluations:
        return NAN, NAN
    return weight * jitter(path) ** 2, (known - 2) / DIFFERENCES_A_DEGREE


def _sample(part: Part | Sample | Moments | Floats) -> Sample:
    if isinstance(part, Sample | Moments):
        return part.sample() if isinstance(part, Moments) else part
    units = part.units if isinstance(part, Part) else np.asarray(part, float)
    known = np.isfinite(units)
    if not isinstance(part, Part):
        return Sample(units[known])
    return Sample(units[known], *_shared(part.curve[:, known], part.weight, part.seeds))


def _kept(part: Part | Sample | Moments | Floats, sample: Sample) -> Any:
    """What the effect keeps of a part: of examples the sample, else the units."""
    if isinstance(part, Part):
        return part.units if part.seeds else sample
    return part if isinstance(part, Sample | Moments) else np.asarray(part, float)


def ranked(parts: Sequence[Part | Sample | Moments | Floats], rank: int = 1, /) -> Effect:
    """The `rank`-th smallest of the means of K parts: positive if all but rank − 1 of them are.

    A part is a `Part`, a `Sample`, its `Moments`, or an array of units that share nothing. rank 1 = every part (with
    K = 1 a plain mean), 2 = all but one. p = rank · p_(K−rank+1) and p_below = (K − rank + 1) · p'_(rank) with p-values
    in ascending order: Bonferroni's partial conjunctions (Benjamini & Heller 2008, Biometrics 64:1215), valid whatever
    the dependence; the interval inverts them. n = fewest units of a part. Where one part's jitter is not known nothing
    is tested.

    >>> e = ranked([np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])])
    >>> e.value, e.n, round(e.p, 4), round(e.low, 2)
    (2.0, 3, 0.0371, -0.48)
    """
    means = [_sample(part) for part in parts]
    k, tail = len(means), (1.0 - DEFAULT.level) / 2.0
    if not 1 <= rank <= k:
        msg = f"expected a rank in 1 … {k}, got {rank}"
        raise ValueError(msg)
    n = min(m.n for m in means)
    value = float(np.sort([m.value for m in means])[rank - 1])
    kept = tuple(_kept(x, m) for x, m in zip(parts, means, strict=True))
    if n < 2 or any(np.isnan(m.variance) for m in means):
        return Effect(value, NAN, NAN, n, NAN, NAN, kept, rank)
    above, below = np.sort([m.p(1.0) for m in means]), np.sort([m.p(-1.0) for m in means])
    low = np.sort([m.bound(-1.0, tail / rank) for m in means])[rank - 1]
    high = np.sort([m.bound(1.0, tail / (k - rank + 1)) for m in means])[rank - 1]
    p, p_below = min(1.0, rank * above[k - rank]), min(1.0, (k - rank + 1) * below[rank - 1])
    return Effect(value, float(low), float(high), n, float(p), float(p_below), kept, rank)


def never_below(units: Sequence[Floats], /) -> Effect:
    """What has to hold in every unit: the mean of each one's least number (unit,); where some are below 0, of those.

    So no effect with a violation is above 0, or has p below 1/2. One alone has no interval: then every other unit
    counts as 0, and the effect is tested, undecided, so that no other run decides for this one. −∞ is a violation; a
    NaN hides none.

    >>> never_below([np.array([1.0, 2.0, 3.0])]).value, never_below([np.array([1.0, -2.0, -3.0])]).value
    (2.0, -2.5)
    >>> never_below([np.array([1.0, -3.0, 2.0])]).value
    -1.0
    """
    every = np.maximum(np.asarray(units, float), FLOOR)
    least, bad = np.min(every, axis=0), (every < 0.0).any(0)
    if not bad.any():
        return ranked([least])
    worst = np.fmin.reduce(every)
    return ranked([np.where(bad, worst, np.nan if bad.sum() > 1 else 0.0)])


@dataclass(frozen=True)
class Peak:
    """A curve as `peaked` reads it: at each inner evaluation its units above the first and above the last one."""

    pairs: tuple[tuple[Sample | Moments, Sample | Moments], ...]


def peak(curve: Curve | Peak | Floats, /) -> Peak:
    """A curve as `peaked` reads it."""
    if isinstance(curve, Peak):
        return curve
    x = curve.values if isinstance(curve, Curve) else np.asarray(curve, float)
    x = x[:, np.isfinite(x[[0, -1]]).all(0)]
    shared = _shared(x, 2.0, curve.seeds) if isinstance(curve, Curve) else ()
    inner = [(at, np.isfinite(at)) for at in x[1:-1]]
    pairs = [[Sample((at - end)[known], *shared) for end in (x[0], x[-1])] for at, known in inner if known.any()]
    return Peak(tuple((above_first, above_last) for above_first, above_last in pairs))


def _bell(curve: Curve | Peak | Floats, share: int) -> Effect:
    """One curve of `share`: goes up and then down."""
    inner = [[_sample(one) for one in pair] for pair in peak(curve).pairs]
    tail = (1.0 - DEFAULT.level) / 2.0
    value = max((min(m.value for m in pair) for pair in inner), default=NAN)
    n = min((m.n for pair in inner for m in pair), default=0)
    if n < 2 or any(np.isnan(m.variance) for pair in inner for m in pair):
        return Effect(value, NAN, NAN, n, NAN, NAN)
    k = len(inner)
    p = min(1.0, k * min(max(m.p(1.0) for m in pair) for pair in inner))
    p_below = max(min(1.0, 2.0 * min(m.p(-1.0) for m in pair)) for pair in inner)
    low = max(min(m.bound(-1.0, tail / k) for m in pair) for pair in inner)
    high = max(min(m.bound(1.0, tail / (2 * share)) for m in pair) for pair in inner)
    return Effect(value, low, high, n, p, p_below)


def _curve(curve: Curve | Peak | Floats) -> Any:
    """What the effect keeps of a curve: of examples, whose levels differ by far more, as changes since the first."""
    if not isinstance(curve, Curve):
        return curve if isinstance(curve, Peak) else np.asarray(curve, float)
    return curve.values if curve.seeds else Curve(curve.values - curve.values[:1])


def peaked(curves: Sequence[Curve | Peak | Floats], /) -> Effect:
    """Whether every curve [step, unit] goes up and then down: min over curves, max over k, min(x_k − x_0, x_k − x_end).

    The peak is the best of K inner evaluations, so each is tested at 1/K of the level; the opposite (at no evaluation
    does the curve stand above both ends) must be shown at every evaluation and by one of two ends.

    >>> e = peaked([np.array([[0.0, 0.0, 0.0], [2.9, 3.0, 3.1], [1.0, 0.8, 1.2]])])
    >>> round(e.value, 2), round(e.p, 4)
    (2.0, 0.0012)
    """
    found = [_bell(curve, len(curves)) for curve in curves]
    p = float(np.max([e.p for e in found]))
    p_below = float(np.minimum(1.0, len(curves) * np.min([e.below for e in found])))
    value, low, high = (float(np.min([getattr(e, name) for e in found])) for name in ("value", "low", "high"))
    kept = tuple(_curve(x) for x in curves)
    return Effect(value, low, high, min(e.n for e in found), p, p_below, kept)
