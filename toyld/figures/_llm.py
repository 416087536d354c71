"""Curves of recorded runs of real language models: changes since the start, means over the prompts with intervals.

They come with the package (`toyld/evidence/llm-curves.csv`), since a run takes an hour and its models are not here:

    python -c "from toyld.figures import _llm; _llm.record({'hh': 'FOLDER'}, 'toyld/evidence/llm-curves.csv')"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toyld.figures._look import interval
from toyld.figures._runs import ARGMAX
from toyld.figures._table import Table, packaged, rows, write_table
from toyld.files import write_whole

__all__ = ["ARGMAX", "KINDS", "end", "load", "record"]

# Changes of these and of the argmax along chosen.
KINDS = (
    "chosen", "chosen_gptsemantic", "chosen_gptformat", "rejected", "irr_train", "irr_test", "irr_hum",
    "random_permute", "random_nonhum",
)  # fmt: skip


def record(folders: Mapping[str, str | Path], out: str | Path, /) -> None:
    """Write the curves of run folders of `toyld run llm`, by name: one row a stage, arm, kind and evaluation."""
    from toyld.trajectory import read_folder

    columns: dict[str, list[object]] = {n: [] for n in ("run", "stage", "arm", "kind", "update", "n")}
    columns |= {n: [] for n in ("mean", "low", "high")}
    for run, folder in folders.items():
        for ds in read_folder(folder):
            one = ds.isel(seed=0)
            curves = {kind: one.logp.sel(probe=kind) for kind in KINDS if kind in one.probe.values}
            curves[ARGMAX] = one.argmax_logp.sel(probe="chosen")
            for kind, values in curves.items():
                moved = values.values - values.values[:1]
                for step, units in zip(one.step.values, moved, strict=True):
                    known = units[np.isfinite(units)]
                    mean, low, high = interval(known)
                    told = (run, str(ds.attrs["stage"]), str(ds.attrs["arm"]), kind, int(step), len(known))
                    for name, value in zip(columns, (*told, mean, low, high), strict=True):
                        columns[name].append(value)
    table = {name: np.array(values) for name, values in columns.items()}
    write_whole(Path(out), write_table(table).encode())


def load() -> Table:
    """The curves that come with the package."""
    return packaged("llm-curves.csv")


def end(table: Mapping[str, Any], /, **which: str) -> tuple[float, float, float]:
    """Mean and interval of one curve at its last evaluation."""
    one = rows(table, **which)
    at = int(np.argmax(one["update"]))
    return float(one["mean"][at]), float(one["low"][at]), float(one["high"][at])
