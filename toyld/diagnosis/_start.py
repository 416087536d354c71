"""Whether the reference is the policy that training started from: rewards must be 0 before the first update."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from toyld.diagnosis._logged import PAIR, Logged
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


def _limit(log: Logged, thresholds: Thresholds) -> float:
    """Nats beyond which a difference is another policy: material, and more than the noise of scoring one response.

    The log does not say how many examples its means are over, so noise counts as that of a single one.
    """
    level = log.level if math.isfinite(log.level) else thresholds.unlogged_level
    return max(thresholds.material * level, thresholds.difference * thresholds.token_noise * math.sqrt(level))


def _pairs(log: Logged, row: int, beta: float | None, thresholds: Thresholds) -> str:
    """What loss and accuracy say of single pairs whose means cancel; empty where they are those of equal policies.

    The sigmoid loss with any label smoothing is ln 2 ± at most m / 2 + log cosh(m / 2) of the margin m, and
    log cosh(m / 2) ≤ m² / 8, so mean m² ≥ 8 (loss − ln 2 − |mean m| / 2). Pairs of both signs (an accuracy between 0
    and 1) must agree: rounding alone gives them too, and other losses are not ln 2 at m = 0, so neither is a proof.
    """
    if log.loss is None or log.accuracy is None or set(log.reward) != set(PAIR):
        return ""
    loss, accuracy = float(log.loss[row]), float(log.accuracy[row])
    margin = float(log.reward["chosen"][row] - log.reward["rejected"][row])
    spread = math.sqrt(max(0.0, 8.0 * (loss - _LN2 - abs(margin) / 2)))  # 0 where the loss is NaN
    nats = spread / (beta or thresholds.largest_beta)
    if not 0 < accuracy < 1 or not nats > 2 * _limit(log, thresholds):  # both sides of a pair may be off by the limit
        return ""
    size = f"{nats:.3g} nats" if beta else f"{spread:.3g} nats / beta (beta is not known)"
    return (
        f"; but accuracy {accuracy:.3g} and loss {loss:.4g} are not those of equal policies (0 and, in the sigmoid "
        f"loss, {_LN2:.4f}): single pairs then differ from the reference by {size} or more (root mean square), and "
        f"cancel in the mean; unless the loss is another one, compare single rewards or check the reference"
    )


def _direct(log: Logged, row: int, beta: float | None, thresholds: Thresholds) -> tuple[bool | None, str]:
    """The rewards of a row that was measured before the first update."""
    reward = {side: float(a[row]) for side, a in log.reward.items()}
    what = "in the batches of the first update (step 1), scored before it," if log.train else "at step 0"
    pairs = _pairs(log, row, beta, thresholds)
    fine = None if pairs else False
    if all(abs(r) <= log.rounding(side, beta, thresholds=thresholds) for side, r in reward.items()):
        equal = "" if pairs else ": the reference is the policy at the start"
        return fine, f"{what} rewards are {_list(reward)}, 0 within rounding{equal}{pairs}"
    largest, text = max(map(abs, reward.values())), f"{what} rewards are {_list(reward)}"
    nats = largest / (beta or thresholds.largest_beta)
    limit, size = _limit(log, thresholds), f"{nats:.3g} nats"
    if not beta:
        size = f"{nats:.3g} nats or more (at any beta up to {thresholds.largest_beta:g})"
    if nats > limit:
        return True, (
            f"{text}, up to {size}, not 0: the reference is not the policy that training started from ({_CAUSES})"
        )
    if not beta:
        return None, (
            f"{text}: not 0; without beta, whether that is another reference or scoring noise cannot be judged: add "
            f"--beta 0.1, your DPOConfig.beta{pairs}"
        )
    if not nats <= thresholds.material * log.level:  # NaN where no log-probability was logged
        share = f"{nats / log.level:.1%} of the log-probability" if math.isfinite(log.level) else "of unknown responses"
        return None, (
            f"{text}: not 0, but {size} ({share}) may be what scoring single responses in half precision leaves (up to "
            f"{limit:.2g}): another reference, or noise{pairs}"
        )
    return fine, (
        f"{text}: not 0, but {size} is below {thresholds.material:.0%} of the log-probability, which scoring in half "
        f"precision or in other batches can leave{pairs}"
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
    # a line has two unknowns, its scatter needs a third row
    if rows.size < 3 or step < 1 or not (np.diff(x) > 0).all():
        return None, f"{text}; {rows.size} row(s) are too few to extrapolate to step 0"
    x = x / x[-1]
    series = {side: a[rows] for side, a in log.reward.items()}
    if len(series) == 2:
        series["margin"] = series["chosen"] - series["rejected"]
    span = np.diff(log.step[rows].astype(float))
    lines, pace = {}, {}
    for name, y in series.items():
        rounding = max(log.rounding(side, beta, thresholds=thresholds) for side in log.reward) * (
            2 if name == "margin" else 1
        )
        lines[name] = line = _back(x, y, rounding, thresholds)
        # scatter counts as noise already; False where level is NaN
        material = abs(float(y[0])) / (beta or thresholds.largest_beta) > thresholds.material * log.level
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
