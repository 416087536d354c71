"""When things happen in a run: the shape of each probe's curve with its turning points, and the early warning.

A curve's highest mean is biased upwards, since it was picked on the noise that it is then judged by. Two guards: the
peak is picked on one half of the examples and measured on the other, both ways (cross-fitting), so that the noise of
examples picks nothing in its own favour; and the run's own jitter, common to all examples, counts with the normal
quantile for the largest of m interior evaluations instead of one (Bonferroni). What is reported is therefore, if
anything, too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.classify import Move
from toyld.diagnosis.curves import ROUNDING, Curves
from toyld.diagnosis.resample import bootstrap_means, interval, jitter, known_mean, number
from toyld.diagnosis.thresholds import DEFAULT, Thresholds

__all__ = ["SHAPES", "collapse_at", "early_warning", "lead", "turning_points"]

Floats = NDArray[np.float64]
SHAPES = ("rises", "falls", "bell", "valley", "flat", "unclear")
_ALARMS = ("squeezing", "divergence")


def _of_many(m: int, thresholds: Thresholds) -> float:
    """How much further than one normal the largest of m reaches at the same level."""
    from scipy.special import ndtri

    tail = (1.0 - thresholds.level) / 2.0
    return float(ndtri(tail / max(1, m)) / ndtri(tail))


def _crossfit(delta: Floats, seed: int) -> tuple[Floats, Floats]:
    """Per unit: the peak that the other half picked, above the start and above the end.

    `delta`: [evaluation, unit], changes since the start. A unit whose half saw the peak at an end has 0 there.
    """
    units = np.random.default_rng(seed).permutation(delta.shape[1])
    halves = units[: len(units) // 2], units[len(units) // 2 :]
    rise, fall = np.full(delta.shape[1], np.nan), np.full(delta.shape[1], np.nan)
    for mine, other in (halves, halves[::-1]):
        means = known_mean(delta[:, other])
        if np.isfinite(means).any():
            picked = delta[int(np.nanargmax(means)), mine]
            rise[mine], fall[mine] = picked, picked - delta[-1, mine]
    return rise, fall


def _shape(found: Mapping[str, Any], move: Move) -> str:
    if found["bell"] and found["valley"]:
        heights = [min(found[k]["from_start"], found[k]["to_end"]) for k in ("peak", "trough")]
        return "bell" if heights[0] > heights[1] else "valley"
    for name in ("bell", "valley"):
        if found[name]:
            return name
    if found["excursion"]:
        return "unclear"
    if move.up or move.down:
        return "rises" if move.up else "falls"
    still = bool(move.low > -move.floor and move.high < move.floor)
    calm = found["means_only"] or (found["bell"] is False and found["valley"] is False)
    return "flat" if still and calm and found["start"]["step"] < found["end"]["step"] else "unclear"


def _turns(x: Floats, step: NDArray[np.int32], noise: float, c: Curves, seed: int, thresholds: Thresholds) -> Any:
    first = x[np.flatnonzero(np.isfinite(x).any(1))[0]]
    mean = known_mean(x - first)
    rows = np.flatnonzero(np.isfinite(mean))
    delta, mean = x[rows] - first, mean[rows]
    start = float(known_mean(first))
    quiet = max(noise, thresholds.material * abs(start))
    shake = thresholds.difference * jitter(mean, thresholds=thresholds)
    floor, picked = max(quiet, shake), max(quiet, shake * _of_many(len(rows) - 2, thresholds))

    def point(i: int) -> dict[str, Any]:
        return {"step": int(step[rows[i]]), "value": number(start + mean[i])}

    out: dict[str, Any] = {"start": point(0), "end": point(-1), "floor": number(floor)}
    out |= {"floor_of_peaks": number(picked), "means_only": c.means_only, "excursion": False}
    enough = not c.means_only and delta.shape[1] >= 4
    value: dict[str, Floats] = {"end": delta[-1:]}
    for name, sign in (("peak", 1.0), ("trough", -1.0)):
        best = int(np.argmax(sign * mean))
        out[name] = {**point(best), "interior": 0 < best < len(rows) - 1}
        if enough:
            rise, fall = _crossfit(sign * delta, seed)
            value |= {f"{name} from_start": rise[None], f"{name} to_end": fall[None]}
        else:
            out[name] |= {"from_start": number(abs(mean[best])), "to_end": number(abs(mean[best] - mean[-1]))}
            both = min(abs(mean[best]), abs(mean[best] - mean[-1]))
            out["excursion"] |= bool(out[name]["interior"] and both > picked)
    low = high = mean[-1]
    if not c.means_only:
        drawn = bootstrap_means(value, seed=seed, thresholds=thresholds)
        bounds = {key: [float(b[0]) for b in interval(a, thresholds=thresholds)] for key, a in drawn.items()}
        low, high = bounds["end"]
    out |= {"d": number(mean[-1]) if len(rows) > 1 else None, "low": None, "high": None, "bell": None, "valley": None}
    if not c.means_only and len(rows) > 1:
        out |= {"low": number(low), "high": number(high)}
    for name, verdict in (("peak", "bell"), ("trough", "valley")) if enough else ():
        lows, highs = [], []
        for side in ("from_start", "to_end"):
            a, b = bounds[f"{name} {side}"]
            out[name] |= {side: number(known_mean(value[f"{name} {side}"])[0])}
            out[name] |= {f"{side}_low": number(a), f"{side}_high": number(b)}
            lows.append(a > picked)
            highs.append(b <= picked)
        out[verdict] = True if all(lows) else False if any(highs) else None
    out["shape"] = _shape(out, Move(*(np.asarray(v) for v in (mean[-1], low, high, floor))))
    return {key: v for key, v in out.items() if key not in ("means_only", "excursion")}


def turning_points(c: Curves, /, *, seed: int = 0, thresholds: Thresholds = DEFAULT) -> dict[str, dict[str, Any]]:
    """Of each probe, and of the argmax path: the change at the end, peak, trough and shape, in nats.

    `d`, `low`, `high`: change since the probe's first evaluation with its interval. `peak`, `trough`: step and value of
    the extreme mean, whether it is `interior`, and how far it lies `from_start` and `to_end` (cross-fitted, see above,
    with intervals). `bell`, `valley`: True if both lie beyond `floor_of_peaks`, False if one surely does not, None if
    that cannot be told (wide intervals, fewer than four examples, means only). `shape`: one of SHAPES; with means only
    it rests on floors alone, and an interior extreme beyond them is "unclear". Under `jitter_evaluations` evaluations
    the run's jitter is unknown and guards nothing.

    >>> from toyld.trajectory import trajectory
    >>> logp = -50.0 + np.array([0.0, 5.0, 9.0, 2.0])[:, None] + np.linspace(-0.1, 0.1, 8) * [[0.0], [1], [2], [3]]
    >>> run = trajectory({"logp": logp[None, :, None]}, step=range(4), probe=["chosen"], example=list("abcdefgh"))
    >>> from toyld.diagnosis.curves import curves
    >>> turns = turning_points(curves(run))["chosen"]
    >>> turns["shape"], turns["peak"]["step"], turns["peak"]["value"]
    ('bell', 2, -41.0)
    """
    series = dict(c.logp)
    if c.argmax is not None:
        series["argmax_logp"] = c.argmax
    out = {}
    for name, x in series.items():
        if not np.isfinite(x).any():
            continue
        tokens = c.tokens.get("chosen" if name == "argmax_logp" else name)
        level = known_mean(np.abs(x[np.isfinite(x).any(1)][0]))
        noise = ROUNDING * float(level)
        if c.noise_floor is not None and tokens is not None and np.isfinite(tokens).any():
            noise = max(noise, c.noise_floor * float(known_mean(tokens)))
        out[name] = _turns(x, c.step, noise, c, seed, thresholds)
    return out


def collapse_at(c: Curves, /, *, thresholds: Thresholds = DEFAULT) -> int | None:
    """First evaluation at which the run has collapsed, or None; judged from it and the first alone.

    The argmax path has lost `collapse` (half) of its surprise while the gap argmax − chosen has not closed (in
    memorising, both rise and it closes).

    >>> from toyld.trajectory import trajectory
    >>> run = {"logp": [[[[-60.0]], [[-70.0]]]], "argmax_logp": [[[[-40.0]], [[-19.0]]]]}
    >>> from toyld.diagnosis.curves import curves
    >>> collapse_at(curves(trajectory(run, step=[0, 10], probe=["chosen"])))
    1
    """
    if c.chosen is None or c.argmax is None:
        return None
    surprise, gap = -known_mean(c.argmax), known_mean((c.argmax - c.chosen) - (c.argmax - c.chosen)[0])
    peaked = (surprise <= (1.0 - thresholds.collapse) * surprise[0]) & (gap >= 0)
    peaked[0] = False
    return int(np.argmax(peaked)) if peaked.any() else None


def lead(warning_step: int, collapse_step: int, steps: Sequence[int] | NDArray[np.int32], /) -> dict[str, int]:
    """How long before a collapse a warning came: in evaluations and in steps; negative = after it.

    The collapse counts from the first evaluation at or after it (a collapse seen in samples has a step of its own).

    >>> lead(200, 450, [0, 100, 200, 300, 400, 500])
    {'lead_evaluations': 3, 'lead_steps': 250}
    """
    known = np.asarray(steps)
    there, here = (int(np.searchsorted(known, s)) for s in (collapse_step, warning_step))
    return {"lead_evaluations": there - here, "lead_steps": int(collapse_step) - int(warning_step)}


def early_warning(
    c: Curves,
    names: Sequence[str],
    /,
    *,
    thresholds: Thresholds = DEFAULT,
    collapse_step: int | None = None,
) -> dict[str, Any] | None:
    """When squeezing or divergence was first seen `warning_run` evaluations in a row, and how long before a collapse.

    `names`: the class at each evaluation from the data up to it, so that there is no look-ahead. `collapse_step`: a
    collapse seen elsewhere, such as the first repeated n-gram; otherwise `collapse_at`. None where neither a warning
    nor a collapse was seen; keys are None where only one was.

    >>> from toyld.trajectory import trajectory
    >>> table = {"logp": [[[[-60.0]], [[-70.0]], [[-75.0]], [[-80.0]]]]}
    >>> table["argmax_logp"] = [[[[-40.0]], [[-35.0]], [[-25.0]], [[-15.0]]]]
    >>> from toyld.diagnosis.curves import curves
    >>> c = curves(trajectory(table, step=[0, 5, 10, 15], probe=["chosen"]))
    >>> found = early_warning(c, ["not-learning", "squeezing", "squeezing", "squeezing"])
    >>> found["step"], found["collapse_step"], found["lead_evaluations"]
    (10, 15, 1)
    """
    run, fires = 0, None
    for t, name in enumerate(names):
        run = run + 1 if name in _ALARMS else 0
        if run >= thresholds.warning_run:
            fires = t
            break
    why = ""
    if collapse_step is None and (there := collapse_at(c, thresholds=thresholds)) is not None:
        collapse_step = int(c.step[there])
        why = f" (the argmax path has lost {thresholds.collapse:.0%} of its surprise)"
    collapse = f"the collapse at step {collapse_step}{why}"
    if fires is None and collapse_step is None:
        return None
    out: dict[str, Any] = {"step": None, "evaluation": None, "class": None}
    out |= {"collapse_step": collapse_step, "lead_evaluations": None, "lead_steps": None}
    if fires is None:
        return {**out, "text": f"no warning before {collapse}"}
    step = int(c.step[fires])
    out |= {"step": step, "evaluation": fires, "class": names[fires]}
    text = f"consistent with {names[fires]} in {run} evaluations in a row at step {step}"
    if collapse_step is None:
        return {**out, "text": f"{text}; no collapse seen"}
    out |= lead(step, collapse_step, c.step)
    far = out["lead_evaluations"]
    when = f"{far} evaluation(s) before" if far > 0 else f"{-far} evaluation(s) after" if far < 0 else "together with"
    return {**out, "text": f"{text}, {when} {collapse}"}
