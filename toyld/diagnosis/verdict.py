"""From one table to a verdict: class, numbers with intervals, shares, history, what is missing, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.diagnosis.advice import advise
from toyld.diagnosis.classify import EXAMPLE_CLASSES, SEVERITY, Move, classify, classify_examples
from toyld.diagnosis.control import control_effects
from toyld.diagnosis.curves import Curves, curves
from toyld.diagnosis.events import early_warning, turning_points
from toyld.diagnosis.null import null_model
from toyld.diagnosis.resample import bootstrap_means, interval, known_mean, running_jitter
from toyld.diagnosis.rewards import reward_findings
from toyld.diagnosis.thresholds import DEFAULT, Thresholds
from toyld.trajectory import notes

__all__ = ["SCHEMA", "Verdict", "as_json", "diagnose"]

SCHEMA = 1
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What `diagnose` found; `as_json` is its form in files. Log-probabilities in nats per response, means."""

    stage: str
    arm: str
    verdict: str
    confidence: float | None
    numbers: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    share: dict[str, float] | None
    n_examples: int | None
    n_evaluations: int
    noise_floor: float | None
    history: list[dict[str, Any]]
    worst: dict[str, Any]
    missing: list[str]
    findings: list[dict[str, str]]
    advice: list[dict[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warning: dict[str, Any] | None = None
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    null_model: dict[str, Any] | None = None
    control: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Moves:
    """Changes since the first evaluation: by unit, as moves with intervals, and in every resample."""

    by_unit: dict[str, Floats]
    move: dict[str, Move]
    resampled: dict[str, Floats]


def _moves(c: Curves, seed: int, thresholds: Thresholds) -> _Moves:
    """Changes of chosen, argmax, gap and rejected; means pair the units for which all that is measured is known."""
    measured = {"chosen": c.chosen, "argmax": c.argmax, "rejected": c.rejected}
    series = {name: a for name, a in measured.items() if a is not None}
    if "argmax" in series and "chosen" in series:  # the same units in both, or their difference is no difference
        both = np.isfinite(series["chosen"]) & np.isfinite(series["argmax"])
        series |= {name: np.where(both, series[name], np.nan) for name in ("chosen", "argmax")}
        series["gap"] = series["argmax"] - series["chosen"]
    by_unit = {name: a - a[0] for name, a in series.items()}
    resampled = bootstrap_means(by_unit, seed=seed, thresholds=thresholds) if not c.means_only else {}
    move = {}
    for name, delta in by_unit.items():
        value = known_mean(delta)
        low, high = interval(resampled[name], thresholds=thresholds) if name in resampled else (value, value)
        start = np.abs(known_mean(series["argmax" if name == "gap" and "argmax" in series else name][:1]))[0]
        noise = float(np.nanmean(c.floor))
        shake = thresholds.jitter * running_jitter(value, thresholds=thresholds)  # as known then: no look-ahead
        move[name] = Move(value, low, high, np.fmax(max(noise, thresholds.material * start), shake))
    return _Moves(by_unit, move, resampled)


def _reference(c: Curves, thresholds: Thresholds) -> tuple[bool, list[dict[str, str]]]:
    """Whether the reference is another policy than the one before the first update, and the finding that says so."""
    if not c.has_step0:
        return False, []
    for probe in ("chosen", "rejected"):
        if probe in c.reference and probe in c.logp:
            off = np.abs(c.logp[probe][0] - c.reference[probe][0])
            typical = float(np.nanmedian(off)) if np.isfinite(off).any() else 0.0
            level = float(np.nanmedian(np.abs(c.logp[probe][0])))
            if typical > max(thresholds.jitter * float(np.nanmean(c.floor)), thresholds.material * level):
                text = (
                    f"before the first update {probe} differs from its reference by {typical:.3g} nats (median; the "
                    f"log-probability itself is {-level:.4g}): rewards are not 0 where training starts"
                )
                return True, [{"code": "reference-suspect", "text": text}]
    return False, []


def _missing(c: Curves) -> list[str]:
    others = set(c.logp) - {"chosen", "rejected"}
    absent = {
        "chosen": c.chosen is None,
        "argmax_logp": c.argmax is None,
        "rejected": c.rejected is None,
        "values per example": c.means_only,
        "noise_floor": c.noise_floor is None,
        "step 0": not c.has_step0,
        "other probes": not others,
    }
    return [name for name, gone in absent.items() if gone]


def _confidence(agreement: float, missing: list[str], thresholds: Thresholds) -> float:
    """Share of resamples with the same class times (1 − penalty) for each missing thing: an order, no probability."""
    penalty = {
        "rejected": thresholds.missing_rejected,
        "values per example": thresholds.missing_examples,
        "noise_floor": thresholds.missing_floor,
        "step 0": thresholds.missing_step0,
        "other probes": thresholds.missing_others,
    }
    return round(agreement * math.prod(1.0 - penalty.get(name, 0.0) for name in missing), 3)


def _agreement(m: _Moves, verdict: str, room: float, thresholds: Thresholds) -> float:
    """Share of resamples that give the same class at the last evaluation; 1 where nothing can be resampled.

    Each resample has the interval of the run, moved along with its mean: without one it would be judged more strictly
    than the run, and what is flat for want of significance would seem to move.
    """
    if not m.resampled:
        return 1.0
    last = {}
    for name, a in m.resampled.items():
        value, low, high, floor = (part[-1] for part in m.move[name])
        mean = a[:, -1]
        last[name] = Move(mean, mean - (value - low), mean + (high - value), np.broadcast_to(floor, mean.shape))
    drawn = classify(last["chosen"], last["argmax"], last["gap"], last.get("rejected"), room, thresholds=thresholds)
    return float(np.mean(drawn == verdict))


def _largest(share: Mapping[str, float], verdict: str) -> tuple[str, float]:
    """The largest class among the examples, and its share; `lagging` counts with squeezing where the means squeeze."""
    counted = dict(share)
    if verdict == "squeezing":
        counted["squeezing"] += counted.pop("lagging")
    name = max(counted, key=lambda name: counted[name])
    return name, counted[name]


def _round(x: float | None) -> float | None:
    return None if x is None or not math.isfinite(x) else round(float(x), 6)


def _numbers(c: Curves, m: _Moves) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    last = {name: float(move.value[-1]) for name, move in m.move.items()}
    gap = None
    if c.argmax is not None and c.chosen is not None:
        gaps = c.argmax - c.chosen
        gap = known_mean(np.where(np.isfinite(gaps[0] + gaps[-1]), gaps, np.nan))  # the units that d_argmax is about
    numbers = {
        "d_chosen": _round(last.get("chosen")),
        "d_rejected": _round(last.get("rejected")),
        "d_argmax": _round(last.get("argmax")),
        "gap_first": None if gap is None else _round(gap[0]),
        "gap_last": None if gap is None else _round(gap[-1]),
    }
    intervals = {}
    for name, a in m.resampled.items():
        low, high = interval(a[:, -1])
        intervals[f"d_{name}"] = (round(float(low), 6), round(float(high), 6))
    return numbers, intervals


def diagnose(
    ds: xr.Dataset,
    /,
    *,
    control: xr.Dataset | None = None,
    beta: float | None = None,
    seed: int = 0,
    thresholds: Thresholds = DEFAULT,
) -> Verdict:
    """The verdict on one run: what its numbers are consistent with, from the table alone, never from names.

    `control`: a run from the same start to compare with at matched steps; `beta`: the run's β where a log of rewards
    does not tell it; `seed`: of the bootstrap. A table without chosen or argmax gives cannot-tell (or wrong-reference,
    which needs neither) with all that can still be said.

    >>> import numpy as np
    >>> from toyld.trajectory import trajectory
    >>> logp, top = np.array([-90.0, -95.0]), np.array([-60.0, -45.0])
    >>> run = {"logp": logp.reshape(1, 2, 1, 1), "argmax_logp": top.reshape(1, 2, 1, 1)}
    >>> found = diagnose(trajectory(run, step=[0, 100], probe=["chosen"]))
    >>> found.verdict, found.numbers["d_argmax"], found.missing[0]
    ('squeezing', 15.0, 'rejected')
    """
    c = curves(ds)
    findings: list[dict[str, str]] = list(notes(ds))
    if c.mislabelled > 0:
        text = f"argmax is below the label's log-probability, impossible, in {c.mislabelled:.1%} of all cells: left out"
        findings.append({"code": "argmax-bug", "text": text})
    suspect, found = _reference(c, thresholds)
    rewards_suspect, reward_texts = reward_findings(ds, beta=beta, thresholds=thresholds)
    findings += found + reward_texts
    missing = _missing(c)
    m = _moves(c, seed, thresholds) if c.chosen is not None else _Moves({}, {}, {})
    numbers, intervals = _numbers(c, m)
    steps = [int(s) for s in c.step]
    share, shares, reasons, agreement = None, None, [], 0.0
    if c.argmax is None or len(steps) < 2:
        kinds = np.full(len(steps), "cannot-tell")
        if c.chosen is None:
            reasons.append("no log-probability of chosen on one fixed set of examples was logged")
        if c.argmax is None:
            reasons.append("no argmax along the chosen contexts: where the mass went is not known")
        if len(steps) < 2 and c.chosen is not None:
            reasons.append(f"{len(steps)} evaluation(s): nothing to compare")
    else:
        room = float(-known_mean(c.argmax)[0])
        chosen, argmax, gap = (m.move[name] for name in ("chosen", "argmax", "gap"))
        kinds = classify(chosen, argmax, gap, m.move.get("rejected"), room, thresholds=thresholds)
        if kinds[-1] == "cannot-tell":
            which = "first" if np.isnan(chosen.value).all() or np.isnan(argmax.value).all() else "last"
            reasons.append(f"chosen or argmax was not measured at the {which} evaluation of chosen")
        if not c.means_only:
            kind = classify_examples(
                m.by_unit["chosen"],
                m.by_unit["argmax"],
                m.by_unit.get("rejected"),
                thresholds.jitter * c.floor,
                thresholds=thresholds,
            )
            shares = {name: (kind == name).mean(1) for name in EXAMPLE_CLASSES}
            shares["cannot-tell"] = (kind == "cannot-tell").mean(1)
            share = {name: round(float(a[-1]), 6) for name, a in shares.items()}
            squeezed = bootstrap_means(
                {"s": (kind[-1:] == "squeezing").astype(float)}, seed=seed, thresholds=thresholds
            )["s"][:, 0]
            low, high = interval(squeezed, thresholds=thresholds)
            intervals["share_squeezing"] = (round(float(low), 6), round(float(high), 6))
        agreement = _agreement(m, str(kinds[-1]), room, thresholds)
        if share is not None and kinds[-1] != "cannot-tell":
            largest, part = _largest(share, str(kinds[-1]))
            if largest != kinds[-1]:
                agreement *= 1.0 - thresholds.disagreement
                still = ", while argmax counts as still in the means" if kinds[-1] == "displacement" else ""
                reasons.append(f"means and examples disagree: {part:.0%} of the examples read {largest} by sign{still}")
    behaviour = [str(kind) for kind in kinds]
    if suspect or rewards_suspect:
        if len(kinds) and kinds[-1] != "cannot-tell":
            reasons.append(f"apart from the reference the run reads: {kinds[-1]}")
        kinds, agreement = np.full(max(1, len(steps)), "wrong-reference"), 1.0
        steps = steps or [0]
    names = [str(kind) for kind in kinds]
    verdict = names[-1] if names else "cannot-tell"
    history: list[dict[str, Any]] = [{"step": s, "verdict": k} for s, k in zip(steps, names, strict=True)]
    if shares is not None:
        for entry, s in zip(history, shares["squeezing"], strict=True):
            entry["share_squeezing"] = round(float(s), 6)
    worst = min(history, key=lambda e: SEVERITY.index(e["verdict"]), default={"step": 0, "verdict": "cannot-tell"})
    reading = Verdict(
        stage=str(ds.attrs["stage"]),
        arm=str(ds.attrs["arm"]),
        verdict=verdict,
        confidence=None if verdict == "cannot-tell" else _confidence(agreement, missing, thresholds),
        numbers=numbers,
        intervals=intervals,
        share=share,
        n_examples=c.n_examples,
        n_evaluations=len(c.step),
        noise_floor=c.noise_floor,
        history=history,
        worst={"step": worst["step"], "verdict": worst["verdict"]},
        missing=missing,
        findings=findings,
        reasons=reasons,
        warning=early_warning(c, behaviour, thresholds=thresholds),
        probes=turning_points(c, seed=seed, thresholds=thresholds),
        null_model=null_model(c, seed=seed, thresholds=thresholds),
        control=None if control is None else control_effects(ds, control, seed=seed, thresholds=thresholds),
    )
    return Verdict(**{**vars(reading), "advice": advise(reading, ds)})


def as_json(verdict: Verdict, /, *, path: str) -> dict[str, Any]:
    """One entry of `runs` in the file that `toyld diagnose --json` writes.

    >>> from toyld.trajectory import trajectory
    >>> run = {"logp": [[[[-3.0]], [[-2.5]]]]}
    >>> as_json(diagnose(trajectory(run, step=[0, 10], probe=["chosen"])), path="run")["verdict"]
    'cannot-tell'
    """
    return {"path": path, **_plain(vars(verdict))}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
