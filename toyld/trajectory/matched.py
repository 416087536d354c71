"""Reading a run at a given reward margin: remedies are compared at equal preference learnt, not at equal steps."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.checked import fail

__all__ = ["at_margin", "margin"]

Floats = NDArray[np.float64]


def margin(ds: xr.Dataset, /) -> Floats:
    """m = Δ(ℓ₊ − ℓ₋) since the first evaluation, mean over examples, (step, seed), in nats: the reward margin over β.

    >>> from toyld.trajectory import trajectory
    >>> logp = [[[[-3.0], [-3.0]], [[-4.0], [-9.0]]]]
    >>> margin(trajectory({"logp": logp}, step=[0, 9], probe=["chosen", "rejected"])).ravel().tolist()
    [0.0, 5.0]
    """
    if not {"chosen", "rejected"} <= set(ds.probe.values.tolist()) or "logp" not in ds:
        fail("a table with logp of chosen and rejected", ", ".join(ds.probe.values.tolist()), "measure both")
    gap = ds.logp.sel(probe="chosen") - ds.logp.sel(probe="rejected")
    path = gap.mean("example").transpose("step", "seed").values
    return path - path[:1]


def at_margin(ds: xr.Dataset, target: float, probe: str = "chosen", /, *, variable: str = "logp") -> Floats:
    """Change of a probe's mean since the first evaluation where the margin first reaches `target`, (seed,), in nats.

    Linear between the two evaluations around; NaN for a seed that never gets there.

    >>> from toyld.trajectory import trajectory
    >>> logp = [[[[-3.0], [-3.0]], [[-4.0], [-9.0]]]]
    >>> ds = trajectory({"logp": logp}, step=[0, 9], probe=["chosen", "rejected"])
    >>> at_margin(ds, 2.5).tolist(), at_margin(ds, 6.0).tolist()
    ([-0.5], [nan])
    """
    path = margin(ds)
    values = ds[variable].sel(probe=probe).mean("example").transpose("step", "seed").values
    values = values - values[:1]
    out = np.full(path.shape[1], np.nan)
    for s in range(path.shape[1]):
        reached = np.flatnonzero(path[:, s] >= target)
        if len(reached) == 0:
            continue
        k = int(reached[0])
        if k == 0:
            out[s] = values[0, s]
            continue
        share = (target - path[k - 1, s]) / (path[k, s] - path[k - 1, s])
        out[s] = values[k - 1, s] + share * (values[k, s] - values[k - 1, s])
    return out
