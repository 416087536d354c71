"""Curves of the stages of tiny transformers for a figure: seeds, changes since the start, what the recipes are called.

Figures "paper" show the seeds of record of the experiment at the size of the tests, "smoke" the first five of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.figures._look import centred, require
from toyld.figures._runs import ARGMAX, collected
from toyld.figures._table import Table, rows

__all__ = ["NAMES", "SEEDS", "begins_at_zero", "changes", "end", "paths", "stages"]

Floats = NDArray[np.float64]
SEEDS = {"smoke": 5, "paper": 20}
NAMES = {"rmsprop": "RMSprop", "sgd": "plain descent"}


def stages(size: str, /) -> Mapping[str, Any]:
    """The tables of the experiment `stages`, by name."""
    from toyld.tiny.experiments import EXPERIMENTS

    return EXPERIMENTS.run("stages", seeds=range(SEEDS[size]))


def paths(size: str, name: str, kind: str, /) -> tuple[list[int], Floats]:
    """(updates, change since the start (update, seed)) of one kind in one of these tables."""
    ds = stages(size)[f"tiny {name}"]
    values = ds.argmax_logp.sel(probe="chosen") if kind == ARGMAX else ds.logp.sel(probe=kind)
    path = values.mean("example").transpose("step", "seed").values
    return [int(k) for k in ds.step.values], path - path[:1]


def changes(
    size: str, runs: Mapping[str, str], kinds: Iterable[str], /, *, minus: Mapping[str, str] | None = None
) -> Table:
    """As `_runs.collected`, of these tables; columns mean, low, high in nats."""
    found = collected(size, runs, kinds, minus=minus, path_of=paths)
    return {name.removesuffix("_nats"): values for name, values in found.items()}


def end(table: Mapping[str, Any], run: str, kind: str, /, **other: str) -> tuple[float, float, float]:
    """Mean, low and high at the last evaluation; of fewer seeds than those of record the mean thrice."""
    one = rows(table, run=run, kind=kind, **other)
    names = ("mean", "low", "high") if one["seeds"][0] >= SEEDS["paper"] else ("mean",) * 3
    mean, low, high = (float(one[name][-1]) for name in names)
    return mean, low, high


def begins_at_zero(table: Mapping[str, Any], /) -> None:
    """Require that every curve begins with no change, and that its interval lies evenly about its mean."""
    centred(table)
    first = rows(table, update=0)
    worst = max(float(np.abs(first[name]).max()) for name in ("mean", "low", "high"))
    require(worst == 0.0, f"a curve begins {worst:.3g} nats from where it began")
