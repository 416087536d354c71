"""The effect of a treatment against a matched control: what each probe moved more than in the other run, paired."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.checked import fail
from toyld.diagnosis.classify import Move
from toyld.diagnosis.curves import ROUNDING, curves
from toyld.diagnosis.resample import bootstrap_means, holm, interval, jitter, known_mean, number, p_value
from toyld.diagnosis.thresholds import DEFAULT, Thresholds

__all__ = ["control_effects"]

Floats = NDArray[np.float64]
_BLOCK = 256  # evaluations resampled at once


def _shared(ds: xr.Dataset, control: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Both tables on the same evaluations, examples and seeds; one line where that leaves nothing to compare."""
    units = ds.attrs["step_unit"], control.attrs["step_unit"]
    if units[0] != units[1]:
        got = f"{units[0]} and {units[1]}"
        fail("a control that counts steps as the run does", got, "log both in updates, or both in examples")
    step = np.intersect1d(ds.step.values, control.step.values)
    if len(step) < 2:
        got = f"{len(step)} (run {_range(ds)}, control {_range(control)})"
        fail("two evaluations at equal steps in run and control", got, "evaluate both at the same steps")
    tables = [ds.sel(step=step), control.sel(step=step)]
    means = [t.example.values.tolist() == ["mean"] for t in tables]
    if means[0] != means[1]:  # only the means of both can be compared
        tables = [t if mean else _mean_of(t) for t, mean in zip(tables, means, strict=True)]
    theirs = set(tables[1].example.values.tolist())
    example = [e for e in tables[0].example.values.tolist() if e in theirs]
    if not example:
        got = f"none ({ds.sizes['example']} in the run, {control.sizes['example']} in the control)"
        fail("examples that run and control share", got, "probe both on the same examples")
    tables = [t.sel(example=example) for t in tables]
    seed = np.intersect1d(ds.seed.values, control.seed.values)
    if len(seed):  # otherwise each run is averaged over its own seeds
        tables = [t.sel(seed=seed) for t in tables]
    return tables[0], tables[1]


def _mean_of(ds: xr.Dataset) -> xr.Dataset:
    """The same table with the mean over its examples only."""
    kept = [str(name) for name in ("logp", "argmax_logp", "n_tokens") if name in ds]
    return ds[kept].mean("example", keep_attrs=True).expand_dims(example=["mean"], axis=-1)


def _range(ds: xr.Dataset) -> str:
    return f"{int(ds.step[0])} to {int(ds.step[-1])}"


def _series(ds: xr.Dataset, mislabelled: bool) -> dict[str, Floats]:
    """Probe, argmax or gap -> [evaluation, example], the mean over seeds."""
    out = {}
    for probe in ds.probe.values.tolist() if "logp" in ds else []:
        out[probe] = known_mean(np.moveaxis(ds.logp.sel(probe=probe).transpose("seed", "step", "example").values, 0, 2))
    if "argmax_logp" in ds and "chosen" in out and not mislabelled:
        top = ds.argmax_logp.sel(probe="chosen").transpose("seed", "step", "example").values
        out["argmax"] = known_mean(np.moveaxis(top, 0, 2))
        out["gap"] = out["argmax"] - out["chosen"]
    return out


def _noise(ds: xr.Dataset, name: str, start: Floats) -> float:
    """Scoring noise of one example's log-probability, mean over examples, nats."""
    probe = name if name in ds.probe.values else "chosen"
    noise = ROUNDING * float(np.nanmean(np.abs(start)))
    measured = ds.attrs.get("noise_floor")
    if isinstance(measured, int | float) and np.isfinite(measured) and "n_tokens" in ds:
        tokens = ds.n_tokens.sel(probe=probe).values
        if np.isfinite(tokens).any():
            noise = max(noise, float(measured) * float(np.nanmean(tokens)))
    return noise


def control_effects(
    ds: xr.Dataset, control: xr.Dataset, /, *, seed: int = 0, thresholds: Thresholds = DEFAULT
) -> dict[str, Any]:
    """Treatment minus control, probe by probe, at equal steps only: (change in `ds`) − (change in `control`), nats.

    Changes count from the first common evaluation. `effects[probe]`: `effect` at the last common evaluation with `low`,
    `high` (paired bootstrap over the shared examples; seeds are averaged first, so the interval is for these seeds),
    `floor` (noise, materiality and the jitter of the effect's own curve), `p` (two-sided, Student's t over examples),
    `p_holm` (Holm over all probes of this comparison), `direction` up, down, none or, without intervals, None, and
    `series`, one value for each of `steps`. Means only: differences without interval or p. `matched_start`: whether the
    first common evaluation is the start of both and the values there agree. Raises TrajectoryError where steps are
    counted in different units, or no two evaluations or no example are shared.

    >>> from toyld.trajectory import trajectory
    >>> run = trajectory({"logp": [[[[-50.0]], [[-58.0]]]]}, step=[0, 100], probe=["chosen"])
    >>> other = trajectory({"logp": [[[[-50.0]], [[-53.0]], [[-70.0]]]]}, step=[0, 100, 900], probe=["chosen"])
    >>> found = control_effects(run, other)
    >>> found["last_step"], found["effects"]["chosen"]["effect"], found["matched_start"]
    (100, -5.0, True)
    """
    run, other = _shared(ds, control)
    bugged = [curves(t).mislabelled > 0 for t in (ds, control)]
    mine, theirs = _series(run, bugged[0]), _series(other, bugged[1])
    names = [name for name in mine if name in theirs]
    effects: dict[str, dict[str, Any]] = {}
    starts: dict[str, float] = {}
    allowed: dict[str, float] = {}
    values: dict[str, Floats] = {}
    floors: dict[str, float] = {}
    for name in names:
        a, b = mine[name], theirs[name]
        value = (a - a[0]) - (b - b[0])
        if not np.isfinite(value[-1]).any():
            continue
        off = np.abs(a[0] - b[0])
        level = float(np.nanmean(np.abs(mine["argmax" if name == "gap" else name][0])))
        noise = max(_noise(t, name, a[0]) for t in (run, other))
        starts[name] = float(np.nanmedian(off))
        allowed[name] = max(noise, thresholds.material * level)
        shake = thresholds.difference * jitter(known_mean(value), thresholds=thresholds)
        values[name], floors[name] = value, max(allowed[name], shake)
    if not values:
        fail("a probe measured in run and control at their last common step", "none", "probe both alike")
    means_only = run.sizes["example"] < 2
    p = [np.nan if means_only else _two_sided(value[-1]) for value in values.values()]
    adjusted = holm(np.array(p)).tolist()
    for (name, value), raw, corrected in zip(values.items(), p, adjusted, strict=True):
        mean = known_mean(value)
        low, high = np.full(len(mean), np.nan), np.full(len(mean), np.nan)
        for i in range(0, 0 if means_only else len(value), _BLOCK):
            drawn = bootstrap_means({"x": value[i : i + _BLOCK]}, seed=seed, thresholds=thresholds)["x"]
            low[i : i + _BLOCK], high[i : i + _BLOCK] = interval(drawn, thresholds=thresholds)
        move = Move(mean[-1], low[-1], high[-1], np.asarray(floors[name]))
        sure = corrected <= 1.0 - thresholds.level
        direction = None if means_only else "up" if sure and move.up else "down" if sure and move.down else "none"
        effects[name] = {"effect": number(mean[-1]), "low": number(low[-1]), "high": number(high[-1])}
        effects[name] |= {"floor": number(floors[name]), "p": _plain(raw), "p_holm": _plain(corrected)}
        effects[name] |= {"direction": direction, "n": int(np.isfinite(value[-1]).sum())}
        effects[name]["series"] = [number(x) for x in mean]
    caveats = _caveats(ds, control, run, starts, allowed, means_only)
    matched = not any(line.startswith("starts") for line in caveats)
    step = [int(s) for s in run.step.values]
    out = {"first_step": step[0], "last_step": step[-1], "steps": step, "step_unit": str(ds.attrs["step_unit"])}
    out |= {"n_examples": run.sizes["example"], "n_seeds": run.sizes["seed"], "means_only": means_only}
    out |= {"matched_start": matched, "start_difference": {k: number(v) for k, v in starts.items()}}
    return {**out, "effects": effects, "caveats": caveats, "text": _text(effects, step[-1], caveats)}


def _two_sided(units: Floats) -> float:
    return float(min(1.0, 2.0 * min(p_value(units), p_value(-units))))


def _plain(p: float) -> float | None:
    return float(p) if np.isfinite(p) else None


def _caveats(
    ds: xr.Dataset,
    control: xr.Dataset,
    run: xr.Dataset,
    starts: dict[str, float],
    allowed: dict[str, float],
    means_only: bool,
) -> list[str]:
    out = []
    first = int(run.step[0])
    begins = [bool(t.attrs["has_step0"]) and int(t.step[0]) == first for t in (ds, control)]
    if not all(begins):
        who = " and ".join(w for w, good in zip(("the run", "the control"), begins, strict=True) if not good)
        out.append(f"starts are not matched: step {first} is not known as the policy before the first update of {who}")
    apart = {name: v for name, v in starts.items() if name != "gap" and v > allowed[name]}
    if apart:
        name = max(apart, key=lambda k: apart[k] / allowed[k])
        out.append(f"starts are not matched: {name} differs by {starts[name]:.3g} nats (median) at step {first}")
    last = int(run.step[-1])
    for who, t in (("the run", ds), ("the control", control)):
        if int(t.step[-1]) > last:
            out.append(f"{who} goes on to step {int(t.step[-1])}; nothing after step {last} is compared")
    if "examples_seen" in ds.coords and "examples_seen" in control.coords:
        seen = [int(t.examples_seen.sel(step=last)) for t in (ds, control)]
        if seen[0] != seen[1]:
            out.append(f"at step {last} the run has seen {seen[0]} examples, the control {seen[1]}")
    if means_only:
        out.append("means only: differences without intervals")
    return out


def _text(effects: dict[str, dict[str, Any]], step: int, caveats: list[str]) -> str:
    def one(name: str) -> str:
        e = effects[name]
        bounds = "" if e["low"] is None else f" [{e['low']:+.4g}, {e['high']:+.4g}]"
        return f"{name} {e['effect']:+.4g}{bounds}"

    main = [one(name) for name in ("chosen", "rejected", "argmax", "gap") if name in effects] or [
        one(next(iter(effects)))
    ]
    after = f"; {'; '.join(caveats)}" if caveats else ""
    return f"run minus control at step {step}, nats: {', '.join(main)}{after}"
