"""How far a run has moved at each evaluation: means with intervals and floors, and how stable its class is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.classify import Move, classify
from toyld.diagnosis.curves import Curves
from toyld.diagnosis.resample import bootstrap_means, interval, known_mean, running_jitter
from toyld.diagnosis.thresholds import DEFAULT, Thresholds

__all__ = ["Moves", "agreement", "moves"]

Floats = NDArray[np.float64]
_BLOCK = 4096  # evaluations resampled at once


@dataclass(frozen=True)
class Moves:
    """Changes since the first evaluation of chosen, argmax, gap and rejected, as far as measured.

    `by_unit`: [evaluation, unit]; `move`: means over units [evaluation] with intervals; `resampled`: the means at the
    last evaluation in every resample; `gap`: G = argmax − chosen at the first and the last evaluation, or None.
    """

    by_unit: dict[str, Floats]
    move: dict[str, Move]
    resampled: dict[str, Floats]
    gap: tuple[float, float] | None


def moves(c: Curves, /, *, seed: int = 0, thresholds: Thresholds = DEFAULT) -> Moves:
    """The moves of a run; chosen and argmax over the same units wherever both were measured.

    >>> from toyld.diagnosis.curves import curves
    >>> from toyld.trajectory import trajectory
    >>> run = {"logp": [[[[-60.0]], [[-70.0]]]], "argmax_logp": [[[[-40.0]], [[-19.0]]]]}
    >>> found = moves(curves(trajectory(run, step=[0, 10], probe=["chosen"])))
    >>> {name: float(move.value[-1]) for name, move in found.move.items()}, found.gap
    ({'chosen': -10.0, 'argmax': 21.0, 'gap': 31.0}, (20.0, 51.0))
    """
    measured = {"chosen": c.chosen, "argmax": c.argmax, "rejected": c.rejected}
    series = {name: a for name, a in measured.items() if a is not None}
    gap = None
    if "argmax" in series and "chosen" in series:  # over the same units, or their difference is no difference
        there = np.isfinite(series["argmax"])
        series["chosen"] = np.where(there | ~there.any(1, keepdims=True), series["chosen"], np.nan)
        series["gap"] = series["argmax"] - series["chosen"]
        kept = np.where(np.isfinite(series["gap"][0] + series["gap"][-1]), series["gap"], np.nan)
        gap = float(known_mean(kept[0])), float(known_mean(kept[-1]))
    by_unit = {name: a - a[0] for name, a in series.items()}
    low = {name: known_mean(delta) for name, delta in by_unit.items()}
    high = {name: mean.copy() for name, mean in low.items()}
    resampled: dict[str, Floats] = {}
    steps = len(c.step)
    for i in range(0, 0 if c.means_only else steps, _BLOCK):  # one seed: the same units in every block
        part = slice(i, i + _BLOCK)
        drawn = bootstrap_means({n: a[part] for n, a in by_unit.items()}, seed=seed, thresholds=thresholds)
        for name, means in drawn.items():
            low[name][part], high[name][part] = interval(means, thresholds=thresholds)
            resampled[name] = means[:, -1]
    move = {}
    for name, delta in by_unit.items():
        value = known_mean(delta)
        # One scale for all along the chosen contexts: what is nothing for chosen is nothing for argmax.
        level = abs(float(known_mean(series["rejected" if name == "rejected" else "chosen"][0])))
        units = (c.n_examples or 1) if c.means_only else max(1, int(np.isfinite(delta[-1]).sum()))
        noise = max(float(np.nanmean(c.floor)) / units**0.5, thresholds.material * level)
        shake = thresholds.difference * _jitter(value, thresholds)  # as known at each evaluation: no look-ahead
        move[name] = Move(value, low[name], high[name], np.fmax(noise, shake))
    return Moves(by_unit, move, resampled, gap)


def _jitter(mean: Floats, thresholds: Thresholds) -> Floats:
    return running_jitter(mean, least=thresholds.rough_evaluations, thresholds=thresholds)


def _drawn(m: Moves, seed: int, thresholds: Thresholds) -> dict[str, Floats]:
    """Means at the last evaluation in every resample; of means alone, shaken by the curves' own jitter."""
    if m.resampled:
        return m.resampled
    rng = np.random.default_rng(seed)
    shaken: dict[str, Floats] = {}
    for name in ("chosen", "argmax", "rejected"):
        if name in m.move:
            value = m.move[name].value
            shake = 2.0**0.5 * float(_jitter(value, thresholds)[-1])  # of a difference of two
            shaken[name] = value[-1] + shake * rng.standard_normal(int(thresholds.resamples))
    return {**shaken, "gap": shaken["argmax"] - shaken["chosen"]}


def agreement(m: Moves, verdict: str, room: float, /, *, seed: int = 0, thresholds: Thresholds = DEFAULT) -> float:
    """Share of resamples that give the same class at the last evaluation.

    Examples are resampled; means without examples are shaken by the jitter of their curves, if that is known. Each
    resample has the interval of the run, moved along with its mean: without one it would be judged more strictly than
    the run, and what is flat for want of significance would seem to move.

    >>> from toyld.diagnosis.curves import curves
    >>> from toyld.trajectory import trajectory
    >>> run = {"logp": [[[[-60.0]], [[-70.0]]]], "argmax_logp": [[[[-40.0]], [[-19.0]]]]}
    >>> agreement(moves(curves(trajectory(run, step=[0, 10], probe=["chosen"]))), "squeezing", 40.0)
    1.0
    """
    last = {}
    for name, mean in _drawn(m, seed, thresholds).items():
        value, low, high, floor = (part[-1] for part in m.move[name])
        last[name] = Move(mean, mean - (value - low), mean + (high - value), np.broadcast_to(floor, mean.shape))
    drawn = classify(last["chosen"], last["argmax"], last["gap"], last.get("rejected"), room, thresholds=thresholds)
    return float(np.mean(drawn == verdict))
