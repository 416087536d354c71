"""Real runs of the quiz, answer by answer: what `toyld run llm` measured on its prompts, kept as package data.

A run takes an hour and its models are not here. From their folders, which no checkout has:

    python -c "from toyld.lab import recorded; recorded.record({'hh': 'FOLDER'}, 'toyld/evidence/llm-examples.csv')"

Log-probabilities in nats of a response, to two decimals: chosen, rejected, and the argmax along chosen. The means of
their changes are those of `toyld/evidence/llm-curves.csv`; a verdict needs the level they start from, too, and the
prompts one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from toyld.figures._table import packaged, rows, write_table
from toyld.files import write_whole
from toyld.trajectory import read_folder, trajectory

__all__ = ["KINDS", "RUNS", "load", "record"]

KINDS = ("chosen", "rejected", "argmax")
# What the quiz shows: run, stage, arm.
RUNS = (("hh", "sft", "baseline"), ("hh", "dpo", "baseline"), ("stories", "dpo", "baseline"))
DIGITS = 2


def record(folders: Mapping[str, str | Path], out: str | Path, /) -> None:
    """Write the log-probabilities of RUNS from run folders by name: a row a run, kind and evaluation."""
    columns: dict[str, list[object]] = {n: [] for n in ("run", "stage", "arm", "kind", "update", "noise_floor")}
    columns |= {"nats": []}
    for run, folder in folders.items():
        for ds in read_folder(folder):
            named = (run, str(ds.attrs["stage"]), str(ds.attrs["arm"]))
            if named not in RUNS:
                continue
            one = ds.isel(seed=0)
            values = {kind: one.logp.sel(probe=kind).values for kind in ("chosen", "rejected")}
            values["argmax"] = one.argmax_logp.sel(probe="chosen").values
            for kind in KINDS:
                for step, units in zip(one.step.values, values[kind], strict=True):
                    nats = " ".join(f"{x:.{DIGITS}f}" for x in units)
                    told = (*named, kind, int(step), float(ds.attrs["noise_floor"]), nats)
                    for name, value in zip(columns, told, strict=True):
                        columns[name].append(value)
    write_whole(Path(out), write_table({name: np.array(values) for name, values in columns.items()}).encode())


def load(run: str, stage: str, arm: str, /) -> xr.Dataset:
    """One recorded run as a table that `toyld.diagnosis.diagnose` reads.

    >>> load("hh", "dpo", "baseline").sizes["example"]
    64
    """
    table = rows(packaged("llm-examples.csv"), run=run, stage=stage, arm=arm)
    step = sorted({int(update) for update in table["update"]})

    def values(kind: str) -> list[list[float]]:
        mine = rows(table, kind=kind)
        order = np.argsort(mine["update"])
        return [[float(x) for x in str(mine["nats"][i]).split()] for i in order]

    chosen, rejected, argmax = (np.array(values(kind)) for kind in KINDS)
    found = {
        "logp": np.stack([chosen, rejected], 1)[None],
        "argmax_logp": np.stack([argmax, np.full_like(argmax, np.nan)], 1)[None],
    }
    return trajectory(
        found, step=step, probe=["chosen", "rejected"], example=[f"{i}" for i in range(chosen.shape[1])], world="llm",
        stage=stage, arm=arm, attrs={"noise_floor": float(table["noise_floor"][0])},
    )  # fmt: skip
