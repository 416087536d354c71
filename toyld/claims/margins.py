"""Runs compared at equal margin, by unit: seeds each where its own margin gets there, examples where their mean does.

Of one seed there is one mean margin m(t), and all its examples are read at the moment where it reaches the target m*.
That moment is uncertain, too: with more examples or another jitter m(t) would have got there sooner or later. A probe's
mean v then moves along ρ = dv/dm, so that the units are v_i − ρ (m_i − m*), whose mean is v and whose spread holds both
uncertainties to first order; likewise the curve v(t) − ρ m(t) has their jitter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from toyld.claims.effects import Part
from toyld.claims.tables import ARGMAX, Floats, curves, first_reason, matched
from toyld.diagnosis.resample import known_mean
from toyld.trajectory import at_margin

__all__ = ["alike", "changes_at", "reach"]


def changes_at(ds: xr.Dataset, target: float, name: str, /) -> Part | Floats:
    """Change of a probe, or of `ARGMAX`, since the first evaluation where the margin first reaches `target` (nats).

    By seed where there are several, NaN for one whose margin never does; else by example. Linear between evaluations.

    >>> from toyld.trajectory import trajectory
    >>> logp = [[[[-3.0, -3.0], [-3.0, -3.0]], [[-4.0, -5.0], [-9.0, -15.0]]]]
    >>> ds = trajectory({"logp": logp}, step=[0, 9], probe=["chosen", "rejected"], example=["a", "b"])
    >>> part = changes_at(ds, 5.0, "chosen")
    >>> part.units.round(3).tolist(), float(part.units.mean().round(3))
    ([-1.0, -1.0], -1.0)
    """
    if ds.sizes["seed"] > 1:
        if name == ARGMAX:
            return at_margin(ds, target, variable="argmax_logp")
        return at_margin(ds, target, name)
    found = curves(ds, list(dict.fromkeys(("chosen", "rejected", name))))
    gap = found["chosen"].values - found["rejected"].values
    gap, values = gap - gap[:1], found[name].values - found[name].values[:1]
    path, mean = known_mean(gap), known_mean(values)
    reached = np.flatnonzero(path >= target)
    if not len(reached):
        return np.full(gap.shape[1], np.nan)
    k = int(reached[0])
    share = (target - path[k - 1]) / (path[k] - path[k - 1])
    slope = (mean[k] - mean[k - 1]) / (path[k] - path[k - 1])
    there, margin = ((1.0 - share) * x[k - 1] + share * x[k] for x in (values, gap))
    # Two neighbouring evaluations weigh at most as much as one: 2 as of any change is the most it can be.
    return Part(there - slope * (margin - target), values - slope * gap, 2.0)


def alike(ds: xr.Dataset, control: xr.Dataset, /) -> tuple[xr.Dataset, xr.Dataset]:
    """Both as they are, or of one seed at their common evaluations and examples, so that they have a difference."""
    both = matched(ds, control) if ds.sizes["seed"] == 1 else None
    return (ds, control) if both is None else both


def reach(
    target: float, further: Callable[[xr.Dataset, xr.Dataset], str | None], /
) -> Callable[[xr.Dataset, xr.Dataset], str | None]:
    """Premises, and of runs of one seed that each of the two comes to the margin; of several, those that do count."""

    def reason(ds: xr.Dataset, control: xr.Dataset, /) -> str | None:
        return further(ds, control) or first_reason(*(_short(x, target) for x in alike(ds, control)))

    return reason


def _short(ds: xr.Dataset, target: float) -> str | None:
    if ds.sizes["seed"] > 1:
        return None
    found = curves(ds, ["chosen", "rejected"])
    gap = found["chosen"].values - found["rejected"].values
    most = float(known_mean(gap - gap[:1]).max())
    return None if most >= target else f"its margin never grows by {target:g} nats: by {most:.1f} at most"
