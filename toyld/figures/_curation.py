"""The bought lessons of the experiment `curation` in one table: what every arm of every seed came to.

It comes with the package (`toyld/evidence/tiny-curation.csv`), since it takes minutes; its effects stand in
`tiny-curation.json`. Both are written by one command, into an empty folder:

    python -c "from toyld import scoreboard; from toyld.figures import _curation; scoreboard.record_experiments('tiny',
    'FOLDER', only=('curation',)); _curation.record('FOLDER/tiny-curation.csv')"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toyld.figures._table import Table, gathered, packaged, write_table
from toyld.files import write_whole

__all__ = ["collected", "load", "record", "restored"]

DIGITS = 6  # significant, of what is written: shares of at most some thousand answers, and their means


def collected(tables: Mapping[str, Any], /) -> Table:
    """One row an arm, size and seed: test accuracy before and after, and the share of the weakest kind in `weak`."""
    return gathered(row for ds in tables.values() for row in _rows(ds))


def _rows(ds: Any) -> Iterator[dict[str, Any]]:
    one = ds.transpose("seed", "step", ...)
    found = {
        "before": one.eval_test_accuracy.values[:, 0], "test": one.eval_test_accuracy.values[:, -1],
        "weak": one.eval_weak.values[:, -1],
    }  # fmt: skip
    for i, seed in enumerate(one.seed.values):
        row = {"arm": str(ds.attrs["arm"]), "count": int(ds.attrs["count"]), "seed": int(seed)}
        yield row | {name: float(f"{x[i]:.{DIGITS}g}") for name, x in found.items()}


def restored(table: Mapping[str, Any], /) -> tuple[Any, ...]:
    """The tables again, an arm and size each, as `toyld.claims.premem_curation` reads them: test accuracy at the end.

    >>> one, *_ = restored({"arm": np.array(["iid"] * 2), "count": np.array([48] * 2), "seed": np.array([0, 1]),
    ...                     "test": np.array([0.5, 0.6])})
    >>> one.attrs["arm"], one.attrs["count"], one.eval_test_accuracy.values[:, -1].tolist()
    ('iid', 48, [0.5, 0.6])
    """
    import xarray as xr

    out = []
    for arm, count in dict.fromkeys(zip(map(str, table["arm"]), map(int, table["count"]), strict=True)):
        own = (np.asarray(table["arm"]) == arm) & (np.asarray(table["count"]) == count)
        order = np.argsort(np.asarray(table["seed"])[own])
        accuracy = ("seed", "step"), np.asarray(table["test"])[own][order][:, None]
        seeds = {"seed": np.asarray(table["seed"])[own][order]}
        out.append(xr.Dataset({"eval_test_accuracy": accuracy}, seeds, {"arm": arm, "count": count}))
    return tuple(out)


def record(out: str | Path, /) -> None:
    """Write the arms at paper size, of the seeds of record."""
    from toyld.tiny.experiments import EXPERIMENTS

    write_whole(Path(out), write_table(collected(EXPERIMENTS.run("curation", size="paper"))).encode())


def load() -> Table:
    """The arms that come with the package."""
    return packaged("tiny-curation.csv")
