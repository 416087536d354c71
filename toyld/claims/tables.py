"""What run claims read off a table: curves by unit, changes since the start, runs matched in time, premises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Curve, Part
from toyld.diagnosis.resample import known_mean
from toyld.probes.kinds import group, rephrases_of
from toyld.trajectory import below_label

__all__ = [
    "ARGMAX",
    "MODELS",
    "PLAIN",
    "REPHRASES",
    "REPHRASES_OF_REJECTED",
    "RUNGS",
    "SHUFFLED",
    "SIMILAR",
    "STAGES",
    "WORLDS",
    "Needs",
    "along",
    "beside",
    "change",
    "curves",
    "first_reason",
    "matched",
    "measured",
    "needs",
    "needs_pair",
    "observed",
    "same_model",
]

Floats = NDArray[np.float64]
REPHRASES, REPHRASES_OF_REJECTED = rephrases_of("chosen"), rephrases_of("rejected")
SIMILAR, SHUFFLED = group("similar"), group("shuffled")
ARGMAX = "argmax along chosen"  # not a probe: variable argmax_logp at probe chosen
# What the paper's findings are about: SFT on the chosen answers alone, DPO on the given pairs. A log need not say it.
PLAIN = ("baseline", "unknown")
# Where those findings are tried: the experiment that has the paper's stages, in two worlds, in runs of real language
# models (one seed, whose units are examples), and in the released logs.
STAGES, WORLDS = "stages", ("contexts", "tiny")
MODELS = (*WORLDS, "llm")
RUNGS = (*MODELS, "published")


def measured(ds: xr.Dataset, probes: Iterable[str] | None = None, /) -> tuple[str, ...]:
    """The probes (of those named) whose log-probability was measured, in the table's order."""
    if "logp" not in ds:
        return ()
    known = [str(p) for p in ds.probe.values if np.isfinite(ds.logp.sel(probe=p).values).any()]
    return tuple(p for p in known if probes is None or p in set(probes))


def observed(ds: xr.Dataset, /) -> tuple[str, ...]:
    """The measured responses that stand on their own: no beginnings of chosen, no path of the model's own."""
    return tuple(p for p in measured(ds) if p not in (*group("part"), *group("path")))


def _by_unit(ds: xr.Dataset, name: str, variable: str | None) -> Curve:
    """By examples, or by seeds where there are several (each the mean of its examples)."""
    wanted = variable or ("argmax_logp" if name == ARGMAX else "logp")
    values = ds[wanted].sel(probe="chosen" if name == ARGMAX else name).transpose("step", "seed", "example").values
    if values.shape[1] == 1:
        return Curve(np.asarray(values[:, 0, :], float))
    return Curve(known_mean(values), seeds=True)


def _measured_together(found: Sequence[Curve]) -> list[Curve]:
    rows = np.logical_and.reduce([np.isfinite(curve.values).any(1) for curve in found])
    return [Curve(curve.values[rows], curve.seeds) for curve in found]


def curves(ds: xr.Dataset, names: Iterable[str], /, *, argmax: str | None = None) -> dict[str, Curve]:
    """Curves [evaluation, unit] of probes and of `ARGMAX`, at the evaluations where all of them were measured.

    `argmax`: another variable to read the argmax from.

    >>> from toyld.trajectory import trajectory
    >>> ds = trajectory({"logp": [[[[-3.0, -4.0]], [[-2.5, -4.0]]]]}, step=[0, 9], probe=["chosen"], example=["a", "b"])
    >>> curves(ds, ["chosen"])["chosen"].values.tolist()
    [[-3.0, -4.0], [-2.5, -4.0]]
    """
    names = list(names)
    found = _measured_together([_by_unit(ds, name, argmax if name == ARGMAX else None) for name in names])
    return dict(zip(names, found, strict=True))


def along(ds: xr.Dataset, probe: str, /) -> Curve:
    """The argmax along the contexts of another probe than chosen, at the evaluations where it was measured."""
    (found,) = _measured_together([_by_unit(ds, probe, "argmax_logp")])
    return found


def change(ds: xr.Dataset, *names: str) -> list[Part]:
    """Last minus first evaluation of each curve, by unit."""
    return [curve.between(0, -1) for curve in curves(ds, names).values()]


def beside(ds: xr.Dataset, control: xr.Dataset, pairs: Iterable[tuple[str, str]], /) -> list[tuple[Curve, Curve]]:
    """Curves of a run and of its control (a name for each), at the evaluations where both have measured all of them.

    Raises:
        ValueError: nothing matches; the premises (`needs_pair`) say so before.
    """
    common, pairs = matched(ds, control), list(pairs)
    if common is None:
        msg = "expected two runs with common evaluations and units; the premises say whether they have them"
        raise ValueError(msg)
    found = _measured_together(
        [_by_unit(x, name, None) for pair in pairs for x, name in zip(common, pair, strict=True)]
    )
    return list(zip(found[::2], found[1::2], strict=True))


def _times(ds: xr.Dataset, name: str) -> list[int]:
    return [int(t) for t in ds[name].values]


def matched(ds: xr.Dataset, control: xr.Dataset, /) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Both tables at their common evaluations (by examples seen, else by step) and units; None where nothing matches.

    Units are matched by name: the examples of one probing set, or the seeds where there are several.
    """
    clock = "examples_seen" if "examples_seen" in ds.coords and "examples_seen" in control.coords else "step"
    if clock == "step" and ds.attrs["step_unit"] != control.attrs["step_unit"]:
        return None
    unit = "seed" if max(ds.sizes["seed"], control.sizes["seed"]) > 1 else "example"
    if set(ds[unit].values.tolist()) != set(control[unit].values.tolist()):
        return None
    if unit == "example" and ds.attrs.get("probing_set") != control.attrs.get("probing_set"):
        return None
    common = sorted(set(_times(ds, clock)) & set(_times(control, clock)))
    if len(common) < 2:
        return None
    at = [_times(ds, clock).index(t) for t in common], [_times(control, clock).index(t) for t in common]
    if unit == "seed":
        return ds.isel(step=at[0]), control.isel(step=at[1]).sel(seed=ds.seed)
    return ds.isel(step=at[0]), control.isel(step=at[1]).sel(example=ds.example)


@dataclass(frozen=True)
class Needs:
    """Premises of a claim about one run; called with a table: None, or the reason why it says nothing about it."""

    stage: str
    probes: tuple[str, ...] = ()
    some: tuple[str, ...] = ()
    argmax: bool = False
    evaluations: int = 2
    arms: tuple[str, ...] = ()

    def labels(self, ds: xr.Dataset, /) -> str | None:
        """The part that is read off the attributes alone: stage and arm."""
        given, arm = ds.attrs["stage"], ds.attrs["arm"]
        if given != self.stage:
            other = "its stage is not recorded: state it" if given == "unknown" else f"a run of stage {given}"
            return f"{other}; the claim is about {self.stage}"
        if self.arms and arm not in self.arms:
            other = "is not recorded: state it" if arm == "unknown" else f"is {arm}"
            return f"its arm {other}; the claim is about {self.arms[0]}"
        return None

    def contents(self, ds: xr.Dataset, /) -> str | None:
        """The part that reads the measured values."""
        known = measured(ds)
        if lacking := [p for p in self.probes if p not in known]:
            return f"not measured: {', '.join(lacking)}"
        if self.some and not set(self.some) & set(known):
            return f"none measured of {', '.join(self.some)}"
        if self.argmax:
            if "argmax_logp" not in ds or not np.isfinite(ds.argmax_logp.sel(probe="chosen").values).any():
                return "not measured: argmax along the chosen contexts"
            if bool(below_label(ds.sel(probe=["chosen"])).any()):
                return "its argmax lies below the label's log-probability: measured along other contexts"
        if not ds.attrs["has_step0"] or int(ds.step.values[0]) != 0:
            return "its first evaluation comes after the first update"
        names = [*self.probes, *(p for p in known if p in self.some), *([ARGMAX] if self.argmax else [])]
        if not all(len(a) for a in curves(ds.isel(step=[0]), names).values()):
            return "not all of them measured before the first update"
        n = len(curves(ds, names)[names[0]])
        return None if n >= self.evaluations else f"{n} evaluation(s), at least {self.evaluations} are needed"

    def __call__(self, ds: xr.Dataset, /) -> str | None:
        return self.labels(ds) or self.contents(ds)


def needs(
    stage: str,
    *probes: str,
    some: Iterable[str] = (),
    argmax: bool = False,
    evaluations: int = 2,
    arm: str | Sequence[str] | None = None,
) -> Needs:
    """Premises of a claim about one run: its stage (and arm), probes measured (all, and one of `some`), its length.

    The stage is attr `stage`: recorded by whoever made the table, or stated by whoever reads a log that lacks it.
    `arm`: one or several, the first of which the claim is about; any by default.
    """
    arms = () if arm is None else (arm,) if isinstance(arm, str) else tuple(arm)
    return Needs(stage, probes, tuple(some), argmax, evaluations, arms)


def first_reason(*reasons: str | None) -> str | None:
    """The first that is one."""
    return next((reason for reason in reasons if reason is not None), None)


def same_model(ds: xr.Dataset, control: xr.Dataset, /) -> str | None:
    """None unless attr `model` is known of both and differs."""
    models = [str(x.attrs.get("model", "")) for x in (ds, control)]
    return f"runs of two models: {', '.join(models)}" if all(models) and models[0] != models[1] else None


def needs_pair(
    run: Needs, other: Needs, further: Callable[[xr.Dataset, xr.Dataset], str | None] | None = None, /
) -> Callable[[xr.Dataset, xr.Dataset], str | None]:
    """Premises of a claim about a run and its control: those of each, one model, common evaluations and units.

    What attributes tell is asked first: of n tables there are n(n − 1) ordered pairs, and few of them fit.
    """

    def reason(ds: xr.Dataset, control: xr.Dataset, /) -> str | None:
        alone = first_reason(run.labels(ds), other.labels(control), same_model(ds, control))
        if alone is None and further is not None:
            alone = further(ds, control)
        if alone is None:
            alone = run.contents(ds) or other.contents(control)
        if alone is None and matched(ds, control) is None:
            return "the two runs share no two evaluations, or were probed on other examples or seeds"
        return alone

    return reason
