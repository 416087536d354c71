"""Whether the reference is the policy that training started from: rewards must be 0 before the first update."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from toyld.diagnosis._logged import Logged
from toyld.diagnosis.thresholds import Thresholds

__all__ = ["start"]

Floats = NDArray[np.float64]
_LN2 = math.log(2.0)
_CAUSES = (
    "another model or adapter serves as reference, log-probabilities were precomputed with another model, or dropout "
    "is on in one of the two"
)


def _list(values: dict[str, float]) -> str:
    return " and ".join(f"{value:.3g} ({side})" for side, value in values.items())


def _direct(log: Logged, row: int, beta: float | None, thresholds: Thresholds) -> tuple[bool | None, str]:
    """The rewards of a row that was measured before the first update."""
    reward = {side: float(a[row]) for side, a in log.reward.items()}
    what = "in the batches of the first update (step 1), scored before it," if log.train else "at step 0"
    if all(abs(r) <= log.rounding(side, beta) for side, r in reward.items()):
        text = f"{what} rewards are {_list(reward)}, 0 within rounding: the reference is the policy at the start"
        return False, text
    largest = max(map(abs, reward.values()))
    nats, least = largest / (beta or 1.0), thresholds.material * log.level
    if math.isnan(least):  # no log-probability beside it: in units of log-odds of the pair
        nats, least = largest, thresholds.material
    size = f"{nats:.3g} nats" if beta else f"{nats:.3g} nats / beta (beta is not known)"
    if nats <= least:
        return False, (
            f"{what} rewards are {_list(reward)}: not 0, but {size} is below {thresholds.material:.0%} of the "
            f"log-probability, which scoring in half precision or in other batches can leave"
        )
    return True, (
        f"{what} rewards are {_list(reward)}, up to {size}, not 0: the reference is not the policy that training "
        f"started from ({_CAUSES})"
    )


def _path(log: Logged, rows: NDArray[np.int64], lr: Floats) -> Floats:
    """Sum of learning rates before each row: mean over the row's window for train rows; updates where lr is unknown."""
    known = np.isfinite(lr) & (log.step > 0)
    at = log.step[rows].astype(float)
    if known.any() and (lr[known] > 0).any():
        steps, rates = log.step[known].astype(float), lr[known]
        first = 0.0 if rates.size > 1 and rates[1] > rates[0] else rates[0]  # warm-up starts at 0
        steps, rates = np.append(0.0, steps), np.append(first, rates)
        sums = np.append(0.0, np.cumsum(np.diff(steps) * (rates[1:] + rates[:-1]) / 2))
        path = np.interp(at, steps, sums)
        at = path if (np.diff(np.append(0.0, path)) > 0).all() else at
    return (at + np.append(0.0, at[:-1])) / 2 if log.train else at


class _Line(NamedTuple):
    at_zero: float
    half: float

    @property
    def far(self) -> bool:
        """0 lies outside the interval."""
        return abs(self.at_zero) > self.half


def _back(x: Floats, y: Floats, rounding: float, thresholds: Thresholds) -> _Line:
    """Straight line back to x = 0 with its interval from the scatter (Student's t)."""
    centred = x - x.mean()
    sxx = float((centred**2).sum())
    slope = float((centred * y).sum()) / sxx
    at_zero = float(y.mean()) - slope * float(x.mean())
    scatter = math.sqrt(float(((y - at_zero - slope * x) ** 2).sum()) / (x.size - 2))
    t = float(stdtrit(x.size - 2, 0.5 + thresholds.level / 2))
    return _Line(at_zero, t * scatter * math.sqrt(1 / x.size + float(x.mean()) ** 2 / sxx) + rounding)


def _indirect(log: Logged, lr: Floats, beta: float | None, thresholds: Thresholds) -> tuple[bool | None, str]:
    """The first rows against 0 and against how fast rewards move afterwards.

    Suspicious is a first row that extrapolates to other than 0 beyond the interval, is material in nats, and was not
    approached: later rewards change per update by less than `flat` of what the first row needed, and by less than a run
    that settles in `settle_updates` t shows after s updates, t / s (a train row, mean of them) or exp(−s / t) (an
    evaluation). The first is enough where the margin is below 0, for no training settles there.
    """
    rows = log.rows()[: int(thresholds.first_rows)]
    first = rows[0]
    step = int(log.step[first])
    reward = {side: float(a[first]) for side, a in log.reward.items()}
    kind = "train row" if log.train else "evaluation"
    text = (
        f"no evaluation at step 0: whether the reference is the policy at the start cannot be checked directly (set "
        f"eval_on_start=True); the first {kind} (step {step}) has rewards {_list(reward)}"
    )
    if log.train and log.loss is not None and np.isfinite(log.loss[first]):
        text += f" and loss {log.loss[first]:.4f} ({_LN2:.4f} in DPO where rewards are 0)"
    x = _path(log, rows, lr)
    if rows.size < 3 or step < 1 or not (np.diff(x) > 0).all():
        return None, f"{text}; {rows.size} row(s) are too few to extrapolate to step 0"
    x = x / x[-1]
    series = {side: a[rows] for side, a in log.reward.items()}
    if len(series) == 2:
        series["margin"] = series["chosen"] - series["rejected"]
    span = np.diff(log.step[rows].astype(float))
    lines, pace = {}, {}
    for name, y in series.items():
        rounding = max(log.rounding(side, beta) for side in log.reward) * (2 if name == "margin" else 1)
        lines[name] = line = _back(x, y, rounding, thresholds)
        material = abs(float(y[0])) / (beta or 1.0) > thresholds.material * log.level  # False where level is NaN
        if line.far and line.at_zero * y[0] > 0 and material:
            pace[name] = float(((np.abs(np.diff(y)) + 2 * rounding) / span).max()) / (abs(float(y[0])) / step)
    ends = " and ".join(f"{lines[side].at_zero:.3g} ± {lines[side].half:.2g} ({side})" for side in log.reward)
    text += f"; a line through the first {rows.size} leads to {ends} at step 0"
    backwards = pace.get("margin", math.inf) < thresholds.flat and float(series["margin"][0]) < 0
    slowest = pace["margin"] if backwards else min(pace.values(), default=math.inf)
    settled = thresholds.settle_updates / step if log.train else math.exp(-step / thresholds.settle_updates)
    if backwards or slowest < min(thresholds.flat, settled):
        return True, (
            f"{text}, and from then on rewards move at {slowest:.1%} of the pace that the first row needed: they were "
            f"there before training, so the reference is not the policy that training started from ({_CAUSES})"
        )
    if slowest < thresholds.flat:
        return None, f"{text}: another reference, or a run that has finished moving within {step} updates"
    if not any(lines[side].far for side in log.reward):
        return False, f"{text}, which leaves 0 possible"
    return False, f"{text}; not 0, but rewards move fast enough in these rows for a curve that starts at 0"


def start(
    logs: list[Logged], lr: Floats, /, *, beta: float | None, thresholds: Thresholds
) -> tuple[bool | None, dict[str, str]]:
    """(whether another policy than the starting one serves as reference, the finding); logs with rewards, not empty.

    None: these rows leave it open.

    `lr` [step], NaN where unknown. Direct where an evaluation at step 0 or a train row at step 1 exists (the Trainer
    logs what the forward passes before the update gave), else from the first train rows, else from the first
    evaluations.

    >>> log = Logged("", False, np.array([0, 10]), {"chosen": np.array([-3.0, -3.5])}, {"chosen": -np.ones(2)})
    >>> start([log], np.full(2, np.nan), beta=0.1, thresholds=Thresholds())[0]
    True
    """
    for log in logs:
        measured = [row for row in log.rows() if log.step[row] == int(log.train)]
        if measured:
            suspect, text = _direct(log, int(measured[0]), beta, thresholds)
            break
    else:
        train = [log for log in logs if log.train]
        suspect, text = _indirect((train or logs)[0], lr, beta, thresholds)
    return suspect, {"code": "reference-suspect" if suspect else "step-zero", "text": text}
