"""What a verdict reads off a table: chosen, argmax along the same contexts, rejected and the rest, by step and unit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.trajectory.table import ROUNDING32

__all__ = ["ROUNDING", "Curves", "curves"]

Floats = NDArray[np.float64]
ROUNDING = 4.0 * float(np.finfo(np.float32).eps)  # of a sum computed in float32, relative: where no noise was measured


@dataclass(frozen=True)
class Curves:
    """Arrays [evaluation, unit]: one example a unit, averaged over seeds (one seed a unit where there is one example).

    Evaluations are those with chosen measured, from the first on that has its argmax too where there is one; averages
    need every seed. `floor`: scoring noise of each unit's log-probability in nats; `noise_floor`: as measured,
    nats/token, or None.
    """

    step: NDArray[np.int32]
    logp: dict[str, Floats]
    argmax: Floats | None
    reference: dict[str, Floats]
    floor: Floats
    floor_known: bool  # measured, and the lengths to multiply it with
    noise_floor: float | None
    tokens: dict[str, Floats]
    n_examples: int | None  # None: means of nobody knows how many
    means_only: bool
    has_step0: bool
    mislabelled: float = 0.0  # share of cells with argmax below the label: an argmax of other contexts
    scalars: dict[str, Floats] = field(default_factory=dict)  # [evaluation]: entropy, top1 along chosen

    @property
    def chosen(self) -> Floats | None:
        """Log-probability of the chosen response."""
        return self.logp.get("chosen")

    @property
    def rejected(self) -> Floats | None:
        """Log-probability of the rejected response."""
        return self.logp.get("rejected")


def _units(array: xr.DataArray, at: int) -> Floats:
    """Probe number `at` of [seed, step, probe, example] as [step, unit]; without a step, as [unit]."""
    values = np.asarray(array.values, float)  # by position: looking names up costs more than all else
    values = np.take(values, at, axis=values.ndim - 2)
    values = values[np.isfinite(values).reshape(len(values), -1).any(1)]  # seeds that measured it
    if len(values) == 0:
        return np.full(array.shape[1:-2] + array.shape[-1:], np.nan)
    if values.shape[-1] > 1 or len(array) == 1:
        return np.asarray(values.mean(0))
    alone = np.full((len(array), *values.shape[1:]), np.nan)
    alone[: len(values)] = values
    return np.moveaxis(alone[..., 0], 0, -1)


def curves(ds: xr.Dataset, /) -> Curves:
    """The curves of a valid table.

    >>> from toyld.trajectory import trajectory
    >>> values = {"logp": [[[[-3.0]], [[-2.5]]]], "argmax_logp": [[[[-1.0]], [[-0.9]]]]}
    >>> curves(trajectory(values, step=[0, 10], probe=["chosen"])).argmax.tolist()
    [[-1.0], [-0.9]]
    """
    probes = [str(p) for p in ds.probe.values]
    logp = {p: _units(ds["logp"], i) for i, p in enumerate(probes)} if "logp" in ds else {}
    logp = {p: a for p, a in logp.items() if np.isfinite(a).any()}
    rows = np.zeros(ds.sizes["step"], bool)
    if "chosen" in logp:
        rows |= np.isfinite(logp["chosen"]).any(1)
    units = ds.sizes["example"] if ds.sizes["example"] > 1 else ds.sizes["seed"]
    argmax, mislabelled = None, 0.0
    if "argmax_logp" in ds and "chosen" in logp:
        values, label = _units(ds["argmax_logp"], probes.index("chosen")), logp["chosen"]
        cells = np.isfinite(values) & np.isfinite(label)
        mislabelled = float((values < label - ROUNDING32 * np.abs(label)).sum() / max(1, int(cells.sum())))
        if mislabelled == 0.0 and cells.any():
            rows[: int(np.argmax(cells.any(1)))] = False
            argmax = values[rows]
    tokens: dict[str, Floats] = {}
    if "n_tokens" in ds:
        tokens = {p: _units(ds["n_tokens"], i) for i, p in enumerate(probes)}
    reference: dict[str, Floats] = {}
    if "ref_logp" in ds:
        for i, p in enumerate(probes):
            values = _units(ds["ref_logp"], i)
            reference[p] = np.broadcast_to(values, (ds.sizes["step"], units))[rows]
    reference = {p: a for p, a in reference.items() if np.isfinite(a).any()}
    measured = ds.attrs.get("noise_floor")
    noise = float(measured) if isinstance(measured, int | float) and np.isfinite(measured) and measured >= 0 else None
    kept = {p: a[rows] for p, a in logp.items()}
    chosen = kept.get("chosen", np.full((1, units), np.nan))
    floor = ROUNDING * np.abs(chosen[0]) if len(chosen) else np.zeros(units)
    floor_known = noise is not None and "chosen" in tokens
    if noise is not None and floor_known:
        floor = np.fmax(floor, noise * tokens["chosen"])
    scalars = {}
    for name in ("entropy", "top1"):
        if name in ds:
            values = _units(ds[name], probes.index("chosen"))[rows] if "chosen" in probes else np.full((0, 1), np.nan)
            if np.isfinite(values).any():
                scalars[name] = np.nanmean(values, axis=1)
    means_only = list(ds.example.values) == ["mean"] or units == 1
    n_examples = ds.attrs.get("n_examples", None if list(ds.example.values) == ["mean"] else ds.sizes["example"])
    return Curves(
        step=ds.step.values[rows] if "chosen" in logp else ds.step.values,
        logp={p: a for p, a in kept.items() if np.isfinite(a).any()},
        argmax=argmax,
        reference=reference,
        floor=np.where(np.isfinite(floor), floor, 0.0),
        floor_known=floor_known,
        noise_floor=noise,
        tokens=tokens,
        n_examples=int(n_examples) if isinstance(n_examples, int | float) else None,
        means_only=means_only,
        has_step0=bool(ds.attrs.get("has_step0", 0) and ds.step.values[0] == 0 and (rows[0] or "chosen" not in logp)),
        mislabelled=mislabelled,
        scalars=scalars,
    )
