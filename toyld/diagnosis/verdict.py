"""From one table to a verdict: class, numbers with intervals, shares, history, what is missing, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.diagnosis._logged import evaluations
from toyld.diagnosis.advice import advise
from toyld.diagnosis.classify import EXAMPLE_CLASSES, SEVERITY, classify, classify_examples
from toyld.diagnosis.control import control_effects
from toyld.diagnosis.curves import Curves, curves
from toyld.diagnosis.events import early_warning, turning_points
from toyld.diagnosis.moves import Moves, agreement, moves
from toyld.diagnosis.null import null_model
from toyld.diagnosis.resample import bootstrap_means, interval, jitter, known_mean, number
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


def _reference(c: Curves, thresholds: Thresholds) -> tuple[bool, list[dict[str, str]]]:
    """Whether the reference is another policy than the one before the first update, and the finding that says so.

    Beyond `material` of the log-probability; and where the scoring noise is known, the typical difference of one
    example beyond it, else the mean difference beyond its standard error: noise without bias is no other policy.
    """
    for probe in ("chosen", "rejected") if c.has_step0 else ():
        if probe not in c.reference or probe not in c.logp:
            continue
        off = c.logp[probe][0] - c.reference[probe][0]
        off = off[np.isfinite(off)]
        if not off.size:
            continue
        level = thresholds.material * float(np.nanmedian(np.abs(c.logp[probe][0])))
        typical = float(np.median(np.abs(off)))
        if c.floor_known or c.means_only:
            suspect = typical > max(thresholds.difference * float(np.nanmean(c.floor)), level)
        else:
            shake = jitter(known_mean(c.logp[probe]), thresholds=thresholds)  # of two evaluations, policy and reference
            error = (off.var(ddof=1) / off.size + 2.0 * shake**2) ** 0.5 if off.size > 1 else math.inf
            suspect = abs(float(off.mean())) > max(thresholds.reference * float(error), level)
        if suspect:
            text = (
                f"before the first update {probe} differs from its reference by {typical:.3g} nats (median; it is "
                f"{-level / thresholds.material:.4g} itself): rewards are not 0 where training starts"
            )
            return True, [{"code": "reference-suspect", "text": text}]
    return False, []


def _missing(c: Curves, thresholds: Thresholds) -> list[str]:
    others = set(c.logp) - {"chosen", "rejected"}
    absent = {
        "chosen": c.chosen is None,
        "argmax_logp": c.argmax is None,
        "rejected": c.rejected is None,
        "values per example": c.means_only,
        "noise_floor": c.noise_floor is None,
        "n_tokens": c.noise_floor is not None and not c.floor_known,
        "jitter": c.chosen is not None and len(c.step) < thresholds.jitter_evaluations,
        "step 0": not c.has_step0,
        "other probes": not others,
    }
    return [name for name, gone in absent.items() if gone]


def _confidence(stable: float, missing: list[str], thresholds: Thresholds) -> float:
    """Share of resamples with the same class times (1 − penalty) for each missing thing: an order, no probability."""
    penalty = {
        "rejected": thresholds.missing_rejected,
        "values per example": thresholds.missing_examples,
        "noise_floor": thresholds.missing_floor,
        "n_tokens": thresholds.missing_floor,
        "jitter": thresholds.missing_jitter,
        "step 0": thresholds.missing_step0,
        "other probes": thresholds.missing_others,
    }
    return round(stable * math.prod(1.0 - penalty.get(name, 0.0) for name in missing), 3)


def _largest(share: Mapping[str, float], verdict: str) -> tuple[str, float]:
    """The largest class among the examples, and its share; `lagging` counts with squeezing where the means squeeze."""
    counted = dict(share)
    if verdict == "squeezing":
        counted["squeezing"] += counted.pop("lagging")
    name = max(counted, key=lambda name: counted[name])
    return name, counted[name]


def _numbers(m: Moves, thresholds: Thresholds) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    last = {name: float(move.value[-1]) for name, move in m.move.items()}
    numbers = {f"d_{name}": number(last.get(name, math.nan)) for name in ("chosen", "rejected", "argmax")}
    numbers |= {f"gap_{when}": number(m.gap[i]) if m.gap else None for i, when in enumerate(("first", "last"))}
    intervals = {}
    for name, means in m.resampled.items():
        low, high = interval(means, thresholds=thresholds)
        intervals[f"d_{name}"] = (round(float(low), 6), round(float(high), 6))
    return numbers, intervals


@dataclass(frozen=True)
class _Classes:
    """The class at each evaluation, the shares of the examples, how stable the last class is, and what to say of it."""

    kinds: list[str]
    shares: dict[str, Floats] | None
    stable: float
    reasons: list[str]
    share_interval: tuple[float, float] = (math.nan, math.nan)  # of squeezing at the last evaluation


def _untold(c: Curves) -> list[str]:
    """Why nothing can be told apart, from what was not measured."""
    why = {
        "no log-probability of chosen on one fixed set of examples was logged": c.chosen is None,
        "no argmax along the chosen contexts: where the mass went is not known": c.argmax is None,
        f"{len(c.step)} evaluation(s): nothing to compare": c.chosen is not None and len(c.step) < 2,
    }
    return [text for text, holds in why.items() if holds]


def _unclear(m: Moves) -> list[str]:
    """Moves at the last evaluation that count as none although they may be large: few examples, or one far out."""
    out = []
    for name in ("chosen", "argmax", "rejected"):
        if name in m.move:
            value, low, high, floor = (float(part[-1]) for part in m.move[name])
            if abs(value) > floor and low <= floor and high >= -floor:
                from_what = "0" if low <= 0.0 <= high else f"a change of under {floor:.3g}, which counts as still"
                found = f"{name} changed by {value:+.3g} nats, which [{low:+.3g}, {high:+.3g}]"
                out.append(f"{found} does not tell from {from_what}")
    return out


def _classes(c: Curves, m: Moves, seed: int, thresholds: Thresholds) -> _Classes:
    if reasons := _untold(c):
        return _Classes(["cannot-tell"] * len(c.step), None, 0.0, reasons)
    move, by_unit, room = m.move, m.by_unit, -float(known_mean(c.argmax)[0]) if c.argmax is not None else math.nan
    kinds = [
        str(kind)
        for kind in classify(
            move["chosen"], move["argmax"], move["gap"], move.get("rejected"), room, thresholds=thresholds
        )
    ]
    if kinds[-1] == "cannot-tell":
        known = [int(np.isfinite(by_unit[name][-1]).sum()) for name in ("chosen", "argmax")]
        reasons = [f"at the last evaluation chosen is known of {known[0]} and argmax of {known[1]} example(s)"]
    stable = agreement(m, kinds[-1], room, seed=seed, thresholds=thresholds)
    if unclear := _unclear(m):
        stable *= 1.0 - thresholds.unclear
        reasons += unclear
    if c.means_only:
        return _Classes(kinds, None, stable, reasons)
    noise = thresholds.difference * c.floor
    kind = classify_examples(
        by_unit["chosen"], by_unit["argmax"], by_unit.get("rejected"), noise, thresholds=thresholds
    )
    shares = {name: (kind == name).mean(1) for name in (*EXAMPLE_CLASSES, "cannot-tell")}
    largest, part = _largest({name: float(a[-1]) for name, a in shares.items()}, kinds[-1])
    if kinds[-1] not in ("cannot-tell", largest):
        stable *= 1.0 - thresholds.disagreement
        still = ", while argmax counts as still in the means" if kinds[-1] == "displacement" else ""
        reasons.append(f"means and examples disagree: {part:.0%} of the examples read {largest} by sign{still}")
    squeezed = (kind[-1:] == "squeezing").astype(float)
    drawn = bootstrap_means({"squeezed": squeezed}, seed=seed, thresholds=thresholds)["squeezed"][:, 0]
    low, high = interval(drawn, thresholds=thresholds)
    return _Classes(kinds, shares, stable, reasons, (float(low), float(high)))


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
    missing = _missing(c, thresholds)
    m = moves(c, seed=seed, thresholds=thresholds) if c.chosen is not None else Moves({}, {}, {}, None)
    numbers, intervals = _numbers(m, thresholds)
    told = _classes(c, m, seed, thresholds)
    steps, names, stable, reasons = [int(s) for s in c.step], told.kinds, told.stable, list(told.reasons)
    share = None
    if told.shares is not None:
        share = {name: round(float(a[-1]), 6) for name, a in told.shares.items()}
        low, high = told.share_interval
        intervals["share_squeezing"] = (round(low, 6), round(high, 6))
    if suspect or rewards_suspect:
        if names and names[-1] != "cannot-tell":
            reasons.append(f"apart from the reference the run reads: {names[-1]}")
        steps = steps or [0]
        names, stable = ["wrong-reference"] * len(steps), 1.0
    verdict = names[-1] if names else "cannot-tell"
    history: list[dict[str, Any]] = [{"step": s, "verdict": k} for s, k in zip(steps, names, strict=True)]
    if told.shares is not None:
        for entry, s in zip(history, told.shares["squeezing"], strict=True):
            entry["share_squeezing"] = round(float(s), 6)
    worst = min(history, key=lambda e: SEVERITY.index(e["verdict"]), default={"step": 0, "verdict": "cannot-tell"})
    reading = Verdict(
        stage=str(ds.attrs["stage"]),
        arm=str(ds.attrs["arm"]),
        verdict=verdict,
        confidence=None if verdict == "cannot-tell" else _confidence(stable, missing, thresholds),
        numbers=numbers,
        intervals=intervals,
        share=share,
        n_examples=c.n_examples,
        n_evaluations=len(c.step) if c.chosen is not None else evaluations(ds),
        noise_floor=c.noise_floor,
        history=history,
        worst={"step": worst["step"], "verdict": worst["verdict"]},
        missing=missing,
        findings=findings,
        reasons=reasons,
        warning=early_warning(c, told.kinds, thresholds=thresholds),
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
