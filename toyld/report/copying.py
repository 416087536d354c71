"""What a table says of right answers and copied solutions: pre-memorisation accuracy, in numbers and in words.

A table of a run whose answers were sampled has `accuracy`, and `premem_threshold` as an attribute: the perplexity up to
which a solution counts as copied (`toyld.premem`). Of prompts that are not trained on it has the mean accuracy and its
standard error, `eval_accuracy` and `eval_accuracy_error`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.diagnosis.resample import bootstrap_means, interval
from toyld.premem import copied, of_table, perplexities
from toyld.report._words import share

__all__ = ["NORMAL", "Copying", "copying", "sentence"]

Floats = NDArray[np.float64]
NORMAL = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Copying:
    """accuracy, copied (0 or 1) and premem, each (step, prompt); held_out: mean and standard error, each (step,)."""

    step: NDArray[np.int64]
    accuracy: Floats
    copied: Floats
    premem: Floats
    threshold: float
    held_out: tuple[Floats, Floats] | None

    def intervals(self) -> dict[str, tuple[Floats, Floats]]:
        """95 % intervals over prompts of the means of accuracy and premem: (low, high), each (step,)."""
        drawn = bootstrap_means({"accuracy": self.accuracy, "premem": self.premem})
        return {name: interval(means) for name, means in drawn.items()}


def copying(ds: xr.Dataset, /, *, probe: str = "chosen") -> Copying | None:
    """The evaluations of a table at which answers were sampled; None where there are none, or no threshold.

    Prompts whose solution was not scored, or that were not asked at each of them, are left out. A table of several
    seeds has none either: their answers to one prompt are no answers to several.

    >>> from toyld.trajectory import trajectory
    >>> told = {"accuracy": [[[[0.5]], [[0.9]]]], "logp": [[[[-8.0]], [[-0.1]]]], "n_tokens": [[[8.0]]]}
    >>> ds = trajectory(told, step=[0, 10], probe=["chosen"], attrs={"premem_threshold": 1.2})
    >>> found = copying(ds)
    >>> found.copied[:, 0].tolist(), found.premem[:, 0].tolist()
    ([0.0, 1.0], [0.5, 0.5])
    """
    threshold = ds.attrs.get("premem_threshold")
    if (
        threshold is None
        or ds.sizes["seed"] > 1
        or not {"accuracy", "logp", "n_tokens"} <= set(ds.data_vars)
        or probe not in ds.probe.values
    ):
        return None
    one = ds[["accuracy", "logp", "n_tokens"]].sel(probe=probe)
    asked = np.isfinite(one.accuracy).any(("seed", "example")).values
    known = np.isfinite(one.accuracy + one.logp / one.n_tokens).isel(step=asked).all(("seed", "step")).values
    if not asked.any() or not known.any():
        return None
    sub = ds.isel(step=asked, example=known)
    held = None
    if {"eval_accuracy", "eval_accuracy_error"} <= set(ds.data_vars):
        mean, error = (sub[name].isel(seed=0).values for name in ("eval_accuracy", "eval_accuracy_error"))
        held = (mean, error)
    return Copying(
        sub.step.values.astype(np.int64),
        sub.accuracy.sel(probe=probe).isel(seed=0).transpose("step", "example").values,
        copied(perplexities(sub, probe=probe)[0], threshold=threshold).astype(float),
        of_table(sub, threshold=threshold, probe=probe)[0],
        float(threshold),
        held,
    )


def sentence(ds: xr.Dataset, /) -> str:
    """The last evaluation in one line, with 95 % intervals over prompts; "" where no answers were sampled.

    >>> from toyld.trajectory import trajectory
    >>> told = {"accuracy": [[[[0.5]], [[0.9]]]], "logp": [[[[-8.0]], [[-0.1]]]], "n_tokens": [[[8.0]]]}
    >>> sentence(trajectory(told, step=[0, 10], probe=["chosen"], attrs={"premem_threshold": 1.2}))
    'answers right 90 %, right before copying and still 50 % (PreMem at perplexity 1.2); 1 of 1 solutions copied'
    """
    found = copying(ds)
    if found is None:
        return ""
    told = {}
    for name, bounds in found.intervals().items():
        low, high = (float(bound[-1]) for bound in bounds)
        told[name] = share(float(getattr(found, name)[-1].mean())) + _between(low, high)
    out = f"answers right {told['accuracy']}, right before copying and still {told['premem']} (PreMem at perplexity "
    out += f"{found.threshold:g}); {found.copied[-1].sum():.0f} of {found.copied.shape[1]} solutions copied"
    if found.held_out is not None:
        mean, error = (float(values[-1]) for values in found.held_out)
        low, high = (min(max(mean + side * NORMAL * error, 0.0), 1.0) for side in (-1, 1))
        out += f"; held-out prompts right {share(mean)}" + _between(low, high)
    return out


def _between(low: float, high: float) -> str:
    """The interval; "" for one prompt, or where all are alike: they show no spread."""
    return f" [{share(low)}, {share(high)}]" if low < high else ""
